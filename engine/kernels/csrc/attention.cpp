// Attention over a paged KV cache, read and written in place. A plain C interface, called through ctypes: knows
// nothing of Python or torch but the memory that it is pointed to.
//
// One call serves one layer of one step. Its work is cut into items that any number of threads take from a counter:
// one item is a part of one sequence's keys for the query heads that share a KV head (decode), or some tokens of a
// longer chunk for those heads (prefill).

#include "common.h"

namespace {

const f32x16 COLUMNS = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// Keys that are looked at together.
const long TILE = 64;
// Keys of one sequence that one decode item takes: longer ones are shared out. A multiple of TILE.
const long PART = 512;
// Query rows (tokens times heads of a group) of a prefill item: the more, the less often keys are repacked.
const long CHUNK_ROWS = 256;
// Decode items that each thread should find, if there are that many heads: the fewer heads an item has, the less of
// what it reads lies together.
const long ITEMS_PER_THREAD = 4;
// Below this many multiplications, waking the other threads costs more than they save.
const double SERIAL_WORK = 100e3;

template <class Stored> INLINE const Stored* query_row(const Attention& call, long token, long head) {
    return static_cast<const Stored*>(call.query) + token * call.query_token + head * call.query_head;
}

template <class Stored> INLINE Stored* out_row(const Attention& call, long token, long head) {
    return static_cast<Stored*>(call.out) + token * call.out_token + head * call.cache->value_dim;
}

// Query heads that share a KV head.
INLINE long group_of(const Attention& call) { return call.num_heads / call.cache->num_kv_heads; }

INLINE float sink_of(const Attention& call, long head) { return call.sinks ? call.sinks[head] : -INFINITY; }

struct Item {
    long sequence;
    long head, num_heads;     // KV heads
    long token, num_tokens;   // in the step
    long position;            // of the first token, in its sequence
    long first, end;          // keys that any of its tokens may see
    bool is_first_part;
    float* partial;           // where the state of one part of several goes; or null
};

// An upper bound of what any item takes.
long scratch_bytes(const Attention& call) {
    const long rows = most(CHUNK_ROWS, call.num_heads);
    const long keys = round_up(call.cache->key_dim, 32), values = round_up(call.cache->value_dim, 32);
    return 4 * (rows * (keys + values + 2 * TILE + 4) + TILE * (keys + values)) + 64 * 16;
}

INLINE const int32_t* table_of(const Step& step, long sequence) {
    return step.block_tables + sequence * step.table_stride;
}

// Pointers to `count` keys and values from a position on; the last is repeated up to a multiple of four. Rows that no
// token of the item sees may have been let go, and hold anything: the first that one sees stands for them.
template <class Stored>
INLINE void locate(const Attention& call, const Item& item, long position, long count, const Stored** keys,
                   const Stored** values) {
    const Cache& cache = *call.cache;
    const long block_size = call.step->block_size;
    const int32_t* table = table_of(*call.step, item.sequence);
    const long unseen = most(0, item.first - position);
    long block = (position + unseen) / block_size, row = (position + unseen) % block_size;
    for (long j = unseen; j < count; block++, row = 0) {
        const long first_row = (table[block] * cache.num_kv_heads + item.head) * block_size;
        for (; row < block_size && j < count; row++, j++) {
            keys[j] = static_cast<const Stored*>(cache.keys) + (first_row + row) * cache.key_dim;
            values[j] = static_cast<const Stored*>(cache.values) + (first_row + row) * cache.value_dim;
        }
    }
    for (long j = 0; j < unseen; j++) {
        keys[j] = keys[unseen];
        values[j] = values[unseen];
    }
    for (long j = count; j % 4; j++) {
        keys[j] = keys[count - 1];
        values[j] = values[count - 1];
    }
}

struct Kernels {
    void (*decode)(const Attention&, const Item&, char* scratch);
    void (*prefill)(const Attention&, const Item&, char* scratch);
    void (*merge)(const Attention&, const Item&, const float* partials, long partial_floats, long num_parts, char* scratch);
};

// ---- the instruction sets

#define AVX512 0
#define NATIVE_BF16 0
namespace generic {
#define TILE_ROWS 2
#define TILE_VECTORS 1
#define STRIP 1
#include "attention.inl"
#undef TILE_ROWS
#undef TILE_VECTORS
#undef STRIP
}  // namespace generic

#if defined(__x86_64__)

BEGIN_TARGET("avx2,fma")
namespace avx2 {
#define TILE_ROWS 4
#define TILE_VECTORS 1
#define STRIP 2
#include "attention.inl"
#undef TILE_ROWS
#undef TILE_VECTORS
}  // namespace avx2
END_TARGET
#undef STRIP
#undef AVX512

#define AVX512 1
#define TILE_ROWS 6
#define TILE_VECTORS 4
#define STRIP 8
BEGIN_TARGET("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq")
namespace avx512 {
#include "attention.inl"
}  // namespace avx512
END_TARGET

#undef NATIVE_BF16
#define NATIVE_BF16 1
BEGIN_TARGET("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")
namespace avx512_bf16 {
#include "attention.inl"
}  // namespace avx512_bf16
END_TARGET

#endif

Kernels kernels_for(int64_t level, bool is_bf16) {
#if defined(__x86_64__)
    if (level == 3 && is_bf16) return avx512_bf16::kernels_for_pairs();
    if (level >= 2) return avx512::kernels_for(is_bf16);
    if (level == 1) return avx2::kernels_for(is_bf16);
#endif
    (void)level;
    return generic::kernels_for(is_bf16);
}

// ---- cutting a step into items

double multiplications(const Attention& call) {
    double count = 0;
    for (long i = 0; i < call.step->num_seqs; i++) {
        const long tokens = call.step->query_start[i + 1] - call.step->query_start[i], keys = call.step->seq_lens[i];
        count += double(tokens) * (call.window > 0 ? least(call.window, keys) : keys);
    }
    return count * call.num_heads * (call.cache->key_dim + call.cache->value_dim);
}

class Work {
public:
    // `first_items` has room for one number per sequence and one more.
    Work(const Attention& call, int64_t* first_items, long num_threads) : call(call), first_items_(first_items) {
        for (heads_ = call.cache->num_kv_heads; count_items() < ITEMS_PER_THREAD * num_threads && heads_ > 1;)
            heads_ = (heads_ + 1) / 2;
    }

    long num_items() const { return first_items_[call.step->num_seqs]; }

    // KV heads that an item of this sequence takes together.
    long heads_of(long sequence) const { return tokens_of(sequence) > 1 ? 1 : heads_; }

    long parts_of(long sequence) const {
        const long tokens = tokens_of(sequence);
        if (tokens > 1) return (tokens + chunk_tokens() - 1) / chunk_tokens();
        if (call.step->in_one_part) return 1;
        return (call.step->seq_lens[sequence] - 1) / PART - first_key(call.step->seq_lens[sequence] - 1) / PART + 1;
    }

    long tokens_of(long sequence) const {
        return call.step->query_start[sequence + 1] - call.step->query_start[sequence];
    }

    // The parts of the same heads have consecutive numbers.
    Item item(long number, long* part) const {
        Item item = {};
        item.sequence = sequence_of(number);
        const long within = number - first_items_[item.sequence], num_parts = parts_of(item.sequence);
        item.head = within / num_parts * heads_of(item.sequence);
        item.num_heads = least(heads_of(item.sequence), call.cache->num_kv_heads - item.head);
        *part = within % num_parts;
        item.token = call.step->query_start[item.sequence];
        item.num_tokens = tokens_of(item.sequence);
        item.position = call.step->seq_lens[item.sequence] - item.num_tokens;
        if (item.num_tokens > 1)
            take_tokens(item, *part);
        else
            take_keys(item, *part);
        return item;
    }

    const Attention& call;

private:
    long count_items() {
        int64_t total = 0;
        for (long i = 0; i < call.step->num_seqs; i++) {
            first_items_[i] = total;
            total += parts_of(i) * ((call.cache->num_kv_heads + heads_of(i) - 1) / heads_of(i));
        }
        return first_items_[call.step->num_seqs] = total;
    }

    long chunk_tokens() const { return most(1, CHUNK_ROWS * call.cache->num_kv_heads / call.num_heads); }

    long first_key(long position) const { return call.window > 0 ? most(0, position + 1 - call.window) : 0; }

    long sequence_of(long number) const {
        long low = 0, high = call.step->num_seqs;
        while (high - low > 1) {
            const long middle = (low + high) / 2;
            (first_items_[middle] <= number ? low : high) = middle;
        }
        return low;
    }

    void take_tokens(Item& item, long part) const {
        const long skipped = part * chunk_tokens();
        item.token += skipped;
        item.position += skipped;
        item.num_tokens = least(chunk_tokens(), item.num_tokens - skipped);
        item.first = first_key(item.position);
        item.end = item.position + item.num_tokens;
    }

    void take_keys(Item& item, long part) const {
        const long first = first_key(item.position), begin = (first / PART + part) * PART;
        item.first = most(first, begin);
        item.is_first_part = part == 0;
        item.end = call.step->in_one_part ? item.position + 1 : least(begin + PART, item.position + 1);
    }

    int64_t* first_items_;
    long heads_;
};

// ---- doing it

const long WRITE_TOKENS = 8;

template <class Stored>
void write_tokens(const Attention& call, long first, long end) {
    const Cache& cache = *call.cache;
    const long block_size = call.step->block_size;
    for (long token = first; token < end; token++) {
        const long block = call.step->slots[token] / block_size, row = call.step->slots[token] % block_size;
        for (long head = 0; head < cache.num_kv_heads; head++) {
            const long to = (block * cache.num_kv_heads + head) * block_size + row;
            __builtin_memcpy(static_cast<Stored*>(cache.keys) + to * cache.key_dim,
                             static_cast<const Stored*>(call.new_keys) + token * call.key_token + head * call.key_head,
                             cache.key_dim * sizeof(Stored));
            __builtin_memcpy(
                static_cast<Stored*>(cache.values) + to * cache.value_dim,
                static_cast<const Stored*>(call.new_values) + token * call.value_token + head * call.value_head,
                cache.value_dim * sizeof(Stored));
        }
    }
}

struct Job {
    const Work& work;
    Kernels kernels;
    char* scratch;
    long scratch_bytes;
    float* partials;  // of all items, where some have several parts
    long partial_floats;
    std::atomic<int32_t>* missing;  // parts of each sequence and head
    std::atomic<long> next_thread, next_write, num_written, next_item;
};

void write_all(Job& job) {
    const Attention& call = job.work.call;
    if (call.new_keys == nullptr) return;  // another layer has written them
    const long num_tokens = call.step->num_tokens;
    for (long first; (first = job.next_write.fetch_add(WRITE_TOKENS)) < num_tokens;) {
        const long end = least(first + WRITE_TOKENS, num_tokens);
        call.cache->is_bf16 ? write_tokens<bf16>(call, first, end) : write_tokens<float>(call, first, end);
        job.num_written.fetch_add(end - first, std::memory_order_release);
    }
    // For those who are writing right now, not for threads that have not come yet, as a barrier would.
    while (job.num_written.load(std::memory_order_acquire) < num_tokens) sched_yield();
}

void run_part(Job& job, Item& item, long number, long part, long num_parts, char* scratch) {
    const Attention& call = job.work.call;
    item.partial = job.partials + number * job.partial_floats;
    job.kernels.decode(call, item, scratch);
    if (job.missing[item.sequence * call.cache->num_kv_heads + item.head].fetch_sub(1) > 1) return;
    const float* first = job.partials + (number - part) * job.partial_floats;
    job.kernels.merge(call, item, first, job.partial_floats, num_parts, scratch);
}

void run_item(Job& job, long number, char* scratch) {
    long part;
    Item item = job.work.item(number, &part);
    if (job.work.tokens_of(item.sequence) > 1) return job.kernels.prefill(job.work.call, item, scratch);
    const long num_parts = job.work.parts_of(item.sequence);
    if (num_parts > 1) return run_part(job, item, number, part, num_parts, scratch);
    job.kernels.decode(job.work.call, item, scratch);
}

void run_thread(void* data) {
    Job& job = *static_cast<Job*>(data);
    char* scratch = job.scratch + job.next_thread.fetch_add(1) * job.scratch_bytes;
    write_all(job);
    // From the last to the first: long chunks come last in a step, and the tokens that see most come last in them.
    const long num_items = job.work.num_items();
    for (long taken; (taken = job.next_item.fetch_add(1)) < num_items;) run_item(job, num_items - 1 - taken, scratch);
}

thread_local Arena item_arena, work_arena;

bool has_parts(const Work& work) {
    for (long i = 0; i < work.call.step->num_seqs; i++)
        if (work.tokens_of(i) == 1 && work.parts_of(i) > 1) return true;
    return false;
}

// How many parts of each head are yet to come; the thread that does the last one joins them.
void count_parts(const Work& work, std::atomic<int32_t>* missing) {
    const long num_heads = work.call.cache->num_kv_heads;
    for (long i = 0; i < work.call.step->num_seqs; i++)
        for (long head = 0; head < num_heads; head++)
            new (&missing[i * num_heads + head]) std::atomic<int32_t>(static_cast<int32_t>(work.parts_of(i)));
}

void run(Job& job, const Team& team, bool alone) {
    if (alone) return run_thread(&job);
    team.parallel(run_thread, &job, static_cast<unsigned>(team.num_threads), 0);
}

}  // namespace

extern "C" {

// The best instruction set of this CPU: 0 generic, 1 AVX2, 2 AVX-512, 3 AVX-512 with bfloat16.
EXPORT int64_t orcinus_best_level() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq"))
        return 1;
    return __builtin_cpu_supports("avx512bf16") ? 3 : 2;
#else
    return 0;
#endif
}

// Which sources this was built from.
EXPORT const char* orcinus_source() { return ORCINUS_SOURCE; }

// Writes the step's new keys and values, unless they are null, then attends. Returns 0, or 1 without memory to work in.
EXPORT int64_t orcinus_attend(const Attention* call, const Team* team, int64_t level) {
    const long num_seqs = call->step->num_seqs, num_kv_heads = call->cache->num_kv_heads;
    char* items = item_arena.reserve((num_seqs + 1) * sizeof(int64_t));
    if (items == nullptr) return 1;
    const bool alone = team->parallel == nullptr || team->num_threads < 2 || multiplications(*call) < SERIAL_WORK;
    const Work work(*call, reinterpret_cast<int64_t*>(items), alone ? 0 : team->num_threads);
    const bool in_parts = has_parts(work);
    const long per_thread = scratch_bytes(*call), all_threads = per_thread * (alone ? 1 : team->num_threads);
    const long state = 2 + round_up(call->cache->value_dim, 32);
    const long partial_floats = round_up(call->num_heads * state, 16);
    const long partial_bytes = in_parts ? work.num_items() * partial_floats * sizeof(float) : 0;
    const long counter_bytes = in_parts ? num_seqs * num_kv_heads * sizeof(int32_t) : 0;
    char* memory = work_arena.reserve(all_threads + partial_bytes + counter_bytes);
    if (memory == nullptr) return 1;
    Job job = {work, kernels_for(level, call->cache->is_bf16 != 0), memory, per_thread, nullptr, partial_floats,
               nullptr, {0}, {0}, {0}, {0}};
    if (in_parts) {
        job.partials = reinterpret_cast<float*>(memory + all_threads);
        job.missing = reinterpret_cast<std::atomic<int32_t>*>(memory + all_threads + partial_bytes);
        count_parts(work, job.missing);
    }
    run(job, *team, alone);
    return 0;
}
}
