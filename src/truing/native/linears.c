/* Linear layers that read the same x, with their adapters: y = x W^T + b + scale (x A^T) B^T, forward and backward.
 *
 * The threads lay out the weights as words, in panels of three vectors of columns, and then take a panel and some tokens at a time, as few as stay in a
 * core's own cache; an adapter's columns are a few more k. Every number is added up by one thread in one order, so none depends on how many there are or
 * on which of them was first. Sums are float32.
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

#define WIDTH (VECTORS * L)    /* columns of a panel */
#define WORDS_HELD (1 << 20)   /* of panels at once: weights of any size need no more room */
#define OWN_CACHE (1 << 18)    /* bytes of rows that a thread reads again for the next panel */

static inline int64_t panels_of(int64_t columns) { return (columns + WIDTH - 1) / WIDTH; }
static inline int64_t together(int64_t panels, int64_t size) { return least(panels, size < WORDS_HELD ? WORDS_HELD / size : 1); }
static inline int64_t rows_at_once(int64_t numbers) {
    int64_t n = OWN_CACHE / (int64_t)sizeof(T) / numbers / TOKENS * TOKENS;
    return n < 4 * TOKENS ? 4 * TOKENS : n;
}

typedef struct { /* some outputs of a layer */
    const Part *part;
    int64_t number, column, columns;
} Some;

/* which `width` outputs the index counts, through the layers */
static inline Some outputs_at(const Part *parts, int64_t index, int64_t width) {
    int64_t i = 0;
    for (; index >= (parts[i].outputs + width - 1) / width; i++) index -= (parts[i].outputs + width - 1) / width;
    return (Some){parts + i, i, index * width, least(parts[i].outputs - index * width, width)};
}

/* -- forward: layers that read the same x [tokens, in]; y_i [tokens, outs_i]; low [tokens, layers rank], where there are adapters, is kept for backward -- */
void linears(const Part *parts, int64_t count, const T *x, int64_t tokens, int64_t in, int64_t rank, float scale, T *low) {
    int64_t ranks = count * rank, size = in / DEPTH * WIDTH, panels = 0, b_size = 0, block = rows_at_once(in), blocks = (tokens + block - 1) / block;
    for (int64_t i = 0; i < count; i++) panels += panels_of(parts[i].outputs), b_size += rank / 2 * WIDE(parts[i].outputs);
    int64_t most = together(panels, size);
    uint32_t *words = room_for(most * size + in / 2 * WIDE(ranks) + b_size), *all_a = words + most * size, *all_b[count + 1];
    all_b[0] = all_a + in / 2 * WIDE(ranks);
    for (int64_t i = 0; i < count; i++) all_b[i + 1] = all_b[i] + rank / 2 * WIDE(parts[i].outputs);
    #pragma omp parallel
    {
#ifdef PAIRS
        if (rank) {
            const float *a[count];
            for (int64_t i = 0; i < count; i++) a[i] = parts[i].a;
            columns_in_pairs(a, rank, ranks, in, scale, all_a, WIDE(ranks));
            for (int64_t i = 0; i < count; i++) columns_in_pairs(&parts[i].b, parts[i].outputs, parts[i].outputs, rank, 1.0f, all_b[i], WIDE(parts[i].outputs));
            #pragma omp barrier
            #pragma omp for schedule(dynamic) nowait
            for (int64_t t = 0; t < tokens; t += ITEM) {
                Segment s = {x + t * in, in, BY_ROW, in, all_a, WIDE(ranks), L};
                times(&s, 1, least(tokens - t, ITEM), NULL, low + t * ranks, ranks, ranks);
            }
        }
#endif
        for (int64_t first = 0; first < panels; first += most) {
            int64_t n = least(panels - first, most);
            #pragma omp for schedule(static)
            for (int64_t k = 0; k < n; k++) {
                Some o = outputs_at(parts, first + k, WIDTH);
                rows_as_words(o.part->weight + o.column * in, o.columns, in, words + k * size, WIDTH);
            }
            #pragma omp for schedule(dynamic)
            for (int64_t item = 0; item < n * blocks; item++) {
                int64_t k = item % n, t = item / n * block;
                Some o = outputs_at(parts, first + k, WIDTH);
                const Part *p = o.part;
                Segment s[2] = {{x + t * in, in, BY_ROW, in, words + k * size, WIDTH, L}, {0}};
                if (rank) s[1] = (Segment){low + t * ranks + o.number * rank, ranks, BY_ROW, rank, all_b[o.number] + o.column, WIDE(p->outputs), L};
                times(s, rank ? 2 : 1, least(tokens - t, block), p->bias ? p->bias + o.column : NULL, p->y + t * p->outputs + o.column, p->outputs, o.columns);
            }
        }
    }
    free(words);
}

/* -- sums over tokens -------------------------------------------------------------------------------------------------------------------- */
static inline void tile(const Segment *s, int64_t from, int64_t left, V found[TOKENS][VECTORS]) {
    memset(found, 0, sizeof(V) * TOKENS * VECTORS);
    if (left > 2 * L) sums(s, 1, 0, from, found, TOKENS, 3);
    else if (left > L) sums(s, 1, 0, from, found, TOKENS, 2);
    else sums(s, 1, 0, from, found, TOKENS, 1);
}

/* g_weight_i = g_i^T x: some tokens of all columns of x as words, which each thread multiplies by sixteen outputs at a time */
static inline int64_t tokens_at_once(int64_t columns) { return 2 * rows_at_once(columns); }
static void weights(const Part *parts, int64_t count, const T *x, int64_t tokens, int64_t in, uint32_t *words) {
    int64_t chunk = tokens_at_once(in), wide = WIDE(in), items = 0;
    for (int64_t i = 0; i < count; i++) items += (parts[i].outputs + L - 1) / L;
    uint32_t *some = room_for(chunk / DEPTH * L);
    for (int64_t t = 0; t < tokens; t += chunk) {
        int64_t n = least(tokens - t, chunk);
        #pragma omp for schedule(static)
        for (int64_t k = 0; k < n; k += TOKENS) columns_as_words(x + (t + k) * in, least(n - k, TOKENS), in, in, words + k / DEPTH * wide, wide);
        #pragma omp for schedule(dynamic)
        for (int64_t item = 0; item < items; item++) {
            Some o = outputs_at(parts, item, L);
            const Part *p = o.part;
            if (!p->g_weight) continue;
            columns_as_words(p->g + t * p->outputs + o.column, n, p->outputs, o.columns, some, L);
            for (int64_t first = 0; first < o.columns; first += TOKENS) {
                Segment segment = {(const T *)(some + first), DEPTH, L * DEPTH, n, words, wide, L};
                for (int64_t j = 0; j < in; j += WIDTH) {
                    V s[TOKENS][VECTORS];
                    tile(&segment, j / L, in - j, s);
                    for (int64_t i = 0; i < least(o.columns - first, TOKENS); i++)
                        for (int64_t v = 0; v < VECTORS && j + v * L < in; v++) {
                            float *to = p->g_weight + (o.column + first + i) * in + j + v * L;
                            int64_t m = least(in - j - v * L, L);
                            write(to, t ? read(to, m) + s[i][v] : s[i][v], m);
                        }
                }
            }
        }
    }
    free(some);
}

#ifdef PAIRS
#define CHUNK 512 /* tokens */
/* out[r][j] (or out[j][r]) = scale times the sum over t of low[t][r] x[t][j]; low: words of two tokens [tokens / 2, low_row] */
static void over_tokens(const uint32_t *low, int64_t low_row, int64_t ranks, const T *x, int64_t columns, int64_t tokens, float scale, float *out, int64_t rank_apart,
                        int64_t column_apart) {
    uint32_t *words = room_for(CHUNK / 2 * WIDTH);
    #pragma omp for schedule(dynamic) nowait
    for (int64_t j = 0; j < columns; j += WIDTH) {
        int64_t m = least(columns - j, WIDTH);
        for (int64_t t = 0; t < tokens; t += CHUNK) {
            int64_t n = least(tokens - t, CHUNK);
            columns_as_words(x + t * columns + j, n, columns, m, words, WIDTH);
            for (int64_t r = 0; r < ranks; r += TOKENS) {
                Segment segment = {(const T *)(low + t / 2 * low_row + r), DEPTH, low_row * DEPTH, n, words, WIDTH, L};
                V s[TOKENS][VECTORS];
                tile(&segment, 0, m, s);
                for (int64_t i = 0; i < least(ranks - r, TOKENS); i++) {
                    float f[WIDTH], *to = out + (r + i) * rank_apart + j * column_apart;
                    for (int64_t v = 0; v < VECTORS; v++) write(f + v * L, s[i][v] * scale, L);
                    for (int64_t k = 0; k < m; k++) to[k * column_apart] = t ? to[k * column_apart] + f[k] : f[k];
                }
            }
        }
    }
    free(words);
}
#endif

/* -- backward: g_x = the sum of g_i W_i, and through adapters g_low_i = g_i B_i, g_x += scale g_low A, g_a = scale g_low^T x and g_b_i = g_i^T low_i ------- */
void linears_backward(const Part *parts, int64_t count, const T *x, int64_t tokens, int64_t in, int64_t rank, float scale, const T *low, T *g_x) {
    int64_t ranks = count * rank, half = (tokens + 1) / 2, b_size = 0, outputs = 0, trained = 0;
    for (int64_t i = 0; i < count; i++) b_size += parts[i].outputs / 2 * WIDE(rank), outputs += parts[i].outputs, trained += parts[i].g_weight != NULL;
    int64_t size = outputs / DEPTH * WIDTH, panels = g_x ? panels_of(in) : 0, most = together(panels, size), block = rows_at_once(outputs), blocks = (tokens + block - 1) / block;
    int64_t room = most * size, of_x = trained ? tokens_at_once(in) / DEPTH * WIDE(in) : 0;
    if (room < of_x) room = of_x;
    uint32_t *words = room_for(room + ranks / 2 * WIDE(in) + b_size + 3 * half * WIDE(ranks) + L), *all_a = words + room, *all_b = all_a + ranks / 2 * WIDE(in);
    uint32_t *pairs = all_b + b_size, *g_pairs = pairs + half * WIDE(ranks);
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
            #pragma omp for schedule(dynamic)
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
        if (trained) weights(parts, count, x, tokens, in, words);
        for (int64_t first = 0; first < panels; first += most) {
            int64_t n = least(panels - first, most);
            #pragma omp for schedule(static)
            for (int64_t k = 0; k < n; k++) {
                uint32_t *to = words + k * size;
                int64_t j = (first + k) * WIDTH;
                for (int64_t i = 0; i < count; to += parts[i].outputs / DEPTH * WIDTH, i++) columns_as_words(parts[i].weight + j, parts[i].outputs, in, least(in - j, WIDTH), to, WIDTH);
            }
            #pragma omp for schedule(dynamic)
            for (int64_t item = 0; item < n * blocks; item++) {
                int64_t k = item % n, t = item / n * block, j = (first + k) * WIDTH;
                Segment s[count + 1];
                const uint32_t *from = words + k * size;
                for (int64_t i = 0; i < count; from += parts[i].outputs / DEPTH * WIDTH, i++)
                    s[i] = (Segment){parts[i].g + t * parts[i].outputs, parts[i].outputs, BY_ROW, parts[i].outputs, from, WIDTH, L};
                if (rank) s[count] = (Segment){g_low + t * ranks, ranks, BY_ROW, ranks, all_a + j, WIDE(in), L};
                times(s, count + (rank > 0), least(tokens - t, block), NULL, g_x + t * in + j, in, least(in - j, WIDTH));
            }
        }
    }
    free(words);
}
#endif
