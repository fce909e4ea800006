// The gated delta rule: recurrent.inl includes this file.
//
// Sums over the channels of keys are PARTIALS sums, of every so many channels each, which are then added up.

const int PARTIALS = 4;

// One token, by channel of keys.
struct Token {
    alignas(64) float decay[MOST_KEYS], key[MOST_KEYS], decayed_key[MOST_KEYS], query[MOST_KEYS];
};

template <int VECTORS> INLINE void clear(f32x16 (&sums)[PARTIALS][VECTORS]) {
    UNROLL
    for (int p = 0; p < PARTIALS; p++)
        UNROLL
        for (int v = 0; v < VECTORS; v++) sums[p][v] = f32x16{};
}

template <int VECTORS> INLINE void add_up(const f32x16 (&sums)[PARTIALS][VECTORS], f32x16* out) {
    UNROLL
    for (int v = 0; v < VECTORS; v++) out[v] = (sums[0][v] + sums[1][v]) + (sums[2][v] + sums[3][v]);
}

// sums += what a row of the state, once it has forgotten, answers to the key.
template <int VECTORS> INLINE void recall_row(const float* state, float decayed_key, f32x16 (&sums)[VECTORS]) {
    const f32x16 key = each(decayed_key);
    UNROLL
    for (int v = 0; v < VECTORS; v++) sums[v] = multiply_add(key, load(state + 16 * v), sums[v]);
}

template <int VECTORS>
INLINE void recall(const float* state, long stride, const Token& token, long key_dim, f32x16* answer) {
    f32x16 sums[PARTIALS][VECTORS];
    clear(sums);
    long i = 0;
    for (; i + PARTIALS <= key_dim; i += PARTIALS)
        UNROLL
        for (int p = 0; p < PARTIALS; p++)
            recall_row<VECTORS>(state + (i + p) * stride, token.decayed_key[i + p], sums[p]);
    for (; i < key_dim; i++) recall_row<VECTORS>(state + i * stride, token.decayed_key[i], sums[0]);
    add_up(sums, answer);
}

// A row of the state forgets and learns; sums += what it then answers to the query.
template <int VECTORS>
INLINE void learn_row(float* state, const Token& token, long i, const f32x16* learnt, f32x16 (&sums)[VECTORS]) {
    const f32x16 decay = each(token.decay[i]), key = each(token.key[i]), query = each(token.query[i]);
    UNROLL
    for (int v = 0; v < VECTORS; v++) {
        const f32x16 now = multiply_add(key, learnt[v], load(state + 16 * v) * decay);
        store(state + 16 * v, now);
        sums[v] = multiply_add(query, now, sums[v]);
    }
}

// What is asked for ahead lies as the state does.
template <int VECTORS>
INLINE void learn(float* state, long stride, const Token& token, long key_dim, const f32x16* learnt, const float* ahead,
                  f32x16* answer) {
    f32x16 sums[PARTIALS][VECTORS];
    clear(sums);
    long i = 0;
    for (; i + PARTIALS <= key_dim; i += PARTIALS) {
        if (ahead != nullptr)
            for (int p = 0; p < PARTIALS; p++)
                for (int v = 0; v < VECTORS; v++) __builtin_prefetch(ahead + (i + p) * stride + 16 * v, 1, 2);
        UNROLL
        for (int p = 0; p < PARTIALS; p++) learn_row<VECTORS>(state + (i + p) * stride, token, i + p, learnt, sums[p]);
    }
    for (; i < key_dim; i++) learn_row<VECTORS>(state + i * stride, token, i, learnt, sums[0]);
    add_up(sums, answer);
}

// Columns of the values that a thread takes through all tokens: their part of the state should stay in the nearest cache.
INLINE long part_columns(long key_dim) {
    long columns = AVX512 ? 64 : 32;
    while (columns > 16 && key_dim * columns * static_cast<long>(sizeof(float)) > PART_BYTES) columns /= 2;
    return columns;
}

static_assert(MOST_KEYS * 16 * sizeof(float) <= PART_BYTES, "a part of so many keys has room where it is copied to");

// A part of a state: some columns of the values. It is copied to where it lies in one piece, unless that would be in vain:
// rows that are far apart share few places of a cache.
template <class T> class DeltaPart {
public:
    DeltaPart(const DeltaRule& call, const Place& place)
        : call_(call),
          place_(place),
          segment_(segment_of(*call.segments, place.sequence)),
          first_column_(place.part * part_columns(call.key_dim)),
          width_(least(part_columns(call.key_dim), call.value_dim - first_column_)),
          is_copied_(segment_.end - segment_.first > FEW_TOKENS || segment_.has_drafts() || width_ % 16 > 0),
          stride_(is_copied_ ? round_up(width_, 16) : call.value_dim),
          slot_(state_at(call, place, segment_.slot)),
          state_(is_copied_ ? copy_ : slot_) {}

    static float* state_at(const DeltaRule& call, const Place& place, long slot) {
        return in_slot(call.states, call.slot_bytes, slot) + place.head * call.key_dim * call.value_dim +
               place.part * part_columns(call.key_dim);
    }

    void run(const Place* next) {
        begin();
        const bool is_ahead = next != nullptr && !is_copied_;
        run_tokens(segment_.first, segment_.end,
                   is_ahead ? state_at(call_, *next, segment_of(*call_.segments, next->sequence).slot) : nullptr);
        if (is_copied_) write_to(slot_);
        if (!segment_.has_drafts()) return;
        run_tokens(segment_.end, segment_.drafts_end, nullptr);
        write_to(state_at(call_, place_, segment_.drafts_slot));
    }

private:
    void run_tokens(long begin, long end, const float* ahead) {
        for (long first = begin; first < end; first += TILE) {
            float decays[TILE];
            const long count = least(TILE, end - first);
            if (!call_.has_channel_decay) store(decays, any_exp_of(gather(decay_of(first), call_.decay_token, count)));
            for (long i = 0; i < count; i++) {
                prepare(first + i, decays[i]);
                run_token(first + i, first + i + 1 == end ? ahead : nullptr);
            }
        }
    }

    void write_to(float* slot) const {
        for (long i = 0; i < call_.key_dim; i++)
            __builtin_memcpy(slot + i * call_.value_dim, copy_ + i * stride_, width_ * sizeof(float));
    }

    void begin() {
        for (long i = 0; i < call_.key_dim; i++) {
            float* row = state_ + i * stride_;
            if (segment_.is_new)
                __builtin_memset(row, 0, round_up(width_, is_copied_ ? 16 : 1) * sizeof(float));
            else if (is_copied_)
                widen_row(slot_ + i * call_.value_dim, width_, row);
        }
    }

    const float* decay_of(long token) const {
        return call_.decay + token * call_.decay_token + place_.head * call_.decay_head;
    }

    // Widens, and gives the length 1 where that is wanted; then it is multiplied by `scale`.
    void vector_of(const T* row, float scale, float* out) const {
        const long key_dim = call_.key_dim;
        f32x16 squares = {};
        for (long i = 0; i < key_dim; i += 16) {
            const f32x16 x = first_of(row + i, key_dim - i);
            squares = multiply_add(x, x, squares);
            store(out + i, x);
        }
        const float inverse = call_.is_normalized ? 1.0f / sqrtf(sum_of_stored(squares) + 1e-6f) : 1.0f;
        for (long i = 0; i < key_dim; i += 16) store(out + i, load(out + i) * inverse * scale);
    }

    void prepare(long token, float decay) {
        const long key_dim = call_.key_dim, key_head = place_.head / (call_.heads / call_.key_heads);
        const T* query = static_cast<const T*>(call_.query) + token * call_.query_token + key_head * call_.query_head;
        const T* key = static_cast<const T*>(call_.key) + token * call_.key_token + key_head * call_.key_head;
        vector_of(query, static_cast<float>(1.0 / sqrt(static_cast<double>(key_dim))), token_.query);
        vector_of(key, 1.0f, token_.key);
        const float* by_channel = call_.has_channel_decay ? decay_of(token) : nullptr;
        for (long i = 0; i < key_dim; i += 16) {
            const f32x16 decays = by_channel != nullptr ? any_exp_of(first_of(by_channel + i, key_dim - i)) : each(decay);
            store(token_.decay + i, decays);
            store(token_.decayed_key + i, load(token_.key + i) * decays);
        }
    }

    void run_token(long token, const float* ahead) {
        long column = 0;
        if constexpr (BLOCK_VECTORS == 4) {
            for (; column + 64 <= width_; column += 64) run_block<4>(token, column, ahead);
            for (; column + 32 <= width_; column += 32) run_block<2>(token, column, ahead);
        }
        for (; column < width_; column += 16) run_block<1>(token, column, ahead);
    }

    float beta_of(long token) const {
        const long at = token * call_.beta_token + place_.head * call_.beta_head;
        return call_.has_float_beta ? static_cast<const float*>(call_.beta)[at] : to_float(static_cast<const T*>(call_.beta)[at]);
    }

    template <int VECTORS> INLINE void run_block(long token, long column, const float* ahead) {
        const long count = width_ - column, first = first_column_ + column;
        const T* value =
            static_cast<const T*>(call_.value) + token * call_.value_token + place_.head * call_.value_head + first;
        float* state = state_ + column;
        const float beta = beta_of(token);
        f32x16 answer[VECTORS], learnt[VECTORS];
        recall<VECTORS>(state, stride_, token_, call_.key_dim, answer);
        UNROLL
        for (int v = 0; v < VECTORS; v++)
            learnt[v] = ((VECTORS > 1 ? load_as_float(value + 16 * v) : first_of(value, count)) - answer[v]) * beta;
        learn<VECTORS>(state, stride_, token_, call_.key_dim, learnt, ahead == nullptr ? nullptr : ahead + column, answer);
        T* out = static_cast<T*>(call_.out) + token * call_.out_token + place_.head * call_.value_dim + first;
        UNROLL
        for (int v = 0; v < VECTORS; v++) store_first(out + 16 * v, answer[v], VECTORS > 1 ? 16 : count);
    }

    const DeltaRule& call_;
    const Place place_;
    const Segment segment_;
    const long first_column_, width_;
    const bool is_copied_;
    const long stride_;
    float *const slot_, *const state_;
    Token token_;
    alignas(64) float copy_[PART_BYTES / sizeof(float)];
};

template <class T> void delta_rule(const DeltaRule& call, const Place& place, const Place* next) {
    if (!goes_on(*call.segments, place.sequence)) DeltaPart<T>(call, place).run(next);
}
