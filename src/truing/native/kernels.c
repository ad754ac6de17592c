/* The passes over memory between matrix products, each in one go. Their callers say what every one means, in PyTorch; a test holds the two equal.
 *
 * Compiled twice, by `__init__.py`: T is what products read, float32 or (BFLOAT16) the upper half of one; sums and states are float32.
 * Rows are shared among the threads in fixed parts and read sixteen numbers at a time, so that a result depends on nothing but its input.
 */
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
    x = pick(x > 88.0f, all(88.0f), x);
    V n = x * 1.44269504088896341f + 12582912.0f, whole = n - 12582912.0f; /* the nearest integer stands in the lowest bits of n */
    V f = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    V p = ((((1.9875691500e-4f * f + 1.3981999507e-3f) * f + 8.3334519073e-3f) * f + 4.1665795894e-2f) * f + 1.6666665459e-1f) * f + 5.0000001201e-1f;
    return pick(x < -87.0f, all(0), (p * f * f + f + 1.0f) * (V)(((U)n << 23) + (127u << 23)));
}
static inline V sigmoid(V x) { return 1.0f / (1.0f + power(-x)); }

/* -- normalisation ------------------------------------------------------------------------------------------------------- */
static inline float scaled(const float *x, const float *w, float eps, T *out, int64_t d) {
    V s = {0};
    OVER(d) { V v = read(x + j, m); s += v * v; }
    float r = 1.0f / sqrtf(sum(s) / d + eps);
    OVER(d) put(out + j, read(x + j, m) * r * read(w + j, m), m);
    return r;
}

void norm(const float *x, const float *w, float eps, T *out, float *r, int64_t n, int64_t d) {
    ROWS(n, n * d) r[i] = scaled(x + i * d, w, eps, out + i * d, d);
}

void renorm(const float *x, const float *w, const float *r, T *out, int64_t n, int64_t d) {
    ROWS(n, n * d) OVER(d) put(out + i * d + j, read(x + i * d + j, m) * r[i] * read(w + j, m), m);
}

void add(const float *x, const T *y, float *out, int64_t n, int64_t d) {
    ROWS(n, n * d) OVER(d) write(out + i * d + j, read(x + i * d + j, m) + get(y + i * d + j, m), m);
}

void add_norm(const float *x, const T *y, const float *w, float eps, float *total, T *out, float *r, int64_t n, int64_t d) {
    ROWS(n, n * d) {
        OVER(d) write(total + i * d + j, read(x + i * d + j, m) + get(y + i * d + j, m), m);
        r[i] = scaled(total + i * d, w, eps, out + i * d, d);
    }
}

/* extra, which is added, may be null */
void norm_backward(const T *g, const float *x, const float *w, const float *r, const float *extra, float *out, int64_t n, int64_t d) {
    ROWS(n, n * d) {
        const T *a = g + i * d;
        const float *b = x + i * d;
        V s = {0};
        OVER(d) s += get(a + j, m) * read(w + j, m) * read(b + j, m);
        float pull = sum(s) * r[i] * r[i] * r[i] / d;
        OVER(d) {
            V v = get(a + j, m) * read(w + j, m) * r[i] - read(b + j, m) * pull;
            write(out + i * d + j, extra ? v + read(extra + i * d + j, m) : v, m);
        }
    }
}

/* the sum over rows of g x r, sixteen columns at a time */
void norm_weight(const T *g, const float *x, const float *r, float *out, int64_t n, int64_t d) {
    ROWS((d + L - 1) / L, n * d) {
        int64_t j = i * L, m = d - j < L ? d - j : L;
        V s = {0};
        for (int64_t k = 0; k < n; k++) s += get(g + k * d + j, m) * read(x + k * d + j, m) * r[k];
        write(out + j, s, m);
    }
}

/* -- the gate ------------------------------------------------------------------------------------------------------------ */
void gate(const T *gates, const T *ups, int64_t stride, T *out, int64_t n, int64_t d) {
    ROWS(n, n * d * 4) OVER(d) {
        V x = get(gates + i * stride + j, m);
        put(out + i * d + j, x * sigmoid(x) * get(ups + i * stride + j, m), m);
    }
}

void gate_backward(const T *g, const T *gates, const T *ups, T *g_gate, T *g_up, int64_t n, int64_t d) {
    ROWS(n, n * d * 4) OVER(d) {
        V x = get(gates + i * d + j, m), s = sigmoid(x), y = get(g + i * d + j, m);
        put(g_gate + i * d + j, y * get(ups + i * d + j, m) * s * (1.0f + x * (1.0f - s)), m);
        put(g_up + i * d + j, y * x * s, m);
    }
}

/* -- between packed tokens and heads ------------------------------------------------------------------------------------- */
static inline void turned(const T *x, const float *cosine, const float *sine, float scale, float back, T *out, int64_t d) {
    int64_t h = d / 2;
    OVER(h) {
        V a = get(x + j, m), b = get(x + h + j, m);
        put(out + j, (a * read(cosine + j, m) + back * b * read(sine + j, m)) * scale, m);
        put(out + h + j, (b * read(cosine + h + j, m) + back * a * read(sine + h + j, m)) * scale, m);
    }
}

/* out [b heads, t, groups, d]; source: the token of every cell, -1 past a sequence's end, null when cells are tokens; cosine: null for no turning */
void lay(const T *x, int64_t stride, const int64_t *source, const float *cosine, const float *sine, float scale, T *out, int64_t b, int64_t t, int64_t heads, int64_t groups, int64_t d) {
    ROWS(b * heads, b * heads * t * groups * d) {
        int64_t row = i / heads, head = i % heads;
        for (int64_t k = 0; k < t; k++) {
            int64_t from = source ? source[row * t + k] : row * t + k;
            T *o = out + (i * t + k) * groups * d;
            const T *a = x + from * stride + head * groups * d;
            if (from < 0) memset(o, 0, groups * d * sizeof(T));
            else if (!cosine) memcpy(o, a, groups * d * sizeof(T));
            else
                for (int64_t g = 0; g < groups; g++) turned(a + g * d, cosine + k * d, sine + k * d, scale, 1.0f, o + g * d, d);
        }
    }
}

void flat(const T *x, const int64_t *source, const float *cosine, const float *sine, float scale, T *out, int64_t b, int64_t t, int64_t heads, int64_t groups, int64_t d) {
    ROWS(b * heads, b * heads * t * groups * d) {
        int64_t row = i / heads, head = i % heads;
        for (int64_t k = 0; k < t; k++) {
            int64_t to = source ? source[row * t + k] : row * t + k;
            const T *a = x + (i * t + k) * groups * d;
            T *o = out + (to * heads + head) * groups * d;
            if (to < 0) continue;
            if (!cosine) memcpy(o, a, groups * d * sizeof(T));
            else
                for (int64_t g = 0; g < groups; g++) turned(a + g * d, cosine + k * d, sine + k * d, scale, -1.0f, o + g * d, d);
        }
    }
}

/* -- causal softmax, in place: n queries of `groups` rows of t scores; of every `queries` the last looks at all, each before it at one less */
static inline int64_t vectors(int64_t end, int64_t t) { return (end + L - 1) / L * L < t ? (end + L - 1) / L * L : t; } /* whole ones, where the row is long enough */
static inline V seen(const T *x, int64_t j, int64_t m, int64_t end) { return pick(lane + (int32_t)j < (int32_t)end, get(x + j, m), all(-INFINITY)); }

void softmax(T *x, int64_t n, int64_t groups, int64_t t, int64_t queries) {
    ROWS(n, n * groups * t) {
        int64_t end = t - queries + i % queries + 1, wide = vectors(end, t);
        float e[(t + L - 1) / L * L];
        for (T *o = x + i * groups * t, *after = o + groups * t; o < after; o += t) {
            V top = all(-INFINITY), total = {0};
            OVER(wide) { V v = seen(o, j, m, end); write(e + j, v, L); top = pick(v > top, v, top); }
            float largest = most(top);
            OVER(wide) { V v = power(read(e + j, L) - largest); write(e + j, v, L); total += v; }
            float share = 1.0f / sum(total);
            OVER(wide) put(o + j, read(e + j, L) * share, m);
            memset(o + wide, 0, (t - wide) * sizeof(T));
        }
    }
}

void softmax_backward(T *g, const T *p, int64_t n, int64_t groups, int64_t t, int64_t queries) {
    ROWS(n, n * groups * t) {
        int64_t end = vectors(t - queries + i % queries + 1, t); /* the weight of what is not seen is 0 */
        for (int64_t row = i * groups; row < (i + 1) * groups; row++) {
            T *o = g + row * t;
            const T *w = p + row * t;
            V s = {0};
            OVER(end) s += get(o + j, m) * get(w + j, m);
            float own = sum(s);
            OVER(end) put(o + j, (get(o + j, m) - own) * get(w + j, m), m);
            memset(o + end, 0, (t - end) * sizeof(T));
        }
    }
}

/* -- n rows of v logits: log-probability of the row's target, entropy, and in place of the logits their softmax -- */
void likelihood(float *x, const int64_t *targets, float *logp, float *entropy, int64_t n, int64_t v) {
    ROWS(n, n * v) {
        float *o = x + i * v, target = o[targets[i]];
        V top = all(-INFINITY), whole = {0}, mean = {0};
        I odd = {0};
        OVER(v) { V l = pick(lane < (int32_t)m, read(o + j, m), all(-INFINITY)); odd |= l != l; top = pick(l > top, l, top); }
        float largest = most(top);
        OVER(v) {
            V l = pick(lane < (int32_t)m, read(o + j, m), all(-INFINITY)) - largest, e = power(l);
            write(o + j, e, m);
            whole += e;
            mean += e * pick(l > -88.0f, l, (V){0});
        }
        float s = sum(whole), bad = sum(pick(odd, all(NAN), (V){0})) + (largest - largest); /* NaN, or infinite as the largest */
        OVER(v) write(o + j, read(o + j, m) / s + bad, m);
        logp[i] = target - largest - logf(s) + bad;
        entropy[i] = logf(s) - sum(mean) / s + bad;
    }
}

/* -- decoding: turn a new token's queries and key, write its key and value to their column, and look back ------------------ */
void decode(const T *qk, int64_t qk_stride, const T *v, int64_t v_stride, const float *cosine, const float *sine, const int64_t *lengths, float scale, T *keys, T *values,
            T *out, int64_t column, int64_t rows, int64_t heads, int64_t groups, int64_t d, int64_t columns) {
    #pragma omp parallel if (rows * heads * groups * d * column > 8192)
    {
        float *scores = malloc(sizeof(float) * ((column + 2 * L) * groups + d + L)), *mixed = scores + (column + 2 * L) * groups;
        #pragma omp for schedule(static)
        for (int64_t i = 0; i < rows * heads; i++) {
            int64_t row = i / heads, head = i % heads, at = lengths[row], begin = (column - at) / L * L, wide = column + 1 - begin;
            T q[groups * d], k[d], *key = keys + i * d * columns, *value = values + i * columns * d;
            for (int64_t g = 0; g < groups; g++)
                turned(qk + row * qk_stride + (head * groups + g) * d, cosine + at * d, sine + at * d, scale, 1.0f, q + g * d, d);
            turned(qk + row * qk_stride + (heads * groups + head) * d, cosine + at * d, sine + at * d, 1.0f, 1.0f, k, d);
            for (int64_t j = 0; j < d; j++) key[j * columns + column] = k[j];
            memcpy(value + column * d, v + row * v_stride + head * d, d * sizeof(T));
            OVER(wide) { /* sixteen columns of keys, at whole vectors of a row as long as there are more */
                int64_t c = begin + j, real = columns - c < L ? columns - c : L;
                for (int64_t g = 0; g < groups; g += 2) {
                    int64_t other = g + 1 < groups ? g + 1 : g;
                    V a = {0}, b = {0};
                    for (int64_t z = 0; z < d; z++) {
                        V x = get(key + z * columns + c, real);
                        a += x * one(q[g * d + z]);
                        b += x * one(q[other * d + z]);
                    }
                    I old = (lane + (int32_t)c < (int32_t)(column - at)) | (lane + (int32_t)c > (int32_t)column);
                    write(scores + g * (column + 2 * L) + j, pick(old, all(-INFINITY), a), L);
                    write(scores + other * (column + 2 * L) + j, pick(old, all(-INFINITY), b), L);
                }
            }
            for (int64_t g = 0; g < groups; g++) {
                float *s = scores + g * (column + 2 * L), whole;
                V top = all(-INFINITY), total = {0};
                OVER(wide) { V x = read(s + j, L); top = pick(x > top, x, top); }
                whole = most(top);
                OVER(wide) { V x = power(read(s + j, L) - whole); write(s + j, x, L); total += x; }
                whole = 1.0f / sum(total);
                memset(mixed, 0, sizeof(float) * d);
                for (int64_t c = column - at - begin; c < wide; c++)
                    OVER(d) write(mixed + j, read(mixed + j, m) + s[c] * get(value + (begin + c) * d + j, m), m);
                OVER(d) put(out + (i * groups + g) * d + j, read(mixed + j, m) * whole, m);
            }
        }
        free(scores);
    }
}
