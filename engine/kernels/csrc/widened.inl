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
const int MOST_SUMS = 8;
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

    static INLINE Sum zero() { return VECTORS_DO(setzero_ps)(); }
    static INLINE Ints first_half(Ints raw) { return VECTORS_DO(slli_epi32)(raw, 16); }
    static INLINE Ints second_half(Ints raw) { return upper_half(raw); }
    static INLINE Sum add(Sum sum, Ints weights, Ints x) {
        return VECTORS_DO(fmadd_ps)(as_numbers(x), as_numbers(weights), sum);
    }
};

struct FourWords {
    typedef Ints Sum;
    static const int ROW_WORDS = 2;

    static INLINE Sum zero() { return no_ints(); }
    static INLINE Ints first_half(Ints raw) { return VECTORS_DO(srai_epi16)(VECTORS_DO(slli_epi16)(raw, 8), 8); }
    static INLINE Ints second_half(Ints raw) { return VECTORS_DO(srai_epi16)(raw, 8); }
    static INLINE Sum add(Sum sum, Ints words, Ints x) {
        Sum added = VECTORS_DO(add_epi32)(sum, VECTORS_DO(madd_epi16)(words, x));
        __asm__("" : "+v"(added));  // or a compiler adds up both halves' products first, which are too many for the registers
        return added;
    }
};

#if VNNI
struct FourBytes {
    typedef Ints Sum;
    static const int ROW_WORDS = 1;

    static INLINE Sum zero() { return no_ints(); }
    static INLINE Ints first_half(Ints raw) { return raw; }
    static INLINE Ints second_half(Ints raw) { return raw; }
    static INLINE Sum add(Sum sum, Ints bytes, Ints x) { return _mm256_dpbusd_avx_epi32(sum, x, bytes); }
};
#endif

// Adds what one word of each row brings: half of a lane's numbers where there are two words.
template <class Lane, bool IS_FIRST, int NUM_ROWS, int NUM_VECTORS>
INLINE void add_half(const uint32_t* rows, long stride, const uint32_t* lane, typename Lane::Sum (&sums)[NUM_ROWS][NUM_VECTORS]) {
    Ints weights[NUM_VECTORS];
    UNROLL for (int v = 0; v < NUM_VECTORS; v++) {
        const Ints raw = load_lanes(lane + v * LANES);
        weights[v] = IS_FIRST ? Lane::first_half(raw) : Lane::second_half(raw);
    }
    UNROLL for (int m = 0; m < NUM_ROWS; m++) {
        const Ints x = VECTORS_DO(set1_epi32)(static_cast<int>(rows[m * stride]));
        UNROLL for (int v = 0; v < NUM_VECTORS; v++) sums[m][v] = Lane::add(sums[m][v], weights[v], x);
        __asm__ volatile("" ::: "memory");  // one row's word at a time: with more, the registers would not hold the sums
    }
}

// What is fetched from memory meanwhile: half of the next panel, or where there is one tile alone, which reads a panel in two
// goes, this panel's and the next one's lines that are so many bytes further on.
enum Fetching { NOTHING, NEXT_PANEL, FURTHER_ON };
const long FETCHED_AHEAD = 8192;

// NUM_ROWS rows times NUM_VECTORS vectors of a panel.
template <class Lane, int NUM_ROWS, int NUM_VECTORS, Fetching FETCHING>
INLINE void part_of_tile(const uint32_t* rows, long stride, const uint32_t* panel, long num_lanes, const uint32_t* next,
                         uint32_t* out) {
    typename Lane::Sum sums[NUM_ROWS][NUM_VECTORS];
    UNROLL for (int m = 0; m < NUM_ROWS; m++)
        UNROLL for (int v = 0; v < NUM_VECTORS; v++) sums[m][v] = Lane::zero();
    for (long lane = 0; lane < num_lanes; lane++, panel += PANEL, rows += Lane::ROW_WORDS) {
        if (FETCHING == NEXT_PANEL) _mm_prefetch(next + lane * (PANEL / 2), _MM_HINT_T1);
        if (FETCHING == FURTHER_ON) {
            _mm_prefetch(panel + FETCHED_AHEAD / 4, _MM_HINT_T0);
            _mm_prefetch(panel + FETCHED_AHEAD / 4 + 16, _MM_HINT_T0);
        }
        add_half<Lane, true, NUM_ROWS, NUM_VECTORS>(rows, stride, panel, sums);
        if (Lane::ROW_WORDS > 1) add_half<Lane, false, NUM_ROWS, NUM_VECTORS>(rows + 1, stride, panel, sums);
    }
    UNROLL for (int m = 0; m < NUM_ROWS; m++)
        UNROLL for (int v = 0; v < NUM_VECTORS; v++) put(out + m * PANEL + v * LANES, sums[m][v]);
}

// NUM_ROWS rows times one panel, into (NUM_ROWS, PANEL), half a panel at a time where its sums are too many for the registers.
template <class Lane, int NUM_ROWS, Fetching FETCHING>
void widened_tile(const uint32_t* rows, long stride, const uint32_t* panel, long num_lanes, const uint32_t* next,
                  uint32_t* out) {
    const int at_once = NUM_ROWS * VECTORS <= MOST_SUMS ? VECTORS : VECTORS / 2;
    part_of_tile<Lane, NUM_ROWS, at_once, FETCHING>(rows, stride, panel, num_lanes, next, out);
    if (at_once < VECTORS)
        part_of_tile<Lane, NUM_ROWS, at_once, NOTHING>(rows, stride, panel + PANEL / 2, num_lanes, nullptr, out + PANEL / 2);
}

template <class Lane, int NUM_ROWS> TileKernel widened_tile_of(bool fetches, bool is_alone) {
    if (is_alone) return widened_tile<Lane, NUM_ROWS, FURTHER_ON>;
    return fetches ? widened_tile<Lane, NUM_ROWS, NEXT_PANEL> : widened_tile<Lane, NUM_ROWS, NOTHING>;
}

template <class Lane> TileKernel widened_kernel(long num_rows, bool fetches, bool is_alone) {
    switch (num_rows) {
        case 1: return widened_tile_of<Lane, 1>(fetches, is_alone);
        case 2: return widened_tile_of<Lane, 2>(fetches, is_alone);
        case 3: return widened_tile_of<Lane, 3>(fetches, is_alone);
        case 4: return widened_tile_of<Lane, 4>(fetches, is_alone);
        case 5: return widened_tile_of<Lane, 5>(fetches, is_alone);
        case 6: return widened_tile_of<Lane, 6>(fetches, is_alone);
        default: return nullptr;
    }
}

#undef VECTORS_DO
