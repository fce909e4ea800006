// Products with weights in groups by a CPU's matrix units (AMX). grouped.cpp includes this file behind grouped_vectors.inl.
//
// A part of a panel is unpacked into signed integers and floats, in the first cache; then 16 rows at a time pass by. The
// units sum the integers of a group, and vectors add them up as grouped.inl does: the bits are the same.

const long UNIT_ROWS = 16;
// Groups of a panel that are unpacked at once.
const long UNPACKED_GROUPS = 16;

// Groups whose sums are computed in one go. Sums are in tiles 0 to 3, rows in 4 and 5, values in 6 and 7.
const long GROUPS_AT_ONCE = 4;

struct alignas(64) Unpacked {
    int8_t values[UNPACKED_GROUPS][MOST_GROUP_LANES * PANEL * 4];
    float scales[UNPACKED_GROUPS][PANEL], offsets[UNPACKED_GROUPS][PANEL];
};

// Sixteen rows' numbers of some groups, those of a group together.
struct alignas(64) RowScales {
    float scales[UNPACKED_GROUPS][UNIT_ROWS], sums[UNPACKED_GROUPS][UNIT_ROWS];
};

INLINE void unpack_values(const Groups& groups, const char* from, int8_t* to) {
    const Ints zero = _mm512_set1_epi8(static_cast<char>(groups.zero));
    const long num_lines = groups.size / 4 * 2, shared = groups.bits == 4 ? num_lines / 2 : num_lines;
    const Table table = table_of(groups.table ? groups.table : NO_TABLE);
    for (long line = 0; line < shared; line++) {
        const Ints values = load_values(from + line * 64);
        if (groups.bits == 8) {
            _mm512_store_si512(to + line * 64, _mm512_sub_epi8(values, zero));
            continue;
        }
        Ints low = low_half(values), high = high_half(values);
        if (groups.table) {
            low = look_up(table, low);
            high = look_up(table, high);
        }
        _mm512_store_si512(to + line * 64, _mm512_sub_epi8(low, zero));
        _mm512_store_si512(to + (shared + line) * 64, _mm512_sub_epi8(high, zero));
    }
}

template <bool HAS_OFFSETS>
INLINE void unpack(const Linear& linear, const GroupLayout& layout, const char* panel, long first, long count, Unpacked& to) {
    const long per_block = layout.per_block;
    const char* head = panel + layout.block(first / per_block);
    for (long g = 0, in_block = first % per_block; g < count; g++, in_block++) {
        if (in_block == per_block) {
            head += layout.head_bytes + per_block * layout.group_bytes;
            in_block = 0;
        }
        unpack_values(*linear.groups, head + layout.head_bytes + in_block * layout.group_bytes, to.values[g]);
        const Scales s = scales_of<HAS_OFFSETS>(linear.groups->scales, layout, head, in_block, 0);
        for (long v = 0; v < VECTORS; v++) {
            put(to.scales[g] + v * LANES, s.scale[v]);
            put(to.offsets[g] + v * LANES, s.offset[v]);
        }
    }
}

template <bool HAS_OFFSETS>
INLINE void gather_scales(const Row& row, long stride, long num_rows, long first, long count, RowScales& to) {
    const __m512i numbers = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i places = _mm512_mullo_epi32(numbers, _mm512_set1_epi32(static_cast<int>(stride)));
    const __mmask16 rows = static_cast<__mmask16>((1u << num_rows) - 1);
    for (long g = 0; g < count; g++) {
        const float *scales = row.scales + first + g, *sums = row.sums + first + g;
        _mm512_store_ps(to.scales[g], _mm512_mask_i32gather_ps(zero_floats(), rows, places, scales, 4));
        if (HAS_OFFSETS) _mm512_store_ps(to.sums[g], _mm512_mask_i32gather_ps(zero_floats(), rows, places, sums, 4));
    }
}

// Sums of integers of some groups: 16 rows by the left and the right 16 columns.
typedef int32_t UnitSums[GROUPS_AT_ONCE][2][UNIT_ROWS][16];

// Multiplies 16 rows by a panel's columns of one group. Numbers of tiles must be written out.
#define MULTIPLY_GROUP(index, rows, left, right)                                         \
    _tile_loadd(rows, lanes + (index) * group_lanes, stride * 4);                        \
    _tile_loadd(6, values + (index) * sizeof(Unpacked::values[0]), PANEL * 4);           \
    _tile_loadd(7, values + (index) * sizeof(Unpacked::values[0]) + 64, PANEL * 4);      \
    _tile_zero(left);                                                                    \
    _tile_zero(right);                                                                   \
    _tile_dpbssd(left, rows, 6);                                                         \
    _tile_dpbssd(right, rows, 7);                                                        \
    _tile_stored(left, sums[index][0], 64);                                              \
    _tile_stored(right, sums[index][1], 64);

INLINE void multiply_groups(const uint32_t* lanes, long stride, long group_lanes, const int8_t* values, long count,
                            UnitSums& sums) {
    for (long g = 0; g < count; g += 2) {
        MULTIPLY_GROUP(g, 4, 0, 1)
        if (g + 1 == count) break;
        MULTIPLY_GROUP(g + 1, 5, 2, 3)
    }
    __asm__ volatile("" ::: "memory");  // the compiler does not know that the units write there
}

// Adds groups to what 16 rows by 16 columns have come to.
template <bool HAS_OFFSETS>
INLINE void add_groups(const Unpacked& from, const RowScales& rows, long first, long count, long column,
                       const UnitSums& sums, float* out) {
    Floats results[UNIT_ROWS];
    UNROLL for (int m = 0; m < UNIT_ROWS; m++) results[m] = _mm512_load_ps(out + m * PANEL + column);
    for (long g = 0; g < count; g++) {
        const int32_t(&group)[UNIT_ROWS][16] = sums[g][column / 16];
        const Floats scale = _mm512_load_ps(from.scales[first + g] + column);
        const Floats offset = _mm512_load_ps(from.offsets[first + g] + column);
        UNROLL for (int m = 0; m < UNIT_ROWS; m++) {
            const Floats x = product(as_floats_of(_mm512_load_si512(group[m])), every(rows.scales[first + g][m]));
            results[m] = fused(x, scale, results[m]);
            if (HAS_OFFSETS) results[m] = fused_less(every(rows.sums[first + g][m]), offset, results[m]);
        }
    }
    UNROLL for (int m = 0; m < UNIT_ROWS; m++) _mm512_store_ps(out + m * PANEL + column, results[m]);
}

// Up to 16 rows by what is unpacked, added to `out` (UNIT_ROWS, PANEL).
template <bool HAS_OFFSETS>
INLINE void multiply_rows(const uint32_t* lanes, long stride, long group_lanes, const Unpacked& from, const RowScales& rows,
                          long count, UnitSums& sums, float* out) {
    for (long first = 0; first < count; first += GROUPS_AT_ONCE) {
        const long few = least(GROUPS_AT_ONCE, count - first);
        multiply_groups(lanes + first * group_lanes, stride, group_lanes, from.values[first], few, sums);
        add_groups<HAS_OFFSETS>(from, rows, first, few, 0, sums, out);
        add_groups<HAS_OFFSETS>(from, rows, first, few, 16, sums, out);
    }
}

// Of so many rows; a row has as many bytes as a group has inputs.
INLINE void configure(long num_rows, long group_lanes) {
    const long heights[8] = {num_rows, num_rows, num_rows, num_rows, num_rows, num_rows, group_lanes, group_lanes};
    TileShapes shapes(heights);
    shapes.bytes_of_row[4] = shapes.bytes_of_row[5] = static_cast<uint16_t>(group_lanes * 4);
    __asm__ volatile("" ::: "memory");  // the units read memory that the compiler does not know they read
    _tile_loadconfig(&shapes);
}

template <bool HAS_OFFSETS>
void multiply_in_groups(const Linear& linear, const Rows& rows, const Part& part, float* sums) {
    const GroupLayout layout(linear);
    const long group_lanes = linear.groups->size / 4;
    const char* panel = static_cast<const char*>(linear.panels) + part.panel * layout.panel_bytes();
    Unpacked unpacked;
    alignas(64) UnitSums unit_sums;
    if ((part.end_row - part.row) % UNIT_ROWS != 0) __builtin_memset(&unit_sums, 0, sizeof unit_sums);  // none but numbers
    long configured = 0;
    for (long first = 0; first < layout.num_groups; first += UNPACKED_GROUPS) {
        const long count = least(UNPACKED_GROUPS, layout.num_groups - first);
        unpack<HAS_OFFSETS>(linear, layout, panel, first, count, unpacked);
        for (long index = part.row; index < part.end_row; index += UNIT_ROWS) {
            const long num_rows = least(UNIT_ROWS, part.end_row - index);
            const Row row = row_at(linear, layout, rows, index);
            RowScales scales;
            gather_scales<HAS_OFFSETS>(row, rows.stride, num_rows, first, count, scales);
            if (num_rows != configured) configure(configured = num_rows, group_lanes);
            multiply_rows<HAS_OFFSETS>(row.lanes + first * group_lanes, rows.stride, group_lanes, unpacked, scales, count,
                                       unit_sums, sums + (index - part.row) * PANEL);
        }
    }
    _tile_release();
}

// Rows by a panel, into `sums` (rows in whole UNIT_ROWS, PANEL).
void multiply(const Linear& linear, const Rows& rows, const Part& part, float* sums) {
    __builtin_memset(sums, 0, round_up(part.end_row - part.row, UNIT_ROWS) * PANEL * sizeof(float));
    if (linear.groups->has_offsets) return multiply_in_groups<true>(linear, rows, part, sums);
    multiply_in_groups<false>(linear, rows, part, sums);
}
