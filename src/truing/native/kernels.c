/* The passes over memory between matrix products, each in one go. Their callers say what every one means, in PyTorch; a test holds the two equal.
 *
 * Compiled twice, by `__init__.py`, for products in float32 and in bfloat16; sums and states are float32.
 * Rows are shared among the threads in fixed parts and read sixteen numbers at a time, so that a result depends on nothing but its input.
 */
#include "vectors.h"

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

/* -- heads turned by their positions --------------------------------------------------------------------------------------- */
static inline void turned(const T *x, const float *cosine, const float *sine, float scale, T *out, int64_t d) {
    int64_t h = d / 2;
    OVER(h) {
        V a = get(x + j, m), b = get(x + h + j, m);
        put(out + j, (a * read(cosine + j, m) + b * read(sine + j, m)) * scale, m);
        put(out + h + j, (b * read(cosine + h + j, m) + a * read(sine + h + j, m)) * scale, m);
    }
}

/* -- n rows of v logits: log-probability of the row's target, entropy, and where each row of logits began its softmax as T, with `less` taken off at
   the target: by 1 it is minus the gradient of the log-probability ------------------------------------------------------------------------ */
void likelihood(float *x, const int64_t *targets, float less, float *logp, float *entropy, int64_t n, int64_t v) {
    ROWS(n, n * v) {
        float *o = x + i * v, target = o[targets[i]];
        V top = all(-INFINITY), whole = {0}, mean = {0};
        I odd = {0};
        OVER(v) { V l = pick(lane < (int32_t)m, read(o + j, m), all(-INFINITY)); odd |= l != l; top = larger(l, top); }
        float largest = most(top);
        OVER(v) {
            V l = pick(lane < (int32_t)m, read(o + j, m), all(-INFINITY)) - largest, e = power(l);
            write(o + j, e, m);
            whole += e;
            mean += e * pick(l > -88.0f, l, (V){0});
        }
        float s = sum(whole), bad = sum(pick(odd, all(NAN), (V){0})) + (largest - largest); /* NaN, or infinite as the largest */
        T *p = (T *)o; /* never ahead of what is still to be read */
        OVER(v) put(p + j, read(o + j, m) / s + bad, m);
        logp[i] = target - largest - logf(s) + bad;
        V own = all(expf(logp[i]) - less);
        if (less != 0.0f) put(p + targets[i], own, 1);
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
                turned(qk + row * qk_stride + (head * groups + g) * d, cosine + at * d, sine + at * d, scale, q + g * d, d);
            turned(qk + row * qk_stride + (heads * groups + head) * d, cosine + at * d, sine + at * d, 1.0f, k, d);
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
                OVER(wide) { V x = read(s + j, L); top = larger(x, top); }
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
