// One row of logits for one instruction set: its likeliest token, a drawn one, log-probabilities. sampler.cpp includes
// this file once per set, each time in a namespace of its own, with AVX512 as 1 where its intrinsics are there.
//
// A result is a function of its row alone. Sums are float32 within a block and double beyond.

#include "vectors.inl"

INLINE bool has_at_least(f32x16 x, float least) {
#if AVX512
    return _mm512_cmp_ps_mask(as_m512(x), _mm512_set1_ps(least), _CMP_GE_OQ) != 0;
#else
    const Halves<f32x16, f32x8> h16(x >= least ? splat(1.0f) : f32x16{});
    const Halves<f32x8, f32x4> h8(h16.low + h16.high);
    const f32x4 v = h8.low + h8.high;
    return v[0] + v[1] + v[2] + v[3] > 0.0f;
#endif
}

// The largest of what is added; NaN if any of it is.
class Largest {
public:
    INLINE Largest() {
        for (int lane = 0; lane < LANES; lane++) {
            largest_[lane] = splat(-INFINITY);
            poison_[lane] = f32x16{};
        }
    }
    INLINE void add(int lane, f32x16 x) {
        largest_[lane] = larger(x, largest_[lane]);
        poison_[lane] += x == x ? f32x16{} : x;
    }
    INLINE float value() const {
        const f32x16 largest = larger(larger(largest_[0], largest_[1]), larger(largest_[2], largest_[3]));
        return max_of(largest) + sum_of((poison_[0] + poison_[1]) + (poison_[2] + poison_[3]));
    }

    static const int LANES = 4;

private:
    f32x16 largest_[LANES], poison_[LANES];
};

// Logits as they lie in memory, fetched ahead: they come once.
template <class Stored> INLINE f32x16 fetch(const Stored* p) {
    __builtin_prefetch(reinterpret_cast<const char*>(p) + FETCH_AHEAD);
    return load_as_float(p);
}

// The first `count` of up to 16 values, and what is no logit behind them.
template <class Stored> INLINE f32x16 load_last(const Stored* p, long count) {
    float values[16];
    for (long i = 0; i < 16; i++) values[i] = i < count ? to_float(p[i]) : -INFINITY;
    return load(values);
}

template <class Stored> float largest_of(const Stored* values, long count) {
    Largest largest;
    long i = 0;
    for (; i + 16 * Largest::LANES <= count; i += 16 * Largest::LANES)
        UNROLL
        for (int lane = 0; lane < Largest::LANES; lane++) largest.add(lane, fetch(values + i + 16 * lane));
    for (; i < count; i += 16) largest.add(0, load_last(values + i, count - i));
    return largest.value();
}

// A row in float32 with -inf behind it, up to whole blocks. Returns its largest value, NaN if it has one.
template <class Stored> float copy_row(const Stored* logits, long width, float* row) {
    Largest largest;
    long i = 0;
    for (; i + 16 * Largest::LANES <= width; i += 16 * Largest::LANES)
        UNROLL
        for (int lane = 0; lane < Largest::LANES; lane++) {
            const f32x16 x = fetch(logits + i + 16 * lane);
            store(row + i + 16 * lane, x);
            largest.add(lane, x);
        }
    for (; i < round_up(width, BLOCK); i += 16) {
        const f32x16 x = load_last(logits + i, width - i);
        store(row + i, x);
        largest.add(0, x);
    }
    return largest.value();
}

// The first place of the largest value; the last place of all if it is nowhere.
template <class Stored> long place_of(const Stored* values, long count, float largest) {
    long i = 0;
    while (i + 16 <= count && !has_at_least(load_as_float(values + i), largest)) i += 16;
    while (i < count - 1 && !(to_float(values[i]) >= largest)) i++;
    return least(i, count - 1);
}

// 16 values, -inf where they have no bit.
INLINE f32x16 masked(f32x16 x, uint16_t bits) {
#if AVX512
    return reinterpret_cast<f32x16>(_mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), bits, as_m512(x)));
#else
    const u32x16 lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return ((u32x16{} + bits) >> lanes & 1) != 0 ? x : splat(-INFINITY);
#endif
}

// Returns the largest value that is left.
float apply_mask(float* row, long width, const uint16_t* mask) {
    Largest largest;
    for (long i = 0; i < width; i += 16) {
        const f32x16 x = masked(load(row + i), mask[i / 16]);
        store(row + i, x);
        largest.add(i / 16 % Largest::LANES, x);
    }
    return largest.value();
}

// Replaces logits by probabilities relative to that of the likeliest token, those below the least logit by 0, and sums
// them as sum_blocks does. Not inlined, so that equal logits get equal probabilities wherever they are asked for.
__attribute__((noinline)) void relative_probs(float* values, long count, float largest, float inverse_temperature,
                                              float least_logit, double* sums) {
    double total = 0;
    for (long first = 0; first < count; first += BLOCK) {
        f32x16 sum = {};
        for (long i = first; i < first + BLOCK; i += 16) {
            const f32x16 logits = load(values + i);
            if (!has_at_least(logits, least_logit)) {
                store(values + i, f32x16{});
                continue;
            }
            const f32x16 probs = exp_of((logits - largest) * inverse_temperature);
            const f32x16 kept = logits >= least_logit ? probs : f32x16{};
            store(values + i, kept);
            sum += kept;
        }
        sums[first / BLOCK] = total += sum_of(sum);
    }
}

// By values, or by how many there are.
template <bool BY_COUNT> INLINE f32x16 weights_of(f32x16 x) { return BY_COUNT ? splat(1.0f) : x; }

// Writes up to 16 of the values that lie in the interval; returns how many.
INLINE long keep(f32x16 x, const Interval& kept, float* out) {
#if AVX512
    const __mmask16 is_high_enough = _mm512_cmp_ps_mask(as_m512(x), _mm512_set1_ps(kept.low), _CMP_GE_OQ);
    const __mmask16 inside =
        _mm512_mask_cmp_ps_mask(is_high_enough, as_m512(x), _mm512_set1_ps(kept.high), _CMP_LE_OQ);
    _mm512_storeu_ps(out, _mm512_maskz_compress_ps(inside, as_m512(x)));
    return __builtin_popcount(inside);
#else
    if (!has_at_least(x, kept.low)) return 0;
    float values[16];
    store(values, x);
    long count = 0;
    for (int lane = 0; lane < 16; lane++) {
        out[count] = values[lane];
        count += values[lane] >= kept.low && values[lane] <= kept.high;
    }
    return count;
#endif
}

// Gathers the values that lie in an interval, in their order. Here and in weigh `count` is a multiple of 16, and what is
// written to has room for 16 more than there are.
long gather(const float* values, long count, const Interval& kept, float* out) {
    long found = 0;
    for (long i = 0; i < count; i += 16) found += keep(load(values + i), kept, out + found);
    return found;
}

// Weighs, and gathers what lies between the pivots at the same time.
template <bool BY_COUNT>
Weights weigh(const float* values, long count, const Interval& pivots, float* between, long* found) {
    Weights total = {0, 0};
    long kept = 0;
    for (long first = 0; first < count; first += BLOCK) {
        f32x16 above = {}, from_low = {};
        for (long i = first; i < least(first + BLOCK, count); i += 16) {
            const f32x16 x = load(values + i);
            above += x > pivots.high ? weights_of<BY_COUNT>(x) : f32x16{};
            from_low += x >= pivots.low ? weights_of<BY_COUNT>(x) : f32x16{};
            kept += keep(x, pivots, between + kept);
        }
        total.above += sum_of(above);
        total.from_low += sum_of(from_low);
    }
    *found = kept;
    return total;
}

// Puts a sample into ascending order: a value goes where as many lie before it as are smaller.
void sort_sample(float* sample) {
    float sorted[SAMPLE_SIZE];
    int taken[SAMPLE_SIZE] = {};
    for (long i = 0; i < SAMPLE_SIZE; i += 16) {
        const f32x16 x = load(sample + i);
        f32x16 num_smaller = {};
        for (long j = 0; j < SAMPLE_SIZE; j++) num_smaller += x > sample[j] ? splat(1.0f) : f32x16{};
        float ranks[16];
        store(ranks, num_smaller);
        for (long lane = 0; lane < 16; lane++) {
            const long rank = static_cast<long>(ranks[lane]);
            sorted[rank + taken[rank]++] = sample[i + lane];
        }
    }
    __builtin_memcpy(sample, sorted, sizeof sorted);
}

// Two values between which what weighs `below` probably ends, going by a sample; not below `lowest`.
template <bool BY_COUNT>
Interval pivots_of(const float* values, long count, double below, long margin, float lowest) {
    float sample[SAMPLE_SIZE];
    for (long i = 0; i < SAMPLE_SIZE; i++) sample[i] = values[i * count / SAMPLE_SIZE];
    sort_sample(sample);
    const double scale = static_cast<double>(count) / SAMPLE_SIZE;
    long at = 0;
    for (double sum = 0; at < SAMPLE_SIZE - 1; at++) {
        sum += scale * (BY_COUNT ? 1 : sample[at]);
        if (sum > below) break;
    }
    const float low = at < margin ? lowest : sample[at - margin];
    const float high = at + margin < SAMPLE_SIZE ? sample[at + margin] : INFINITY;
    return {fmaxf(low, lowest), fmaxf(high, lowest)};
}

// The smallest of some values, without those that are no more than `rest`; `otherwise` if there is none.
float smallest_above(const float* values, long count, float rest, float otherwise) {
    float smallest = INFINITY;
    for (long i = 0; i < count; i++)
        if (values[i] > rest && values[i] < smallest) smallest = values[i];
    return smallest < INFINITY ? smallest : otherwise;
}

// As threshold_of, of no more values than a sample has.
template <bool BY_COUNT>
float threshold_of_few(const float* values, long count, double wanted, float rest, float otherwise) {
    float sorted[SAMPLE_SIZE];
    for (long i = 0; i < SAMPLE_SIZE; i++) sorted[i] = i < count ? values[i] : rest;
    sort_sample(sorted);
    float last = otherwise;
    double sum = 0;
    for (long i = SAMPLE_SIZE - 1; i >= 0 && sum < wanted && sorted[i] > rest; i--) {
        last = sorted[i];
        sum += BY_COUNT ? 1 : last;
    }
    return BY_COUNT && sum < wanted ? rest : last;
}

// The largest value so that it and all that are larger weigh `wanted` or more; `total` is what all weigh. `rest` is the
// smallest that a value can be: such values weigh nothing, or are the answer if all others are too few. Each round goes
// on with what lies above, between or below two pivots, and a single pivot is never among what is left. Sums that round
// otherwise than those before may come out smaller than wanted: then the answer is the smallest value that is left.
template <bool BY_COUNT>
float threshold_of(const float* values, long count, double wanted, double total, float rest, const Row& row) {
    const float lowest = std::nextafter(rest, INFINITY);
    float *out = row.candidates, *other = row.other_candidates, otherwise = rest;
    long margin = SAMPLE_MARGIN, found;
    while (count > SAMPLE_SIZE) {
        const Interval pivots = pivots_of<BY_COUNT>(values, count, total - wanted, margin, lowest);
        const Weights weights = weigh<BY_COUNT>(values, round_up(count, 16), pivots, out, &found);
        if (weights.above >= wanted) {
            found = gather(values, round_up(count, 16), {std::nextafter(pivots.high, INFINITY), INFINITY}, out);
            total = weights.above;
        } else if (weights.from_low >= wanted) {
            if (pivots.low == pivots.high) return pivots.low;
            wanted -= weights.above;
            total = weights.from_low - weights.above;
        } else if (pivots.low > lowest) {
            otherwise = pivots.low;
            found = gather(values, round_up(count, 16), {lowest, std::nextafter(pivots.low, -INFINITY)}, out);
            wanted -= weights.from_low;
            total -= weights.from_low;
        } else {
            return BY_COUNT ? rest : smallest_above(values, count, rest, otherwise);
        }
        margin = found > count / 2 ? 0 : SAMPLE_MARGIN;
        count = found;
        values = out;
        fill_up(out, found, found, rest, rest);
        std::swap(out, other);
    }
    return threshold_of_few<BY_COUNT>(values, count, wanted, rest, otherwise);
}

// Running sums of the blocks of what is not below the threshold; returns the total.
double sum_blocks(const float* probs, long count, float threshold, double* sums) {
    double total = 0;
    for (long first = 0; first < count; first += BLOCK) {
        f32x16 even = {}, odd = {};
        for (long i = first; i < least(first + BLOCK, count); i += 32) {
            const f32x16 a = load(probs + i), b = i + 16 < count ? load(probs + i + 16) : f32x16{};
            even += a >= threshold ? a : f32x16{};
            odd += b >= threshold ? b : f32x16{};
        }
        sums[first / BLOCK] = total += sum_of(even + odd);
    }
    return total;
}

// The `count` largest probabilities, of which the last one is given.
void gather_allowed(const Row& row, long count, float last) {
    const long found = gather(row.values, row.padded, {std::nextafter(last, INFINITY), INFINITY}, row.allowed);
    fill_up(row.allowed, least(found, count), count, last, 0);
}

// The smallest probability that top_p keeps of those allowed.
float smallest_of_top_p(const float* allowed, long count, double total, float top_p, const Row& row) {
    const double wanted = total * top_p > LEAST_WEIGHT ? total * top_p : LEAST_WEIGHT;
    return threshold_of<false>(allowed, count, wanted, total, 0, row);
}

float relative_prob(float logit, float largest, float inverse_temperature) {
    float values[BLOCK];
    double sum;
    std::fill(values, values + BLOCK, logit);
    relative_probs(values, BLOCK, largest, inverse_temperature, -INFINITY, &sum);
    return values[0];
}

// Takes logits. As likely tokens as the last one kept are kept too. top_p counts what top_k left.
long draw(const Row& row, float largest, const float* parameters, float uniform) {
    const float inverse = 1.0f / parameters[0], min_p = parameters[1], top_p = parameters[2], top_k = parameters[3];
    const bool limits_count = top_k > 0 && top_k < static_cast<float>(row.width);
    const double all = static_cast<double>(row.padded);
    const float kth = limits_count ? threshold_of<true>(row.values, row.padded, top_k, all, -INFINITY, row) : -INFINITY;
    relative_probs(row.values, row.padded, largest, inverse, kth, row.sums);
    float threshold = fminf(min_p, 1);
    if (top_p < 1 && limits_count) {
        const long count = static_cast<long>(top_k);
        gather_allowed(row, count, relative_prob(kth, largest, inverse));
        const double total = sum_blocks(row.allowed, round_up(count, 16), 0, row.allowed_sums);
        threshold = fmaxf(threshold, smallest_of_top_p(row.allowed, count, total, top_p, row));
    } else if (top_p < 1) {
        threshold = fmaxf(threshold, smallest_of_top_p(row.values, row.padded, row.total(), top_p, row));
    }
    if (threshold > 0) sum_blocks(row.values, row.padded, threshold, row.sums);
    return token_at(row, threshold, uniform * row.total());
}

// Places of the `count` largest logits, the first ones among equals, in order.
void find_largest(const Row& row, long count, int64_t* places) {
    const double all = static_cast<double>(row.padded);
    const float last = threshold_of<true>(row.values, row.padded, static_cast<double>(count), all, -INFINITY, row);
    long num_larger = 0, num_equal = 0;  // those from the front on, these from the back, where they give way
    for (long i = 0; i < row.width; i += 16) {
        if (!has_at_least(load(row.values + i), last)) continue;
        for (long j = i; j < least(i + 16, row.width); j++) {
            if (row.values[j] > last) {
                num_equal = least(num_equal, count - num_larger - 1);
                places[num_larger++] = j;
            } else if (row.values[j] == last && num_larger + num_equal < count) {
                places[count - ++num_equal] = j;
            }
        }
    }
    sort_places(row, places, count);
}

// The logarithm of what the exponentials of all logits of a row add up to.
double log_sum(const Row& row, float largest) {
    double total = 0;
    for (long first = 0; first < row.padded; first += BLOCK) {
        f32x16 sum = {};
        for (long i = first; i < first + BLOCK; i += 16) sum += exp_of(load(row.values + i) - largest);
        total += sum_of(sum);
    }
    return largest + std::log(total);
}

template <class Stored> void sample_row(const Sampling& s, long number, char* memory) {
    const Stored* logits = static_cast<const Stored*>(s.logits) + number * s.stride;
    const float* parameters = s.parameters + number * NUM_PARAMETERS;
    const LogitChanges* changes = s.changes ? s.changes[number] : nullptr;
    const bool is_greedy = parameters[0] == 0;
    s.tokens[number] = 0;
    s.has_choice[number] = 1;
    if (is_greedy && changes == nullptr) {
        const float largest = largest_of(logits, s.vocab_size);
        s.is_finite[number] = std::isfinite(largest);
        s.tokens[number] = place_of(logits, s.vocab_size, largest);
        return;
    }
    const Row row(memory, s.vocab_size);
    float largest = copy_row(logits, row.width, row.values);
    s.is_finite[number] = std::isfinite(largest);
    if (!std::isfinite(largest)) return;
    if (changes) {
        change(row, *changes);
        largest = changes->mask ? apply_mask(row.values, row.width, changes->mask) : largest_of(row.values, row.padded);
        s.has_choice[number] = largest != -INFINITY;
    }
    // What a penalty made infinite is the likeliest.
    const bool takes_likeliest = is_greedy || !std::isfinite(largest);
    s.tokens[number] = takes_likeliest ? place_of(row.values, row.width, largest)
                                       : draw(row, largest, parameters, s.uniforms[number]);
}

template <class Stored> void logprobs_of_row(const Logprobs& l, long number, char* memory) {
    const Row row(memory, l.vocab_size);
    const Stored* logits = static_cast<const Stored*>(l.logits) + l.rows[number] * l.stride;
    const float largest = copy_row(logits, row.width, row.values);
    int64_t* top_ids = l.top_ids + number * l.num_top;
    if (!std::isfinite(largest)) return fill_with_nan(l, number);
    const double normalizer = log_sum(row, largest);
    l.logprobs[number] = static_cast<float>(row.values[l.tokens[number]] - normalizer);
    if (l.num_top == 0) return;
    find_largest(row, l.num_top, top_ids);
    for (long i = 0; i < l.num_top; i++)
        l.top_logprobs[number * l.num_top + i] = static_cast<float>(row.values[top_ids[i]] - normalizer);
}

const Kernels KERNELS = {{sample_row<float>, sample_row<bf16>}, {logprobs_of_row<float>, logprobs_of_row<bf16>}};
