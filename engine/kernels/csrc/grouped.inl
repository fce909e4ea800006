// Products with weights in groups for one instruction set. grouped.cpp includes this file behind grouped_vectors.inl.
//
// The integers of a group are summed exactly; each sum becomes a float, is multiplied by the row's scale, and added to what
// came before by one fused operation with the column's scale. So neither the rows beside it nor the instruction set change
// a bit of a row's result.

// Rows of a tile at most: the integer sums of that many stay in registers.
#if AVX512
const long TILE_ROWS = 8;
#elif AVX2
const long TILE_ROWS = 4;
#elif ARM_DOT
const long TILE_ROWS = 2;
#else
const long TILE_ROWS = 1;
#endif

// Memory is read while tiles are at work: by one alone, what is so many bytes further on; by so many last ones, the next panel.
const long FETCHED_AHEAD = 8192, FETCHING_TILES = 4;

// How values are stored, and what a group of them needs.
template <int BITS_OF_ONE, int LANES_OF_GROUP, Size SIZE_OF_ONE, bool BY_TABLE, bool WITH_OFFSETS, bool BY_COLUMN = false>
struct Mode {
    static const int BITS = BITS_OF_ONE, GROUP_LANES = LANES_OF_GROUP;
    static const Size SIZE = SIZE_OF_ONE;
    static const bool HAS_TABLE = BY_TABLE, HAS_OFFSETS = WITH_OFFSETS, OF_COLUMNS = BY_COLUMN;
};

const int64_t BITS_BELOW_64 = 6;

// The same, as far as a compiler knows another one: it loads again what lies there, for which there are no registers.
INLINE const uint32_t* anew(const uint32_t* p) {
    __asm__("" : "+r"(p));
    return p;
}

// The sums of a group's integers, of NUM_ROWS rows `stride` words apart from `lanes` on, for some vectors of columns. Where scales
// are integers of a column's, they fit into 16 bits, and may be in two halves of those.
template <class M, int NUM_ROWS, int NUM_VECTORS> struct GroupSums {
    Ints at[NUM_ROWS][NUM_VECTORS];

    INLINE GroupSums(const char* values, const uint32_t* lanes, const int32_t* start, long stride, const Table& table) {
        UNROLL for (int m = 0; m < NUM_ROWS; m++)
            UNROLL for (int v = 0; v < NUM_VECTORS; v++)
                at[m][v] = M::OF_COLUMNS ? every(start + m * stride) : first_sum<M::SIZE>(start + m * stride);
        UNROLL for (int pair = 0; pair < M::GROUP_LANES / 2; pair++) {
            if (M::BITS == 8)
                add(values + pair * 2 * PANEL * 4, lanes + pair * 2, 1, stride, table);
            else
                add(values + pair * PANEL * 4, lanes + pair, M::GROUP_LANES / 2, stride, table);
        }
        if (M::OF_COLUMNS) return;
        UNROLL for (int m = 0; m < NUM_ROWS; m++)
            UNROLL for (int v = 0; v < NUM_VECTORS; v++) at[m][v] = whole_sum<M::SIZE>(at[m][v], start + m * stride);
    }

    // Adds what two lanes bring, `lane` and the one that is `other` further on.
    INLINE void add(const char* values, const uint32_t* lane, int other, long stride, const Table& table) {
        Ints first[NUM_VECTORS], second[NUM_VECTORS];
        UNROLL for (int v = 0; v < NUM_VECTORS; v++) {
            const Ints raw = load_values(values + v * LANES * 4);
            first[v] = M::BITS == 8 ? raw : low_half(raw);
            second[v] = M::BITS == 8 ? load_values(values + (PANEL + v * LANES) * 4) : high_half(raw);
            if (M::HAS_TABLE) first[v] = look_up(table, first[v]), second[v] = look_up(table, second[v]);
        }
        UNROLL for (int m = 0; m < NUM_ROWS; m++) {
            const Ints x = every(lane + m * stride), y = every(lane + m * stride + other);
            UNROLL for (int v = 0; v < NUM_VECTORS; v++) at[m][v] = dot<M::SIZE>(at[m][v], first[v], x, second[v], y);
        }
    }
};

// NUM_ROWS rows times one panel, into (NUM_ROWS, PANEL).
template <class M, int NUM_ROWS>
void tile(const Linear& linear, const GroupLayout& layout, const Row& row, long stride, const char* panel, Fetching ahead,
          float* out) {
    const Table table = table_of(M::HAS_TABLE ? linear.groups->table : NO_TABLE);
    const int64_t kind = linear.groups->scales;
    Floats results[NUM_ROWS][VECTORS];
    UNROLL for (int m = 0; m < NUM_ROWS; m++)
        UNROLL for (int v = 0; v < VECTORS; v++) results[m][v] = zero_floats();
    for (long first = 0; first < layout.num_groups; first += layout.per_block) {
        const char *head = panel, *values = panel + layout.head_bytes;
        const long count = least(layout.per_block, layout.num_groups - first);
        for (long g = 0; g < count; g++, values += M::GROUP_LANES * PANEL * M::BITS / 2) {
            const long group = first + g;
            ahead.fetch();
            const uint32_t* lanes = row.lanes + group * M::GROUP_LANES;
            UNROLL for (int v = 0; v < VECTORS; v += VECTORS_AT_ONCE) {
                const GroupSums<M, NUM_ROWS, VECTORS_AT_ONCE> sums(values + v * LANES * 4, anew(lanes), row.starts + group,
                                                                   stride, table);
                const Scales s = scales_of<M::HAS_OFFSETS>(kind, layout, head, g, v);
                UNROLL for (int m = 0; m < NUM_ROWS; m++) {
                    const Floats row_scale = every(row.scales[m * stride + group]);
                    UNROLL for (int i = 0; i < VECTORS_AT_ONCE; i++) {
                        Floats& to = results[m][v + i];
                        to = fused(product(as_floats_of(sums.at[m][i]), row_scale), s.scale[i], to);
                        if (M::HAS_OFFSETS) to = fused_less(every(row.sums[m * stride + group]), s.offset[i], to);
                    }
                }
            }
        }
        panel = values;
    }
    UNROLL for (int m = 0; m < NUM_ROWS; m++)
        UNROLL for (int v = 0; v < VECTORS; v++) put(out + m * PANEL + v * LANES, results[m][v]);
}

// As `tile`, where scales are integers of a column's: integers alone are summed, and left for `scale_sums`.
template <class M, int NUM_ROWS>
void column_tile(const Linear&, const GroupLayout& layout, const Row& row, long stride, const char* panel, Fetching ahead,
                 float* out) {
    const long group_bytes = M::GROUP_LANES * PANEL * 2;
    const int at_once = AVX512 ? 1 : VECTORS_AT_ONCE;
    const Table table = table_of(NO_TABLE);
    Ints results[NUM_ROWS][VECTORS];
    UNROLL for (int m = 0; m < NUM_ROWS; m++)
        UNROLL for (int v = 0; v < VECTORS; v++) results[m][v] = zero_ints();
    for (long first = 0; first < layout.num_groups; first += layout.per_block) {
        const char *parts = panel, *values = panel + layout.head_bytes;
        const long end = first + least(layout.per_block, layout.num_groups - first);
        for (long group = first; group < end; group++, parts += PANEL, values += group_bytes) {
            ahead.fetch();
            const uint32_t* lanes = row.lanes + group * M::GROUP_LANES;
            UNROLL for (int v = 0; v < VECTORS; v += at_once) {
                const GroupSums<M, NUM_ROWS, at_once> sums(values + v * LANES * 4, anew(lanes), row.starts + group, stride, table);
                UNROLL for (int i = 0; i < at_once; i++) {
                    const Ints part = column_parts(parts + (v + i) * LANES);
                    UNROLL for (int m = 0; m < NUM_ROWS; m++)
                        results[m][v + i] = add_scaled(results[m][v + i], sums.at[m][i], part);
                }
            }
        }
        panel = values;
    }
    UNROLL for (int m = 0; m < NUM_ROWS; m++)
        UNROLL for (int v = 0; v < VECTORS; v++) put(out + m * PANEL + v * LANES, results[m][v]);
}

// Makes numbers of what rows of a panel have come to in integers, (num_rows, PANEL).
void scale_sums(const Linear& linear, const Row& row, long stride, long num_rows, long panel, float* sums) {
    for (long m = 0; m < num_rows; m++)
        UNROLL for (long v = 0; v < VECTORS; v++) {
            float* at = sums + m * PANEL + v * LANES;
            const Floats x = product(as_floats_of(load_values(at)), numbers(linear.scales + panel * PANEL + v * LANES));
            put(at, product(x, every(row.scales[m * stride])));
        }
}

template <class M, int NUM_ROWS> TileKernel tile_of_rows() {
    if (M::OF_COLUMNS) return column_tile<M, NUM_ROWS>;
    return tile<M, NUM_ROWS>;
}

template <class M> TileKernel tile_of(long num_rows) {
    switch (num_rows) {
        case 1: return tile_of_rows<M, 1>();
#if AVX2 || ARM_DOT
        case 2: return tile_of_rows<M, 2>();
#endif
#if AVX2
        case 3: return tile_of_rows<M, 3>();
        case 4: return tile_of_rows<M, 4>();
#endif
#if AVX512
        case 5: return tile_of_rows<M, 5>();
        case 6: return tile_of_rows<M, 6>();
        case 7: return tile_of_rows<M, 7>();
        case 8: return tile_of_rows<M, 8>();
#endif
        default: return nullptr;
    }
}

template <int BITS, int GROUP_LANES, Size SIZE, bool HAS_TABLE> TileKernel tile_of_sizes(const Groups& groups, long num_rows) {
    return groups.has_offsets ? tile_of<Mode<BITS, GROUP_LANES, SIZE, HAS_TABLE, true>>(num_rows)
                              : tile_of<Mode<BITS, GROUP_LANES, SIZE, HAS_TABLE, false>>(num_rows);
}

template <int GROUP_LANES> TileKernel tile_of_groups(const Groups& groups, long num_rows) {
    // What neither saturates nor takes signs sums values of any size in the same way.
    const Size below_16 = TAKES_128_OFF ? BELOW_16 : ANY_BYTE, below_64 = TAKES_128_OFF ? BELOW_64 : ANY_BYTE;
    const bool are_small = groups.value_bits <= BITS_BELOW_64;
    if (groups.scales == COLUMN_SCALES) return tile_of<Mode<4, GROUP_LANES, below_16, false, false, true>>(num_rows);
    if (groups.bits == 8)
        return are_small ? tile_of_sizes<8, GROUP_LANES, below_64, false>(groups, num_rows)
                         : tile_of_sizes<8, GROUP_LANES, ANY_BYTE, false>(groups, num_rows);
    if (groups.table)
        return are_small ? tile_of_sizes<4, GROUP_LANES, below_64, true>(groups, num_rows)
                         : tile_of_sizes<4, GROUP_LANES, ANY_BYTE, true>(groups, num_rows);
    return tile_of_sizes<4, GROUP_LANES, below_16, false>(groups, num_rows);
}

TileKernel tile_kernel(const Groups& groups, long num_rows) {
    return groups.size == 32 ? tile_of_groups<8>(groups, num_rows) : tile_of_groups<4>(groups, num_rows);
}

// ---- rows

// Puts the integers of one group where a product reads them, and what it needs of them: its largest value becomes 127.
// What is not finite makes the scale NaN; what is too small for a factor, 0.
template <long SIZE> INLINE void fill_group(const RowVector* x, int8_t* integers, const Row& row, long group, long start) {
    const long count = SIZE / ROW_LANES;
    RowVector most = greater(x[0], -x[0]), poison = x[0] * 0.0f;
    UNROLL for (long i = 1; i < count; i++) {
        most = greater(most, greater(x[i], -x[i]));
        poison = poison + x[i] * 0.0f;
    }
    const float found = max_of(most), largest = found > 0x1p-110f ? found : 0.0f;
    const float scale = largest / 127.0f + sum_of(poison), factor = largest > 0.0f ? 127.0f / largest : 0.0f;
    RowVector sum = {};
    UNROLL for (long i = 0; i < count; i++) {
        const RowVector whole = scale == scale ? nearest(x[i] * factor) : RowVector{};
        put_bytes(integers + i * ROW_LANES, whole);
        sum += whole;
    }
    const float total = sum_of(sum);
    row.starts[group] = static_cast<int32_t>(total) * static_cast<int32_t>(start);
    row.scales[group] = scale;
    row.sums[group] = total * scale;
}

template <long SIZE> void fill_groups(const Linear& linear, const GroupLayout& layout, const Row& row, const bf16* values) {
    const Groups& groups = *linear.groups;
    const long start = (TAKES_128_OFF && groups.value_bits > BITS_BELOW_64 ? 128 : 0) - groups.zero;
    int8_t* integers = reinterpret_cast<int8_t*>(row.lanes);
    for (long group = 0; group < layout.num_groups; group++) {
        RowVector x[SIZE / ROW_LANES];
        UNROLL for (long i = 0; i < SIZE; i += ROW_LANES)
            x[i / ROW_LANES] = read_row(values + group * SIZE + i, linear.in - group * SIZE - i);
        fill_group<SIZE>(x, integers + group * SIZE, row, group, start);
    }
}

// The same with one scale for the whole row.
void fill_whole(const Linear& linear, const GroupLayout& layout, const Row& row, const bf16* values) {
    const long size = linear.groups->size;
    RowVector most = {}, poison = {};
    for (long first = 0; first < linear.in; first += ROW_LANES) {
        const RowVector x = read_row(values + first, linear.in - first);
        most = greater(most, greater(x, -x));
        poison = poison + x * 0.0f;
    }
    const float found = max_of(most), largest = found > 0x1p-110f ? found : 0.0f;
    const float scale = largest / 127.0f + sum_of(poison), factor = largest > 0.0f ? 127.0f / largest : 0.0f;
    int8_t* integers = reinterpret_cast<int8_t*>(row.lanes);
    float total = 0.0f;
    for (long group = 0; group < layout.num_groups; group++) {
        RowVector sum = {};
        for (long i = group * size; i < (group + 1) * size; i += ROW_LANES) {
            const RowVector x = read_row(values + i, linear.in - i);
            const RowVector whole = scale == scale ? nearest(x * factor) : RowVector{};
            put_bytes(integers + i, whole);
            sum += whole;
        }
        const int32_t of_group = static_cast<int32_t>(sum_of(sum));
        total += static_cast<float>(of_group);
        // Two equal sums of 16 bits, or one of 32.
        const uint32_t half = static_cast<uint32_t>(of_group * -4) & 0xffff;
        row.starts[group] = HAS_SUMS_OF_PAIRS ? static_cast<int32_t>(half * 0x10001u) : of_group * -8;
    }
    row.scales[0] = scale;
    row.sums[0] = total;
}

void fill(const Linear& linear, const Rows& rows, long index, const bf16* values) {
    const GroupLayout layout(linear);
    const Row row = row_at(linear, layout, rows, index);
    if (linear.groups->scales == COLUMN_SCALES) return fill_whole(linear, layout, row, values);
    linear.groups->size == 32 ? fill_groups<32>(linear, layout, row, values) : fill_groups<16>(linear, layout, row, values);
}

// ---- results

// Rows of what products of a panel have come to, (num_rows, PANEL).
void finish_tile(const Linear& linear, const Target& target, long row, long num_rows, long panel, const float* sums) {
    const float* bias = linear.bias ? linear.bias + panel * PANEL : nullptr;
    finish_rows(target, row, num_rows, panel * PANEL, linear.out, [&](long m, long at) {
        const RowVector x = load_row(sums + m * PANEL + at);
        return bias ? x + load_row(bias + at) : x;
    });
}

// What tile `index` of `count` fetches with each group: of the `next` panel, or of this one and what follows it if it is alone.
Fetching fetched_by(long index, long count, const GroupLayout& layout, const char* panel, const char* next) {
    if (count == 1) return Fetching{panel + FETCHED_AHEAD, layout.panel_bytes() / layout.num_groups};
    const long num_tiles = least(count, FETCHING_TILES), before = count - num_tiles;
    if (next == nullptr || index < before) return Fetching{panel, 0};
    const long share = layout.panel_bytes() / num_tiles;
    return Fetching{next + share * (index - before), (share + layout.num_groups - 1) / layout.num_groups};
}

void by_vectors(const Linear& linear, const Rows& rows, const Target& target, const Part& part, long next) {
    const GroupLayout layout(linear);
    alignas(64) float sums[TILE_ROWS * PANEL];
    const char *panels = static_cast<const char*>(linear.panels), *panel = panels + part.panel * layout.panel_bytes();
    const char* next_panel = next < 0 ? nullptr : panels + next * layout.panel_bytes();
    const long count = part.end_row - part.row, num_tiles = (count + TILE_ROWS - 1) / TILE_ROWS;
    for (long t = 0; t < num_tiles; t++) {
        const long row = part.row + count * t / num_tiles, end = part.row + count * (t + 1) / num_tiles;
        const TileKernel kernel = tile_kernel(*linear.groups, end - row);
        const Row first = row_at(linear, layout, rows, row);
        kernel(linear, layout, first, rows.stride, panel, fetched_by(t, num_tiles, layout, panel, next_panel), sums);
        if (linear.groups->scales == COLUMN_SCALES) scale_sums(linear, first, rows.stride, end - row, part.panel, sums);
        finish_tile(linear, target, row, end - row, part.panel, sums);
    }
}
