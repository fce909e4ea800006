// Linear layers whose weights are laid out for the kernels of linear.cpp, and products with them.

#pragma once

#include "common.h"

namespace orcinus {

// Columns of a weight that lie together: two vectors.
const long PANEL = 32;

}  // namespace orcinus

extern "C" {

// Packed weights of `num_panels` panels, each (in / k, PANEL, k) where k values make up a lane of 32 bits: two of
// bfloat16, or four of int8. `in` is padded with zeros to whole lanes, `out` to whole panels.
//
// int8 weights have a scale for each column, and the sum of each column's integers, times the 128 that is added to the
// rows' integers. Matrix units take weights alone whose lanes are a multiple of 16.
struct Linear {
    const void* panels;
    const float *scales, *bias;
    const int32_t* sums;
    int64_t in, out, is_int8, by_matrix_units;
};
}

namespace orcinus {

// Rows that a product reads: lanes of 32 bits, and the scale of each row where they are integers.
struct Rows {
    uint32_t* lanes;
    float* scales;
    long stride;  // in lanes
    long count;
};

INLINE long lanes_of(const Linear& linear) {
    return linear.is_int8 ? (linear.in + 3) / 4 : (linear.in + 1) / 2;
}

// A stride that spreads the rows over the sets of the caches.
INLINE long stride_of(const Linear& linear) { return round_up(lanes_of(linear), 16) + 16; }

INLINE long bytes_of_rows(const Linear& linear, long count) {
    return round_up(count * stride_of(linear) * 4, 64) + round_up(count * 4, 64);
}

INLINE Rows rows_in(const Linear& linear, Scratch& memory, long count) {
    uint32_t* lanes = memory.take<uint32_t>(count * stride_of(linear));
    return Rows{lanes, memory.take<float>(count), stride_of(linear), count};
}

// What becomes of a product. With `is_gated`, the first half of a panel's columns are gates, and the second what they
// gate: the result, half as wide, is silu(gate) * other. Strides count elements.
struct Target {
    bf16* out;
    long stride;
    const bf16* residual;  // added, or null
    long residual_stride;
    bool is_gated;
};

// Puts one row of bfloat16 where a product with `linear` reads it.
void fill_row(const Linear& linear, const Rows& rows, long index, const bf16* values);

void multiply(const Linear& linear, const Rows& rows, const Target& target, const Team& team);

}  // namespace orcinus
