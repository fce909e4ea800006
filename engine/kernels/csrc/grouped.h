// Weights of 4 or 8 bits whose inputs come in groups, each with a scale of its own: how they lie in memory.

#pragma once

#include "common.h"

namespace orcinus {

// How the scales of a group are kept.
const int64_t FLOAT16_SCALES = 0;   // a float16
const int64_t TWO_LEVEL_SCALES = 1; // an integer of 8 bits, times a float16 of 256 inputs
const int64_t EXPONENT_SCALES = 2;  // two to the power of a byte less 127; the byte 0 is 0
const int64_t COLUMN_SCALES = 3;    // an integer of -15 to 15, times a float32 of the whole column: Linear::scales

// What multiplies, each better than the one before where the CPU has it. All give the same bits, but for matrix units where scales
// are not integers of a column's: see is_multiplied_in_bfloat16.
const int64_t GENERIC_GROUPS = 0;
const int64_t AVX2_GROUPS = 1;
const int64_t AVX2_VNNI_GROUPS = 2;
const int64_t AVX512_GROUPS = 3;
const int64_t UNIT_GROUPS = 4;  // matrix units
const int64_t ARM_DOT_GROUPS = 5;  // Arm's dot products of 8 bits

const long MOST_GROUP_LANES = 8;
const long MOST_COLUMN_PART = 15;  // of an integer times a float32 of the column

}  // namespace orcinus

extern "C" {

// The form of a weight whose element is `scale * (value - zero) - offset`, with a scale, and perhaps an offset, for each
// column and each group of `size` (16 or 32) inputs. Values are stored in `bits` (4 or 8); those of 4 bits may stand for what
// a table has at their place. They are below 2 to the power of `value_bits`, and `zero` is such that value - zero fits into 8
// bits with a sign. Scales by exponents have no offsets.
//
// Scales by integers of a column's have neither offsets nor a table, 4 bits, and 8 as zero: a value less 8, times its integer,
// fits into 8 bits, so that integers are summed over all inputs of a row, which has one scale then, too.
//
// A panel is a row of blocks: the scales of a block's groups, then their values. A block is one group where scales are
// float16, 256 inputs where they are of two levels, 64 where they are integers of a column's, and 8 groups where they are
// exponents; the last block of a panel may have fewer groups. Its scales are, of 32 columns each: the float16 of all, those of
// offsets, then a byte for each group (signed for scales), and those of offsets. Values are lanes of four inputs, (lanes,
// PANEL, 4); of 4 bits two lanes share one, the first half of a group's lanes in the low bits.
struct Groups {
    const uint8_t* table;  // 16 values, or null
    int64_t bits, value_bits, size, zero, scales, has_offsets, kernel;
};

// Rows of a weight (count, in) as values of a byte each, with their scales as above: float16 (count, blocks), bytes
// (count, groups), float32 (count,). What a form does not have is null.
struct GroupedRows {
    const uint8_t* values;
    const uint16_t *scales, *offsets;
    const uint8_t *scale_parts, *offset_parts;
    const float* column_scales;
    int64_t count, value_stride;
};

// Rows of a weight (count, in) in blocks of a type of GGUF, each where `order` says, or in their order. Whole blocks make up a row.
struct BlockRows {
    const uint8_t* data;
    const int64_t* order;  // or null
    int64_t count, row_bytes, packing, block_inputs, block_bytes;
};
}

namespace orcinus {

// Whether weights are unpacked into bfloat16, and rows left in it, rather than both in integers.
inline bool is_multiplied_in_bfloat16(const Groups& groups) {
    return groups.kernel == UNIT_GROUPS && groups.scales != COLUMN_SCALES;
}

}  // namespace orcinus
