// Prints a hash of what products with weights in groups come to, of every kind of form, by the kernel that is named. The
// numbers are the same on every machine, and so is the hash.

#include <cstdio>
#include <cstring>
#include <vector>

#include "linear.h"

extern "C" {
void orcinus_pack_groups(const Linear*, const GroupedRows*, int64_t, int64_t, const Team*);
int64_t orcinus_quantize_groups(const Linear*, const bf16*, int64_t, int64_t, int64_t, int64_t, const Team*);
int64_t orcinus_grouped_linear(const Linear*, const bf16*, int64_t, int64_t, bf16*, const Team*);
int64_t orcinus_grouped_kernel(int64_t level, int64_t has_vnni);
int64_t orcinus_best_level();
}

namespace {

const Team NOBODY = {nullptr, 1};
const int64_t LEVEL_OF_VECTORS = 3;  // of orcinus_best_level(), without matrix units
const uint8_t TABLE[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};

struct Random {
    uint64_t state = 1;
    uint32_t next() {
        state = state * 6364136223846793005u + 1442695040888963407u;
        return static_cast<uint32_t>(state >> 33);
    }
    bf16 number() { return round_to_bf16((static_cast<float>(next() % 2001) - 1000.0f) / 512.0f); }
};

uint64_t hash_of(const void* data, size_t count, uint64_t hash) {
    for (size_t i = 0; i < count; i++) hash = (hash ^ static_cast<const uint8_t*>(data)[i]) * 1099511628211u;
    return hash;
}

// What some rows times a weight of a form come to. Without offsets and tables the weight is rounded here, too.
uint64_t hash_of_form(Groups groups, long in, long out, long count, bool is_rounded, uint64_t hash) {
    Random random;
    Linear linear = {};
    linear.groups = &groups;
    linear.in = in;
    linear.out = out;
    const GroupLayout layout(linear);
    const long num_panels = (out + PANEL - 1) / PANEL;
    std::vector<uint64_t> panels(num_panels * layout.panel_bytes() / 8 + 8);
    std::vector<float> scales(num_panels * PANEL);
    linear.panels = panels.data();
    linear.scales = scales.data();
    std::vector<bf16> x(in * count), y(out * count), weight(in * out);
    for (bf16& number : x) number = random.number();
    for (bf16& number : weight) number = random.number();
    if (is_rounded) {
        orcinus_quantize_groups(&linear, weight.data(), in, out, 0, 1, &NOBODY);
    } else {
        const long padded = layout.num_groups * groups.size;
        std::vector<uint8_t> values(out * padded), parts(out * layout.num_groups), offset_parts(parts.size());
        std::vector<uint16_t> wide(out * layout.num_blocks()), offsets(wide.size());
        std::vector<float> of_columns(out);
        for (uint8_t& value : values) value = static_cast<uint8_t>(random.next() % (groups.bits == 4 ? 16 : 228));
        for (uint8_t& part : parts)
            part = static_cast<uint8_t>(groups.scales == EXPONENT_SCALES ? 115 + random.next() % 12 : random.next() % 31 - 15);
        for (uint8_t& part : offset_parts) part = static_cast<uint8_t>(random.next());
        for (uint16_t& half : wide) half = static_cast<uint16_t>(0x2000 + random.next() % 0x800);
        for (uint16_t& half : offsets) half = static_cast<uint16_t>(0x2000 + random.next() % 0x800);
        for (float& scale : of_columns) scale = static_cast<float>(1 + random.next() % 100) / 1024.0f;
        const GroupedRows rows = {values.data(), groups.scales <= TWO_LEVEL_SCALES ? wide.data() : nullptr,
                                  groups.has_offsets ? offsets.data() : nullptr,
                                  groups.scales != FLOAT16_SCALES ? parts.data() : nullptr,
                                  groups.has_offsets && groups.scales == TWO_LEVEL_SCALES ? offset_parts.data() : nullptr,
                                  groups.scales == COLUMN_SCALES ? of_columns.data() : nullptr, out, padded};
        orcinus_pack_groups(&linear, &rows, 0, 1, &NOBODY);
    }
    hash = hash_of(panels.data(), num_panels * layout.panel_bytes(), hash);
    orcinus_grouped_linear(&linear, x.data(), in, count, y.data(), &NOBODY);
    return hash_of(y.data(), y.size() * sizeof(bf16), hash);
}

}  // namespace

// With an argument by the best vectors that this CPU has, otherwise by the form for any CPU.
int main(int argc, char**) {
    const int64_t kernel = argc > 1 ? orcinus_grouped_kernel(least(orcinus_best_level(), LEVEL_OF_VECTORS), 1) : GENERIC_GROUPS;
    const Groups forms[] = {
        {nullptr, 4, 4, 32, 8, FLOAT16_SCALES, 0, kernel},     {nullptr, 8, 8, 32, 128, FLOAT16_SCALES, 0, kernel},
        {nullptr, 4, 4, 32, 0, FLOAT16_SCALES, 1, kernel},     {nullptr, 4, 4, 32, 0, TWO_LEVEL_SCALES, 1, kernel},
        {nullptr, 8, 8, 16, 100, TWO_LEVEL_SCALES, 0, kernel}, {TABLE, 4, 8, 32, 128, EXPONENT_SCALES, 0, kernel},
        {nullptr, 4, 4, 16, 8, COLUMN_SCALES, 0, kernel},
    };
    for (const Groups& form : forms) {
        const bool can_round = !form.table && !form.has_offsets && form.scales != TWO_LEVEL_SCALES;
        uint64_t hash = 14695981039346656037u;
        for (int is_rounded = 0; is_rounded <= (can_round ? 1 : 0); is_rounded++)
            for (long count : {1, 3, 20}) hash = hash_of_form(form, 300, 70, count, is_rounded != 0, hash);
        printf("%d bits, groups of %d, scales %d: %016llx\n", int(form.bits), int(form.size), int(form.scales),
               static_cast<unsigned long long>(hash));
    }
    return 0;
}
