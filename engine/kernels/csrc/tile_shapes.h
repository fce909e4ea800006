// What a CPU's matrix units (AMX) are told of their tiles before they multiply, where the compiler knows them.

#pragma once

#include "common.h"

#if defined(__x86_64__) && defined(__linux__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define MATRIX_UNITS 1
#endif

namespace orcinus {

// Lanes of 32 bits that a product of tiles takes in at once.
const long UNIT_LANES = 16;

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

}  // namespace orcinus
