// Products of rows with weights as a model has them, in float32 or bfloat16, summed in float32.
//
// Every number of a result is a function of its row and its column alone: how many rows there are, which of them it is
// and how the work is shared out changes no bit of it.

#include "structures.h"

namespace {

// What is multiplied together: a part of the columns stays in the cache while a block of rows passes by.
const long PART_ROWS = 96;
const long PART_COLUMNS = 64;
// Below this many multiplications, waking the other threads costs more than they save.
const double SERIAL_WORK = 100e3;

struct Part {
    long row, end_row, column, end_column;
};

typedef void (*Kernel)(const PlainProduct&, const Part&);

#define AVX512 0
namespace generic {
#define BLOCK_ROWS 1
#define BLOCK_DOTS 2
#define BLOCK_VECTORS 2
#include "product.inl"
#undef BLOCK_ROWS
#undef BLOCK_DOTS
#undef BLOCK_VECTORS
}  // namespace generic

#if defined(__x86_64__)

#define AVX2 1
BEGIN_TARGET("avx2,fma")
namespace avx2 {
#define BLOCK_ROWS 2
#define BLOCK_DOTS 2
#define BLOCK_VECTORS 2
#include "product.inl"
#undef BLOCK_ROWS
#undef BLOCK_DOTS
#undef BLOCK_VECTORS
}  // namespace avx2
END_TARGET
#undef AVX512

#define AVX512 1
BEGIN_TARGET("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq")
namespace avx512 {
#define BLOCK_ROWS 6
#define BLOCK_DOTS 4
#define BLOCK_VECTORS 4
#include "product.inl"
}  // namespace avx512
END_TARGET

#endif

Kernel kernel_for(int64_t level, bool is_bf16) {
#if defined(__x86_64__)
    if (level >= 2) return avx512::kernel_for(is_bf16);
    if (level == 1) return avx2::kernel_for(is_bf16);
#endif
    (void)level;
    return generic::kernel_for(is_bf16);
}

}  // namespace

extern "C" EXPORT void orcinus_product(const PlainProduct* product, const Team* team, int64_t level) {
    const PlainProduct& p = *product;
    const Kernel kernel = kernel_for(level, p.is_bf16 != 0);
    const long across = (p.columns + PART_COLUMNS - 1) / PART_COLUMNS, down = (p.count + PART_ROWS - 1) / PART_ROWS;
    const bool is_small = double(p.count) * p.in * p.columns < SERIAL_WORK;
    const Team nobody = {nullptr, 1};
    parallel_shares(is_small ? nobody : *team, across * down, [&](long number, long) {
        const long row = number / across * PART_ROWS, column = number % across * PART_COLUMNS;
        kernel(p, Part{row, least(row + PART_ROWS, p.count), column, least(column + PART_COLUMNS, p.columns)});
    });
}
