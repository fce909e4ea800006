// Rows of bfloat16 in vectors of 16. Included in a namespace per file and instruction set, with AVX512 and AVX2 as 1 where
// they are there.

#include "vectors.inl"

#if AVX512

// The first `count` of 16 values from `p` on, and zeros.
INLINE f32x16 read(const bf16* p, long count) {
    if (count >= 16) return widen(p);
    const __m256i raw = _mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << count) - 1), p);
    return reinterpret_cast<f32x16>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
}

// To the nearest bfloat16, ties to even.
INLINE __m256i narrow(f32x16 x) {
    const __m512i bits = reinterpret_cast<__m512i>(x), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    const __mmask16 is_number = _mm512_cmp_ps_mask(as_m512(x), as_m512(x), _CMP_ORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_mask_srli_epi32(_mm512_set1_epi32(0x7fc0), is_number, rounded, 16));
}

INLINE void write(bf16* p, long count, f32x16 x) {
    if (count >= 16)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(x));
    else
        _mm256_mask_storeu_epi16(p, static_cast<__mmask16>((1u << count) - 1), narrow(x));
}

INLINE f32x16 rounded(f32x16 x) {
    return reinterpret_cast<f32x16>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow(x)), 16));
}

#else

INLINE f32x16 read(const bf16* p, long count) { return count < 16 ? load_first(p, count) : widen(p); }

#if AVX2

INLINE __m256i upper_words(f32x8 half) {
    const __m256 x = reinterpret_cast<__m256>(half);
    const __m256i bits = _mm256_castps_si256(x), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(_mm256_srli_epi32(rounded, 16), _mm256_set1_epi32(0x7fc0), is_nan);
}

INLINE __m256i narrow(f32x16 x) {
    const Halves<f32x16, f32x8> parts(x);
    return _mm256_permute4x64_epi64(_mm256_packus_epi32(upper_words(parts.low), upper_words(parts.high)), 0xd8);
}

INLINE void write(bf16* p, long count, f32x16 x) {
    const __m256i words = narrow(x);
    if (count >= 16)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), words);
    else
        __builtin_memcpy(p, &words, count * sizeof(bf16));
}

INLINE f32x16 rounded(f32x16 x) {
    const __m256i words = narrow(x);
    return widen(reinterpret_cast<const bf16*>(&words));
}

#else

INLINE void write(bf16* p, long count, f32x16 x) {
    for (long i = 0; i < least(count, 16); i++) p[i] = round_to_bf16(x[i]);
}

#endif

#endif

INLINE f32x16 magnitude(f32x16 x) { return bits_as<f32x16>(bits_as<u32x16>(x) & 0x7fffffffu); }

// exp(-x); below -88, where that is beyond float32, as of -88.
template <class Floats, class Bits> INLINE Floats exp_of_negated(Floats x) {
    const Floats bottom = Floats{} - 88.0f;
    return exp_of_lanes<Floats, Bits>(-(bottom > x ? bottom : x));
}

#if AVX2 && !AVX512

// What a register holds: of 16 lanes, a compiler keeps vectors in memory and copies them in pieces.
typedef f32x8 RowVector;

INLINE RowVector load_row(const float* p) { return reinterpret_cast<RowVector>(_mm256_loadu_ps(p)); }

// The first `count` of 8 values from `p` on, and zeros.
INLINE RowVector read_row(const bf16* p, long count) {
    bf16 padded[8] = {};
    if (count < 8) __builtin_memcpy(padded, p, most(0, count) * sizeof(bf16));
    return widen_half(count < 8 ? padded : p);
}

INLINE void write(bf16* p, long count, RowVector x) {
    const __m256i words = upper_words(x);
    const __m128i narrow = _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    if (count >= 8)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow);
    else
        __builtin_memcpy(p, &narrow, count * sizeof(bf16));
}

INLINE RowVector rounded(RowVector x) { return reinterpret_cast<RowVector>(_mm256_slli_epi32(upper_words(x), 16)); }

INLINE RowVector silu(RowVector x) { return x / (1.0f + exp_of_negated<f32x8, u32x8>(x)); }

INLINE RowVector sigmoid(RowVector x) { return 1.0f / (1.0f + exp_of_negated<f32x8, u32x8>(x)); }

INLINE f32x16 sigmoid(f32x16 x) {
    const Halves<f32x16, f32x8> parts(x);
    return joined(sigmoid(parts.low), sigmoid(parts.high));
}

#else

typedef f32x16 RowVector;

INLINE RowVector load_row(const float* p) { return load(p); }

INLINE RowVector read_row(const bf16* p, long count) { return read(p, most(0, count)); }

INLINE f32x16 sigmoid(f32x16 x) { return 1.0f / (1.0f + exp_of_negated<f32x16, u32x16>(x)); }

INLINE f32x16 silu(f32x16 x) { return x / (1.0f + exp_of_negated<f32x16, u32x16>(x)); }

#endif

const long ROW_LANES = sizeof(RowVector) / sizeof(float);

// Up to ROW_LANES columns of one row's result.
INLINE void finish(const Target& target, long row, long column, long count, RowVector x) {
    if (target.residual) x += read_row(target.residual + row * target.residual_stride + column, count);
    write(target.out + row * target.stride + column, count, x);
}

// What rows of a product have come to, for the columns of a panel from `column` on; `result` gives those of row m from one
// of them on.
template <class Result>
INLINE void finish_rows(const Target& of_call, long row, long num_rows, long column, long num_columns, const Result& result) {
    const Target target = of_call;  // which no store can change
    const long count = least(PANEL, num_columns - column);
    for (long m = 0; m < num_rows; m++)
        if (target.is_gated)
            for (long at = 0; at < PANEL / 2; at += ROW_LANES)
                finish(target, row + m, column / 2 + at, ROW_LANES, silu(result(m, at)) * result(m, PANEL / 2 + at));
        else if (count == PANEL)
            for (long at = 0; at < PANEL; at += ROW_LANES) finish(target, row + m, column + at, ROW_LANES, result(m, at));
        else
            for (long at = 0; at < count; at += ROW_LANES)
                finish(target, row + m, column + at, least(ROW_LANES, count - at), result(m, at));
}
