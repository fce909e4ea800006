// The gated delta rule: recurrent.inl includes this file.
//
// Sums over the channels of keys are PARTIALS sums, of every so many channels each, which are then added up.

const int PARTIALS = 4;

// One token, by channel of keys.
struct Token {
    alignas(64) float decay[MOST_KEYS], key[MOST_KEYS], decayed_key[MOST_KEYS], query[MOST_KEYS];
};

template <int VECTORS> struct Sums {
    f32x16 partial[PARTIALS][VECTORS];

    INLINE Sums() {
        UNROLL
        for (int p = 0; p < PARTIALS; p++)
            UNROLL
            for (int v = 0; v < VECTORS; v++) partial[p][v] = f32x16{};
    }
    INLINE f32x16 total(int v) const { return (partial[0][v] + partial[1][v]) + (partial[2][v] + partial[3][v]); }
};

// sums += what the state, once it has forgotten, answers to the key.
template <int VECTORS> INLINE void recall_row(const float* state, float decayed_key, f32x16* sums) {
    UNROLL
    for (int v = 0; v < VECTORS; v++) sums[v] = multiply_add(splat(decayed_key), load(state + 16 * v), sums[v]);
}

template <int VECTORS> INLINE Sums<VECTORS> recall(const float* state, long stride, const Token& token, long key_dim) {
    Sums<VECTORS> sums;
    long i = 0;
    for (; i + PARTIALS <= key_dim; i += PARTIALS)
        UNROLL
        for (int p = 0; p < PARTIALS; p++)
            recall_row<VECTORS>(state + (i + p) * stride, token.decayed_key[i + p], sums.partial[p]);
    for (; i < key_dim; i++) recall_row<VECTORS>(state + i * stride, token.decayed_key[i], sums.partial[0]);
    return sums;
}

// The state forgets and learns; sums += what it then answers to the query.
template <int VECTORS>
INLINE void learn_row(float* state, const Token& token, long i, const f32x16* learnt, f32x16* sums) {
    UNROLL
    for (int v = 0; v < VECTORS; v++) {
        const f32x16 kept = load(state + 16 * v) * token.decay[i];
        const f32x16 now = multiply_add(splat(token.key[i]), learnt[v], kept);
        store(state + 16 * v, now);
        sums[v] = multiply_add(splat(token.query[i]), now, sums[v]);
    }
}

// What is asked for ahead lies as the state does.
template <int VECTORS>
INLINE Sums<VECTORS> learn(float* state, long stride, const Token& token, long key_dim, const f32x16* learnt,
                           const float* ahead) {
    Sums<VECTORS> sums;
    long i = 0;
    for (; i + PARTIALS <= key_dim; i += PARTIALS) {
        if (ahead != nullptr)
            for (int p = 0; p < PARTIALS; p++)
                for (int v = 0; v < VECTORS; v++) __builtin_prefetch(ahead + (i + p) * stride + 16 * v, 1, 2);
        UNROLL
        for (int p = 0; p < PARTIALS; p++)
            learn_row<VECTORS>(state + (i + p) * stride, token, i + p, learnt, sums.partial[p]);
    }
    for (; i < key_dim; i++) learn_row<VECTORS>(state + i * stride, token, i, learnt, sums.partial[0]);
    return sums;
}

// A part of the state: `width` columns of the values, some of which lie in memory of the part's own while it is computed.
template <class T> class DeltaPart {
public:
    DeltaPart(const DeltaRule& call, const Place& place)
        : call_(call),
          place_(place),
          segment_(segment_of(*call.segments, place.sequence)),
          width_(least(16 * PART_VECTORS, call.value_dim - place.part * 16 * PART_VECTORS)),
          state_(state_at(call, place)) {}

    static float* state_at(const DeltaRule& call, const Place& place) {
        return in_slot(call.states, call.slot_bytes, segment_of(*call.segments, place.sequence).slot) +
               place.head * call.key_dim * call.value_dim + place.part * 16 * PART_VECTORS;
    }

    void run(const Place* next) {
        begin();
        const float* ahead =
            next != nullptr && segment_.end - segment_.first == 1 && width_ == 16 * PART_VECTORS ? state_at(call_, *next) : nullptr;
        for (long first = segment_.first; first < segment_.end; first += TILE) {
            float decays[TILE];
            const long count = least(TILE, segment_.end - first);
            if (!call_.has_channel_decay) store(decays, any_exp_of(gather(decay_of(first), call_.decay_token, count)));
            for (long i = 0; i < count; i++) {
                prepare(first + i, decays[i]);
                run_token(first + i, ahead);
            }
        }
        end();
    }

private:
    void begin() {
        const long whole = width_ / 16 * 16;
        if (segment_.is_new)
            for (long i = 0; i < call_.key_dim; i++) __builtin_memset(state_ + i * call_.value_dim, 0, width_ * sizeof(float));
        if (whole < width_)
            for (long i = 0; i < call_.key_dim; i++)
                store(last_ + 16 * i, load_first(state_ + i * call_.value_dim + whole, width_ - whole));
    }

    void end() {
        const long whole = width_ / 16 * 16;
        if (whole < width_)
            for (long i = 0; i < call_.key_dim; i++)
                __builtin_memcpy(state_ + i * call_.value_dim + whole, last_ + 16 * i, (width_ - whole) * sizeof(float));
    }

    const float* decay_of(long token) const {
        return call_.decay + token * call_.decay_token + place_.head * call_.decay_head;
    }

    // Widens, and gives the length 1 where that is wanted; then it is multiplied by `scale`.
    void vector_of(const T* row, float scale, float* out) const {
        widen_row(row, call_.key_dim, out);
        f32x16 squares = {};
        for (long i = 0; i < call_.key_dim; i += 16) squares = multiply_add(load(out + i), load(out + i), squares);
        const float inverse = call_.is_normalized ? 1.0f / sqrtf(sum_of(squares) + 1e-6f) : 1.0f;
        for (long i = 0; i < call_.key_dim; i += 16) store(out + i, load(out + i) * inverse * scale);
    }

    void prepare(long token, float decay) {
        const long key_head = place_.head / (call_.heads / call_.key_heads);
        const T* query = static_cast<const T*>(call_.query) + token * call_.query_token + key_head * call_.query_head;
        const T* key = static_cast<const T*>(call_.key) + token * call_.key_token + key_head * call_.key_head;
        vector_of(query, static_cast<float>(1.0 / sqrt(static_cast<double>(call_.key_dim))), token_.query);
        vector_of(key, 1.0f, token_.key);
        for (long i = 0; i < call_.key_dim; i += 16) {
            const f32x16 decays = call_.has_channel_decay ? any_exp_of(first_of(decay_of(token) + i, call_.key_dim - i))
                                                          : splat(decay);
            store(token_.decay + i, decays);
            store(token_.decayed_key + i, load(token_.key + i) * decays);
        }
    }

    void run_token(long token, const float* ahead) {
        long column = 0;
        if constexpr (BLOCK_VECTORS >= 4)
            for (; column + 64 <= width_; column += 64) run_block<4>(token, column, ahead);
        if constexpr (BLOCK_VECTORS >= 2)
            for (; column + 32 <= width_; column += 32) run_block<2>(token, column, ahead);
        for (; column < width_; column += 16) run_block<1>(token, column, ahead);
    }

    float beta_of(long token) const {
        const long at = token * call_.beta_token + place_.head * call_.beta_head;
        return call_.has_float_beta ? static_cast<const float*>(call_.beta)[at] : to_float(static_cast<const T*>(call_.beta)[at]);
    }

    template <int VECTORS> INLINE void run_block(long token, long column, const float* ahead) {
        const long count = width_ - column, first = place_.part * 16 * PART_VECTORS + column;
        const bool is_whole = count >= 16;
        float* state = is_whole ? state_ + column : last_;
        const long stride = is_whole ? call_.value_dim : 16;
        const T* value =
            static_cast<const T*>(call_.value) + token * call_.value_token + place_.head * call_.value_head + first;
        const float beta = beta_of(token);
        const Sums<VECTORS> known = recall<VECTORS>(state, stride, token_, call_.key_dim);
        f32x16 learnt[VECTORS];
        UNROLL
        for (int v = 0; v < VECTORS; v++)
            learnt[v] = ((VECTORS > 1 ? load_as_float(value + 16 * v) : first_of(value, count)) - known.total(v)) * beta;
        const Sums<VECTORS> answer =
            learn<VECTORS>(state, stride, token_, call_.key_dim, learnt, ahead == nullptr ? nullptr : ahead + column);
        T* out = static_cast<T*>(call_.out) + token * call_.out_token + place_.head * call_.value_dim + first;
        UNROLL
        for (int v = 0; v < VECTORS; v++) store_first(out + 16 * v, answer.total(v), VECTORS > 1 ? 16 : count);
    }

    const DeltaRule& call_;
    const Place place_;
    const Segment segment_;
    const long width_;
    float* const state_;
    Token token_;
    alignas(64) float last_[MOST_KEYS * 16];
};

template <class T> void delta_rule(const DeltaRule& call, const Place& place, const Place* next) {
    DeltaPart<T>(call, place).run(next);
}
