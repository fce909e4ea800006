// What the kernels share: vectors of 16 lanes, bfloat16, memory to work in, threads, and the structures of the C
// interface. engine/kernels/structures.py has the same structures with the same fields in the same order.

#pragma once

#include <sched.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <new>

#if defined(__x86_64__)
// Until version 13, GCC warns of its own intrinsics: they leave operands undefined that an instruction ignores.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#else
#include <immintrin.h>
#endif
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

// Asks for the first version that glibc had of a function and still has. A library that is built on a new system then runs
// on older ones, too. To be named once in each source that calls the function.
#if defined(__GLIBC__) && defined(__x86_64__) && !defined(__SANITIZE_THREAD__)
#define FIRST_VERSION(name) __asm__(".symver " #name ", " #name "@GLIBC_2.2.5");
#elif defined(__GLIBC__) && defined(__aarch64__) && !defined(__SANITIZE_THREAD__)
#define FIRST_VERSION(name) __asm__(".symver " #name ", " #name "@GLIBC_2.17");
#else
#define FIRST_VERSION(name)
#endif

#define EXPORT __attribute__((visibility("default")))
#define INLINE inline __attribute__((always_inline))
#define PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#define BEGIN_TARGET(features) PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define END_TARGET _Pragma("clang attribute pop")
#else
#define UNROLL _Pragma("GCC unroll 32")
#define BEGIN_TARGET(features) _Pragma("GCC push_options") PRAGMA(GCC target(features))
#define END_TARGET _Pragma("GCC pop_options")
#endif

// Whether the compiler knows AVX2's form of VNNI.
#if defined(__x86_64__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define HAS_AVX_VNNI 1
#endif

namespace orcinus {

// Whether this CPU has AVX2's form of VNNI, and the compiler knew it; cpu.cpp.
bool has_avx_vnni();

// Whether it has Arm's dot products of 8 bits.
bool has_arm_dot();

struct bf16 {
    uint16_t bits;
};

typedef float f32x16 __attribute__((vector_size(64)));
typedef float f32x8 __attribute__((vector_size(32)));
typedef float f32x4 __attribute__((vector_size(16)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x8 __attribute__((vector_size(32)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));
typedef float f32x16_unaligned __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint16_t u16x16_unaligned __attribute__((vector_size(32), aligned(2), may_alias));

template <class To, class From> INLINE To bits_as(From x) {
    To y;
    static_assert(sizeof x == sizeof y, "");
    __builtin_memcpy(&y, &x, sizeof y);
    return y;
}

template <class Whole, class Half> struct Halves {
    Half low, high;
    INLINE Halves(Whole x) {
        __builtin_memcpy(&low, &x, sizeof low);
        __builtin_memcpy(&high, reinterpret_cast<const char*>(&x) + sizeof low, sizeof high);
    }
};

INLINE bf16 round_to_bf16(float x) {
    const uint32_t bits = bits_as<uint32_t>(x);
    if (x != x) return bf16{static_cast<uint16_t>(bits >> 16 | 0x40)};
    return bf16{static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

INLINE float to_float(float x) { return x; }
INLINE float to_float(bf16 x) { return bits_as<float>(static_cast<uint32_t>(x.bits) << 16); }

INLINE long round_up(long n, long multiple) { return (n + multiple - 1) / multiple * multiple; }
INLINE long least(long a, long b) { return a < b ? a : b; }
INLINE long most(long a, long b) { return a > b ? a : b; }

// Memory that an item works in, from its thread's share.
class Scratch {
public:
    explicit INLINE Scratch(char* at) : at_(at) {}
    template <class T> INLINE T* take(long count) {
        T* taken = reinterpret_cast<T*>(at_);
        at_ += round_up(count * sizeof(T), 64);
        return taken;
    }

private:
    char* at_;
};

// Memory that a calling thread keeps from call to call.
class Arena {
public:
    // Null where there is not enough; what it held before is gone.
    char* reserve(long wanted) {
        const long bytes = wanted > 0 ? wanted : 1;
        if (bytes <= capacity_) return memory_;
        free(memory_);
        capacity_ = round_up(bytes + bytes / 8, 64);
        memory_ = static_cast<char*>(aligned_alloc(64, capacity_));
        if (memory_ == nullptr) capacity_ = 0;
        return memory_;
    }

private:
    char* memory_ = nullptr;
    long capacity_ = 0;
};

}  // namespace orcinus

using namespace orcinus;

extern "C" {

// Where the tokens of a step lie: sequence i has tokens query_start[i] to query_start[i + 1].
struct Step {
    int64_t num_tokens, num_seqs, block_size, table_stride;
    const int32_t *query_start, *seq_lens, *block_tables;
    const int64_t* slots;
};

// One layer's cache, in blocks of each KV head's keys and values. They are rows of (block_size, dim); or interleaved, as
// products read them, in lanes of 32 bits, which hold k numbers: keys (key_dim / k, block_size, k) and values
// (block_size / k, value_dim, k), of which block_size and value_dim are multiples of 16, and key_dim one of k.
//
// In 8 bits a number is a signed byte times a scale that its token has for the head. A block of a head has lanes of four
// numbers: keys (key_dim / 4, block_size, 4), to each of which 128 is added, or values (block_size / 4, value_dim, 4), and behind
// them the scales (block_size,) in bfloat16. Keys are stored rotated: runs of them, as many as the largest power of two that
// divides key_dim, times a Hadamard matrix of ones. All three are multiples of 16. `is_bf16` is said of what comes and goes.
struct Cache {
    void *keys, *values;
    int64_t num_kv_heads, key_dim, value_dim, is_bf16, is_interleaved, is_int8;
};

// Strides count elements; the last dimension is contiguous. A window, a softcap or sinks of 0 mean none.
struct Attention {
    const Step* step;
    const Cache* cache;
    const void *query, *new_keys, *new_values;
    void* out;
    int64_t out_token, query_token, query_head, key_token, key_head, value_token, value_head;
    int64_t num_heads, window;
    float scale, softcap;
    const float* sinks;
};

// What runs a function in several threads: GOMP_parallel of the OpenMP runtime that the process has, or
// orcinus_parallel. Without it the calling thread works alone.
struct Team {
    void (*parallel)(void (*)(void*), void*, unsigned, unsigned);
    int64_t num_threads;
};

// cpu.cpp
EXPORT int64_t orcinus_best_level();

// attention.cpp
EXPORT int64_t orcinus_attend(const Attention* call, const Team* team, int64_t level);
}

namespace orcinus {

template <class Body> struct ParallelFor {
    const Body& body;
    const long count;
    std::atomic<long> next;

    static void run(void* data) {
        ParallelFor& work = *static_cast<ParallelFor*>(data);
        for (long i; (i = work.next.fetch_add(1, std::memory_order_relaxed)) < work.count;) work.body(i);
    }
};

// body(i) for i from 0 to count, in any order, by whichever threads come.
template <class Body> void parallel_for(const Team& team, long count, const Body& body) {
    ParallelFor<Body> work = {body, count, {0}};
    if (count < 2 || team.parallel == nullptr || team.num_threads < 2) return work.run(&work);
    team.parallel(work.run, &work, static_cast<unsigned>(least(team.num_threads, count)), 0);
}

// Threads that share numbers 0 to count: each begins with a range of its own, one number after the other, and then takes
// from the ends of what others have left.
template <class Body> class Shares {
public:
    Shares(const Body& body, long count, long num_threads) : body_(body), num_shares_(num_threads) {
        for (long i = 0; i < num_shares_; i++)
            shares_[i].range.store(pack(count * i / num_shares_, count * (i + 1) / num_shares_));
    }

    static const long MOST_THREADS = 256;

    static void run(void* data) {
        Shares& shares = *static_cast<Shares*>(data);
        const long own = shares.next_thread_.fetch_add(1);
        for (uint64_t range; !is_empty(range = shares.shares_[own].range.load(std::memory_order_relaxed));)
            if (shares.shares_[own].range.compare_exchange_weak(range, pack(begin(range) + 1, end(range))))
                shares.body_(begin(range), begin(range) + 1 < end(range) ? begin(range) + 1 : -1);
        for (long other = 1; other < shares.num_shares_; other++) shares.help((own + other) % shares.num_shares_);
    }

private:
    static uint64_t pack(long begin, long end) {
        return static_cast<uint64_t>(begin) << 32 | static_cast<uint64_t>(end);
    }
    static long begin(uint64_t range) { return static_cast<long>(range >> 32); }
    static long end(uint64_t range) { return static_cast<long>(range & 0xffffffff); }
    static bool is_empty(uint64_t range) { return begin(range) >= end(range); }

    void help(long other) {
        for (uint64_t range; !is_empty(range = shares_[other].range.load(std::memory_order_relaxed));)
            if (shares_[other].range.compare_exchange_weak(range, pack(begin(range), end(range) - 1)))
                body_(end(range) - 1, -1);
    }

    struct alignas(64) Share {
        std::atomic<uint64_t> range;
    };

    const Body& body_;
    const long num_shares_;
    std::atomic<long> next_thread_{0};
    Share shares_[MOST_THREADS];
};

// body(i, next) for i from 0 to count: `next` is what the same thread will probably do next, or -1.
template <class Body> void parallel_shares(const Team& team, long count, const Body& body) {
    const bool alone = team.parallel == nullptr || team.num_threads < 2 || count < 2;
    const long num_threads = alone ? 1 : least(least(team.num_threads, count), Shares<Body>::MOST_THREADS);
    Shares<Body> shares(body, count, num_threads);
    if (alone) return shares.run(&shares);
    team.parallel(shares.run, &shares, static_cast<unsigned>(num_threads), 0);
}

}  // namespace orcinus
