// Linear layers: weights packed once, then multiplied by few rows (decoding, where reading the weights is the limit)
// or by many (prompts, where multiplying is), in bfloat16 (AVX512-BF16) or in 8-bit integers (VNNI); in both by matrix units
// (AMX) where there are some, and by AVX-512 or AVX2 alone where numbers are widened first.
//
// A product is cut into items of a panel of columns and up to ROW_BLOCK rows, of which each thread has a share and helps
// others with theirs. A panel stays in the cache while the rows pass by, a tile of rows at a time. A row's result does not
// depend on what other rows there are.

#include "linear.h"

namespace {

const long ROW_BLOCK = 448;
// Rows of a tile at most. More would fit into the registers, and are not faster: with two tiles the second can fetch.
const long TILE_ROWS = 8, TILE_ROWS_OF_FLOATS = 5, TILE_ROWS_OF_WORDS = 6;
// Rows of a product that is multiplied as it is stored, from which on the next panel is fetched.
const long FEWEST_ROWS_THAT_FETCH = 4;
// Below this many multiplications, waking the other threads costs more than they save.
const double SERIAL_WORK = 200e3;

typedef void (*TileKernel)(const uint32_t* rows, long stride, const uint32_t* panel, long num_lanes,
                           const uint32_t* next, uint32_t* out);

}  // namespace

#if defined(__x86_64__)

namespace {

#define KERNEL_INT8 0
BEGIN_TARGET("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")
namespace pairs {
#include "linear.inl"
}  // namespace pairs
END_TARGET
#undef KERNEL_INT8

#define KERNEL_INT8 1
BEGIN_TARGET("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")
namespace quads {
#include "linear.inl"
}  // namespace quads
END_TARGET
#undef KERNEL_INT8

}  // namespace

#if MATRIX_UNITS
BEGIN_TARGET("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,amx-tile,amx-bf16,amx-int8")
namespace {
#include "matrix_units.inl"
}  // namespace
END_TARGET
#endif

#define AVX2 1
#define AVX512 0
#define VNNI 0
BEGIN_TARGET("avx2,fma")
namespace {
namespace avx2 {
#include "rows.inl"

#include "linear_rows.inl"
#include "widened.inl"
}  // namespace avx2
}  // namespace
END_TARGET
#undef VNNI

#define VNNI 1
#if HAS_AVX_VNNI
BEGIN_TARGET("avx2,fma,avxvnni")
namespace {
namespace avx2_vnni {
#include "widened.inl"
}  // namespace avx2_vnni
}  // namespace
END_TARGET
#endif
#undef VNNI
#undef AVX512

#define AVX512 1
#define VNNI 0
BEGIN_TARGET("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq")
namespace {
namespace avx512 {
#include "rows.inl"

#include "linear_rows.inl"
#include "widened.inl"
}  // namespace avx512
}  // namespace
END_TARGET

namespace {

bool is_by_avx512(const Linear& linear) { return linear.kernel >= AVX512_WIDENED; }

typedef TileKernel (*TileKernels)(long num_rows, bool fetches, bool is_alone);

TileKernels kernels_of(const Linear& linear) {
    switch (linear.kernel) {
        case AVX2_WIDENED:
            return linear.is_int8 ? avx2::widened_kernel<avx2::FourWords> : avx2::widened_kernel<avx2::PairOfFloats>;
#if HAS_AVX_VNNI
        case AVX2_DOTS: return avx2_vnni::widened_kernel<avx2_vnni::FourBytes>;
#endif
        case AVX512_WIDENED:
            return linear.is_int8 ? avx512::widened_kernel<avx512::FourWords> : avx512::widened_kernel<avx512::PairOfFloats>;
        default: return linear.is_int8 ? quads::tile_kernel : pairs::tile_kernel;
    }
}

struct Product {
    const Linear& linear;
    const Rows& rows;
    const Target& target;
    const long num_row_blocks, most_tile_rows;
    const TileKernels kernels;

    Product(const Linear& linear, const Rows& rows, const Target& target)
        : linear(linear), rows(rows), target(target), num_row_blocks(row_blocks_of(linear, rows)),
          most_tile_rows(tile_rows_of(linear)), kernels(kernels_of(linear)) {}

    static long row_blocks_of(const Linear& linear, const Rows& rows) {
        const long block = linear.kernel == MATRIX_UNITS_KERNEL ? unit_row_block(rows.stride) : ROW_BLOCK;
        return (rows.count + block - 1) / block;
    }

    static long tile_rows_of(const Linear& linear) {
        if (linear.kernel >= AVX512_DOTS) return TILE_ROWS;
        return linear.is_int8 ? TILE_ROWS_OF_WORDS : TILE_ROWS_OF_FLOATS;
    }

    long num_panels() const { return (linear.out + PANEL - 1) / PANEL; }

    const uint32_t* panel(long index) const {
        return static_cast<const uint32_t*>(linear.panels) + index * lanes_of(linear) * PANEL;
    }

    const char* bytes_of(long index) const { return reinterpret_cast<const char*>(panel(index)); }

    // A block of rows by one panel.
    void item(long number, long next) const {
        const long index = number % num_panels(), block = number / num_panels();
        const long begin_row = rows.count * block / num_row_blocks, end_row = rows.count * (block + 1) / num_row_blocks;
        if (linear.kernel == MATRIX_UNITS_KERNEL) return by_matrix_units(index, begin_row, end_row, next);
        by_vectors(index, begin_row, end_row, next);
    }

    void by_matrix_units(long index, long begin_row, long end_row, long next) const {
#if MATRIX_UNITS
        alignas(64) uint32_t sums[MOST_BLOCK_ROWS * PANEL];
        const UnitTiles tiles(end_row - begin_row);
        const long num_lanes = lanes_of(linear);
        const Ahead ahead(next < 0 ? nullptr : bytes_of(next % num_panels()), num_lanes * PANEL * 4);
        StoredPanel weights = {bytes_of(index)};
        const auto by_panel = linear.is_int8 ? multiply_panel<UNSIGNED_ROWS, StoredPanel> : multiply_panel<BFLOAT16_ROWS, StoredPanel>;
        by_panel(rows.lanes + begin_row * rows.stride, rows.stride, tiles, weights, num_lanes / UNIT_LANES, ahead, sums);
        tiles.each(sums, PANEL, [&](long row, long count, const uint32_t* of_rows) {
            avx512::finish_tile(linear, rows, target, begin_row + row, count, index, of_rows);
        });
#else
        (void)index, (void)begin_row, (void)end_row, (void)next;
#endif
    }

    // With fewer, what comes next is read in time anyway.
    long fewest_rows_that_fetch() const { return linear.kernel == AVX512_DOTS ? FEWEST_ROWS_THAT_FETCH : most_tile_rows + 1; }

    // While the last two tiles are at work, or the only one, the next panel is fetched.
    void by_vectors(long index, long begin_row, long end_row, long next) const {
        alignas(64) uint32_t sums[TILE_ROWS * PANEL];
        const long count = end_row - begin_row, num_tiles = (count + most_tile_rows - 1) / most_tile_rows;
        const auto finish = is_by_avx512(linear) ? avx512::finish_tile : avx2::finish_tile;
        const uint32_t* ahead = next < 0 || count < fewest_rows_that_fetch() ? nullptr : panel(next % num_panels());
        for (long t = 0; t < num_tiles; t++) {
            const long row = begin_row + count * t / num_tiles, end = begin_row + count * (t + 1) / num_tiles;
            const bool fetches = ahead != nullptr && t >= num_tiles - 2;
            kernels(end - row, fetches, num_tiles == 1)(rows.lanes + row * rows.stride, rows.stride, panel(index), lanes_of(linear),
                                                        ahead, sums);
            if (fetches) ahead += lanes_of(linear) * PANEL / 2;
            finish(linear, rows, target, row, end - row, index, sums);
        }
    }
};

}  // namespace

namespace orcinus {

void fill_row(const Linear& linear, const Rows& rows, long index, const bf16* values) {
    if (linear.groups) return fill_grouped_row(linear, rows, index, values);
    is_by_avx512(linear) ? avx512::fill(linear, rows, index, values) : avx2::fill(linear, rows, index, values);
}

void multiply(const Linear& linear, const Rows& rows, const Target& target, const Team& team) {
    if (linear.groups) return multiply_grouped(linear, rows, target, team);
    const Product product(linear, rows, target);
    const bool is_small = double(linear.in) * linear.out * rows.count < SERIAL_WORK;
    const Team nobody = {nullptr, 1};
    parallel_shares(is_small ? nobody : team, product.num_panels() * product.num_row_blocks,
                    [&](long number, long next) { product.item(number, next); });
}

}  // namespace orcinus

namespace {

// Rows of `Linear::out` are columns of the packed weight: row r goes to
// `first + r / 16 * spread * 16 + r % 16`, so that with a spread of 2 the rows of two weights alternate by sixteens.
INLINE long column_of(long first, long spread, long row) { return first + row / 16 * spread * 16 + row % 16; }

template <class Lane> INLINE void put_column(const Linear& linear, long column, const Lane* row) {
    const long num_lanes = lanes_of(linear);
    uint32_t* out = static_cast<uint32_t*>(const_cast<void*>(linear.panels)) + column / PANEL * num_lanes * PANEL +
                    column % PANEL;
    const char* bytes = reinterpret_cast<const char*>(row);
    for (long lane = 0; lane < num_lanes; lane++)
        __builtin_memcpy(out + lane * PANEL, bytes + lane * 4, 4);
}

void pack_int8(const Linear& linear, long column, const bf16* weights, int8_t* row) {
    const auto quantize = is_by_avx512(linear) ? avx512::quantize_column : avx2::quantize_column;
    const int32_t sum = quantize(weights, linear.in, const_cast<float*>(linear.scales) + column, row);
    const_cast<int32_t*>(linear.sums)[column] = static_cast<int32_t>(128u * static_cast<uint32_t>(sum));
    put_column(linear, column, row);
}

// `row` has room for the row as it is stored, padded with zeros.
void pack_row(const Linear& linear, long column, const bf16* weights, char* row) {
    if (linear.is_int8) return pack_int8(linear, column, weights, reinterpret_cast<int8_t*>(row));
    __builtin_memcpy(row, weights, linear.in * sizeof(bf16));
    put_column(linear, column, row);
}

}  // namespace

extern "C" {

// The best kernel of this CPU for plain weights, of those that a level of orcinus_best_level() has, or -1.
EXPORT int64_t orcinus_plain_kernel(int64_t level, int64_t is_int8, int64_t has_vnni) {
    if (level >= 4) return MATRIX_UNITS_KERNEL;
    if (level >= 2) {
        const bool has_dots = is_int8 ? has_vnni && __builtin_cpu_supports("avx512vnni") : level >= 3;
        return has_dots ? AVX512_DOTS : AVX512_WIDENED;
    }
    if (level < 1) return -1;
    return is_int8 && has_vnni && has_avx_vnni() ? AVX2_DOTS : AVX2_WIDENED;
}

// Packs `count` rows of a weight, (count, in) with a stride in elements. Returns 0, or 1 without memory to work in.
EXPORT int64_t orcinus_pack(const Linear* linear, const bf16* weight, int64_t stride, int64_t count, int64_t first,
                            int64_t spread, const Team* team) {
    const long bytes = round_up(linear->in * sizeof(bf16), 64) + 64;
    std::atomic<int64_t> failed{0};
    parallel_for(*team, (count + 15) / 16, [&](long group) {
        char* row = static_cast<char*>(calloc(bytes, 1));
        if (row == nullptr) return failed.store(1);
        for (long r = group * 16; r < least(group * 16 + 16, count); r++)
            pack_row(*linear, column_of(first, spread, r), weight + r * stride, row);
        free(row);
    });
    return failed.load();
}

// (count, in) with a stride in elements, to (count, out). Returns 0, or 1 without memory to work in.
EXPORT int64_t orcinus_linear(const Linear* linear, const bf16* x, int64_t stride, int64_t count, bf16* out,
                              const Team* team) {
    static thread_local Arena arena;
    char* memory = arena.reserve(bytes_of_rows(*linear, count));
    if (memory == nullptr) return 1;
    Scratch scratch(memory);
    const Rows rows = rows_in(*linear, scratch, count);
    for (long i = 0; i < count; i++) fill_row(*linear, rows, i, x + i * stride);
    multiply(*linear, rows, Target{out, linear->out, nullptr, 0, false}, *team);
    return 0;
}
}

#else

extern "C" {

EXPORT int64_t orcinus_plain_kernel(int64_t, int64_t, int64_t) { return -1; }

EXPORT int64_t orcinus_pack(const Linear*, const bf16*, int64_t, int64_t, int64_t, int64_t, const Team*) { return 1; }

EXPORT int64_t orcinus_linear(const Linear*, const bf16*, int64_t, int64_t, bf16*, const Team*) { return 1; }
}

#endif
