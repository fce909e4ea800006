// Causal convolutions of each channel: recurrent.inl includes this file.

// The inputs of one convolved token, by tap; each row begins at the part's first channel.
template <class T> struct Taps {
    const T* rows[MOST_TAPS];
};

// Puts the weights of each tap side by side, for as many channels as it can; returns how many.
template <class T> INLINE long turn_four_taps(const T*, long, float (*)[CONVOLVED]) { return 0; }
#if AVX512
INLINE long turn_four_taps(const bf16* weight, long num_channels, float (*out)[CONVOLVED]) {
    long i = 0;
    for (; i + 8 <= num_channels; i += 8) {
        const __m512i four = _mm512_loadu_si512(weight + 4 * i);
        UNROLL
        for (int tap = 0; tap < 4; tap++) {
            const __m256i bits = _mm256_slli_epi32(_mm512_cvtepi64_epi32(_mm512_srli_epi64(four, 16 * tap)), 16);
            _mm256_store_si256(reinterpret_cast<__m256i*>(out[tap] + i), bits);
        }
    }
    return i;
}
#endif

template <class T> class ConvolvedPart {
public:
    ConvolvedPart(const Convolution& call, long first, long end)
        : call_(call), first_(first), width_(end - first) {
        const T *weight = static_cast<const T*>(call.weight) + first * call.taps, *bias = static_cast<const T*>(call.bias);
        for (long i = call.taps == 4 ? turn_four_taps(weight, width_, weights_) : 0; i < round_up(width_, 16); i++)
            for (long tap = 0; tap < call.taps; tap++)
                weights_[tap][i] = i < width_ ? to_float(weight[i * call.taps + tap]) : 0.0f;
        for (long i = 0; i < round_up(width_, 16); i++)
            bias_[i] = bias != nullptr && i < width_ ? to_float(bias[first + i]) : 0.0f;
    }

    void run(const Segment& segment) const {
        T* state = state_in(segment.slot);
        for (long token = segment.first; token < segment.drafts_end; token++) {
            Taps<T> taps;
            for (long tap = 0; tap < call_.taps; tap++) taps.rows[tap] = input(segment, state, token - call_.taps + 1 + tap);
            T* out = static_cast<T*>(call_.out) + token * call_.out_token + first_;
            if (call_.taps == 4)
                convolve_token<4>(taps, out);
            else
                convolve_token<0>(taps, out);
        }
        // The state behind the drafts first, which may have parts of what is overwritten then.
        if (segment.has_drafts()) keep(segment, state, segment.drafts_end, state_in(segment.drafts_slot));
        keep(segment, state, segment.end, state);
    }

private:
    T* state_in(long slot) const { return in_slot(static_cast<T*>(call_.states), call_.slot_bytes, slot) + first_; }

    // The last inputs before the token `end`, from the oldest on: what comes from the state itself moves towards its beginning.
    void keep(const Segment& segment, const T* state, long end, T* out) const {
        for (long i = 0; i < call_.taps - 1; i++)
            __builtin_memmove(out + i * call_.channels, input(segment, state, end - call_.taps + 1 + i), width_ * sizeof(T));
    }

    // Of a token of the step, which may be one before the segment's first.
    const T* input(const Segment& segment, const T* state, long token) const {
        if (token >= segment.first) return static_cast<const T*>(call_.x) + token * call_.x_token + first_;
        return segment.is_new ? zeros_ : state + (token - segment.first + call_.taps - 1) * call_.channels;
    }

    // TAPS taps, or as many as the call has where that is 0.
    template <int TAPS> INLINE void convolve_token(const Taps<T>& taps, T* out) const {
        const long count = TAPS > 0 ? TAPS : call_.taps, whole = width_ / 16 * 16;
        const bool has_silu = call_.has_silu != 0;
        for (long i = 0; i < whole; i += 16) {
            f32x16 sum = load(bias_ + i);
            UNROLL
            for (long tap = 0; tap < count; tap++)
                sum = multiply_add(load(weights_[tap] + i), load_as_float(taps.rows[tap] + i), sum);
            store_all(out + i, has_silu ? silu(rounded<T>(sum)) : sum);
        }
        if (whole == width_) return;
        f32x16 sum = load(bias_ + whole);
        for (long tap = 0; tap < count; tap++)
            sum = multiply_add(load(weights_[tap] + whole), load_first(taps.rows[tap] + whole, width_ - whole), sum);
        store_first(out + whole, has_silu ? silu(rounded<T>(sum)) : sum, width_ - whole);
    }

    const Convolution& call_;
    const long first_, width_;
    alignas(64) float weights_[MOST_TAPS][CONVOLVED], bias_[CONVOLVED];
    const T zeros_[CONVOLVED] = {};
};

template <class T> void convolve(const Convolution& call, long first, long end) {
    const ConvolvedPart<T> convolved(call, first, end);
    for (long i = 0; i < call.segments->num_seqs; i++)
        if (!goes_on(*call.segments, i)) convolved.run(segment_of(*call.segments, i));
}
