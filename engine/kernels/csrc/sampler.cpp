// From logits to tokens: the likeliest of each row or one that is drawn, and log-probabilities.
//
// A draw takes the first token, in the order of the vocabulary, at which the running sum of the probabilities that are
// kept passes the row's random number. What is kept is decided by its smallest probability, which is found without
// sorting.

#include <algorithm>

#include "structures.h"

FIRST_VERSION(log)  // glibc 2.29 has one that does not set errno

namespace {

// Probabilities summed in float32 before they are added in double.
const long BLOCK = 256;
// Values sorted at a time, and how many of them to either side of an estimate still count as near.
const long SAMPLE_SIZE = 128;
const long SAMPLE_MARGIN = 10;
// Bytes between what is worked on and what is asked of memory meanwhile.
const long FETCH_AHEAD = 2048;
const long NUM_PARAMETERS = 4;
// What is wanted at least: the likeliest token, whose relative probability is 1.
const double LEAST_WEIGHT = 1e-30;

// Values from low to high, both included.
struct Interval {
    float low, high;
};

// What values above the high one of two pivots weigh, and those from the low one on.
struct Weights {
    double above, from_low;
};

// One row in float32, filled up to whole blocks, and memory to work in.
struct Row {
    long width, padded;
    float *values, *allowed, *candidates, *other_candidates;
    double *sums, *allowed_sums;  // running, of blocks of probabilities

    Row(char* memory, long vocab_size) : width(vocab_size), padded(round_up(vocab_size, BLOCK)) {
        Scratch scratch(memory);
        values = scratch.take<float>(padded);
        allowed = scratch.take<float>(padded + 16);
        candidates = scratch.take<float>(padded + 16);
        other_candidates = scratch.take<float>(padded + 16);
        sums = scratch.take<double>(padded / BLOCK);
        allowed_sums = scratch.take<double>(padded / BLOCK);
    }

    static long bytes(long vocab_size) {
        const long padded = round_up(vocab_size, BLOCK);
        return 4 * (padded + 16) * sizeof(float) + 2 * padded / BLOCK * sizeof(double) + 6 * 64;
    }

    double total() const { return sums[padded / BLOCK - 1]; }
};

typedef void (*SampleRow)(const Sampling&, long number, char* memory);
typedef void (*LogprobsOfRow)(const Logprobs&, long number, char* memory);

// By whether logits are bfloat16.
struct Kernels {
    SampleRow sample[2];
    LogprobsOfRow logprobs[2];
};

template <class Change> void change_each(const Row& row, const int64_t* tokens, long count, const Change& change) {
    for (long i = 0; i < count; i++)
        if (tokens[i] >= 0 && tokens[i] < row.width) change(row.values[tokens[i]], i);
}

// Repetition penalty (CTRL, https://arxiv.org/abs/1909.05858), frequency and presence penalty (OpenAI), biases, ends
// that may not come yet, and what is impossible. Not inlined where instructions would round otherwise.
__attribute__((noinline)) void change(const Row& row, const LogitChanges& c) {
    change_each(row, c.penalized, c.num_penalized, [&](float& logit, long i) {
        const float repeated = logit > 0 ? logit / c.repetition : logit * c.repetition;
        logit = repeated - c.frequency * c.counts[i] - (c.counts[i] > 0 ? c.presence : 0.0f);
    });
    change_each(row, c.biased, c.num_biased, [&](float& logit, long i) { logit += c.biases[i]; });
    change_each(row, c.ends, c.num_ends, [](float& logit, long) { logit = -3.402823466e38f; });
    change_each(row, c.impossible, c.num_impossible, [](float& logit, long) { logit = -INFINITY; });
}

// Fills `values` up to `count` with a value, and from there with `rest` up to a multiple of 16.
void fill_up(float* values, long found, long count, float value, float rest) {
    std::fill(values + found, values + count, value);
    std::fill(values + count, values + round_up(count, 16), rest);
}

// The first token at which the sum of what is kept passes `target`; the last one of its block where rounding lets none.
long token_at(const Row& row, float threshold, double target) {
    const long num_blocks = row.padded / BLOCK;
    const long block = least(std::upper_bound(row.sums, row.sums + num_blocks, target) - row.sums, num_blocks - 1);
    double sum = block > 0 ? row.sums[block - 1] : 0;
    long token = 0;
    for (long i = block * BLOCK; i < (block + 1) * BLOCK && sum <= target; i++) {
        if (row.values[i] < threshold || row.values[i] <= 0) continue;
        sum += row.values[i];
        token = i;
    }
    return token;
}

void sort_places(const Row& row, int64_t* places, long count) {
    const float* values = row.values;
    std::sort(places, places + count, [values](int64_t a, int64_t b) {
        return values[a] > values[b] || (values[a] == values[b] && a < b);
    });
}

void fill_with_nan(const Logprobs& l, long number) {
    l.logprobs[number] = NAN;
    std::fill_n(l.top_logprobs + number * l.num_top, l.num_top, NAN);
    std::fill_n(l.top_ids + number * l.num_top, l.num_top, 0);
}

#define AVX512 0
namespace generic {
#include "sampler.inl"
}  // namespace generic

#if defined(__x86_64__)

#define AVX2 1
BEGIN_TARGET("avx2,fma")
namespace avx2 {
#include "sampler.inl"
}  // namespace avx2
END_TARGET
#undef AVX512

#define AVX512 1
BEGIN_TARGET("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq")
namespace avx512 {
#include "sampler.inl"
}  // namespace avx512
END_TARGET

#endif

const Kernels& kernels_of(int64_t level) {
#if defined(__x86_64__)
    if (level >= 2) return avx512::KERNELS;
    if (level == 1) return avx2::KERNELS;
#endif
    (void)level;
    return generic::KERNELS;
}

// body(row, memory) for each row. As many take rows as there are threads, each with memory of its own.
template <class Body> int64_t for_each_row(const Team& team, long num_rows, long vocab_size, const Body& body) {
    static thread_local Arena arena;
    const long num_takers = most(1, least(team.num_threads, num_rows)), bytes = round_up(Row::bytes(vocab_size), 64);
    char* memory = arena.reserve(num_takers * bytes);
    if (memory == nullptr) return 1;
    std::atomic<long> next{0};
    parallel_for(team, num_takers, [&](long taker) {
        for (long row; (row = next.fetch_add(1, std::memory_order_relaxed)) < num_rows;)
            body(row, memory + taker * bytes);
    });
    return 0;
}

}  // namespace

extern "C" {

EXPORT int64_t orcinus_sample(const Sampling* call, const Team* team, int64_t level) {
    const SampleRow sample = kernels_of(level).sample[call->is_bf16 != 0];
    return for_each_row(*team, call->num_rows, call->vocab_size,
                        [&](long row, char* memory) { sample(*call, row, memory); });
}

EXPORT int64_t orcinus_logprobs(const Logprobs* call, const Team* team, int64_t level) {
    const LogprobsOfRow logprobs = kernels_of(level).logprobs[call->is_bf16 != 0];
    return for_each_row(*team, call->num_rows, call->vocab_size,
                        [&](long row, char* memory) { logprobs(*call, row, memory); });
}
}
