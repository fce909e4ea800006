// Linear layers: weights packed once, then multiplied by few rows (decoding, where reading the weights is the limit)
// or by many (prompts, where multiplying is), in bfloat16 (AVX512-BF16) or in 8-bit integers (AVX512-VNNI); in both by
// matrix units (AMX) where there are some.
//
// A product is cut into items of a panel of columns and up to ROW_BLOCK rows, of which each thread has a share and helps
// others with theirs. A panel stays in the cache while the rows pass by, a tile of rows at a time. A row's result does not
// depend on what other rows there are.

#include "linear.h"
#include "tile_shapes.h"

namespace {

const long ROW_BLOCK = 448;
// Of matrix units, which read rows so fast that those of a block should stay in the second cache.
const long UNIT_ROW_BLOCK = 224;
// Rows of a tile at most. More would fit into the registers, and are not faster: with two tiles the second can fetch.
const long TILE_ROWS = 8;
// Below this many multiplications, waking the other threads costs more than they save.
const double SERIAL_WORK = 200e3;

typedef void (*TileKernel)(const uint32_t* rows, long stride, const uint32_t* panel, long num_lanes,
                           const uint32_t* next, uint32_t* out);

}  // namespace

#if defined(__x86_64__)

#define AVX512 1

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

BEGIN_TARGET("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq")

namespace {

#include "rows.inl"

// What a tile has come to, as numbers, for columns c to c + 16 of one row.
INLINE f32x16 result(const Linear& linear, const Rows& rows, long row, long column, const uint32_t* sums) {
    f32x16 x;
    if (linear.is_int8) {
        const __m512i shifted =
            _mm512_sub_epi32(_mm512_load_si512(sums), _mm512_loadu_si512(linear.sums + column));
        x = reinterpret_cast<f32x16>(_mm512_cvtepi32_ps(shifted)) * load(linear.scales + column) * rows.scales[row];
    } else {
        x = reinterpret_cast<f32x16>(_mm512_load_ps(sums));
    }
    return linear.bias ? x + load(linear.bias + column) : x;
}

// Up to 16 columns of one row's result.
INLINE void finish(const Target& target, long row, long column, long count, f32x16 x) {
    if (target.residual) x += read(target.residual + row * target.residual_stride + column, count);
    write(target.out + row * target.stride + column, count, x);
}

INLINE void finish_tile(const Linear& linear, const Rows& rows, const Target& target, long row, long num_rows,
                        long panel, const uint32_t* sums) {
    const long column = panel * PANEL;
    for (long m = 0; m < num_rows; m++, sums += PANEL) {
        const f32x16 low = result(linear, rows, row + m, column, sums);
        const f32x16 high = result(linear, rows, row + m, column + 16, sums + 16);
        if (target.is_gated) {
            finish(target, row + m, column / 2, 16, silu(low) * high);
            continue;
        }
        finish(target, row + m, column, least(16, linear.out - column), low);
        if (linear.out > column + 16) finish(target, row + m, column + 16, least(16, linear.out - column - 16), high);
    }
}

struct Product {
    const Linear& linear;
    const Rows& rows;
    const Target& target;
    long num_row_blocks;
    TileKernel (*kernel)(long num_rows, bool fetches);

    long num_panels() const { return (linear.out + PANEL - 1) / PANEL; }

    const uint32_t* panel(long index) const {
        return static_cast<const uint32_t*>(linear.panels) + index * lanes_of(linear) * PANEL;
    }

    // A block of rows by one panel.
    void item(long number, long next) const {
        const long index = number % num_panels(), block = number / num_panels();
        const long begin_row = rows.count * block / num_row_blocks, end_row = rows.count * (block + 1) / num_row_blocks;
        if (linear.by_matrix_units) return by_matrix_units(index, begin_row, end_row, next);
        by_vectors(index, begin_row, end_row, next);
    }

    void by_matrix_units(long index, long begin_row, long end_row, long next) const {
#if MATRIX_UNITS
        alignas(64) uint32_t sums[UNIT_ROWS * PANEL];
        const auto tile = linear.is_int8 ? unit_tile<UNSIGNED_ROWS> : unit_tile<BFLOAT16_ROWS>;
        const long num_tiles = (end_row - begin_row + UNIT_ROWS - 1) / UNIT_ROWS, num_steps = lanes_of(linear) / UNIT_LANES;
        Ahead ahead = {nullptr, 0};
        if (next >= 0) {
            ahead.from = reinterpret_cast<const char*>(panel(next % num_panels()));
            ahead.bytes = round_up(UNIT_LANES * PANEL * 4 / num_tiles, 64);
        }
        for (long row = begin_row; row < end_row; row += UNIT_ROWS) {
            const long count = least(UNIT_ROWS, end_row - row);
            tile(rows.lanes + row * rows.stride, count, rows.stride, panel(index), lanes_of(linear), ahead, sums);
            ahead.from += ahead.bytes * num_steps;
            finish_tile(linear, rows, target, row, count, index, sums);
        }
#else
        (void)index, (void)begin_row, (void)end_row, (void)next;
#endif
    }

    // While the last two tiles are at work, the next panel is fetched.
    void by_vectors(long index, long begin_row, long end_row, long next) const {
        alignas(64) uint32_t sums[TILE_ROWS * PANEL];
        const long count = end_row - begin_row, num_tiles = (count + TILE_ROWS - 1) / TILE_ROWS;
        const uint32_t* ahead = next < 0 || num_tiles < 2 ? nullptr : panel(next % num_panels());
        for (long t = 0; t < num_tiles; t++) {
            const long row = begin_row + count * t / num_tiles, end = begin_row + count * (t + 1) / num_tiles;
            const bool fetches = ahead != nullptr && t >= num_tiles - 2;
            kernel(end - row, fetches)(rows.lanes + row * rows.stride, rows.stride, panel(index), lanes_of(linear),
                                       ahead, sums);
            if (fetches) ahead += lanes_of(linear) * PANEL / 2;
            finish_tile(linear, rows, target, row, end - row, index, sums);
        }
    }
};

// A row or column in 8 bits: its largest value becomes 127. What is not finite makes the scale NaN.
struct Quantizer {
    float scale, factor;

    INLINE Quantizer(const bf16* values, long count) {
        f32x16 most = {}, poison = {};
        for (long i = 0; i < count; i += 16) {
            const f32x16 x = read(values + i, least(16, count - i));
            most = larger(most, magnitude(x));
            poison += x * 0.0f;
        }
        const float largest = max_of(most);
        scale = largest / 127.0f + sum_of(poison);
        factor = largest > 0 ? 127.0f / largest : 0.0f;
    }

    INLINE __m512i integers(const bf16* values, long count) const {
        return _mm512_cvtps_epi32(as_m512(read(values, count) * factor));
    }
};

// 128 is added to rows: what is multiplied is unsigned times signed.
INLINE void quantize_row(const bf16* values, long count, uint8_t* out, float* scale) {
    const Quantizer quantizer(values, count);
    *scale = quantizer.scale;
    for (long i = 0; i < count; i += 16) {
        const __m512i x = _mm512_add_epi32(quantizer.integers(values + i, least(16, count - i)), _mm512_set1_epi32(128));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), _mm512_cvtepi32_epi8(x));
    }
}

}  // namespace

namespace orcinus {

void fill_row(const Linear& linear, const Rows& rows, long index, const bf16* values) {
    if (linear.groups) return fill_grouped_row(linear, rows, index, values);
    uint32_t* lanes = rows.lanes + index * rows.stride;
    lanes[lanes_of(linear) - 1] = 0;
    if (linear.is_int8)
        quantize_row(values, linear.in, reinterpret_cast<uint8_t*>(lanes), &rows.scales[index]);
    else
        __builtin_memcpy(lanes, values, linear.in * sizeof(bf16));
}

void multiply(const Linear& linear, const Rows& rows, const Target& target, const Team& team) {
    if (linear.groups) return multiply_grouped(linear, rows, target, team);
    const long block = linear.by_matrix_units ? UNIT_ROW_BLOCK : ROW_BLOCK;
    const Product product = {linear, rows, target, (rows.count + block - 1) / block,
                             linear.is_int8 ? quads::tile_kernel : pairs::tile_kernel};
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
    const Quantizer quantizer(weights, linear.in);
    int32_t sum = 0;
    for (long i = 0; i < linear.in; i += 16) {
        const __m128i bytes = _mm512_cvtepi32_epi8(quantizer.integers(weights + i, least(16, linear.in - i)));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(row + i), bytes);
        sum += _mm512_reduce_add_epi32(_mm512_cvtepi8_epi32(bytes));  // of what is not finite, too: that is of any size
    }
    const_cast<float*>(linear.scales)[column] = quantizer.scale;
    const_cast<int32_t*>(linear.sums)[column] = 128 * sum;
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

END_TARGET

#else

extern "C" {

EXPORT int64_t orcinus_pack(const Linear*, const bf16*, int64_t, int64_t, int64_t, int64_t, const Team*) { return 1; }

EXPORT int64_t orcinus_linear(const Linear*, const bf16*, int64_t, int64_t, bf16*, const Team*) { return 1; }
}

#endif
