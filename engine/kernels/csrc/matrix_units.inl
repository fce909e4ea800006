// Products by a CPU's matrix units (AMX): rows by one panel, 16 lanes of it at a time. linear.cpp and grouped.cpp include this
// file.
//
// A panel is laid out as the units want it, or unpacked so: 16 lanes of 16 columns are a tile. Each number is summed along the
// lanes in their order, however many rows there are. Lanes come in sixteens: other weights are multiplied without.

// Numbers of tiles: sums of the upper and the lower 16 rows by the left and the right 16 columns, rows, and weights.
#define UPPER_LEFT 0
#define UPPER_RIGHT 1
#define LOWER_LEFT 2
#define LOWER_RIGHT 3
#define UPPER_ROWS 4
#define LOWER_ROWS 5
#define LEFT_PANEL 6
#define RIGHT_PANEL 7

// 16 lanes of a panel, and how many of those stay in the first cache while all rows pass by.
const long STEP_BYTES = UNIT_LANES * PANEL * 4, STEPS_AT_ONCE = 8;

// What rows are, of the kinds that are multiplied: weights are bfloat16, or integers with a sign.
enum RowNumbers { BFLOAT16_ROWS, UNSIGNED_ROWS, SIGNED_ROWS };

#define MULTIPLY_TILES(sum, x, weight)                                    \
    if constexpr (ROWS == SIGNED_ROWS) _tile_dpbssd(sum, x, weight);      \
    else if constexpr (ROWS == UNSIGNED_ROWS) _tile_dpbusd(sum, x, weight); \
    else _tile_dpbf16ps(sum, x, weight)

// A panel that is multiplied as it is stored.
struct StoredPanel {
    static const long FETCHES = 0;  // of each step, while it is prepared
    const char* panel;
    INLINE void prepare(long, Ahead&) const {}
    INLINE const char* step(long number) const { return panel + number * STEP_BYTES; }
};

template <RowNumbers ROWS, bool HAS_LOWER>
INLINE void multiply_step(const uint32_t* rows, long stride, const char* weights) {
    _tile_loadd(LEFT_PANEL, weights, PANEL * 4);
    _tile_loadd(UPPER_ROWS, rows, stride * 4);
    MULTIPLY_TILES(UPPER_LEFT, UPPER_ROWS, LEFT_PANEL);
    _tile_loadd(RIGHT_PANEL, weights + 64, PANEL * 4);
    MULTIPLY_TILES(UPPER_RIGHT, UPPER_ROWS, RIGHT_PANEL);
    if (HAS_LOWER) {
        _tile_loadd(LOWER_ROWS, rows + 16 * stride, stride * 4);
        MULTIPLY_TILES(LOWER_LEFT, LOWER_ROWS, LEFT_PANEL);
        MULTIPLY_TILES(LOWER_RIGHT, LOWER_ROWS, RIGHT_PANEL);
    }
}

template <bool HAS_LOWER> INLINE void take_sums(const uint32_t* from, bool are_zero) {
    if (are_zero) {
        _tile_zero(UPPER_LEFT);
        _tile_zero(UPPER_RIGHT);
        if (HAS_LOWER) _tile_zero(LOWER_LEFT);
        if (HAS_LOWER) _tile_zero(LOWER_RIGHT);
        return;
    }
    _tile_loadd(UPPER_LEFT, from, PANEL * 4);
    _tile_loadd(UPPER_RIGHT, from + 16, PANEL * 4);
    if (HAS_LOWER) _tile_loadd(LOWER_LEFT, from + 16 * PANEL, PANEL * 4);
    if (HAS_LOWER) _tile_loadd(LOWER_RIGHT, from + 16 * PANEL + 16, PANEL * 4);
}

template <bool HAS_LOWER> INLINE void leave_sums(uint32_t* to) {
    _tile_stored(UPPER_LEFT, to, PANEL * 4);
    _tile_stored(UPPER_RIGHT, to + 16, PANEL * 4);
    if (HAS_LOWER) _tile_stored(LOWER_LEFT, to + 16 * PANEL, PANEL * 4);
    if (HAS_LOWER) _tile_stored(LOWER_RIGHT, to + 16 * PANEL + 16, PANEL * 4);
}

template <RowNumbers ROWS, bool HAS_LOWER, class Weights>
void multiply_by_units(const uint32_t* rows, long stride, const UnitTiles& tiles, Weights& weights, long num_steps,
                       Ahead ahead, uint32_t* sums) {
    const bool is_alone = tiles.count == 1;
    const long at_once = is_alone ? num_steps : STEPS_AT_ONCE;
    // With many tiles evenly; with one, where unpacking is most of the work, in small parts of that.
    const bool while_unpacking = is_alone && Weights::FETCHES > 0;
    Ahead nothing(nullptr, 0), &unpacking = while_unpacking ? ahead : nothing, &multiplying = while_unpacking ? nothing : ahead;
    ahead.spread_over(tiles.count * num_steps * (while_unpacking ? Weights::FETCHES : 1));
    for (long first = 0; first < num_steps; first += at_once) {
        const long end = least(first + at_once, num_steps);
        for (long tile = 0; tile < tiles.count; tile++) {
            const uint32_t* x = rows + tiles.first_row(tile) * stride;
            uint32_t* of_tile = sums + tile * UNIT_TILE_ROWS * PANEL;
            take_sums<HAS_LOWER>(of_tile, first == 0);
            if (tile == 0) weights.prepare(first, unpacking);
            for (long number = first; number < end; number++) {
                multiplying.fetch();
                // One step before it is multiplied, since units wait until what they read is in the cache.
                if (tile == 0 && number + 1 < end) weights.prepare(number + 1, unpacking);
                multiply_step<ROWS, HAS_LOWER>(x + number * UNIT_LANES, stride, weights.step(number));
            }
            leave_sums<HAS_LOWER>(of_tile);
        }
    }
}

// Rows times one panel of whole steps, into UNIT_TILE_ROWS rows of PANEL for each of the tiles.
template <RowNumbers ROWS, class Weights>
void multiply_panel(const uint32_t* rows, long stride, const UnitTiles& tiles, Weights& weights, long num_steps, Ahead ahead,
                    uint32_t* sums) {
    const TileShapes shapes = tiles.shapes();
    __asm__ volatile("" ::: "memory");  // the units read memory that the compiler does not know they read
    _tile_loadconfig(&shapes);
    if (tiles.height > 16)
        multiply_by_units<ROWS, true>(rows, stride, tiles, weights, num_steps, ahead, sums);
    else
        multiply_by_units<ROWS, false>(rows, stride, tiles, weights, num_steps, ahead, sums);
    _tile_release();
    __asm__ volatile("" ::: "memory");
}
