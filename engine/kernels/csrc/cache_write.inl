// Writing a step's keys and values into the paged cache, for one instruction set: attention.cpp includes this file where
// it includes attention.inl. `Cache` of common.h says how they lie there.

// Where one token's keys and values of one head come from, and the head's part of the block that they go to.
template <class Stored> struct Entry {
    const Stored *key, *value;
    Stored *keys, *values;
    long row;

    INLINE Entry(const Attention& call, long token, long head) {
        const Cache& cache = *call.cache;
        const long block_size = call.step->block_size, block = call.step->slots[token] / block_size;
        const long before = (block * cache.num_kv_heads + head) * block_size;
        row = call.step->slots[token] % block_size;
        key = static_cast<const Stored*>(call.new_keys) + token * call.key_token + head * call.key_head;
        value = static_cast<const Stored*>(call.new_values) + token * call.value_token + head * call.value_head;
        keys = static_cast<Stored*>(cache.keys) + before * cache.key_dim;
        values = static_cast<Stored*>(cache.values) + before * cache.value_dim;
    }
};

template <class Stored> INLINE void write_rows(const Attention& call, const Entry<Stored>& entry) {
    const Cache& cache = *call.cache;
    __builtin_memcpy(entry.keys + entry.row * cache.key_dim, entry.key, cache.key_dim * sizeof(Stored));
    __builtin_memcpy(entry.values + entry.row * cache.value_dim, entry.value, cache.value_dim * sizeof(Stored));
}

// Interleaved keys of a token lie in as many lines of the cache as they have lanes.
template <class Stored> INLINE void fetch_key(const Attention& call, const Entry<Stored>& entry) {
    const long lane = 4 / sizeof(Stored), block_size = call.step->block_size;
    for (long i = 0; i < call.cache->key_dim; i += lane) __builtin_prefetch(entry.keys + i * block_size + entry.row * lane, 1);
}

template <class Stored> INLINE void write_key(const Attention& call, const Entry<Stored>& entry) {
    const long lane = 4 / sizeof(Stored), block_size = call.step->block_size;
    for (long i = 0; i < call.cache->key_dim; i += lane)
        __builtin_memcpy(entry.keys + i * block_size + entry.row * lane, entry.key + i, 4);
}

INLINE void write_value(const Attention& call, const Entry<float>& entry) {
    const long dim = call.cache->value_dim;
    __builtin_memcpy(entry.values + entry.row * dim, entry.value, dim * sizeof(float));
}

// Another thread may be writing the other halves of the lanes.
INLINE void write_value(const Attention& call, const Entry<bf16>& entry) {
    const long dim = call.cache->value_dim;
    bf16* to = entry.values + entry.row / 2 * dim * 2;
#if AVX512
    const __mmask32 halves = entry.row % 2 ? 0xaaaaaaaa : 0x55555555;
    for (long d = 0; d < dim; d += WIDTH) {
        const __m512i x = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(entry.value + d)));
        _mm512_mask_storeu_epi16(to + 2 * d, halves, _mm512_or_si512(x, _mm512_slli_epi32(x, 16)));
    }
#else
    for (long d = 0; d < dim; d++) to[2 * d + entry.row % 2] = entry.value[d];
#endif
}

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

// The keys of `count` tokens that lie side by side in a group.
template <class Stored> void write_keys(const Attention& call, const Entry<Stored>& entry, long count) {
    const long lane = 4 / sizeof(Stored), num_lanes = call.cache->key_dim / lane, block_size = call.step->block_size;
    const long column = entry.row % WIDTH;
    const __mmask16 columns = static_cast<__mmask16>(((1u << count) - 1) << column);
    for (long first = 0; first < num_lanes; first += 16) {
        const long lanes = least(16, num_lanes - first);
        const __mmask16 valid = static_cast<__mmask16>((1u << lanes) - 1);
        __m512i rows[16];
        UNROLL
        for (long j = 0; j < 16; j++)
            rows[j] = columns >> j & 1 ? _mm512_maskz_loadu_epi32(valid, entry.key + (j - column) * call.key_token + first * lane)
                                       : _mm512_setzero_si512();
        transpose(rows);
        for (long i = 0; i < lanes; i++)
            _mm512_mask_storeu_epi32(entry.keys + ((first + i) * block_size + entry.row - column) * lane, columns, rows[i]);
    }
}

// Tokens from `first` on that lie side by side in a group.
INLINE long count_beside(const Attention& call, long first, long end) {
    const int64_t* slots = call.step->slots;
    long token = first + 1;
    while (token < end && slots[token] == slots[token - 1] + 1 && slots[token] % WIDTH) token++;
    return token - first;
}
#else
template <class Stored> void write_keys(const Attention&, const Entry<Stored>&, long) {}

INLINE long count_beside(const Attention&, long, long) { return 1; }
#endif

template <class Stored> INLINE void write_interleaved(const Attention& call, long first, long end) {
    const long num_heads = call.cache->num_kv_heads;
    for (long token = first, count; token < end; token += count) {
        count = count_beside(call, token, end);
        if (count == 1) fetch_key(call, Entry<Stored>(call, token, 0));
        for (long head = 0; head < num_heads; head++) {
            const Entry<Stored> entry(call, token, head);
            if (count == 1 && head + 1 < num_heads) fetch_key(call, Entry<Stored>(call, token, head + 1));
            count == 1 ? write_key(call, entry) : write_keys(call, entry, count);
            for (long i = 0; i < count; i++) write_value(call, Entry<Stored>(call, token + i, head));
        }
    }
}

// The step's tokens from `first` to `end`.
template <class Stored> void write_tokens(const Attention& call, long first, long end) {
    if (call.cache->is_interleaved) return write_interleaved<Stored>(call, first, end);
    for (long token = first; token < end; token++)
        for (long head = 0; head < call.cache->num_kv_heads; head++)
            write_rows(call, Entry<Stored>(call, token, head));
}

template <class A> Kernels kernels_of() { return Kernels{MOST_HEADS, write_tokens<typename A::Stored>, attend<A>, join<A>}; }

#if NATIVE_BF16
Kernels kernels_for_bf16() { return kernels_of<Pairs>(); }
#if MATRIX_UNITS
Kernels kernels_by_units() { return Kernels{1, write_tokens<bf16>, attend_by_units, join<UnitPairs>}; }
#endif
#else
Kernels kernels_for(bool is_bf16) { return is_bf16 ? kernels_of<WidenedPairs>() : kernels_of<Floats>(); }
#endif
