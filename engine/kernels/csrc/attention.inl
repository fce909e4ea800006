// Attention over the paged cache for one instruction set. attention.cpp includes this file once per set, each time in
// a namespace of its own, with these macros:
//   NATIVE_BF16  1 where pairs of bfloat16 are multiplied in hardware; otherwise they are widened to float32 first
//   AVX512       1 where its intrinsics are there
//   TILE_ROWS, TILE_VECTORS  the accumulators that a matrix product keeps in registers: rows times vectors of 16
//   STRIP        vectors of 16 that a decode sums values into at once
//
// Every query looks at its keys in tiles that begin at multiples of TILE positions, whatever shares the batch, the
// block size or the chunk: its result depends on nothing but its own sequence.

#include "vectors.inl"

// ---- what differs between multiplying float32 and multiplying pairs of bfloat16

// Rows of the cache come as they are stored; queries and weights have been packed into `Packed`. One step of a
// product takes one 32-bit lane: a float32, or two bfloat16.
struct Single {
    typedef float Packed;
    static const int PER_LANE = 1;
    static const int STRIDE = 16;  // elements of a row that `dot` takes

    template <class Stored> static INLINE f32x16 dot(f32x16 sum, const float* query, const Stored* row) {
        return load(query) * load_as_float(row) + sum;
    }

    template <class Stored>
    static INLINE f32x16 dot_tail(f32x16 sum, const float* query, const Stored* row, long left) {
        return load(query) * load_first(row, left) + sum;
    }

#if AVX512
    template <class Stored> static INLINE __m512i lanes(const Stored* row, long left) {
        return reinterpret_cast<__m512i>(left == 16 ? load_as_float(row) : load_first(row, left));
    }
#endif

    static INLINE f32x16 multiply(f32x16 sum, const uint32_t* lane, const uint32_t* column) {
        float x;
        __builtin_memcpy(&x, lane, sizeof x);
        return x * load(reinterpret_cast<const float*>(column)) + sum;
    }
};

#if NATIVE_BF16
INLINE f32x16 as_vector(__m512 x) { return reinterpret_cast<f32x16>(x); }
INLINE __m512bh as_bh(__m512i x) { return reinterpret_cast<__m512bh>(x); }

struct Pairs {
    typedef bf16 Packed;
    static const int PER_LANE = 2;
    static const int STRIDE = 32;

    static INLINE f32x16 dot_lanes(f32x16 sum, __m512i a, __m512i b) {
        return as_vector(_mm512_dpbf16_ps(as_m512(sum), as_bh(a), as_bh(b)));
    }

    static INLINE f32x16 dot(f32x16 sum, const bf16* query, const bf16* row) {
        return dot_lanes(sum, _mm512_loadu_si512(query), _mm512_loadu_si512(row));
    }

    static INLINE f32x16 dot_tail(f32x16 sum, const bf16* query, const bf16* row, long left) {
        return dot_lanes(sum, _mm512_loadu_si512(query), lanes(row, left));
    }

    static INLINE __m512i lanes(const bf16* row, long left) {
        return _mm512_maskz_loadu_epi16(static_cast<__mmask32>((uint64_t{1} << left) - 1), row);
    }

    static INLINE f32x16 multiply(f32x16 sum, const uint32_t* lane, const uint32_t* column) {
        return dot_lanes(sum, _mm512_set1_epi32(static_cast<int>(*lane)), _mm512_loadu_si512(column));
    }
};

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

template <class Stored> struct Arithmetic { typedef Single Type; };
#if NATIVE_BF16
template <> struct Arithmetic<bf16> { typedef Pairs Type; };
#endif

template <class T> INLINE void pack_row(T* out, const T* row, long dim, long padded) {
    __builtin_memcpy(out, row, dim * sizeof(T));
    __builtin_memset(static_cast<void*>(out + dim), 0, (padded - dim) * sizeof(T));
}

INLINE void pack_row(float* out, const bf16* row, long dim, long padded) {
    long d = 0;
    for (; d + 16 <= dim; d += 16) store(out + d, widen(row + d));
    for (; d < padded; d++) out[d] = d < dim ? to_float(row[d]) : 0.0f;
}

template <class Stored> INLINE void write_row(Stored* out, const float* sums, float factor, long dim) {
    long d = 0;
    for (; d + 16 <= dim; d += 16) round_16(out + d, load(sums + d) * factor);
    if (d == dim) return;
    Stored last[16];
    round_16(last, load(sums + d) * factor);
    __builtin_memcpy(out + d, last, (dim - d) * sizeof(Stored));
}

// ---- the softmax of one tile

// Turns the scores of one row into weights, of which those outside [first, end) become 0. `max` and `sum` are the
// row's so far. Returns what sums made with the former maximum have to be multiplied with.
template <class Packed>
INLINE float soften(float* scores, Packed* weights, long first, long end, const Attention& call, float& max, float& sum) {
    const bool partial = first > 0 || end < TILE;
    f32x16 s[TILE / 16];
    f32x16 top = splat(max);
    UNROLL
    for (int i = 0; i < TILE / 16; i++) {
        s[i] = load(scores + 16 * i) * call.scale;
        if (call.softcap > 0) s[i] = tanh_of(s[i] / call.softcap) * call.softcap;
        if (partial) {
            const f32x16 column = COLUMNS + 16.0f * static_cast<float>(i);
            s[i] = (column >= static_cast<float>(first)) & (column < static_cast<float>(end)) ? s[i] : splat(-INFINITY);
        }
        top = s[i] > top ? s[i] : top;
    }
    const float new_max = max_of(top);
    const float origin = new_max == -INFINITY ? 0.0f : new_max;
    f32x16 total = {};
    UNROLL
    for (int i = 0; i < TILE / 16; i++) {
        const f32x16 weight = exp_of(s[i] - origin);
        total += weight;
        round_16(weights + 16 * i, weight);
    }
    const float factor = max == new_max ? 1.0f : exp_of(splat(max - origin))[0];
    max = new_max;
    sum = sum * factor + sum_of(total);
    return factor;
}

INLINE void scale_row(float* row, float factor, long padded) {
    if (factor == 1.0f) return;
    for (long d = 0; d < padded; d += 16) store(row + d, load(row + d) * factor);
}

// ---- one token against its cache: rows are the query heads that share a KV head

// scores[row][0..4) of four keys.
template <class A, int ROWS, class Stored>
INLINE void dot_4(const typename A::Packed* query, long padded, const Stored* const* keys, long offset, long dim,
                  float* scores) {
    f32x16 sums[ROWS][4];
    UNROLL
    for (int r = 0; r < ROWS; r++)
        UNROLL
        for (int j = 0; j < 4; j++) sums[r][j] = f32x16{};
    long d = 0;
    for (; d + A::STRIDE <= dim; d += A::STRIDE)
        UNROLL
        for (int r = 0; r < ROWS; r++)
            UNROLL
            for (int j = 0; j < 4; j++) sums[r][j] = A::dot(sums[r][j], query + r * padded + d, keys[j] + offset + d);
    if (d < dim)
        UNROLL
        for (int r = 0; r < ROWS; r++)
            UNROLL
            for (int j = 0; j < 4; j++)
                sums[r][j] = A::dot_tail(sums[r][j], query + r * padded + d, keys[j] + offset + d, dim - d);
    UNROLL
    for (int r = 0; r < ROWS; r++) store_sums(scores + r * TILE, sums[r][0], sums[r][1], sums[r][2], sums[r][3]);
}

template <class A, class Stored>
INLINE void dot_tile(const typename A::Packed* query, long rows, long padded, const Stored* const* keys, long offset,
                     long count, long dim, float* scores) {
    for (long j = 0; j < count; j += 4) {
        long r = 0;
        for (; r + 2 <= rows; r += 2)
            dot_4<A, 2>(query + r * padded, padded, keys + j, offset, dim, scores + r * TILE + j);
        if (r < rows) dot_4<A, 1>(query + r * padded, padded, keys + j, offset, dim, scores + r * TILE + j);
    }
}

// sums[row][d..] += weights[row] * values, for a strip of N vectors, of which the last STRIDE has `left` dimensions.
template <int ROWS, int N, class Stored>
INLINE void add_strip(Single, float* sums, long padded, const float* weights, const Stored* const* values, long offset,
                      long count, long d, long left) {
    f32x16 s[ROWS][N];
    UNROLL
    for (int r = 0; r < ROWS; r++)
        UNROLL
        for (int i = 0; i < N; i++) s[r][i] = load(sums + r * padded + d + 16 * i);
    for (long j = 0; j < count; j++)
        UNROLL
        for (int i = 0; i < N; i++) {
            const Stored* p = values[j] + offset + d + 16 * i;
            const f32x16 value = N > 1 || left == 16 ? load_as_float(p) : load_first(p, left);
            UNROLL
            for (int r = 0; r < ROWS; r++) s[r][i] = weights[r * TILE + j] * value + s[r][i];
        }
    UNROLL
    for (int r = 0; r < ROWS; r++)
        UNROLL
        for (int i = 0; i < N; i++) store(sums + r * padded + d + 16 * i, s[r][i]);
}

#if NATIVE_BF16
// Two rows of values are interleaved, which leaves the sums of 32 dimensions in the order of `unpacklo` and
// `unpackhi`; `restore_order` undoes it at the end.
template <int ROWS, int N>
INLINE void add_strip(Pairs, float* sums, long padded, const bf16* weights, const bf16* const* values, long offset,
                      long count, long d, long left) {
    const __mmask32 valid = static_cast<__mmask32>((uint64_t{1} << left) - 1);
    f32x16 s[ROWS][N];
    UNROLL
    for (int r = 0; r < ROWS; r++)
        UNROLL
        for (int i = 0; i < N; i++) s[r][i] = load(sums + r * padded + d + 16 * i);
    for (long j = 0; j < count; j += 2)
        UNROLL
        for (int i = 0; i < N; i += 2) {
            const __m512i a = _mm512_maskz_loadu_epi16(valid, values[j] + offset + d + 16 * i);
            const __m512i b = _mm512_maskz_loadu_epi16(valid, values[j + 1] + offset + d + 16 * i);
            const __m512i low = _mm512_unpacklo_epi16(a, b), high = _mm512_unpackhi_epi16(a, b);
            UNROLL
            for (int r = 0; r < ROWS; r++) {
                int pair;
                __builtin_memcpy(&pair, weights + r * TILE + j, sizeof pair);
                s[r][i] = Pairs::dot_lanes(s[r][i], low, _mm512_set1_epi32(pair));
                s[r][i + 1] = Pairs::dot_lanes(s[r][i + 1], high, _mm512_set1_epi32(pair));
            }
        }
    UNROLL
    for (int r = 0; r < ROWS; r++)
        UNROLL
        for (int i = 0; i < N; i++) store(sums + r * padded + d + 16 * i, s[r][i]);
}
#endif

INLINE void restore_order(Single, float*, long) {}

#if NATIVE_BF16
INLINE void restore_order(Pairs, float* row, long dim) {
    const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i second = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
    for (long d = 0; d < dim; d += 32) {
        const __m512 low = _mm512_loadu_ps(row + d), high = _mm512_loadu_ps(row + d + 16);
        _mm512_storeu_ps(row + d, _mm512_permutex2var_ps(low, first, high));
        _mm512_storeu_ps(row + d + 16, _mm512_permutex2var_ps(low, second, high));
    }
}
#endif

template <class A, int ROWS, class Stored>
INLINE void add_values(float* sums, long padded, const typename A::Packed* weights, const Stored* const* values,
                       long offset, long count, long dim) {
    const int step = A::STRIDE / 16;
    long d = 0;
    for (; d + 16 * STRIP <= dim; d += 16 * STRIP)
        add_strip<ROWS, STRIP>(A(), sums, padded, weights, values, offset, count, d, A::STRIDE);
    for (; d < dim; d += A::STRIDE)
        add_strip<ROWS, step>(A(), sums, padded, weights, values, offset, count, d, least(A::STRIDE, dim - d));
}

template <class A, class Stored>
INLINE void add_tile(float* sums, long rows, long padded, const typename A::Packed* weights,
                     const Stored* const* values, long offset, long count, long dim) {
    long r = 0;
    for (; r + 2 <= rows; r += 2)
        add_values<A, 2>(sums + r * padded, padded, weights + r * TILE, values, offset, count, dim);
    if (r < rows) add_values<A, 1>(sums + r * padded, padded, weights + r * TILE, values, offset, count, dim);
}

// All heads of the item take a tile's keys, then its values: what they read lies one after the other.
template <class A, class Stored> void decode(const Attention& call, const Item& item, char* memory) {
    typedef typename A::Packed Packed;
    const long key_dim = call.cache->key_dim, value_dim = call.cache->value_dim, block_size = call.step->block_size;
    const long group = group_of(call), rows = group * item.num_heads, first_row = group * item.head;
    const long key_padded = round_up(key_dim, A::STRIDE), value_padded = round_up(value_dim, 32);
    Scratch scratch(memory);
    Packed* query = scratch.take<Packed>(rows * key_padded);
    float* scores = scratch.take<float>(rows * TILE);
    Packed* weights = scratch.take<Packed>(rows * TILE);
    float* state = item.partial != nullptr ? item.partial : scratch.take<float>(rows * (2 + value_padded));
    float *max = state, *sum = state + rows, *sums = state + 2 * rows;
    for (long r = 0; r < rows; r++) {
        pack_row(query + r * key_padded, query_row<Stored>(call, item.token, first_row + r), key_dim, key_padded);
        max[r] = item.is_first_part ? sink_of(call, first_row + r) : -INFINITY;
        sum[r] = max[r] == -INFINITY ? 0.0f : 1.0f;
    }
    __builtin_memset(sums, 0, rows * value_padded * sizeof(float));
    const Stored *keys[TILE], *values[TILE];
    for (long tile = item.first / TILE * TILE; tile < item.end; tile += TILE) {
        const long first = most(0, item.first - tile), end = least(TILE, item.end - tile);
        const long begin = first & ~3L;  // dot products come in fours, and pairs of values in twos
        locate(call, item, tile + begin, end - begin, keys, values);
        for (long h = 0; h < item.num_heads; h++)
            dot_tile<A>(query + h * group * key_padded, group, key_padded, keys, h * block_size * key_dim, end - begin,
                        key_dim, scores + h * group * TILE + begin);
        for (long r = 0; r < rows; r++) {
            const float factor = soften(scores + r * TILE, weights + r * TILE, first, end, call, max[r], sum[r]);
            scale_row(sums + r * value_padded, factor, value_padded);
        }
        for (long h = 0; h < item.num_heads; h++)
            add_tile<A>(sums + h * group * value_padded, group, value_padded, weights + h * group * TILE + begin,
                        values, h * block_size * value_dim, end - begin, value_dim);
    }
    for (long r = 0; r < rows; r++) restore_order(A(), sums + r * value_padded, value_dim);
    if (item.partial != nullptr) return;
    for (long r = 0; r < rows; r++)
        write_row(out_row<Stored>(call, item.token, first_row + r), sums + r * value_padded, 1.0f / sum[r], value_dim);
}

// Joins the parts of one long sequence, in their order. The first has the sink in it.
template <class Stored>
void merge(const Attention& call, const Item& item, const float* partials, long partial_floats, long num_parts,
           char* memory) {
    const long rows = group_of(call) * item.num_heads, first_row = group_of(call) * item.head;
    const long value_dim = call.cache->value_dim, padded = round_up(value_dim, 32);
    Scratch scratch(memory);
    float* sums = scratch.take<float>(padded);
    for (long r = 0; r < rows; r++) {
        float max = -INFINITY, sum = 0.0f;
        for (long p = 0; p < num_parts; p++) {
            const float part_max = partials[p * partial_floats + r];
            max = part_max > max ? part_max : max;
        }
        __builtin_memset(sums, 0, padded * sizeof(float));
        for (long p = 0; p < num_parts; p++) {
            const float* part = partials + p * partial_floats;
            const float factor = exp_of(splat(part[r] - max))[0];
            sum += part[rows + r] * factor;
            for (long d = 0; d < padded; d += 16)
                store(sums + d, load(part + 2 * rows + r * padded + d) * factor + load(sums + d));
        }
        write_row(out_row<Stored>(call, item.token, first_row + r), sums, 1.0f / sum, value_dim);
    }
}

// ---- several tokens of one sequence: matrix products over tiles of keys

// c[R][16 * N] (+)= a[R][steps] * b[steps][16 * N], in lanes of 32 bits.
template <class A, int R, int N>
INLINE void product_block(const uint32_t* a, long lda, const uint32_t* b, long ldb, long steps, float* c, long ldc,
                          bool add) {
    f32x16 s[R][N];
    UNROLL
    for (int r = 0; r < R; r++)
        UNROLL
        for (int i = 0; i < N; i++) s[r][i] = add ? load(c + r * ldc + 16 * i) : f32x16{};
    for (long k = 0; k < steps; k++)
        UNROLL
        for (int r = 0; r < R; r++)
            UNROLL
            for (int i = 0; i < N; i++) s[r][i] = A::multiply(s[r][i], a + r * lda + k, b + k * ldb + 16 * i);
    UNROLL
    for (int r = 0; r < R; r++)
        UNROLL
        for (int i = 0; i < N; i++) store(c + r * ldc + 16 * i, s[r][i]);
}

template <class A, int N>
void product_columns(const uint32_t* a, long lda, const uint32_t* b, long ldb, long rows, long steps, float* c,
                     long ldc, bool add) {
    long r = 0;
    for (; r + TILE_ROWS <= rows; r += TILE_ROWS)
        product_block<A, TILE_ROWS, N>(a + r * lda, lda, b, ldb, steps, c + r * ldc, ldc, add);
    for (; r < rows; r++) product_block<A, 1, N>(a + r * lda, lda, b, ldb, steps, c + r * ldc, ldc, add);
}

template <class A>
void product(const void* a, long lda, const uint32_t* b, long ldb, long rows, long columns, long steps, float* c,
             long ldc, bool add) {
    const uint32_t* lanes = static_cast<const uint32_t*>(a);
    long n = 0;
    for (; n + 16 * TILE_VECTORS <= columns; n += 16 * TILE_VECTORS)
        product_columns<A, TILE_VECTORS>(lanes, lda, b + n, ldb, rows, steps, c + n, ldc, add);
    for (; n < columns; n += 16) product_columns<A, 1>(lanes, lda, b + n, ldb, rows, steps, c + n, ldc, add);
}

// Keys as columns: out[lane of the dimension][key]. What lies beyond `count` repeats some key, and is masked later.
#if AVX512
// Sixteen vectors of sixteen lanes, in four rounds that swap blocks of 8, 4, 2 and 1.
INLINE void transpose(__m512i rows[16]) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    UNROLL
    for (int size = 8; size > 0; size /= 2) {
        const __m512i offset = _mm512_set1_epi32(size);
        const __mmask16 odd = _mm512_test_epi32_mask(lane, offset);
        const __m512i from_second = _mm512_add_epi32(lane, _mm512_set1_epi32(16));
        const __m512i low = _mm512_mask_sub_epi32(lane, odd, from_second, offset);
        const __m512i high = _mm512_mask_mov_epi32(_mm512_add_epi32(lane, offset), odd, from_second);
        UNROLL
        for (int i = 0; i < 16; i++) {
            if (i & size) continue;
            const __m512i a = rows[i], b = rows[i + size];
            rows[i] = _mm512_permutex2var_epi32(a, low, b);
            rows[i + size] = _mm512_permutex2var_epi32(a, high, b);
        }
    }
}

template <class A, class Stored>
INLINE void pack_keys(uint32_t* out, const Stored* const* keys, long count, long dim) {
    const long step = 16 * A::PER_LANE;
    for (long first = 0; first < TILE; first += 16)
        for (long d = 0; d < dim; d += step) {
            __m512i rows[16];
            UNROLL
            for (int j = 0; j < 16; j++)
                rows[j] = A::lanes(keys[least(first + j, count - 1)] + d, least(step, dim - d));
            transpose(rows);
            const long lanes = least(16, (dim - d + A::PER_LANE - 1) / A::PER_LANE);
            for (long i = 0; i < lanes; i++) _mm512_storeu_si512(out + (d / A::PER_LANE + i) * TILE + first, rows[i]);
        }
}
#else
template <class A, class Stored>
INLINE void pack_keys(uint32_t* out, const Stored* const* keys, long count, long dim) {
    for (long j = 0; j < TILE; j++)
        for (long d = 0; d < dim; d++) out[d * TILE + j] = bits_as<uint32_t>(to_float(keys[least(j, count - 1)][d]));
}
#endif

// Values as rows, those of a lane side by side: out[lane of the key][dimension].
template <class Stored>
INLINE void pack_values(Single, uint32_t* out, const Stored* const* values, long count, long dim, long padded) {
    for (long j = 0; j < TILE; j++)
        pack_row(reinterpret_cast<float*>(out + j * padded), values[least(j, count - 1)], dim, padded);
}

#if NATIVE_BF16
// In the order that `restore_order` undoes.
INLINE void pack_values(Pairs, uint32_t* out, const bf16* const* values, long count, long dim, long padded) {
    for (long j = 0; j < TILE; j += 2)
        for (long d = 0; d < dim; d += 32) {
            const __m512i a = Pairs::lanes(values[least(j, count - 1)] + d, least(32, dim - d));
            const __m512i b = Pairs::lanes(values[least(j + 1, count - 1)] + d, least(32, dim - d));
            _mm512_storeu_si512(out + j / 2 * padded + d, _mm512_unpacklo_epi16(a, b));
            _mm512_storeu_si512(out + j / 2 * padded + d + 16, _mm512_unpackhi_epi16(a, b));
        }
}
#endif

template <class A, class Stored> void prefill(const Attention& call, const Item& item, char* memory) {
    typedef typename A::Packed Packed;
    const long key_dim = call.cache->key_dim, value_dim = call.cache->value_dim;
    const long group = group_of(call), rows = item.num_tokens * group;
    const long key_padded = round_up(key_dim, 2), value_padded = round_up(value_dim, A::STRIDE);
    const long lanes = key_padded / A::PER_LANE;
    Scratch scratch(memory);
    Packed* query = scratch.take<Packed>(rows * key_padded);
    Packed* weights = scratch.take<Packed>(rows * TILE);
    float* scores = scratch.take<float>(rows * TILE);
    float* sums = scratch.take<float>(rows * value_padded);
    float* max = scratch.take<float>(rows);
    float* sum = scratch.take<float>(rows);
    uint32_t* packed_keys = scratch.take<uint32_t>(lanes * TILE);
    uint32_t* packed_values = scratch.take<uint32_t>(TILE / A::PER_LANE * value_padded);
    __builtin_memset(sums, 0, rows * value_padded * sizeof(float));
    for (long r = 0; r < rows; r++) {
        const long head = item.head * group + r % group;
        pack_row(query + r * key_padded, query_row<Stored>(call, item.token + r / group, head), key_dim, key_padded);
        max[r] = sink_of(call, head);
        sum[r] = max[r] == -INFINITY ? 0.0f : 1.0f;
    }
    const Stored *keys[TILE], *values[TILE];
    for (long tile = item.first / TILE * TILE; tile < item.end; tile += TILE) {
        const long count = item.end - tile < TILE ? item.end - tile : TILE;
        // Tokens of the item that see any key of the tile.
        const long from = tile > item.position ? tile - item.position : 0;
        const long last = call.window > 0 ? tile + count - 1 + call.window - item.position : item.num_tokens;
        const long to = last < item.num_tokens ? last : item.num_tokens;
        if (from >= to) continue;
        locate(call, item, tile, count, keys, values);
        pack_keys<A>(packed_keys, keys, count, key_dim);
        pack_values(A(), packed_values, values, count, value_dim, value_padded);
        const long r0 = from * group, active = (to - from) * group;
        product<A>(query + r0 * key_padded, lanes, packed_keys, TILE, active, TILE, lanes, scores, TILE, false);
        for (long r = r0; r < r0 + active; r++) {
            const long position = item.position + r / group;
            const long first = call.window > 0 ? position + 1 - call.window - tile : 0;
            const long row = (r - r0) * TILE;
            const float factor =
                soften(scores + row, weights + row, first, position + 1 - tile, call, max[r], sum[r]);
            scale_row(sums + r * value_padded, factor, value_padded);
        }
        product<A>(weights, TILE / A::PER_LANE, packed_values, value_padded, active, value_padded, TILE / A::PER_LANE,
                   sums + r0 * value_padded, value_padded, true);
    }
    for (long r = 0; r < rows; r++) restore_order(A(), sums + r * value_padded, value_dim);
    for (long r = 0; r < rows; r++)
        write_row(out_row<Stored>(call, item.token + r / group, item.head * group + r % group), sums + r * value_padded,
                  1.0f / sum[r], value_dim);
}

template <class Stored> Kernels kernels_of() {
    typedef typename Arithmetic<Stored>::Type A;
    return Kernels{decode<A, Stored>, prefill<A, Stored>, merge<Stored>};
}

#if NATIVE_BF16
Kernels kernels_for_pairs() { return kernels_of<bf16>(); }
#else
Kernels kernels_for(bool is_bf16) { return is_bf16 ? kernels_of<bf16>() : kernels_of<float>(); }
#endif
