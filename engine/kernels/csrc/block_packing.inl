// How blocks of GGUF's types get into panels, without being unpacked in between. grouped.cpp includes this file behind
// grouped_packing.inl; the forms are those that engine/models/gguf_blocks.py gives the types.

// By the numbers of `Packing` in engine/cpu/grouped_weight.py.
const int64_t NIBBLES_OF_32 = 0, BYTES_OF_32 = 1, EXPONENT_OF_32 = 2, Q4_K = 3, Q5_K = 4, Q6_K = 5;

// Where a panel has what one block of a row becomes: the scales that it belongs to, and the values of its first group, both of
// the row's column; and how many groups with the same scales stand before it.
struct BlockPlace {
    char *wide, *narrow, *values;
    long before;

    INLINE void put_scale(const uint8_t* half) const { __builtin_memcpy(wide, half, 2); }
    INLINE void put_offset(const uint8_t* half) const { __builtin_memcpy(wide + 2 * PANEL, half, 2); }
    INLINE void put_part(long group, int part) const { narrow[(before + group) * PANEL] = static_cast<char>(part); }
};

INLINE uint32_t word_at(const uint8_t* bytes) {
    uint32_t word;
    __builtin_memcpy(&word, bytes, 4);
    return word;
}

INLINE void put_word(char* values, long lane, uint32_t word) { __builtin_memcpy(values + lane * LANE_BYTES, &word, 4); }

// Sixteen bytes that have 32 values as a panel does: the first half in the low bits.
INLINE void put_nibbles(char* values, const uint8_t* bytes) {
    UNROLL for (int i = 0; i < 4; i++) put_word(values, i, word_at(bytes + i * 4));
}

INLINE void put_bytes(char* values, const uint8_t* bytes) {
    UNROLL for (int i = 0; i < 8; i++) put_word(values, i, word_at(bytes + i * 4) ^ 0x80808080u);
}

// Eight groups of 32, of which two share bytes, the first in the low bits.
INLINE void put_q4_k(char* values, const uint8_t* bytes) {
    for (int g = 0; g < 8; g++, values += 4 * LANE_BYTES) {
        const uint8_t* pair = bytes + g / 2 * 32;
        UNROLL for (int i = 0; i < 4; i++) {
            const uint32_t first = word_at(pair + i * 4) >> (g % 2 * 4) & 0x0f0f0f0fu;
            const uint32_t second = word_at(pair + 16 + i * 4) >> (g % 2 * 4) & 0x0f0f0f0fu;
            put_word(values, i, first | second << 4);
        }
    }
}

// The same, with the fifth bit of group g as bit g of 32 more bytes.
INLINE void put_q5_k(char* values, const uint8_t* bytes, const uint8_t* fifths) {
    for (int g = 0; g < 8; g++, values += 8 * LANE_BYTES)
        UNROLL for (int i = 0; i < 8; i++) {
            const uint32_t four = word_at(bytes + g / 2 * 32 + i * 4) >> (g % 2 * 4) & 0x0f0f0f0fu;
            put_word(values, i, four | (word_at(fifths + i * 4) >> g & 0x01010101u) << 4);
        }
}

// Eight scales of 6 bits and as many offsets in 12 bytes behind two float16.
INLINE void put_k_scales(const BlockPlace& place, const uint8_t* raw) {
    place.put_scale(raw);
    place.put_offset(raw + 2);
    const uint8_t* parts = raw + 4;
    for (int i = 0; i < 4; i++) {
        place.put_part(i, parts[i] & 63);
        place.put_part(4 + i, (parts[8 + i] & 15) | (parts[i] >> 6) << 4);
        place.put_part(8 + i, parts[4 + i] & 63);
        place.put_part(12 + i, parts[8 + i] >> 4 | (parts[4 + i] >> 6) << 4);
    }
}

// Sixteen groups of 16: of each 128 values, four bits of 64 and 64, and two more of 32, 32, 32 and 32.
INLINE void put_q6_k(const BlockPlace& place, const uint8_t* raw) {
    place.put_scale(raw + 208);
    char* values = place.values;
    for (int g = 0; g < 16; g++, values += 4 * LANE_BYTES) {
        const int quarter = g % 8 / 2, first = g % 2 * 16;
        const uint8_t* low = raw + g / 8 * 64 + quarter % 2 * 32 + first;
        const uint8_t* high = raw + 128 + g / 8 * 32 + first;
        UNROLL for (int i = 0; i < 4; i++) {
            const uint32_t four = word_at(low + i * 4) >> (quarter / 2 * 4) & 0x0f0f0f0fu;
            put_word(values, i, four | (word_at(high + i * 4) >> (2 * quarter) & 0x03030303u) << 4);
        }
        place.put_part(g, raw[192 + g]);
    }
}

template <int64_t PACKING> INLINE void put_block(const BlockPlace& place, const uint8_t* raw) {
    if (PACKING == NIBBLES_OF_32 || PACKING == BYTES_OF_32) place.put_scale(raw);
    if (PACKING == NIBBLES_OF_32) put_nibbles(place.values, raw + 2);
    if (PACKING == BYTES_OF_32) put_bytes(place.values, raw + 2);
    if (PACKING == EXPONENT_OF_32) {  // of half the scale, as the table is doubled
        place.put_part(0, raw[0] > 1 ? raw[0] - 1 : 0);
        put_nibbles(place.values, raw + 1);
    }
    if (PACKING == Q4_K || PACKING == Q5_K) put_k_scales(place, raw);
    if (PACKING == Q4_K) put_q4_k(place.values, raw + 16);
    if (PACKING == Q5_K) put_q5_k(place.values, raw + 48, raw + 16);
    if (PACKING == Q6_K) put_q6_k(place, raw);
}

// The rows of half a panel at most, block by block: their columns lie together.
template <int64_t PACKING>
void put_block_rows(const Linear& linear, const BlockRows& rows, long row, long count, long column) {
    const GroupLayout layout(linear);
    const bool has_exponents = linear.groups->scales == EXPONENT_SCALES;
    const long narrow = has_exponents ? 0 : (linear.groups->has_offsets ? 4 : 2) * PANEL;
    const long groups = rows.block_inputs / linear.groups->size, in_panel = column % PANEL;
    char* panel = static_cast<char*>(const_cast<void*>(linear.panels)) + column / PANEL * layout.panel_bytes();
    const uint8_t* at[16];
    for (long r = 0; r < count; r++)
        at[r] = rows.data + (rows.order ? rows.order[row + r] : row + r) * rows.row_bytes;
    for (long group = 0; group < layout.num_groups; group += groups) {
        char *head = panel + layout.block(group / layout.per_block), *values = panel + layout.values(group);
        const long before = group % layout.per_block;
        for (long r = 0; r < count; r++) {
            const long own = in_panel + r;
            put_block<PACKING>(BlockPlace{head + own * 2, head + narrow + own, values + own * 4, before}, at[r]);
            at[r] += rows.block_bytes;
        }
    }
}

typedef void (*BlockPacker)(const Linear& linear, const BlockRows& rows, long row, long count, long column);

BlockPacker block_packer(int64_t packing) {
    switch (packing) {
        case NIBBLES_OF_32: return put_block_rows<NIBBLES_OF_32>;
        case BYTES_OF_32: return put_block_rows<BYTES_OF_32>;
        case EXPONENT_OF_32: return put_block_rows<EXPONENT_OF_32>;
        case Q4_K: return put_block_rows<Q4_K>;
        case Q5_K: return put_block_rows<Q5_K>;
        default: return put_block_rows<Q6_K>;
    }
}
