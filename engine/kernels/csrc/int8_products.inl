// Rows of numbers as integers of 8 and of 16 bits, and exact products of these, for one instruction set: attention_int8.inl
// includes this file, and says by which macros.

typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef int16_t i16x32 __attribute__((vector_size(64)));

// The largest of a row becomes this.
const float LARGEST_STORED = 127.0f, LARGEST_QUERY = 32512.0f, LARGEST_WEIGHT = 32767.0f;
// Numbers that are all smaller count as 0: the reciprocal of their scale would not be finite.
const float SMALLEST = 1e-30f;
// What stored keys are larger by than the numbers that they stand for.
const int KEY_ZERO = 128;
// Adding it leaves the nearest integer in the low bits.
const float INTEGER_SHIFT = 12582912.0f;

INLINE i32x16 load_integers(const int32_t* p) {
    i32x16 x;
    __builtin_memcpy(&x, p, sizeof x);
    return x;
}

INLINE void store_integers(int32_t* p, i32x16 x) { __builtin_memcpy(p, &x, sizeof x); }

INLINE u32x16 nearest_integers(f32x16 x) { return bits_as<u32x16>(x + INTEGER_SHIFT); }

INLINE f32x16 to_floats(i32x16 x) {
#if AVX512
    return reinterpret_cast<f32x16>(_mm512_cvtepi32_ps(reinterpret_cast<__m512i>(x)));
#else
    return __builtin_convertvector(x, f32x16);
#endif
}

// ---- rotation

#if defined(__clang__)
#define LANES_OF(x, ...) __builtin_shufflevector(x, x, __VA_ARGS__)
#else
#define LANES_OF(x, ...) __builtin_shuffle(x, i32x16{__VA_ARGS__})
#endif

// Each lane's sum with the one `distance` lanes away, or its difference.
template <int distance> INLINE f32x16 swapped(f32x16 x) {
    if (distance == 1) return LANES_OF(x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
    if (distance == 2) return LANES_OF(x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    if (distance == 4) return LANES_OF(x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    return LANES_OF(x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
}

template <int distance> INLINE f32x16 butterfly(f32x16 x) {
    const u32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const int to_sign = distance == 1 ? 31 : distance == 2 ? 30 : distance == 4 ? 29 : 28;
    const u32x16 sign = (lane & static_cast<uint32_t>(distance)) << to_sign;
    return bits_as<f32x16>(bits_as<u32x16>(x) ^ sign) + swapped<distance>(x);
}

// Numbers that a rotation mixes: the largest power of two that divides the dimension, which is a multiple of 16.
INLINE long rotated_together(long dim) { return dim & -dim; }

// N vectors, which stay in registers.
template <int N> INLINE void rotate_vectors(float* row) {
    f32x16 x[N];
    UNROLL
    for (int i = 0; i < N; i++) x[i] = butterfly<8>(butterfly<4>(butterfly<2>(butterfly<1>(load(row + 16 * i)))));
    UNROLL
    for (int distance = 1; distance < N; distance *= 2)
        UNROLL
        for (int i = 0; i < N; i++) {
            if (i & distance) continue;
            const f32x16 a = x[i], b = x[i + distance];
            x[i] = a + b;
            x[i + distance] = a - b;
        }
    UNROLL
    for (int i = 0; i < N; i++) store(row + 16 * i, x[i]);
}

// Multiplies each run of so many numbers with a Hadamard matrix of ones and minus ones. Twice is multiplying by their count,
// and so are products of two rows that are both rotated.
INLINE void rotate(float* row, long dim) {
    if (dim == 64) return rotate_vectors<4>(row);
    if (dim == 128) return rotate_vectors<8>(row);
    for (long d = 0; d < dim; d += 16) {
        f32x16 x = load(row + d);
        x = butterfly<8>(butterfly<4>(butterfly<2>(butterfly<1>(x))));
        store(row + d, x);
    }
    for (long distance = 16; distance < rotated_together(dim); distance *= 2)
        for (long first = 0; first < dim; first += 2 * distance)
            for (long d = first; d < first + distance; d += 16) {
                const f32x16 a = load(row + d), b = load(row + d + distance);
                store(row + d, a + b);
                store(row + d + distance, a - b);
            }
}

// ---- rows in integers

// The largest magnitude, or NaN if a number is not finite.
INLINE float magnitude_of(const float* row, long dim) {
    f32x16 most = {}, poison = {};
    for (long d = 0; d < dim; d += 16) {
        const f32x16 x = load(row + d);
        poison += x * 0.0f;
        most = larger(x < 0.0f ? -x : x, most);
    }
    return max_of(most) + sum_of(poison);
}

INLINE float reciprocal(float x) { return x > 0.0f ? 1.0f / x : 0.0f; }

// Rotates a row of numbers, unless it is of values, and makes bytes of it. Returns their scale.
template <class Stored> INLINE bf16 store_bytes(const Stored* row, long dim, bool is_rotated, float* memory, uint8_t* bytes) {
    for (long d = 0; d < dim; d += 16) store(memory + d, load_as_float(row + d));
    if (is_rotated) rotate(memory, dim);
    const float most = magnitude_of(memory, dim);
    const bool is_finite = most == most, is_zero = most < SMALLEST;
    // Rounded up: no number becomes larger than the largest.
    const uint32_t bits = is_finite && !is_zero ? (bits_as<uint32_t>(most / LARGEST_STORED) + 0xffff) >> 16 : 0;
    const bf16 scale = {static_cast<uint16_t>(is_finite ? bits : 0x7fc0)};
    const float factor = is_finite ? reciprocal(to_float(scale)) : 0.0f;
    for (long d = 0; d < dim; d += 16) {
        const f32x16 x = load(memory + d);
        const u32x16 integers = nearest_integers((x == x ? x : f32x16{}) * factor);
#if AVX512
        _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes + d), _mm512_cvtepi32_epi8(reinterpret_cast<__m512i>(integers)));
#else
        for (int i = 0; i < 16; i++) bytes[d + i] = static_cast<uint8_t>(integers[i]);
#endif
    }
    return scale;
}

#if VNNI
INLINE __m512i pack_words(u32x16 a, u32x16 b) {
    return _mm512_packus_epi32(reinterpret_cast<__m512i>(a & 0xffffu), reinterpret_cast<__m512i>(b & 0xffffu));
}

// What packing leaves in lanes of 128 bits, in order.
INLINE void store_packed(uint8_t* out, __m512i first, __m512i second) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_storeu_si512(out, _mm512_permutexvar_epi32(order, _mm512_packus_epi16(first, second)));
}

INLINE void store_64_words(const u32x16* x, long dim, bool is_signed, uint8_t* out) {
    const __m512i a = pack_words(x[0], x[1]), b = pack_words(x[2], x[3]);
    const __m512i carry = _mm512_set1_epi16(is_signed ? 128 : 0), low = _mm512_set1_epi16(255);
    store_packed(out, _mm512_srli_epi16(_mm512_add_epi16(a, carry), 8), _mm512_srli_epi16(_mm512_add_epi16(b, carry), 8));
    store_packed(out + dim, _mm512_and_si512(a, low), _mm512_and_si512(b, low));
}
#endif

// Numbers of 16 bits, one of which is in four bytes of each of two rows, `dim` bytes apart, or in both halves of a lane.
INLINE void store_words(const u32x16* integers, long dim, bool is_signed, uint8_t* out) {
    long d = 0;
#if VNNI
    UNROLL
    for (; d + 64 <= dim; d += 64) store_64_words(integers + d / 16, dim, is_signed, out + d);
#endif
    for (; d < dim; d += 16) {
        const u32x16 x = integers[d / 16];
#if VNNI
        const u32x16 high = (x + (is_signed ? 128u : 0u)) >> 8;
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + d), _mm512_cvtepi32_epi8(reinterpret_cast<__m512i>(high)));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + dim + d), _mm512_cvtepi32_epi8(reinterpret_cast<__m512i>(x)));
#else
        (void)is_signed;
        uint16_t words[16];
        for (int i = 0; i < 16; i++) words[i / 4 * 4 + i % 2 * 2 + i % 4 / 2] = static_cast<uint16_t>(x[i]);
        __builtin_memcpy(out + 2 * d, words, sizeof words);
#endif
    }
}

// What rows of high and of low bytes come to. Where the whole fits, it does not matter that a part does not.
INLINE i32x16 together(i32x16 high, i32x16 low) {
    return reinterpret_cast<i32x16>((reinterpret_cast<u32x16>(high) << 8) + reinterpret_cast<u32x16>(low));
}

// ---- products of bytes

#if VNNI
INLINE i32x16 dot_bytes(i32x16 sum, u32x16 positive, u32x16 any) {
    return reinterpret_cast<i32x16>(_mm512_dpbusd_epi32(
        reinterpret_cast<__m512i>(sum), reinterpret_cast<__m512i>(positive), reinterpret_cast<__m512i>(any)));
}

INLINE u32x16 each_lane(const uint8_t* x) {
    int lane;
    __builtin_memcpy(&lane, x, sizeof lane);
    return reinterpret_cast<u32x16>(_mm512_set1_epi32(lane));
}

struct Keys {
    typedef u32x16 Lane;
    static INLINE Lane open(u32x16 raw) { return raw; }
    static INLINE i32x16 dot(i32x16 sum, Lane keys, const uint8_t* x) { return dot_bytes(sum, keys, each_lane(x)); }
};

struct Values : Keys {
    static INLINE i32x16 dot(i32x16 sum, Lane values, const uint8_t* x) { return dot_bytes(sum, each_lane(x), values); }
};

// Lane k of a row with `dim` numbers, times a lane of keys or values.
template <class Kind> struct Sums {
    i32x16 high = {}, low = {};
    INLINE void add(typename Kind::Lane lane, const uint8_t* row, long k, long dim) {
        high = Kind::dot(high, lane, row + 4 * k);
        low = Kind::dot(low, lane, row + dim + 4 * k);
    }
    INLINE i32x16 total() const { return together(high, low); }
};
#else
// The sums of two products of 16 bits.
INLINE i32x16 dot_words(u32x16 a, u32x16 b) {
#if AVX512
    return reinterpret_cast<i32x16>(_mm512_madd_epi16(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif AVX2
    const Halves<u32x16, u32x8> x(a), y(b);
    const __m256i both[2] = {
        _mm256_madd_epi16(reinterpret_cast<__m256i>(x.low), reinterpret_cast<__m256i>(y.low)),
        _mm256_madd_epi16(reinterpret_cast<__m256i>(x.high), reinterpret_cast<__m256i>(y.high)),
    };
    i32x16 sums;
    __builtin_memcpy(&sums, both, sizeof sums);
    return sums;
#else
    const i32x16 x = reinterpret_cast<i32x16>(a), y = reinterpret_cast<i32x16>(b);
    return (x << 16 >> 16) * (y << 16 >> 16) + (x >> 16) * (y >> 16);
#endif
}

INLINE u32x16 each_lane(const uint8_t* x) {
    uint32_t lane;
    __builtin_memcpy(&lane, x, sizeof lane);
    return u32x16{} + lane;
}

// The first and third byte of each lane as words, and the second and fourth.
struct Opened {
    u32x16 even, odd;
};

struct Keys {
    typedef Opened Lane;
    static INLINE Lane open(u32x16 raw) { return {raw & 0x00ff00ffu, raw >> 8 & 0x00ff00ffu}; }
};

struct Values {
    typedef Opened Lane;
    static INLINE Lane open(u32x16 raw) {
        const i16x32 words = reinterpret_cast<i16x32>(raw);
        return {reinterpret_cast<u32x16>(words << 8 >> 8), reinterpret_cast<u32x16>(words >> 8)};
    }
};

template <class Kind> struct Sums {
    u32x16 sum = {};  // which may wrap around, as those of bytes may
    INLINE void add(typename Kind::Lane lane, const uint8_t* row, long k, long) {
        sum += reinterpret_cast<u32x16>(dot_words(lane.even, each_lane(row + 8 * k)) +
                                        dot_words(lane.odd, each_lane(row + 8 * k + 4)));
    }
    INLINE i32x16 total() const { return reinterpret_cast<i32x16>(sum); }
};
#endif
