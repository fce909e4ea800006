// What mixes the tokens of a layer, between its first product and its second: attention, a gated delta net or a short
// convolution. decoder.cpp includes this file.

// A layer's mixer at work: from `projected` (num_tokens, width of projections) to `mixed` (num_tokens, mixer_out->in).
struct Mixing {
    const DecoderCall& call;
    const DecoderLayer& layer;
    const Attention& attention;
    const Team& team;
    int64_t level;
    bf16 *projected, *mixed;
    char* memory;  // bytes_to_mix

    long count() const { return call.num_tokens; }
    long projected_stride() const { return width_of(*layer.projections); }
    long mixed_stride() const { return layer.mixer_out->in; }
    bf16* projected_row(long row) const { return projected + row * projected_stride(); }
    bf16* mixed_row(long row) const { return mixed + row * mixed_stride(); }
};

// ---- attention

// Rotary positions (Su et al., 2021): the first half of `dim` values turns with the second.
INLINE void rotate(bf16* x, const bf16* cosines, const bf16* sines, long dim) {
    const long half = dim / 2;
    const auto whole = [](const bf16* p) { return read_row(p, ROW_LANES); };
    for (long i = 0; i < half; i += ROW_LANES) {
        const RowVector a = whole(x + i), b = whole(x + half + i);
        write(x + i, ROW_LANES, a * whole(cosines + i) - b * whole(sines + i));
        write(x + half + i, ROW_LANES, b * whole(cosines + half + i) + a * whole(sines + half + i));
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

class AttentionMixing {
public:
    AttentionMixing(const Mixing& mixing, const AttentionMixer& mixer) : m_(mixing), mixer_(mixer) {}

    int64_t run() const {
        turn();
        if (attend()) return 1;
        if (mixer_.has_gate) apply_gates();
        return 0;
    }

private:
    // From one head's query to the next one's: its gate may lie between them.
    long query_stride() const { return mixer_.head_dim * (mixer_.has_gate ? 2 : 1); }

    long first_key() const { return mixer_.num_heads * query_stride(); }

    void turn() const {
        const long head_dim = mixer_.head_dim, dim = m_.call.rotary_dim, stride = m_.call.rotary_stride;
        const Heads queries = {mixer_.query_norm, mixer_.num_heads, query_stride(), head_dim};
        const Heads keys = {mixer_.key_norm, m_.attention.cache->num_kv_heads, head_dim, head_dim};
        for_rows(m_.team, m_.count(), [&](long row) {
            const bf16 *cosines = m_.call.cosines + row * stride, *sines = m_.call.sines + row * stride;
            turn_heads(m_.projected_row(row), queries, cosines, sines, dim);
            turn_heads(m_.projected_row(row) + first_key(), keys, cosines, sines, dim);
        });
    }

    int64_t attend() const {
        Attention attention = m_.attention;
        attention.query = m_.projected;
        attention.new_keys = m_.projected + first_key();
        attention.new_values = m_.projected + first_key() + attention.cache->num_kv_heads * mixer_.head_dim;
        attention.query_token = attention.key_token = attention.value_token = m_.projected_stride();
        attention.query_head = query_stride();
        attention.key_head = attention.value_head = mixer_.head_dim;
        attention.out = m_.mixed;
        attention.out_token = m_.mixed_stride();
        return orcinus_attend(&attention, &m_.team, m_.level);
    }

    // What each head has attended to, by the sigmoid of the head's gate.
    void apply_gates() const {
        const long dim = mixer_.head_dim;
        for_rows(m_.team, m_.count(), [&](long row) {
            const bf16* gates = m_.projected_row(row) + dim;
            bf16* x = m_.mixed_row(row);
            for (long head = 0; head < mixer_.num_heads; head++, x += dim, gates += 2 * dim)
                for (long i = 0; i < dim; i += ROW_LANES)
                    write(x + i, dim - i, read_row(x + i, dim - i) * rounded(sigmoid(read_row(gates + i, dim - i))));
        });
    }

    const Mixing& m_;
    const AttentionMixer& mixer_;
};

// ---- gated delta nets

class DeltaNetMixing {
public:
    static long bytes(const DeltaNetMixer& mixer, long count) {
        const long convolved = round_up(count * width_of(mixer) * sizeof(bf16), 64);
        return convolved + 2 * count * round_up(mixer.heads, 16) * sizeof(float);
    }

    DeltaNetMixing(const Mixing& mixing, const DeltaNetMixer& mixer) : m_(mixing), mixer_(mixer) {
        Scratch scratch(mixing.memory);
        convolved_ = scratch.take<bf16>(m_.count() * width_of(mixer));
        decays_ = scratch.take<float>(m_.count() * padded_heads());
        betas_ = scratch.take<float>(m_.count() * padded_heads());
    }

    void run() const {
        convolve();
        for_rows(m_.team, m_.count(), [&](long row) { weigh(row); });
        scan();
        for_rows(m_.team, m_.count(), [&](long row) { apply_gates(row); });
    }

private:
    long keys_width() const { return mixer_.key_heads * mixer_.key_dim; }
    long values_width() const { return mixer_.heads * mixer_.value_dim; }
    long padded_heads() const { return round_up(mixer_.heads, 16); }

    // Of queries, keys and values, which are convolved together.
    static long width_of(const DeltaNetMixer& mixer) {
        return 2 * mixer.key_heads * mixer.key_dim + mixer.heads * mixer.value_dim;
    }

    void convolve() const {
        Convolution call = {};
        call.segments = m_.call.segments;
        call.x = m_.projected;
        call.weight = mixer_.conv_weight;
        call.bias = mixer_.conv_bias;
        call.out = convolved_;
        call.states = mixer_.conv_states;
        call.channels = call.out_token = width_of(mixer_);
        call.taps = mixer_.taps;
        call.x_token = m_.projected_stride();
        call.slot_bytes = mixer_.slot_bytes;
        call.is_bf16 = call.has_silu = 1;
        orcinus_convolve(&call, &m_.team, m_.level);
    }

    // How much of each head's state is to stay, as a logarithm, and how much of the token is to be learnt.
    void weigh(long row) const {
        const bf16* b = m_.projected_row(row) + width_of(mixer_) + values_width();
        for (long i = 0; i < mixer_.heads; i += 16) {
            const long at = row * padded_heads() + i, count = mixer_.heads - i;
            const f32x16 step = softplus(read(b + mixer_.heads + i, count) + load(mixer_.dt_bias + i));
            store(decays_ + at, load(mixer_.rates + i) * step);
            store(betas_ + at, rounded(sigmoid(read(b + i, count))) * mixer_.beta_scale);
        }
    }

    void scan() const {
        DeltaRule call = {};
        call.segments = m_.call.segments;
        call.query = convolved_;
        call.key = convolved_ + keys_width();
        call.value = convolved_ + 2 * keys_width();
        call.beta = betas_;
        call.decay = decays_;
        call.out = m_.mixed;
        call.states = mixer_.states;
        call.key_heads = mixer_.key_heads;
        call.heads = mixer_.heads;
        call.key_dim = call.query_head = call.key_head = mixer_.key_dim;
        call.value_dim = call.value_head = mixer_.value_dim;
        call.query_token = call.key_token = call.value_token = width_of(mixer_);
        call.out_token = m_.mixed_stride();
        call.decay_token = call.beta_token = padded_heads();
        call.decay_head = call.beta_head = 1;
        call.slot_bytes = mixer_.slot_bytes;
        call.is_bf16 = call.has_float_beta = call.is_normalized = 1;
        orcinus_delta_rule(&call, &m_.team, m_.level);
    }

    void apply_gates(long row) const {
        const long dim = mixer_.value_dim;
        const bf16* gates = m_.projected_row(row) + width_of(mixer_);
        bf16* x = m_.mixed_row(row);
        for (long head = 0; head < mixer_.heads; head++, x += dim, gates += dim) {
            normalize(x, mixer_.norm, dim, x);
            for (long i = 0; i < dim; i += ROW_LANES)
                write(x + i, dim - i, read_row(x + i, dim - i) * silu(read_row(gates + i, dim - i)));
        }
    }

    const Mixing& m_;
    const DeltaNetMixer& mixer_;
    bf16* convolved_;
    float *decays_, *betas_;
};

// ---- short convolutions

INLINE void multiply_rows(const bf16* x, long count, bf16* out) {
    for (long i = 0; i < count; i += 16) write(out + i, count - i, read(out + i, count - i) * read(x + i, count - i));
}

void mix_by_convolution(const Mixing& m, const ConvolutionMixer& mixer) {
    const long width = m.mixed_stride();
    for_rows(m.team, m.count(), [&](long row) {
        bf16* gates = m.projected_row(row);
        multiply_rows(gates + 2 * width, width, gates);
    });
    Convolution call = {};
    call.segments = m.call.segments;
    call.x = m.projected;
    call.weight = mixer.weight;
    call.bias = mixer.bias;
    call.out = m.mixed;
    call.states = mixer.states;
    call.channels = call.out_token = width;
    call.taps = mixer.taps;
    call.x_token = m.projected_stride();
    call.slot_bytes = mixer.slot_bytes;
    call.is_bf16 = 1;
    orcinus_convolve(&call, &m.team, m.level);
    for_rows(m.team, m.count(), [&](long row) { multiply_rows(m.projected_row(row) + width, width, m.mixed_row(row)); });
}

// ---- any of them

long bytes_to_mix(const DecoderLayer& layer, long count) {
    return layer.delta_net != nullptr ? DeltaNetMixing::bytes(*layer.delta_net, count) : 0;
}

// Returns 0, or 1 without memory to work in.
int64_t mix(const Mixing& mixing) {
    const DecoderLayer& layer = mixing.layer;
    if (layer.attention != nullptr) return AttentionMixing(mixing, *layer.attention).run();
    if (layer.delta_net != nullptr)
        DeltaNetMixing(mixing, *layer.delta_net).run();
    else
        mix_by_convolution(mixing, *layer.convolution);
    return 0;
}
