// Rows of bfloat16 in vectors of 16, for AVX-512. Included in a namespace per file.

#include "vectors.inl"

INLINE f32x16 as_floats(__m512i bits) { return reinterpret_cast<f32x16>(bits); }

// The first `count` of 16 values from `p` on, and zeros.
INLINE f32x16 read(const bf16* p, long count) {
    if (count >= 16) return widen(p);
    const __m256i raw = _mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << count) - 1), p);
    return as_floats(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
}

// To the nearest bfloat16, ties to even.
INLINE __m256i narrow(f32x16 x) {
    const __m512i bits = reinterpret_cast<__m512i>(x), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(as_m512(x), as_m512(x), _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(_mm512_srli_epi32(rounded, 16), is_nan, _mm512_set1_epi32(0x7fc0)));
}

INLINE void write(bf16* p, long count, f32x16 x) {
    const __mmask16 mask = static_cast<__mmask16>(count >= 16 ? 0xffff : (1u << count) - 1);
    _mm256_mask_storeu_epi16(p, mask, narrow(x));
}

INLINE f32x16 rounded(f32x16 x) { return as_floats(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow(x)), 16)); }

INLINE f32x16 magnitude(f32x16 x) { return x < 0.0f ? -x : x; }

INLINE f32x16 exp_of_negated(f32x16 x) {
    const f32x16 bottom = splat(-88.0f);  // below, exp(-x) is beyond float32
    return exp_of(x < bottom ? -bottom : -x);
}

INLINE f32x16 sigmoid(f32x16 x) { return 1.0f / (1.0f + exp_of_negated(x)); }

INLINE f32x16 silu(f32x16 x) { return x / (1.0f + exp_of_negated(x)); }
