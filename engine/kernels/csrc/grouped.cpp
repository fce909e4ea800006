// Linear layers whose weights have 4 or 8 bits and scales for groups of inputs (grouped.h), for any CPU: AVX-512 and AVX2,
// with VNNI or without, and Arm's dot products, chosen by the weight's `kernel`; by matrix units (AMX) where there are some.
//
// Rows become integers of 8 bits with a scale for each group, at the time; or they stay bfloat16, and matrix units multiply them.
// Work is cut into items as in linear.cpp.

#include "linear.h"

namespace {

const long ROW_BLOCK = 448;
// Where scales are integers of a column's, from so many rows on vectors multiply a panel that is unpacked first, or matrix units
// do.
const long FEWEST_ROWS_TO_UNPACK = 6, FEWEST_UNIT_ROWS = 5;
// Below this many multiplications, waking the other threads costs more than they save.
const double SERIAL_WORK = 200e3;

const uint8_t NO_TABLE[16] = {};

// Rows by a panel.
struct Part {
    long panel, row, end_row;
};

// A row: its lanes, and what it has for each group.
struct Row {
    uint32_t* lanes;
    int32_t* starts;
    float *scales, *sums;  // one, where scales are integers of a column's
};

INLINE Row row_at(const Linear& linear, const GroupLayout& layout, const Rows& rows, long index) {
    uint32_t* lanes = rows.lanes + index * rows.stride;
    uint32_t* starts = lanes + layout.num_groups * (linear.groups->size / 4);
    float* scales = reinterpret_cast<float*>(starts + layout.num_groups);
    const long num_scales = linear.groups->scales == COLUMN_SCALES ? 1 : layout.num_groups;
    return Row{lanes, reinterpret_cast<int32_t*>(starts), scales, scales + num_scales};
}

// What is fetched from memory while groups are multiplied: so many bytes with each.
struct Fetching {
    const char* from;
    long bytes;

    INLINE void fetch() {
        for (long i = 0; i < bytes; i += 64) __builtin_prefetch(from + i, 0, 2);  // into the second cache
        from += bytes;
    }
};

typedef void (*TileKernel)(const Linear& linear, const GroupLayout& layout, const Row& row, long stride, const char* panel,
                           Fetching ahead, float* out);

INLINE float half_to_float(uint16_t half) {
    const uint32_t sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31, mantissa = half & 0x3ff;
    if (exponent == 31) return bits_as<float>(sign | 0x7f800000 | mantissa << 13);
    if (exponent > 0) return bits_as<float>(sign | (exponent + 112) << 23 | mantissa << 13);
    const float small = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -small : small;
}

// To the nearest, ties to even; what is too large becomes infinite.
INLINE uint16_t float_to_half(float x) {
    const uint32_t bits = bits_as<uint32_t>(x), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    if (size > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
    if (size >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);
    if (size < 0x38800000) {  // of the size of 2^-14 and less, in steps of 2^-24: adding 0.5 rounds to them
        const uint32_t rounded = bits_as<uint32_t>(bits_as<float>(size) + 0.5f) - bits_as<uint32_t>(0.5f);
        return static_cast<uint16_t>(sign | rounded);
    }
    return static_cast<uint16_t>(sign | ((size - (112u << 23) + 0xfff + (size >> 13 & 1)) >> 13));
}

#define AVX512 0
#define AVX2 0
#define ARM_DOT 0
namespace generic {
#include "grouped_vectors.inl"

#include "grouped.inl"
#include "quantize.inl"
}  // namespace generic
#undef ARM_DOT

#if defined(__aarch64__)
#define ARM_DOT 1
BEGIN_TARGET("arch=armv8.2-a+dotprod")
namespace arm_dot {
#include "grouped_vectors.inl"

#include "grouped.inl"
}  // namespace arm_dot
END_TARGET
#undef ARM_DOT
#endif

#define ARM_DOT 0
#undef AVX2

#if defined(__x86_64__)

#define AVX2 1
#define VNNI 0
BEGIN_TARGET("avx2,fma,f16c")
namespace avx2 {
#include "grouped_vectors.inl"

#include "grouped.inl"
#include "quantize.inl"
}  // namespace avx2
END_TARGET
#undef VNNI
#define VNNI 1
#if HAS_AVX_VNNI
BEGIN_TARGET("avx2,fma,f16c,avxvnni")
namespace avx2_vnni {
#include "grouped_vectors.inl"

#include "grouped.inl"
}  // namespace avx2_vnni
END_TARGET
#endif
#undef AVX512

#define AVX512 1
BEGIN_TARGET("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")
namespace avx512 {
#include "grouped_vectors.inl"

#include "grouped.inl"
#include "grouped_columns.inl"
#include "quantize.inl"
}  // namespace avx512
END_TARGET

#if MATRIX_UNITS
BEGIN_TARGET("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,amx-tile,amx-bf16,amx-int8")
namespace units {
#include "grouped_vectors.inl"

#include "matrix_units.inl"

#include "grouped_units.inl"
}  // namespace units
END_TARGET
#endif

#endif

// What one instruction set does.
struct Kernels {
    void (*fill)(const Linear& linear, const Rows& rows, long index, const bf16* values);
    void (*by_vectors)(const Linear& linear, const Rows& rows, const Target& target, const Part& part, long next);
    void (*quantize)(const Linear& linear, const bf16* weights, uint8_t* values, uint16_t* scales);
    void (*quantize_columns)(const Linear& linear, const bf16* weights, long stride, long count, float* scales,
                             const GroupedRows& out);
};

#define KERNELS_OF(set, quantizing) \
    Kernels{set::fill, set::by_vectors, quantizing::quantize, quantizing::quantize_columns}

Kernels kernels_of(const Linear& linear) {
    switch (linear.groups->kernel) {
#if defined(__x86_64__)
        case AVX2_GROUPS: return KERNELS_OF(avx2, avx2);
#if HAS_AVX_VNNI
        case AVX2_VNNI_GROUPS: return KERNELS_OF(avx2_vnni, avx2);
#endif
        case AVX512_GROUPS:
        case UNIT_GROUPS: return KERNELS_OF(avx512, avx512);
#elif defined(__aarch64__)
        case ARM_DOT_GROUPS: return KERNELS_OF(arm_dot, generic);
#endif
        default: return KERNELS_OF(generic, generic);
    }
}

void fill_bfloat16(const Linear& linear, const Rows& rows, long index, const bf16* values) {
    char* row = reinterpret_cast<char*>(rows.lanes + index * rows.stride);
    const long size = linear.in * sizeof(bf16);
    __builtin_memcpy(row, values, size);
    __builtin_memset(row + size, 0, lanes_of(linear) * 4 - size);
}

// Whether a panel was worth unpacking before vectors multiply it, and that is done.
bool multiply_unpacked(const Linear& linear, const Rows& rows, const Target& target, const Part& part, long next) {
#if defined(__x86_64__)
    const bool is_worth_it = linear.groups->scales == COLUMN_SCALES && part.end_row - part.row >= FEWEST_ROWS_TO_UNPACK;
    if (!is_worth_it || linear.groups->kernel != AVX512_GROUPS) return false;
    static thread_local Arena arena;
    const GroupLayout layout(linear);
    int8_t* unpacked = reinterpret_cast<int8_t*>(arena.reserve(layout.num_groups * linear.groups->size * PANEL));
    if (unpacked == nullptr) return false;
    const char* fetched = next < 0 ? nullptr : static_cast<const char*>(linear.panels) + next * layout.panel_bytes();
    avx512::by_whole_rows(linear, rows, target, part, fetched, unpacked);
    return true;
#else
    (void)linear, (void)rows, (void)target, (void)part, (void)next;
    return false;
#endif
}

// `next` is the panel that the same thread will probably multiply next, or -1.
void multiply_part(const Linear& linear, const Rows& rows, const Target& target, const Part& part, long next) {
#if MATRIX_UNITS
    const bool is_few = linear.groups->scales == COLUMN_SCALES && part.end_row - part.row < FEWEST_UNIT_ROWS;
    if (linear.groups->kernel == UNIT_GROUPS && !is_few) return units::by_units(linear, rows, target, part, next);
#endif
    if (multiply_unpacked(linear, rows, target, part, next)) return;
    kernels_of(linear).by_vectors(linear, rows, target, part, next);
}

long row_block(const Linear& linear, const Rows& rows) {
    return linear.groups->kernel == UNIT_GROUPS ? unit_row_block(rows.stride) : ROW_BLOCK;
}

// What an item of several experts' products is cut out of: the panels of one expert's weight, by as many rows as are
// multiplied at once.
struct ExpertRows {
    Linear weight;
    long first, end;
};

// The weight of one expert, in that of all: columns of whole panels.
Linear weight_of(const Linear& all, long columns, long expert) {
    const long panel = expert * (columns / PANEL);
    Linear weight = all;
    weight.out = columns;
    weight.panels = static_cast<const char*>(all.panels) + panel * GroupLayout(all).panel_bytes();
    if (all.scales) weight.scales = all.scales + panel * PANEL;
    if (all.bias) weight.bias = all.bias + panel * PANEL;
    return weight;
}

}  // namespace

namespace orcinus {

void fill_grouped_row(const Linear& linear, const Rows& rows, long index, const bf16* values) {
    if (is_multiplied_in_bfloat16(*linear.groups)) return fill_bfloat16(linear, rows, index, values);
    kernels_of(linear).fill(linear, rows, index, values);
}

void multiply_grouped(const Linear& linear, const Rows& rows, const Target& target, const Team& team) {
    const long block = row_block(linear, rows);
    const long num_panels = (linear.out + PANEL - 1) / PANEL, num_blocks = (rows.count + block - 1) / block;
    const bool is_small = double(linear.in) * linear.out * rows.count < SERIAL_WORK;
    const Team nobody = {nullptr, 1};
    parallel_shares(is_small ? nobody : team, num_panels * num_blocks, [&](long number, long next) {
        const long index = number / num_panels;
        const long first = rows.count * index / num_blocks, end = rows.count * (index + 1) / num_blocks;
        multiply_part(linear, rows, target, Part{number % num_panels, first, end}, next < 0 ? -1 : next % num_panels);
    });
}

}  // namespace orcinus

namespace {

#include "grouped_packing.inl"

#include "block_packing.inl"

// Up to 16 rows of a weight, and where they go.
struct Strip {
    const bf16* weight;
    long stride, row, end_row, first, spread;
};

bool quantize_strip(const Linear& linear, const Strip& strip) {
    const GroupLayout layout(linear);
    const long padded = layout.num_groups * linear.groups->size;
    uint8_t* values = static_cast<uint8_t*>(malloc(padded + layout.num_groups * sizeof(uint16_t)));
    if (values == nullptr) return false;
    uint16_t* scales = reinterpret_cast<uint16_t*>(values + padded);
    const GroupedRows row = {values, scales, nullptr, nullptr, nullptr, nullptr, 1, padded};
    for (long r = strip.row; r < strip.end_row; r++) {
        kernels_of(linear).quantize(linear, strip.weight + r * strip.stride, values, scales);
        put_row(linear, column_of(strip.first, strip.spread, r), row, 0);
    }
    free(values);
    return true;
}

bool quantize_strip_in_columns(const Linear& linear, const Strip& strip) {
    const GroupLayout layout(linear);
    const long padded = layout.num_groups * linear.groups->size;
    // A float for each row and group, then values and parts of 16 rows.
    char* memory = static_cast<char*>(malloc(16 * (padded + layout.num_groups * 5)));
    if (memory == nullptr) return false;
    float scales_of_rows[16];
    float* scales = reinterpret_cast<float*>(memory);
    uint8_t* values = reinterpret_cast<uint8_t*>(scales + 16 * layout.num_groups);
    const GroupedRows rows = {values, nullptr, nullptr, values + 16 * padded, nullptr, scales_of_rows, 16, padded};
    const long count = strip.end_row - strip.row;
    kernels_of(linear).quantize_columns(linear, strip.weight + strip.row * strip.stride, strip.stride, count, scales, rows);
    for (long r = 0; r < count; r++) put_row(linear, column_of(strip.first, strip.spread, strip.row + r), rows, r);
    free(memory);
    return true;
}

}  // namespace

extern "C" {

// The best kernel of this CPU for weights in groups, of those that a level of orcinus_best_level() has. Arm's dot products count as
// VNNI.
EXPORT int64_t orcinus_grouped_kernel(int64_t level, int64_t has_vnni) {
#if defined(__x86_64__)
    const bool with_vnni = has_vnni != 0 && __builtin_cpu_supports("avx512vnni");
    if (level >= 4 && with_vnni) return UNIT_GROUPS;
    if (level >= 2 && with_vnni) return AVX512_GROUPS;
    if (level >= 1) return has_vnni && has_avx_vnni() ? AVX2_VNNI_GROUPS : AVX2_GROUPS;
#endif
    if (has_vnni && has_arm_dot()) return ARM_DOT_GROUPS;
    (void)level;
    return GENERIC_GROUPS;
}

// Packs rows of values that are in groups already into columns `first` and on; see column_of.
EXPORT void orcinus_pack_groups(const Linear* linear, const GroupedRows* rows, int64_t first, int64_t spread,
                                const Team* team) {
    parallel_for(*team, (rows->count + 15) / 16, [&](long part) {
        for (long r = part * 16; r < least(part * 16 + 16, rows->count); r++)
            put_row(*linear, column_of(first, spread, r), *rows, r);
    });
}

// Packs rows of blocks into columns `first`, a multiple of 16, and on; see column_of.
EXPORT void orcinus_pack_blocks(const Linear* linear, const BlockRows* rows, int64_t first, int64_t spread,
                                const Team* team) {
    const BlockPacker pack = block_packer(rows->packing);
    parallel_for(*team, (rows->count + 15) / 16, [&](long part) {
        pack(*linear, *rows, part * 16, least(16, rows->count - part * 16), column_of(first, spread, part * 16));
    });
}

// Packs `count` rows of a weight, (count, in) with a stride in elements, as the nearest values of a form without offsets and
// with scales of float16, or of 4 bits with integers of a column's. Returns 0, or 1 without memory to work in.
EXPORT int64_t orcinus_quantize_groups(const Linear* linear, const bf16* weight, int64_t stride, int64_t count,
                                       int64_t first, int64_t spread, const Team* team) {
    const bool has_columns = linear->groups->scales == COLUMN_SCALES;
    std::atomic<int64_t> failed{0};
    parallel_for(*team, (count + 15) / 16, [&](long part) {
        const Strip strip = {weight, stride, part * 16, least(part * 16 + 16, count), first, spread};
        if (!(has_columns ? quantize_strip_in_columns(*linear, strip) : quantize_strip(*linear, strip))) failed.store(1);
    });
    return failed.load();
}

// Columns of a packed weight as rows of a plain one, (count, in).
EXPORT void orcinus_unpack_groups(const Linear* linear, const int64_t* columns, int64_t count, float* out,
                                  const Team* team) {
    parallel_for(*team, count, [&](long i) { unpack_column(*linear, columns[i], out + i * linear->in); });
}

// (count, in) with a stride in elements, to (count, out). Returns 0, or 1 without memory to work in.
EXPORT int64_t orcinus_grouped_linear(const Linear* linear, const bf16* x, int64_t stride, int64_t count, bf16* out,
                                      const Team* team) {
    static thread_local Arena arena;
    char* memory = arena.reserve(bytes_of_rows(*linear, count));
    if (memory == nullptr) return 1;
    Scratch scratch(memory);
    const Rows rows = rows_in(*linear, scratch, count);
    for (long i = 0; i < count; i++) fill_grouped_row(*linear, rows, i, x + i * stride);
    multiply_grouped(*linear, rows, Target{out, linear->out, nullptr, 0, false}, *team);
    return 0;
}

// Rows starts[i] to starts[i + 1], of bfloat16, times the weight of expert i, which is `columns` columns (a multiple of PANEL)
// of the weight of all: to (count, columns), or half as many where they are gated. Returns 0, or 1 without memory to work in.
EXPORT int64_t orcinus_expert_linear(const Linear* all, int64_t columns, const int64_t* starts, const bf16* x,
                                     int64_t stride, bf16* out, int64_t is_gated, const Team* team) {
    static thread_local Arena arena;
    const long num_experts = all->out / columns, count = starts[num_experts];
    const long most_parts = num_experts + count / least(ROW_BLOCK, FEWEST_BLOCK_ROWS);
    char* memory = arena.reserve(bytes_of_rows(*all, count) + round_up(most_parts * sizeof(ExpertRows), 64));
    if (memory == nullptr) return 1;
    Scratch scratch(memory);
    const Rows rows = rows_in(*all, scratch, count);
    ExpertRows* parts = scratch.take<ExpertRows>(most_parts);
    const long block = row_block(*all, rows);
    long num_parts = 0;
    for (long expert = 0; expert < num_experts; expert++)
        for (long first = starts[expert]; first < starts[expert + 1]; first += block)
            parts[num_parts++] = ExpertRows{weight_of(*all, columns, expert), first, least(first + block, starts[expert + 1])};
    const bool is_small = double(all->in) * columns * count < SERIAL_WORK;
    const Team nobody = {nullptr, 1}, &helping = is_small ? nobody : *team;
    parallel_for(helping, count, [&](long i) { fill_grouped_row(*all, rows, i, x + i * stride); });
    const long num_panels = columns / PANEL;
    const Target target = {out, is_gated ? columns / 2 : columns, nullptr, 0, is_gated != 0};
    parallel_shares(helping, num_panels * num_parts, [&](long number, long) {
        const ExpertRows& part = parts[number / num_panels];
        multiply_part(part.weight, rows, target, Part{number % num_panels, part.first, part.end}, -1);
    });
    return 0;
}
}
