// Attention over the paged cache for one instruction set. attention.cpp includes this file once per set, each time in
// a namespace of its own, with these macros:
//   NATIVE_BF16  1 where pairs of bfloat16 are multiplied in hardware; otherwise they are widened to float32 first
//   AVX512       1 where its intrinsics are there
//   TILE_ROWS, TILE_VECTORS  the accumulators that a product keeps in registers: rows times vectors of 16
//
// The order in which a number is summed depends on positions alone, whatever shares the batch, the block size, the chunk
// or the item: scores along the dimension, weighted values along the keys of a part, in tiles that begin at multiples of
// TILE, and parts in their order. What a row does not see changes no bit, even if it is not finite.

#include "vectors.inl"

// ---- what differs between kinds of numbers

INLINE u32x16 load_lanes(const uint32_t* p) { return bits_as<u32x16>(load(reinterpret_cast<const float*>(p))); }

// What products keep in registers: vectors of 16 lanes, or of the 8 that AVX2 has, which compilers do not split well.
#if AVX2 && !AVX512
typedef f32x8 Accumulator;
typedef u32x8 Bits;
typedef uint32_t StoredBits __attribute__((vector_size(32), aligned(4), may_alias));
#else
typedef f32x16 Accumulator;
typedef u32x16 Bits;
typedef uint32_t StoredBits __attribute__((vector_size(64), aligned(4), may_alias));
#endif
typedef float StoredAccumulator __attribute__((vector_size(sizeof(Accumulator)), aligned(4), may_alias));
const int ACCUMULATOR_LANES = sizeof(Accumulator) / 4, PIECES = WIDTH / ACCUMULATOR_LANES;

INLINE Bits load_bits(const uint32_t* p) { return *reinterpret_cast<const StoredBits*>(p); }
INLINE Accumulator load_accumulator(const float* p) { return *reinterpret_cast<const StoredAccumulator*>(p); }
INLINE void store_accumulator(float* p, Accumulator x) { *reinterpret_cast<StoredAccumulator*>(p) = x; }

// The cache has lanes of PER_LANE numbers; queries and weights have been packed into `Packed`.
struct Floats {
    typedef float Stored;
    typedef float Packed;
    static const int PER_LANE = 1;
    static const bool BY_UNITS = false;

    static INLINE Accumulator multiply(Accumulator sum, const float* x, const uint32_t* lanes) {
        return *x * bits_as<Accumulator>(load_bits(lanes)) + sum;
    }

    // 0 or, where a number is not finite, NaN.
    static INLINE f32x16 poison(const uint32_t* lanes) { return bits_as<f32x16>(load_lanes(lanes)) * 0.0f; }
};

struct WidenedPairs {
    typedef bf16 Stored;
    typedef float Packed;
    static const int PER_LANE = 2;
    static const bool BY_UNITS = false;

    static INLINE f32x16 first(u32x16 pairs) { return bits_as<f32x16>(pairs << 16); }
    static INLINE f32x16 second(u32x16 pairs) { return bits_as<f32x16>(pairs & 0xffff0000u); }

    static INLINE Accumulator multiply(Accumulator sum, const float* x, const uint32_t* lanes) {
        const Bits pairs = load_bits(lanes);
        const Accumulator half = x[0] * bits_as<Accumulator>(pairs << 16) + sum;
        return x[1] * bits_as<Accumulator>(pairs & 0xffff0000u) + half;
    }

    static INLINE f32x16 poison(const uint32_t* lanes) {
        const u32x16 pairs = load_lanes(lanes);
        return first(pairs) * 0.0f + second(pairs) * 0.0f;
    }
};

#if NATIVE_BF16
struct Pairs : WidenedPairs {
    typedef bf16 Packed;

    static INLINE f32x16 multiply(f32x16 sum, const bf16* x, const uint32_t* lanes) {
        int pair;
        __builtin_memcpy(&pair, x, sizeof pair);
        const __m512i a = _mm512_set1_epi32(pair), b = _mm512_loadu_si512(lanes);
        return reinterpret_cast<f32x16>(
            _mm512_dpbf16_ps(as_m512(sum), reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b)));
    }
};

#if MATRIX_UNITS
struct UnitPairs : Pairs {
    static const bool BY_UNITS = true;
};
#endif

INLINE void round_16(bf16* out, f32x16 x) {
    const __m256bh rounded = _mm512_cvtneps_pbh(as_m512(x));
    __builtin_memcpy(out, &rounded, sizeof rounded);
}
#else
INLINE void round_16(bf16* out, f32x16 x) {
    for (int i = 0; i < 16; i++) out[i] = round_to_bf16(x[i]);
}
#endif
INLINE void round_16(float* out, f32x16 x) { store(out, x); }

template <class T> INLINE void pack_row(T* out, const T* row, long dim, long padded) {
    __builtin_memcpy(out, row, dim * sizeof(T));
    __builtin_memset(static_cast<void*>(out + dim), 0, (padded - dim) * sizeof(T));
}

INLINE void pack_row(float* out, const bf16* row, long dim, long padded) {
    long d = 0;
    for (; d + 16 <= dim; d += 16) store(out + d, widen(row + d));
    for (; d < padded; d++) out[d] = d < dim ? to_float(row[d]) : 0.0f;
}

// ---- a tile of keys and values, in lanes

// `end` keys from `first` on are in place, and perhaps their neighbours in a group of 16 or in a lane, which may hold
// anything. Pointers to other groups lead to some group in place.
struct Tile {
    long first, end;
    const uint32_t *keys[GROUPS], *values[GROUPS];
    long key_stride, value_stride;
};

template <class A> INLINE void point(Tile& tile, long group, const uint32_t* keys, const uint32_t* values) {
    const long first = group == tile.first / WIDTH ? 0 : group;
    const long end = group == (tile.end - 1) / WIDTH ? GROUPS : group + 1;
    for (long i = first; i < end; i++) {
        tile.keys[i] = keys;
        tile.values[i] = values;
    }
}

// In the cache itself: a group is never in two blocks.
template <class A> INLINE void locate(const Attention& call, const Item& item, long at, Tile& tile) {
    const Cache& cache = *call.cache;
    tile.key_stride = call.step->block_size;
    tile.value_stride = cache.value_dim;
    for (long group = tile.first / WIDTH; group * WIDTH < tile.end; group++) {
        const long position = at + group * WIDTH, row = position % call.step->block_size;
        const long before = rows_before(call, item, position);
        point<A>(tile, group, static_cast<const uint32_t*>(cache.keys) + before * cache.key_dim / A::PER_LANE + row,
                 static_cast<const uint32_t*>(cache.values) + (before + row) * cache.value_dim / A::PER_LANE);
    }
}

// Copied from rows, with zeros for what no token of the item sees.
template <class A> void gather(const Attention& call, const Item& item, long at, uint32_t* memory, Tile& tile) {
    typedef typename A::Stored Stored;
    const Cache& cache = *call.cache;
    const long lanes = round_up(cache.key_dim, A::PER_LANE) / A::PER_LANE, padded = padded_values(call);
    const long count = lanes * TILE + TILE / A::PER_LANE * padded;
    __builtin_memset(memory, 0, count * sizeof(uint32_t));
    Stored *keys = reinterpret_cast<Stored*>(memory), *values = reinterpret_cast<Stored*>(memory + lanes * TILE);
    for (long j = tile.first; j < tile.end; j++) {
        const long row = rows_before(call, item, at + j) + (at + j) % call.step->block_size;
        const Stored* key = static_cast<const Stored*>(cache.keys) + row * cache.key_dim;
        const Stored* value = static_cast<const Stored*>(cache.values) + row * cache.value_dim;
        for (long d = 0; d < cache.key_dim; d++)
            keys[(d / A::PER_LANE * TILE + j) * A::PER_LANE + d % A::PER_LANE] = key[d];
        for (long d = 0; d < cache.value_dim; d++)
            values[(j / A::PER_LANE * padded + d) * A::PER_LANE + j % A::PER_LANE] = value[d];
    }
    tile.key_stride = TILE;
    tile.value_stride = padded;
    for (long group = 0; group < GROUPS; group++) {
        tile.keys[group] = memory + group * WIDTH;
        tile.values[group] = memory + lanes * TILE + group * WIDTH / A::PER_LANE * padded;
    }
}

// What the processor would not foresee: the memory that is read next, from its beginning.
INLINE void fetch(const void* memory) {
    for (long i = 0; i < FETCHED_LINES; i++) __builtin_prefetch(static_cast<const char*>(memory) + 64 * i);
}

template <class A> INLINE const uint32_t* value_lanes(const Tile& tile, long lane) {
    const long per_group = WIDTH / A::PER_LANE;
    return tile.values[lane / per_group] + lane % per_group * tile.value_stride;
}

template <class A> bool is_finite(const Tile& tile, long first_lane, long end_lane, long padded) {
    f32x16 poison = {};
    for (long lane = first_lane; lane < end_lane; lane++)
        for (long d = 0; d < padded; d += WIDTH) poison += A::poison(value_lanes<A>(tile, lane) + d);
    return sum_of(poison) == 0.0f;
}

// ---- products

// scores[R][16 * N] of keys in N groups.
template <class A, int R, int N>
INLINE void score_block(const typename A::Packed* query, long lanes, const uint32_t* const* keys, long stride,
                        float* scores) {
    const int M = N * PIECES;
    Accumulator s[R][M];
    const uint32_t* at[M];
    UNROLL
    for (int i = 0; i < M; i++) at[i] = keys[i / PIECES] + i % PIECES * ACCUMULATOR_LANES;
    UNROLL
    for (int r = 0; r < R; r++)
        UNROLL
        for (int i = 0; i < M; i++) s[r][i] = Accumulator{};
    for (long k = 0; k < lanes; k++)
        UNROLL
        for (int r = 0; r < R; r++)
            UNROLL
            for (int i = 0; i < M; i++)
                s[r][i] = A::multiply(s[r][i], query + (r * lanes + k) * A::PER_LANE, at[i] + k * stride);
    UNROLL
    for (int r = 0; r < R; r++)
        UNROLL
        for (int i = 0; i < M; i++) store_accumulator(scores + r * TILE + ACCUMULATOR_LANES * i, s[r][i]);
}

template <class A, int R> void score_rows(const typename A::Packed* query, long rows, long lanes, const Tile& tile,
                                          float* scores) {
    // What a step over the dimension reads of keys lies together: of few rows, those of as many keys as registers hold.
    const int N = R <= 2 && TILE_VECTORS < GROUPS ? 2 * TILE_VECTORS : TILE_VECTORS;
    const long step = N, first = tile.first / WIDTH / step * step;
    for (; rows >= R; rows -= R, query += R * lanes * A::PER_LANE, scores += R * TILE)
        for (long group = first; group * WIDTH < tile.end; group += step)
            score_block<A, R, N>(query, lanes, tile.keys + group, tile.key_stride, scores + group * WIDTH);
    if constexpr (R > 1)
        if (rows > 0) score_rows<A, R - 1>(query, rows, lanes, tile, scores);
}

// sums[R][16 * N] += weights[R][keys] * values[keys][16 * N], over some lanes of keys.
template <class A, int R, int N>
INLINE void sum_block(const typename A::Packed* weights, const Tile& tile, long first_lane, long end_lane, long d,
                      float* sums, long padded) {
    const long per_group = WIDTH / A::PER_LANE;
    const int M = N * PIECES;
    Accumulator s[R][M];
    UNROLL
    for (int r = 0; r < R; r++)
        UNROLL
        for (int i = 0; i < M; i++) s[r][i] = load_accumulator(sums + r * padded + ACCUMULATOR_LANES * i);
    for (long lane = first_lane; lane < end_lane;) {
        const uint32_t* values = value_lanes<A>(tile, lane) + d;
        const long end = least(end_lane, (lane / per_group + 1) * per_group);
        for (; lane < end; lane++, values += tile.value_stride)
            UNROLL
            for (int r = 0; r < R; r++)
                UNROLL
                for (int i = 0; i < M; i++)
                    s[r][i] = A::multiply(s[r][i], weights + r * TILE + lane * A::PER_LANE, values + ACCUMULATOR_LANES * i);
    }
    UNROLL
    for (int r = 0; r < R; r++)
        UNROLL
        for (int i = 0; i < M; i++) store_accumulator(sums + r * padded + ACCUMULATOR_LANES * i, s[r][i]);
}

template <class A, int R> void sum_rows(const typename A::Packed* weights, long rows, const Tile& tile, long first_lane,
                                        long end_lane, float* sums, long padded) {
    const int N = R <= 2 ? 2 * TILE_VECTORS : TILE_VECTORS;
    for (; rows >= R; rows -= R, weights += R * TILE, sums += R * padded) {
        long d = 0;
        for (; d + WIDTH * N <= padded; d += WIDTH * N)
            sum_block<A, R, N>(weights, tile, first_lane, end_lane, d, sums + d, padded);
        for (; d < padded; d += WIDTH)
            sum_block<A, R, 1>(weights, tile, first_lane, end_lane, d, sums + d, padded);
    }
    if constexpr (R > 1)
        if (rows > 0) sum_rows<A, R - 1>(weights, rows, tile, first_lane, end_lane, sums, padded);
}

// ---- what rows have seen so far: the largest score, the sum of the weights, and of the weighted values

struct State {
    float *max, *sum, *sums;

    INLINE State(float* memory, long rows) : max(memory), sum(memory + rows), sums(memory + 2 * rows) {}

    INLINE void clear(long rows, long padded) const {
        for (long r = 0; r < rows; r++) max[r] = -INFINITY;
        __builtin_memset(sum, 0, rows * (1 + padded) * sizeof(float));
    }
};

// Turns the scores of one row into weights, of which those outside [first, end) become 0. Returns what sums made with the
// former maximum have to be multiplied with.
template <class Packed>
INLINE float soften(float* scores, Packed* weights, long first, long end, const Attention& call, float& max, float& sum) {
    const bool partial = first > 0 || end < TILE;
    f32x16 s[GROUPS];
    f32x16 top = splat(max);
    UNROLL
    for (int i = 0; i < GROUPS; i++) {
        s[i] = load(scores + WIDTH * i) * call.scale;
        if (call.softcap > 0) s[i] = tanh_of(s[i] / call.softcap) * call.softcap;
        if (partial) {
            const f32x16 column = COLUMNS + 16.0f * static_cast<float>(i);
            s[i] = (column >= static_cast<float>(first)) & (column < static_cast<float>(end)) ? s[i] : splat(-INFINITY);
        }
        top = larger(s[i], top);
    }
    const float new_max = max_of(top);
    const float origin = new_max == -INFINITY ? 0.0f : new_max;
    f32x16 total = {};
    UNROLL
    for (int i = 0; i < GROUPS; i++) {
        const f32x16 weight = exp_of(s[i] - origin);
        total += weight;
        round_16(weights + WIDTH * i, weight);
    }
    const float factor = max == new_max ? 1.0f : exp_of(splat(max - origin))[0];
    max = new_max;
    sum = sum * factor + sum_of(total);
    return factor;
}

INLINE void scale_row(float* row, float factor, long padded) {
    if (factor == 1.0f) return;
    for (long d = 0; d < padded; d += WIDTH) store(row + d, load(row + d) * factor);
}

// Adds a part, of which some rows may have seen nothing, to those before it.
void add_part(const State& all, const State& part, long rows, long padded) {
    for (long r = 0; r < rows; r++) {
        if (part.sum[r] == 0.0f) continue;
        float *sums = all.sums + r * padded, *part_sums = part.sums + r * padded;
        if (all.sum[r] == 0.0f) {
            all.max[r] = part.max[r];
            all.sum[r] = part.sum[r];
            __builtin_memcpy(sums, part_sums, padded * sizeof(float));
            continue;
        }
        const float max = part.max[r] > all.max[r] ? part.max[r] : all.max[r];
        const float before = exp_of(splat(all.max[r] - max))[0], added = exp_of(splat(part.max[r] - max))[0];
        for (long d = 0; d < padded; d += WIDTH) store(sums + d, load(part_sums + d) * added + load(sums + d) * before);
        all.sum[r] = part.sum[r] * added + all.sum[r] * before;
        all.max[r] = max;
    }
}

// ---- items

// Matrix units have scores of UNIT_ROWS rows at a time and weights of WEIGHED_ROWS, and what these come to with values.
// They may read rows after the last one, which have room and mean nothing.
template <class A> struct Rows {
    typename A::Packed *query, *weights;
    float *scores, *products;
    long count, lanes, padded;

    Rows(const Attention& call, const Item& item, Scratch& scratch)
        : count(item.num_tokens * group_of(call)), lanes(round_up(call.cache->key_dim, A::PER_LANE) / A::PER_LANE),
          padded(padded_values(call)) {
        typedef typename A::Stored Stored;
        const long group = group_of(call), key_padded = lanes * A::PER_LANE;
        const long spare = A::BY_UNITS ? UNIT_ROWS : 0;
        query = scratch.take<typename A::Packed>((count + spare) * key_padded);
        weights = scratch.take<typename A::Packed>(((A::BY_UNITS ? WEIGHED_ROWS : count) + spare) * TILE);
        scores = scratch.take<float>((A::BY_UNITS ? UNIT_ROWS : count) * TILE);
        products = scratch.take<float>(spare * padded);
        for (long r = 0; r < count; r++) {
            const long token = item.token + r / group, head = item.head * group + r % group;
            const Stored* row = static_cast<const Stored*>(call.query) + token * call.query_token + head * call.query_head;
            pack_row(query + r * key_padded, row, call.cache->key_dim, key_padded);
        }
    }
};

// Tokens of an item that see any key of a tile, and the keys that all of these see.
struct Sight {
    long from, to, first, end;

    INLINE Sight(const Attention& call, const Item& item, long at, const Tile& tile) {
        const long last = call.window > 0 ? at + tile.end - 1 + call.window - item.position : item.num_tokens;
        from = most(0, at - item.position);
        to = least(last, item.num_tokens);
        first = first_of(call, item, at, to - 1);
        end = end_of(item, at, from);
    }

    static INLINE long first_of(const Attention& call, const Item& item, long at, long token) {
        return call.window > 0 ? item.position + token + 1 - call.window - at : 0;
    }

    static INLINE long end_of(const Item& item, long at, long token) { return item.position + token + 1 - at; }
};

// Whether the values that only some of the tokens see are finite: weights of 0 leave those out, and nothing else.
template <class A> INLINE bool sees_finite_values(const Tile& tile, const Sight& sight, long padded) {
    const long per_lane = A::PER_LANE, first = tile.first / per_lane, end = (tile.end + per_lane - 1) / per_lane;
    const long first_all = least(end, (most(0, sight.first) + per_lane - 1) / per_lane);
    const long end_all = most(first_all, least(end, sight.end / per_lane));
    return is_finite<A>(tile, first, first_all, padded) && is_finite<A>(tile, end_all, end, padded);
}

template <class A> INLINE void fetch_next_keys(const Attention& call, const Item& item, long at) {
    if (at + TILE >= item.end || !call.cache->is_interleaved) return;
    Tile next = {};
    next.end = least(TILE, item.end - at - TILE);
    locate<A>(call, item, at + TILE, next);
    fetch(next.keys[0]);
}

// One row at a time, and of lanes that it sees in part only that: for values of which some are not finite.
template <class A>
void sum_seen(const Attention& call, const Item& item, const Rows<A>& rows, long row, const Tile& tile, long at,
              uint32_t* memory, float* sums) {
    typedef typename A::Stored Stored;
    const long token = row / group_of(call), per_lane = A::PER_LANE;
    const long first = most(tile.first, Sight::first_of(call, item, at, token));
    const long end = least(tile.end, Sight::end_of(item, at, token));
    Tile seen = tile;
    seen.value_stride = rows.padded;
    for (long group = 0; group < GROUPS; group++)
        seen.values[group] = memory + group * WIDTH / per_lane * rows.padded;
    for (long lane = first / per_lane; lane * per_lane < end; lane++) {
        uint32_t* to = memory + lane * rows.padded;
        __builtin_memcpy(to, value_lanes<A>(tile, lane), rows.padded * sizeof(uint32_t));
        for (long d = 0; d < rows.padded * per_lane; d++) {
            const long key = lane * per_lane + d % per_lane;
            if (key < first || key >= end) reinterpret_cast<Stored*>(to)[d] = Stored{};
        }
    }
    sum_rows<A, 1>(rows.weights + row * TILE, 1, seen, first / per_lane, (end + per_lane - 1) / per_lane, sums,
                   rows.padded);
}

// A tile of an item, the rows that see any of it, and their weights.
template <class A> struct TileWork {
    Tile tile;
    Sight sight;
    long begin, end;

    INLINE TileWork(const Attention& call, const Item& item, long at) : tile(tile_at(item, at)), sight(call, item, at, tile) {
        begin = sight.from * group_of(call);
        end = sight.to * group_of(call);
    }

    static INLINE Tile tile_at(const Item& item, long at) {
        Tile tile = {};
        tile.first = most(0, item.first - at);
        tile.end = least(TILE, item.end - at);
        return tile;
    }

    INLINE bool is_empty() const { return begin >= end; }

    INLINE void find(const Attention& call, const Item& item, long at, uint32_t* memory) {
        if (call.cache->is_interleaved)
            locate<A>(call, item, at, tile);
        else
            gather<A>(call, item, at, memory, tile);
    }

    // Turns what the rows make of the keys into weights of the values.
    INLINE void weigh(const Attention& call, const Item& item, const Rows<A>& rows, long at, const State& state) const {
        const long padded = rows.padded, lanes = rows.lanes * A::PER_LANE;
        score_rows<A, TILE_ROWS>(rows.query + begin * lanes, end - begin, rows.lanes, tile, rows.scores + begin * TILE);
        for (long r = begin; r < end; r++) {
            const long token = r / group_of(call);
            const float factor =
                soften(rows.scores + r * TILE, rows.weights + r * TILE, Sight::first_of(call, item, at, token),
                       Sight::end_of(item, at, token), call, state.max[r], state.sum[r]);
            scale_row(state.sums + r * padded, factor, padded);
        }
    }

    INLINE void sum(const Attention& call, const Item& item, const Rows<A>& rows, long at, uint32_t* memory,
                    const State& state) const {
        const long padded = rows.padded, per_lane = A::PER_LANE;
        const long first_lane = tile.first / per_lane, end_lane = (tile.end + per_lane - 1) / per_lane;
        if (sees_finite_values<A>(tile, sight, padded))
            return sum_rows<A, TILE_ROWS>(rows.weights + begin * TILE, end - begin, tile, first_lane, end_lane,
                                          state.sums + begin * padded, padded);
        uint32_t* copy = memory + TILE * (rows.lanes + padded);
        for (long r = begin; r < end; r++)
            sum_seen(call, item, rows, r, tile, at, copy, state.sums + r * padded);
    }
};

template <class A>
void add_tile(const Attention& call, const Item& item, const Rows<A>& rows, long at, uint32_t* memory,
              const State& state) {
    TileWork<A> work(call, item, at);
    if (work.is_empty()) return;
    work.find(call, item, at, memory);
    fetch(work.tile.values[0]);
    work.weigh(call, item, rows, at, state);
    fetch_next_keys<A>(call, item, at);
    work.sum(call, item, rows, at, memory, state);
}

#if NATIVE_BF16 && MATRIX_UNITS
#include "attention_units.inl"
#endif

template <class A>
void attend_part(const Attention& call, const Item& item, const Rows<A>& rows, long begin, uint32_t* memory,
                 const State& state) {
    state.clear(rows.count, rows.padded);
    const long end = least(begin + PART, item.end);
    for (long at = most(begin, item.first / TILE * TILE); at < end; at += TILE)
#if NATIVE_BF16 && MATRIX_UNITS
        if constexpr (A::BY_UNITS)
            add_tile_by_units(call, item, rows, at, memory, state);
        else
#endif
            add_tile(call, item, rows, at, memory, state);
}

template <class Stored> INLINE void write_row(Stored* out, const float* sums, float factor, long dim) {
    long d = 0;
    for (; d + 16 <= dim; d += 16) round_16(out + d, load(sums + d) * factor + 0.0f);  // there is no -0
    if (d == dim) return;
    Stored last[16];
    round_16(last, load(sums + d) * factor + 0.0f);
    __builtin_memcpy(out + d, last, (dim - d) * sizeof(Stored));
}

// A sink is one more key, without a value, behind all others.
template <class Stored> void write_out(const Attention& call, const Item& item, const State& state, long padded) {
    const long group = group_of(call);
    for (long r = 0; r < item.num_tokens * group; r++) {
        const long token = item.token + r / group, head = item.head * group + r % group;
        float sum = state.sum[r], kept = 1.0f;
        if (call.sinks) {
            const float sink = call.sinks[head], max = sink > state.max[r] ? sink : state.max[r];
            kept = exp_of(splat(state.max[r] - max))[0];
            sum = sum * kept + exp_of(splat(sink - max))[0];
        }
        Stored* out = static_cast<Stored*>(call.out) + token * call.out_token + head * call.cache->value_dim;
        write_row(out, state.sums + r * padded, kept / sum, call.cache->value_dim);
    }
}

// One of several heads of an item.
template <class A> struct HeadWork {
    Item item;
    Rows<A> rows;
    State all, part;

    HeadWork(const Attention& call, const Item& whole, long index, Scratch& scratch)
        : item(one_head(whole, index)), rows(call, item, scratch), all(state(call, item.partial, scratch), rows.count),
          part(state(call, nullptr, scratch), rows.count) {}

    float* state(const Attention& call, float* partial, Scratch& scratch) const {
        return partial ? partial : scratch.take<float>(state_floats(call, rows.count));
    }
};

// First the keys of a tile, head by head, then the values: they lie side by side in a block, and are read in long runs.
template <class A> void attend_heads(const Attention& call, const Item& item, char* memory) {
    static_assert(sizeof(HeadWork<A>) <= HEAD_BYTES / 2, "");
    Scratch scratch(memory);
    HeadWork<A>* heads = scratch.take<HeadWork<A>>(item.num_heads);
    for (long i = 0; i < item.num_heads; i++) new (&heads[i]) HeadWork<A>(call, item, i, scratch);
    uint32_t* copy = scratch.take<uint32_t>(TILE * (heads->rows.lanes + 2 * heads->rows.padded));
    const long first = item.first / PART * PART;  // one part alone, if its state goes to item.partial
    for (long begin = first; begin < item.end; begin += PART) {
        const auto each = [&](const auto& body) {
            for (long i = 0; i < item.num_heads; i++) body(heads[i], begin == first ? heads[i].all : heads[i].part);
        };
        const auto each_at = [&](long at, const auto& body) {
            each([&](const HeadWork<A>& head, const State& state) {
                TileWork<A> work(call, head.item, at);
                if (work.is_empty()) return;
                work.find(call, head.item, at, nullptr);
                body(work, head, state);
            });
        };
        each([&](const HeadWork<A>& head, const State& state) { state.clear(head.rows.count, head.rows.padded); });
        for (long at = most(begin, item.first / TILE * TILE); at < least(begin + PART, item.end); at += TILE) {
            each_at(at, [&](const TileWork<A>& work, const HeadWork<A>& head, const State& state) {
                work.weigh(call, head.item, head.rows, at, state);
            });
            each_at(at, [&](const TileWork<A>& work, const HeadWork<A>& head, const State& state) {
                work.sum(call, head.item, head.rows, at, copy, state);
            });
        }
        if (begin > first)
            each([&](const HeadWork<A>& head, const State& part) {
                add_part(head.all, part, head.rows.count, head.rows.padded);
            });
    }
    for (long i = 0; i < item.num_heads && item.partial == nullptr; i++)
        write_out<typename A::Stored>(call, heads[i].item, heads[i].all, heads[i].rows.padded);
}

template <class A> void attend(const Attention& call, const Item& item, char* memory) {
    if constexpr (!A::BY_UNITS)
        if (item.num_heads > 1) return attend_heads<A>(call, item, memory);
    Scratch scratch(memory);
    const Rows<A> rows(call, item, scratch);
    const long floats = state_floats(call, rows.count), first = item.first / PART * PART;
    uint32_t* tile = scratch.take<uint32_t>(TILE * (rows.lanes + 2 * rows.padded));
    if (item.partial != nullptr)
        return attend_part(call, item, rows, first, tile, State(item.partial, rows.count));
    const State all(scratch.take<float>(floats), rows.count), part(scratch.take<float>(floats), rows.count);
    attend_part(call, item, rows, first, tile, all);
    for (long begin = first + PART; begin < item.end; begin += PART) {
        attend_part(call, item, rows, begin, tile, part);
        add_part(all, part, rows.count, rows.padded);
    }
    write_out<typename A::Stored>(call, item, all, rows.padded);
}

#if NATIVE_BF16 && MATRIX_UNITS
void attend_by_units(const Attention& call, const Item& item, char* memory) {
    const Units units(item.num_tokens * group_of(call));
    attend<UnitPairs>(call, item, memory);
}
#endif

// Does what `attend` does with parts that have been attended to one by one.
template <class A> void join(const Attention& call, const Item& item, const float* partials, long num_parts, char* memory) {
    const long rows = item.num_tokens * group_of(call), padded = padded_values(call), floats = state_floats(call, rows);
    Scratch scratch(memory);
    float* first = scratch.take<float>(floats);
    __builtin_memcpy(first, partials, floats * sizeof(float));
    const State all(first, rows);
    for (long p = 1; p < num_parts; p++)
        add_part(all, State(const_cast<float*>(partials) + p * floats, rows), rows, padded);
    write_out<typename A::Stored>(call, item, all, padded);
}
