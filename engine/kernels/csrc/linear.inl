// A tile of a product for one kind of numbers: linear.cpp includes this file once per kind, each time in a namespace of
// its own, for the instruction set that multiplies them. KERNEL_INT8 says which kind.

#if KERNEL_INT8
typedef __m512i Sum;
INLINE Sum dot(Sum sum, __m512i a, __m512i b) { return _mm512_dpbusd_epi32(sum, a, b); }
INLINE Sum zero() { return _mm512_setzero_si512(); }
INLINE void put(uint32_t* out, Sum sum) { _mm512_store_si512(out, sum); }
#else
typedef __m512 Sum;
INLINE Sum dot(Sum sum, __m512i a, __m512i b) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}
INLINE Sum zero() { return _mm512_setzero_ps(); }
INLINE void put(uint32_t* out, Sum sum) { _mm512_store_ps(out, sum); }
#endif

// NUM_ROWS rows times one panel, into (NUM_ROWS, PANEL). Meanwhile FETCHED halves of a panel are fetched from memory, from
// `next` on.
template <int NUM_ROWS, int FETCHED>
void tile(const uint32_t* rows, long stride, const uint32_t* panel, long num_lanes, const uint32_t* next,
          uint32_t* out) {
    Sum first[NUM_ROWS], second[NUM_ROWS];
    UNROLL for (int m = 0; m < NUM_ROWS; m++) {
        first[m] = zero();
        second[m] = zero();
    }
    for (long lane = 0; lane < num_lanes; lane++, panel += PANEL) {
        const __m512i low = _mm512_load_si512(panel), high = _mm512_load_si512(panel + 16);
        UNROLL for (int i = 0; i < FETCHED; i++) _mm_prefetch(next + lane * FETCHED * 16 + i * 16, _MM_HINT_T1);
        UNROLL for (int m = 0; m < NUM_ROWS; m++) {
            const __m512i x = _mm512_set1_epi32(static_cast<int>(rows[m * stride + lane]));
            first[m] = dot(first[m], x, low);
            second[m] = dot(second[m], x, high);
        }
    }
    UNROLL for (int m = 0; m < NUM_ROWS; m++) {
        put(out + m * PANEL, first[m]);
        put(out + m * PANEL + 16, second[m]);
    }
}

template <int NUM_ROWS> TileKernel tile_of(bool fetches, bool is_alone) {
    if (!fetches) return tile<NUM_ROWS, 0>;
    return is_alone ? tile<NUM_ROWS, 2> : tile<NUM_ROWS, 1>;
}

TileKernel tile_kernel(long num_rows, bool fetches, bool is_alone) {
    switch (num_rows) {
        case 1: return tile_of<1>(fetches, is_alone);
        case 2: return tile_of<2>(fetches, is_alone);
        case 3: return tile_of<3>(fetches, is_alone);
        case 4: return tile_of<4>(fetches, is_alone);
        case 5: return tile_of<5>(fetches, is_alone);
        case 6: return tile_of<6>(fetches, is_alone);
        case 7: return tile_of<7>(fetches, is_alone);
        case 8: return tile_of<8>(fetches, is_alone);
        default: return nullptr;
    }
}
