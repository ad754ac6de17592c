/* The passes over memory between matrix products, each in one go. Their callers say what every one means, in PyTorch; a test holds the two equal.
 *
 * Compiled twice, by `__init__.py`, for products in float32 and in bfloat16; sums and states are float32.
 * Rows are shared among the threads in fixed parts and read sixteen numbers at a time, so that a result depends on nothing but its input.
 */
#include "vectors.h"

/* -- normalisation ------------------------------------------------------------------------------------------------------- */
void norm(const float *x, const float *w, float eps, T *out, float *r, int64_t n, int64_t d) {
    ROWS(n, n * d) r[i] = scaled(x + i * d, w, eps, out + i * d, d);
}

void renorm(const float *x, const float *w, const float *r, T *out, int64_t n, int64_t d) {
    ROWS(n, n * d) renorm_row(x + i * d, w, r[i], out + i * d, d);
}

void add(const float *x, const T *y, float *out, int64_t n, int64_t d) {
    ROWS(n, n * d) add_row(x + i * d, y + i * d, out + i * d, d);
}

void add_norm(const float *x, const T *y, const float *w, float eps, float *total, T *out, float *r, int64_t n, int64_t d) {
    ROWS(n, n * d) {
        add_row(x + i * d, y + i * d, total + i * d, d);
        r[i] = scaled(total + i * d, w, eps, out + i * d, d);
    }
}

/* extra, which is added, may be null */
void norm_backward(const T *g, const float *x, const float *w, const float *r, const float *extra, float *out, int64_t n, int64_t d) {
    ROWS(n, n * d) norm_back_row(g + i * d, x + i * d, w, r[i], extra ? extra + i * d : NULL, out + i * d, d);
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
    ROWS(n, n * d * 4) gate_row(gates + i * stride, ups + i * stride, out + i * d, d);
}

void gate_backward(const T *g, const T *gates, const T *ups, T *g_gate, T *g_up, int64_t n, int64_t d) {
    ROWS(n, n * d * 4) gate_back_row(g + i * d, gates + i * d, ups + i * d, g_gate + i * d, g_up + i * d, NULL, d);
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

/* -- a token of each of n rows of v logits, by the row's uniform: the first, by number, at which the cumulative probability exceeds it; its log-probability,
   NaN for a row that has NaN or infinity, or no finite number ------------------------------------------------------------------------ */
#define BLOCK (16 * L)
static inline V weight(const float *x, int64_t m, float largest, float temperature) {
    return power(pick(lane < (int32_t)m, (read(x, m) - largest) / temperature, all(-INFINITY)));
}

static inline double below(double goal, double whole) { return goal < whole ? goal : nextafter(whole, 0); }

void draw(const float *x, const double *uniforms, float temperature, int64_t *tokens, float *logp, int64_t n, int64_t v) {
    ROWS(n, n * v) {
        const float *l = x + i * v;
        float inside[BLOCK] = {0};
        V top = all(-INFINITY);
        I odd = {0};
        OVER(v) { V a = pick(lane < (int32_t)m, read(l + j, m), all(-INFINITY)); odd |= a != a; top = larger(a, top); }
        float largest = most(top), bad = sum(pick(odd, all(NAN), (V){0})) + (largest - largest);
        float masses[(v + BLOCK - 1) / BLOCK];
        double whole = 0, sums = 0, held = 0;
        int64_t block = 0, token = 0;
        for (int64_t b = 0; b < v; b += BLOCK) {
            V s = {0};
            for (int64_t j = b; j < b + BLOCK && j < v; j += L) s += weight(l + j, v - j < L ? v - j : L, largest, temperature);
            whole += masses[b / BLOCK] = sum(s);
        }
        for (double goal = below(uniforms[i] * whole, whole); (block + 1) * BLOCK < v && sums + masses[block] <= goal; block++) sums += masses[block];
        double share = (below(uniforms[i] * whole, whole) - sums) / masses[block];
        int64_t first = block * BLOCK, count = v - first < BLOCK ? v - first : BLOCK;
        for (int64_t j = 0; j < count; j += L) write(inside + j, weight(l + first + j, count - j < L ? count - j : L, largest, temperature), L);
        for (int64_t j = 0; j < count; j++) held += inside[j];
        sums = inside[0];
        for (double goal = below(share * held, held); token + 1 < count && sums <= goal;) sums += inside[++token];
        tokens[i] = first + token;
        logp[i] = logf((float)(inside[token] / whole)) + bad;
    }
}
