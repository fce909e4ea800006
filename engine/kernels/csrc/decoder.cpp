// Decoder layers in bfloat16: norm, attention and gated MLP with their residuals, from the hidden states of a step's
// tokens to those behind the last layer.
//
// Sums are kept in float32 between what a layer stores; each intermediate result is rounded to bfloat16 once.

#include <initializer_list>

#include "structures.h"

#if defined(__x86_64__)

#define AVX512 1

BEGIN_TARGET("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq")

namespace {

#include "rows.inl"

#include "norms.inl"

// Values of a row at most.
const long MOST_HIDDEN = 16384;
// Rows that a thread takes at once.
const long ROWS_PER_ITEM = 8;

template <class Body> void for_rows(const Team& team, long count, const Body& body) {
    parallel_for(team, (count + ROWS_PER_ITEM - 1) / ROWS_PER_ITEM, [&](long item) {
        for (long row = item * ROWS_PER_ITEM; row < least(count, (item + 1) * ROWS_PER_ITEM); row++) body(row);
    });
}

// Rotary positions (Su et al., 2021): the first half of `dim` values turns with the second.
INLINE void rotate(bf16* x, const bf16* cosines, const bf16* sines, long dim) {
    const long half = dim / 2;
    for (long i = 0; i < half; i += 16) {
        const f32x16 a = widen(x + i), b = widen(x + half + i);
        write(x + i, 16, a * widen(cosines + i) - b * widen(sines + i));
        write(x + half + i, 16, b * widen(cosines + half + i) + a * widen(sines + half + i));
    }
}

// Heads of one token, `stride` values apart.
struct Heads {
    const Norm& norm;
    long count, stride, dim;
};

INLINE void turn_heads(bf16* x, const Heads& heads, const bf16* cosines, const bf16* sines, long rotary_dim) {
    for (long head = 0; head < heads.count; head++, x += heads.stride) {
        if (heads.norm.weight) normalize(x, heads.norm, heads.dim, x);
        rotate(x, cosines, sines, rotary_dim);
    }
}

// One layer, and what its parts hand on to one another.
class Forward {
public:
    Forward(const DecoderCall& call, long index, const Team& team, int64_t level)
        : call_(call), layer_(*call.layers[index]), attention_(call.attentions[index]), team_(team), level_(level),
          count_(call.num_tokens) {}

    long bytes() const {
        long total = 0;
        for (const Linear* linear : {layer_.projections, layer_.mixer_out, layer_.gate_up, layer_.down})
            total = most(total, bytes_of_rows(*linear, count_));
        const long values = layer_.projections->out + layer_.mixer_out->in + layer_.hidden_size + mlp_width();
        return total + count_ * values * sizeof(bf16) + 64 * 8;
    }

    // From `hidden` to `out`, which may be the same.
    int64_t run(const bf16* hidden, long hidden_stride, bf16* out, char* memory) const {
        const Linear *projections = layer_.projections, *mixer_out = layer_.mixer_out, *gate_up = layer_.gate_up;
        const long width = layer_.hidden_size;
        Scratch scratch(memory);
        bf16* projected = scratch.take<bf16>(count_ * projections->out);
        bf16* mixed = scratch.take<bf16>(count_ * mixer_out->in);
        bf16* middle = scratch.take<bf16>(count_ * width);
        bf16* gated = scratch.take<bf16>(count_ * mlp_width());
        char* rest = scratch.take<char>(0);

        multiply(*projections, normalized(*projections, rest, hidden, hidden_stride, layer_.mixer_norm),
                 Target{projected, projections->out, nullptr, 0, false}, team_);
        turn(projected);
        if (attend(projected, mixed)) return 1;
        if (layer_.has_gate) apply_gates(projected, mixed);
        multiply(*mixer_out, rows(*mixer_out, rest, mixed, mixer_out->in),
                 Target{middle, width, hidden, hidden_stride, false}, team_);
        multiply(*gate_up, normalized(*gate_up, rest, middle, width, layer_.mlp_norm),
                 Target{gated, mlp_width(), nullptr, 0, true}, team_);
        multiply(*layer_.down, rows(*layer_.down, rest, gated, mlp_width()), Target{out, width, middle, width, false},
                 team_);
        return 0;
    }

private:
    long mlp_width() const { return layer_.gate_up->out / 2; }

    // From one head's query to the next one's: its gate may lie between them.
    long query_stride() const { return layer_.head_dim * (layer_.has_gate ? 2 : 1); }

    long first_key() const { return layer_.num_heads * query_stride(); }

    Rows normalized(const Linear& linear, char* memory, const bf16* x, long stride, const Norm& norm) const {
        Scratch scratch(memory);
        const Rows filled = rows_in(linear, scratch, count_);
        for_rows(team_, count_, [&](long row) {
            bf16 normed[MOST_HIDDEN];
            normalize(x + row * stride, norm, linear.in, normed);
            fill_row(linear, filled, row, normed);
        });
        return filled;
    }

    Rows rows(const Linear& linear, char* memory, const bf16* x, long stride) const {
        Scratch scratch(memory);
        const Rows filled = rows_in(linear, scratch, count_);
        for_rows(team_, count_, [&](long row) { fill_row(linear, filled, row, x + row * stride); });
        return filled;
    }

    void turn(bf16* projected) const {
        const long head_dim = layer_.head_dim, dim = call_.rotary_dim, stride = call_.rotary_stride;
        const Heads queries = {layer_.query_norm, layer_.num_heads, query_stride(), head_dim};
        const Heads keys = {layer_.key_norm, attention_.cache->num_kv_heads, head_dim, head_dim};
        for_rows(team_, count_, [&](long row) {
            const bf16 *cosines = call_.cosines + row * stride, *sines = call_.sines + row * stride;
            bf16* x = projected + row * layer_.projections->out;
            turn_heads(x, queries, cosines, sines, dim);
            turn_heads(x + first_key(), keys, cosines, sines, dim);
        });
    }

    int64_t attend(const bf16* projected, bf16* out) const {
        Attention attention = attention_;
        attention.query = projected;
        attention.new_keys = projected + first_key();
        attention.new_values = projected + first_key() + attention.cache->num_kv_heads * layer_.head_dim;
        attention.query_token = attention.key_token = attention.value_token = layer_.projections->out;
        attention.query_head = query_stride();
        attention.key_head = attention.value_head = layer_.head_dim;
        attention.out = out;
        attention.out_token = layer_.mixer_out->in;
        return orcinus_attend(&attention, &team_, level_);
    }

    // What each head has attended to, by the sigmoid of the head's gate.
    void apply_gates(const bf16* projected, bf16* attended) const {
        const long head_dim = layer_.head_dim;
        for_rows(team_, count_, [&](long row) {
            const bf16* gates = projected + row * layer_.projections->out + head_dim;
            bf16* x = attended + row * layer_.mixer_out->in;
            for (long head = 0; head < layer_.num_heads; head++, x += head_dim, gates += 2 * head_dim)
                for (long i = 0; i < head_dim; i += 16)
                    write(x + i, head_dim - i, read(x + i, head_dim - i) * rounded(sigmoid(read(gates + i, head_dim - i))));
        });
    }

    const DecoderCall& call_;
    const DecoderLayer& layer_;
    const Attention& attention_;
    const Team& team_;
    const int64_t level_;
    const long count_;
};

}  // namespace

extern "C" {

// Returns 0, or 1 without memory to work in.
EXPORT int64_t orcinus_decode(const DecoderCall* call, const Team* team, int64_t level) {
    static thread_local Arena arena;
    const bf16* hidden = call->hidden;
    long stride = call->hidden_stride;
    for (long i = 0; i < call->num_layers; i++) {
        const Forward forward(*call, i, *team, level);
        char* memory = arena.reserve(forward.bytes());
        if (memory == nullptr || forward.run(hidden, stride, call->out, memory)) return 1;
        hidden = call->out;
        stride = call->layers[i]->hidden_size;
    }
    return 0;
}
}

END_TARGET

#else

extern "C" EXPORT int64_t orcinus_decode(const DecoderCall*, const Team*, int64_t) { return 1; }

#endif
