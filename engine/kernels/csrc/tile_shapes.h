// How rows are cut into the tiles of a CPU's matrix units (AMX), and what the units are told of those before they multiply,
// where the compiler knows them.

#pragma once

#include "common.h"

#if defined(__x86_64__) && defined(__linux__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define MATRIX_UNITS 1
#endif

namespace orcinus {

// Lanes of 32 bits that a product of tiles takes in at once, and rows of two tiles.
const long UNIT_LANES = 16, UNIT_TILE_ROWS = 32;
// Rows that a panel is multiplied by before the next one: as many as leave the second cache room for it.
const long UNIT_BLOCK_BYTES = 1 << 20, FEWEST_BLOCK_ROWS = 128, MOST_BLOCK_ROWS = 512;

// `stride` is that of rows, in words of 32 bits.
INLINE long unit_row_block(long stride) {
    return least(MOST_BLOCK_ROWS, most(FEWEST_BLOCK_ROWS, UNIT_BLOCK_BYTES / (stride * 4)));
}

// What LDTILECFG reads: the rows of each tile, all of 16 lanes. A tile without rows is not used.
struct alignas(64) TileShapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes_of_row[16] = {};
    uint8_t rows[16] = {};

    explicit TileShapes(const long (&heights)[8]) {
        for (int i = 0; i < 8; i++) {
            rows[i] = static_cast<uint8_t>(heights[i]);
            bytes_of_row[i] = heights[i] > 0 ? 4 * UNIT_LANES : 0;
        }
    }
};

// Rows in tiles of one height, up to UNIT_TILE_ROWS: the last tile begins where it must, so some rows may be in two.
struct UnitTiles {
    long num_rows, count, height;

    explicit UnitTiles(long num_rows)
        : num_rows(num_rows), count((num_rows + UNIT_TILE_ROWS - 1) / UNIT_TILE_ROWS), height((num_rows + count - 1) / count) {}

    INLINE long first_row(long tile) const { return least(tile * height, num_rows - height); }

    // Calls `finish` with the rows that each tile is the first to have, and what they have come to.
    template <class Sums, class Finish> INLINE void each(Sums* sums, long panel, const Finish& finish) const {
        for (long tile = 0; tile < count; tile++) {
            const long row = tile * height;
            finish(row, least(height, num_rows - row), sums + (tile * UNIT_TILE_ROWS + row - first_row(tile)) * panel);
        }
    }

    // As multiply_panel uses tiles.
    TileShapes shapes() const {
        const long upper = least(height, 16), lower = height - upper;
        const long heights[8] = {upper, upper, lower, lower, upper, lower, UNIT_LANES, UNIT_LANES};
        return TileShapes(heights);
    }
};

// What is fetched from memory into the second cache meanwhile, evenly: as few lines are on their way at a time as can be.
struct Ahead {
    const char *line, *until, *end;
    long share = 0;

    // `size` bytes from `start` on, or nothing if that is null.
    Ahead(const char* start, long size) : line(start), until(start), end(start ? start + size : start) {}

    INLINE void spread_over(long num_times) { share = (end - line + num_times - 1) / num_times; }

    INLINE void fetch() {
        until += share;
        for (; line < until; line += 64) __builtin_prefetch(line, 0, 2);
    }
};

}  // namespace orcinus
