// State spaces of Mamba-2 and Mamba: recurrent.inl includes this file.

// ---- Mamba-2: some rows of a head's state, each of one channel of the head

// The gates of one token, and what of it the rows are taken on by.
struct Mamba2Token {
    float dt, decay;
    alignas(64) float b[MOST_STATES], c[MOST_STATES], x[HEAD_ROWS];
};

template <class T> class Mamba2Part {
public:
    Mamba2Part(const Mamba2& call, const Place& place)
        : call_(call),
          place_(place),
          segment_(segment_of(*call.segments, place.sequence)),
          first_row_(place.part * HEAD_ROWS),
          num_rows_(least(HEAD_ROWS, call.head_dim - first_row_)),
          stride_(round_up(call.state_dim, 16)),
          slot_(rows_in(segment_.slot)),
          state_(stride_ == call.state_dim ? slot_ : padded_) {}

    void run() {
        begin();
        run_tokens(segment_.first, segment_.end);
        if (state_ == padded_) write_to(slot_);
        if (!segment_.has_drafts()) return;
        float* drafts_slot = rows_in(segment_.drafts_slot);
        if (state_ != padded_) {
            __builtin_memcpy(drafts_slot, slot_, num_rows_ * call_.state_dim * sizeof(float));
            state_ = drafts_slot;
        }
        run_tokens(segment_.end, segment_.drafts_end);
        if (state_ == padded_) write_to(drafts_slot);
    }

private:
    float* rows_in(long slot) const {
        return in_slot(call_.states, call_.slot_bytes, slot) + (place_.head * call_.head_dim + first_row_) * call_.state_dim;
    }

    void run_tokens(long begin, long end) {
        for (long first = begin; first < end; first += TILE) {
            const long count = least(TILE, end - first);
            float dt[TILE], decay[TILE];
            make_gates(first, count, dt, decay);
            for (long i = 0; i < count; i++) {
                prepare(first + i, dt[i], decay[i]);
                run_token(first + i);
            }
        }
    }

    void write_to(float* slot) const {
        for (long r = 0; r < num_rows_; r++)
            __builtin_memcpy(slot + r * call_.state_dim, padded_ + r * stride_, call_.state_dim * sizeof(float));
    }

    void begin() {
        if (segment_.is_new) __builtin_memset(slot_, 0, num_rows_ * call_.state_dim * sizeof(float));
        if (state_ == padded_)
            for (long r = 0; r < num_rows_; r++) widen_row(slot_ + r * call_.state_dim, call_.state_dim, padded_ + r * stride_);
    }

    void make_gates(long first, long count, float* dt, float* decay) const {
        const T* given = static_cast<const T*>(call_.dt) + first * call_.dt_token + place_.head * call_.dt_head;
        const float bias = call_.dt_bias != nullptr ? to_float(static_cast<const T*>(call_.dt_bias)[place_.head]) : 0.0f;
        const f32x16 sizes = step_sizes<T>(gather(given, call_.dt_token, count), each(bias), call_.has_softplus != 0);
        const f32x16 limited = rounded<T>(within(sizes, call_.dt_min, call_.dt_max));
        store(dt, limited);
        store(decay, any_exp_of(limited * call_.a[place_.head]));
    }

    void prepare(long token, float dt, float decay) {
        const long group = place_.head / (call_.heads / call_.groups);
        token_.dt = dt;
        token_.decay = decay;
        widen_row(static_cast<const T*>(call_.b) + token * call_.b_token + group * call_.b_group, call_.state_dim, token_.b);
        widen_row(static_cast<const T*>(call_.c) + token * call_.c_token + group * call_.c_group, call_.state_dim, token_.c);
        const T* x = static_cast<const T*>(call_.x) + token * call_.x_token + place_.head * call_.x_head + first_row_;
        widen_row(x, num_rows_, token_.x);
    }

    void run_token(long token) {
        float* out = call_.out + token * call_.out_token + place_.head * call_.head_dim + first_row_;
        const float d = call_.d != nullptr ? call_.d[place_.head] : 0.0f;
        long row = 0;
        for (; row + BLOCK_ROWS <= num_rows_; row += BLOCK_ROWS) run_rows<BLOCK_ROWS>(row, d, out + row);
        for (; row < num_rows_; row++) run_rows<1>(row, d, out + row);
    }

    template <int ROWS> INLINE void run_rows(long row, float d, float* out) {
        float* state = state_ + row * stride_;
        const long stride = stride_;
        const float* x = token_.x + row;
        const f32x16 decay = each(token_.decay);
        f32x16 sums[ROWS];
        float added[ROWS];
        UNROLL
        for (int r = 0; r < ROWS; r++) {
            sums[r] = f32x16{};
            added[r] = x[r] * token_.dt;
        }
        for (long i = 0; i < stride; i += 16) {
            const f32x16 b = load(token_.b + i), c = load(token_.c + i);
            UNROLL
            for (int r = 0; r < ROWS; r++) {
                const f32x16 now = multiply_add(each(added[r]), b, load(state + r * stride + i) * decay);
                store(state + r * stride + i, now);
                sums[r] = multiply_add(now, c, sums[r]);
            }
        }
        if constexpr (ROWS == 16)
            store(out, multiply_add(load(x), each(d), sums_of(sums)));
        else
            for (int r = 0; r < ROWS; r++) out[r] = sum_of_stored(sums[r]) + x[r] * d;
    }

    const Mamba2& call_;
    const Place place_;
    const Segment segment_;
    const long first_row_, num_rows_, stride_;
    float *const slot_, *state_;
    Mamba2Token token_;
    alignas(64) float padded_[HEAD_ROWS * MOST_STATES];
};

template <class T> void mamba2(const Mamba2& call, const Place& place) {
    if (!goes_on(*call.segments, place.sequence)) Mamba2Part<T>(call, place).run();
}

// ---- Mamba: some channels, each with a state of its own

// What is known of tokens before their states are.
struct ScanTile {
    alignas(64) float dt[TILE][SCANNED], x[TILE][SCANNED], b[TILE][MOST_STATES], c[TILE][MOST_STATES];
};

template <class T> class ScanPart {
public:
    ScanPart(const SelectiveScan& call, const Place& place)
        : call_(call),
          segment_(segment_of(*call.segments, place.sequence)),
          channel_(place.part * SCANNED),
          width_(least(SCANNED, call.channels - channel_)),
          states_(states_in(segment_.slot)) {}

    void run() {
        const long bytes = width_ * call_.state_dim * sizeof(float);
        if (segment_.is_new) __builtin_memset(states_, 0, bytes);
        run_tokens(segment_.first, segment_.end);
        if (!segment_.has_drafts()) return;
        float* drafts_slot = states_in(segment_.drafts_slot);
        __builtin_memcpy(drafts_slot, states_, bytes);
        states_ = drafts_slot;
        run_tokens(segment_.end, segment_.drafts_end);
    }

private:
    float* states_in(long slot) const {
        return in_slot(call_.states, call_.slot_bytes, slot) + channel_ * call_.state_dim;
    }

    void run_tokens(long begin, long end) {
        for (long first = begin; first < end; first += TILE) {
            const long count = least(TILE, end - first);
            for (long i = 0; i < count; i++) prepare(first + i, i);
            for (long channel = 0; channel < width_; channel += 16)
                for (long i = 0; i < count; i++) finish(first + i, i, channel, scan(i, channel));
        }
    }

    template <class Row> static const Row* row_of(const void* rows, long at) { return static_cast<const Row*>(rows) + at; }

    void prepare(long token, long i) {
        widen_row(row_of<T>(call_.b, token * call_.b_token), call_.state_dim, tile_.b[i]);
        widen_row(row_of<T>(call_.c, token * call_.c_token), call_.state_dim, tile_.c[i]);
        widen_row(row_of<T>(call_.x, token * call_.x_token + channel_), width_, tile_.x[i]);
        const T* dt = row_of<T>(call_.dt, token * call_.dt_token + channel_ * call_.dt_channel);
        for (long at = 0; at < width_; at += 16) {
            const f32x16 given = gather(dt + at * call_.dt_channel, call_.dt_channel, width_ - at);
            const f32x16 bias = call_.dt_bias == nullptr ? f32x16{}
                                                         : first_of(row_of<T>(call_.dt_bias, channel_ + at), width_ - at);
            store(tile_.dt[i] + at, step_sizes<T>(given, bias, call_.has_softplus != 0));
        }
    }

    // What up to 16 channels give for a token.
    f32x16 scan(long i, long channel) {
        return call_.state_dim % 16 == 0 ? scan_channels<true>(i, channel) : scan_channels<false>(i, channel);
    }

    template <bool HAS_WHOLE_VECTORS> INLINE f32x16 scan_channels(long i, long channel) {
        const long dim = call_.state_dim, count = least(16, width_ - channel);
        const float *a = call_.a + (channel_ + channel) * dim, *dt = tile_.dt[i] + channel, *x = tile_.x[i] + channel;
        float* states = states_ + channel * dim;
        f32x16 products[16];
        for (long lane = 0; lane < count; lane++)
            products[lane] = advance<HAS_WHOLE_VECTORS>(i, a + lane * dim, dt[lane], x[lane], states + lane * dim, dim);
        for (long lane = count; lane < 16; lane++) products[lane] = f32x16{};
        return sums_of(products);
    }

    // The state's products with the token's C, which are yet to be summed. Lanes beyond the state are zeros.
    template <bool HAS_WHOLE_VECTORS>
    INLINE f32x16 advance(long i, const float* a, float dt, float x, float* state, long dim) const {
        const f32x16 added = each(dt * x);
        f32x16 products = {};
        for (long at = 0; at < dim; at += 16) {
            const long lanes = HAS_WHOLE_VECTORS ? 16 : dim - at;
            const f32x16 decay = any_exp_of(first_of(a + at, lanes) * dt);
            const f32x16 now = multiply_add(first_of(state + at, lanes), decay, load(tile_.b[i] + at) * added);
            store_first(state + at, now, lanes);
            products = multiply_add(now, load(tile_.c[i] + at), products);
        }
        return products;
    }

    INLINE void finish(long token, long i, long channel, f32x16 y) const {
        const long count = width_ - channel;
        if (call_.d != nullptr) y = multiply_add(load(tile_.x[i] + channel), first_of(call_.d + channel_ + channel, count), y);
        if (call_.z != nullptr) {
            const T* z = row_of<T>(call_.z, token * call_.z_token + channel_ + channel);
            y = y * rounded<T>(silu(first_of(z, count)));
        }
        store_first(call_.out + token * call_.out_token + channel_ + channel, y, count);
    }

    const SelectiveScan& call_;
    const Segment segment_;
    const long channel_, width_;
    float* states_;
    ScanTile tile_;
};

template <class T> void selective_scan(const SelectiveScan& call, const Place& place) {
    if (!goes_on(*call.segments, place.sequence)) ScanPart<T>(call, place).run();
}
