// Weights as the nearest values in groups. grouped.cpp includes this file behind grouped_vectors.inl, per instruction set:
// all give the same bits.

// Steps that are tried of a group of 4 bits: its largest value becomes -8 or 7, or a little more or less.
const float LARGEST_VALUES[] = {-7.0f, -7.25f, -7.5f, -7.75f, -8.0f, -8.25f, -8.5f, -8.75f, 6.5f, 7.0f, 7.5f};

INLINE f32x16 between(f32x16 x, float low, float high) { return lesser(greater(x, each(low)), each(high)); }

// The number that is farthest from zero, with its sign.
INLINE float farthest(const f32x16* x, long num_vectors) {
    f32x16 high = x[0], low = -x[0];
    for (long i = 1; i < num_vectors; i++) {
        high = greater(high, x[i]);
        low = greater(low, -x[i]);
    }
    const float highest = max_of(high), lowest = max_of(low);
    return highest > lowest ? highest : -lowest;
}

// The scale whose values of -8 to 7 have the least square error, of those that are tried and fitted to their values.
INLINE float best_scale(const f32x16* x, long num_vectors, float farthest) {
    float best = 0.0f, best_gain = 0.0f;
    for (const float largest : LARGEST_VALUES) {
        const float factor = largest / farthest;
        f32x16 products = {}, squares = {};
        for (long i = 0; i < num_vectors; i++) {
            const f32x16 q = between(nearest(x[i] * factor), -8.0f, 7.0f);
            products = fused(q, x[i], products);
            squares = fused(q, q, squares);
        }
        const float product = sum_of(products), square = sum_of(squares), scale = product / square;
        const float gain = product * scale;  // what the square error is less than that of zeros
        if (gain > best_gain) {
            best_gain = gain;
            best = scale;
        }
    }
    return best;
}

INLINE float poison_of(const f32x16* x, long num_vectors) {
    f32x16 poison = x[0] * 0.0f;
    for (long i = 1; i < num_vectors; i++) poison = poison + x[i] * 0.0f;
    return sum_of(poison);
}

// Returns the scale. What is not finite makes it NaN.
INLINE uint16_t quantize_group(const Groups& groups, const f32x16* x, uint8_t* values) {
    const long num_vectors = groups.size / 16;
    const float most = farthest(x, num_vectors), half = groups.bits == 8 ? 127.0f : 8.0f, zero = groups.zero;
    const bool is_tiny = !(most > 0x1p-110f) && !(most < -0x1p-110f);
    const float wanted = is_tiny ? 0.0f : groups.bits == 8 ? most / 127.0f : best_scale(x, num_vectors, most);
    const uint16_t scale = float_to_half(wanted + poison_of(x, num_vectors));
    const float rounded = half_to_float(scale), factor = rounded != 0.0f && rounded == rounded ? 1.0f / rounded : 0.0f;
    for (long i = 0; i < num_vectors; i++) {
        const f32x16 q = factor == 0.0f ? f32x16{} : between(nearest(x[i] * factor), -half, half == 8.0f ? 7.0f : 127.0f);
        alignas(16) int8_t bytes[16];
        put_bytes(bytes, q);
        for (long k = 0; k < 16; k++) values[i * 16 + k] = static_cast<uint8_t>(bytes[k] + static_cast<int>(zero));
    }
    return scale;
}

void quantize(const Linear& linear, const bf16* weights, uint8_t* values, uint16_t* scales) {
    const Groups& groups = *linear.groups;
    const GroupLayout layout(linear);
    for (long group = 0; group < layout.num_groups; group++) {
        f32x16 x[2] = {};
        for (long i = 0; i < groups.size / 16; i++) {
            const long first = group * groups.size + i * 16;
            x[i] = read(weights + first, most(0, least(16, linear.in - first)));
        }
        scales[group] = quantize_group(groups, x, values + group * groups.size);
    }
}
