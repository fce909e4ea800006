// Norms of rows of bfloat16. Included in a namespace per file, after rows.inl.

// RMSNorm (Zhang and Sennrich, 2019), over one row. Plain: rounded before the weight and after it. Zero-centred: one is
// added to the weight in float32, and the result is rounded once.
INLINE void normalize(const bf16* x, const Norm& norm, long count, bf16* out) {
    const int parts = 16 / ROW_LANES;  // sixteen sums, whatever a register holds
    RowVector squares[parts] = {};
    for (long i = 0; i < count; i += 16)
        UNROLL for (int part = 0; part < parts; part++) {
            const RowVector v = read_row(x + i + part * ROW_LANES, count - i - part * ROW_LANES);
            squares[part] += v * v;
        }
    const float sum = sum_of(parts > 1 ? squares[0] + squares[parts - 1] : squares[0]);
    const float factor = 1.0f / sqrtf(sum / count + norm.eps);
    if (norm.is_zero_centred) {
        for (long i = 0; i < count; i += ROW_LANES)
            write(out + i, count - i, read_row(x + i, count - i) * factor * (1.0f + read_row(norm.weight + i, count - i)));
        return;
    }
    for (long i = 0; i < count; i += ROW_LANES)
        write(out + i, count - i, rounded(read_row(x + i, count - i) * factor) * read_row(norm.weight + i, count - i));
}
