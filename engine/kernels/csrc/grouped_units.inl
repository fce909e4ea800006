// Products with weights in groups by a CPU's matrix units (AMX). grouped.cpp includes this file behind grouped_vectors.inl and
// matrix_units.inl.
//
// Weights are unpacked into bfloat16, 32 inputs at a time in the first cache, and rows are bfloat16, too: a unit cannot scale
// the sums of a group, and its sums of bfloat16 pass from one group to the next.

// Rows by the 16 lanes of weights of a panel that were unpacked last.
template <int BITS, int GROUP_LANES, bool HAS_OFFSETS> class UnpackedGroups {
public:
    static const long FETCHES = BITS == 4 ? 8 : 16;  // one for each line of values

    UnpackedGroups(const Linear& linear, const GroupLayout& layout, const char* panel)
        : groups_(*linear.groups), layout_(layout), head_(panel) {
        const uint8_t* table = groups_.table;
        for (int i = 0; i < 16; i++) numbers_[i] = static_cast<float>((table ? table[i] : i) - static_cast<int>(groups_.zero));
    }

    // Steps are prepared in their order.
    INLINE void prepare(long number, Ahead& ahead) {
        char* to = memory_ + number % STEPS_AT_ONCE * STEP_BYTES;
        UNROLL for (long i = 0; i < GROUPS_OF_STEP; i++, group_++, to += STEP_BYTES / GROUPS_OF_STEP) {
            if (group_ < layout_.num_groups)
                unpack_next(to, ahead);
            else
                __builtin_memset(to, 0, STEP_BYTES / GROUPS_OF_STEP);
        }
    }

    INLINE const char* step(long number) const { return memory_ + number % STEPS_AT_ONCE * STEP_BYTES; }

private:
    static const long GROUPS_OF_STEP = 8 / GROUP_LANES;

    INLINE void unpack_next(char* to, Ahead& ahead) {
        const Scales scales = scales_of<HAS_OFFSETS>(groups_.scales, layout_, head_, in_block_, 0);
        const char* values = head_ + layout_.head_bytes + in_block_ * layout_.group_bytes;
        UNROLL for (long v = 0; v < VECTORS; v++) {
            const Floats scale = one_nan(scales.scale[v]), offset = one_nan(scales.offset[v]);
            if (BITS == 4)
                unpack_halves(values + v * 64, scale, offset, to + v * 64, ahead);
            else
                unpack_bytes(values + v * 64, scale, offset, to + v * 64, ahead);
        }
        if (++in_block_ < layout_.per_block) return;
        head_ += layout_.head_bytes + layout_.per_block * layout_.group_bytes;
        in_block_ = 0;
    }

    INLINE void unpack_halves(const char* values, Floats scale, Floats offset, char* to, Ahead& ahead) {
        const __m512 numbers = _mm512_load_ps(numbers_);
        UNROLL for (long lane = 0; lane < GROUP_LANES / 2; lane++) {
            ahead.fetch();
            const __m512i raw = load_values(values + lane * LINE);
            UNROLL for (int half = 0; half < 2; half++)
                UNROLL for (int pair = 0; pair < 2; pair++) {
                    // A lookup takes the low four bits of what is shifted.
                    const __m512 first = _mm512_permutexvar_ps(_mm512_srli_epi32(raw, 4 * half + 16 * pair), numbers);
                    const __m512 second = _mm512_permutexvar_ps(_mm512_srli_epi32(raw, 4 * half + 16 * pair + 8), numbers);
                    put_pair(first, second, scale, offset, to + (half * GROUP_LANES + 2 * lane + pair) * LINE);
                }
        }
    }

    INLINE void unpack_bytes(const char* values, Floats scale, Floats offset, char* to, Ahead& ahead) {
        const __m512 zero = _mm512_set1_ps(0x1p23f + static_cast<float>(groups_.zero));
        UNROLL for (long lane = 0; lane < GROUP_LANES; lane++) {
            ahead.fetch();
            const __m512i raw = load_values(values + lane * LINE);
            UNROLL for (int pair = 0; pair < 2; pair++) {
                const __m512 first = _mm512_sub_ps(first_byte(_mm512_srli_epi32(raw, 16 * pair)), zero);
                const __m512 second = _mm512_sub_ps(first_byte(_mm512_srli_epi32(raw, 16 * pair + 8)), zero);
                put_pair(first, second, scale, offset, to + (2 * lane + pair) * LINE);
            }
        }
    }

    // The low byte of a lane and 2^23: floats of that size have no fractions.
    static INLINE __m512 first_byte(__m512i raw) {
        const __m512i magic = _mm512_set1_epi32(0x4b000000);
        return reinterpret_cast<__m512>(_mm512_ternarylogic_epi32(raw, _mm512_set1_epi32(255), magic, 0xea));  // (raw & 255) | magic
    }

    // One whose bits do not become those of a number when they are rounded.
    static INLINE Floats one_nan(Floats x) {
        return _mm512_mask_mov_ps(x, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), _mm512_set1_ps(__builtin_nanf("")));
    }

    // Numbers of two inputs of 16 columns. Rounded to the nearest, and from the middle up in size.
    static INLINE void put_pair(__m512 first, __m512 second, Floats scale, Floats offset, char* to) {
        const __m512i half = _mm512_set1_epi32(0x8000);
        const __m512 a = HAS_OFFSETS ? _mm512_fmsub_ps(first, scale, offset) : _mm512_mul_ps(first, scale);
        const __m512 b = HAS_OFFSETS ? _mm512_fmsub_ps(second, scale, offset) : _mm512_mul_ps(second, scale);
        const __m512i low = _mm512_srli_epi32(_mm512_add_epi32(reinterpret_cast<__m512i>(a), half), 16);
        const __m512i high = _mm512_add_epi32(reinterpret_cast<__m512i>(b), half);
        _mm512_store_si512(to, _mm512_mask_blend_epi16(0xaaaaaaaa, low, high));
    }

    static const long LINE = PANEL * 4;

    const Groups& groups_;
    const GroupLayout& layout_;
    const char* head_;  // of the block that is unpacked
    long group_ = 0, in_block_ = 0;
    alignas(64) float numbers_[16];
    alignas(64) char memory_[STEPS_AT_ONCE * STEP_BYTES];
};

// The same of weights whose scales are integers of a column's: they become integers of 8 bits.
template <int GROUP_LANES> class UnpackedColumns {
public:
    static const long FETCHES = GROUP_LANES == 4 ? 4 : 2;

    UnpackedColumns(const GroupLayout& layout, const char* panel) : layout_(layout), panel_(panel) {}

    INLINE void prepare(long number, Ahead& ahead) {
        char* to = memory_ + number % STEPS_AT_ONCE * STEP_BYTES;
        const long first = number * layout_.per_block;
        const char *parts = panel_ + layout_.block(number), *values = parts + layout_.head_bytes;
        for (long i = 0; i < layout_.per_block; i++, parts += PANEL, values += layout_.group_bytes, to += GROUP_LANES * PANEL * 4) {
            ahead.fetch();
            if (first + i < layout_.num_groups)
                avx512::unpack_group<GROUP_LANES>(parts, values, __m512i{}, reinterpret_cast<int8_t*>(to));
            else
                __builtin_memset(to, 0, GROUP_LANES * PANEL * 4);
        }
    }

    INLINE const char* step(long number) const { return memory_ + number % STEPS_AT_ONCE * STEP_BYTES; }

private:
    const GroupLayout& layout_;
    const char* panel_;
    alignas(64) char memory_[STEPS_AT_ONCE * STEP_BYTES];
};

// A block of rows by a panel.
struct UnitProduct {
    const Linear& linear;
    const Rows& rows;
    const Part& part;
    const GroupLayout layout;
    const char* panel;
    const Ahead ahead;
    const UnitTiles tiles;
    uint32_t* sums;

    UnitProduct(const Linear& linear, const Rows& rows, const Part& part, long next, uint32_t* sums)
        : linear(linear), rows(rows), part(part), layout(linear), panel(at(part.panel)),
          ahead(next < 0 ? nullptr : at(next), layout.panel_bytes()), tiles(part.end_row - part.row), sums(sums) {}

    const char* at(long index) const { return static_cast<const char*>(linear.panels) + index * layout.panel_bytes(); }

    template <RowNumbers ROWS, class Weights> void multiply(Weights&& weights) const {
        const long inputs_of_step = ROWS == BFLOAT16_ROWS ? UNIT_LANES * 2 : UNIT_LANES * 4;
        const long num_steps = (layout.num_groups * linear.groups->size + inputs_of_step - 1) / inputs_of_step;
        multiply_panel<ROWS>(rows.lanes + part.row * rows.stride, rows.stride, tiles, weights, num_steps, ahead, sums);
    }

    template <int BITS, int GROUP_LANES> void by_groups() const {
        if (linear.groups->has_offsets)
            multiply<BFLOAT16_ROWS>(UnpackedGroups<BITS, GROUP_LANES, true>(linear, layout, panel));
        else
            multiply<BFLOAT16_ROWS>(UnpackedGroups<BITS, GROUP_LANES, false>(linear, layout, panel));
    }

    template <int GROUP_LANES> void by_lanes() const {
        if (linear.groups->scales == COLUMN_SCALES) return multiply<SIGNED_ROWS>(UnpackedColumns<GROUP_LANES>(layout, panel));
        linear.groups->bits == 4 ? by_groups<4, GROUP_LANES>() : by_groups<8, GROUP_LANES>();
    }

    void run() const { linear.groups->size == 32 ? by_lanes<8>() : by_lanes<4>(); }
};

// Rows by a panel, and what becomes of that.
void by_units(const Linear& linear, const Rows& rows, const Target& target, const Part& part, long next) {
    alignas(64) uint32_t sums[MOST_BLOCK_ROWS * PANEL];
    const UnitProduct product(linear, rows, part, next, sums);
    product.run();
    product.tiles.each(reinterpret_cast<float*>(sums), PANEL, [&](long row, long count, float* of_rows) {
        if (linear.groups->scales == COLUMN_SCALES) {
            const Row first = row_at(linear, product.layout, rows, part.row + row);
            avx512::scale_sums(linear, first, rows.stride, count, part.panel, of_rows);
        }
        avx512::finish_tile(linear, target, part.row + row, count, part.panel, of_rows);
    });
}
