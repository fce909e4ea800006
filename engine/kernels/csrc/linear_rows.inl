// Rows before a product and behind it, and weights as they are packed, for one instruction set: AVX-512 or AVX2. linear.cpp
// includes this file behind rows.inl.

// The nearest integers, as words of 16 bits.
INLINE __m256i words_of(f32x16 x) {
#if AVX512
    return _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(as_m512(x)));
#else
    const __m256* parts = reinterpret_cast<const __m256*>(&x);
    const __m256i packed = _mm256_packs_epi32(_mm256_cvtps_epi32(parts[0]), _mm256_cvtps_epi32(parts[1]));
    return _mm256_permute4x64_epi64(packed, 0xd8);
#endif
}

// Integers that a tile has come to, less what is to be taken off if that is not null, as floats.
INLINE RowVector floats_of(const uint32_t* sums, const int32_t* less) {
#if AVX512
    __m512i x = _mm512_loadu_si512(sums);
    if (less) x = _mm512_sub_epi32(x, _mm512_loadu_si512(less));
    return reinterpret_cast<RowVector>(_mm512_cvtepi32_ps(x));
#else
    __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(sums));
    if (less) x = _mm256_sub_epi32(x, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(less)));
    return reinterpret_cast<RowVector>(_mm256_cvtepi32_ps(x));
#endif
}

// What a tile has come to, as numbers.
void finish_tile(const Linear& linear, const Rows& rows, const Target& target, long row, long num_rows, long panel,
                 const uint32_t* sums) {
    const long first = panel * PANEL;
    const float* bias = linear.bias ? linear.bias + first : nullptr;
    const auto with_bias = [&](RowVector x, long at) { return bias ? x + load_row(bias + at) : x; };
    if (!linear.is_int8)
        return finish_rows(target, row, num_rows, first, linear.out, [&](long m, long at) {
            return with_bias(load_row(reinterpret_cast<const float*>(sums) + m * PANEL + at), at);
        });
    const float *scales = linear.scales + first, *of_rows = rows.scales + row;
    const int32_t* less = is_widened(linear) ? nullptr : linear.sums + first;
    finish_rows(target, row, num_rows, first, linear.out, [&](long m, long at) {
        const RowVector x = floats_of(sums + m * PANEL + at, less ? less + at : nullptr);
        return with_bias(x * load_row(scales + at) * of_rows[m], at);
    });
}

// A row or column in 8 bits: its largest value becomes 127. What is not finite makes the scale NaN.
struct Quantizer {
    float scale, factor;

    INLINE Quantizer(const bf16* values, long count) {
        // Two of each: an operation waits for the one before.
        f32x16 reach[2] = {}, poison[2] = {};
        for (long i = 0; i < count; i += 32)
            UNROLL for (long k = 0; k < 2; k++) {
                const f32x16 x = read(values + i + 16 * k, most(0, least(16, count - i - 16 * k)));
                reach[k] = larger(reach[k], magnitude(x));
                poison[k] += x * 0.0f;
            }
        const float largest = max_of(larger(reach[0], reach[1]));
        scale = largest / 127.0f + sum_of(poison[0] + poison[1]);
        factor = largest > 0 ? 127.0f / largest : 0.0f;
    }

    // Words of sixteen values from `values` on, of which `count` are there.
    INLINE __m256i integers(const bf16* values, long count) const { return words_of(read(values, least(16, count)) * factor); }
};

// With 128 added: what is multiplied is unsigned times signed.
INLINE void quantize_to_bytes(const bf16* values, long count, uint8_t* out, float* scale) {
    const Quantizer quantizer(values, count);
    *scale = quantizer.scale;
    for (long i = 0; i < count; i += 16) {
        const __m256i x = _mm256_add_epi16(quantizer.integers(values + i, count - i), _mm256_set1_epi16(128));
        const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), bytes);
    }
}

// In the order that FourWords reads them in.
INLINE void quantize_to_words(const bf16* values, long count, uint32_t* out, float* scale) {
    const Quantizer quantizer(values, count);
    *scale = quantizer.scale;
    const int order = 0xd8;  // 0, 2, 1, 3
    for (long i = 0; i < count; i += 16) {
        const __m256i x = quantizer.integers(values + i, count - i);
        const __m256i ordered = _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(x, order), order);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i / 2), ordered);
    }
}

INLINE void widen_row(const bf16* values, long count, uint32_t* out) {
    for (long i = 0; i < count; i += 16) store(reinterpret_cast<float*>(out) + i, read(values + i, least(16, count - i)));
}

// What a row is padded with is room for whole vectors: see stride_of.
void fill(const Linear& linear, const Rows& rows, long index, const bf16* values) {
    uint32_t* lanes = rows.lanes + index * rows.stride;
    if (is_widened(linear)) {
        if (linear.is_int8) return quantize_to_words(values, linear.in, lanes, &rows.scales[index]);
        return widen_row(values, linear.in, lanes);
    }
    lanes[lanes_of(linear) - 1] = 0;
    if (linear.is_int8)
        quantize_to_bytes(values, linear.in, reinterpret_cast<uint8_t*>(lanes), &rows.scales[index]);
    else
        __builtin_memcpy(lanes, values, linear.in * sizeof(bf16));
}

// A column's integers of 8 bits. Returns their sum; of what is not finite, that is of any size.
INLINE int32_t quantize_column(const bf16* weights, long count, float* scale, int8_t* out) {
    const Quantizer quantizer(weights, count);
    *scale = quantizer.scale;
    alignas(32) uint32_t sums[8];
    __m256i sum = _mm256_setzero_si256();
    for (long i = 0; i < count; i += 16) {
        const __m256i x = quantizer.integers(weights + i, count - i);
        const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), bytes);
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(x, _mm256_set1_epi16(1)));
    }
    _mm256_store_si256(reinterpret_cast<__m256i*>(sums), sum);
    uint32_t total = 0;
    for (const uint32_t part : sums) total += part;
    return static_cast<int32_t>(total);
}
