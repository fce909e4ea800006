// Recurrent layers for one instruction set. recurrent.cpp includes this file once per set, each time in a namespace of its
// own, with these macros:
//   AVX512         1 where its intrinsics are there
//   BLOCK_VECTORS  vectors of value columns that the delta rule takes together, at most: 1 or 4
//   BLOCK_ROWS     rows of a state that Mamba-2 takes together: 4 or 16
//
// However many columns or rows are together, each number is computed in one order.

#include "vectors.inl"

template <class T> INLINE f32x16 first_of(const T* p, long count) {
    return count >= 16 ? load_as_float(p) : load_first(p, count);
}

// The first `count` of 16 numbers that lie `stride` apart, and zeros.
template <class T> INLINE f32x16 gather(const T* p, long stride, long count) {
    if (stride == 1) return first_of(p, count);
    float gathered[16] = {};
    for (long i = 0; i < least(16, count); i++) gathered[i] = to_float(p[i * stride]);
    return load(gathered);
}

// What is left of a number in the type T.
template <class T> INLINE f32x16 rounded(f32x16 x);
template <> INLINE f32x16 rounded<float>(f32x16 x) { return x; }
template <> INLINE f32x16 rounded<bf16>(f32x16 x) {
    const u32x16 bits = bits_as<u32x16>(x);
    const u32x16 nearest = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
    return x == x ? bits_as<f32x16>(nearest) : x;
}

INLINE u16x16 narrow(f32x16 x) {
#if AVX512
    const __m512i bits = reinterpret_cast<__m512i>(rounded<bf16>(x));
    return reinterpret_cast<u16x16>(_mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16)));
#else
    const u32x16 bits = bits_as<u32x16>(x);
    const u32x16 nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16, quiet = bits >> 16 | 0x40;
    return __builtin_convertvector(x == x ? nearest : quiet, u16x16);
#endif
}

INLINE void store_all(float* p, f32x16 x) { store(p, x); }
INLINE void store_all(bf16* p, f32x16 x) { *reinterpret_cast<u16x16_unaligned*>(p) = narrow(x); }

template <class T> INLINE void store_first(T* p, f32x16 x, long count) {
    if (count >= 16) return store_all(p, x);
    T padded[16];
    store_all(padded, x);
    __builtin_memcpy(p, padded, count * sizeof(T));
}

// As sum_of, for sums that a compiler should keep in registers until then.
INLINE float sum_of_stored(f32x16 x) {
    float stored[16];
    store(stored, x);
    return sum_of(load(stored));
}

#if AVX512
// For two vectors: lanes that are 8, 4, 2 or 1 apart are added up, those of both beside each other.
INLINE f32x16 fold_8(f32x16 a, f32x16 b) {
    const __m512 x = as_m512(a), y = as_m512(b);
    return reinterpret_cast<f32x16>(_mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x44), _mm512_shuffle_f32x4(x, y, 0xee)));
}
INLINE f32x16 fold_4(f32x16 a, f32x16 b) {
    const __m512 x = as_m512(a), y = as_m512(b);
    return reinterpret_cast<f32x16>(_mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x88), _mm512_shuffle_f32x4(x, y, 0xdd)));
}
INLINE f32x16 fold_2(f32x16 a, f32x16 b) {
    const __m512 x = as_m512(a), y = as_m512(b);
    return reinterpret_cast<f32x16>(_mm512_add_ps(_mm512_shuffle_ps(x, y, 0x44), _mm512_shuffle_ps(x, y, 0xee)));
}
INLINE f32x16 fold_1(f32x16 a, f32x16 b) {
    const __m512 x = as_m512(a), y = as_m512(b);
    return reinterpret_cast<f32x16>(_mm512_add_ps(_mm512_shuffle_ps(x, y, 0x88), _mm512_shuffle_ps(x, y, 0xdd)));
}
// The sums of vectors `first`, `first` + 4, + 8 and + 12, in four parts each that lie beside each other.
INLINE f32x16 fold_four(const f32x16 (&x)[16], int first) {
    return fold_4(fold_8(x[first], x[first + 4]), fold_8(x[first + 8], x[first + 12]));
}
#endif

// Each vector's sum_of, with the same bits.
INLINE f32x16 sums_of(const f32x16 (&x)[16]) {
#if AVX512
    return fold_1(fold_2(fold_four(x, 0), fold_four(x, 1)), fold_2(fold_four(x, 2), fold_four(x, 3)));
#else
    float sums[16];
    for (int i = 0; i < 16; i++) sums[i] = sum_of(x[i]);
    return load(sums);
#endif
}

// The numbers as floats, and zeros up to a whole vector.
template <class T> INLINE void widen_row(const T* row, long count, float* out) {
    for (long i = 0; i < count; i += 16) store(out + i, first_of(row + i, count - i));
}

// As exp_of, and infinite where it is beyond float32.
INLINE f32x16 any_exp_of(f32x16 x) {
    const f32x16 top = each(88.72f);
    return x > top ? each(__builtin_inff()) : exp_of(x);
}

INLINE f32x16 silu(f32x16 x) {
    const f32x16 bottom = each(-88.0f);  // below, exp(-x) is beyond float32
    return x / (1.0f + exp_of(x < bottom ? -bottom : -x));
}

INLINE f32x16 within(f32x16 x, float low, float high) {
    const f32x16 least_value = each(low), most_value = each(high);
    const f32x16 raised = x < least_value ? least_value : x;
    return raised > most_value ? most_value : raised;
}

// Step sizes as transformers makes them ready: every result is rounded to their type.
template <class T> INLINE f32x16 step_sizes(f32x16 dt, f32x16 bias, bool has_softplus) {
    const f32x16 sum = rounded<T>(dt + bias);
    return has_softplus ? rounded<T>(softplus(sum)) : sum;
}

#include "convolution.inl"
#include "delta_rule.inl"
#include "state_spaces.inl"

template <class T> Kernels kernels_of() {
    return Kernels{convolve<T>, delta_rule<T>, mamba2<T>, selective_scan<T>, part_columns};
}

Kernels kernels_for(bool is_bf16) { return is_bf16 ? kernels_of<bf16>() : kernels_of<float>(); }
