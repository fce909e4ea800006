// Decoder layers in bfloat16: norm, token mixer and gated MLP with their residuals, from the hidden states of a step's
// tokens to those behind the last layer.
//
// Sums are kept in float32 between what a layer stores; each intermediate result is rounded to bfloat16 once.

#include <initializer_list>

#include "structures.h"

#if defined(__x86_64__)

namespace {

#define AVX2 1
#define AVX512 0
BEGIN_TARGET("avx2,fma")
namespace avx2 {
#include "decoder.inl"
}  // namespace avx2
END_TARGET
#undef AVX512

#define AVX512 1
BEGIN_TARGET("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq")
namespace avx512 {
#include "decoder.inl"
}  // namespace avx512
END_TARGET

}  // namespace

extern "C" {

// Returns 0, or 1 without memory to work in.
EXPORT int64_t orcinus_decode(const DecoderCall* call, const Team* team, int64_t level) {
    return level >= 2 ? avx512::decode(*call, *team, level) : avx2::decode(*call, *team, level);
}
}

#else

extern "C" EXPORT int64_t orcinus_decode(const DecoderCall*, const Team*, int64_t) { return 1; }

#endif
