// How values in groups get into panels, and out of them. grouped.cpp includes this file.

// As of linear.cpp: with a spread of 2 the rows of two weights alternate by sixteens.
INLINE long column_of(long first, long spread, long row) { return first + row / 16 * spread * 16 + row % 16; }

const long LANE_BYTES = PANEL * 4;

// Where a panel has what belongs to one of its columns.
struct ColumnPlace {
    const Groups& groups;
    const GroupLayout layout;
    char* panel;
    long column;

    ColumnPlace(const Linear& linear, long index)
        : groups(*linear.groups), layout(linear),
          panel(static_cast<char*>(const_cast<void*>(linear.panels)) + index / PANEL * layout.panel_bytes()),
          column(index % PANEL) {}

    uint16_t& scale(long block) const { return wide(block)[column]; }
    uint16_t& offset(long block) const { return wide(block)[PANEL + column]; }
    uint8_t& scale_part(long group) const { return narrow(group, 0); }
    uint8_t& offset_part(long group) const { return narrow(group, layout.per_block); }

    // The bytes of a group's first four inputs, or of eight that share them; the next are LANE_BYTES further.
    char* values(long group) const { return panel + layout.values(group) + column * 4; }

private:
    uint16_t* wide(long block) const { return reinterpret_cast<uint16_t*>(panel + layout.block(block)); }

    uint8_t& narrow(long group, long further) const {
        const long before = groups.scales != TWO_LEVEL_SCALES ? 0 : (groups.has_offsets ? 4 : 2) * PANEL;
        const long place = before + (group % layout.per_block + further) * PANEL + column;
        return reinterpret_cast<uint8_t*>(panel + layout.block(group / layout.per_block))[place];
    }
};

INLINE void put_values(const ColumnPlace& place, long group, const uint8_t* values) {
    const long size = place.groups.size, shared = place.groups.bits == 4 ? size / 2 : size;
    char* out = place.values(group);
    for (long i = 0; i < shared; i += 4, out += LANE_BYTES) {
        uint32_t word, other;
        __builtin_memcpy(&word, values + i, 4);
        if (shared < size) {
            __builtin_memcpy(&other, values + shared + i, 4);
            word |= other << 4;
        }
        __builtin_memcpy(out, &word, 4);
    }
}

// A row's values end where the weight's inputs do, or behind the last group.
void put_row(const Linear& linear, long column, const GroupedRows& rows, long row) {
    const ColumnPlace place(linear, column);
    const GroupLayout& layout = place.layout;
    const long size = place.groups.size, num_groups = layout.num_groups, num_blocks = layout.num_blocks();
    for (long block = 0; rows.scales && block < num_blocks; block++) {
        place.scale(block) = rows.scales[row * num_blocks + block];
        if (rows.offsets) place.offset(block) = rows.offsets[row * num_blocks + block];
    }
    if (rows.column_scales) const_cast<float*>(linear.scales)[column] = rows.column_scales[row];
    for (long group = 0; group < num_groups; group++) {
        const uint8_t* values = rows.values + row * rows.value_stride + group * size;
        uint8_t last[32] = {};
        if ((group + 1) * size > linear.in) {
            __builtin_memcpy(last, values, linear.in - group * size);
            values = last;
        }
        put_values(place, group, values);
        if (rows.scale_parts) place.scale_part(group) = rows.scale_parts[row * num_groups + group];
        if (rows.offset_parts) place.offset_part(group) = rows.offset_parts[row * num_groups + group];
    }
}

// An element is `scale * (times * (value - zero)) - offset`.
struct ScaleAndOffset {
    float scale, offset, times;
};

ScaleAndOffset numbers_of(const Linear& linear, const ColumnPlace& place, long column, long group) {
    const Groups& groups = place.groups;
    if (groups.scales == COLUMN_SCALES)
        return ScaleAndOffset{linear.scales[column], 0.0f, static_cast<float>(static_cast<int8_t>(place.scale_part(group)))};
    if (groups.scales == EXPONENT_SCALES)
        return ScaleAndOffset{bits_as<float>(uint32_t{place.scale_part(group)} << 23), 0.0f, 1.0f};
    const long block = group / place.layout.per_block;
    ScaleAndOffset numbers = {half_to_float(place.scale(block)), 0.0f, 1.0f};
    if (groups.has_offsets) numbers.offset = half_to_float(place.offset(block));
    if (groups.scales == TWO_LEVEL_SCALES) {
        numbers.scale *= static_cast<float>(static_cast<int8_t>(place.scale_part(group)));
        if (groups.has_offsets) numbers.offset *= static_cast<float>(place.offset_part(group));
    }
    return numbers;
}

// `values` are those of the group.
INLINE int value_at(const ColumnPlace& place, const char* values, long i) {
    const long shared = place.groups.bits == 4 ? place.groups.size / 2 : place.groups.size, at = i < shared ? i : i - shared;
    const int byte = static_cast<uint8_t>(values[at / 4 * LANE_BYTES + at % 4]);
    if (place.groups.bits == 8) return byte;
    const int half = i < shared ? byte & 15 : byte >> 4;
    return place.groups.table ? place.groups.table[half] : half;
}

void unpack_column(const Linear& linear, long column, float* out) {
    const ColumnPlace place(linear, column);
    const long size = place.groups.size;
    for (long group = 0; group < place.layout.num_groups; group++) {
        const ScaleAndOffset numbers = numbers_of(linear, place, column, group);
        const char* values = place.values(group);
        for (long i = 0; i < least(size, linear.in - group * size); i++) {
            const float value = static_cast<float>(value_at(place, values, i) - static_cast<int>(place.groups.zero));
            out[group * size + i] = __builtin_fmaf(value * numbers.times, numbers.scale, -numbers.offset);
        }
    }
}
