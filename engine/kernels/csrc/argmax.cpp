// The largest of each row of logits and where it is: what greedy sampling needs of them.

#include "common.h"

#if defined(__x86_64__)

#define AVX512 1

BEGIN_TARGET("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq")

namespace {

#include "rows.inl"

// NaN if any value is.
INLINE float largest_of(const bf16* row, long width) {
    f32x16 most = splat(-INFINITY), poison = {};
    for (long i = 0; i < width; i += 16) {
        const f32x16 x = i + 16 <= width ? widen(row + i) : widen(row + width - 16);
        most = larger(x, most);
        poison += x == x ? f32x16{} : x;
    }
    return max_of(most) + sum_of(poison);
}

// The first place of a value; the last place of all if it is nowhere.
INLINE long place_of(const bf16* row, long width, float value) {
    const __m512 wanted = _mm512_set1_ps(value);
    for (long i = 0; i + 16 <= width; i += 16) {
        const __mmask16 found = _mm512_cmp_ps_mask(as_m512(widen(row + i)), wanted, _CMP_EQ_OQ);
        if (found) return i + __builtin_ctz(found);
    }
    long i = width / 16 * 16;
    while (i < width - 1 && to_float(row[i]) != value) i++;
    return least(i, width - 1);
}

}  // namespace

extern "C" {

// Rows are `stride` elements apart. Of equal values the first counts; a row with a NaN has NaN. A row has 16 values at
// least.
EXPORT int64_t orcinus_argmax(const bf16* logits, int64_t num_rows, int64_t width, int64_t stride, float* values,
                              int64_t* indices, const Team* team) {
    parallel_for(*team, num_rows, [&](long row) {
        const bf16* values_of_row = logits + row * stride;
        values[row] = largest_of(values_of_row, width);
        indices[row] = place_of(values_of_row, width, values[row]);
    });
    return 0;
}
}

END_TARGET

#else

extern "C" EXPORT int64_t orcinus_argmax(const bf16*, int64_t, int64_t, int64_t, float*, int64_t*, const Team*) {
    return 1;
}

#endif
