/* Linear layers that read the same x, with their adapters: y = x W^T + b + scale (x A^T) B^T, forward and backward.
 *
 * A thread multiplies all tokens by some columns of the weights, three vectors of them at a time, which it lays out as words first; an adapter's are a few more k.
 * Every number is added up by one thread in one order, so none depends on how many threads there are. Sums are float32.
 */
#include "products.h"

#define WIDE(n) (((n) + 2 * L - 1) / (2 * L) * (2 * L))

#if defined(PAIRS) && defined(PRODUCTS)
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
#endif

#ifdef PRODUCTS
typedef struct { /* one layer; forward reads weight, bias, a and b and writes y; backward reads g and writes what of the others is not null */
    const T *weight, *bias, *g;
    const float *a, *b;
    T *y;
    float *g_weight, *g_a, *g_b;
    int64_t outputs;
} Part;

static uint32_t *room_for(int64_t words) { return aligned_alloc(64, (4 * words + 63) / 64 * 64); }

/* -- forward: layers that read the same x [tokens, in]; y_i [tokens, outs_i]; low [tokens, layers rank], where there are adapters, is kept for backward -- */
void linears(const Part *parts, int64_t count, const T *x, int64_t tokens, int64_t in, int64_t rank, float scale, T *low) {
    int64_t ranks = count * rank, size = 0;
    uint32_t *all_b[count + 1];
    for (int64_t i = 0; i < count; i++) size += rank * WIDE(parts[i].outputs);
    uint32_t *all_a = room_for((in * WIDE(ranks) + size) / 2);
    all_b[0] = all_a + in / 2 * WIDE(ranks);
    for (int64_t i = 0; i < count; i++) all_b[i + 1] = all_b[i] + rank / 2 * WIDE(parts[i].outputs);
    #pragma omp parallel
    {
        uint32_t *panel = room_for(in / DEPTH * VECTORS * L);
#ifdef PAIRS
        if (rank) {
            const float *a[count];
            for (int64_t i = 0; i < count; i++) a[i] = parts[i].a;
            columns_in_pairs(a, rank, ranks, in, scale, all_a, WIDE(ranks));
            for (int64_t i = 0; i < count; i++) columns_in_pairs(&parts[i].b, parts[i].outputs, parts[i].outputs, rank, 1.0f, all_b[i], WIDE(parts[i].outputs));
            #pragma omp barrier
            #pragma omp for schedule(static)
            for (int64_t t = 0; t < tokens; t += ITEM) {
                Segment s = {x + t * in, in, BY_ROW, in, all_a, WIDE(ranks), L};
                times(&s, 1, least(tokens - t, ITEM), NULL, low + t * ranks, ranks, ranks);
            }
        }
#endif
        for (int64_t i = 0; i < count; i++) {
            const Part *p = parts + i;
            Share own = share_of(p->outputs);
            int64_t t = from_row(own, tokens, 0), n = from_row(own, tokens, 1) - t, end = n ? from_column(own, p->outputs, 1) : 0;
            for (int64_t j = from_column(own, p->outputs, 0); j < end; j += VECTORS * L) {
                int64_t m = least(end - j, VECTORS * L), down = (m + L - 1) / L * L;
                rows_as_words(p->weight + j * in, m, in, panel, down);
                Segment s[2] = {{x + t * in, in, BY_ROW, in, panel, down, L}, {0}};
                if (rank) s[1] = (Segment){low + t * ranks + i * rank, ranks, BY_ROW, rank, all_b[i] + j, WIDE(p->outputs), L};
                times(s, rank ? 2 : 1, n, p->bias ? p->bias + j : NULL, p->y + t * p->outputs + j, p->outputs, m);
            }
        }
        free(panel);
    }
    free(all_a);
}

/* -- sums over tokens: each thread takes some columns of x, and of them some tokens at a time as words ---------------------------------- */
#define CHUNK 512 /* tokens */
static inline void tile(const Segment *s, int64_t from, int64_t left, V found[TOKENS][VECTORS]) {
    memset(found, 0, sizeof(V) * TOKENS * VECTORS);
    if (left > 2 * L) sums(s, 1, 0, from, found, TOKENS, 3);
    else if (left > L) sums(s, 1, 0, from, found, TOKENS, 2);
    else sums(s, 1, 0, from, found, TOKENS, 1);
}

/* g_weight_i = g_i^T x, eight outputs after the other */
static void weights(const Part *parts, int64_t count, const T *x, int64_t tokens, int64_t in) {
    Share own = share_of(in);
    int64_t begin = from_column(own, in, 0), end = from_column(own, in, 1), wide = (end - begin + L - 1) / L * L;
    uint32_t *words = room_for(CHUNK / DEPTH * (wide + TOKENS) + 2 * L), *some = words + CHUNK / DEPTH * wide + L;
    for (int64_t t = 0; t < tokens; t += CHUNK) {
        int64_t n = least(tokens - t, CHUNK);
        columns_as_words(x + t * in + begin, n, in, end - begin, words, wide);
        for (const Part *p = parts; p < parts + count; p++)
            for (int64_t o = from_row(own, p->outputs, 0); p->g_weight && o < from_row(own, p->outputs, 1); o += TOKENS) {
                int64_t rows = least(p->outputs - o, TOKENS);
                columns_as_words(p->g + t * p->outputs + o, n, p->outputs, rows, some, TOKENS);
                Segment segment = {(const T *)some, DEPTH, TOKENS * DEPTH, n, words, wide, L};
                for (int64_t j = begin; j < end; j += VECTORS * L) {
                    V s[TOKENS][VECTORS];
                    tile(&segment, (j - begin) / L, end - j, s);
                    for (int64_t i = 0; i < rows; i++)
                        for (int64_t v = 0; v < VECTORS && j + v * L < end; v++) {
                            float *to = p->g_weight + (o + i) * in + j + v * L;
                            int64_t m = least(end - j - v * L, L);
                            write(to, t ? read(to, m) + s[i][v] : s[i][v], m);
                        }
                }
            }
    }
    free(words);
}

#ifdef PAIRS
/* out[r][j] (or out[j][r]) = scale times the sum over t of low[t][r] x[t][j]; low: words of two tokens [tokens / 2, low_row] */
static void over_tokens(const uint32_t *low, int64_t low_row, int64_t ranks, const T *x, int64_t columns, int64_t tokens, float scale, float *out, int64_t rank_apart,
                        int64_t column_apart) {
    Share own = share_of(columns);
    int64_t begin = from_column(own, columns, 0), end = own.row ? begin : from_column(own, columns, 1), wide = (end - begin + L - 1) / L * L;
    uint32_t *words = room_for(CHUNK / 2 * wide);
    for (int64_t t = 0; t < tokens; t += CHUNK) {
        int64_t n = least(tokens - t, CHUNK);
        columns_as_words(x + t * columns + begin, n, columns, end - begin, words, wide);
        for (int64_t r = 0; r < ranks; r += TOKENS) {
            Segment segment = {(const T *)(low + t / 2 * low_row + r), DEPTH, low_row * DEPTH, n, words, wide, L};
            for (int64_t j = begin; j < end; j += VECTORS * L) {
                V s[TOKENS][VECTORS];
                tile(&segment, (j - begin) / L, end - j, s);
                for (int64_t i = 0; i < least(ranks - r, TOKENS); i++) {
                    float f[VECTORS * L], *to = out + (r + i) * rank_apart + j * column_apart;
                    for (int64_t v = 0; v < VECTORS; v++) write(f + v * L, s[i][v] * scale, L);
                    for (int64_t k = 0; k < least(end - j, VECTORS * L); k++) to[k * column_apart] = t ? to[k * column_apart] + f[k] : f[k];
                }
            }
        }
    }
    free(words);
}
#endif

/* -- backward: g_x = the sum of g_i W_i, and through adapters g_low_i = g_i B_i, g_x += scale g_low A, g_a = scale g_low^T x and g_b_i = g_i^T low_i ------- */
void linears_backward(const Part *parts, int64_t count, const T *x, int64_t tokens, int64_t in, int64_t rank, float scale, const T *low, T *g_x) {
    int64_t ranks = count * rank, half = (tokens + 1) / 2, size = 0, most = 0;
    for (int64_t i = 0; i < count; i++) size += parts[i].outputs / 2 * WIDE(rank), most += parts[i].outputs;
    uint32_t *all_a = room_for(ranks / 2 * WIDE(in) + size + 3 * half * WIDE(ranks) + L), *all_b = all_a + ranks / 2 * WIDE(in);
    uint32_t *pairs = all_b + size, *g_pairs = pairs + half * WIDE(ranks);
    T *g_low = (T *)(g_pairs + half * WIDE(ranks));
    #pragma omp parallel
    {
#ifdef PAIRS
        if (rank) {
            uint32_t *to = all_b;
            for (int64_t i = 0; i < count; to += parts[i].outputs / 2 * WIDE(rank), i++) {
                rows_in_pairs(parts[i].a, rank, in, scale, all_a + i * rank / 2 * WIDE(in), WIDE(in));
                rows_in_pairs(parts[i].b, parts[i].outputs, rank, 1.0f, to, WIDE(rank));
            }
            #pragma omp barrier
            #pragma omp for schedule(static)
            for (int64_t t = 0; t < tokens; t += ITEM) {
                int64_t n = least(tokens - t, ITEM);
                const uint32_t *from = all_b;
                for (int64_t i = 0; i < count; from += parts[i].outputs / 2 * WIDE(rank), i++) {
                    Segment s = {parts[i].g + t * parts[i].outputs, parts[i].outputs, BY_ROW, parts[i].outputs, from, WIDE(rank), L};
                    times(&s, 1, n, NULL, g_low + t * ranks + i * rank, ranks, rank);
                }
                if (parts->g_a) tokens_in_pairs(g_low + t * ranks, n, ranks, g_pairs + t / 2 * WIDE(ranks), WIDE(ranks));
                if (parts->g_b) tokens_in_pairs(low + t * ranks, n, ranks, pairs + t / 2 * WIDE(ranks), WIDE(ranks));
            }
            for (int64_t i = 0; i < count; i++) {
                if (parts->g_a) over_tokens(g_pairs + i * rank, WIDE(ranks), rank, x, in, tokens, scale, parts[i].g_a, in, 1);
                if (parts->g_b) over_tokens(pairs + i * rank, WIDE(ranks), rank, parts[i].g, parts[i].outputs, tokens, 1.0f, parts[i].g_b, 1, rank);
            }
        }
#endif
        for (int64_t i = 0, done = 0; i < count && !done; i++)
            if (parts[i].g_weight) weights(parts, count, x, tokens, in), done = 1;
        if (g_x) {
            uint32_t *panel = room_for(most / DEPTH * VECTORS * L);
            Share own = share_of(in);
            int64_t t = from_row(own, tokens, 0), n = from_row(own, tokens, 1) - t, end = n ? from_column(own, in, 1) : 0;
            for (int64_t j = from_column(own, in, 0); j < end; j += VECTORS * L) {
                int64_t m = least(end - j, VECTORS * L), down = (m + L - 1) / L * L;
                Segment s[count + 1];
                uint32_t *to = panel;
                for (int64_t i = 0; i < count; to += parts[i].outputs / DEPTH * down, i++) {
                    columns_as_words(parts[i].weight + j, parts[i].outputs, in, m, to, down);
                    s[i] = (Segment){parts[i].g + t * parts[i].outputs, parts[i].outputs, BY_ROW, parts[i].outputs, to, down, L};
                }
                if (rank) s[count] = (Segment){g_low + t * ranks, ranks, BY_ROW, ranks, all_a + j, WIDE(in), L};
                times(s, count + (rank > 0), n, NULL, g_x + t * in + j, in, m);
            }
            free(panel);
        }
    }
    free(all_a);
}
#endif
