/* The two halves of a decoder layer around its attention, forward and backward, each in one call: its products, and what stands between them.
 *
 * A thread takes some rows through everything, so that what one step gives the next stays in a core's own cache; memory sees what backward needs.
 * Weights are laid out whole: callers give layers that are small enough for that. Gradients of weights and adapters are sums over all tokens, at the end.
 */
#include "layers.h"

#ifdef PRODUCTS
#define OWN_CACHE (1 << 17) /* bytes of the widest rows between two products */
#define BLOCKS _Pragma("omp barrier") _Pragma("omp for schedule(dynamic)") for (int64_t t = 0; t < tokens; t += block)
#define ROW for (int64_t i = t; i < t + n; i++)

static void lay_out_all(const Layers *g) {
    lay_out_adapters(g);
    lay_out(g, 0, all_outputs_by(g, WIDTH));
}
static void lay_out_all_back(const Layers *g) {
    lay_out_adapters_back(g);
    lay_out_back(g, 0, (g->in + WIDTH - 1) / WIDTH);
}

/* n rows from row t on of x, which begins with row t, through all layers */
static inline void forward(const Layers *g, const T *x, int64_t t, int64_t n, T *low, T *const *ys) {
    if (g->rank) lower(g, x, n, low + t * g->ranks);
    for (int64_t k = 0, panels = all_outputs_by(g, WIDTH); k < panels; k++) through(g, k, k, x, low + t * g->ranks, n, ys);
}
static inline void backward(const Layers *g, int64_t t, int64_t n, const T *low, T *g_x) {
    if (g->rank) lower_back(g, t, n, low);
    for (int64_t k = 0; g_x && k * WIDTH < g->in; k++) back_through(g, k, k, t, n, g_x);
}

/* numbers in the products' precision: where it is their own they stand there already */
#ifdef BFLOAT16
#define IN_PRODUCTS(x, n) room_for(sizeof(T) * (n))
static inline void as_products(const float *x, int64_t n, T *out) { OVER(n) put(out + j, read(x + j, m), m); }
static void give_back(T *x) { free(x); }
#else
#define IN_PRODUCTS(x, n) (T *)(x)
static inline void as_products(const float *x, int64_t n, T *out) { (void)x, (void)n, (void)out; }
static void give_back(T *x) { (void)x; }
#endif

/* -- before attention: y_i of the normalised x [tokens, width] ------------------------------------------------------------------------ */
void project(const Part *parts, int64_t count, const float *x, const float *norm, float eps, int64_t tokens, int64_t width, int64_t rank, float scale, float *r, T *low) {
    Layers g = layers_of(parts, count, width, rank, scale);
    int64_t block = rows_within(OWN_CACHE, width);
    make_room(&g, all_outputs_by(&g, WIDTH));
    #pragma omp parallel
    {
        T *normal = room_for(sizeof(T) * block * width);
        lay_out_all(&g);
        BLOCKS {
            int64_t n = least(tokens - t, block);
            T *ys[count];
            for (int64_t i = 0; i < count; i++) ys[i] = parts[i].y + t * parts[i].outputs;
            ROW r[i] = scaled(x + i * width, norm, eps, normal + (i - t) * width, width);
            forward(&g, normal, t, n, low, ys);
        }
        free(normal);
    }
    free(g.room);
}

/* The gradient of the normalised x, and of x, to which extra is added. Extra may be null, and the gradient of x, and both where nothing before these layers is trained. */
void project_backward(const Part *parts, int64_t count, const float *x, const float *norm, const float *r, int64_t tokens, int64_t width, int64_t rank, float scale,
                      const T *low, const float *extra, T *g_normal, float *g_x) {
    Layers g = layers_of(parts, count, width, rank, scale);
    int64_t block = rows_within(OWN_CACHE, g.outputs);
    make_room_back(&g, (width + WIDTH - 1) / WIDTH, tokens);
    T *normal = room_for(sizeof(T) * tokens * width);
    uint32_t *words = room_of_x(&g);
    #pragma omp parallel
    {
        lay_out_all_back(&g);
        BLOCKS {
            int64_t n = least(tokens - t, block);
            ROW renorm_row(x + i * width, norm, r[i], normal + i * width, width);
            backward(&g, t, n, low, g_normal ? g_normal + t * width : NULL);
            if (g_x) ROW norm_back_row(g_normal + i * width, x + i * width, norm, r[i], extra ? extra + i * width : NULL, g_x + i * width, width);
        }
        sum_adapters(&g, normal, tokens);
        sum_weights(&g, normal, tokens, words);
    }
    free(words);
    free(normal);
    free(g.room);
}

/* -- after attention: x2 = x + o(mixed), and out = x2 + down(silu(gate) up) of the normalised x2; parts are o, gate, up and down -------------------- */
void finish(const Part *parts, const float *x, const T *mixed, const float *norm, float eps, int64_t tokens, int64_t width, int64_t heads, int64_t rank, float scale,
            float *x2, float *r, T *low_o, T *low_in, T *low_down, float *out) {
    int64_t inner = parts[1].outputs, block = rows_within(OWN_CACHE, inner);
    Layers o = layers_of(parts, 1, heads, rank, scale), in = layers_of(parts + 1, 2, width, rank, scale), down = layers_of(parts + 3, 1, inner, rank, scale), *all[] = {&o, &in, &down};
    for (int k = 0; k < 3; k++) make_room(all[k], all_outputs_by(all[k], WIDTH));
    #pragma omp parallel
    {
        T *y = room_for(sizeof(T) * block * width), *normal = room_for(sizeof(T) * block * width), *hidden = room_for(sizeof(T) * block * inner);
        for (int k = 0; k < 3; k++) lay_out_all(all[k]);
        BLOCKS {
            int64_t n = least(tokens - t, block);
            T *gate = parts[1].y + t * inner, *up = parts[2].y + t * inner;
            forward(&o, mixed + t * heads, t, n, low_o, &y);
            ROW {
                add_row(x + i * width, y + (i - t) * width, x2 + i * width, width);
                r[i] = scaled(x2 + i * width, norm, eps, normal + (i - t) * width, width);
            }
            forward(&in, normal, t, n, low_in, (T *[]){gate, up});
            ROW gate_row(gate + (i - t) * inner, up + (i - t) * inner, hidden + (i - t) * inner, inner);
            forward(&down, hidden, t, n, low_down, &y);
            ROW add_row(x2 + i * width, y + (i - t) * width, out + i * width, width);
        }
        free(y);
        free(normal);
        free(hidden);
    }
    for (int k = 0; k < 3; k++) free(all[k]->room);
}

/* the gradients of x, which is that of x2, of mixed and of the normalised x2 */
void finish_backward(const Part *given, const float *g, const T *mixed, const float *x2, const float *norm, const float *r, const T *gate, const T *up, int64_t tokens,
                     int64_t width, int64_t heads, int64_t rank, float scale, const T *low_o, const T *low_in, const T *low_down, T *g_normal, float *g_x, T *g_mixed) {
    int64_t inner = given[1].outputs, block = rows_within(OWN_CACHE, inner), size = sizeof(T) * tokens;
    T *hidden = room_for(size * inner), *g_gate = room_for(size * inner), *g_up = room_for(size * inner), *normal = room_for(size * width);
    T *g_out = IN_PRODUCTS(g, tokens * width), *g_y = IN_PRODUCTS(g_x, tokens * width);
    Part parts[4];
    memcpy(parts, given, sizeof parts);
    parts[0].g = g_y, parts[1].g = g_gate, parts[2].g = g_up, parts[3].g = g_out;
    Layers o = layers_of(parts, 1, heads, rank, scale), in = layers_of(parts + 1, 2, width, rank, scale), down = layers_of(parts + 3, 1, inner, rank, scale), *all[] = {&o, &in, &down};
    uint32_t *words[3];
    for (int k = 0; k < 3; k++) {
        make_room_back(all[k], (all[k]->in + WIDTH - 1) / WIDTH, tokens);
        words[k] = room_of_x(all[k]);
    }
    #pragma omp parallel
    {
        T *g_hidden = room_for(sizeof(T) * block * inner);
        for (int k = 0; k < 3; k++) lay_out_all_back(all[k]);
        BLOCKS {
            int64_t n = least(tokens - t, block);
            as_products(g + t * width, n * width, g_out + t * width);
            backward(&down, t, n, low_down, g_hidden);
            ROW gate_back_row(g_hidden + (i - t) * inner, gate + i * inner, up + i * inner, g_gate + i * inner, g_up + i * inner, hidden + i * inner, inner);
            backward(&in, t, n, low_in, g_normal + t * width);
            ROW {
                renorm_row(x2 + i * width, norm, r[i], normal + i * width, width);
                norm_back_row(g_normal + i * width, x2 + i * width, norm, r[i], g + i * width, g_x + i * width, width);
            }
            as_products(g_x + t * width, n * width, g_y + t * width);
            backward(&o, t, n, low_o, g_mixed + t * heads);
        }
        free(g_hidden);
        const T *read_by[] = {mixed, normal, hidden};
        for (int k = 0; k < 3; k++) {
            sum_adapters(all[k], read_by[k], tokens);
            sum_weights(all[k], read_by[k], tokens, words[k]);
        }
    }
    for (int k = 0; k < 3; k++) {
        free(words[k]);
        free(all[k]->room);
    }
    give_back(g_out);
    give_back(g_y);
    free(hidden);
    free(g_gate);
    free(g_up);
    free(normal);
}
#endif
