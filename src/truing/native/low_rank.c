/* What adapters add to the products of their layers, y += scale (x A^T) B^T, forward and backward.
 *
 * A product with a side of 16 leaves a general library waiting for memory. Here a thread takes some tokens through all of it while they are in its cache;
 * sums over tokens go by columns, so that no result depends on the number of threads. Numbers are multiplied in pairs and added in float32.
 */
#include "products.h"

#ifdef PAIRS
#define RANKS 8    /* of a block of sums over tokens */
#define ITEM 64    /* tokens that a thread takes at once */
#define REST(n, step, at) ((n) - (at) < (step) ? (n) - (at) : (step))

/* -- as pairs, by all threads together -------------------------------------------------------------------------------------------- */
/* words [rows / 2, width]: two rows of x [rows, columns] beside each other, times scale */
static void rows_in_pairs(const float *x, int64_t rows, int64_t columns, float scale, uint32_t *words, int64_t width) {
    #pragma omp for schedule(static) nowait
    for (int64_t i = 0; i < rows; i += 2)
        OVER(columns) keep(words + i / 2 * width + j, pair(read(x + i * columns + j, m) * scale, read(x + (i + 1) * columns + j, m) * scale));
}

/* words [columns / 2, width]: two columns beside each other, times scale; row i is the i % per-th of x_(i / per) [per, columns] */
static void columns_in_pairs(const float *const *x, int64_t per, int64_t rows, int64_t columns, float scale, uint32_t *words, int64_t width) {
    #pragma omp for schedule(static) nowait
    for (int64_t j = 0; j < columns; j += 2 * L)
        for (int64_t i = 0; i < rows; i += L) {
            V t[L];
            for (int64_t k = 0; k < L; k++) {
                const float *row = x[(i + k < rows ? i + k : i) / per] + (i + k < rows ? i + k : i) % per * columns + j;
                t[k] = (V)neighbours(read(row, REST(columns, L, j)) * scale, columns - j > L ? read(row + L, REST(columns, L, j + L)) * scale : all(0));
            }
            transpose(t);
            for (int64_t k = 0; k < L && j + 2 * k < columns; k++) keep(words + (j / 2 + k) * width + i, (U)t[k]);
        }
}

/* words [tokens / 2, width]: two tokens of x [tokens, columns] beside each other, zeros after the last */
static inline void tokens_in_pairs(const T *x, int64_t tokens, int64_t columns, uint32_t *words, int64_t width) {
    for (int64_t t = 0; t < tokens; t += 2)
        for (int64_t j = 0; j < columns; j += 2 * L) {
            U a, b;
            int64_t m = REST(columns, 2 * L, j);
            side_by_side(x + t * columns + j, m, x + (t + 1) * columns + j, t + 1 < tokens ? m : 0, &a, &b);
            keep(words + t / 2 * width + j, a);
            keep(words + t / 2 * width + j + L, b);
        }
}

/* -- to many columns: y[t][j] += the sums over r of low[t][r] w[r][j], for eight tokens and two vectors of j ---------------------------- */
static inline __attribute__((always_inline)) void widen(const T *low, int64_t low_row, int64_t depth, const uint32_t *w, int64_t width, T *y, int64_t y_row, int64_t columns,
                                                        const int tokens) {
    V s[TOKENS][2];
    #pragma GCC unroll 8
    for (int i = 0; i < tokens; i++) s[i][0] = s[i][1] = all(0);
    for (int64_t k = 0; k < depth / 2; k++) {
        U b = words_at(w + k * width), c = words_at(w + k * width + L);
        #pragma GCC unroll 8
        for (int i = 0; i < tokens; i++) {
            U a = word_of(low + i * low_row + 2 * k);
            s[i][0] = dot(s[i][0], a, b);
            s[i][1] = dot(s[i][1], a, c);
        }
    }
    #pragma GCC unroll 8
    for (int i = 0; i < tokens; i++)
        #pragma GCC unroll 2
        for (int v = 0; v < 2; v++) {
            int64_t m = REST(columns, L, v * L);
            T *to = y + i * y_row + v * L;
            if (m == L) put(to, get(to, L) + s[i][v], L);
            else if (m > 0) put(to, get(to, m) + s[i][v], m);
        }
}

static void to_many(const T *low, int64_t low_row, int64_t tokens, int64_t depth, const uint32_t *w, int64_t width, T *y, int64_t y_row, int64_t columns) {
    int64_t t = 0;
    for (; t + TOKENS <= tokens; t += TOKENS)
        for (int64_t j = 0; j < columns; j += 2 * L) widen(low + t * low_row, low_row, depth, w + j, width, y + t * y_row + j, y_row, columns - j, TOKENS);
    for (; t < tokens; t++)
        for (int64_t j = 0; j < columns; j += 2 * L) widen(low + t * low_row, low_row, depth, w + j, width, y + t * y_row + j, y_row, columns - j, 1);
}

/* -- sums over tokens: out[r][j] (or out[j][r]) = scale times the sum over t of low[t][r] x[t][j], for eight r and 32 j -------------------- */
static inline __attribute__((always_inline)) void summed(const uint32_t *low, int64_t low_row, const T *x, int64_t x_row, int64_t tokens, int64_t columns, V s[RANKS][2]) {
    #pragma GCC unroll 8
    for (int r = 0; r < RANKS; r++) s[r][0] = s[r][1] = all(0);
    for (int64_t t = 0; t < tokens; t += 2) {
        U a, b;
        side_by_side(x + t * x_row, columns, x + (t + 1) * x_row, t + 1 < tokens ? columns : 0, &a, &b);
        #pragma GCC unroll 8
        for (int r = 0; r < RANKS; r++) {
            U w = word_of(low + t / 2 * low_row + r);
            s[r][0] = dot(s[r][0], w, a);
            s[r][1] = dot(s[r][1], w, b);
        }
    }
}

/* low: pairs of tokens [tokens / 2, low_row], from whose column `first` on there are `ranks`; each thread takes some of the columns */
static void over_tokens(const uint32_t *low, int64_t low_row, int64_t ranks, const T *x, int64_t x_row, int64_t tokens, int64_t columns, float scale, float *out,
                        int64_t rank_apart, int64_t column_apart) {
    #pragma omp for schedule(static) nowait
    for (int64_t j = 0; j < columns; j += 2 * L)
        for (int64_t r = 0; r < ranks; r += RANKS) {
            V s[RANKS][2];
            float f[RANKS][2 * L];
            int64_t wide = REST(columns, 2 * L, j), deep = REST(ranks, RANKS, r);
            summed(low + r, low_row, x + j, x_row, tokens, wide, s);
            for (int i = 0; i < RANKS; i++)
                for (int v = 0; v < 2; v++) write(f[i] + v * L, s[i][v] * scale, L);
            for (int64_t i = 0; i < deep; i++)
                for (int64_t k = 0; k < wide; k++) out[(r + i) * rank_apart + (j + k) * column_apart] = f[i][k];
        }
}

#define WIDE(n) (((n) + 2 * L - 1) / (2 * L) * (2 * L))
static uint32_t *words(int64_t n) { return aligned_alloc(64, (4 * n + 63) / 64 * 64); }

/* -- forward: layers that read the same x [tokens, in]; layer i adds to y_i [tokens, outs_i]; low [tokens, layers rank] is kept for backward ---- */
void adapt(const T *x, int64_t tokens, int64_t in, const float *const *a, const float *const *b, T *const *y, const int64_t *outs, int64_t layers, int64_t rank, float scale,
           T *low) {
    int64_t ranks = layers * rank, width = WIDE(ranks), size = in / 2 * width;
    for (int64_t i = 0; i < layers; i++) size += rank / 2 * WIDE(outs[i]);
    uint32_t *all_a = words(size), *all_b = all_a + in / 2 * width;
    #pragma omp parallel
    {
        columns_in_pairs(a, rank, ranks, in, scale, all_a, width);
        uint32_t *to = all_b;
        for (int64_t i = 0; i < layers; to += rank / 2 * WIDE(outs[i]), i++) columns_in_pairs(b + i, outs[i], outs[i], rank, 1.0f, to, WIDE(outs[i]));
        #pragma omp barrier
        #pragma omp for schedule(static)
        for (int64_t t = 0; t < tokens; t += ITEM) {
            int64_t n = REST(tokens, ITEM, t);
            times(x + t * in, in, n, in, all_a, width, L, low + t * ranks, ranks, ranks);
            const uint32_t *from = all_b;
            for (int64_t i = 0; i < layers; from += rank / 2 * WIDE(outs[i]), i++)
                to_many(low + t * ranks + i * rank, ranks, n, rank, from, WIDE(outs[i]), y[i] + t * outs[i], outs[i], outs[i]);
        }
    }
    free(all_a);
}

/* -- backward: g_low_i = g_i B_i, g_x += scale g_low A, g_a = scale g_low^T x and g_b_i = g_i^T low_i; what is null is not wanted ------------------ */
void adapt_backward(const T *const *g, const T *x, int64_t tokens, int64_t in, const float *const *a, const float *const *b, const int64_t *outs, int64_t layers, int64_t rank,
                    float scale, const T *low, T *g_x, float *const *g_a, float *const *g_b) {
    int64_t ranks = layers * rank, width = WIDE(rank), size = ranks / 2 * WIDE(in), half = (tokens + 1) / 2;
    for (int64_t i = 0; i < layers; i++) size += outs[i] / 2 * width;
    size += 2 * half * WIDE(ranks) + half * WIDE(ranks);
    uint32_t *all_a = words(size), *all_b = all_a + ranks / 2 * WIDE(in), *pairs = all_b;
    for (int64_t i = 0; i < layers; i++) pairs += outs[i] / 2 * width;
    uint32_t *g_pairs = pairs + half * WIDE(ranks);
    T *g_low = (T *)(g_pairs + half * WIDE(ranks));
    #pragma omp parallel
    {
        uint32_t *to = all_b;
        for (int64_t i = 0; i < layers; to += outs[i] / 2 * width, i++) {
            rows_in_pairs(a[i], rank, in, scale, all_a + i * rank / 2 * WIDE(in), WIDE(in));
            rows_in_pairs(b[i], outs[i], rank, 1.0f, to, width);
        }
        #pragma omp barrier
        #pragma omp for schedule(static)
        for (int64_t t = 0; t < tokens; t += ITEM) {
            int64_t n = REST(tokens, ITEM, t);
            const uint32_t *from = all_b;
            for (int64_t i = 0; i < layers; from += outs[i] / 2 * width, i++)
                times(g[i] + t * outs[i], outs[i], n, outs[i], from, width, L, g_low + t * ranks + i * rank, ranks, rank);
            if (g_x) to_many(g_low + t * ranks, ranks, n, ranks, all_a, WIDE(in), g_x + t * in, in, in);
            if (g_a) tokens_in_pairs(g_low + t * ranks, n, ranks, g_pairs + t / 2 * WIDE(ranks), WIDE(ranks));
            if (g_b) tokens_in_pairs(low + t * ranks, n, ranks, pairs + t / 2 * WIDE(ranks), WIDE(ranks));
        }
        for (int64_t i = 0; i < layers; i++) {
            if (g_a) over_tokens(g_pairs + i * rank, WIDE(ranks), rank, x, in, tokens, in, scale, g_a[i], in, 1);
            if (g_b) over_tokens(pairs + i * rank, WIDE(ranks), rank, g[i], outs[i], tokens, outs[i], 1.0f, g_b[i], 1, rank);
        }
    }
    free(all_a);
}
#endif
