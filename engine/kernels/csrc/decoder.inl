// Decoder layers for one instruction set: decoder.cpp includes this file in a namespace for each.

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

// Of a product and of those that follow it.
long width_of(const Linear& linear) { return linear.out + (linear.next ? width_of(*linear.next) : 0); }

#include "token_mixers.inl"

// One layer, and what its parts hand on to one another.
class Forward {
public:
    Forward(const DecoderCall& call, long index, const Team& team, int64_t level)
        : call_(call), layer_(*call.layers[index]), attention_(call.attentions[index]), team_(team), level_(level),
          count_(call.num_tokens) {}

    long bytes() const {
        long total = bytes_to_mix(layer_, count_);
        for (const Linear* first : {layer_.projections, layer_.mixer_out, layer_.gate_up, layer_.down})
            for (const Linear* linear = first; linear != nullptr; linear = linear->next)
                total = most(total, bytes_of_rows(*linear, count_));
        const long values = width_of(*layer_.projections) + layer_.mixer_out->in + layer_.hidden_size + mlp_width();
        return total + count_ * values * sizeof(bf16) + 64 * 8;
    }

    // From `hidden` to `out`, which may be the same.
    int64_t run(const bf16* hidden, long hidden_stride, bf16* out, char* memory) const {
        const Linear *projections = layer_.projections, *mixer_out = layer_.mixer_out, *gate_up = layer_.gate_up;
        const long width = layer_.hidden_size;
        Scratch scratch(memory);
        bf16* projected = scratch.take<bf16>(count_ * width_of(*projections));
        bf16* mixed = scratch.take<bf16>(count_ * mixer_out->in);
        bf16* middle = has_mlp() ? scratch.take<bf16>(count_ * width) : out;
        bf16* gated = scratch.take<bf16>(count_ * mlp_width());
        char* rest = scratch.take<char>(0);

        long column = 0;
        for (const Linear* part = projections; part != nullptr; column += part->out, part = part->next)
            multiply(*part, normalized(*part, rest, hidden, hidden_stride, layer_.mixer_norm),
                     Target{projected + column, width_of(*projections), nullptr, 0, false}, team_);
        if (mix(Mixing{call_, layer_, attention_, team_, level_, projected, mixed, rest})) return 1;
        multiply(*mixer_out, rows(*mixer_out, rest, mixed, mixer_out->in),
                 Target{middle, width, hidden, hidden_stride, false}, team_);
        if (!has_mlp()) return 0;
        multiply(*gate_up, normalized(*gate_up, rest, middle, width, layer_.mlp_norm),
                 Target{gated, mlp_width(), nullptr, 0, true}, team_);
        multiply(*layer_.down, rows(*layer_.down, rest, gated, mlp_width()), Target{out, width, middle, width, false},
                 team_);
        return 0;
    }

private:
    bool has_mlp() const { return layer_.gate_up != nullptr; }

    long mlp_width() const { return has_mlp() ? layer_.gate_up->out / 2 : 0; }

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

    const DecoderCall& call_;
    const DecoderLayer& layer_;
    const Attention& attention_;
    const Team& team_;
    const int64_t level_;
    const long count_;
};

// Returns 0, or 1 without memory to work in.
int64_t decode(const DecoderCall& call, const Team& team, int64_t level) {
    static thread_local Arena arena;
    const bf16* hidden = call.hidden;
    long stride = call.hidden_stride;
    for (long i = 0; i < call.num_layers; i++) {
        const Forward forward(call, i, team, level);
        char* memory = arena.reserve(forward.bytes());
        if (memory == nullptr || forward.run(hidden, stride, call.out, memory)) return 1;
        hidden = call.out;
        stride = call.layers[i]->hidden_size;
    }
    return 0;
}
