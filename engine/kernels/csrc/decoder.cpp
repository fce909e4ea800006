// Decoder layers of the Llama family in bfloat16: norm, attention and gated MLP with their residuals, from the hidden
// states of a step's tokens to those behind the last layer.
//
// Sums are kept in float32 between what a layer stores; each intermediate result is rounded to bfloat16 once.

#include <initializer_list>

#include "structures.h"

#if defined(__x86_64__)

#define AVX512 1

BEGIN_TARGET("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq")

namespace {

#include "rows.inl"

// Values of a row at most.
const long MOST_HIDDEN = 16384;
// Rows that a thread takes at once.
const long ROWS_PER_ITEM = 8;

template <class Body> void for_rows(const Team& team, long count, const Body& body) {
    parallel_for(team, (count + ROWS_PER_ITEM - 1) / ROWS_PER_ITEM, [&](long item) {
        for (long row = item * ROWS_PER_ITEM; row < least(count, (item + 1) * ROWS_PER_ITEM); row++) body(row);
    });
}

// RMSNorm (Zhang and Sennrich, 2019), rounded before the weight and after it.
INLINE void normalize(const bf16* x, const bf16* weight, long count, float eps, bf16* out) {
    f32x16 squares = {};
    for (long i = 0; i < count; i += 16) {
        const f32x16 v = read(x + i, count - i);
        squares += v * v;
    }
    const float factor = 1.0f / sqrtf(sum_of(squares) / count + eps);
    for (long i = 0; i < count; i += 16)
        write(out + i, count - i, rounded(read(x + i, count - i) * factor) * read(weight + i, count - i));
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

struct Heads {
    const bf16* norm;
    float eps;
    long count;
};

INLINE void turn_heads(bf16* x, const Heads& heads, long head_dim, const bf16* cosines, const bf16* sines, long dim) {
    for (long head = 0; head < heads.count; head++, x += head_dim) {
        if (heads.norm) normalize(x, heads.norm, head_dim, heads.eps, x);
        rotate(x, cosines, sines, dim);
    }
}

// One layer, and what its parts hand on to one another.
class Forward {
public:
    Forward(const DecoderCall& call, long index, const Team& team, int64_t level)
        : call_(call), layer_(*call.layers[index]), attention_(call.attentions[index]), team_(team), level_(level),
          count_(attention_.step->num_tokens) {}

    long bytes() const {
        long total = 0;
        for (const Linear* linear : {layer_.qkv, layer_.attention_out, layer_.gate_up, layer_.down})
            total = most(total, bytes_of_rows(*linear, count_));
        const long values = layer_.qkv->out + heads_width() + layer_.hidden_size + mlp_width();
        return total + count_ * values * sizeof(bf16) + 64 * 8;
    }

    // From `hidden` to `out`, which may be the same.
    int64_t run(const bf16* hidden, long hidden_stride, bf16* out, char* memory) const {
        const Linear *qkv = layer_.qkv, *gate_up = layer_.gate_up;
        const long width = layer_.hidden_size;
        Scratch scratch(memory);
        bf16* projected = scratch.take<bf16>(count_ * qkv->out);
        bf16* attended = scratch.take<bf16>(count_ * heads_width());
        bf16* middle = scratch.take<bf16>(count_ * width);
        bf16* gated = scratch.take<bf16>(count_ * mlp_width());
        char* rest = scratch.take<char>(0);

        multiply(*qkv, normalized(*qkv, rest, hidden, hidden_stride, layer_.attention_norm, layer_.attention_eps),
                 Target{projected, qkv->out, nullptr, 0, false}, team_);
        turn(projected);
        if (attend(projected, attended)) return 1;
        multiply(*layer_.attention_out, rows(*layer_.attention_out, rest, attended, heads_width()),
                 Target{middle, width, hidden, hidden_stride, false}, team_);
        multiply(*gate_up, normalized(*gate_up, rest, middle, width, layer_.mlp_norm, layer_.mlp_eps),
                 Target{gated, mlp_width(), nullptr, 0, true}, team_);
        multiply(*layer_.down, rows(*layer_.down, rest, gated, mlp_width()), Target{out, width, middle, width, false},
                 team_);
        return 0;
    }

private:
    long mlp_width() const { return layer_.gate_up->out / 2; }

    long heads_width() const { return layer_.num_heads * layer_.head_dim; }

    Rows normalized(const Linear& linear, char* memory, const bf16* x, long stride, const bf16* weight,
                    float eps) const {
        Scratch scratch(memory);
        const Rows filled = rows_in(linear, scratch, count_);
        for_rows(team_, count_, [&](long row) {
            bf16 normed[MOST_HIDDEN];
            normalize(x + row * stride, weight, linear.in, eps, normed);
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
        const Heads queries = {layer_.query_norm, layer_.query_eps, layer_.num_heads};
        const Heads keys = {layer_.key_norm, layer_.key_eps, attention_.cache->num_kv_heads};
        const long dim = call_.rotary_dim, stride = call_.rotary_stride;
        for_rows(team_, count_, [&](long row) {
            const bf16 *cosines = call_.cosines + row * stride, *sines = call_.sines + row * stride;
            bf16* x = projected + row * layer_.qkv->out;
            turn_heads(x, queries, layer_.head_dim, cosines, sines, dim);
            turn_heads(x + heads_width(), keys, layer_.head_dim, cosines, sines, dim);
        });
    }

    int64_t attend(const bf16* projected, bf16* out) const {
        Attention attention = attention_;
        attention.query = projected;
        attention.new_keys = projected + heads_width();
        attention.new_values = projected + heads_width() + attention.cache->num_kv_heads * layer_.head_dim;
        attention.query_token = attention.key_token = attention.value_token = layer_.qkv->out;
        attention.query_head = attention.key_head = attention.value_head = layer_.head_dim;
        attention.out = out;
        attention.out_token = heads_width();
        return orcinus_attend(&attention, &team_, level_);
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
