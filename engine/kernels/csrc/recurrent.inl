// Recurrent layers for one instruction set. recurrent.cpp includes this file once per set, each time in a namespace of its
// own, with these macros:
//   AVX512         1 where its intrinsics are there
//   BLOCK_VECTORS  vectors of value columns that the delta rule takes together, at most: 1, 2 or 4
//   PART_VECTORS   those of a part of a state that a thread takes through all tokens: it should stay in the nearest cache
//
// However many columns or rows are together, each number is computed in one order.

#include "vectors.inl"

// Where widths differ, compilers must not choose which of two products is part of a fused operation.
INLINE f32x16 multiply_add(f32x16 a, f32x16 b, f32x16 c) {
#if AVX512
    return reinterpret_cast<f32x16>(_mm512_fmadd_ps(as_m512(a), as_m512(b), as_m512(c)));
#else
    return a * b + c;
#endif
}

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

INLINE u16x16 narrow(f32x16 x) {
    const u32x16 bits = bits_as<u32x16>(x);
    const u32x16 nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16, quiet = bits >> 16 | 0x40;
    return __builtin_convertvector(x == x ? nearest : quiet, u16x16);
}

// What is left of a number in the type T.
template <class T> INLINE f32x16 rounded(f32x16 x);
template <> INLINE f32x16 rounded<float>(f32x16 x) { return x; }
template <> INLINE f32x16 rounded<bf16>(f32x16 x) {
    const u32x16 bits = bits_as<u32x16>(x);
    const u32x16 nearest = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
    return x == x ? bits_as<f32x16>(nearest) : x;
}

INLINE void store_all(float* p, f32x16 x) { store(p, x); }
INLINE void store_all(bf16* p, f32x16 x) { *reinterpret_cast<u16x16_unaligned*>(p) = narrow(x); }

template <class T> INLINE void store_first(T* p, f32x16 x, long count) {
    if (count >= 16) return store_all(p, x);
    T padded[16];
    store_all(padded, x);
    __builtin_memcpy(p, padded, count * sizeof(T));
}

// The numbers as floats, and zeros up to a whole vector.
template <class T> INLINE void widen_row(const T* row, long count, float* out) {
    for (long i = 0; i < count; i += 16) store(out + i, first_of(row + i, count - i));
}

// As exp_of, and infinite where it is beyond float32.
INLINE f32x16 any_exp_of(f32x16 x) {
    const f32x16 top = splat(88.72f);
    return x > top ? splat(__builtin_inff()) : exp_of(x);
}

INLINE f32x16 silu(f32x16 x) {
    const f32x16 bottom = splat(-88.0f);  // below, exp(-x) is beyond float32
    return x / (1.0f + exp_of(x < bottom ? -bottom : -x));
}

// log(1 + exp(x)), by log(1 + u) = 2 artanh(u / (2 + u)) for u = exp(-|x|); to about 3 units in the last place.
INLINE f32x16 softplus(f32x16 x) {
    const f32x16 u = exp_of(x < 0.0f ? x : -x), z = u / (2.0f + u), square = z * z;
    f32x16 series = splat(1.0f / 15);
    UNROLL
    for (int odd = 13; odd > 0; odd -= 2) series = multiply_add(series, square, splat(1.0f / odd));
    return multiply_add(z + z, series, x > 0.0f ? x : f32x16{});
}

INLINE f32x16 within(f32x16 x, float low, float high) {
    const f32x16 least_value = splat(low), most_value = splat(high);
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
    return Kernels{convolve<T>, delta_rule<T>, mamba2<T>, selective_scan<T>, 16 * PART_VECTORS};
}

Kernels kernels_for(bool is_bf16) { return is_bf16 ? kernels_of<bf16>() : kernels_of<float>(); }
