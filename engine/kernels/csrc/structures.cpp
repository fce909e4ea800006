// How the structures of the C interface are laid out, so that who declares them a second time can compare.

#include "structures.h"

#include <cstddef>

#define STRUCTURE(type) {#type, "", 0, sizeof(type)}
#define RENAMED(type, member, name) {#type, name, offsetof(type, member), sizeof(type::member)}
#define FIELD(type, member) RENAMED(type, member, #member)

namespace {

// What is `in` and `out` here has longer names where the first is a keyword.
const FieldLayout LAYOUTS[] = {
    STRUCTURE(Step),
    FIELD(Step, num_tokens), FIELD(Step, num_seqs), FIELD(Step, block_size), FIELD(Step, table_stride),
    FIELD(Step, query_start), FIELD(Step, seq_lens), FIELD(Step, block_tables), FIELD(Step, slots),
    STRUCTURE(Cache),
    FIELD(Cache, keys), FIELD(Cache, values), FIELD(Cache, num_kv_heads), FIELD(Cache, key_dim),
    FIELD(Cache, value_dim), FIELD(Cache, is_bf16), FIELD(Cache, is_interleaved),
    STRUCTURE(Attention),
    FIELD(Attention, step), FIELD(Attention, cache), FIELD(Attention, query), FIELD(Attention, new_keys),
    FIELD(Attention, new_values), FIELD(Attention, out), FIELD(Attention, out_token), FIELD(Attention, query_token),
    FIELD(Attention, query_head), FIELD(Attention, key_token), FIELD(Attention, key_head),
    FIELD(Attention, value_token), FIELD(Attention, value_head), FIELD(Attention, num_heads),
    FIELD(Attention, window), FIELD(Attention, scale), FIELD(Attention, softcap), FIELD(Attention, sinks),
    STRUCTURE(Linear),
    FIELD(Linear, panels), FIELD(Linear, scales), FIELD(Linear, bias), FIELD(Linear, sums),
    RENAMED(Linear, in, "in_features"), RENAMED(Linear, out, "out_features"), FIELD(Linear, is_int8),
    FIELD(Linear, by_matrix_units),
    STRUCTURE(DecoderLayer),
    FIELD(DecoderLayer, qkv), FIELD(DecoderLayer, attention_out), FIELD(DecoderLayer, gate_up),
    FIELD(DecoderLayer, down), FIELD(DecoderLayer, attention_norm), FIELD(DecoderLayer, mlp_norm),
    FIELD(DecoderLayer, query_norm), FIELD(DecoderLayer, key_norm), FIELD(DecoderLayer, attention_eps),
    FIELD(DecoderLayer, mlp_eps), FIELD(DecoderLayer, query_eps), FIELD(DecoderLayer, key_eps),
    FIELD(DecoderLayer, hidden_size), FIELD(DecoderLayer, num_heads), FIELD(DecoderLayer, head_dim),
    STRUCTURE(DecoderCall),
    FIELD(DecoderCall, layers), FIELD(DecoderCall, attentions), FIELD(DecoderCall, num_layers),
    FIELD(DecoderCall, hidden), FIELD(DecoderCall, cosines), FIELD(DecoderCall, sines), FIELD(DecoderCall, out),
    FIELD(DecoderCall, hidden_stride), FIELD(DecoderCall, rotary_stride), FIELD(DecoderCall, rotary_dim),
    STRUCTURE(PlainProduct),
    FIELD(PlainProduct, x), FIELD(PlainProduct, weight), FIELD(PlainProduct, bias), FIELD(PlainProduct, out),
    FIELD(PlainProduct, count), RENAMED(PlainProduct, in, "in_features"), FIELD(PlainProduct, columns),
    FIELD(PlainProduct, x_stride), FIELD(PlainProduct, in_stride), FIELD(PlainProduct, column_stride),
    FIELD(PlainProduct, out_stride), FIELD(PlainProduct, is_bf16),
    STRUCTURE(LogitChanges),
    FIELD(LogitChanges, penalized), FIELD(LogitChanges, counts), FIELD(LogitChanges, num_penalized),
    FIELD(LogitChanges, repetition), FIELD(LogitChanges, frequency), FIELD(LogitChanges, presence),
    FIELD(LogitChanges, biased), FIELD(LogitChanges, biases), FIELD(LogitChanges, num_biased),
    FIELD(LogitChanges, ends), FIELD(LogitChanges, num_ends), FIELD(LogitChanges, impossible),
    FIELD(LogitChanges, num_impossible), FIELD(LogitChanges, mask),
    STRUCTURE(Sampling),
    FIELD(Sampling, logits), FIELD(Sampling, num_rows), FIELD(Sampling, vocab_size), FIELD(Sampling, stride),
    FIELD(Sampling, is_bf16), FIELD(Sampling, parameters), FIELD(Sampling, uniforms), FIELD(Sampling, changes),
    FIELD(Sampling, tokens), FIELD(Sampling, is_finite), FIELD(Sampling, has_choice),
    STRUCTURE(Logprobs),
    FIELD(Logprobs, logits), FIELD(Logprobs, num_rows), FIELD(Logprobs, vocab_size), FIELD(Logprobs, stride),
    FIELD(Logprobs, is_bf16), FIELD(Logprobs, rows), FIELD(Logprobs, tokens), FIELD(Logprobs, num_top),
    FIELD(Logprobs, logprobs), FIELD(Logprobs, top_logprobs), FIELD(Logprobs, top_ids),
    STRUCTURE(Segments),
    FIELD(Segments, num_seqs), FIELD(Segments, query_start), FIELD(Segments, slots), FIELD(Segments, is_new),
    STRUCTURE(Convolution),
    FIELD(Convolution, segments), FIELD(Convolution, x), FIELD(Convolution, weight), FIELD(Convolution, bias),
    FIELD(Convolution, out), FIELD(Convolution, states), FIELD(Convolution, channels), FIELD(Convolution, taps),
    FIELD(Convolution, x_token), FIELD(Convolution, out_token), FIELD(Convolution, slot_bytes),
    FIELD(Convolution, is_bf16), FIELD(Convolution, has_silu),
    STRUCTURE(DeltaRule),
    FIELD(DeltaRule, segments), FIELD(DeltaRule, query), FIELD(DeltaRule, key), FIELD(DeltaRule, value),
    FIELD(DeltaRule, beta), FIELD(DeltaRule, decay), FIELD(DeltaRule, out), FIELD(DeltaRule, states),
    FIELD(DeltaRule, key_heads), FIELD(DeltaRule, heads), FIELD(DeltaRule, key_dim), FIELD(DeltaRule, value_dim),
    FIELD(DeltaRule, query_token), FIELD(DeltaRule, query_head), FIELD(DeltaRule, key_token),
    FIELD(DeltaRule, key_head), FIELD(DeltaRule, value_token), FIELD(DeltaRule, value_head),
    FIELD(DeltaRule, out_token), FIELD(DeltaRule, decay_token), FIELD(DeltaRule, decay_head),
    FIELD(DeltaRule, beta_token), FIELD(DeltaRule, beta_head), FIELD(DeltaRule, slot_bytes),
    FIELD(DeltaRule, is_bf16), FIELD(DeltaRule, has_float_beta), FIELD(DeltaRule, has_channel_decay),
    FIELD(DeltaRule, is_normalized),
    STRUCTURE(Mamba2),
    FIELD(Mamba2, segments), FIELD(Mamba2, x), FIELD(Mamba2, dt), FIELD(Mamba2, dt_bias), FIELD(Mamba2, b),
    FIELD(Mamba2, c), FIELD(Mamba2, a), FIELD(Mamba2, d), FIELD(Mamba2, out), FIELD(Mamba2, states),
    FIELD(Mamba2, heads), FIELD(Mamba2, head_dim), FIELD(Mamba2, groups), FIELD(Mamba2, state_dim),
    FIELD(Mamba2, x_token), FIELD(Mamba2, x_head), FIELD(Mamba2, dt_token), FIELD(Mamba2, dt_head),
    FIELD(Mamba2, b_token), FIELD(Mamba2, b_group), FIELD(Mamba2, c_token), FIELD(Mamba2, c_group),
    FIELD(Mamba2, out_token), FIELD(Mamba2, slot_bytes), FIELD(Mamba2, is_bf16), FIELD(Mamba2, has_softplus),
    FIELD(Mamba2, dt_min), FIELD(Mamba2, dt_max),
    STRUCTURE(SelectiveScan),
    FIELD(SelectiveScan, segments), FIELD(SelectiveScan, x), FIELD(SelectiveScan, dt), FIELD(SelectiveScan, dt_bias),
    FIELD(SelectiveScan, b), FIELD(SelectiveScan, c), FIELD(SelectiveScan, z), FIELD(SelectiveScan, a),
    FIELD(SelectiveScan, d), FIELD(SelectiveScan, out), FIELD(SelectiveScan, states), FIELD(SelectiveScan, channels),
    FIELD(SelectiveScan, state_dim), FIELD(SelectiveScan, x_token), FIELD(SelectiveScan, dt_token),
    FIELD(SelectiveScan, dt_channel), FIELD(SelectiveScan, b_token), FIELD(SelectiveScan, c_token),
    FIELD(SelectiveScan, z_token), FIELD(SelectiveScan, out_token), FIELD(SelectiveScan, slot_bytes),
    FIELD(SelectiveScan, is_bf16), FIELD(SelectiveScan, has_softplus),
    STRUCTURE(Team),
    FIELD(Team, parallel), FIELD(Team, num_threads),
    {nullptr, nullptr, 0, 0},
};

}  // namespace

extern "C" {
EXPORT const FieldLayout* orcinus_layouts() { return LAYOUTS; }
}
