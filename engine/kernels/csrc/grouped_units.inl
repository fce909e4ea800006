// Products with weights in groups by a CPU's matrix units (AMX). grouped.cpp includes this file behind grouped_vectors.inl.
//
// A part of a panel is unpacked into signed integers and floats, in the first cache; then 16 rows at a time pass by. The
// units sum the integers of a group, and vectors add them up as grouped.inl does: the bits are the same.

const long UNIT_ROWS = 16;
// Groups of a panel that are unpacked at once.
const long UNPACKED_GROUPS = 16;

#define SUM_TILE 0
#define OTHER_SUM_TILE 1
#define ROW_TILE 2
#define VALUE_TILE 3

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

// Adds one group to what 16 rows have come to.
template <bool IS_OTHER, bool HAS_OFFSETS>
INLINE void add_group(const uint32_t* lanes, long stride, const Unpacked& from, const RowScales& rows, long g, long column,
                      Floats (&results)[UNIT_ROWS], int32_t (&sums)[UNIT_ROWS][16]) {
    _tile_loadd(ROW_TILE, lanes, stride * 4);
    _tile_loadd(VALUE_TILE, from.values[g] + column * 4, PANEL * 4);
    if (IS_OTHER) {  // numbers of tiles must be written out
        _tile_zero(OTHER_SUM_TILE);
        _tile_dpbssd(OTHER_SUM_TILE, ROW_TILE, VALUE_TILE);
        _tile_stored(OTHER_SUM_TILE, sums, 64);
    } else {
        _tile_zero(SUM_TILE);
        _tile_dpbssd(SUM_TILE, ROW_TILE, VALUE_TILE);
        _tile_stored(SUM_TILE, sums, 64);
    }
    __asm__ volatile("" ::: "memory");  // the compiler does not know that the units write there
    const Floats scale = _mm512_load_ps(from.scales[g] + column), offset = _mm512_load_ps(from.offsets[g] + column);
    UNROLL for (int m = 0; m < UNIT_ROWS; m++) {
        const Floats x = product(as_floats_of(_mm512_load_si512(sums[m])), every(rows.scales[g][m]));
        results[m] = fused(x, scale, results[m]);
        if (HAS_OFFSETS) results[m] = fused_less(every(rows.sums[g][m]), offset, results[m]);
    }
}

// Up to 16 rows by 16 columns of what is unpacked, added to `out` (UNIT_ROWS, PANEL) from `column` on.
template <bool HAS_OFFSETS>
INLINE void add_groups(const uint32_t* lanes, long stride, long group_lanes, const Unpacked& from, const RowScales& rows,
                       long count, long column, float* out) {
    alignas(64) int32_t sums[2][UNIT_ROWS][16] = {};
    Floats results[UNIT_ROWS];
    UNROLL for (int m = 0; m < UNIT_ROWS; m++) results[m] = _mm512_load_ps(out + m * PANEL + column);
    for (long g = 0; g < count; g += 2) {
        add_group<false, HAS_OFFSETS>(lanes + g * group_lanes, stride, from, rows, g, column, results, sums[0]);
        if (g + 1 == count) break;
        add_group<true, HAS_OFFSETS>(lanes + (g + 1) * group_lanes, stride, from, rows, g + 1, column, results,
                                               sums[1]);
    }
    UNROLL for (int m = 0; m < UNIT_ROWS; m++) put(out + m * PANEL + column, results[m]);
}

// Of so many rows; a row has as many bytes as a group has inputs.
INLINE void configure(long num_rows, long group_lanes) {
    const long heights[8] = {num_rows, num_rows, num_rows, group_lanes, 0, 0, 0, 0};
    TileShapes shapes(heights);
    shapes.bytes_of_row[ROW_TILE] = static_cast<uint16_t>(group_lanes * 4);
    __asm__ volatile("" ::: "memory");  // the units read memory that the compiler does not know they read
    _tile_loadconfig(&shapes);
}

template <bool HAS_OFFSETS>
void multiply_in_groups(const Linear& linear, const Rows& rows, const Part& part, float* sums) {
    const GroupLayout layout(linear);
    const long group_lanes = linear.groups->size / 4;
    const char* panel = static_cast<const char*>(linear.panels) + part.panel * layout.panel_bytes();
    Unpacked unpacked;
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
                                        column, sums + (index - part.row) * PANEL);
        }
    }
    _tile_release();
}

// Rows by a panel, into `sums` (rows in whole UNIT_ROWS, PANEL), which has zeros.
void multiply(const Linear& linear, const Rows& rows, const Part& part, float* sums) {
    if (linear.groups->has_offsets) return multiply_in_groups<true>(linear, rows, part, sums);
    multiply_in_groups<false>(linear, rows, part, sums);
}
