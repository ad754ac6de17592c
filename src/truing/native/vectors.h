/* Sixteen numbers at a time: reading and writing them in either precision, sums, and e^x.
   T is what products read, float32 or (BFLOAT16) the upper half of one. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#include <immintrin.h>
#define MASKED /* to load or store the first m lanes is an instruction; on some processors a slow one */
#endif

#define PRAGMA(x) _Pragma(#x)
#define ROWS(n, elements) PRAGMA(omp parallel for schedule(static) if ((elements) > 8192)) for (int64_t i = 0; i < (n); i++)
#define L 16 /* lanes */
#define OVER(n) for (int64_t j = 0, m; m = (n) - j < L ? (n) - j : L, (void)m, j < (n); j += L) /* m of them are real */

typedef float V __attribute__((vector_size(4 * L)));
typedef int32_t I __attribute__((vector_size(4 * L)));
typedef uint32_t U __attribute__((vector_size(4 * L)));
typedef uint16_t H __attribute__((vector_size(2 * L)));

static const I lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

static inline V all(float x) { return x - (V){0}; }
static inline V pick(I where, V a, V b) { return (V)((where & (I)a) | (~where & (I)b)); }
#ifdef MASKED
static inline V larger(V a, V b) { return (V)_mm512_max_ps((__m512)a, (__m512)b); } /* b where one is NaN */
static inline V smaller(V a, V b) { return (V)_mm512_min_ps((__m512)a, (__m512)b); }
#else
static inline V larger(V a, V b) { return pick(a > b, a, b); }
static inline V smaller(V a, V b) { return pick(a < b, a, b); }
#endif

/* -- the first m of sixteen numbers in memory, zeros for the others -------------------------------------------------------- */
#ifdef MASKED
static inline __mmask16 first(int64_t m) { return (__mmask16)((1u << m) - 1); }
static inline V read(const float *x, int64_t m) { return m == L ? (V)_mm512_loadu_ps(x) : (V)_mm512_maskz_loadu_ps(first(m), x); }
static inline void write(float *x, V v, int64_t m) {
    if (m == L) _mm512_storeu_ps(x, (__m512)v);
    else _mm512_mask_storeu_ps(x, first(m), (__m512)v);
}
#else
static inline V read(const float *x, int64_t m) {
    V v = {0};
    memcpy(&v, x, m * sizeof *x);
    return v;
}
static inline void write(float *x, V v, int64_t m) { memcpy(x, &v, m * sizeof *x); }
#endif

#ifdef BFLOAT16
typedef uint16_t T;
static inline U nearest(V v) { /* the upper half: to the nearest, ties to even; NaN stays NaN */
    U u = (U)v, bad = (U)(v != v);
    return (bad & 0x7fc0) | (~bad & ((u + 0x7fff + ((u >> 16) & 1)) >> 16));
}
static inline float one(T x) { uint32_t u = (uint32_t)x << 16; float f; memcpy(&f, &u, 4); return f; }
#ifdef MASKED
static inline V get(const T *x, int64_t m) {
    __m256i h = m == L ? _mm256_loadu_si256((const __m256i *)x) : _mm256_maskz_loadu_epi16(first(m), x);
    return (V)_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16);
}
static inline void put(T *x, V v, int64_t m) {
#ifdef __AVX512BF16__
    __m256i h = (__m256i)_mm512_cvtneps_pbh((__m512)v);
#else
    __m256i h = _mm512_cvtepi32_epi16((__m512i)nearest(v));
#endif
    if (m == L) _mm256_storeu_si256((__m256i *)x, h);
    else _mm256_mask_storeu_epi16(x, first(m), h);
}
#else
static inline V get(const T *x, int64_t m) {
    H h = {0};
    memcpy(&h, x, m * sizeof *x);
    return (V)(__builtin_convertvector(h, U) << 16);
}
static inline void put(T *x, V v, int64_t m) {
    H h = __builtin_convertvector(nearest(v), H);
    memcpy(x, &h, m * sizeof *x);
}
#endif
#else
typedef float T;
#define get read
#define put write
static inline float one(T x) { return x; }
#endif

/* -- arithmetic ---------------------------------------------------------------------------------------------------------- */
static inline float sum(V v) {
#ifdef MASKED
    return _mm512_reduce_add_ps((__m512)v);
#endif
    float f[L];
    memcpy(f, &v, sizeof v);
    for (int w = L / 2; w; w /= 2)
        for (int k = 0; k < w; k++) f[k] += f[k + w];
    return f[0];
}
static inline float most(V v) { /* of numbers that are none NaN */
#ifdef MASKED
    return _mm512_reduce_max_ps((__m512)v);
#endif
    float f[L];
    memcpy(f, &v, sizeof v);
    for (int w = L / 2; w; w /= 2)
        for (int k = 0; k < w; k++) f[k] = f[k + w] > f[k] ? f[k + w] : f[k];
    return f[0];
}

/* e^x within 2 units in the last place from -87 to 88; 0 below, e^88 above. Source: Moshier's Cephes (expf). */
static inline V power(V x) {
    x = smaller(all(88.0f), x);
    V n = x * 1.44269504088896341f + 12582912.0f, whole = n - 12582912.0f; /* the nearest integer stands in the lowest bits of n */
    V f = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    V p = ((((1.9875691500e-4f * f + 1.3981999507e-3f) * f + 8.3334519073e-3f) * f + 4.1665795894e-2f) * f + 1.6666665459e-1f) * f + 5.0000001201e-1f;
    p = p * f * f + f + 1.0f;
#ifdef MASKED
    return (V)_mm512_maskz_scalef_ps(_mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-87.0f), _CMP_NLT_UQ), (__m512)p, (__m512)whole);
#else
    return pick(x < -87.0f, all(0), p * (V)(((U)n << 23) + (127u << 23)));
#endif
}
static inline V sigmoid(V x) { return 1.0f / (1.0f + power(-x)); }
static inline V gated(V x, V up) { return x * sigmoid(x) * up; }

/* a row normalised; 1 / its size */
static inline float scaled(const float *x, const float *w, float eps, T *out, int64_t d) {
    V s = {0};
    OVER(d) { V v = read(x + j, m); s += v * v; }
    float r = 1.0f / sqrtf(sum(s) / d + eps);
    OVER(d) put(out + j, read(x + j, m) * r * read(w + j, m), m);
    return r;
}

/* -- a row at a time: what kernels.c does to all rows, and halves.c to some of them between two products ---------------------------------------- */
static inline void add_row(const float *x, const T *y, float *out, int64_t d) { OVER(d) write(out + j, read(x + j, m) + get(y + j, m), m); }

static inline void renorm_row(const float *x, const float *w, float r, T *out, int64_t d) { OVER(d) put(out + j, read(x + j, m) * r * read(w + j, m), m); }

/* extra, which is added, may be null */
static inline void norm_back_row(const T *g, const float *x, const float *w, float r, const float *extra, float *out, int64_t d) {
    V s = {0};
    OVER(d) s += get(g + j, m) * read(w + j, m) * read(x + j, m);
    float pull = sum(s) * r * r * r / d;
    OVER(d) {
        V v = get(g + j, m) * read(w + j, m) * r - read(x + j, m) * pull;
        write(out + j, extra ? v + read(extra + j, m) : v, m);
    }
}

static inline void gate_row(const T *gate, const T *up, T *out, int64_t d) { OVER(d) put(out + j, gated(get(gate + j, m), get(up + j, m)), m); }

/* hidden, the gate's result once more, may be null */
static inline void gate_back_row(const T *g, const T *gate, const T *up, T *g_gate, T *g_up, T *hidden, int64_t d) {
    OVER(d) {
        V x = get(gate + j, m), s = sigmoid(x), y = get(g + j, m), u = get(up + j, m);
        put(g_gate + j, y * u * s * (1.0f + x * (1.0f - s)), m);
        put(g_up + j, y * x * s, m);
        if (hidden) put(hidden + j, x * s * u, m);
    }
}

/* -- rearranging ------------------------------------------------------------------------------------------------------------ */
/* a 16 x 16 transposition in four exchanges: which of two rows' numbers stand in the first of them afterwards, and which in the second */
#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (I){__VA_ARGS__})
#endif
#define FIRST8 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23
#define SECOND8 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31
#define FIRST4 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27
#define SECOND4 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31
#define FIRST2 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29
#define SECOND2 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31
#define FIRST1 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30
#define SECOND1 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31
#define EXCHANGE(w) \
    for (int i = 0; i < L; i++) if (!(i & (w))) { \
        V a = x[i], b = x[i + (w)]; \
        x[i] = SHUFFLE(a, b, FIRST##w); \
        x[i + (w)] = SHUFFLE(a, b, SECOND##w); \
    }
static inline void transpose(V x[L]) {
    EXCHANGE(8)
    EXCHANGE(4)
    EXCHANGE(2)
    EXCHANGE(1)
}

/* -- products of pairs, where the processor has them: each lane holds two numbers, the first in its lower half ------------------------------ */
#if defined(BFLOAT16) && defined(MASKED) && defined(__AVX512BF16__)
#define PAIRS
static inline V dot(V sum, U a, U b) { return (V)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b); } /* sum + both products */
static inline U words_at(const uint32_t *x) { return (U)_mm512_loadu_si512(x); }
static inline void keep(uint32_t *x, U v) { _mm512_storeu_si512(x, (__m512i)v); }
static inline U word_of(const void *x) { /* one pair, everywhere */
    int32_t w;
    memcpy(&w, x, sizeof w);
    return (U)_mm512_set1_epi32(w);
}
static inline U wide(V v) { return (U)_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)v)); }
static inline U pair(V a, V b) { return wide(a) | wide(b) << 16; }
static inline U neighbours(V a, V b) { return (U)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a); } /* a[0] a[1], a[2] a[3], ..., b[14] b[15] */
/* two rows of up to 32 numbers: the pairs of the first sixteen columns, and of the others */
static inline void side_by_side(const T *x, int64_t m, const T *y, int64_t n, U *a, U *b) {
    __m512i p = m == 2 * L ? _mm512_loadu_si512(x) : _mm512_maskz_loadu_epi16((1u << m) - 1, x);
    __m512i q = n == 2 * L ? _mm512_loadu_si512(y) : _mm512_maskz_loadu_epi16((1u << n) - 1, y);
    I from = lane | (lane + 2 * L) << 16;
    *a = (U)_mm512_permutex2var_epi16(p, (__m512i)from, q);
    *b = (U)_mm512_permutex2var_epi16(p, (__m512i)(from + (L | L << 16)), q);
}
#endif
