// Recurrent layers: causal convolutions, the gated delta rule, and the state spaces of Mamba-2 and Mamba.
//
// One call serves one layer of one step: each sequence's state is read in its slot, taken on token by token, and written back.
// Drafts are a sequence of their own, which goes on from the one before it: so that one's state is kept, too.
// Every token is computed by the recurrent rule, in order, by the same code. So it has the same bits alone and in any chunk,
// whatever sequences share the step and however the work is shared out. Sums are in float32.
//
// Gated delta rule: https://arxiv.org/abs/2412.06464; with decays by channel, https://arxiv.org/abs/2510.26692.
// Mamba-2: https://arxiv.org/abs/2405.21060. Mamba: https://arxiv.org/abs/2312.00752.

#include "structures.h"

namespace {

// Tokens of a sequence whose gates are made ready together.
const long TILE = 16;
// Bounds of what an item has memory for; engine/recurrent/native_scans.py holds callers to them.
const long MOST_TAPS = 8, MOST_KEYS = 512, MOST_STATES = 256;
// Channels of an item of a convolution, at most; fewer if there would not be as many items for each thread.
const long CONVOLVED = 512, ITEMS_PER_THREAD = 4;
// Channels of an item of a selective scan.
const long SCANNED = 32;
// Rows of a head's state in an item of Mamba-2.
const long HEAD_ROWS = 32;
// A part of a state of the delta rule that stays in the nearest cache.
const long PART_BYTES = 32 * 1024;
// Tokens of a sequence for which that part is not copied.
const long FEW_TOKENS = 2;
// Below this many multiplications, waking the other threads costs more than they save.
const double SERIAL_WORK = 100e3;

// The tokens of a sequence, and of the drafts behind it, if there are any: else `drafts_end` is `end`.
struct Segment {
    long first, end, slot, drafts_end, drafts_slot;
    bool is_new;

    bool has_drafts() const { return drafts_end > end; }
};

// Whether what computes the sequence before this one computes it, too.
INLINE bool goes_on(const Segments& segments, long sequence) {
    return sequence < segments.num_seqs && segments.slots[sequence] < 0;
}

INLINE Segment segment_of(const Segments& segments, long sequence) {
    const long end = segments.query_start[sequence + 1];
    const bool has_drafts = goes_on(segments, sequence + 1);
    return Segment{segments.query_start[sequence],
                   end,
                   segments.slots[sequence],
                   has_drafts ? segments.query_start[sequence + 2] : end,
                   has_drafts ? -1 - segments.slots[sequence + 1] : 0,
                   segments.is_new[sequence] != 0};
}

// What an item of a scan computes: a part of a head's state, over all tokens of a sequence.
struct Place {
    long sequence, head, part;
};

INLINE Place place_of(long number, long heads, long parts) {
    return Place{number / (heads * parts), number / parts % heads, number % parts};
}

template <class State> INLINE State* in_slot(State* states, long slot_bytes, long slot) {
    return reinterpret_cast<State*>(reinterpret_cast<char*>(states) + slot * slot_bytes);
}

INLINE long parts_of(long count, long each) { return (count + each - 1) / each; }

INLINE long num_tokens_of(const Segments& segments) { return segments.query_start[segments.num_seqs]; }

struct Kernels {
    void (*convolve)(const Convolution&, long first, long end);
    void (*delta_rule)(const DeltaRule&, const Place&, const Place* next);
    void (*mamba2)(const Mamba2&, const Place&);
    void (*selective)(const SelectiveScan&, const Place&);
    long (*part_columns)(long key_dim);  // of a part of the delta rule
};

// ---- the instruction sets

#define AVX512 0
namespace generic {
#define BLOCK_VECTORS 1
#define BLOCK_ROWS 4
#include "recurrent.inl"
#undef BLOCK_VECTORS
#undef BLOCK_ROWS
}  // namespace generic

#if defined(__x86_64__)

#define AVX2 1
BEGIN_TARGET("avx2,fma")
namespace avx2 {
#define BLOCK_VECTORS 1
#define BLOCK_ROWS 4
#include "recurrent.inl"
#undef BLOCK_VECTORS
#undef BLOCK_ROWS
}  // namespace avx2
END_TARGET
#undef AVX512

#define AVX512 1
BEGIN_TARGET("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq")
namespace avx512 {
#define BLOCK_VECTORS 4
#define BLOCK_ROWS 16
#include "recurrent.inl"
}  // namespace avx512
END_TARGET

#endif

Kernels kernels_for(int64_t level, bool is_bf16) {
#if defined(__x86_64__)
    if (level >= 2) return avx512::kernels_for(is_bf16);
    if (level == 1) return avx2::kernels_for(is_bf16);
#endif
    (void)level;
    return generic::kernels_for(is_bf16);
}

// The team, or nobody where that is faster.
Team helpers(const Team& team, double multiplications) {
    return multiplications < SERIAL_WORK ? Team{nullptr, 1} : team;
}

}  // namespace

extern "C" {

EXPORT void orcinus_convolve(const Convolution* call, const Team* team, int64_t level) {
    const Convolution& c = *call;
    const Kernels kernels = kernels_for(level, c.is_bf16 != 0);
    const double work = double(num_tokens_of(*c.segments)) * c.channels * (c.taps + (c.has_silu ? 16 : 0));
    const Team threads = helpers(*team, work);
    const long fair = round_up(parts_of(c.channels, ITEMS_PER_THREAD * most(1, threads.num_threads)), 64);
    const long each = threads.num_threads > 1 ? least(CONVOLVED, fair) : CONVOLVED;
    parallel_shares(threads, parts_of(c.channels, each),
                    [&](long part, long) { kernels.convolve(c, part * each, least(part * each + each, c.channels)); });
}

EXPORT void orcinus_delta_rule(const DeltaRule* call, const Team* team, int64_t level) {
    const DeltaRule& d = *call;
    const Kernels kernels = kernels_for(level, d.is_bf16 != 0);
    const long parts = parts_of(d.value_dim, kernels.part_columns(d.key_dim)), num_seqs = d.segments->num_seqs;
    const double work = double(num_tokens_of(*d.segments)) * d.heads * d.key_dim * d.value_dim * 4;
    parallel_shares(helpers(*team, work), num_seqs * d.heads * parts, [&](long number, long next) {
        const Place following = place_of(next, d.heads, parts);
        const bool has_next = next >= 0 && !goes_on(*d.segments, following.sequence);
        kernels.delta_rule(d, place_of(number, d.heads, parts), has_next ? &following : nullptr);
    });
}

EXPORT void orcinus_mamba2(const Mamba2* call, const Team* team, int64_t level) {
    const Mamba2& m = *call;
    const Kernels kernels = kernels_for(level, m.is_bf16 != 0);
    const long parts = parts_of(m.head_dim, HEAD_ROWS);
    const double work = double(num_tokens_of(*m.segments)) * m.heads * m.head_dim * m.state_dim * 3;
    parallel_shares(helpers(*team, work), m.segments->num_seqs * m.heads * parts,
                    [&](long number, long) { kernels.mamba2(m, place_of(number, m.heads, parts)); });
}

EXPORT void orcinus_selective_scan(const SelectiveScan* call, const Team* team, int64_t level) {
    const SelectiveScan& s = *call;
    const Kernels kernels = kernels_for(level, s.is_bf16 != 0);
    const long parts = parts_of(s.channels, SCANNED);
    const double work = double(num_tokens_of(*s.segments)) * s.channels * s.state_dim * 20;
    parallel_shares(helpers(*team, work), s.segments->num_seqs * parts,
                    [&](long number, long) { kernels.selective(s, place_of(number, 1, parts)); });
}
}
