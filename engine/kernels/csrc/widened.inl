// A tile of a product where no instruction multiplies the stored numbers: two of bfloat16 become floats, and four integers of 8
// bits words of 16, whose products are summed in 32. linear.cpp includes this file per instruction set, AVX-512 or AVX2; that
// with VNNI multiplies four integers as they are.
//
// Rows are widened before, once: two floats for a lane of two numbers, or two lanes of words for one of four, of which the
// first has the numbers 0 and 2, the second 1 and 3. So a row has two words of 32 bits for each lane of a panel.

#if AVX512
typedef __m512 Floats;
typedef __m512i Ints;
// Sums of a tile at most: with these, weights and a number of a row are in registers.
const int MOST_SUMS = 24;
#define VECTORS_DO(operation) _mm512_##operation
INLINE Ints load_lanes(const uint32_t* p) { return _mm512_loadu_si512(p); }
INLINE void put(uint32_t* out, Floats sum) { _mm512_storeu_ps(out, sum); }
INLINE void put(uint32_t* out, Ints sum) { _mm512_storeu_si512(out, sum); }
INLINE Ints upper_half(Ints x) { return _mm512_and_si512(x, _mm512_set1_epi32(static_cast<int>(0xffff0000))); }
INLINE Floats as_numbers(Ints x) { return _mm512_castsi512_ps(x); }
INLINE Ints no_ints() { return _mm512_setzero_si512(); }
#else
typedef __m256 Floats;
typedef __m256i Ints;
const int MOST_SUMS = 12;
#define VECTORS_DO(operation) _mm256_##operation
INLINE Ints load_lanes(const uint32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
INLINE void put(uint32_t* out, Floats sum) { _mm256_storeu_ps(reinterpret_cast<float*>(out), sum); }
INLINE void put(uint32_t* out, Ints sum) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), sum); }
INLINE Ints upper_half(Ints x) { return _mm256_and_si256(x, _mm256_set1_epi32(static_cast<int>(0xffff0000))); }
INLINE Floats as_numbers(Ints x) { return _mm256_castsi256_ps(x); }
INLINE Ints no_ints() { return _mm256_setzero_si256(); }
#endif

// Columns of a vector, and vectors of a panel.
const long LANES = sizeof(Ints) / 4, VECTORS = PANEL / LANES;

struct PairOfFloats {
    typedef Floats Sum;
    static const int ROW_WORDS = 2;
    Floats low, high;

    explicit INLINE PairOfFloats(Ints raw)
        : low(as_numbers(VECTORS_DO(slli_epi32)(raw, 16))), high(as_numbers(upper_half(raw))) {}

    static INLINE Sum zero() { return VECTORS_DO(setzero_ps)(); }
    INLINE Sum add_first(Sum sum, uint32_t x) const { return VECTORS_DO(fmadd_ps)(each_float(x), low, sum); }
    INLINE Sum add_second(Sum sum, uint32_t x) const { return VECTORS_DO(fmadd_ps)(each_float(x), high, sum); }

private:
    static INLINE Floats each_float(uint32_t bits) { return VECTORS_DO(set1_ps)(bits_as<float>(bits)); }
};

struct FourWords {
    typedef Ints Sum;
    static const int ROW_WORDS = 2;
    Ints even, odd;

    explicit INLINE FourWords(Ints raw)
        : even(VECTORS_DO(srai_epi16)(VECTORS_DO(slli_epi16)(raw, 8), 8)), odd(VECTORS_DO(srai_epi16)(raw, 8)) {}

    static INLINE Sum zero() { return no_ints(); }
    INLINE Sum add_first(Sum sum, uint32_t x) const { return add(sum, even, x); }
    INLINE Sum add_second(Sum sum, uint32_t x) const { return add(sum, odd, x); }

private:
    static INLINE Sum add(Sum sum, Ints words, uint32_t x) {
        const Ints row = VECTORS_DO(set1_epi32)(static_cast<int>(x));
        return VECTORS_DO(add_epi32)(sum, VECTORS_DO(madd_epi16)(words, row));
    }
};

#if VNNI
struct FourBytes {
    typedef Ints Sum;
    static const int ROW_WORDS = 1;
    Ints bytes;

    explicit INLINE FourBytes(Ints raw) : bytes(raw) {}

    static INLINE Sum zero() { return no_ints(); }
    INLINE Sum add_first(Sum sum, uint32_t x) const {
        return _mm256_dpbusd_avx_epi32(sum, _mm256_set1_epi32(static_cast<int>(x)), bytes);
    }
    INLINE Sum add_second(Sum sum, uint32_t) const { return sum; }
};
#endif

// NUM_ROWS rows times NUM_VECTORS vectors of a panel.
template <class Lane, int NUM_ROWS, int NUM_VECTORS, bool FETCHES>
INLINE void part_of_tile(const uint32_t* rows, long stride, const uint32_t* panel, long num_lanes, const uint32_t* next,
                         uint32_t* out) {
    typename Lane::Sum sums[NUM_ROWS][NUM_VECTORS];
    UNROLL for (int m = 0; m < NUM_ROWS; m++)
        UNROLL for (int v = 0; v < NUM_VECTORS; v++) sums[m][v] = Lane::zero();
    for (long lane = 0; lane < num_lanes; lane++, panel += PANEL) {
        if (FETCHES) _mm_prefetch(next + lane * (PANEL / 2), _MM_HINT_T1);
        UNROLL for (int v = 0; v < NUM_VECTORS; v++) {
            const Lane weights(load_lanes(panel + v * LANES));
            UNROLL for (int m = 0; m < NUM_ROWS; m++) {
                const uint32_t* x = rows + m * stride + Lane::ROW_WORDS * lane;
                sums[m][v] = weights.add_second(weights.add_first(sums[m][v], x[0]), x[Lane::ROW_WORDS - 1]);
            }
        }
    }
    UNROLL for (int m = 0; m < NUM_ROWS; m++)
        UNROLL for (int v = 0; v < NUM_VECTORS; v++) put(out + m * PANEL + v * LANES, sums[m][v]);
}

// NUM_ROWS rows times one panel, into (NUM_ROWS, PANEL), half a panel at a time where its sums are too many for the registers.
// Half a panel from `next` on, where there is one, is fetched from memory meanwhile.
template <class Lane, int NUM_ROWS, bool FETCHES>
void widened_tile(const uint32_t* rows, long stride, const uint32_t* panel, long num_lanes, const uint32_t* next,
                  uint32_t* out) {
    const int at_once = NUM_ROWS * VECTORS <= MOST_SUMS ? VECTORS : VECTORS / 2;
    part_of_tile<Lane, NUM_ROWS, at_once, FETCHES>(rows, stride, panel, num_lanes, next, out);
    if (at_once < VECTORS)
        part_of_tile<Lane, NUM_ROWS, at_once, false>(rows, stride, panel + PANEL / 2, num_lanes, nullptr, out + PANEL / 2);
}

template <class Lane, int NUM_ROWS> TileKernel widened_tile_of(bool fetches) {
    return fetches ? widened_tile<Lane, NUM_ROWS, true> : widened_tile<Lane, NUM_ROWS, false>;
}

template <class Lane> TileKernel widened_kernel(long num_rows, bool fetches) {
    switch (num_rows) {
        case 1: return widened_tile_of<Lane, 1>(fetches);
        case 2: return widened_tile_of<Lane, 2>(fetches);
        case 3: return widened_tile_of<Lane, 3>(fetches);
        case 4: return widened_tile_of<Lane, 4>(fetches);
        case 5: return widened_tile_of<Lane, 5>(fetches);
        case 6: return widened_tile_of<Lane, 6>(fetches);
        default: return nullptr;
    }
}

#undef VECTORS_DO
