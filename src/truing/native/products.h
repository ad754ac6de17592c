/* Products of rows with weights: sums over k of x[i][k] w[k][j], for eight rows and three vectors of j at once, which is as many sums as registers hold.
   Weights are words: where the processor multiplies pairs a word is two following k of one j, else it is one number. */
#include "vectors.h"

#if (defined(PAIRS) && !defined(__AMX_BF16__)) || (defined(MASKED) && !defined(BFLOAT16)) /* with tiles (AMX) oneDNN's are several times as fast */
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
#define TOKENS 8
#define VECTORS 3

int omp_get_thread_num(void), omp_get_num_threads(void);

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

typedef struct { /* some of the k: x[i][k] stands at i row + k step, w[k] at `down` times k, its next sixteen columns `across` from it */
    const T *x;
    int64_t row, step, depth;
    const uint32_t *w;
    int64_t down, across;
} Segment;

#define BY_ROW DEPTH /* the step of rows that lie as they are */

#define KEPT(a, b, c, d) __asm__("" : "+r"(a), "+r"(b), "+r"(c), "+r"(d)); /* a compiler that knew where they come from would keep eight addresses instead, more than it has room for */

/* the sums of some segments, from row `first` and vector `from` on; they begin with what they hold */
static inline __attribute__((always_inline)) void sums(const Segment *segments, int64_t count, int64_t first, int64_t from, V s[TOKENS][VECTORS], const int tokens, const int vectors) {
    for (const Segment *g = segments; g < segments + count; g++) {
        const T *x[3] = {g->x + first * g->row, g->x + (first + 3) * g->row, g->x + (first + 6) * g->row}; /* of three rows each: what addresses can say */
        const uint32_t *w = g->w + from * g->across;
        int64_t row = g->row, step = g->step, down = g->down, across = g->across;
        KEPT(x[0], x[1], x[2], row)
        for (int64_t k = g->depth; k > 0; k -= DEPTH) {
            WORDS b[VECTORS];
            #pragma GCC unroll 3
            for (int v = 0; v < vectors; v++) b[v] = weights_at(w + v * across);
            #pragma GCC unroll 8
            for (int i = 0; i < tokens; i++) {
                WORDS a = broadcast(x[i / 3] + i % 3 * row);
                #pragma GCC unroll 3
                for (int v = 0; v < vectors; v++) s[i][v] = plus(s[i][v], a, b[v]);
            }
            x[0] += step, x[1] += step, x[2] += step;
            w += down;
        }
    }
}

/* and bias where there is one, to rows of out, of which the first columns are written */
static inline __attribute__((always_inline)) void block(const Segment *segments, int64_t count, int64_t first, int64_t from, const T *bias, T *out, int64_t out_row,
                                                        int64_t columns, const int tokens, const int vectors) {
    V s[TOKENS][VECTORS];
    #pragma GCC unroll 3
    for (int v = 0; v < vectors; v++) {
        V b = bias ? get(bias + v * L, least(columns - v * L, L)) : all(0);
        #pragma GCC unroll 8
        for (int i = 0; i < tokens; i++) s[i][v] = b;
    }
    sums(segments, count, first, from, s, tokens, vectors);
    #pragma GCC unroll 8
    for (int i = 0; i < tokens; i++)
        #pragma GCC unroll 3
        for (int v = 0; v < vectors; v++) put(out + i * out_row + v * L, s[i][v], least(columns - v * L, L));
}

/* rows of out: for the sum over all segments' k */
static inline void times(const Segment *s, int64_t count, int64_t rows, const T *bias, T *out, int64_t out_row, int64_t columns) {
    for (int64_t j = 0; j < columns; j += VECTORS * L) {
        int64_t left = columns - j, v = j / L, i = 0;
        const T *own = bias ? bias + j : NULL;
        #define BLOCKS(tokens) \
            for (; i + tokens <= rows; i += tokens) { \
                if (left > 2 * L) block(s, count, i, v, own, out + i * out_row + j, out_row, left, tokens, 3); \
                else if (left > L) block(s, count, i, v, own, out + i * out_row + j, out_row, left, tokens, 2); \
                else block(s, count, i, v, own, out + i * out_row + j, out_row, left, tokens, 1); \
            }
        BLOCKS(8)
        BLOCKS(4)
        BLOCKS(1)
        #undef BLOCKS
    }
}

/* what a thread multiplies: some of the columns, whole vectors of them, and where there are more threads than columns for them, some of the rows */
typedef struct {
    int64_t column, columns, row, rows; /* which part, of how many; parts of rows from `rows` on have nothing to do */
} Share;

static inline Share share_of(int64_t columns) {
    int64_t threads = omp_get_num_threads(), vectors = (columns + L - 1) / L, parts = vectors / VECTORS < 1 ? 1 : least(threads, vectors / VECTORS);
    return (Share){omp_get_thread_num() % parts, parts, omp_get_thread_num() / parts, threads / parts};
}
static inline int64_t from_column(Share s, int64_t columns, int after) { return least((columns + L - 1) / L * (s.column + after) / s.columns * L, columns); }
static inline int64_t from_row(Share s, int64_t rows, int after) {
    return s.row >= s.rows ? rows : least((rows + TOKENS - 1) / TOKENS * (s.row + after) / s.rows * TOKENS, rows);
}

/* n rows of w [n, depth], `apart` from row to row in words, as the words of up to three vectors of columns; zeros after the last */
static inline void rows_as_words(const T *w, int64_t n, int64_t inputs, uint32_t *words, int64_t down) {
    int64_t depth = inputs / DEPTH;
    const float *from = (const float *)w; /* words, whatever they hold */
    for (int64_t i = 0; i < n; i += L)
        OVER(depth) {
            V t[L];
            for (int64_t k = 0; k < L; k++) t[k] = i + k < n ? read(from + (i + k) * depth + j, m) : all(0);
            transpose(t);
            for (int64_t k = 0; k < m; k++) write((float *)words + (j + k) * down + i, t[k], L);
        }
}

/* `columns` columns of w [depth, width] as words: of following k beside each other, zeros after the last */
static inline void columns_as_words(const T *w, int64_t depth, int64_t width, int64_t columns, uint32_t *words, int64_t down) {
    for (int64_t k = 0; k < depth; k += DEPTH)
#ifdef PAIRS
        for (int64_t j = 0; j < columns; j += 2 * L) {
            U a, b;
            int64_t m = least(columns - j, 2 * L);
            side_by_side(w + k * width + j, m, w + (k + 1) * width + j, k + 1 < depth ? m : 0, &a, &b);
            keep(words + k / 2 * down + j, a);
            if (m > L) keep(words + k / 2 * down + j + L, b);
        }
#else
        OVER(columns) write((float *)words + k * down + j, read(w + k * width + j, m), L);
#endif
}
#endif
