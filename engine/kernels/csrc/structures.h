// Structures of the C interface that a single source works with, and how all of them are laid out. Those that the
// sources share are in common.h and linear.h; engine/kernels/structures.py declares each of them once more.

#pragma once

#include "linear.h"

extern "C" {

// RMSNorm with a weight of bfloat16, to which 1 is added if it is zero-centred. Without a weight there is no norm.
struct Norm {
    const bf16* weight;
    float eps;
    int32_t is_zero_centred;
};

// `projections` give a token's queries, keys and values, head by head. With a gate, each head's query is followed by what
// gates the values that the head attends to. The norms of queries and keys are one head wide.
struct DecoderLayer {
    const Linear *projections, *mixer_out, *gate_up, *down;
    Norm mixer_norm, mlp_norm, query_norm, key_norm;
    int64_t hidden_size, num_heads, head_dim, has_gate;
};

// Consecutive layers in one step: from hidden states (num_tokens, hidden_size) to `out`, which is contiguous, with the
// cosines and sines (num_tokens, rotary_dim) of the tokens' positions. Strides count elements. Each layer's `attentions`
// have all but queries, keys, values, output and their strides.
struct DecoderCall {
    const DecoderLayer* const* layers;
    const Attention* attentions;
    int64_t num_layers, num_tokens;
    const bf16 *hidden, *cosines, *sines;
    bf16* out;
    int64_t hidden_stride, rotary_stride, rotary_dim;
};

// Rows x (count, in) times columns, to (count, out). The number i of column c is weight[i * in_stride + c * column_stride],
// and one of these strides is 1. Strides count elements; those of rows are between rows. `bias` may be null.
struct PlainProduct {
    const void *x, *weight;
    const float* bias;
    void* out;
    int64_t count, in, columns;
    int64_t x_stride, in_stride, column_stride, out_stride;
    int64_t is_bf16;
};

// What a request does to its logits before a token is chosen, in this order. Tokens beyond the vocabulary are ignored.
// Without a mask (a bit for each token, the lowest first) every token is possible.
struct LogitChanges {
    const int64_t* penalized;
    const float* counts;  // how often the output has each of them
    int64_t num_penalized;
    float repetition, frequency, presence;
    const int64_t* biased;
    const float* biases;
    int64_t num_biased;
    const int64_t* ends;  // get the least finite logit
    int64_t num_ends;
    const int64_t* impossible;
    int64_t num_impossible;
    const uint16_t* mask;
};

// Rows of logits (num_rows, vocab_size), float32 or bfloat16, `stride` elements apart, of each of which a token is
// chosen. `parameters` (num_rows, 4) are temperature (0: the likeliest token), min_p, top_p and top_k; `uniforms` lie
// in [0, 1). `changes` and any of them may be null. A token means nothing where a row is not finite or has no choice.
struct Sampling {
    const void* logits;
    int64_t num_rows, vocab_size, stride, is_bf16;
    const float *parameters, *uniforms;
    const LogitChanges* const* changes;
    int64_t *tokens, *is_finite, *has_choice;
};

// Log-probabilities of a token of some rows of logits, and of their `num_top` likeliest, the lowest ids first among
// equals: (num_rows,) and (num_rows, num_top). Those of a row that is not finite are NaN.
struct Logprobs {
    const void* logits;
    int64_t num_rows, vocab_size, stride, is_bf16;
    const int64_t *rows, *tokens;
    int64_t num_top;
    float *logprobs, *top_logprobs;
    int64_t* top_ids;
};

// Where a field of a structure lies; without a name, the structure itself.
struct FieldLayout {
    const char *structure, *field;
    int64_t offset, size;
};

// structures.cpp: every structure and field of the interface, ended by an entry without a structure.
EXPORT const FieldLayout* orcinus_layouts();
}
