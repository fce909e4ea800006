// Products of rows with plain weights for one instruction set. product.cpp includes this file once per set, each time in
// a namespace of its own, with these macros:
//   AVX512       1 where its intrinsics are there
//   BLOCK_ROWS   rows that are multiplied together
//   BLOCK_DOTS   columns that are dot products of two rows each
//   BLOCK_VECTORS  vectors of columns that lie side by side
//
// However many rows and columns are together, each number is summed in one order.

#include "vectors.inl"

template <class T> INLINE f32x16 first_of(const T* p, long count) {
    return count >= 16 ? load_as_float(p) : load_first(p, count);
}

INLINE void put(float* out, float x) { *out = x; }
INLINE void put(bf16* out, float x) { *out = round_to_bf16(x); }

// The first `count` numbers of some rows, and zeros up to 16.
template <class T> void fill_up(T* out, const T* rows, long stride, long num_rows, long count) {
    for (long r = 0; r < num_rows; r++)
        for (long i = 0; i < 16; i++) out[r * 16 + i] = i < count ? rows[r * stride + i] : T{};
}

template <class T> INLINE void finish(const PlainProduct& p, long row, long column, float sum) {
    put(static_cast<T*>(p.out) + row * p.out_stride + column, p.bias ? sum + p.bias[column] : sum);
}

// Where the numbers of a column lie one after the other. What is left behind whole vectors is filled up with zeros first.
template <int ROWS, int COLUMNS, class T> void dots(const PlainProduct& p, long row, long column) {
    const T* x = static_cast<const T*>(p.x) + row * p.x_stride;
    const T* weight = static_cast<const T*>(p.weight) + column * p.column_stride;
    long x_stride = p.x_stride, weight_stride = p.column_stride;
    const long whole = p.in / 16 * 16;
    T last_x[ROWS * 16], last_weight[COLUMNS * 16];
    if (whole < p.in) {
        fill_up(last_x, x + whole, x_stride, ROWS, p.in - whole);
        fill_up(last_weight, weight + whole, weight_stride, COLUMNS, p.in - whole);
    }
    f32x16 sums[ROWS][COLUMNS];
    UNROLL
    for (int r = 0; r < ROWS; r++)
        UNROLL
        for (int c = 0; c < COLUMNS; c++) sums[r][c] = f32x16{};
    for (long i = 0; i < p.in; i += 16, x += 16, weight += 16) {
        if (i == whole) {
            x = last_x;
            weight = last_weight;
            x_stride = weight_stride = 16;
        }
        f32x16 columns[COLUMNS];
        UNROLL
        for (int c = 0; c < COLUMNS; c++) columns[c] = load_as_float(weight + c * weight_stride);
        UNROLL
        for (int r = 0; r < ROWS; r++) {
            const f32x16 values = load_as_float(x + r * x_stride);
            UNROLL
            for (int c = 0; c < COLUMNS; c++) sums[r][c] = values * columns[c] + sums[r][c];
        }
    }
    float stored[ROWS * COLUMNS * 16];  // or the compiler would keep them out of registers all the time
    UNROLL
    for (int r = 0; r < ROWS; r++)
        UNROLL
        for (int c = 0; c < COLUMNS; c++) store(stored + (r * COLUMNS + c) * 16, sums[r][c]);
    for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < COLUMNS; c++)
            finish<T>(p, row + r, column + c, sum_of(load(stored + (r * COLUMNS + c) * 16)));
}

// Where columns lie side by side; the last vector has `count` of them.
template <int ROWS, int VECTORS, class T> void columns(const PlainProduct& p, long row, long column, long count) {
    const T* x = static_cast<const T*>(p.x) + row * p.x_stride;
    const T* weight = static_cast<const T*>(p.weight) + column;
    f32x16 sums[ROWS][VECTORS];
    UNROLL
    for (int r = 0; r < ROWS; r++)
        UNROLL
        for (int v = 0; v < VECTORS; v++) sums[r][v] = f32x16{};
    for (long i = 0; i < p.in; i++, weight += p.in_stride)
        UNROLL
        for (int v = 0; v < VECTORS; v++) {
            const f32x16 values = first_of(weight + 16 * v, VECTORS > 1 ? 16 : count);
            UNROLL
            for (int r = 0; r < ROWS; r++) sums[r][v] = to_float(x[r * p.x_stride + i]) * values + sums[r][v];
        }
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < VECTORS; v++)
            for (int lane = 0; lane < (VECTORS > 1 ? 16 : count); lane++)
                finish<T>(p, row + r, column + 16 * v + lane, sums[r][v][lane]);
}

template <int ROWS, class T> void multiply_rows(const PlainProduct& p, long row, long column, long end) {
    if (p.in_stride == 1) {
        for (; column + BLOCK_DOTS <= end; column += BLOCK_DOTS) dots<ROWS, BLOCK_DOTS, T>(p, row, column);
        for (; column < end; column++) dots<ROWS, 1, T>(p, row, column);
        return;
    }
    for (; column + 16 * BLOCK_VECTORS <= end; column += 16 * BLOCK_VECTORS)
        columns<ROWS, BLOCK_VECTORS, T>(p, row, column, 16);
    for (; column < end; column += 16) columns<ROWS, 1, T>(p, row, column, least(16, end - column));
}

// As many rows as are left, up to ROWS.
template <int ROWS, class T> void multiply_last(const PlainProduct& p, long row, const Part& part) {
    if (part.end_row - row >= ROWS) return multiply_rows<ROWS, T>(p, row, part.column, part.end_column);
    if constexpr (ROWS > 1) multiply_last<ROWS - 1, T>(p, row, part);
}

template <class T> void multiply(const PlainProduct& p, const Part& part) {
    for (long row = part.row; row < part.end_row; row += BLOCK_ROWS) multiply_last<BLOCK_ROWS, T>(p, row, part);
}

Kernel kernel_for(bool is_bf16) { return is_bf16 ? multiply<bf16> : multiply<float>; }
