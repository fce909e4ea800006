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
          slot_(in_slot(call.states, call.slot_bytes, segment_.slot) +
                (place.head * call.head_dim + first_row_) * call.state_dim),
          state_(stride_ == call.state_dim ? slot_ : padded_) {}

    void run() {
        begin();
        for (long first = segment_.first; first < segment_.end; first += TILE) {
            const long count = least(TILE, segment_.end - first);
            float dt[TILE], decay[TILE];
            make_gates(first, count, dt, decay);
            for (long i = 0; i < count; i++) {
                prepare(first + i, dt[i], decay[i]);
                run_token(first + i);
            }
        }
        if (state_ == padded_)
            for (long r = 0; r < num_rows_; r++)
                __builtin_memcpy(slot_ + r * call_.state_dim, padded_ + r * stride_, call_.state_dim * sizeof(float));
    }

private:
    void begin() {
        if (segment_.is_new) __builtin_memset(slot_, 0, num_rows_ * call_.state_dim * sizeof(float));
        if (state_ == padded_)
            for (long r = 0; r < num_rows_; r++) widen_row(slot_ + r * call_.state_dim, call_.state_dim, padded_ + r * stride_);
    }

    void make_gates(long first, long count, float* dt, float* decay) const {
        const T* given = static_cast<const T*>(call_.dt) + first * call_.dt_token + place_.head * call_.dt_head;
        const float bias = call_.dt_bias != nullptr ? to_float(static_cast<const T*>(call_.dt_bias)[place_.head]) : 0.0f;
        const f32x16 sizes = step_sizes<T>(gather(given, call_.dt_token, count), splat(bias), call_.has_softplus != 0);
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
        long row = 0;
        for (; row + 4 <= num_rows_; row += 4) run_rows<4>(row, out + row);
        for (; row < num_rows_; row++) run_rows<1>(row, out + row);
    }

    template <int ROWS> INLINE void run_rows(long row, float* out) {
        float* state = state_ + row * stride_;
        f32x16 sums[ROWS];
        UNROLL
        for (int r = 0; r < ROWS; r++) sums[r] = f32x16{};
        for (long i = 0; i < stride_; i += 16) {
            const f32x16 b = load(token_.b + i), c = load(token_.c + i);
            UNROLL
            for (int r = 0; r < ROWS; r++) {
                const f32x16 kept = load(state + r * stride_ + i) * token_.decay;
                const f32x16 now = multiply_add(splat(token_.x[row + r] * token_.dt), b, kept);
                store(state + r * stride_ + i, now);
                sums[r] = multiply_add(now, c, sums[r]);
            }
        }
        UNROLL
        for (int r = 0; r < ROWS; r++) {
            const float sum = sum_of(sums[r]);
            out[r] = call_.d != nullptr ? sum + token_.x[row + r] * call_.d[place_.head] : sum;
        }
    }

    const Mamba2& call_;
    const Place place_;
    const Segment segment_;
    const long first_row_, num_rows_, stride_;
    float *const slot_, *const state_;
    Mamba2Token token_;
    alignas(64) float padded_[HEAD_ROWS * MOST_STATES];
};

template <class T> void mamba2(const Mamba2& call, const Place& place) { Mamba2Part<T>(call, place).run(); }

// ---- Mamba: some channels, each with a state of its own

// Tokens that are taken on together, and what they give.
struct ScanTile {
    alignas(64) float dt[TILE][SCANNED], x[TILE][SCANNED], y[TILE][SCANNED];
    alignas(64) float b[TILE][MOST_STATES], c[TILE][MOST_STATES];
};

template <class T> class ScanPart {
public:
    ScanPart(const SelectiveScan& call, const Place& place)
        : call_(call),
          segment_(segment_of(*call.segments, place.sequence)),
          channel_(place.part * SCANNED),
          width_(least(SCANNED, call.channels - channel_)),
          states_(in_slot(call.states, call.slot_bytes, segment_.slot) + channel_ * call.state_dim) {}

    void run() {
        if (segment_.is_new) __builtin_memset(states_, 0, width_ * call_.state_dim * sizeof(float));
        for (long first = segment_.first; first < segment_.end; first += TILE) {
            const long count = least(TILE, segment_.end - first);
            for (long i = 0; i < count; i++) prepare(first + i, i);
            for (long channel = 0; channel < width_; channel++) scan(channel, count);
            for (long i = 0; i < count; i++) finish(first + i, i);
        }
    }

private:
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

    // Lanes beyond the state are zeros.
    void scan(long channel, long count) {
        const float* a = call_.a + (channel_ + channel) * call_.state_dim;
        float* state = states_ + channel * call_.state_dim;
        f32x16 sums[TILE];
        for (long at = 0; at < call_.state_dim; at += 16) {
            const long lanes = call_.state_dim - at;
            const f32x16 rates = first_of(a + at, lanes);
            f32x16 now = first_of(state + at, lanes);
            for (long i = 0; i < count; i++) {
                const float dt = tile_.dt[i][channel];
                const f32x16 added = load(tile_.b[i] + at) * (dt * tile_.x[i][channel]);
                now = multiply_add(now, any_exp_of(rates * dt), added);
                sums[i] = multiply_add(now, load(tile_.c[i] + at), at > 0 ? sums[i] : f32x16{});
            }
            store_first(state + at, now, lanes);
        }
        for (long i = 0; i < count; i++) tile_.y[i][channel] = sum_of(sums[i]);
    }

    void finish(long token, long i) const {
        float* out = call_.out + token * call_.out_token + channel_;
        for (long at = 0; at < width_; at += 16) {
            f32x16 y = load(tile_.y[i] + at);
            if (call_.d != nullptr) y = multiply_add(load(tile_.x[i] + at), first_of(call_.d + channel_ + at, width_ - at), y);
            if (call_.z != nullptr) {
                const T* z = row_of<T>(call_.z, token * call_.z_token + channel_ + at);
                y = y * rounded<T>(silu(first_of(z, width_ - at)));
            }
            store_first(out + at, y, width_ - at);
        }
    }

    const SelectiveScan& call_;
    const Segment segment_;
    const long channel_, width_;
    float* const states_;
    ScanTile tile_;
};

template <class T> void selective_scan(const SelectiveScan& call, const Place& place) { ScanPart<T>(call, place).run(); }
