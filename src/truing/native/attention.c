/* Causal attention over sequences that lie end to end, forward and backward, without anything of the size of a sequence squared in memory.
 *
 * A thread takes the queries of one key head of one sequence, sixteen at a time, to all keys before them: their scores stay in its cache, and backward makes
 * them again. What is read is turned by its position on the way in, gradients on the way out. Sums are float32; what is multiplied is too, or, where the
 * processor takes bfloat16 in pairs, that. So the result of a sequence depends on nothing but the sequence.
 */
#include "vectors.h"

/* What a product multiplies. Its left side is single numbers, of which EACH that lie beside each other are taken at once, its right side vectors of so many. */
#ifdef PAIRS
typedef T N;
typedef uint32_t B;
#define EACH 2
#define WITH(t, a, b) dot(t, word_of(a), words_at(b))
#define set put
#else
typedef float N;
typedef float B;
#define EACH 1
#define WITH(t, a, b) ((t) + read(b, L) * *(a))
#define set write
#endif

#define UP(n) (((n) + L - 1) / L * L)
#define WIDE(n) (((n) + EACH * L - 1) / (EACH * L) * (EACH * L)) /* whole vectors of them, however they are taken */

/* -- small products: c[i][j] = (c[i][j] +) sum over k of a[i r + k s] b[k][j], of eight rows and one or two vectors in registers ---------------- */
static inline __attribute__((always_inline)) void panel(const N *a, int64_t r, int64_t s, const B *b, int64_t b_row, float *c, int64_t c_row, int64_t depth, int more,
                                                        const int vectors) {
    V t[8][2];
    #pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        #pragma GCC unroll 2
        for (int w = 0; w < vectors; w++) t[i][w] = more ? read(c + i * c_row + w * L, L) : (V){0};
    for (int64_t k = 0; k < depth; k++)
        #pragma GCC unroll 8
        for (int i = 0; i < 8; i++)
            #pragma GCC unroll 2
            for (int w = 0; w < vectors; w++) t[i][w] = WITH(t[i][w], a + i * r + k * s, b + k * b_row + w * L);
    #pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        #pragma GCC unroll 2
        for (int w = 0; w < vectors; w++) write(c + i * c_row + w * L, t[i][w], L);
}

/* depth counts numbers, of which EACH are one step */
static void product(const N *a, int64_t r, int64_t s, const B *b, int64_t b_row, float *c, int64_t c_row, int64_t rows, int64_t depth, int64_t columns, int more) {
    for (int64_t j = 0; j < columns; j += 2 * L)
        for (int64_t i = 0; i < rows; i += 8)
            if (columns - j > L) panel(a + i * r, r, s, b + j, b_row, c + i * c_row + j, c_row, depth / EACH, more, 2);
            else panel(a + i * r, r, s, b + j, b_row, c + i * c_row + j, c_row, depth / EACH, more, 1);
}

/* -- in and out ------------------------------------------------------------------------------------------------------------- */
/* a head of a token, turned by its position and scaled; cosine: null for no turning */
static inline void in(const T *x, const float *cosine, const float *sine, float scale, N *out, int64_t d) {
    int64_t h = d / 2;
    if (!cosine) OVER(d) set(out + j, get(x + j, m), m);
    else OVER(h) {
        V a = get(x + j, m), b = get(x + h + j, m);
        set(out + j, (a * read(cosine + j, m) + b * read(sine + j, m)) * scale, m);
        set(out + h + j, (b * read(cosine + h + j, m) + a * read(sine + h + j, m)) * scale, m);
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

/* n of them one after the other, and zeros up to whole vectors both ways */
static inline void heads_in(const T *x, int64_t apart, const float *cosine, const float *sine, float scale, N *out, int64_t n, int64_t d) {
    for (int64_t t = 0; t < n; t++) {
        in(x + t * apart, cosine ? cosine + t * d : NULL, cosine ? sine + t * d : NULL, scale, out + t * WIDE(d), d);
        if (d < WIDE(d)) memset(out + t * WIDE(d) + d, 0, sizeof(N) * (WIDE(d) - d));
    }
    memset(out + n * WIDE(d), 0, sizeof(N) * (UP(n) - n) * WIDE(d));
}

/* sixteen rows of x, `wide` apart, as a right side whose rows are their columns and lie `apart` apart */
static inline void columns_of(const N *x, int64_t wide, B *out, int64_t apart) {
    for (int64_t j = 0; j < wide; j += EACH * L) {
        V t[L];
        for (int k = 0; k < L; k++) t[k] = read((const float *)(x + k * wide + j), L);
        transpose(t);
        for (int k = 0; k < L; k++) write((float *)(out + (j / EACH + k) * apart), t[k], L);
    }
}

/* an even number of rows of x, `wide` apart, as a right side, in the room if that needs any */
static inline const B *rows_of(const N *x, int64_t rows, int64_t wide, B *room) {
#ifdef PAIRS
    for (int64_t t = 0; t < rows; t += 2)
        for (int64_t j = 0; j < wide; j += 2 * L) {
            U a, b;
            side_by_side(x + t * wide + j, 2 * L, x + (t + 1) * wide + j, 2 * L, &a, &b);
            keep(room + t / 2 * wide + j, a);
            keep(room + t / 2 * wide + j + L, b);
        }
    return room;
#else
    (void)rows, (void)wide, (void)room;
    return x;
#endif
}

/* two rows of a left side that is read by its columns */
static inline void two_rows(B *to, int64_t row, V a, V b) {
#ifdef PAIRS
    (void)row;
    keep(to, pair(a, b));
#else
    write(to, a, L);
    write(to + row, b, L);
#endif
}

/* what sums over keys are made of, so that rounding adds up over fewer of them */
#define PARTS 8
static inline V together(const V x[PARTS]) { return ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7])); }

/* Keys by queries, of one or two vectors a row: e^(s - largest) for the keys that a query sees, zeros for the others, in place or (not null) as a left
   side; 1 / their sum for each query. The first query sees the keys up to `first`, each after it one more. */
static inline __attribute__((always_inline)) void powers(float *s, int64_t first, int64_t keys, V *share, B *left, const int vectors) {
    for (int w = 0; w < vectors; w++) {
        V top = all(-INFINITY), parts[PARTS] = {{0}};
        for (int64_t k = 0; k < first; k++) { V x = read(s + (k * vectors + w) * L, L); top = larger(x, top); }
        for (int64_t k = first; k < keys; k++) {
            V x = pick(lane >= (int32_t)(k - first), read(s + (k * vectors + w) * L, L), all(-INFINITY));
            write(s + (k * vectors + w) * L, x, L);
            top = larger(x, top);
        }
        for (int64_t k = 0; k < keys; k += PARTS)
            for (int i = 0; i < PARTS; i += 2) {
                float *x = s + ((k + i) * vectors + w) * L;
                V a = power(read(x, L) - top), b = power(read(x + vectors * L, L) - top);
                parts[i] += a;
                parts[i + 1] += b;
                if (left) two_rows(left + ((k + i) / EACH * vectors + w) * L, vectors * L, a, b);
                else {
                    write(x, a, L);
                    write(x + vectors * L, b, L);
                }
            }
        share[w] = 1.0f / together(parts);
    }
}

/* memory of a thread, piece by piece; OR: where sides are the numbers themselves, they are those that stand elsewhere */
#define TAKE(type, name, n) type *name = (type *)at; at += ((n) * sizeof(type) + 63) / 64 * 64
#ifdef PAIRS
#define TAKE_OR(type, name, n, same) TAKE(type, name, n)
#else
#define TAKE_OR(type, name, n, same) type *name = same
#endif

/* -- forward: q [N, heads groups, d], k and v [N, heads, d], whose rows lie so far apart; sequence i has the rows from starts[i] to starts[i + 1] ------- */
void attention(const T *q, int64_t q_row, const T *k, int64_t k_row, const T *v, int64_t v_row, const int64_t *starts, const float *cosine, const float *sine,
               float scale, T *out, int64_t sequences, int64_t longest, int64_t heads, int64_t groups, int64_t d) {
    int64_t most_keys = UP(longest), wide = WIDE(d), size = sizeof(float) * (2 * most_keys * wide + 2 * L * (3 * wide + 2 * most_keys)) + 64 * 8;
    #pragma omp parallel
    {
        char *room = aligned_alloc(64, size / 64 * 64 + 64), *at = room;
        TAKE(N, key, most_keys * wide);
        TAKE(N, value, most_keys * wide);
        TAKE_OR(B, value_room, most_keys / EACH * wide, value);
        TAKE(N, query, 2 * L * wide);
        TAKE(B, query_t, 2 * L * wide / EACH);
        TAKE(float, mixed, 2 * L * wide);
        TAKE(float, scores, 2 * L * most_keys);
        TAKE_OR(B, weights, 2 * L * most_keys / EACH, scores);
        #pragma omp for schedule(dynamic)
        for (int64_t item = 0; item < sequences * heads; item++) {
            int64_t start = starts[item / heads], n = starts[item / heads + 1] - start, head = item % heads;
            heads_in(k + start * k_row + head * d, k_row, cosine, sine, 1.0f, key, n, d);
            heads_in(v + start * v_row + head * d, v_row, NULL, NULL, 1.0f, value, n, d);
            const B *values = rows_of(value, UP(n), wide, value_room);
            for (int64_t first = 0; first < n; first += L)
                for (int64_t g = 0; g < groups; g += 2) {
                    int64_t vectors = groups - g < 2 ? 1 : 2, row = vectors * L, keys = first + L, real = n - first < L ? n - first : L;
                    for (int64_t w = 0; w < vectors; w++) {
                        const T *from = q + (start + first) * q_row + (head * groups + g + w) * d;
                        heads_in(from, q_row, cosine + first * d, sine + first * d, scale, query + w * L * wide, real, d);
                        columns_of(query + w * L * wide, wide, query_t + w * L, row);
                    }
                    product(key, wide, EACH, query_t, row, scores, row, keys, wide, row, 0);
                    V share[2];
                    if (vectors == 2) powers(scores, first, keys, share, weights, 2);
                    else powers(scores, first, keys, share, weights, 1);
                    product((const N *)weights, EACH, EACH * row, values, wide, mixed, wide, row, keys, wide, 0);
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
    int64_t most_keys = UP(longest), wide = WIDE(d), step = heads * groups * d;
    int64_t size = sizeof(float) * (4 * most_keys * wide + 2 * L * (5 * wide + 4 * most_keys)) + 64 * 17;
    #pragma omp parallel
    {
        char *room = aligned_alloc(64, size / 64 * 64 + 64), *at = room;
        TAKE(N, key, most_keys * wide);
        TAKE(N, value, most_keys * wide);
        TAKE_OR(B, key_room, most_keys / EACH * wide, key);
        TAKE(float, d_key, most_keys * wide);
        TAKE(float, d_value, most_keys * wide);
        TAKE(N, query, 2 * L * wide);
        TAKE(N, d_out, 2 * L * wide);
        TAKE_OR(B, query_room, 2 * L * wide / EACH, query);
        TAKE_OR(B, d_out_room, 2 * L * wide / EACH, d_out);
        TAKE(B, query_t, 2 * L * wide / EACH);
        TAKE(B, d_out_t, 2 * L * wide / EACH);
        TAKE(float, d_query, 2 * L * wide);
        TAKE(float, weights, 2 * L * most_keys);
        TAKE(float, d_scores, 2 * L * most_keys);
        TAKE_OR(N, weights_left, 2 * L * most_keys, weights);
        TAKE_OR(N, d_scores_left, 2 * L * most_keys, d_scores);
        TAKE_OR(B, d_scores_t, 2 * L * most_keys / EACH, d_scores);
        #pragma omp for schedule(dynamic)
        for (int64_t item = 0; item < sequences * heads; item++) {
            int64_t start = starts[item / heads], n = starts[item / heads + 1] - start, head = item % heads;
            heads_in(k + start * k_row + head * d, k_row, cosine, sine, 1.0f, key, n, d);
            heads_in(v + start * v_row + head * d, v_row, NULL, NULL, 1.0f, value, n, d);
            const B *keys_right = rows_of(key, UP(n), wide, key_room);
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
                    product(key, wide, EACH, query_t, row, weights, row, keys, wide, row, 0);
                    product(value, wide, EACH, d_out_t, row, d_scores, row, keys, wide, row, 0);
                    V share[2];
                    if (vectors == 2) powers(weights, first, keys, share, NULL, 2);
                    else powers(weights, first, keys, share, NULL, 1);
                    for (int64_t w = 0; w < vectors; w++) {
                        V parts[PARTS] = {{0}};
                        for (int64_t x = w * L; x < keys * row; x += PARTS * row)
                            for (int i = 0; i < PARTS; i++) parts[i] += read(weights + x + i * row, L) * share[w] * read(d_scores + x + i * row, L);
                        V own = together(parts);
                        for (int64_t key = 0; key < keys; key += 2) {
                            V d_s[2];
                            for (int i = 0; i < 2; i++) {
                                int64_t x = (key + i) * row + w * L;
                                V p = read(weights + x, L) * share[w];
                                d_s[i] = p * (read(d_scores + x, L) - own);
                                set(weights_left + x, p, L);
                                if (EACH > 1) set(d_scores_left + x, d_s[i], L);
                            }
                            two_rows(d_scores_t + key / EACH * row + w * L, row, d_s[0], d_s[1]);
                        }
                    }
                    product((const N *)d_scores_t, EACH, EACH * row, keys_right, wide, d_query, wide, row, keys, wide, 0);
                    product(d_scores_left, row, EACH, rows_of(query, row, wide, query_room), wide, d_key, wide, keys, row, wide, 1);
                    product(weights_left, row, EACH, rows_of(d_out, row, wide, d_out_room), wide, d_value, wide, keys, row, wide, 1);
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
