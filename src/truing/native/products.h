/* Products of some rows by weights laid out for them: sums over k of x[i][k] w[k][j], for eight rows and three vectors of j at once.
   Weights are words: where the processor multiplies pairs a word is two following k of one j, else it is one number. */
#include "vectors.h"

#if defined(PAIRS) || (defined(MASKED) && !defined(BFLOAT16)) /* 32 registers of 16 numbers, in the precision of T */
#define PRODUCTS
#ifdef PAIRS
#define DEPTH 2 /* numbers of k in a word */
typedef U WORDS;
static inline WORDS weights_at(const uint32_t *w) { return words_at(w); }
static inline WORDS broadcast(const T *x) { return word_of(x); }
static inline V plus(V sum, WORDS a, WORDS b) { return dot(sum, a, b); }
#else
#define DEPTH 1
typedef V WORDS;
static inline WORDS weights_at(const uint32_t *w) { return read((const float *)w, L); }
static inline WORDS broadcast(const T *x) { return all(*x); }
static inline V plus(V sum, WORDS a, WORDS b) { return sum + a * b; }
#endif
#define TOKENS 8 /* with three vectors as many sums as registers hold */
#define VECTORS 3

/* w: the words of k stand `down` apart, those of the next sixteen columns `across`; the first `columns` of out are written */
static inline __attribute__((always_inline)) void block(const T *x, int64_t x_row, int64_t depth, const uint32_t *w, int64_t down, int64_t across, T *out, int64_t out_row,
                                                        int64_t columns, const int tokens, const int vectors) {
    V s[TOKENS][VECTORS];
    #pragma GCC unroll 8
    for (int i = 0; i < tokens; i++)
        #pragma GCC unroll 3
        for (int v = 0; v < vectors; v++) s[i][v] = all(0);
    for (int64_t k = 0; k < depth / DEPTH; k++) {
        WORDS b[VECTORS];
        #pragma GCC unroll 3
        for (int v = 0; v < vectors; v++) b[v] = weights_at(w + k * down + v * across);
        #pragma GCC unroll 8
        for (int i = 0; i < tokens; i++) {
            WORDS a = broadcast(x + i * x_row + DEPTH * k);
            #pragma GCC unroll 3
            for (int v = 0; v < vectors; v++) s[i][v] = plus(s[i][v], a, b[v]);
        }
    }
    #pragma GCC unroll 8
    for (int i = 0; i < tokens; i++)
        #pragma GCC unroll 3
        for (int v = 0; v < vectors; v++) {
            int64_t m = columns - v * L;
            put(out + i * out_row + v * L, s[i][v], m < L ? m : L);
        }
}

static inline void times(const T *x, int64_t x_row, int64_t rows, int64_t depth, const uint32_t *w, int64_t down, int64_t across, T *out, int64_t out_row, int64_t columns) {
    for (int64_t j = 0; j < columns; j += VECTORS * L) {
        const uint32_t *from = w + j / L * across;
        int64_t left = columns - j, i = 0;
        for (; i + TOKENS <= rows; i += TOKENS) {
            const T *y = x + i * x_row;
            T *to = out + i * out_row + j;
            if (left > 2 * L) block(y, x_row, depth, from, down, across, to, out_row, left, TOKENS, 3);
            else if (left > L) block(y, x_row, depth, from, down, across, to, out_row, left, TOKENS, 2);
            else block(y, x_row, depth, from, down, across, to, out_row, left, TOKENS, 1);
        }
        for (; i < rows; i++)
            for (int64_t v = 0; v < VECTORS * L && v < left; v += L)
                block(x + i * x_row, x_row, depth, from + v / L * across, down, across, out + i * out_row + j + v, out_row, left - v, 1, 1);
    }
}
#endif
