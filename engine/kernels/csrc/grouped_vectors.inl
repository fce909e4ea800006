// What products in groups need of an instruction set: vectors of integers of 32 bits, each of four products, and of floats.
// grouped.cpp includes this file in a namespace per set, with AVX512, AVX2, VNNI and ARM_DOT as 1 where they are there.
//
// dot() multiplies two lanes of values without a sign by a row's integers. Where the instruction that does it saturates
// (HAS_SUMS_OF_PAIRS), sums of 16 bits are kept of a group if its values are small enough, or of two lanes. There, and where it
// takes values with a sign (TAKES_128_OFF), large values are multiplied less 128. add_scaled() adds a group's sum, which fits into
// 16 bits, times its columns' integers.

#include "rows.inl"

// How large values may be.
enum Size { BELOW_16, BELOW_64, ANY_BYTE };

#if AVX512

typedef __m512i Ints;
typedef __m512 Floats;
typedef __m512i Table;
const bool HAS_SUMS_OF_PAIRS = false, TAKES_128_OFF = false;

INLINE Ints load_values(const void* p) { return _mm512_loadu_si512(p); }
INLINE Ints zero_ints() { return _mm512_setzero_si512(); }
INLINE Ints every(const void* p) { return _mm512_set1_epi32(*static_cast<const int32_t*>(p)); }
INLINE Floats every(float x) { return _mm512_set1_ps(x); }
INLINE Ints low_half(Ints x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
INLINE Ints high_half(Ints x) { return low_half(_mm512_srli_epi16(x, 4)); }
INLINE Table table_of(const uint8_t* p) {
    return _mm512_maskz_broadcast_i32x4(0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
INLINE Ints look_up(Table table, Ints x) { return _mm512_shuffle_epi8(table, x); }

INLINE Floats as_floats_of(Ints x) { return _mm512_cvtepi32_ps(x); }
INLINE Floats zero_floats() { return _mm512_setzero_ps(); }
INLINE Floats product(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
INLINE Floats fused(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
INLINE Floats fused_less(Floats a, Floats b, Floats c) { return _mm512_fnmadd_ps(a, b, c); }
INLINE Floats numbers(const float* p) { return _mm512_loadu_ps(p); }
INLINE void put(float* p, Floats x) { _mm512_storeu_ps(p, x); }
INLINE void put(float* p, Ints x) { _mm512_storeu_si512(p, x); }

INLINE Floats halves(const void* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p))); }
INLINE Ints wide_bytes(const void* p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))); }
INLINE Floats unsigned_bytes(const void* p) { return as_floats_of(wide_bytes(p)); }
INLINE Floats signed_bytes(const void* p) {
    return as_floats_of(_mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))));
}
INLINE Floats exponents(const void* p) { return _mm512_castsi512_ps(_mm512_slli_epi32(wide_bytes(p), 23)); }

template <Size> INLINE Ints first_sum(const void* start) { return every(start); }
INLINE Ints dot_lane(Ints sum, Ints values, Ints x) { return _mm512_dpbusd_epi32(sum, values, x); }
template <Size> INLINE Ints dot(Ints sum, Ints first, Ints x, Ints second, Ints y) {
    return dot_lane(dot_lane(sum, first, x), second, y);
}
template <Size> INLINE Ints whole_sum(Ints sum, const void*) { return sum; }

INLINE Ints column_parts(const void* p) {
    const Ints wide = _mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
    return _mm512_and_si512(wide, _mm512_set1_epi32(0xffff));
}
INLINE Ints add_scaled(Ints to, Ints sum, Ints part) { return _mm512_dpwssd_epi32(to, sum, part); }

INLINE f32x16 greater(f32x16 a, f32x16 b) { return reinterpret_cast<f32x16>(_mm512_max_ps(as_m512(a), as_m512(b))); }
INLINE f32x16 lesser(f32x16 a, f32x16 b) { return reinterpret_cast<f32x16>(_mm512_min_ps(as_m512(a), as_m512(b))); }
INLINE f32x16 nearest(f32x16 x) { return reinterpret_cast<f32x16>(_mm512_roundscale_ps(as_m512(x), 0)); }
INLINE void put_bytes(int8_t* p, f32x16 whole) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(as_m512(whole))));
}

#elif AVX2

typedef __m256i Ints;
typedef __m256 Floats;
typedef __m256i Table;
const bool HAS_SUMS_OF_PAIRS = !VNNI, TAKES_128_OFF = !VNNI;

INLINE Ints load_values(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
INLINE Ints zero_ints() { return _mm256_setzero_si256(); }
INLINE Ints every(const void* p) { return _mm256_set1_epi32(*static_cast<const int32_t*>(p)); }
INLINE Floats every(float x) { return _mm256_set1_ps(x); }
INLINE Ints low_half(Ints x) { return _mm256_and_si256(x, _mm256_set1_epi8(15)); }
INLINE Ints high_half(Ints x) { return low_half(_mm256_srli_epi16(x, 4)); }
INLINE Table table_of(const uint8_t* p) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
INLINE Ints look_up(Table table, Ints x) { return _mm256_shuffle_epi8(table, x); }

INLINE Floats as_floats_of(Ints x) { return _mm256_cvtepi32_ps(x); }
INLINE Floats zero_floats() { return _mm256_setzero_ps(); }
INLINE Floats product(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
INLINE Floats fused(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
INLINE Floats fused_less(Floats a, Floats b, Floats c) { return _mm256_fnmadd_ps(a, b, c); }
INLINE Floats numbers(const float* p) { return _mm256_loadu_ps(p); }
INLINE void put(float* p, Floats x) { _mm256_storeu_ps(p, x); }
INLINE void put(float* p, Ints x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }

INLINE Floats halves(const void* p) { return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p))); }
INLINE Ints wide_bytes(const void* p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p))); }
INLINE Floats unsigned_bytes(const void* p) { return as_floats_of(wide_bytes(p)); }
INLINE Floats signed_bytes(const void* p) {
    return as_floats_of(_mm256_cvtepi8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p))));
}
INLINE Floats exponents(const void* p) { return _mm256_castsi256_ps(_mm256_slli_epi32(wide_bytes(p), 23)); }
INLINE Ints wide_signed_bytes(const void* p) {
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p)));
}

#if VNNI

template <Size> INLINE Ints first_sum(const void* start) { return every(start); }
template <Size> INLINE Ints dot(Ints sum, Ints first, Ints x, Ints second, Ints y) {
    return _mm256_dpbusd_avx_epi32(_mm256_dpbusd_avx_epi32(sum, first, x), second, y);
}
template <Size> INLINE Ints whole_sum(Ints sum, const void*) { return sum; }

INLINE Ints column_parts(const void* p) { return _mm256_and_si256(wide_signed_bytes(p), _mm256_set1_epi32(0xffff)); }
INLINE Ints add_scaled(Ints to, Ints sum, Ints part) { return _mm256_dpwssd_avx_epi32(to, sum, part); }

#else

// Or a compiler adds up products first, which are too many for the registers.
INLINE Ints kept(Ints sum) {
    __asm__("" : "+v"(sum));
    return sum;
}

INLINE Ints of_pairs(Ints x) { return _mm256_madd_epi16(x, _mm256_set1_epi16(1)); }

// Of values less 128.
INLINE Ints signed_products(Ints values, Ints x) {
    const Ints shifted = _mm256_xor_si256(values, _mm256_set1_epi8(-128));
    return of_pairs(_mm256_maddubs_epi16(_mm256_abs_epi8(shifted), _mm256_sign_epi8(x, shifted)));
}

// Of values below 16 the products of a whole group, 32 times 15 times 127, fit into two numbers of 16 bits; of values below 64
// those of two lanes.
template <Size SIZE> INLINE Ints first_sum(const void* start) {
    return SIZE == BELOW_16 ? _mm256_setzero_si256() : every(start);
}
template <Size SIZE> INLINE Ints dot(Ints sum, Ints first, Ints x, Ints second, Ints y) {
    if (SIZE == ANY_BYTE) {
        sum = kept(_mm256_add_epi32(sum, signed_products(first, x)));
        return kept(_mm256_add_epi32(sum, signed_products(second, y)));
    }
    const Ints a = _mm256_maddubs_epi16(first, x), b = _mm256_maddubs_epi16(second, y);
    if (SIZE == BELOW_64) return kept(_mm256_add_epi32(sum, of_pairs(_mm256_add_epi16(a, b))));
    return kept(_mm256_add_epi16(kept(_mm256_add_epi16(sum, a)), b));
}
template <Size SIZE> INLINE Ints whole_sum(Ints sum, const void* start) {
    return SIZE == BELOW_16 ? _mm256_add_epi32(every(start), of_pairs(sum)) : sum;
}

INLINE Ints column_parts(const void* p) {
    const __m128i twice = _mm_setr_epi8(0, 1, 0, 1, 4, 5, 4, 5, 8, 9, 8, 9, 12, 13, 12, 13);
    return _mm256_shuffle_epi8(wide_signed_bytes(p), _mm256_broadcastsi128_si256(twice));
}
INLINE Ints add_scaled(Ints to, Ints sum, Ints part) { return _mm256_add_epi32(to, _mm256_madd_epi16(sum, part)); }

#endif

INLINE f32x8 greater(f32x8 a, f32x8 b) { return _mm256_max_ps(a, b); }
INLINE f32x8 nearest(f32x8 x) { return _mm256_round_ps(x, 8); }
INLINE void put_bytes(int8_t* p, f32x8 whole) {
    const __m256i wide = _mm256_cvtps_epi32(whole);
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
}

INLINE f32x16 fused(f32x16 a, f32x16 b, f32x16 c) {
    const Halves<f32x16, f32x8> x(a), y(b), z(c);
    return joined(fused(x.low, y.low, z.low), fused(x.high, y.high, z.high));
}
INLINE f32x16 greater(f32x16 a, f32x16 b) {
    const Halves<f32x16, f32x8> x(a), y(b);
    return joined(greater(x.low, y.low), greater(x.high, y.high));
}
INLINE f32x16 lesser(f32x16 a, f32x16 b) {
    const Halves<f32x16, f32x8> x(a), y(b);
    return joined(_mm256_min_ps(x.low, y.low), _mm256_min_ps(x.high, y.high));
}
INLINE f32x16 nearest(f32x16 x) {
    const Halves<f32x16, f32x8> parts(x);
    return joined(nearest(parts.low), nearest(parts.high));
}
INLINE void put_bytes(int8_t* p, f32x16 whole) {
    const Halves<f32x16, f32x8> parts(whole);
    put_bytes(p, parts.low);
    put_bytes(p + 8, parts.high);
}

#elif ARM_DOT

typedef int32x4_t Ints;
typedef float32x4_t Floats;
typedef uint8x16_t Table;
const bool HAS_SUMS_OF_PAIRS = false, TAKES_128_OFF = true;

INLINE Ints load_values(const void* p) { return vreinterpretq_s32_u8(vld1q_u8(static_cast<const uint8_t*>(p))); }
INLINE Ints zero_ints() { return vdupq_n_s32(0); }
INLINE Ints every(const void* p) { return vdupq_n_s32(*static_cast<const int32_t*>(p)); }
INLINE Floats every(float x) { return vdupq_n_f32(x); }
INLINE Ints low_half(Ints x) { return vandq_s32(x, vdupq_n_s32(0x0f0f0f0f)); }
INLINE Ints high_half(Ints x) { return vreinterpretq_s32_u8(vshrq_n_u8(vreinterpretq_u8_s32(x), 4)); }
INLINE Table table_of(const uint8_t* p) { return vld1q_u8(p); }
INLINE Ints look_up(Table table, Ints x) { return vreinterpretq_s32_u8(vqtbl1q_u8(table, vreinterpretq_u8_s32(x))); }

INLINE Floats as_floats_of(Ints x) { return vcvtq_f32_s32(x); }
INLINE Floats zero_floats() { return vdupq_n_f32(0.0f); }
INLINE Floats product(Floats a, Floats b) { return vmulq_f32(a, b); }
INLINE Floats fused(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
INLINE Floats fused_less(Floats a, Floats b, Floats c) { return vfmsq_f32(c, a, b); }
INLINE Floats numbers(const float* p) { return vld1q_f32(p); }
INLINE void put(float* p, Floats x) { vst1q_f32(p, x); }
INLINE void put(float* p, Ints x) { __builtin_memcpy(p, &x, sizeof x); }

INLINE Floats halves(const void* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(static_cast<const uint16_t*>(p)))); }
INLINE uint8x8_t four_bytes(const void* p) {
    uint32_t bytes;
    __builtin_memcpy(&bytes, p, sizeof bytes);
    return vcreate_u8(bytes);
}
INLINE uint32x4_t wide_bytes(const void* p) { return vmovl_u16(vget_low_u16(vmovl_u8(four_bytes(p)))); }
INLINE Ints column_parts(const void* p) { return vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u8(four_bytes(p))))); }
INLINE Floats unsigned_bytes(const void* p) { return vcvtq_f32_u32(wide_bytes(p)); }
INLINE Floats signed_bytes(const void* p) { return as_floats_of(column_parts(p)); }
INLINE Floats exponents(const void* p) { return vreinterpretq_f32_u32(vshlq_n_u32(wide_bytes(p), 23)); }

template <Size> INLINE Ints first_sum(const void* start) { return every(start); }
template <Size SIZE> INLINE Ints dot_lane(Ints sum, Ints values, Ints x) {
    if (SIZE == ANY_BYTE) values = veorq_s32(values, vreinterpretq_s32_u8(vdupq_n_u8(128)));
    return vdotq_s32(sum, vreinterpretq_s8_s32(values), vreinterpretq_s8_s32(x));
}
template <Size SIZE> INLINE Ints dot(Ints sum, Ints first, Ints x, Ints second, Ints y) {
    return dot_lane<SIZE>(dot_lane<SIZE>(sum, first, x), second, y);
}
template <Size> INLINE Ints whole_sum(Ints sum, const void*) { return sum; }
INLINE Ints add_scaled(Ints to, Ints sum, Ints part) { return vmlaq_s32(to, sum, part); }

#else

struct Ints {
    int32_t at[16];
};
struct Floats {
    float at[16];
};
typedef const uint8_t* Table;
const bool HAS_SUMS_OF_PAIRS = false, TAKES_128_OFF = false;

template <class To, class Number> INLINE To each_of(const Number& number) {
    To to;
    for (int i = 0; i < 16; i++) to.at[i] = number(i);
    return to;
}

INLINE Ints load_values(const void* p) {
    Ints x;
    __builtin_memcpy(&x, p, sizeof x);
    return x;
}
INLINE Ints every(const void* p) {
    int32_t number;
    __builtin_memcpy(&number, p, sizeof number);
    return each_of<Ints>([&](int) { return number; });
}
INLINE Ints zero_ints() { return Ints{}; }
INLINE Floats every(float x) { return each_of<Floats>([&](int) { return x; }); }
INLINE Ints low_half(Ints x) { return each_of<Ints>([&](int i) { return x.at[i] & 0x0f0f0f0f; }); }
INLINE Ints high_half(Ints x) { return each_of<Ints>([&](int i) { return x.at[i] >> 4 & 0x0f0f0f0f; }); }
INLINE Table table_of(const uint8_t* p) { return p; }
INLINE Ints look_up(Table table, Ints x) {
    uint8_t bytes[64];
    __builtin_memcpy(bytes, &x, sizeof x);
    for (uint8_t& byte : bytes) byte = table[byte];
    return load_values(bytes);
}

INLINE Floats as_floats_of(Ints x) { return each_of<Floats>([&](int i) { return static_cast<float>(x.at[i]); }); }
INLINE Floats zero_floats() { return every(0.0f); }
INLINE Floats product(Floats a, Floats b) { return each_of<Floats>([&](int i) { return a.at[i] * b.at[i]; }); }
INLINE Floats fused(Floats a, Floats b, Floats c) {
    return each_of<Floats>([&](int i) { return __builtin_fmaf(a.at[i], b.at[i], c.at[i]); });
}
INLINE Floats fused_less(Floats a, Floats b, Floats c) {
    return each_of<Floats>([&](int i) { return __builtin_fmaf(-a.at[i], b.at[i], c.at[i]); });
}
INLINE Floats numbers(const float* p) { return each_of<Floats>([&](int i) { return p[i]; }); }
INLINE void put(float* p, Floats x) { __builtin_memcpy(p, &x, sizeof x); }
INLINE void put(float* p, Ints x) { __builtin_memcpy(p, &x, sizeof x); }

INLINE Floats halves(const void* p) {
    return each_of<Floats>([&](int i) { return half_to_float(static_cast<const uint16_t*>(p)[i]); });
}
INLINE Floats unsigned_bytes(const void* p) {
    return each_of<Floats>([&](int i) { return static_cast<float>(static_cast<const uint8_t*>(p)[i]); });
}
INLINE Floats signed_bytes(const void* p) {
    return each_of<Floats>([&](int i) { return static_cast<float>(static_cast<const int8_t*>(p)[i]); });
}
INLINE Floats exponents(const void* p) {
    return each_of<Floats>([&](int i) { return bits_as<float>(uint32_t{static_cast<const uint8_t*>(p)[i]} << 23); });
}

template <Size> INLINE Ints first_sum(const void* start) { return every(start); }
INLINE Ints dot_lane(Ints sum, Ints values, Ints x) {
    uint8_t a[64];
    int8_t b[64];
    __builtin_memcpy(a, &values, sizeof a);
    __builtin_memcpy(b, &x, sizeof b);
    for (int i = 0; i < 64; i++) sum.at[i / 4] += a[i] * b[i];
    return sum;
}
template <Size> INLINE Ints dot(Ints sum, Ints first, Ints x, Ints second, Ints y) {
    return dot_lane(dot_lane(sum, first, x), second, y);
}
template <Size> INLINE Ints whole_sum(Ints sum, const void*) { return sum; }

INLINE Ints column_parts(const void* p) {
    return each_of<Ints>([&](int i) { return static_cast<const int8_t*>(p)[i]; });
}
INLINE Ints add_scaled(Ints to, Ints sum, Ints part) {
    return each_of<Ints>([&](int i) { return to.at[i] + sum.at[i] * part.at[i]; });
}

#endif

#if !AVX512 && !AVX2

INLINE f32x16 fused(f32x16 a, f32x16 b, f32x16 c) {
    UNROLL for (int i = 0; i < 16; i++) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return c;
}
INLINE f32x16 greater(f32x16 a, f32x16 b) { return a > b ? a : b; }
INLINE f32x16 lesser(f32x16 a, f32x16 b) { return a < b ? a : b; }
INLINE f32x16 nearest(f32x16 x) {
    UNROLL for (int i = 0; i < 16; i++) x[i] = __builtin_rintf(x[i]);
    return x;
}
INLINE void put_bytes(int8_t* p, f32x16 whole) {
    for (int i = 0; i < 16; i++) p[i] = static_cast<int8_t>(whole[i]);
}

#endif

// Columns of a vector, and vectors of a panel.
const long LANES = sizeof(Ints) / 4, VECTORS = PANEL / LANES;

// Vectors of a panel whose integers are summed at once: with more, registers would not hold the sums of a tile's rows.
const int VECTORS_AT_ONCE = 2;

// Of columns of a group: the scales of values, and what is taken off.
struct Scales {
    Floats scale[VECTORS_AT_ONCE], offset[VECTORS_AT_ONCE];
};

// From vector `first` of a panel on.
template <bool HAS_OFFSETS>
INLINE Scales scales_of(int64_t kind, const GroupLayout& layout, const char* head, long group, long first) {
    Scales s;
    const char* parts = head + (kind == EXPONENT_SCALES ? 0 : HAS_OFFSETS ? 4 : 2) * PANEL + group * PANEL;
    const char* offset_parts = parts + layout.per_block * PANEL;
    UNROLL for (long v = 0; v < VECTORS_AT_ONCE; v++) {
        const long column = (first + v) * LANES;
        s.scale[v] = kind == EXPONENT_SCALES ? exponents(parts + column) : halves(head + column * 2);
        s.offset[v] = HAS_OFFSETS ? halves(head + (PANEL + column) * 2) : zero_floats();
        if (kind != TWO_LEVEL_SCALES) continue;
        s.scale[v] = product(s.scale[v], signed_bytes(parts + column));
        if (HAS_OFFSETS) s.offset[v] = product(s.offset[v], unsigned_bytes(offset_parts + column));
    }
    return s;
}
