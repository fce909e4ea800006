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

// ---- scales that are integers of a column's: 16 rows of a weight at a time, each in its lane

// Some inputs of a group, a vector of 16 rows for each. What is not finite becomes 0, and its row's part of `poison` NaN.
INLINE void read_inputs(const bf16* weights, long stride, long count, long num_inputs, f32x16* x, f32x16& poison) {
    alignas(64) float columns[16][16] = {};
    for (long r = 0; r < count; r++)
        for (long i = 0; i < num_inputs; i++) columns[i][r] = to_float(weights[r * stride + i]);
    for (long i = 0; i < 16; i++) {
        const f32x16 read = load(columns[i]), zeros = read * 0.0f;
        poison = poison + zeros;
        x[i] = zeros == 0.0f ? read : f32x16{};
    }
}

// As best_scale, of 16 rows.
INLINE f32x16 best_scales(const f32x16* x, long size) {
    f32x16 farthest = {}, best = {}, best_gain = {};
    for (long i = 0; i < size; i++)
        farthest = greater(x[i], -x[i]) > greater(farthest, -farthest) ? x[i] : farthest;
    const f32x16 inverse = greater(farthest, -farthest) > 0x1p-110f ? 1.0f / farthest : f32x16{};
    for (const float largest : LARGEST_VALUES) {
        const f32x16 factor = inverse * largest;
        f32x16 products = {}, squares = {};
        for (long i = 0; i < size; i++) {
            const f32x16 q = between(nearest(x[i] * factor), -8.0f, 7.0f);
            products = fused(q, x[i], products);
            squares = fused(q, q, squares);
        }
        const f32x16 scale = squares > 0.0f ? products / squares : f32x16{}, gain = products * scale;
        best = gain > best_gain ? scale : best;
        best_gain = greater(gain, best_gain);
    }
    return best;
}

// The integers whose values have the least square error, of those beside what each row's scale would be: of either sign.
INLINE f32x16 best_parts(const f32x16* x, long size, f32x16 scales, f32x16 of_columns) {
    const f32x16 inverse = of_columns > 0.0f ? 1.0f / of_columns : f32x16{};
    const f32x16 wanted = nearest(greater(scales, -scales) * inverse);
    f32x16 best = {}, least_error = {};  // less the weights' squares
    for (int beside = -1; beside <= 1; beside++) {
        const f32x16 part = between(wanted + float(beside), 1.0f, float(MOST_COLUMN_PART));
        for (int sign = 1; sign >= -1; sign -= 2) {
            const f32x16 step = part * of_columns * float(sign), factor = step == 0.0f ? f32x16{} : 1.0f / step;
            f32x16 products = {}, squares = {};
            for (long i = 0; i < size; i++) {
                const f32x16 q = between(nearest(x[i] * factor), -8.0f, 7.0f);
                products = fused(q, x[i], products);
                squares = fused(q, q, squares);
            }
            const f32x16 error = step * fused(step, squares, products * -2.0f);
            best = error < least_error ? part * float(sign) : best;
            least_error = lesser(error, least_error);
        }
    }
    return best;
}

// `scales` is room for a float of each row and group; `out` has room for 16 rows.
void quantize_columns(const Linear& linear, const bf16* weights, long stride, long count, float* scales,
                      const GroupedRows& out) {
    const long num_groups = GroupLayout(linear).num_groups, size = linear.groups->size;
    f32x16 x[32], most = {}, poison = {};
    const auto read_group = [&](long group) {
        for (long i = 0; i < size; i += 16) {
            const long first = group * size + i;
            read_inputs(weights + first, stride, count, ::most(0, least(16, linear.in - first)), x + i, poison);
        }
    };
    for (long group = 0; group < num_groups; group++) {
        read_group(group);
        const f32x16 found = best_scales(x, size);
        store(scales + group * 16, found);
        most = greater(most, greater(found, -found));
    }
    const f32x16 of_columns = most / float(MOST_COLUMN_PART);
    uint8_t *values = const_cast<uint8_t*>(out.values), *parts = const_cast<uint8_t*>(out.scale_parts);
    for (long group = 0; group < num_groups; group++) {
        read_group(group);
        const f32x16 part = best_parts(x, size, load(scales + group * 16), of_columns), step = part * of_columns;
        const f32x16 factor = step == 0.0f ? f32x16{} : 1.0f / step;
        alignas(16) int8_t bytes[16];
        put_bytes(bytes, part);
        for (long r = 0; r < count; r++) parts[r * num_groups + group] = static_cast<uint8_t>(bytes[r]);
        for (long i = 0; i < size; i++) {
            put_bytes(bytes, between(nearest(x[i] * factor), -8.0f, 7.0f) + 8.0f);
            for (long r = 0; r < count; r++) values[r * out.value_stride + group * size + i] = static_cast<uint8_t>(bytes[r]);
        }
    }
    store(const_cast<float*>(out.column_scales), of_columns + poison);
}
