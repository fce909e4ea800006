// Products by a CPU's matrix units (AMX): 16 or 32 rows by one panel, 16 lanes at a time. linear.cpp and grouped.cpp include
// this file.
//
// A weight's panel is laid out as the units want it: 16 lanes of 16 columns are a tile. Each number is summed along the
// lanes in their order, however many rows there are. Lanes come in sixteens: other weights are multiplied without.

const long UNIT_ROWS = 32;

// Numbers of tiles: sums of the upper and the lower 16 rows by the left and the right 16 columns, rows, and weights.
#define UPPER_LEFT 0
#define UPPER_RIGHT 1
#define LOWER_LEFT 2
#define LOWER_RIGHT 3
#define UPPER_ROWS 4
#define LOWER_ROWS 5
#define LEFT_PANEL 6
#define RIGHT_PANEL 7

// What unit_tile uses for so many rows.
INLINE TileShapes shapes_for(long num_rows) {
    const long upper = least(num_rows, 16), lower = num_rows - upper;
    const long heights[8] = {upper, upper, lower, lower, upper, lower, UNIT_LANES, UNIT_LANES};
    return TileShapes(heights);
}

// What rows are, of the kinds that are multiplied: weights are bfloat16, or integers with a sign.
enum RowNumbers { BFLOAT16_ROWS, UNSIGNED_ROWS, SIGNED_ROWS };

#define MULTIPLY_TILES(sum, x, weight)                                    \
    if constexpr (ROWS == SIGNED_ROWS) _tile_dpbssd(sum, x, weight);      \
    else if constexpr (ROWS == UNSIGNED_ROWS) _tile_dpbusd(sum, x, weight); \
    else _tile_dpbf16ps(sum, x, weight)

// What is fetched from memory meanwhile: so many bytes with each sixteen lanes.
struct Ahead {
    const char* from;
    long bytes;
};

template <RowNumbers ROWS, bool HAS_LOWER>
INLINE void multiply_by_units(const uint32_t* rows, long stride, const uint32_t* panel, long num_lanes, Ahead ahead,
                              uint32_t* out) {
    _tile_zero(UPPER_LEFT);
    _tile_zero(UPPER_RIGHT);
    if (HAS_LOWER) {
        _tile_zero(LOWER_LEFT);
        _tile_zero(LOWER_RIGHT);
    }
    for (long lane = 0; lane < num_lanes; lane += UNIT_LANES, panel += UNIT_LANES * PANEL) {
        for (long i = 0; i < ahead.bytes; i += 64) _mm_prefetch(ahead.from + i, _MM_HINT_T1);
        ahead.from += ahead.bytes;
        _tile_loadd(LEFT_PANEL, panel, PANEL * 4);
        _tile_loadd(RIGHT_PANEL, panel + 16, PANEL * 4);
        _tile_loadd(UPPER_ROWS, rows + lane, stride * 4);
        MULTIPLY_TILES(UPPER_LEFT, UPPER_ROWS, LEFT_PANEL);
        MULTIPLY_TILES(UPPER_RIGHT, UPPER_ROWS, RIGHT_PANEL);
        if (HAS_LOWER) {
            _tile_loadd(LOWER_ROWS, rows + 16 * stride + lane, stride * 4);
            MULTIPLY_TILES(LOWER_LEFT, LOWER_ROWS, LEFT_PANEL);
            MULTIPLY_TILES(LOWER_RIGHT, LOWER_ROWS, RIGHT_PANEL);
        }
    }
    _tile_stored(UPPER_LEFT, out, PANEL * 4);
    _tile_stored(UPPER_RIGHT, out + 16, PANEL * 4);
    if (HAS_LOWER) {
        _tile_stored(LOWER_LEFT, out + 16 * PANEL, PANEL * 4);
        _tile_stored(LOWER_RIGHT, out + 16 * PANEL + 16, PANEL * 4);
    }
}

// Up to UNIT_ROWS rows times one panel, into (num_rows, PANEL).
template <RowNumbers ROWS>
void unit_tile(const uint32_t* rows, long num_rows, long stride, const uint32_t* panel, long num_lanes, Ahead ahead,
               uint32_t* out) {
    const TileShapes shapes = shapes_for(num_rows);
    __asm__ volatile("" ::: "memory");  // the units read memory that the compiler does not know they read
    _tile_loadconfig(&shapes);
    if (num_rows > 16)
        multiply_by_units<ROWS, true>(rows, stride, panel, num_lanes, ahead, out);
    else
        multiply_by_units<ROWS, false>(rows, stride, panel, num_lanes, ahead, out);
    _tile_release();
    __asm__ volatile("" ::: "memory");
}
