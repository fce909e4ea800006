// Vectors of 16 lanes, lowered by the compiler to whatever the instruction set has. Included in a namespace per set, with
// AVX512 as 1 where its intrinsics are there.

#if AVX512
INLINE __m512 as_m512(f32x16 x) { return reinterpret_cast<__m512>(x); }
#endif

INLINE f32x16 splat(float x) { return f32x16{} + x; }

// Without a sum that a compiler cannot leave out.
INLINE f32x16 each(float x) { return f32x16{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }

#if AVX2 && !AVX512
// Compilers make a vector of 16 lanes of two by way of memory, number by number: what matters is done in halves.
INLINE f32x16 joined(f32x8 low, f32x8 high) {
    f32x16 x;
    __builtin_memcpy(&x, &low, sizeof low);
    __builtin_memcpy(reinterpret_cast<char*>(&x) + sizeof low, &high, sizeof high);
    return x;
}

INLINE f32x16 load(const float* p) {
    return joined(reinterpret_cast<f32x8>(_mm256_loadu_ps(p)), reinterpret_cast<f32x8>(_mm256_loadu_ps(p + 8)));
}

INLINE void store(float* p, f32x16 x) {
    const Halves<f32x16, f32x8> parts(x);
    _mm256_storeu_ps(p, reinterpret_cast<__m256>(parts.low));
    _mm256_storeu_ps(p + 8, reinterpret_cast<__m256>(parts.high));
}
#else
INLINE f32x16 load(const float* p) { return *reinterpret_cast<const f32x16_unaligned*>(p); }

INLINE void store(float* p, f32x16 x) { *reinterpret_cast<f32x16_unaligned*>(p) = x; }
#endif

#if AVX2 && !AVX512
INLINE f32x8 widen_half(const bf16* p) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return reinterpret_cast<f32x8>(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
#endif

INLINE f32x16 widen(const bf16* p) {
#if AVX512
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return reinterpret_cast<f32x16>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
#elif AVX2
    return joined(widen_half(p), widen_half(p + 8));
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

INLINE float sum_of(f32x8 x) {
    const Halves<f32x8, f32x4> h8(x);
    const f32x4 v = h8.low + h8.high;
    return (v[0] + v[2]) + (v[1] + v[3]);
}

INLINE float sum_of(f32x16 x) {
    const Halves<f32x16, f32x8> h16(x);
    return sum_of(h16.low + h16.high);
}

// Where a number is none, or both are zeros, the second: a > b ? a : b, for which a compiler compares and blends.
#if AVX512
INLINE f32x16 larger(f32x16 a, f32x16 b) { return reinterpret_cast<f32x16>(_mm512_max_ps(as_m512(a), as_m512(b))); }
#elif AVX2
INLINE f32x16 larger(f32x16 a, f32x16 b) {
    const Halves<f32x16, f32x8> x(a), y(b);
    return joined(_mm256_max_ps(x.low, y.low), _mm256_max_ps(x.high, y.high));
}
#else
INLINE f32x16 larger(f32x16 a, f32x16 b) { return a > b ? a : b; }
#endif

INLINE float max_of(f32x8 x) {
    const Halves<f32x8, f32x4> h8(x);
    const f32x4 v = h8.low > h8.high ? h8.low : h8.high;
    const float a = v[0] > v[2] ? v[0] : v[2], b = v[1] > v[3] ? v[1] : v[3];
    return a > b ? a : b;
}

INLINE float max_of(f32x16 x) {
    const Halves<f32x16, f32x8> h16(x);
    return max_of(h16.low > h16.high ? h16.low : h16.high);
}

template <class Floats, class Bits> INLINE Floats exp_of_lanes(Floats x) {
    const Floats shift = Floats{} + 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
    const Floats shifted = x * 1.44269504f + shift;
    const Floats n = shifted - shift;
    const Floats r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
    Floats p = Floats{} + 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    const Bits scaled = bits_as<Bits>(p) + (bits_as<Bits>(shifted) << 23);
    const Floats y = x == x ? bits_as<Floats>(scaled) : x;
    return x < -87.0f ? Floats{} : y;
}

// exp to about 2 units in the last place; 0 below -87, and NaN stays NaN.
INLINE f32x16 exp_of(f32x16 x) {
#if AVX2 && !AVX512
    const Halves<f32x16, f32x8> parts(x);
    return joined(exp_of_lanes<f32x8, u32x8>(parts.low), exp_of_lanes<f32x8, u32x8>(parts.high));
#else
    return exp_of_lanes<f32x16, u32x16>(x);
#endif
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
