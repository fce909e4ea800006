// Linear layers whose weights are laid out for the kernels of linear.cpp, and products with them.

#pragma once

#include "grouped.h"
#include "tile_shapes.h"

namespace orcinus {

// Columns of a weight that lie together.
const long PANEL = 32;

// What multiplies a plain weight, each better than the one before where the CPU has it. Widened: numbers become floats, or
// integers of 16 bits, before they are multiplied. Dots: the CPU multiplies what is stored.
const int64_t AVX2_WIDENED = 0;
const int64_t AVX2_DOTS = 1;  // int8 alone
const int64_t AVX512_WIDENED = 2;
const int64_t AVX512_DOTS = 3;
const int64_t MATRIX_UNITS_KERNEL = 4;

}  // namespace orcinus

extern "C" {

// Packed weights of `num_panels` panels, each (in / k, PANEL, k) where k values make up a lane of 32 bits: two of
// bfloat16, or four of int8. `in` is padded with zeros to whole lanes, `out` to whole panels.
//
// int8 weights have a scale for each column, and the sum of each column's integers, times the 128 that is added to the
// rows' integers where `kernel` multiplies these without a sign. Matrix units take weights alone whose lanes are a multiple of 16.
//
// Where there are `groups`, panels are laid out as they say instead; a scale for each column is used if they say so. `next` has the columns that
// follow, of the same input, or is null: a decoder layer's projections need not all have the same kind of numbers.
struct Linear {
    const void* panels;
    const float *scales, *bias;
    const int32_t* sums;
    const Groups* groups;
    const Linear* next;
    int64_t in, out, is_int8, kernel;
};
}

namespace orcinus {

// Panels of a weight in groups, in bytes.
struct GroupLayout {
    long num_groups, per_block, head_bytes, group_bytes;

    explicit INLINE GroupLayout(const Linear& linear) {
        const Groups& groups = *linear.groups;
        num_groups = (linear.in + groups.size - 1) / groups.size;
        const bool has_wide = groups.scales == FLOAT16_SCALES || groups.scales == TWO_LEVEL_SCALES;
        per_block = groups.scales == FLOAT16_SCALES    ? 1
                    : groups.scales == TWO_LEVEL_SCALES ? 256 / groups.size
                    : groups.scales == COLUMN_SCALES    ? 64 / groups.size
                                                        : 8;
        const long wide = has_wide ? 2 * PANEL : 0, narrow = per_block > 1 ? per_block * PANEL : 0;
        head_bytes = (wide + narrow) * (groups.has_offsets ? 2 : 1);
        group_bytes = groups.size * PANEL * groups.bits / 8;
    }

    long num_blocks() const { return (num_groups + per_block - 1) / per_block; }
    long panel_bytes() const { return num_blocks() * head_bytes + num_groups * group_bytes; }
    // From the start of a panel on.
    long block(long index) const { return index * (head_bytes + per_block * group_bytes); }
    long values(long group) const { return block(group / per_block) + head_bytes + group % per_block * group_bytes; }
};

// What a row has besides its lanes, in words. For each group: where the sum of integers starts, its scale, and its sum. With
// scales of columns there is one scale and one sum for all.
INLINE long words_beside_lanes(const Groups& groups, long num_groups) {
    return groups.scales == COLUMN_SCALES ? num_groups + 2 : 3 * num_groups;
}

// Rows that a product reads: lanes of 32 bits, or two words for each where numbers are widened, and the scale of each row where
// they are integers.
struct Rows {
    uint32_t* lanes;
    float* scales;
    long stride;  // in words of 32 bits
    long count;
};

INLINE long lanes_of(const Linear& linear) {
    if (linear.groups) {
        const long num_groups = GroupLayout(linear).num_groups;
        if (is_multiplied_in_bfloat16(*linear.groups)) return round_up(num_groups * linear.groups->size / 2, UNIT_LANES);
        return num_groups * (linear.groups->size / 4) + words_beside_lanes(*linear.groups, num_groups);
    }
    return linear.is_int8 ? (linear.in + 3) / 4 : (linear.in + 1) / 2;
}

INLINE bool is_widened(const Linear& linear) {
    return !linear.groups && (linear.kernel == AVX2_WIDENED || linear.kernel == AVX512_WIDENED);
}

// A stride that spreads the rows over the sets of the caches.
INLINE long stride_of(const Linear& linear) { return round_up(lanes_of(linear) * (is_widened(linear) ? 2 : 1), 16) + 16; }

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

// The same where there are groups; grouped.cpp.
void fill_grouped_row(const Linear& linear, const Rows& rows, long index, const bf16* values);

void multiply_grouped(const Linear& linear, const Rows& rows, const Target& target, const Team& team);

}  // namespace orcinus
