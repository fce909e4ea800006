// Vectors of 16 lanes, lowered by the compiler to whatever the instruction set has. Included in a namespace per set, with
// AVX512 as 1 where its intrinsics are there.

#if AVX512
INLINE __m512 as_m512(f32x16 x) { return reinterpret_cast<__m512>(x); }
#endif

INLINE f32x16 splat(float x) { return f32x16{} + x; }

// Without a sum that a compiler cannot leave out.
INLINE f32x16 each(float x) { return f32x16{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }

INLINE f32x16 load(const float* p) { return *reinterpret_cast<const f32x16_unaligned*>(p); }

INLINE void store(float* p, f32x16 x) { *reinterpret_cast<f32x16_unaligned*>(p) = x; }

INLINE f32x16 widen(const bf16* p) {
#if AVX512
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return reinterpret_cast<f32x16>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
#else
    const u16x16 raw = *reinterpret_cast<const u16x16_unaligned*>(p);
    return bits_as<f32x16>(__builtin_convertvector(raw, u32x16) << 16);
#endif
}

// Where widths differ, compilers must not choose which of two products is part of a fused operation.
INLINE f32x16 multiply_add(f32x16 a, f32x16 b, f32x16 c) {
#if AVX512
    return reinterpret_cast<f32x16>(_mm512_fmadd_ps(as_m512(a), as_m512(b), as_m512(c)));
#else
    return a * b + c;
#endif
}

INLINE f32x16 load_as_float(const float* p) { return load(p); }
INLINE f32x16 load_as_float(const bf16* p) { return widen(p); }

template <class Stored> INLINE f32x16 load_first(const Stored* p, long count) {
    Stored padded[16] = {};
    __builtin_memcpy(padded, p, count * sizeof(Stored));
    return load_as_float(padded);
}

INLINE float sum_of(f32x16 x) {
    const Halves<f32x16, f32x8> h16(x);
    const Halves<f32x8, f32x4> h8(h16.low + h16.high);
    const f32x4 v = h8.low + h8.high;
    return (v[0] + v[2]) + (v[1] + v[3]);
}

INLINE f32x16 larger(f32x16 a, f32x16 b) { return a > b ? a : b; }

INLINE float max_of(f32x16 x) {
    const Halves<f32x16, f32x8> h16(x);
    const Halves<f32x8, f32x4> h8(h16.low > h16.high ? h16.low : h16.high);
    const f32x4 v = h8.low > h8.high ? h8.low : h8.high;
    const float a = v[0] > v[2] ? v[0] : v[2], b = v[1] > v[3] ? v[1] : v[3];
    return a > b ? a : b;
}

// exp to about 2 units in the last place; 0 below -87, and NaN stays NaN.
INLINE f32x16 exp_of(f32x16 x) {
    const f32x16 shift = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer in the low bits
    const f32x16 shifted = x * 1.44269504f + shift;
    const f32x16 n = shifted - shift;
    const f32x16 r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
    f32x16 p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    const u32x16 scaled = bits_as<u32x16>(p) + (bits_as<u32x16>(shifted) << 23);
    const f32x16 y = x == x ? bits_as<f32x16>(scaled) : x;
    return x < -87.0f ? f32x16{} : y;
}

// log(1 + exp(x)), by log(1 + u) = 2 artanh(u / (2 + u)) for u = exp(-|x|); to about 3 units in the last place.
INLINE f32x16 softplus(f32x16 x) {
    const f32x16 u = exp_of(x < 0.0f ? x : -x), z = u / (2.0f + u), square = z * z;
    f32x16 series = each(1.0f / 15);
    UNROLL
    for (int odd = 13; odd > 0; odd -= 2) series = multiply_add(series, square, each(1.0f / odd));
    return multiply_add(z + z, series, x > 0.0f ? x : f32x16{});
}

INLINE f32x16 tanh_of(f32x16 x) {
    const f32x16 top = splat(40.0f);
    const f32x16 doubled = x * 2.0f;
    return 1.0f - 2.0f / (exp_of(doubled > top ? top : doubled) + 1.0f);
}
