// Causal convolutions of each channel: recurrent.inl includes this file.

// The inputs of one convolved token, by tap; each row begins at the part's first channel.
template <class T> struct Taps {
    const T* rows[MOST_TAPS];
};

template <class T> class ConvolvedPart {
public:
    ConvolvedPart(const Convolution& call, long part)
        : call_(call), channel_(part * CONVOLVED), width_(least(CONVOLVED, call.channels - channel_)) {
        const T* weight = static_cast<const T*>(call.weight) + channel_ * call.taps;
        for (long tap = 0; tap < call.taps; tap++)
            for (long i = 0; i < CONVOLVED; i++)
                weights_[tap][i] = i < width_ ? to_float(weight[i * call.taps + tap]) : 0.0f;
        for (long i = 0; i < CONVOLVED; i++)
            bias_[i] = call.bias != nullptr && i < width_ ? to_float(static_cast<const T*>(call.bias)[channel_ + i]) : 0.0f;
    }

    void run(const Segment& segment) const {
        T* state = in_slot(static_cast<T*>(call_.states), call_.slot_bytes, segment.slot) + channel_;
        for (long token = segment.first; token < segment.end; token++) {
            Taps<T> taps;
            for (long tap = 0; tap < call_.taps; tap++) taps.rows[tap] = input(segment, state, token - call_.taps + 1 + tap);
            convolve_token(taps, static_cast<T*>(call_.out) + token * call_.out_token + channel_);
        }
        // From the oldest on: what comes from the state itself moves towards its beginning.
        for (long i = 0; i < call_.taps - 1; i++) {
            const T* row = input(segment, state, segment.end - call_.taps + 1 + i);
            __builtin_memmove(state + i * call_.channels, row, width_ * sizeof(T));
        }
    }

private:
    // Of a token of the step, which may be one before the segment's first.
    const T* input(const Segment& segment, const T* state, long token) const {
        if (token >= segment.first) return static_cast<const T*>(call_.x) + token * call_.x_token + channel_;
        return segment.is_new ? zeros_ : state + (token - segment.first + call_.taps - 1) * call_.channels;
    }

    INLINE void convolve_token(const Taps<T>& taps, T* out) const {
        for (long i = 0; i < width_; i += 16) {
            f32x16 sum = load(bias_ + i);
            for (long tap = 0; tap < call_.taps; tap++)
                sum = multiply_add(load(weights_[tap] + i), first_of(taps.rows[tap] + i, width_ - i), sum);
            store_first(out + i, call_.has_silu ? silu(rounded<T>(sum)) : sum, width_ - i);
        }
    }

    const Convolution& call_;
    const long channel_, width_;
    float weights_[MOST_TAPS][CONVOLVED], bias_[CONVOLVED];
    const T zeros_[CONVOLVED] = {};
};

template <class T> void convolve(const Convolution& call, long part) {
    const ConvolvedPart<T> convolved(call, part);
    for (long i = 0; i < call.segments->num_seqs; i++) convolved.run(segment_of(*call.segments, i));
}
