// Products with weights of 4 bits whose scales are integers of a column's, by AVX-512, where there are many rows: a panel is
// unpacked into integers of 8 bits, which matrix units or vectors then sum over whole rows. grouped.cpp includes this file
// behind grouped.inl.
//
// All sums are exact, so the bits are those of column_tile.

// Integers of a group's columns for 16 columns, spread over the bytes of their lanes.
struct ColumnParts {
    __m512i factors, less;  // words, and what is taken off the products
    __m512i flips;

    // A value v stands for v - 8; where a part is below zero for 8 - v, which is (15 - v) - 7.
    INLINE ColumnParts(const char* parts, const __m512i& shift) {
        const __m512i spread = _mm512_set_epi32(0x0f0f0f0f, 0x0e0e0e0e, 0x0d0d0d0d, 0x0c0c0c0c, 0x0b0b0b0b, 0x0a0a0a0a,
                                                0x09090909, 0x08080808, 0x07070707, 0x06060606, 0x05050505, 0x04040404,
                                                0x03030303, 0x02020202, 0x01010101, 0);
        const __m128i sixteen = _mm_loadu_si128(reinterpret_cast<const __m128i*>(parts));
        const __m512i all = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(sixteen), spread);
        const __m512i sizes = _mm512_abs_epi8(all);
        const __mmask64 below = _mm512_movepi8_mask(all);
        const __m512i eightfold = _mm512_sub_epi8(_mm512_slli_epi16(sizes, 3), shift);
        factors = _mm512_and_si512(sizes, _mm512_set1_epi16(0xff));
        flips = _mm512_maskz_mov_epi8(below, _mm512_set1_epi8(15));
        less = _mm512_mask_sub_epi8(eightfold, below, eightfold, sizes);
    }

    // Of the low halves of bytes: two bytes of a word are multiplied at once, as no product reaches 256.
    INLINE __m512i numbers_of(__m512i values) const {
        const __m512i turned = _mm512_ternarylogic_epi32(values, _mm512_set1_epi8(15), flips, 0x6a);  // (values & 15) ^ flips
        return _mm512_sub_epi8(_mm512_mullo_epi16(turned, factors), less);
    }
};

// A group of a panel as (GROUP_LANES, PANEL, 4) integers.
template <int GROUP_LANES> INLINE void unpack_group(const char* parts, const char* values, const __m512i& shift, int8_t* to) {
    UNROLL for (long v = 0; v < 2; v++) {
        const ColumnParts columns(parts + v * 16, shift);
        UNROLL for (long lane = 0; lane < GROUP_LANES / 2; lane++) {
            const Ints both = load_values(values + lane * PANEL * 4 + v * 64);
            int8_t* at = to + lane * PANEL * 4 + v * 64;
            _mm512_store_si512(at, columns.numbers_of(both));
            _mm512_store_si512(at + GROUP_LANES / 2 * PANEL * 4, columns.numbers_of(_mm512_srli_epi16(both, 4)));
        }
    }
}

// A panel as (unpacked_lanes, PANEL, 4) integers, and 128, without a sign. From `ahead` on, so many bytes with each group are
// fetched meanwhile.
template <int GROUP_LANES>
void unpack_groups(const GroupLayout& layout, const char* panel, int8_t* to, const char* ahead, long ahead_bytes) {
    const __m512i shift = _mm512_set1_epi8(static_cast<char>(128));
    for (long first = 0; first < layout.num_groups; first += layout.per_block) {
        const char *parts = panel, *values = panel + layout.head_bytes;
        const long count = least(layout.per_block, layout.num_groups - first);
        for (long i = 0; i < count; i++, parts += PANEL, values += GROUP_LANES * PANEL * 2, to += GROUP_LANES * PANEL * 4) {
            for (long k = 0; k < ahead_bytes; k += 64) _mm_prefetch(ahead + k, _MM_HINT_T1);
            ahead += ahead_bytes;
            unpack_group<GROUP_LANES>(parts, values, shift, to);
        }
        panel = values;
    }
}

// NUM_ROWS rows times a panel that is unpacked with a shift of 128, into integers (NUM_ROWS, PANEL). A line from `ahead` on
// is fetched with each lane.
template <int NUM_ROWS>
void whole_tile(const Row& row, long stride, const int8_t* panel, long num_lanes, const char* ahead, float* out) {
    Ints sums[NUM_ROWS][VECTORS];
    UNROLL for (int m = 0; m < NUM_ROWS; m++) {
        const int32_t start = static_cast<int32_t>(row.sums[m * stride]) * -128;
        UNROLL for (int v = 0; v < VECTORS; v++) sums[m][v] = every(&start);
    }
    for (long lane = 0; lane < num_lanes; lane++, panel += PANEL * 4) {
        _mm_prefetch(ahead + lane * 64, _MM_HINT_T1);
        Ints values[VECTORS];
        UNROLL for (int v = 0; v < VECTORS; v++) values[v] = load_values(panel + v * LANES * 4);
        UNROLL for (int m = 0; m < NUM_ROWS; m++) {
            const Ints x = every(row.lanes + m * stride + lane);
            UNROLL for (int v = 0; v < VECTORS; v++) sums[m][v] = dot_lane(sums[m][v], values[v], x);
        }
    }
    UNROLL for (int m = 0; m < NUM_ROWS; m++)
        UNROLL for (int v = 0; v < VECTORS; v++) put(out + m * PANEL + v * LANES, sums[m][v]);
}

typedef void (*WholeTile)(const Row& row, long stride, const int8_t* panel, long num_lanes, const char* ahead, float* out);

const WholeTile WHOLE_TILES[TILE_ROWS + 1] = {nullptr,       whole_tile<1>, whole_tile<2>, whole_tile<3>, whole_tile<4>,
                                              whole_tile<5>, whole_tile<6>, whole_tile<7>, whole_tile<8>};

// Rows by a panel of which there is room to unpack it. A first part of `next`, a panel or null, is fetched while this one is
// unpacked, and the rest with the first tile.
void by_whole_rows(const Linear& linear, const Rows& rows, const Target& target, const Part& part, const char* next,
                   int8_t* unpacked) {
    const GroupLayout layout(linear);
    alignas(64) float sums[TILE_ROWS * PANEL];
    const long num_lanes = layout.num_groups * (linear.groups->size / 4), fetched = next ? 64 : 0;
    const char *panel = static_cast<const char*>(linear.panels) + part.panel * layout.panel_bytes(), *ahead = next;
    const auto unpack = linear.groups->size == 16 ? unpack_groups<4> : unpack_groups<8>;
    unpack(layout, panel, unpacked, ahead, fetched);
    ahead = next ? next + layout.num_groups * fetched : panel;
    const long count = part.end_row - part.row, num_tiles = (count + TILE_ROWS - 1) / TILE_ROWS;
    for (long t = 0; t < num_tiles; t++, ahead = panel) {
        const long row = part.row + count * t / num_tiles, end = part.row + count * (t + 1) / num_tiles;
        const Row first = row_at(linear, layout, rows, row);
        WHOLE_TILES[end - row](first, rows.stride, unpacked, num_lanes, ahead, sums);
        scale_sums(linear, first, rows.stride, end - row, part.panel, sums);
        finish_tile(linear, target, row, end - row, part.panel, sums);
    }
}
