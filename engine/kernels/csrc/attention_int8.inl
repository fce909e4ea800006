// Attention over a cache in 8 bits for one instruction set: attention.cpp includes this file behind attention.inl, with
// these macros besides that one's:
//   VNNI         1 where four bytes are multiplied and summed at once; otherwise they are widened to 16 bits
//   AVX2         1 where its intrinsics are there
//   BYTE_ROWS    query rows that a product of bytes keeps in registers
//
// Queries and weights are numbers of 16 bits with a scale for each row, so that products are whole numbers: their sums are
// exact, in any order, by vectors or by matrix units. What is left to floating point is done for a row and a tile of
// TILE keys by the same functions, whatever shares the step. `Cache` of common.h says what is stored.

#include "int8_products.inl"

// Bytes of a block of one head: those of its tokens, then a scale in bfloat16 for each of them.
INLINE long block_bytes(long block_size, long dim) { return block_size * (dim + 2); }

// ---- a tile of keys and values in bytes

// As `Tile`, with the scales of its keys and values; strides count bytes.
struct ByteTile {
    long first, end;
    const uint8_t *keys[GROUPS], *values[GROUPS];
    const bf16 *key_scales[GROUPS], *value_scales[GROUPS];
    long key_stride, value_stride;
};

INLINE ByteTile byte_tile(const Attention& call, const Item& item, long at) {
    const Cache& cache = *call.cache;
    const long block_size = call.step->block_size, key_dim = cache.key_dim, value_dim = cache.value_dim;
    ByteTile tile = {};
    tile.first = most(0, item.first - at);
    tile.end = least(TILE, item.end - at);
    tile.key_stride = 4 * block_size;
    tile.value_stride = 4 * value_dim;
    const long first_group = tile.first / WIDTH, last_group = (tile.end - 1) / WIDTH;
    for (long i = 0; i < GROUPS; i++) {
        const long position = at + most(first_group, least(i, last_group)) * WIDTH, row = position % block_size;
        const long before = rows_before(call, item, position);
        const uint8_t* keys = static_cast<const uint8_t*>(cache.keys) + before * (key_dim + 2);
        const uint8_t* values = static_cast<const uint8_t*>(cache.values) + before * (value_dim + 2);
        tile.keys[i] = keys + 4 * row;
        tile.values[i] = values + row * value_dim;
        tile.key_scales[i] = reinterpret_cast<const bf16*>(keys + block_size * key_dim) + row;
        tile.value_scales[i] = reinterpret_cast<const bf16*>(values + block_size * value_dim) + row;
    }
    return tile;
}

INLINE u32x16 load_bytes(const uint8_t* p) {
    u32x16 x;
    __builtin_memcpy(&x, p, sizeof x);
    return x;
}

// scores[R][16 * N] of keys in N groups.
template <int R, int N>
INLINE void score_bytes(const uint8_t* query, long dim, const uint8_t* const* keys, long stride, int32_t* scores) {
    Sums<Keys> s[R][N];
    const uint8_t* at[N];
    UNROLL
    for (int i = 0; i < N; i++) at[i] = keys[i];
    for (long k = 0; k < dim / 4; k++) {
        Keys::Lane lanes[N];
        UNROLL
        for (int i = 0; i < N; i++) lanes[i] = Keys::open(load_bytes(at[i] + k * stride));
        UNROLL
        for (int r = 0; r < R; r++)
            UNROLL
            for (int i = 0; i < N; i++) s[r][i].add(lanes[i], query + 2 * r * dim, k, dim);
    }
    UNROLL
    for (int r = 0; r < R; r++)
        UNROLL
        for (int i = 0; i < N; i++) store_integers(scores + r * TILE + WIDTH * i, s[r][i].total());
}

template <int R> void score_byte_rows(const uint8_t* query, long rows, long dim, const ByteTile& tile, int32_t* scores) {
    const long step = TILE_VECTORS, first = tile.first / WIDTH / step * step;
    for (; rows >= R; rows -= R, query += 2 * R * dim, scores += R * TILE)
        for (long group = first; group * WIDTH < tile.end; group += step)
            score_bytes<R, TILE_VECTORS>(query, dim, tile.keys + group, tile.key_stride, scores + group * WIDTH);
    if constexpr (R > 1)
        if (rows > 0) score_byte_rows<R - 1>(query, rows, dim, tile, scores);
}

// products[R][16 * N] of weights and values.
template <int R, int N>
INLINE void weigh_bytes(const uint8_t* weights, const ByteTile& tile, long d, int32_t* products, long dim) {
    Sums<Values> s[R][N];
    for (long group = tile.first / WIDTH; group * WIDTH < tile.end; group++) {
        const uint8_t* values = tile.values[group] + 4 * d;
        for (long k = group * WIDTH / 4; k < (group + 1) * WIDTH / 4; k++, values += tile.value_stride) {
            Values::Lane lanes[N];
            UNROLL
            for (int i = 0; i < N; i++) lanes[i] = Values::open(load_bytes(values + 64 * i));
            UNROLL
            for (int r = 0; r < R; r++)
                UNROLL
                for (int i = 0; i < N; i++) s[r][i].add(lanes[i], weights + 2 * r * TILE, k, TILE);
        }
    }
    UNROLL
    for (int r = 0; r < R; r++)
        UNROLL
        for (int i = 0; i < N; i++) store_integers(products + r * dim + d + WIDTH * i, s[r][i].total());
}

INLINE int32_t largest_of(i32x16 x) {
    typedef int32_t i32x8 __attribute__((vector_size(32)));
    typedef int32_t i32x4 __attribute__((vector_size(16)));
    const Halves<i32x16, i32x8> h16(x);
    const Halves<i32x8, i32x4> h8(h16.low > h16.high ? h16.low : h16.high);
    const i32x4 v = h8.low > h8.high ? h8.low : h8.high;
    const int32_t a = v[0] > v[2] ? v[0] : v[2], b = v[1] > v[3] ? v[1] : v[3];
    return a > b ? a : b;
}

// ---- what rows have seen so far

// Turns products with keys into weights of 16 bits, which scales of values are part of. `scale` is the row's. Returns what
// sums made with the former maximum have to be multiplied with. One function for all, so that it always rounds alike.
__attribute__((noinline)) float soften_bytes(const Attention& call, const ByteTile& tile, const int32_t* scores, int32_t zero,
                                             float scale, long first, long end, uint8_t* weights, float& weight_scale,
                                             float& max, float& sum) {
    const bool partial = first > 0 || end < TILE;
    f32x16 s[GROUPS], values[GROUPS];
    f32x16 top = splat(max);
    UNROLL
    for (int i = 0; i < GROUPS; i++) {
        // Both may have wrapped around; their difference has not.
        const u32x16 score = reinterpret_cast<u32x16>(load_integers(scores + WIDTH * i)) - static_cast<uint32_t>(zero);
        s[i] = to_floats(reinterpret_cast<i32x16>(score)) * (widen(tile.key_scales[i]) * scale);
        values[i] = widen(tile.value_scales[i]);
        if (call.softcap > 0) s[i] = tanh_of(s[i] / call.softcap) * call.softcap;
        if (partial) {
            const f32x16 column = COLUMNS + 16.0f * static_cast<float>(i);
            const auto is_seen = (column >= static_cast<float>(first)) & (column < static_cast<float>(end));
            s[i] = is_seen ? s[i] : splat(-INFINITY);
            values[i] = is_seen ? values[i] : f32x16{};
        }
        top = larger(s[i], top);
    }
    const float new_max = max_of(top);
    const float origin = new_max == -INFINITY ? 0.0f : new_max;
    f32x16 total = {};
    i32x16 most = {};
    UNROLL
    for (int i = 0; i < GROUPS; i++) {
        const f32x16 weight = exp_of(s[i] - origin);
        total += weight;
        values[i] = values[i] * weight;
        const i32x16 bits = reinterpret_cast<i32x16>(values[i]);
        most = bits > most ? bits : most;
    }
    // As integers, numbers that are not negative have the same order, and a scale that is NaN is the largest. Where a weight is
    // NaN, so is the row's sum.
    const float heaviest = bits_as<float>(largest_of(most));
    weight_scale = heaviest / LARGEST_WEIGHT;
    const float inverse = heaviest < SMALLEST ? 0.0f : LARGEST_WEIGHT / heaviest;
    u32x16 integers[GROUPS];
    UNROLL
    for (int i = 0; i < GROUPS; i++) integers[i] = nearest_integers(values[i] * inverse) & 0x7fffu;
    store_words(integers, TILE, false, weights);
    const float factor = max == new_max ? 1.0f : exp_of(splat(max - origin))[0];
    max = new_max;
    sum = sum * factor + sum_of(total);
    return factor;
}

// Adds a row's products with values; where units made them, of high and of low bytes. One function for all, too: only where
// operations are fused by their name there are two.
template <bool IS_SPLIT>
INLINE void add_products(float* sums, float factor, const int32_t* products, const int32_t* lows, float scale, long dim) {
    for (long d = 0; d < dim; d += WIDTH) {
        const i32x16 whole = load_integers(products + d);
        const i32x16 sum = IS_SPLIT ? together(whole, load_integers(lows + d)) : whole;
        store(sums + d, multiply_add(to_floats(sum), splat(scale), load(sums + d) * factor));
    }
}

__attribute__((noinline)) void add_whole_products(float* sums, float factor, const int32_t* products, float scale, long dim) {
    add_products<false>(sums, factor, products, nullptr, scale, dim);
}

// ---- items

struct ByteRows {
    uint8_t *query, *weights;
    float *scales, *weight_scales, *factors;
    int32_t *zeros, *scores, *products;
    int32_t *highs, *lows;  // sums of high and of low bytes by units, of UNIT_ROWS rows
    long count, key_dim, value_dim;

    template <class Stored>
    ByteRows(const Attention& call, const Item& item, Scratch& scratch, const Stored*)
        : count(item.num_tokens * group_of(call)), key_dim(call.cache->key_dim), value_dim(call.cache->value_dim) {
        const long group = group_of(call), room = count + UNIT_ROWS;
        query = scratch.take<uint8_t>(2 * room * key_dim);
        weights = scratch.take<uint8_t>(2 * room * TILE);
        scales = scratch.take<float>(count);
        weight_scales = scratch.take<float>(count);
        factors = scratch.take<float>(count);
        zeros = scratch.take<int32_t>(count);
        scores = scratch.take<int32_t>(count * TILE);
        products = scratch.take<int32_t>(BYTE_ROWS * value_dim);
        highs = scratch.take<int32_t>(UNIT_ROWS * most(TILE, value_dim));
        lows = scratch.take<int32_t>(UNIT_ROWS * most(TILE, value_dim));
        for (long r = 0; r < count; r++) {
            const long token = item.token + r / group, head = item.head * group + r % group;
            take_row(call, static_cast<const Stored*>(call.query) + token * call.query_token + head * call.query_head, r);
        }
    }

    template <class Stored> INLINE void take_row(const Attention& call, const Stored* row, long r) const {
        float numbers[MOST_BYTES_DIM];
        u32x16 integers[MOST_BYTES_DIM / 16];
        for (long d = 0; d < key_dim; d += 16) store(numbers + d, load_as_float(row + d));
        rotate(numbers, key_dim);
        const float most = magnitude_of(numbers, key_dim), inverse = most >= SMALLEST ? LARGEST_QUERY / most : 0.0f;
        u32x16 sum = {};
        for (long d = 0; d < key_dim; d += 16) {
            const f32x16 x = load(numbers + d);
            integers[d / 16] = nearest_integers((x == x ? x : f32x16{}) * inverse) - bits_as<uint32_t>(INTEGER_SHIFT);
            sum += integers[d / 16];
        }
        uint32_t zero = 0;
        for (int i = 0; i < 16; i++) zero += sum[i];
        zeros[r] = static_cast<int32_t>(zero * KEY_ZERO);
        scales[r] = most / LARGEST_QUERY * call.scale / static_cast<float>(rotated_together(key_dim));
        store_words(integers, key_dim, true, query + 2 * r * key_dim);
    }
};

INLINE void soften_row(const Attention& call, const Item& item, const ByteRows& rows, const ByteTile& tile, long at, long r,
                       const int32_t* scores, const State& state) {
    const long token = r / group_of(call);
    rows.factors[r] = soften_bytes(call, tile, scores, rows.zeros[r], rows.scales[r], Sight::first_of(call, item, at, token),
                                   Sight::end_of(item, at, token), rows.weights + 2 * r * TILE, rows.weight_scales[r],
                                   state.max[r], state.sum[r]);
}

template <int R>
void add_byte_rows(const ByteRows& rows, long r, long end, const ByteTile& tile, const State& state) {
    const long dim = rows.value_dim;
    const int N = R <= 2 ? 2 * TILE_VECTORS : TILE_VECTORS;
    for (; r + R <= end; r += R) {
        long d = 0;
        for (; d + WIDTH * N <= dim; d += WIDTH * N)
            weigh_bytes<R, N>(rows.weights + 2 * r * TILE, tile, d, rows.products, dim);
        for (; d < dim; d += WIDTH) weigh_bytes<R, 1>(rows.weights + 2 * r * TILE, tile, d, rows.products, dim);
        for (long i = 0; i < R; i++)
            add_whole_products(state.sums + (r + i) * dim, rows.factors[r + i], rows.products + i * dim,
                               rows.weight_scales[r + i], dim);
    }
    if constexpr (R > 1)
        if (r < end) add_byte_rows<R - 1>(rows, r, end, tile, state);
}

INLINE void fetch_next_bytes(const Attention& call, const Item& item, long at) {
    if (at + TILE >= item.end) return;
    fetch(byte_tile(call, item, at + TILE).keys[0]);
}

#if NATIVE_BF16 && MATRIX_UNITS
#include "attention_int8_units.inl"
#endif

template <bool BY_UNITS>
void add_byte_tile(const Attention& call, const Item& item, const ByteRows& rows, long at, const State& state) {
    const ByteTile tile = byte_tile(call, item, at);
    const long group = group_of(call);
    const long last = call.window > 0 ? at + tile.end - 1 + call.window - item.position : item.num_tokens;
    const long begin = most(0, at - item.position) * group, end = least(last, item.num_tokens) * group;
    if (begin >= end) return;
#if NATIVE_BF16 && MATRIX_UNITS
    if constexpr (BY_UNITS) return add_byte_tile_by_units(call, item, rows, begin, end, tile, at, state);
#endif
    fetch(tile.values[0]);
    const uint8_t* query = rows.query + 2 * begin * rows.key_dim;
    score_byte_rows<BYTE_ROWS>(query, end - begin, rows.key_dim, tile, rows.scores + begin * TILE);
    for (long r = begin; r < end; r++) soften_row(call, item, rows, tile, at, r, rows.scores + r * TILE, state);
    fetch_next_bytes(call, item, at);
    add_byte_rows<BYTE_ROWS>(rows, begin, end, tile, state);
}

template <bool BY_UNITS>
void attend_byte_part(const Attention& call, const Item& item, const ByteRows& rows, long begin, const State& state) {
    state.clear(rows.count, rows.value_dim);
    const long end = least(begin + PART, item.end);
    for (long at = most(begin, item.first / TILE * TILE); at < end; at += TILE)
        add_byte_tile<BY_UNITS>(call, item, rows, at, state);
}

template <class Stored, bool BY_UNITS> void attend_bytes(const Attention& call, const Item& item, char* memory) {
    Scratch scratch(memory);
    const ByteRows rows(call, item, scratch, static_cast<const Stored*>(nullptr));
    const long floats = state_floats(call, rows.count), first = item.first / PART * PART;
    if (item.partial != nullptr)
        return attend_byte_part<BY_UNITS>(call, item, rows, first, State(item.partial, rows.count));
    const State all(scratch.take<float>(floats), rows.count), part(scratch.take<float>(floats), rows.count);
    attend_byte_part<BY_UNITS>(call, item, rows, first, all);
    for (long begin = first + PART; begin < item.end; begin += PART) {
        attend_byte_part<BY_UNITS>(call, item, rows, begin, part);
        add_part(all, part, rows.count, rows.value_dim);
    }
    write_out<Stored>(call, item, all, rows.value_dim);
}

#if NATIVE_BF16 && MATRIX_UNITS
// With many rows, and where a tile's values lie side by side.
template <class Stored> void attend_bytes_by_units(const Attention& call, const Item& item, char* memory) {
    const long num_rows = item.num_tokens * group_of(call);
    if (num_rows < FEW_ROWS || call.cache->key_dim % UNIT_BYTES != 0 || call.step->block_size % TILE != 0)
        return attend_bytes<Stored, false>(call, item, memory);
    const ByteUnits units(num_rows);
    attend_bytes<Stored, true>(call, item, memory);
}
#endif

// ---- writing

INLINE void write_key_bytes(uint8_t* block, const uint8_t* bytes, long block_size, long row, long dim) {
    for (long d = 0; d < dim; d += 4) {
        uint32_t lane;
        __builtin_memcpy(&lane, bytes + d, sizeof lane);
        lane ^= 0x80808080u;  // KEY_ZERO added to each
        __builtin_memcpy(block + d * block_size + 4 * row, &lane, sizeof lane);
    }
}

// Another thread may be writing the other bytes of the lanes.
INLINE void write_value_bytes(uint8_t* block, const uint8_t* bytes, long row, long dim) {
    uint8_t* to = block + row / 4 * 4 * dim;
#if AVX512
    const __mmask64 places = 0x1111111111111111ull << row % 4;
    for (long d = 0; d < dim; d += 16) {
        const __m512i x = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes + d)));
        _mm512_mask_storeu_epi8(to + 4 * d, places, _mm512_sll_epi32(x, _mm_cvtsi64_si128(8 * (row % 4))));
    }
#else
    for (long d = 0; d < dim; d++) to[4 * d + row % 4] = bytes[d];
#endif
}

// The step's tokens from `first` to `end`.
template <class Stored> void write_bytes(const Attention& call, long first, long end) {
    const Cache& cache = *call.cache;
    const long block_size = call.step->block_size, key_dim = cache.key_dim, value_dim = cache.value_dim;
    float numbers[MOST_BYTES_DIM];
    uint8_t bytes[MOST_BYTES_DIM];
    for (long token = first; token < end; token++) {
        const long block = call.step->slots[token] / block_size, row = call.step->slots[token] % block_size;
        for (long head = 0; head < cache.num_kv_heads; head++) {
            const long key_at = token * call.key_token + head * call.key_head;
            const long value_at = token * call.value_token + head * call.value_head;
            const Stored* key = static_cast<const Stored*>(call.new_keys) + key_at;
            const Stored* value = static_cast<const Stored*>(call.new_values) + value_at;
            const long before = block * cache.num_kv_heads + head;
            uint8_t* keys = static_cast<uint8_t*>(cache.keys) + before * block_bytes(block_size, key_dim);
            uint8_t* values = static_cast<uint8_t*>(cache.values) + before * block_bytes(block_size, value_dim);
            bf16* key_scales = reinterpret_cast<bf16*>(keys + block_size * key_dim);
            bf16* value_scales = reinterpret_cast<bf16*>(values + block_size * value_dim);
            key_scales[row] = store_bytes(key, key_dim, true, numbers, bytes);
            write_key_bytes(keys, bytes, block_size, row, key_dim);
            value_scales[row] = store_bytes(value, value_dim, false, numbers, bytes);
            write_value_bytes(values, bytes, row, value_dim);
        }
    }
}

Kernels byte_kernels(bool is_bf16) {
    if (is_bf16) return Kernels{1, write_bytes<bf16>, attend_bytes<bf16, false>, join<WidenedPairs>};
    return Kernels{1, write_bytes<float>, attend_bytes<float, false>, join<Floats>};
}
#if NATIVE_BF16 && MATRIX_UNITS
Kernels byte_kernels_by_units(bool is_bf16) {
    if (is_bf16) return Kernels{1, write_bytes<bf16>, attend_bytes_by_units<bf16>, join<WidenedPairs>};
    return Kernels{1, write_bytes<float>, attend_bytes_by_units<float>, join<Floats>};
}

#endif
