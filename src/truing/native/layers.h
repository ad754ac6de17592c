/* Linear layers that read the same x, with their adapters: y_i = x W_i^T + b_i + scale (x A_i^T) B_i^T, and back.
 *
 * Weights are laid out as words in panels of three vectors of columns; an adapter's columns are a few more k. All threads lay out together, then each
 * multiplies some rows. Every number is added up by one thread in one order, so none depends on how many threads there are or on which of them was
 * first. Sums are float32.
 */
#include "products.h"

#define WIDE(n) (((n) + 2 * L - 1) / (2 * L) * (2 * L))
#define WIDTH (VECTORS * L) /* columns of a panel */
#define EVENLY _Pragma("omp for schedule(static) nowait")

#ifdef PRODUCTS
typedef struct { /* one layer; forward reads weight, bias, a and b and writes y; backward reads g and writes what of the others is not null */
    const T *weight, *bias, *g;
    const float *a, *b;
    T *y;
    float *g_weight, *g_a, *g_b;
    int64_t outputs;
} Part;

typedef struct {
    const Part *parts;
    int64_t count, in, outputs, rank, ranks; /* outputs and ranks: of all layers together */
    float scale;
    char *room;
    uint32_t *words, *a, *b;                 /* panels; adapters as words */
    uint32_t *pairs, *g_pairs;               /* two tokens of low, and of its gradient, beside each other */
    T *g_low;
} Layers;

static Layers layers_of(const Part *parts, int64_t count, int64_t in, int64_t rank, float scale) {
    Layers g = {.parts = parts, .count = count, .in = in, .rank = rank, .ranks = count * rank, .scale = scale};
    for (int64_t i = 0; i < count; i++) g.outputs += parts[i].outputs;
    return g;
}

static void *room_for(int64_t bytes) { return aligned_alloc(64, (bytes + 127) / 64 * 64); }
static inline void *take(char **at, int64_t bytes) { /* from a room, piece by piece */
    char *found = *at;
    *at += (bytes + 63) / 64 * 64;
    return found;
}

/* rows whose numbers stay in a part of a core's own cache while it reads panel after panel */
static inline int64_t rows_within(int64_t bytes, int64_t numbers) {
    int64_t n = bytes / (int64_t)sizeof(T) / numbers / TOKENS * TOKENS;
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
static inline int64_t all_outputs_by(const Layers *g, int64_t width) {
    int64_t n = 0;
    for (int64_t i = 0; i < g->count; i++) n += (g->parts[i].outputs + width - 1) / width;
    return n;
}

#ifdef PAIRS
/* -- adapters as words ----------------------------------------------------------------------------------------------------------- */
/* words [rows / 2, width]: two rows of x [rows, columns] beside each other, times scale */
static void rows_in_pairs(const float *x, int64_t rows, int64_t columns, float scale, uint32_t *words, int64_t width) {
    EVENLY
    for (int64_t i = 0; i < rows; i += 2)
        OVER(columns) keep(words + i / 2 * width + j, pair(read(x + i * columns + j, m) * scale, read(x + (i + 1) * columns + j, m) * scale));
}

/* words [columns / 2, width]: two columns beside each other, times scale; row i is the i % per-th of x_(i / per) [per, columns] */
static void columns_in_pairs(const float *const *x, int64_t per, int64_t rows, int64_t columns, float scale, uint32_t *words, int64_t width) {
    EVENLY
    for (int64_t j = 0; j < columns; j += 2 * L)
        for (int64_t i = 0; i < rows; i += L) {
            V t[L];
            for (int64_t k = 0; k < L; k++) {
                const float *row = x[(i + k < rows ? i + k : i) / per] + (i + k < rows ? i + k : i) % per * columns + j;
                t[k] = (V)neighbours(read(row, least(columns - j, L)) * scale, columns - j > L ? read(row + L, least(columns - j - L, L)) * scale : all(0));
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
            int64_t m = least(columns - j, 2 * L);
            side_by_side(x + t * columns + j, m, x + (t + 1) * columns + j, t + 1 < tokens ? m : 0, &a, &b);
            keep(words + t / 2 * width + j, a);
            keep(words + t / 2 * width + j + L, b);
        }
}
#endif

/* -- forward ------------------------------------------------------------------------------------------------------------------------ */
static inline int64_t panel_words(const Layers *g) { return g->in / DEPTH * WIDTH; }

/* for so many panels at once, and for the adapters */
static void make_room(Layers *g, int64_t panels) {
    int64_t words = 4 * panels * panel_words(g), a = 2 * g->in * WIDE(g->ranks), b = 0;
    for (int64_t i = 0; i < g->count; i++) b += 2 * g->rank * WIDE(g->parts[i].outputs);
    char *at = g->room = room_for(words + a + b + 2 * 64);
    g->words = take(&at, words);
    g->a = take(&at, a);
    g->b = take(&at, b);
}

static void lay_out_adapters(const Layers *g) {
    if (!g->rank) return;
#ifdef PAIRS
    const float *a[g->count];
    uint32_t *b = g->b;
    for (int64_t i = 0; i < g->count; i++) a[i] = g->parts[i].a;
    columns_in_pairs(a, g->rank, g->ranks, g->in, g->scale, g->a, WIDE(g->ranks));
    for (int64_t i = 0; i < g->count; b += g->rank / 2 * WIDE(g->parts[i].outputs), i++)
        columns_in_pairs(&g->parts[i].b, g->parts[i].outputs, g->parts[i].outputs, g->rank, 1.0f, b, WIDE(g->parts[i].outputs));
#endif
}

static void lay_out(const Layers *g, int64_t first, int64_t panels) {
    EVENLY
    for (int64_t k = 0; k < panels; k++) {
        Some o = outputs_at(g->parts, first + k, WIDTH);
        rows_as_words(o.part->weight + o.column * g->in, o.columns, g->in, g->words + k * panel_words(g), WIDTH);
    }
}

/* n rows of x in the adapters' low dimensions, scaled */
static inline void lower(const Layers *g, const T *x, int64_t n, T *low) {
    Segment s = {x, g->in, BY_ROW, g->in, g->a, WIDE(g->ranks), L};
    times(&s, 1, n, NULL, low, g->ranks, g->ranks);
}

/* n rows of the outputs of a panel, which stands where `slot` says */
static inline void through(const Layers *g, int64_t index, int64_t slot, const T *x, const T *low, int64_t n, T *const *ys) {
    Some o = outputs_at(g->parts, index, WIDTH);
    Segment s[2] = {{x, g->in, BY_ROW, g->in, g->words + slot * panel_words(g), WIDTH, L}, {0}};
    const uint32_t *b = g->b;
    for (int64_t i = 0; i < o.number; i++) b += g->rank / 2 * WIDE(g->parts[i].outputs);
    if (g->rank) s[1] = (Segment){low + o.number * g->rank, g->ranks, BY_ROW, g->rank, b + o.column, WIDE(o.part->outputs), L};
    times(s, g->rank ? 2 : 1, n, o.part->bias ? o.part->bias + o.column : NULL, ys[o.number] + o.column, o.part->outputs, o.columns);
}

/* -- backward: g_x = the sum of g_i W_i, and through adapters g_low_i = g_i B_i, g_x += scale g_low A ---------------------------------------- */
static inline int64_t panel_words_back(const Layers *g) { return g->outputs / DEPTH * WIDTH; }

static void make_room_back(Layers *g, int64_t panels, int64_t tokens) {
    int64_t words = 4 * panels * panel_words_back(g), a = 2 * g->ranks * WIDE(g->in), b = 2 * g->outputs * WIDE(g->rank), pairs = 4 * ((tokens + 1) / 2) * WIDE(g->ranks);
    char *at = g->room = room_for(words + a + b + 3 * pairs + 5 * 64);
    g->words = take(&at, words);
    g->a = take(&at, a);
    g->b = take(&at, b);
    g->pairs = take(&at, pairs);
    g->g_pairs = take(&at, pairs);
    g->g_low = take(&at, pairs);
}

static void lay_out_adapters_back(const Layers *g) {
    if (!g->rank) return;
#ifdef PAIRS
    uint32_t *b = g->b;
    for (int64_t i = 0; i < g->count; b += g->parts[i].outputs / 2 * WIDE(g->rank), i++) {
        rows_in_pairs(g->parts[i].a, g->rank, g->in, g->scale, g->a + i * g->rank / 2 * WIDE(g->in), WIDE(g->in));
        rows_in_pairs(g->parts[i].b, g->parts[i].outputs, g->rank, 1.0f, b, WIDE(g->rank));
    }
#endif
}

static void lay_out_back(const Layers *g, int64_t first, int64_t panels) {
    EVENLY
    for (int64_t k = 0; k < panels; k++) {
        uint32_t *to = g->words + k * panel_words_back(g);
        int64_t j = (first + k) * WIDTH;
        for (int64_t i = 0; i < g->count; to += g->parts[i].outputs / DEPTH * WIDTH, i++)
            columns_as_words(g->parts[i].weight + j, g->parts[i].outputs, g->in, least(g->in - j, WIDTH), to, WIDTH);
    }
}

/* the gradient of n rows of low from row t on, and both as pairs; t is even */
static inline void lower_back(const Layers *g, int64_t t, int64_t n, const T *low) {
#ifdef PAIRS
    const uint32_t *b = g->b;
    for (int64_t i = 0; i < g->count; b += g->parts[i].outputs / 2 * WIDE(g->rank), i++) {
        int64_t outputs = g->parts[i].outputs;
        Segment s = {g->parts[i].g + t * outputs, outputs, BY_ROW, outputs, b, WIDE(g->rank), L};
        times(&s, 1, n, NULL, g->g_low + t * g->ranks + i * g->rank, g->ranks, g->rank);
    }
    if (g->parts->g_a) tokens_in_pairs(g->g_low + t * g->ranks, n, g->ranks, g->g_pairs + t / 2 * WIDE(g->ranks), WIDE(g->ranks));
    if (g->parts->g_b) tokens_in_pairs(low + t * g->ranks, n, g->ranks, g->pairs + t / 2 * WIDE(g->ranks), WIDE(g->ranks));
#else
    (void)g, (void)t, (void)n, (void)low;
#endif
}

/* n rows from row t on of the columns of a panel, which stands where `slot` says */
static inline void back_through(const Layers *g, int64_t index, int64_t slot, int64_t t, int64_t n, T *g_x) {
    Segment s[g->count + 1];
    const uint32_t *from = g->words + slot * panel_words_back(g);
    int64_t j = index * WIDTH;
    for (int64_t i = 0; i < g->count; from += g->parts[i].outputs / DEPTH * WIDTH, i++) {
        int64_t outputs = g->parts[i].outputs;
        s[i] = (Segment){g->parts[i].g + t * outputs, outputs, BY_ROW, outputs, from, WIDTH, L};
    }
    if (g->rank) s[g->count] = (Segment){g->g_low + t * g->ranks, g->ranks, BY_ROW, g->ranks, g->a + j, WIDE(g->in), L};
    times(s, g->count + (g->rank > 0), n, NULL, g_x + j, g->in, least(g->in - j, WIDTH));
}

/* -- sums over tokens: g_weight_i = g_i^T x, g_a = scale g_low^T x, g_b_i = g_i^T low_i --------------------------------------------------------- */
#define CHUNK 1024 /* tokens of an adapter's gradient at once */
#define STRIP (2 * WIDTH) /* and columns: whole pairs of vectors */
static inline int64_t tokens_at_once(int64_t columns) { return rows_within(1 << 19, columns); }
static inline int trained(const Layers *g) {
    for (int64_t i = 0; i < g->count; i++)
        if (g->parts[i].g_weight) return 1;
    return 0;
}
static void *room_of_x(const Layers *g) { return trained(g) ? room_for(4 * tokens_at_once(g->in) / DEPTH * WIDE(g->in)) : NULL; }

static inline void tile(const Segment *s, int64_t from, int64_t left, V found[TOKENS][VECTORS]) {
    memset(found, 0, sizeof(V) * TOKENS * VECTORS);
    if (left > 2 * L) sums(s, 1, 0, from, found, TOKENS, 3);
    else if (left > L) sums(s, 1, 0, from, found, TOKENS, 2);
    else sums(s, 1, 0, from, found, TOKENS, 1);
}

/* of whole weights, where there is room: some tokens of all columns of x as words, together, which each thread multiplies by sixteen outputs at a time */
static void sum_weights(const Layers *g, const T *x, int64_t tokens, uint32_t *words) {
    if (!words) return;
    int64_t in = g->in, chunk = tokens_at_once(in), wide = WIDE(in), items = all_outputs_by(g, L);
    uint32_t *some = room_for(4 * chunk / DEPTH * L);
    for (int64_t t = 0; t < tokens; t += chunk) {
        int64_t n = least(tokens - t, chunk);
        #pragma omp for schedule(static)
        for (int64_t k = 0; k < n; k += TOKENS) columns_as_words(x + (t + k) * in, least(n - k, TOKENS), in, in, words + k / DEPTH * wide, wide);
        #pragma omp for schedule(dynamic)
        for (int64_t item = 0; item < items; item++) {
            Some o = outputs_at(g->parts, item, L);
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
/* out[r][j] (or out[j][r]) = scale times the sum over t of low[t][r] x[t][j]; low: words of two tokens [tokens / 2, low_row] */
static void sum_low(const uint32_t *low, int64_t low_row, int64_t ranks, const T *x, int64_t columns, int64_t tokens, float scale, float *out, int64_t rank_apart,
                    int64_t column_apart) {
    uint32_t *words = room_for(4 * CHUNK / DEPTH * STRIP);
    #pragma omp for schedule(dynamic) nowait
    for (int64_t j = 0; j < columns; j += STRIP) {
        int64_t m = least(columns - j, STRIP);
        for (int64_t t = 0; t < tokens; t += CHUNK) {
            int64_t n = least(tokens - t, CHUNK);
            columns_as_words(x + t * columns + j, n, columns, m, words, STRIP);
            for (int64_t r = 0; r < ranks; r += TOKENS) {
                Segment segment = {(const T *)(low + t / 2 * low_row + r), DEPTH, low_row * DEPTH, n, words, STRIP, L};
                for (int64_t c = 0; c < m; c += WIDTH) {
                    V s[TOKENS][VECTORS];
                    tile(&segment, c / L, m - c, s);
                    for (int64_t i = 0; i < least(ranks - r, TOKENS); i++) {
                        float f[WIDTH], *to = out + (r + i) * rank_apart + (j + c) * column_apart;
                        for (int64_t v = 0; v < VECTORS; v++) write(f + v * L, s[i][v] * scale, L);
                        for (int64_t k = 0; k < least(m - c, WIDTH); k++) to[k * column_apart] = t ? to[k * column_apart] + f[k] : f[k];
                    }
                }
            }
        }
    }
    free(words);
}
#endif

static void sum_adapters(const Layers *g, const T *x, int64_t tokens) {
    (void)x, (void)tokens;
    if (!g->rank) return;
#ifdef PAIRS
    for (int64_t i = 0; i < g->count; i++) {
        const Part *p = g->parts + i;
        if (p->g_a) sum_low(g->g_pairs + i * g->rank, WIDE(g->ranks), g->rank, x, g->in, tokens, g->scale, p->g_a, g->in, 1);
        if (p->g_b) sum_low(g->pairs + i * g->rank, WIDE(g->ranks), g->rank, p->g, p->outputs, tokens, 1.0f, p->g_b, 1, g->rank);
    }
#endif
}
#endif
