// One decoder layer of the Llama family in bfloat16: norm, attention and gated MLP with their residuals, from the hidden
// states of a step's tokens to those of the next layer.
//
// Sums are kept in float32 between what a layer stores; each intermediate result is rounded to bfloat16 once.

#include <initializer_list>

#include "linear.h"

extern "C" {

// Weights of norms are bfloat16; those of queries and keys, one head wide, may be null.
struct DecoderLayer {
    const Linear *qkv, *attention_out, *gate_up, *down;
    const bf16 *attention_norm, *mlp_norm, *query_norm, *key_norm;
    float attention_eps, mlp_eps, query_eps, key_eps;
    int64_t hidden_size, num_heads, head_dim;
};

// A step's hidden states (num_tokens, hidden_size), and the cosines and sines (num_tokens, rotary_dim) of its positions.
// Strides count elements. `attention` has all but queries, keys, values and their strides.
struct DecoderCall {
    const DecoderLayer* layer;
    const Attention* attention;
    const bf16 *hidden, *cosines, *sines;
    bf16* out;
    int64_t hidden_stride, rotary_stride, rotary_dim;
};
}

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

// What the parts of one layer hand on to one another.
class Forward {
public:
    Forward(const DecoderCall& call, const Team& team, int64_t level)
        : call_(call), layer_(*call.layer), team_(team), level_(level), count_(call.attention->step->num_tokens) {}

    long bytes() const {
        long total = 0;
        for (const Linear* linear : {layer_.qkv, layer_.attention_out, layer_.gate_up, layer_.down})
            total = most(total, bytes_of_rows(*linear, count_));
        const long floats = layer_.qkv->out + layer_.num_heads * layer_.head_dim + layer_.hidden_size + mlp_width();
        return total + count_ * floats * sizeof(bf16) + 64 * 8;
    }

    int64_t run(char* memory) {
        const Linear *qkv = layer_.qkv, *gate_up = layer_.gate_up;
        const long heads_width = layer_.num_heads * layer_.head_dim, width = layer_.hidden_size;
        Scratch scratch(memory);
        bf16* projected = scratch.take<bf16>(count_ * qkv->out);
        bf16* attended = scratch.take<bf16>(count_ * heads_width);
        bf16* middle = scratch.take<bf16>(count_ * width);
        bf16* gated = scratch.take<bf16>(count_ * mlp_width());
        char* rest = scratch.take<char>(0);

        const Rows normed = normalized(*qkv, rest, call_.hidden, call_.hidden_stride, layer_.attention_norm,
                                       layer_.attention_eps);
        multiply(*qkv, normed, Target{projected, qkv->out, nullptr, 0, false}, team_);
        turn(projected);
        if (attend(projected, attended)) return 1;
        multiply(*layer_.attention_out, rows(*layer_.attention_out, rest, attended, heads_width),
                 Target{middle, width, call_.hidden, call_.hidden_stride, false}, team_);
        multiply(*gate_up, normalized(*gate_up, rest, middle, width, layer_.mlp_norm, layer_.mlp_eps),
                 Target{gated, mlp_width(), nullptr, 0, true}, team_);
        multiply(*layer_.down, rows(*layer_.down, rest, gated, mlp_width()),
                 Target{call_.out, width, middle, width, false}, team_);
        return 0;
    }

private:
    long mlp_width() const { return layer_.gate_up->out / 2; }

    Rows normalized(const Linear& linear, char* memory, const bf16* x, long stride, const bf16* weight, float eps) {
        Scratch scratch(memory);
        const Rows filled = rows_in(linear, scratch, count_);
        for_rows(team_, count_, [&](long row) {
            bf16 normed[MOST_HIDDEN];
            normalize(x + row * stride, weight, linear.in, eps, normed);
            fill_row(linear, filled, row, normed);
        });
        return filled;
    }

    Rows rows(const Linear& linear, char* memory, const bf16* x, long stride) {
        Scratch scratch(memory);
        const Rows filled = rows_in(linear, scratch, count_);
        for_rows(team_, count_, [&](long row) { fill_row(linear, filled, row, x + row * stride); });
        return filled;
    }

    void turn(bf16* projected) {
        const long num_kv_heads = call_.attention->cache->num_kv_heads;
        const Heads queries = {layer_.query_norm, layer_.query_eps, layer_.num_heads};
        const Heads keys = {layer_.key_norm, layer_.key_eps, num_kv_heads};
        for_rows(team_, count_, [&](long row) {
            const bf16 *cosines = call_.cosines + row * call_.rotary_stride, *sines = call_.sines + row * call_.rotary_stride;
            bf16* x = projected + row * layer_.qkv->out;
            turn_heads(x, queries, layer_.head_dim, cosines, sines, call_.rotary_dim);
            turn_heads(x + queries.count * layer_.head_dim, keys, layer_.head_dim, cosines, sines, call_.rotary_dim);
        });
    }

    int64_t attend(const bf16* projected, bf16* out) {
        Attention call = *call_.attention;
        const long dim = layer_.head_dim, keys = call.num_heads * dim, values = keys + call.cache->num_kv_heads * dim;
        call.query = projected;
        call.new_keys = projected + keys;
        call.new_values = projected + values;
        call.query_token = call.key_token = call.value_token = layer_.qkv->out;
        call.query_head = call.key_head = call.value_head = dim;
        call.out = out;
        call.out_token = layer_.num_heads * dim;
        return orcinus_attend(&call, &team_, level_);
    }

    const DecoderCall& call_;
    const DecoderLayer& layer_;
    const Team& team_;
    const int64_t level_;
    const long count_;
};

}  // namespace

extern "C" {

// Returns 0, or 1 without memory to work in.
EXPORT int64_t orcinus_decoder_layer(const DecoderCall* call, const Team* team, int64_t level) {
    static thread_local Arena arena;
    Forward forward(*call, *team, level);
    char* memory = arena.reserve(forward.bytes());
    return memory == nullptr ? 1 : forward.run(memory);
}
}

END_TARGET

#else

extern "C" EXPORT int64_t orcinus_decoder_layer(const DecoderCall*, const Team*, int64_t) { return 1; }

#endif
