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
    STRUCTURE(Norm),
    FIELD(Norm, weight), FIELD(Norm, eps), FIELD(Norm, is_zero_centred),
    STRUCTURE(DecoderLayer),
    FIELD(DecoderLayer, projections), FIELD(DecoderLayer, mixer_out), FIELD(DecoderLayer, gate_up),
    FIELD(DecoderLayer, down), FIELD(DecoderLayer, mixer_norm), FIELD(DecoderLayer, mlp_norm),
    FIELD(DecoderLayer, query_norm), FIELD(DecoderLayer, key_norm), FIELD(DecoderLayer, hidden_size),
    FIELD(DecoderLayer, num_heads), FIELD(DecoderLayer, head_dim), FIELD(DecoderLayer, has_gate),
    STRUCTURE(DecoderCall),
    FIELD(DecoderCall, layers), FIELD(DecoderCall, attentions), FIELD(DecoderCall, num_layers),
    FIELD(DecoderCall, num_tokens),
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
    STRUCTURE(Team),
    FIELD(Team, parallel), FIELD(Team, num_threads),
    {nullptr, nullptr, 0, 0},
};

}  // namespace

extern "C" {
EXPORT const FieldLayout* orcinus_layouts() { return LAYOUTS; }
}
