// Products with weights in groups by a CPU's matrix units (AMX). grouped.cpp includes this file behind grouped_vectors.inl.
//
// A part of a panel is unpacked into signed integers and floats, in the first cache; then 16 rows at a time pass by. The
// units sum the integers of a group, and vectors add them up as grouped.inl does: the bits are the same.

const long UNIT_ROWS = 16;
// Groups of a panel that are unpacked at once.
const long UNPACKED_GROUPS = 16;

// Groups whose sums are computed in one go, with a tile each (0 to 3); rows are in tiles 4 and 5, values in 6 and 7.
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
    for (long g = 0; g < count; g++) {
        const long group = first + g;
        unpack_values(*linear.groups, panel + layout.values(group), to.values[g]);
        const Scales s = scales_of<HAS_OFFSETS>(linear.groups->scales, layout, panel + layout.block(group / layout.per_block),
                                                group % layout.per_block);
        for (long v = 0; v < VECTORS; v++) {
            put(to.scales[g] + v * LANES, s.scale[v]);
            put(to.offsets[g] + v * LANES, s.offset[v]);
        }
    }
}

INLINE RowScales row_scales_of(const Row& row, long stride, long num_rows, long first, long count) {
    RowScales s = {};
    for (long m = 0; m < num_rows; m++)
        for (long g = 0; g < count; g++) {
            s.scales[g][m] = row.scales[m * stride + first + g];
            s.sums[g][m] = row.sums[m * stride + first + g];
        }
    return s;
}

// Multiplies 16 rows by 16 columns of a group. Numbers of tiles must be written out.
#define MULTIPLY_GROUP(index, sum, row_tile, value_tile)                                        \
    if (index < count) {                                                                        \
        _tile_loadd(row_tile, lanes + index * group_lanes, stride * 4);                         \
        _tile_loadd(value_tile, values + index * sizeof(Unpacked::values[0]), PANEL * 4);       \
        _tile_zero(sum);                                                                        \
        _tile_dpbssd(sum, row_tile, value_tile);                                                \
        _tile_stored(sum, sums[index], 64);                                                     \
    }

// Sums of integers: of groups, 16 rows and 16 columns.
typedef int32_t UnitSums[GROUPS_AT_ONCE][UNIT_ROWS][16];

INLINE void multiply_groups(const uint32_t* lanes, long stride, long group_lanes, const int8_t* values, long count,
                            UnitSums& sums) {
    MULTIPLY_GROUP(0, 0, 4, 6)
    MULTIPLY_GROUP(1, 1, 5, 7)
    MULTIPLY_GROUP(2, 2, 4, 6)
    MULTIPLY_GROUP(3, 3, 5, 7)
    __asm__ volatile("" ::: "memory");  // the compiler does not know that the units write there
}

// Up to 16 rows by 16 columns of what is unpacked, added to `out` (UNIT_ROWS, PANEL) from `column` on. Sums of some groups
// are on their way while those before them are added.
template <bool HAS_OFFSETS>
INLINE void add_groups(const uint32_t* lanes, long stride, long group_lanes, const Unpacked& from, const RowScales& rows,
                       long count, long column, UnitSums (&sums)[2], float* out) {
    Floats results[UNIT_ROWS];
    UNROLL for (int m = 0; m < UNIT_ROWS; m++) results[m] = _mm512_load_ps(out + m * PANEL + column);
    multiply_groups(lanes, stride, group_lanes, from.values[0] + column * 4, count, sums[0]);
    for (long first = 0; first < count; first += GROUPS_AT_ONCE) {
        const long next = first + GROUPS_AT_ONCE;
        if (next < count)
            multiply_groups(lanes + next * group_lanes, stride, group_lanes, from.values[next] + column * 4, count - next,
                            sums[next / GROUPS_AT_ONCE % 2]);
        for (long g = first; g < least(next, count); g++) {
            const int32_t(&group)[UNIT_ROWS][16] = sums[first / GROUPS_AT_ONCE % 2][g - first];
            const Floats scale = _mm512_load_ps(from.scales[g] + column), offset = _mm512_load_ps(from.offsets[g] + column);
            UNROLL for (int m = 0; m < UNIT_ROWS; m++) {
                const Floats x = product(as_floats_of(_mm512_load_si512(group[m])), every(rows.scales[g][m]));
                results[m] = fused(x, scale, results[m]);
                if (HAS_OFFSETS) results[m] = fused_less(every(rows.sums[g][m]), offset, results[m]);
            }
        }
    }
    UNROLL for (int m = 0; m < UNIT_ROWS; m++) put(out + m * PANEL + column, results[m]);
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
    alignas(64) UnitSums unit_sums[2] = {};
    for (long first = 0; first < layout.num_groups; first += UNPACKED_GROUPS) {
        const long count = least(UNPACKED_GROUPS, layout.num_groups - first);
        unpack<HAS_OFFSETS>(linear, layout, panel, first, count, unpacked);
        long configured = 0;
        for (long index = part.row; index < part.end_row; index += UNIT_ROWS) {
            const long num_rows = least(UNIT_ROWS, part.end_row - index);
            const Row row = row_at(linear, layout, rows, index);
            const RowScales scales = row_scales_of(row, rows.stride, num_rows, first, count);
            if (num_rows != configured) configure(configured = num_rows, group_lanes);
            for (long column = 0; column < PANEL; column += 16)
                add_groups<HAS_OFFSETS>(row.lanes + first * group_lanes, rows.stride, group_lanes, unpacked, scales, count,
                                        column, unit_sums, sums + (index - part.row) * PANEL);
        }
    }
    _tile_release();
}

// Rows by a panel, into `sums` (rows in whole UNIT_ROWS, PANEL), which has zeros.
void multiply(const Linear& linear, const Rows& rows, const Part& part, float* sums) {
    if (linear.groups->has_offsets) return multiply_in_groups<true>(linear, rows, part, sums);
    multiply_in_groups<false>(linear, rows, part, sums);
}
