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
