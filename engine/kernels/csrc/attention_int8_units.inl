// Attention over a cache in 8 bits by a CPU's matrix units (AMX): attention_int8.inl includes this file where there are some.
//
// Sums of whole numbers are exact, so that rows may be multiplied by units or by vectors, whichever is faster for so many.

// Numbers of tiles: sums of 16 rows of high and of low bytes by twice 16 columns, the rows, and what they are multiplied with.
#define HIGH_0 0
#define LOW_0 1
#define HIGH_1 2
#define LOW_1 3
#define HIGH_ROWS 4
#define LOW_ROWS 5
#define COLUMNS_0 6
#define COLUMNS_1 7
#define UNITS_TOUCH_MEMORY() __asm__ volatile("" ::: "memory")

// Bytes of a row that a step takes in.
const long UNIT_BYTES = 4 * UNIT_LANES;
// With fewer rows vectors are faster.
const long FEW_ROWS = 8;

// While one lives, its thread's units are set to so many rows at most.
class ByteUnits {
public:
    explicit INLINE ByteUnits(long num_rows) {
        const long rows = least(num_rows, UNIT_ROWS);
        const long heights[8] = {rows, rows, rows, rows, rows, rows, UNIT_LANES, UNIT_LANES};
        const TileShapes shapes(heights);
        UNITS_TOUCH_MEMORY();
        _tile_loadconfig(&shapes);
    }
    INLINE ~ByteUnits() { _tile_release(); }
    ByteUnits(const ByteUnits&) = delete;
};

INLINE void clear_unit_sums() {
    _tile_zero(HIGH_0);
    _tile_zero(LOW_0);
    _tile_zero(HIGH_1);
    _tile_zero(LOW_1);
}

// To columns `column` and 16 on of (16, stride) sums.
INLINE void store_unit_sums(int32_t* highs, int32_t* lows, long column, long stride, bool is_pair) {
    _tile_stored(HIGH_0, highs + column, 4 * stride);
    _tile_stored(LOW_0, lows + column, 4 * stride);
    if (!is_pair) return;
    _tile_stored(HIGH_1, highs + column + WIDTH, 4 * stride);
    _tile_stored(LOW_1, lows + column + WIDTH, 4 * stride);
}

// Products of 16 rows from `query` on with the keys of a tile.
INLINE void score_by_byte_units(const uint8_t* query, long dim, const ByteTile& tile, int32_t* highs, int32_t* lows) {
    UNITS_TOUCH_MEMORY();
    for (long group = tile.first / WIDTH / 2 * 2; group * WIDTH < tile.end; group += 2) {
        clear_unit_sums();
        for (long d = 0; d < dim; d += UNIT_BYTES) {
            const long lanes = d / 4 * tile.key_stride;
            _tile_loadd(HIGH_ROWS, query + d, 2 * dim);
            _tile_loadd(COLUMNS_0, tile.keys[group] + lanes, tile.key_stride);
            _tile_dpbsud(HIGH_0, HIGH_ROWS, COLUMNS_0);
            _tile_loadd(LOW_ROWS, query + dim + d, 2 * dim);
            _tile_dpbsud(LOW_0, LOW_ROWS, COLUMNS_0);
            _tile_loadd(COLUMNS_1, tile.keys[group + 1] + lanes, tile.key_stride);
            _tile_dpbsud(HIGH_1, HIGH_ROWS, COLUMNS_1);
            _tile_dpbsud(LOW_1, LOW_ROWS, COLUMNS_1);
        }
        store_unit_sums(highs, lows, group * WIDTH, TILE, true);
    }
    UNITS_TOUCH_MEMORY();
}

// Products of the weights of 16 rows with the values of a tile, which lie in one block.
INLINE void weigh_by_byte_units(const uint8_t* weights, const ByteTile& tile, int32_t* highs, int32_t* lows, long dim) {
    const uint8_t* values = tile.values[GROUPS - 1] - (tile.end - 1) / WIDTH * (WIDTH * dim);
    UNITS_TOUCH_MEMORY();
    _tile_loadd(HIGH_ROWS, weights, 2 * TILE);
    _tile_loadd(LOW_ROWS, weights + TILE, 2 * TILE);
    for (long d = 0; d < dim; d += 2 * WIDTH) {
        const bool is_pair = d + WIDTH < dim;
        clear_unit_sums();
        _tile_loadd(COLUMNS_0, values + 4 * d, tile.value_stride);
        _tile_dpbusd(HIGH_0, HIGH_ROWS, COLUMNS_0);
        _tile_dpbusd(LOW_0, LOW_ROWS, COLUMNS_0);
        if (is_pair) {
            _tile_loadd(COLUMNS_1, values + 4 * (d + WIDTH), tile.value_stride);
            _tile_dpbusd(HIGH_1, HIGH_ROWS, COLUMNS_1);
            _tile_dpbusd(LOW_1, LOW_ROWS, COLUMNS_1);
        }
        store_unit_sums(highs, lows, d, dim, is_pair);
    }
    UNITS_TOUCH_MEMORY();
}

INLINE void put_together(int32_t* highs, const int32_t* lows, long count) {
    for (long i = 0; i < count; i += WIDTH)
        store_integers(highs + i, together(load_integers(highs + i), load_integers(lows + i)));
}

// Weights are read some rows after they are written: the units would wait for those that are on their way to memory.
INLINE void add_byte_tile_by_units(const Attention& call, const Item& item, const ByteRows& rows, long begin, long end,
                                   const ByteTile& tile, long at, const State& state) {
    const long dim = rows.value_dim;
    fetch(tile.values[0]);
    for (long first = begin; first < end; first += WEIGHED_ROWS) {
        const long last = least(end, first + WEIGHED_ROWS);
        for (long r = first; r < last; r += UNIT_ROWS) {
            score_by_byte_units(rows.query + 2 * r * rows.key_dim, rows.key_dim, tile, rows.highs, rows.lows);
            for (long i = 0; i < least(UNIT_ROWS, last - r); i++) {
                put_together(rows.highs + i * TILE, rows.lows + i * TILE, TILE);
                soften_row(call, item, rows, tile, at, r + i, rows.highs + i * TILE, state);
            }
        }
        if (first == begin) fetch_next_bytes(call, item, at);
        for (long r = first; r < last; r += UNIT_ROWS) {
            weigh_by_byte_units(rows.weights + 2 * r * TILE, tile, rows.highs, rows.lows, dim);
            for (long i = 0; i < least(UNIT_ROWS, last - r); i++) {
                add_products<true>(state.sums + (r + i) * dim, rows.factors[r + i], rows.highs + i * dim, rows.lows + i * dim,
                                   rows.weight_scales[r + i], dim);
            }
        }
    }
}

#undef HIGH_0
#undef LOW_0
#undef HIGH_1
#undef LOW_1
#undef HIGH_ROWS
#undef LOW_ROWS
#undef COLUMNS_0
#undef COLUMNS_1
