// Attention over a paged KV cache, read and written in place. A plain C interface, called through ctypes: knows
// nothing of Python or torch but the memory that it is pointed to.
//
// One call serves one layer of one step. Its work is cut into items that any number of threads take from a counter:
// one item is some tokens of a sequence for the query heads that share a KV head, over all keys that these tokens see
// or over one part of them. How the work is cut changes nothing in a token's result, to the last bit.

#include "common.h"
#include "tile_shapes.h"

namespace {

const f32x16 COLUMNS = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// Keys that are looked at together. Tiles begin at multiples of it, whatever shares the step.
const long TILE = 64;
// Keys of a vector: those of a tile lie in so many groups.
const long WIDTH = 16, GROUPS = TILE / WIDTH;
// Keys whose weighted values are summed in one go, from a multiple of it on: the sums of parts are joined in their order,
// by one thread that did them all or by the last of several. A multiple of TILE.
const long PART = 512;
// Lines of the cache that are asked for when another part of the memory comes next; more come by themselves.
const long FETCHED_LINES = 32;
// Query rows (tokens times heads of a group) of an item at most, if it has several tokens.
const long CHUNK_ROWS = 256;
// Tokens of a sequence whose parts are shared out; more tokens are enough work for all threads.
const long FEW_TOKENS = 16;
// Rows that matrix units multiply at once, and those of which they have weights before that.
const long UNIT_ROWS = 16, WEIGHED_ROWS = 32;
// KV heads of an item at most, a power of two, and what it takes to work on each of several, besides its rows.
const long MOST_HEADS = 8, HEAD_BYTES = 1024;
// Items that each thread should find, if there are that many.
const long ITEMS_PER_THREAD = 4;
// The largest dimension of a head whose keys or values are stored in bytes: sums of their products fit in 32 bits.
const long MOST_BYTES_DIM = 512;
// Below this many multiplications, waking the other threads costs more than they save.
const double SERIAL_WORK = 100e3;

// Query heads that share a KV head.
INLINE long group_of(const Attention& call) { return call.num_heads / call.cache->num_kv_heads; }

INLINE long padded_values(const Attention& call) { return round_up(call.cache->value_dim, WIDTH); }

// What `num_rows` query rows have seen so far takes so many floats: see `State` of attention.inl.
INLINE long state_floats(const Attention& call, long num_rows) { return num_rows * (2 + padded_values(call)); }

struct Item {
    long sequence, head;     // a KV head
    long num_heads;          // of those, side by side
    long token, num_tokens;  // in the step
    long position;           // of the first token, in its sequence
    long first, end;         // keys that any of its tokens may see, in one part or in all
    float* partial;          // where the state of one part of several goes; or null
    long partial_stride;     // to that of the next head
};

// One of an item's heads, by its place among them.
INLINE Item one_head(Item item, long index) {
    item.head += index;
    item.num_heads = 1;
    if (item.partial != nullptr) item.partial += index * item.partial_stride;
    return item;
}

// An upper bound of what any item takes.
long scratch_bytes(const Attention& call) {
    const long rows = most(CHUNK_ROWS, group_of(call));
    const long keys = round_up(call.cache->key_dim, 2), values = padded_values(call);
    const long by_units = UNIT_ROWS * (keys + 2 * TILE + values);
    const long floats = rows * (keys + 2 * TILE) + by_units + 2 * state_floats(call, rows) + TILE * (keys + 2 * values);
    return MOST_HEADS * HEAD_BYTES + 4 * floats + 64 * 16;
}

INLINE const int32_t* table_of(const Step& step, long sequence) {
    return step.block_tables + sequence * step.table_stride;
}

// Rows of the cache before those of a position's block, for the item's head.
INLINE long rows_before(const Attention& call, const Item& item, long position) {
    const long block = table_of(*call.step, item.sequence)[position / call.step->block_size];
    return (block * call.cache->num_kv_heads + item.head) * call.step->block_size;
}

struct Kernels {
    long most_heads;  // of an item
    void (*write)(const Attention&, long first, long end);
    void (*attend)(const Attention&, const Item&, char* scratch);
    void (*join)(const Attention&, const Item&, const float* partials, long num_parts, char* scratch);
};

// ---- the instruction sets

#define AVX512 0
#define NATIVE_BF16 0
#define VNNI 0
#define AVX2 0
namespace generic {
#define TILE_ROWS 2
#define TILE_VECTORS 1
#define BYTE_ROWS 2
#include "attention.inl"
#include "attention_int8.inl"
#include "cache_write.inl"
#undef TILE_ROWS
#undef TILE_VECTORS
}  // namespace generic
#undef AVX2
#define AVX2 1

#if defined(__x86_64__)

BEGIN_TARGET("avx2,fma")
namespace avx2 {
#define TILE_ROWS 4
#define TILE_VECTORS 1
#include "attention.inl"
#include "attention_int8.inl"
#include "cache_write.inl"
#undef TILE_ROWS
#undef TILE_VECTORS
}  // namespace avx2
END_TARGET
#undef AVX512
#undef BYTE_ROWS

#define AVX512 1
#define TILE_ROWS 6
#define TILE_VECTORS 4
#define BYTE_ROWS 4
BEGIN_TARGET("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq")
namespace avx512 {
#include "attention.inl"
#include "attention_int8.inl"
#include "cache_write.inl"
}  // namespace avx512
END_TARGET

#undef NATIVE_BF16
#undef VNNI
#undef BYTE_ROWS
#define NATIVE_BF16 1
#define VNNI 1
#define BYTE_ROWS 3
#if MATRIX_UNITS
BEGIN_TARGET("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni,amx-tile,amx-bf16,amx-int8")
#else
BEGIN_TARGET("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni")
#endif
namespace avx512_bf16 {
#include "attention.inl"
#include "attention_int8.inl"
#include "cache_write.inl"
}  // namespace avx512_bf16
END_TARGET

#endif

#if MATRIX_UNITS
// Whether matrix units attend to a layer's keys and values: all of its tokens, or none.
bool fits_units(const Cache& cache) {
    return cache.is_bf16 && cache.key_dim % (2 * UNIT_LANES) == 0 && cache.value_dim % WIDTH == 0;
}
#endif

Kernels kernels_for_bytes(int64_t level, bool is_bf16) {
#if MATRIX_UNITS
    if (level >= 4) return avx512_bf16::byte_kernels_by_units(is_bf16);
#endif
#if defined(__x86_64__)
    if (level >= 3 && __builtin_cpu_supports("avx512vnni")) return avx512_bf16::byte_kernels(is_bf16);
    if (level >= 2) return avx512::byte_kernels(is_bf16);
    if (level == 1) return avx2::byte_kernels(is_bf16);
#endif
    (void)level;
    return generic::byte_kernels(is_bf16);
}

Kernels kernels_for(int64_t level, const Cache& cache) {
    const bool is_bf16 = cache.is_bf16 != 0;
    if (cache.is_int8) return kernels_for_bytes(level, is_bf16);
#if MATRIX_UNITS
    if (level >= 4 && fits_units(cache)) return avx512_bf16::kernels_by_units();
#endif
#if defined(__x86_64__)
    if (level >= 3 && is_bf16) return avx512_bf16::kernels_for_bf16();
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
    // `first_items` has room for two numbers per sequence and two more.
    Work(const Attention& call, int64_t* first_items, long num_threads, long most_heads)
        : call(call), first_items_(first_items), first_partials_(first_items + call.step->num_seqs + 1),
          most_heads_(most_heads) {
        const long num_seqs = call.step->num_seqs;
        double total = 0;
        for (long i = 0; i < num_seqs; i++) total += work_of(i) * call.cache->num_kv_heads;
        most_work_ = total / most(1, ITEMS_PER_THREAD * num_threads);
        int64_t items = 0, partials = 0;
        for (long i = 0; i < num_seqs; i++) {
            const bool is_cut = num_threads > 1 && tokens_of(i) <= few_tokens() && most_heads_ * work_of(i) > most_work_;
            const long parts = is_cut ? all_parts_of(i) : 1;
            first_items_[i] = items;
            first_partials_[i] = partials;
            items += (parts > 1 ? parts : chunks_of(i)) * (call.cache->num_kv_heads / heads_of(i, parts));
            if (parts > 1) partials += parts * partial_floats(i) * call.cache->num_kv_heads;
        }
        first_items_[num_seqs] = items;
        first_partials_[num_seqs] = partials;
    }

    long num_items() const { return first_items_[call.step->num_seqs]; }

    // Floats that the states of all parts take.
    long all_partials() const { return first_partials_[call.step->num_seqs]; }

    // Parts that the sequence's keys are cut into; 1 where its tokens are cut into chunks.
    long parts_of(long sequence) const {
        return first_partials_[sequence + 1] == first_partials_[sequence] ? 1 : all_parts_of(sequence);
    }

    // Of one part.
    long partial_floats(long sequence) const { return state_floats(call, tokens_of(sequence) * group_of(call)); }

    // The parts of the same head have consecutive numbers.
    Item item(long number, long* part) const {
        Item item = {};
        item.sequence = sequence_of(number);
        const long within = number - first_items_[item.sequence], parts = parts_of(item.sequence);
        const long pieces = parts > 1 ? parts : chunks_of(item.sequence);
        item.num_heads = heads_of(item.sequence, parts);
        item.head = within / pieces * item.num_heads;
        item.token = call.step->query_start[item.sequence];
        item.num_tokens = tokens_of(item.sequence);
        item.position = call.step->seq_lens[item.sequence] - item.num_tokens;
        *part = parts > 1 ? within % parts : 0;
        if (parts == 1) take_tokens(item, within % pieces);
        item.first = first_key(item.position);
        item.end = item.position + item.num_tokens;
        if (parts > 1) take_keys(item, *part);
        return item;
    }

    // Where the state of a head's first part lies.
    long first_partial(const Item& item) const {
        return first_partials_[item.sequence] + item.head * parts_of(item.sequence) * partial_floats(item.sequence);
    }

    const Attention& call;

private:
    long tokens_of(long sequence) const {
        return call.step->query_start[sequence + 1] - call.step->query_start[sequence];
    }

    double work_of(long sequence) const {
        const long end = call.step->seq_lens[sequence];
        return double(tokens_of(sequence)) * (end - first_key(end - tokens_of(sequence)));
    }

    // KV heads of an item: several where there are enough items, and they have few rows.
    long heads_of(long sequence, long parts) const {
        const long rows = tokens_of(sequence) * group_of(call);
        long heads = most_heads_;
        while (heads > 1 && (call.cache->num_kv_heads % heads || heads * rows > CHUNK_ROWS ||
                             heads * work_of(sequence) > most_work_ * double(parts)))
            heads /= 2;
        return heads;
    }

    long chunk_tokens() const { return most(1, CHUNK_ROWS / group_of(call)); }

    long few_tokens() const { return least(FEW_TOKENS, chunk_tokens()); }

    long chunks_of(long sequence) const { return (tokens_of(sequence) + chunk_tokens() - 1) / chunk_tokens(); }

    long all_parts_of(long sequence) const {
        const long end = call.step->seq_lens[sequence];
        return (end - 1) / PART - first_key(end - tokens_of(sequence)) / PART + 1;
    }

    long first_key(long position) const { return call.window > 0 ? most(0, position + 1 - call.window) : 0; }

    long sequence_of(long number) const {
        long low = 0, high = call.step->num_seqs;
        while (high - low > 1) {
            const long middle = (low + high) / 2;
            (first_items_[middle] <= number ? low : high) = middle;
        }
        return low;
    }

    void take_tokens(Item& item, long chunk) const {
        const long skipped = chunk * chunk_tokens();
        item.token += skipped;
        item.position += skipped;
        item.num_tokens = least(chunk_tokens(), item.num_tokens - skipped);
    }

    static void take_keys(Item& item, long part) {
        const long begin = (item.first / PART + part) * PART;
        item.first = most(item.first, begin);
        item.end = least(item.end, begin + PART);
    }

    int64_t *first_items_, *first_partials_;
    const long most_heads_;
    double most_work_;  // of an item, if there are enough
};

// ---- doing it

// Tokens that a thread writes at once: with fewer, what lies side by side would be torn apart.
const long WRITE_TOKENS = 16;

struct Job {
    const Work& work;
    Kernels kernels;
    char* scratch;
    long scratch_bytes;
    float* partials;
    std::atomic<int32_t>* missing;  // parts of each sequence and head, where there are several
    std::atomic<long> next_thread, next_write, num_written, next_item;
};

void write_all(Job& job) {
    const Attention& call = job.work.call;
    if (call.new_keys == nullptr) return;  // another layer has written them
    const long num_tokens = call.step->num_tokens;
    for (long first; (first = job.next_write.fetch_add(WRITE_TOKENS)) < num_tokens;) {
        const long end = least(first + WRITE_TOKENS, num_tokens);
        job.kernels.write(call, first, end);
        job.num_written.fetch_add(end - first, std::memory_order_release);
    }
    // For those who are writing right now, not for threads that have not come yet, as a barrier would.
    while (job.num_written.load(std::memory_order_acquire) < num_tokens) sched_yield();
}

// The thread that does the last part of some heads joins all of them.
void run_part(Job& job, Item& item, long part, long num_parts, char* scratch) {
    const Work& work = job.work;
    const float* first = job.partials + work.first_partial(item);
    item.partial_stride = num_parts * work.partial_floats(item.sequence);
    item.partial = job.partials + work.first_partial(item) + part * work.partial_floats(item.sequence);
    job.kernels.attend(work.call, item, scratch);
    if (job.missing[item.sequence * work.call.cache->num_kv_heads + item.head].fetch_sub(1) > 1) return;
    for (long i = 0; i < item.num_heads; i++)
        job.kernels.join(work.call, one_head(item, i), first + i * item.partial_stride, num_parts, scratch);
}

void run_item(Job& job, long number, char* scratch) {
    long part;
    Item item = job.work.item(number, &part);
    const long num_parts = job.work.parts_of(item.sequence);
    if (num_parts > 1) return run_part(job, item, part, num_parts, scratch);
    job.kernels.attend(job.work.call, item, scratch);
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

// How many parts of each head are yet to come.
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

// Writes the step's new keys and values, unless they are null, then attends. Returns 0, or 1 without memory to work in.
EXPORT int64_t orcinus_attend(const Attention* call, const Team* team, int64_t level) {
    const long num_seqs = call->step->num_seqs, num_kv_heads = call->cache->num_kv_heads;
    char* items = item_arena.reserve(2 * (num_seqs + 1) * sizeof(int64_t));
    if (items == nullptr) return 1;
    const bool alone = team->parallel == nullptr || team->num_threads < 2 || multiplications(*call) < SERIAL_WORK;
    const Kernels kernels = kernels_for(level, *call->cache);
    const long most_heads = call->cache->is_interleaved ? kernels.most_heads : 1;
    const Work work(*call, reinterpret_cast<int64_t*>(items), alone ? 1 : team->num_threads, most_heads);
    const long per_thread = round_up(scratch_bytes(*call), 64), all_threads = per_thread * (alone ? 1 : team->num_threads);
    const long partial_bytes = round_up(work.all_partials() * sizeof(float), 64);
    const long counter_bytes = partial_bytes > 0 ? num_seqs * num_kv_heads * sizeof(int32_t) : 0;
    char* memory = work_arena.reserve(all_threads + partial_bytes + counter_bytes);
    if (memory == nullptr) return 1;
    Job job = {work, kernels, memory, per_thread, nullptr, nullptr,
               {0}, {0}, {0}, {0}};
    if (partial_bytes > 0) {
        job.partials = reinterpret_cast<float*>(memory + all_threads);
        job.missing = reinterpret_cast<std::atomic<int32_t>*>(memory + all_threads + partial_bytes);
        count_parts(work, job.missing);
    }
    run(job, *team, alone);
    return 0;
}
}
