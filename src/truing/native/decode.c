/* Decoding: one more token of every row through all layers, in one call.
 *
 * The threads go from step to step of a layer together. In a product each takes some columns of the weights, so that none reads another's; elsewhere
 * some rows, or heads. Every number is added up by one thread in one order, so no result depends on how many threads there are, or on the other rows.
 */
#include "products.h"

/* -- looking back --------------------------------------------------------------------------------------------------------------- */
static inline int64_t up(int64_t n) { return (n + L - 1) / L * L; }

/* a head normalised (where there are weights for that), turned by its position and scaled */
static inline void turned(const T *x, const float *weight, float eps, const float *cosine, const float *sine, float scale, T *out, int64_t d) {
    int64_t h = d / 2;
    float r = scale;
    if (weight) {
        V s = {0};
        OVER(d) { V v = get(x + j, m); s += v * v; }
        r /= sqrtf(sum(s) / d + eps);
    }
    OVER(h) {
        V a = get(x + j, m), b = get(x + h + j, m);
        if (weight) a *= read(weight + j, m), b *= read(weight + h + j, m);
        put(out + j, (a * read(cosine + j, m) + b * read(sine + j, m)) * r, m);
        put(out + h + j, (b * read(cosine + h + j, m) + a * read(sine + h + j, m)) * r, m);
    }
}

/* two sums of n rows of x by numbers, 16 vectors columns of each row; of the last sixteen there are m */
static inline __attribute__((always_inline)) void two_sums(const T *x, int64_t row, int64_t n, const float *p, const float *q, V s[4], V t[4], int64_t m, const int vectors) {
    for (int v = 0; v < vectors; v++) s[v] = t[v] = all(0);
    for (int64_t i = 0; i < n; i++)
        #pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
            V a = get(x + i * row + v * L, v + 1 < vectors ? L : m);
            s[v] += a * p[i];
            t[v] += a * q[i];
        }
}

/* the products of two queries with keys [d, columns] */
static inline __attribute__((always_inline)) void scored(const T *keys, int64_t columns, const float *p, const float *q, int64_t d, float *a, float *b, int64_t m, const int n) {
    V s[4], t[4];
    two_sums(keys, columns, d, p, q, s, t, m, n);
    for (int v = 0; v < n; v++) write(a + v * L, s[v], L), write(b + v * L, t[v], L);
}

/* two sums of n rows of values, d apart, by weights */
static inline __attribute__((always_inline)) void mixed(const T *values, int64_t n, int64_t d, const float *a, const float *b, float by, float with, T *out, T *other, int64_t m,
                                                        const int vectors) {
    V s[4], t[4];
    two_sums(values, d, n, a, b, s, t, m, vectors);
    for (int v = 0; v < vectors; v++) put(out + v * L, s[v] * by, v + 1 < vectors ? L : m), put(other + v * L, t[v] * with, v + 1 < vectors ? L : m);
}

/* e^(s - max s) of n columns, of which the first `skip` are not the row's own; 1 / their sum */
static inline float softened(float *s, int64_t n, int64_t skip) {
    V top = all(-INFINITY), total = {0};
    OVER(n) {
        V x = pick((lane + (int32_t)j < (int32_t)skip) | (lane >= (int32_t)m), all(-INFINITY), read(s + j, L));
        write(s + j, x, L);
        top = larger(x, top);
    }
    float largest = most(top);
    OVER(n) { V x = power(read(s + j, L) - largest); write(s + j, x, L); total += x; }
    return 1.0f / sum(total);
}

typedef struct { /* how a step looks back */
    const float *cosine, *sine, *q_norm, *k_norm; /* tables by position; weights of heads' normalisations, which may be null */
    const int64_t *lengths;                       /* of each row, before this token */
    int64_t column, columns, heads, groups, d;    /* the column to write; how many there are */
    float scale, eps;
} Look;

static int64_t room_of(const Look *o) { return o->groups * (up(o->column + L) + 4 * L + o->d); }

/* one row, one key head: its key and value go to their column, its queries look at the row's columns up to that */
static void look_back(const Look *o, const T *q, const T *k, const T *v, int64_t row, T *keys, T *values, T *out, float *room) {
    int64_t d = o->d, columns = o->columns, at = o->lengths[row], begin = (o->column - at) / L * L, n = o->column + 1 - begin, apart = up(n) + 4 * L;
    float *scores = room, *queries = room + o->groups * apart;
    T own[d];
    for (int64_t g = 0; g < o->groups; g++) {
        turned(q + g * d, o->q_norm, o->eps, o->cosine + at * d, o->sine + at * d, o->scale, own, d);
        OVER(d) write(queries + g * d + j, get(own + j, m), m);
    }
    turned(k, o->k_norm, o->eps, o->cosine + at * d, o->sine + at * d, 1.0f, own, d);
    for (int64_t z = 0; z < d; z++) keys[z * columns + o->column] = own[z];
    memcpy(values + o->column * d, v, d * sizeof(T));
    for (int64_t g = 0; g < o->groups; g += 2) {
        int64_t h = g + 1 < o->groups ? g + 1 : g, j = 0;
        float *a = scores + g * apart, *b = scores + h * apart;
        const float *p = queries + g * d, *r = queries + h * d;
        for (; j + 4 * L <= n; j += 4 * L) scored(keys + begin + j, columns, p, r, d, a + j, b + j, L, 4);
        for (; j < n; j += L) scored(keys + begin + j, columns, p, r, d, a + j, b + j, columns - begin - j < L ? columns - begin - j : L, 1);
        int64_t skip = o->column - at - begin;
        float by = softened(a, n, skip), with = h == g ? by : softened(b, n, skip);
        for (int64_t z = 0; z < d; z += 4 * L) {
            int64_t left = d - z;
            const T *from = values + (begin + skip) * d + z;
            T *to = out + g * d + z, *too = out + h * d + z;
            if (left > 3 * L) mixed(from, n - skip, d, a + skip, b + skip, by, with, to, too, left < 4 * L ? left - 3 * L : L, 4);
            else if (left > 2 * L) mixed(from, n - skip, d, a + skip, b + skip, by, with, to, too, left - 2 * L, 3);
            else if (left > L) mixed(from, n - skip, d, a + skip, b + skip, by, with, to, too, left - L, 2);
            else mixed(from, n - skip, d, a + skip, b + skip, by, with, to, too, left, 1);
        }
    }
}

void decode(const T *qk, int64_t qk_stride, const T *v, int64_t v_stride, const float *cosine, const float *sine, const int64_t *lengths, float scale, T *keys, T *values,
            T *out, int64_t column, int64_t rows, int64_t heads, int64_t groups, int64_t d, int64_t columns) {
    Look o = {cosine, sine, NULL, NULL, lengths, column, columns, heads, groups, d, scale, 0};
    #pragma omp parallel if (rows * heads * groups * d * column > 8192)
    {
        float *room = malloc(sizeof(float) * room_of(&o));
        #pragma omp for schedule(static)
        for (int64_t i = 0; i < rows * heads; i++) {
            const T *q = qk + i / heads * qk_stride;
            look_back(&o, q + i % heads * groups * d, q + (heads * groups + i % heads) * d, v + i / heads * v_stride + i % heads * d, i / heads, keys + i * d * columns,
                      values + i * columns * d, out + i * groups * d, room);
        }
        free(room);
    }
}

#ifdef PRODUCTS
/* -- products ----------------------------------------------------------------------------------------------------------------------- */
#define TILE 256 /* rows that are multiplied by a thread's weights before the next come: they stay in its cache */

typedef struct { /* y = [W, B] [x, A x] + b: an adapter's B are more columns of W; its A is times alpha / rank */
    const uint32_t *weights, *low;
    const T *bias;
    int64_t inputs, ranks, outputs;
} Product;

static inline int64_t row_of(const Product *p) { return p->inputs + p->ranks; } /* that it reads */

/* w [outputs, inputs] as words: of sixteen rows after the other, zeros where there is none */
void lay_out(const T *w, int64_t outputs, int64_t inputs, uint32_t *words) {
    ROWS((outputs + L - 1) / L, outputs * inputs) rows_as_words(w + i * L * inputs, least(outputs - i * L, L), inputs, words + i * L * (inputs / DEPTH), L);
}

/* x [rows, row_of], whose columns after the inputs are written; all threads together */
static void product(const Product *p, T *x, int64_t rows, T *y) {
    int64_t row = row_of(p), in = p->inputs, words = row / DEPTH * L;
    Share own = share_of(p->outputs);
    int64_t begin = from_column(own, p->outputs, 0), end = from_column(own, p->outputs, 1), last = from_row(own, rows, 1);
    if (p->ranks) {
        #pragma omp for schedule(static)
        for (int64_t i = 0; i < rows; i += TOKENS) {
            Segment low = {x + i * row, row, BY_ROW, in, p->low, L, in / DEPTH * L};
            times(&low, 1, least(rows - i, TOKENS), NULL, x + i * row + in, row, p->ranks);
        }
    }
    for (int64_t i = from_row(own, rows, 0); i < last; i += TILE) {
        Segment whole = {x + i * row, row, BY_ROW, row, p->weights + begin / L * words, L, words};
        times(&whole, 1, least(last - i, TILE), p->bias ? p->bias + begin : NULL, y + i * p->outputs + begin, p->outputs, end - begin);
    }
    #pragma omp barrier
}

/* x [rows, inputs], y [rows, outputs] */
void multiply(const Product *p, const T *x, int64_t rows, T *y) {
    int64_t row = row_of(p);
    T *room = p->ranks ? malloc(rows * row * sizeof(T)) : NULL;
    #pragma omp parallel
    {
        if (room) {
            #pragma omp for schedule(static)
            for (int64_t i = 0; i < rows; i++) memcpy(room + i * row, x + i * p->inputs, p->inputs * sizeof(T));
        }
        product(p, room ? room : (T *)x, rows, y);
    }
    free(room);
}

/* -- a step ------------------------------------------------------------------------------------------------------------------------- */
typedef struct {
    Product qkv, out, gate_up, down;
    const float *before, *after, *q_norm, *k_norm;
    T *keys, *values; /* the cache, [rows, heads, d, columns] and [rows, heads, columns, d] */
} Layer;

/* x [rows, width], the tokens' embeddings: their states after the last layer */
void step(const Layer *layers, int64_t count, float *x, int64_t rows, int64_t width, float eps, const float *cosine, const float *sine, const int64_t *lengths, float scale,
          int64_t column, int64_t columns, int64_t heads, int64_t groups, int64_t d) {
    int64_t reads = 0, writes = 0, every = heads * groups * d, inner = layers->down.inputs;
    for (int64_t l = 0; l < count; l++) {
        const Product *p[] = {&layers[l].qkv, &layers[l].out, &layers[l].gate_up, &layers[l].down};
        for (int i = 0; i < 4; i++) {
            if (row_of(p[i]) > reads) reads = row_of(p[i]);
            if (p[i]->outputs > writes) writes = p[i]->outputs;
        }
    }
    T *in = aligned_alloc(64, up(rows * reads * sizeof(T)) * L), *y = aligned_alloc(64, up(rows * writes * sizeof(T)) * L);
    #pragma omp parallel
    {
        float *room = NULL;
        for (const Layer *l = layers; l < layers + count; l++) {
            Look o = {cosine, sine, l->q_norm, l->k_norm, lengths, column, columns, heads, groups, d, scale, eps};
            if (!room) room = malloc(sizeof(float) * room_of(&o));
            #pragma omp for schedule(static)
            for (int64_t i = 0; i < rows; i++) {
                if (l > layers) OVER(width) write(x + i * width + j, read(x + i * width + j, m) + get(y + i * width + j, m), m);
                scaled(x + i * width, l->before, eps, in + i * row_of(&l->qkv), width);
            }
            product(&l->qkv, in, rows, y);
            #pragma omp for schedule(static)
            for (int64_t i = 0; i < rows * heads; i++) {
                const T *q = y + i / heads * l->qkv.outputs;
                look_back(&o, q + i % heads * groups * d, q + every + i % heads * d, q + every + (heads + i % heads) * d, i / heads, l->keys + i * d * columns,
                          l->values + i * columns * d, in + i / heads * row_of(&l->out) + i % heads * groups * d, room);
            }
            product(&l->out, in, rows, y);
            #pragma omp for schedule(static)
            for (int64_t i = 0; i < rows; i++) {
                OVER(width) write(x + i * width + j, read(x + i * width + j, m) + get(y + i * width + j, m), m);
                scaled(x + i * width, l->after, eps, in + i * row_of(&l->gate_up), width);
            }
            product(&l->gate_up, in, rows, y);
            #pragma omp for schedule(static)
            for (int64_t i = 0; i < rows; i++)
                OVER(inner) put(in + i * row_of(&l->down) + j, gated(get(y + i * 2 * inner + j, m), get(y + (i * 2 + 1) * inner + j, m)), m);
            product(&l->down, in, rows, y);
        }
        #pragma omp for schedule(static)
        for (int64_t i = 0; i < rows * width; i += L) write(x + i, read(x + i, least(rows * width - i, L)) + get(y + i, least(rows * width - i, L)), least(rows * width - i, L));
        free(room);
    }
    free(in);
    free(y);
}
#endif
