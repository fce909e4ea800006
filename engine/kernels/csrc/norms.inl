// Norms of rows of bfloat16. Included in a namespace per file, after rows.inl.

// RMSNorm (Zhang and Sennrich, 2019), over one row. Plain: rounded before the weight and after it. Zero-centred: one is
// added to the weight in float32, and the result is rounded once.
INLINE void normalize(const bf16* x, const Norm& norm, long count, bf16* out) {
    f32x16 squares = {};
    for (long i = 0; i < count; i += 16) {
        const f32x16 v = read(x + i, count - i);
        squares += v * v;
    }
    const float factor = 1.0f / sqrtf(sum_of(squares) / count + norm.eps);
    if (norm.is_zero_centred) {
        for (long i = 0; i < count; i += 16)
            write(out + i, count - i, read(x + i, count - i) * factor * (1.0f + read(norm.weight + i, count - i)));
        return;
    }
    for (long i = 0; i < count; i += 16)
        write(out + i, count - i, rounded(read(x + i, count - i) * factor) * read(norm.weight + i, count - i));
}
