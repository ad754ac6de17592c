/* Causal attention over sequences that lie end to end, forward and backward, without anything of the size of a sequence squared in memory.
 *
 * A thread takes the queries of one key head of one sequence, sixteen at a time, to all keys before them: their scores stay in its cache, and backward makes
 * them again. What is read is turned by its position on the way in, gradients on the way out; between, all is float32. So the result of a sequence
 * depends on nothing but the sequence.
 */
#include "vectors.h"

#define UP(n) (((n) + L - 1) / L * L)

/* -- small products: c[i][j] = (c[i][j] +) sum over k of a[i r + k s] b[k][j], of eight rows and one or two vectors in registers ---------------- */
static inline __attribute__((always_inline)) void panel(const float *a, int64_t r, int64_t s, const float *b, int64_t b_row, float *c, int64_t c_row, int64_t depth,
                                                        int more, const int vectors) {
    V t[8][2];
    #pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        #pragma GCC unroll 2
        for (int w = 0; w < vectors; w++) t[i][w] = more ? read(c + i * c_row + w * L, L) : (V){0};
    for (int64_t k = 0; k < depth; k++) {
        V x[2];
        #pragma GCC unroll 2
        for (int w = 0; w < vectors; w++) x[w] = read(b + k * b_row + w * L, L);
        #pragma GCC unroll 8
        for (int i = 0; i < 8; i++)
            #pragma GCC unroll 2
            for (int w = 0; w < vectors; w++) t[i][w] += x[w] * a[i * r + k * s];
    }
    #pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        #pragma GCC unroll 2
        for (int w = 0; w < vectors; w++) write(c + i * c_row + w * L, t[i][w], L);
}

static void product(const float *a, int64_t r, int64_t s, const float *b, int64_t b_row, float *c, int64_t c_row, int64_t rows, int64_t depth, int64_t columns,
                    int more) {
    for (int64_t j = 0; j < columns; j += 2 * L)
        for (int64_t i = 0; i < rows; i += 8)
            if (columns - j > L) panel(a + i * r, r, s, b + j, b_row, c + i * c_row + j, c_row, depth, more, 2);
            else panel(a + i * r, r, s, b + j, b_row, c + i * c_row + j, c_row, depth, more, 1);
}

/* -- in and out ------------------------------------------------------------------------------------------------------------- */
/* a head of a token, turned by its position and scaled; cosine: null for no turning */
static inline void in(const T *x, const float *cosine, const float *sine, float scale, float *out, int64_t d) {
    int64_t h = d / 2;
    if (!cosine) OVER(d) write(out + j, get(x + j, m), m);
    else OVER(h) {
        V a = get(x + j, m), b = get(x + h + j, m);
        write(out + j, (a * read(cosine + j, m) + b * read(sine + j, m)) * scale, m);
        write(out + h + j, (b * read(cosine + h + j, m) + a * read(sine + h + j, m)) * scale, m);
    }
}

/* its gradient, turned back and scaled */
static inline void back(const float *x, const float *cosine, const float *sine, float scale, T *out, int64_t d) {
    int64_t h = d / 2;
    if (!cosine) OVER(d) put(out + j, read(x + j, m) * scale, m);
    else OVER(h) {
        V a = read(x + j, m), b = read(x + h + j, m);
        put(out + j, (a * read(cosine + j, m) - b * read(sine + j, m)) * scale, m);
        put(out + h + j, (b * read(cosine + h + j, m) - a * read(sine + h + j, m)) * scale, m);
    }
}

/* n of them one after the other, and zeros up to whole vectors of them */
static inline void heads_in(const T *x, int64_t apart, const float *cosine, const float *sine, float scale, float *out, int64_t n, int64_t d) {
    for (int64_t t = 0; t < n; t++) in(x + t * apart, cosine ? cosine + t * d : NULL, cosine ? sine + t * d : NULL, scale, out + t * UP(d), d);
    memset(out + n * UP(d), 0, sizeof(float) * (UP(n) - n) * UP(d));
}

/* sixteen rows of x, `wide` apart, to columns that lie `apart` apart; wide is whole vectors */
static inline void columns_of(const float *x, int64_t wide, float *out, int64_t apart) {
    for (int64_t j = 0; j < wide; j += L) {
        V t[L];
        for (int k = 0; k < L; k++) t[k] = read(x + k * wide + j, L);
        transpose(t);
        for (int k = 0; k < L; k++) write(out + (j + k) * apart, t[k], L);
    }
}

/* what sums over keys are made of, so that rounding adds up over fewer of them */
#define PARTS 8
static inline V together(const V x[PARTS]) { return ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7])); }

/* Keys by queries, of one or two vectors a row: e^(s - largest) for the keys that a query sees, zeros for the others; 1 / their sum for each query.
   The first query sees the keys up to `first`, each after it one more. */
static inline __attribute__((always_inline)) void powers(float *s, int64_t first, int64_t keys, V *share, const int vectors) {
    for (int w = 0; w < vectors; w++) {
        V top = all(-INFINITY), parts[PARTS] = {{0}};
        for (int64_t k = 0; k < first; k++) { V x = read(s + (k * vectors + w) * L, L); top = larger(x, top); }
        for (int64_t k = first; k < keys; k++) {
            V x = pick(lane >= (int32_t)(k - first), read(s + (k * vectors + w) * L, L), all(-INFINITY));
            write(s + (k * vectors + w) * L, x, L);
            top = larger(x, top);
        }
        for (int64_t k = 0; k < keys; k += PARTS)
            for (int i = 0; i < PARTS; i++) {
                V x = power(read(s + ((k + i) * vectors + w) * L, L) - top);
                write(s + ((k + i) * vectors + w) * L, x, L);
                parts[i] += x;
            }
        share[w] = 1.0f / together(parts);
    }
}

/* -- forward: q [N, heads groups, d], k and v [N, heads, d], whose rows lie so far apart; sequence i has the rows from starts[i] to starts[i + 1] ------- */
void attention(const T *q, int64_t q_row, const T *k, int64_t k_row, const T *v, int64_t v_row, const int64_t *starts, const float *cosine, const float *sine,
               float scale, T *out, int64_t sequences, int64_t longest, int64_t heads, int64_t groups, int64_t d) {
    int64_t most_keys = UP(longest), wide = UP(d);
    #pragma omp parallel
    {
        int64_t size = 2 * most_keys * wide + 2 * L * (3 * wide + most_keys);
        float *room = aligned_alloc(64, sizeof(float) * size), *key = room, *value = key + most_keys * wide, *query = value + most_keys * wide;
        float *query_t = query + 2 * L * wide, *mixed = query_t + 2 * L * wide, *scores = mixed + 2 * L * wide;
        memset(room, 0, sizeof(float) * size);
        #pragma omp for schedule(dynamic)
        for (int64_t item = 0; item < sequences * heads; item++) {
            int64_t start = starts[item / heads], n = starts[item / heads + 1] - start, head = item % heads;
            heads_in(k + start * k_row + head * d, k_row, cosine, sine, 1.0f, key, n, d);
            heads_in(v + start * v_row + head * d, v_row, NULL, NULL, 1.0f, value, n, d);
            for (int64_t first = 0; first < n; first += L)
                for (int64_t g = 0; g < groups; g += 2) {
                    int64_t vectors = groups - g < 2 ? 1 : 2, keys = first + L, real = n - first < L ? n - first : L;
                    for (int64_t w = 0; w < vectors; w++) {
                        const T *from = q + (start + first) * q_row + (head * groups + g + w) * d;
                        heads_in(from, q_row, cosine + first * d, sine + first * d, scale, query + w * L * wide, real, d);
                        columns_of(query + w * L * wide, wide, query_t + w * L, vectors * L);
                    }
                    product(key, wide, 1, query_t, vectors * L, scores, vectors * L, keys, d, vectors * L, 0);
                    V share[2];
                    if (vectors == 2) powers(scores, first, keys, share, 2);
                    else powers(scores, first, keys, share, 1);
                    product(scores, 1, vectors * L, value, wide, mixed, wide, vectors * L, keys, wide, 0);
                    for (int64_t w = 0; w < vectors; w++)
                        for (int64_t t = 0; t < real; t++) {
                            T *to = out + ((start + first + t) * heads * groups + head * groups + g + w) * d;
                            OVER(d) put(to + j, read(mixed + (w * L + t) * wide + j, m) * share[w][t], m);
                        }
                }
        }
        free(room);
    }
}

/* -- backward: with P = softmax(S) and out = P v, dP = dout v^T and dS = P (dP - sum(P dP)) ------------------------------------------------------ */
void attention_backward(const T *given, const T *q, int64_t q_row, const T *k, int64_t k_row, const T *v, int64_t v_row, const int64_t *starts, const float *cosine,
                        const float *sine, float scale, T *g_q, T *g_k, T *g_v, int64_t sequences, int64_t longest, int64_t heads, int64_t groups, int64_t d) {
    int64_t most_keys = UP(longest), wide = UP(d), step = heads * groups * d;
    #pragma omp parallel
    {
        int64_t size = 4 * most_keys * wide + 2 * L * (5 * wide + 2 * most_keys);
        float *room = aligned_alloc(64, sizeof(float) * size), *key = room, *value = key + most_keys * wide;
        float *d_key = value + most_keys * wide, *d_value = d_key + most_keys * wide, *query = d_value + most_keys * wide, *query_t = query + 2 * L * wide;
        float *d_out = query_t + 2 * L * wide, *d_out_t = d_out + 2 * L * wide, *d_query = d_out_t + 2 * L * wide;
        float *weights = d_query + 2 * L * wide, *d_scores = weights + 2 * L * most_keys;
        memset(room, 0, sizeof(float) * size);
        #pragma omp for schedule(dynamic)
        for (int64_t item = 0; item < sequences * heads; item++) {
            int64_t start = starts[item / heads], n = starts[item / heads + 1] - start, head = item % heads;
            heads_in(k + start * k_row + head * d, k_row, cosine, sine, 1.0f, key, n, d);
            heads_in(v + start * v_row + head * d, v_row, NULL, NULL, 1.0f, value, n, d);
            memset(d_key, 0, sizeof(float) * UP(n) * wide);
            memset(d_value, 0, sizeof(float) * UP(n) * wide);
            for (int64_t first = 0; first < n; first += L)
                for (int64_t g = 0; g < groups; g += 2) {
                    int64_t vectors = groups - g < 2 ? 1 : 2, row = vectors * L, keys = first + L, real = n - first < L ? n - first : L;
                    int64_t to = ((start + first) * heads * groups + head * groups + g) * d;
                    for (int64_t w = 0; w < vectors; w++) {
                        const T *from = q + (start + first) * q_row + (head * groups + g + w) * d;
                        heads_in(from, q_row, cosine + first * d, sine + first * d, scale, query + w * L * wide, real, d);
                        columns_of(query + w * L * wide, wide, query_t + w * L, row);
                        heads_in(given + to + w * d, step, NULL, NULL, 1.0f, d_out + w * L * wide, real, d);
                        columns_of(d_out + w * L * wide, wide, d_out_t + w * L, row);
                    }
                    product(key, wide, 1, query_t, row, weights, row, keys, d, row, 0);
                    product(value, wide, 1, d_out_t, row, d_scores, row, keys, d, row, 0);
                    V share[2];
                    if (vectors == 2) powers(weights, first, keys, share, 2);
                    else powers(weights, first, keys, share, 1);
                    for (int64_t w = 0; w < vectors; w++) {
                        V parts[PARTS] = {{0}};
                        for (int64_t x = w * L; x < keys * row; x += PARTS * row)
                            for (int i = 0; i < PARTS; i++) {
                                V p = read(weights + x + i * row, L) * share[w];
                                write(weights + x + i * row, p, L);
                                parts[i] += p * read(d_scores + x + i * row, L);
                            }
                        V own = together(parts);
                        for (int64_t x = w * L; x < keys * row; x += row) write(d_scores + x, read(weights + x, L) * (read(d_scores + x, L) - own), L);
                    }
                    product(d_scores, 1, row, key, wide, d_query, wide, row, keys, wide, 0);
                    product(d_scores, row, 1, query, wide, d_key, wide, keys, row, wide, 1);
                    product(weights, row, 1, d_out, wide, d_value, wide, keys, row, wide, 1);
                    for (int64_t w = 0; w < vectors; w++)
                        for (int64_t t = 0; t < real; t++)
                            back(d_query + (w * L + t) * wide, cosine + (first + t) * d, sine + (first + t) * d, scale, g_q + to + t * step + w * d, d);
                }
            for (int64_t t = 0; t < n; t++) {
                int64_t to = ((start + t) * heads + head) * d;
                back(d_key + t * wide, cosine + t * d, sine + t * d, 1.0f, g_k + to, d);
                back(d_value + t * wide, NULL, NULL, 1.0f, g_v + to, d);
            }
        }
        free(room);
    }
}
