// Attention by a CPU's matrix units (AMX), of caches in bfloat16: attention.inl includes this file where there are some.
//
// The order is that of one row alone, whatever rows are multiplied with it. A score is summed along the dimension, and the
// weighted values of a tile of TILE keys along the keys, each in steps of 16 lanes; what a tile comes to is added to the
// tiles before it. Key dimensions are in whole steps: other models are left to vectors, all of them.

// Numbers of tiles: sums of 16 rows by up to four times 16 columns, the rows, and what they are multiplied with.
#define SUM_0 0
#define SUM_1 1
#define SUM_2 2
#define SUM_3 3
#define ROWS 4
#define COLUMNS_0 5
#define COLUMNS_1 6
#define COLUMNS_2 7
// Where compilers do not know themselves what the units read and write.
#define UNITS_TOUCH_MEMORY() __asm__ volatile("" ::: "memory")

// Keys of two numbers a lane that a step takes in.
const long UNIT_KEYS = 2 * UNIT_LANES, HALVES = TILE / UNIT_KEYS;

// While one lives, its thread's units are set to so many rows at most.
class Units {
public:
    explicit INLINE Units(long num_rows) {
        const long rows = least(num_rows, UNIT_ROWS);
        const long heights[8] = {rows, rows, rows, rows, rows, UNIT_LANES, UNIT_LANES, UNIT_LANES};
        const TileShapes shapes(heights);
        UNITS_TOUCH_MEMORY();
        _tile_loadconfig(&shapes);
    }
    INLINE ~Units() { _tile_release(); }
    Units(const Units&) = delete;
};

// What rows are multiplied with: columns[i] has lanes of 16 columns, `stride` lanes apart.
template <int N> struct Columns {
    const uint32_t* at[N];
    long stride;
};

// One step of 16 lanes: sums += rows * columns.
template <int N> INLINE void multiply_step(const bf16* rows, long row_bytes, const Columns<N>& columns, long lane) {
    const long bytes = 4 * columns.stride;
    _tile_loadd(ROWS, rows + 2 * lane, row_bytes);
    _tile_loadd(COLUMNS_0, columns.at[0] + lane * columns.stride, bytes);
    _tile_dpbf16ps(SUM_0, ROWS, COLUMNS_0);
    if constexpr (N > 1) {
        _tile_loadd(COLUMNS_1, columns.at[1] + lane * columns.stride, bytes);
        _tile_dpbf16ps(SUM_1, ROWS, COLUMNS_1);
    }
    if constexpr (N > 2) {
        _tile_loadd(COLUMNS_2, columns.at[2] + lane * columns.stride, bytes);
        _tile_dpbf16ps(SUM_2, ROWS, COLUMNS_2);
    }
    if constexpr (N > 3) {
        _tile_loadd(COLUMNS_0, columns.at[3] + lane * columns.stride, bytes);
        _tile_dpbf16ps(SUM_3, ROWS, COLUMNS_0);
    }
}

template <int N> INLINE void clear_sums() {
    _tile_zero(SUM_0);
    if constexpr (N > 1) _tile_zero(SUM_1);
    if constexpr (N > 2) _tile_zero(SUM_2);
    if constexpr (N > 3) _tile_zero(SUM_3);
}

template <int N> INLINE void store_sums(float* out, long stride) {
    _tile_stored(SUM_0, out, 4 * stride);
    if constexpr (N > 1) _tile_stored(SUM_1, out + WIDTH, 4 * stride);
    if constexpr (N > 2) _tile_stored(SUM_2, out + 2 * WIDTH, 4 * stride);
    if constexpr (N > 3) _tile_stored(SUM_3, out + 3 * WIDTH, 4 * stride);
}

// scores[rows][16 * N] of keys in N groups.
template <int N>
INLINE void score_groups(const bf16* query, long lanes, const uint32_t* const* keys, long stride, float* scores) {
    Columns<N> columns = {{}, stride};
    for (int i = 0; i < N; i++) columns.at[i] = keys[i];
    clear_sums<N>();
    for (long lane = 0; lane < lanes; lane += UNIT_LANES) multiply_step<N>(query, 4 * lanes, columns, lane);
    store_sums<N>(scores, TILE);
}

// Scores of the keys in place; of others there are none.
INLINE void score_by_units(const bf16* query, long lanes, const Tile& tile, float* scores) {
    const long first = tile.first / WIDTH, count = (tile.end - 1) / WIDTH + 1 - first;
    const uint32_t* const* keys = tile.keys + first;
    UNITS_TOUCH_MEMORY();
    switch (count) {
        case 1: score_groups<1>(query, lanes, keys, tile.key_stride, scores + first * WIDTH); break;
        case 2: score_groups<2>(query, lanes, keys, tile.key_stride, scores + first * WIDTH); break;
        case 3: score_groups<3>(query, lanes, keys, tile.key_stride, scores + first * WIDTH); break;
        default: score_groups<4>(query, lanes, keys, tile.key_stride, scores + first * WIDTH);
    }
    UNITS_TOUCH_MEMORY();
}

// sums[rows][16 * N] of weighted values from dimension d on.
template <int N> INLINE void sum_dimensions(const bf16* weights, const Tile& tile, long d, float* sums, long padded) {
    clear_sums<N>();
    for (long half = tile.first / UNIT_KEYS; half * UNIT_KEYS < tile.end; half++) {
        Columns<N> columns = {{}, tile.value_stride};
        for (int i = 0; i < N; i++) columns.at[i] = tile.values[half * UNIT_KEYS / WIDTH] + d + i * WIDTH;
        multiply_step<N>(weights + half * UNIT_KEYS, 2 * TILE, columns, 0);
    }
    store_sums<N>(sums + d, padded);
}

// Values of whole halves of a tile: see `complete`.
INLINE void sum_by_units(const bf16* weights, const Tile& tile, float* sums, long padded) {
    long d = 0;
    UNITS_TOUCH_MEMORY();
    for (; d + 4 * WIDTH <= padded; d += 4 * WIDTH) sum_dimensions<4>(weights, tile, d, sums, padded);
    for (; d < padded; d += WIDTH) sum_dimensions<1>(weights, tile, d, sums, padded);
    UNITS_TOUCH_MEMORY();
}

// Copies the values of a half of a tile, with zeros for keys outside of [first, end).
INLINE void copy_half(const Tile& tile, long half, long first, long end, uint32_t* to) {
    for (long lane = half * UNIT_LANES; lane < (half + 1) * UNIT_LANES; lane++, to += tile.value_stride) {
        const long key = 2 * lane;
        const bool has_first = key >= first && key < end, has_second = key + 1 >= first && key + 1 < end;
        const uint32_t kept = (has_first ? 0x0000ffffu : 0) | (has_second ? 0xffff0000u : 0);
        if (kept == 0) {
            __builtin_memset(to, 0, tile.value_stride * sizeof(uint32_t));
            continue;
        }
        const uint32_t* from = value_lanes<WidenedPairs>(tile, lane);
        for (long d = 0; d < tile.value_stride; d++) to[d] = from[d] & kept;
    }
}

// Makes of the values from `first` to `end` whole halves, each in one piece: copies where they are not.
INLINE void complete(Tile& tile, long first, long end, bool always_copies, uint32_t* memory) {
    const long per_group = WIDTH / 2;
    Tile whole = tile;
    for (long half = tile.first / UNIT_KEYS; half * UNIT_KEYS < tile.end; half++, memory += UNIT_LANES * tile.value_stride) {
        const long begin = half * UNIT_KEYS, group = begin / WIDTH;
        const bool is_one_piece = tile.values[group + 1] == tile.values[group] + per_group * tile.value_stride;
        if (!always_copies && is_one_piece && first <= begin && end >= begin + UNIT_KEYS) continue;
        copy_half(tile, half, first, end, memory);
        whole.values[group] = memory;
        whole.values[group + 1] = memory + per_group * tile.value_stride;
    }
    tile = whole;
}

INLINE void add_row(float* sums, float factor, const float* added, long padded) {
    for (long d = 0; d < padded; d += WIDTH) store(sums + d, load(sums + d) * factor + load(added + d));
}

// Makes weights of what 16 rows from `begin` on score: row r's are number r - `begin`, as its factor is.
template <class A>
INLINE void weigh_rows(const Attention& call, const Item& item, const Rows<A>& rows, long begin, long end, const Tile& tile,
                       long at, bf16* weights, float* factors, const State& state) {
    const long group = group_of(call);
    score_by_units(rows.query + begin * rows.lanes * 2, rows.lanes, tile, rows.scores);
    for (long r = begin; r < end; r++)
        factors[r - begin] =
            soften(rows.scores + (r - begin) * TILE, weights + (r - begin) * TILE, Sight::first_of(call, item, at, r / group),
                   Sight::end_of(item, at, r / group), call, state.max[r], state.sum[r]);
}

// Adds the weighted values that 16 rows see. `copy` has room for a tile's values where some are not finite, or is null.
template <class A>
INLINE void add_values(const Attention& call, const Item& item, const Rows<A>& rows, long begin, long end, const Tile& tile,
                       long at, const bf16* weights, const float* factors, uint32_t* copy, const State& state) {
    const long group = group_of(call), padded = rows.padded;
    if (copy == nullptr) sum_by_units(weights, tile, rows.products, padded);
    for (long r = begin; r < end; r++) {
        const float* products = rows.products + (copy == nullptr ? (r - begin) * padded : 0);
        if (copy != nullptr) {
            Tile seen = tile;
            complete(seen, Sight::first_of(call, item, at, r / group), Sight::end_of(item, at, r / group), true, copy);
            sum_by_units(weights + (r - begin) * TILE, seen, rows.products, padded);
        }
        add_row(state.sums + r * padded, factors[r - begin], products, padded);
    }
}

// Weights are read some rows after they are written: the units would wait for those that are on their way to memory.
template <class A>
INLINE void add_rows(const Attention& call, const Item& item, const Rows<A>& rows, long begin, long end, const Tile& tile,
                     long at, uint32_t* copy, const State& state) {
    float factors[WEIGHED_ROWS];
    for (long r = begin; r < end; r += UNIT_ROWS)
        weigh_rows(call, item, rows, r, least(r + UNIT_ROWS, end), tile, at, rows.weights + (r - begin) * TILE,
                   factors + r - begin, state);
    for (long r = begin; r < end; r += UNIT_ROWS)
        add_values(call, item, rows, r, least(r + UNIT_ROWS, end), tile, at, rows.weights + (r - begin) * TILE,
                   factors + r - begin, copy, state);
}

// Asks for a tile's keys and values: units read faster than the processor foresees, where rows are few.
INLINE void fetch_tile(const Tile& tile, long lanes) {
    for (long group = 0; group * WIDTH < tile.end; group++)
        for (long lane = 0; lane < lanes; lane++) __builtin_prefetch(tile.keys[group] + lane * tile.key_stride, 0, 2);
    for (long lane = 0; 2 * lane < tile.end; lane++) {
        const uint32_t* values = value_lanes<WidenedPairs>(tile, lane);
        for (long d = 0; d < tile.value_stride; d += WIDTH) __builtin_prefetch(values + d, 0, 2);
    }
}

template <class A> INLINE void fetch_next_tile(const Attention& call, const Item& item, const Rows<A>& rows, long at) {
    if (at + TILE >= item.end || !call.cache->is_interleaved) return;
    Tile next = {};
    next.end = least(TILE, item.end - at - TILE);
    locate<A>(call, item, at + TILE, next);
    fetch_tile(next, rows.lanes);
}

// As add_tile, by matrix units.
template <class A>
void add_tile_by_units(const Attention& call, const Item& item, const Rows<A>& rows, long at, uint32_t* memory,
                       const State& state) {
    const long group = group_of(call), padded = rows.padded;
    Tile tile = {};
    tile.first = most(0, item.first - at);
    tile.end = least(TILE, item.end - at);
    const Sight sight(call, item, at, tile);
    if (sight.from >= sight.to) return;
    if (call.cache->is_interleaved)
        locate<A>(call, item, at, tile);
    else
        gather<A>(call, item, at, memory, tile);
    fetch_next_tile(call, item, rows, at);
    uint32_t *copy = memory + TILE * (rows.lanes + padded), *seen_copy = copy + TILE / 2 * padded;
    complete(tile, tile.first, tile.end, false, copy);
    const bool is_plain = sees_finite_values<A>(tile, sight, padded);
    for (long begin = sight.from * group; begin < sight.to * group; begin += WEIGHED_ROWS)
        add_rows(call, item, rows, begin, least(begin + WEIGHED_ROWS, sight.to * group), tile, at,
                 is_plain ? nullptr : seen_copy, state);
}

#undef SUM_0
#undef SUM_1
#undef SUM_2
#undef SUM_3
#undef ROWS
#undef COLUMNS_0
#undef COLUMNS_1
#undef COLUMNS_2
