// Structures of the C interface that a single source works with, and how all of them are laid out. Those that the
// sources share are in common.h and linear.h; engine/kernels/structures.py declares each of them once more.

#pragma once

#include "linear.h"

extern "C" {

// Sequences of a step and where their states lie: sequence i has tokens query_start[i] to query_start[i + 1], and its state is
// `slots[i]` strides behind that of slot 0. Where it is new, what the slot holds counts as zeros. No slot is named twice.
// Where slots[i] is negative, i goes on from where the sequence before it ends, and its state is left in slot -1 - slots[i].
struct Segments {
    int64_t num_seqs;
    const int32_t* query_start;
    const int64_t* slots;
    const uint8_t* is_new;
};

// RMSNorm with a weight of bfloat16, to which 1 is added if it is zero-centred. Without a weight there is no norm.
struct Norm {
    const bf16* weight;
    float eps;
    int32_t is_zero_centred;
};

// Attention. The layer's projections give queries, keys and values, head by head; with a gate, each head's query is followed
// by what gates the values that the head attends to. The norms are one head wide.
struct AttentionMixer {
    Norm query_norm, key_norm;
    int64_t num_heads, head_dim, has_gate;
};

// A gated delta net. The layer's projections give queries and keys (key_heads, key_dim), values and their gates (heads,
// value_dim), and what makes betas and decays, (heads,) each. The first three are convolved together, by conv_weight
// (channels, taps) and conv_bias, which may be null. Rates are negative; they and dt_bias (heads,) are padded to vectors.
// States are those of slot 0.
struct DeltaNetMixer {
    const bf16 *conv_weight, *conv_bias;
    const float *rates, *dt_bias;
    void* conv_states;
    float* states;
    Norm norm;
    int64_t taps, key_heads, heads, key_dim, value_dim, slot_bytes;
    float beta_scale;
};

// A short convolution between two gates: the layer's projections give the first, the second and what is convolved.
struct ConvolutionMixer {
    const bf16 *weight, *bias;
    void* states;
    int64_t taps, slot_bytes;
};

// A token mixer, of which one is not null, and an MLP, which may be missing: its products are null then.
struct DecoderLayer {
    const Linear *projections, *mixer_out, *gate_up, *down;
    const AttentionMixer* attention;
    const DeltaNetMixer* delta_net;
    const ConvolutionMixer* convolution;
    Norm mixer_norm, mlp_norm;
    int64_t hidden_size;
};

// Consecutive layers in one step: from hidden states (num_tokens, hidden_size) to `out`, which is contiguous, with the
// cosines and sines (num_tokens, rotary_dim) of the tokens' positions. Strides count elements. Each layer's `attentions`
// have all but queries, keys, values, output and their strides; those of other mixers are not looked at. Where no layer
// has states, segments may be null.
struct DecoderCall {
    const DecoderLayer* const* layers;
    const Attention* attentions;
    const Segments* segments;
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

// A causal convolution of each channel: rows x (num_tokens, channels), weight (channels, taps), bias (channels,) or null,
// out (num_tokens, channels); a slot holds a sequence's last inputs (taps - 1, channels). All are of one type. Strides of rows
// count elements, those of slots bytes.
struct Convolution {
    const Segments* segments;
    const void *x, *weight, *bias;
    void *out, *states;
    int64_t channels, taps, x_token, out_token, slot_bytes;
    int64_t is_bf16, has_silu;
};

// The gated delta rule: query and key (num_tokens, key_heads, key_dim), value and out (num_tokens, heads, value_dim), decay
// in log space (num_tokens, heads), or (num_tokens, heads, key_dim) where each channel of keys has its own, and beta
// (num_tokens, heads). A slot holds (heads, key_dim, value_dim). Strides count elements, those of slots bytes; the last
// dimension of query, key, value, out and of decays by channel is contiguous.
struct DeltaRule {
    const Segments* segments;
    const void *query, *key, *value, *beta;
    const float* decay;
    void* out;
    float* states;
    int64_t key_heads, heads, key_dim, value_dim;
    int64_t query_token, query_head, key_token, key_head, value_token, value_head, out_token;
    int64_t decay_token, decay_head, beta_token, beta_head, slot_bytes;
    int64_t is_bf16, has_float_beta, has_channel_decay, is_normalized;
};

// A state space of Mamba-2: x (num_tokens, heads, head_dim), dt (num_tokens, heads) to which dt_bias (heads,) is added unless
// it is null, A and D (heads,), D or null, B and C (num_tokens, groups, state_dim), out (num_tokens, heads, head_dim) in
// float32. A slot holds (heads, head_dim, state_dim). Strides as above.
struct Mamba2 {
    const Segments* segments;
    const void *x, *dt, *dt_bias, *b, *c;
    const float *a, *d;
    float *out, *states;
    int64_t heads, head_dim, groups, state_dim;
    int64_t x_token, x_head, dt_token, dt_head, b_token, b_group, c_token, c_group, out_token, slot_bytes;
    int64_t is_bf16, has_softplus;
    float dt_min, dt_max;
};

// A selective state space of Mamba: x and z (num_tokens, channels), z or null, dt (num_tokens, channels) to which dt_bias
// (channels,) is added unless it is null, A (channels, state_dim) contiguous, D (channels,) or null, B and C (num_tokens,
// state_dim), out (num_tokens, channels) in float32. A slot holds (channels, state_dim). Strides as above.
struct SelectiveScan {
    const Segments* segments;
    const void *x, *dt, *dt_bias, *b, *c, *z;
    const float *a, *d;
    float *out, *states;
    int64_t channels, state_dim;
    int64_t x_token, dt_token, dt_channel, b_token, c_token, z_token, out_token, slot_bytes;
    int64_t is_bf16, has_softplus;
};

// Where a field of a structure lies; without a name, the structure itself.
struct FieldLayout {
    const char *structure, *field;
    int64_t offset, size;
};

// recurrent.cpp
EXPORT void orcinus_convolve(const Convolution* call, const Team* team, int64_t level);
EXPORT void orcinus_delta_rule(const DeltaRule* call, const Team* team, int64_t level);

// structures.cpp: every structure and field of the interface, ended by an entry without a structure.
EXPORT const FieldLayout* orcinus_layouts();
}
