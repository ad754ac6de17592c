/* Linear layers that read the same x, with their adapters, forward and backward, one group of them a call. Weights of any size need no more room than
   some panels of them. */
#include "layers.h"

#ifdef PRODUCTS
#define HELD (1 << 20)      /* words of weights at once */
#define OWN_CACHE (1 << 18) /* bytes of rows that a thread reads again for the next panel */
static inline int64_t at_once(int64_t panels, int64_t words) { return least(panels, words < HELD ? HELD / words : 1); }

/* x [tokens, in], y_i [tokens, outs_i]; low [tokens, layers rank], where there are adapters, is kept for backward */
void linears(const Part *parts, int64_t count, const T *x, int64_t tokens, int64_t in, int64_t rank, float scale, T *low) {
    Layers g = layers_of(parts, count, in, rank, scale);
    int64_t panels = all_outputs_by(&g, WIDTH), most = at_once(panels, panel_words(&g)), block = rows_within(OWN_CACHE, in), blocks = (tokens + block - 1) / block;
    make_room(&g, most);
    #pragma omp parallel
    {
        lay_out_adapters(&g);
        if (rank) {
            #pragma omp barrier
            #pragma omp for schedule(dynamic) nowait
            for (int64_t t = 0; t < tokens; t += block) lower(&g, x + t * in, least(tokens - t, block), low + t * g.ranks);
        }
        for (int64_t first = 0; first < panels; first += most) {
            int64_t n = least(panels - first, most);
            lay_out(&g, first, n);
            #pragma omp barrier
            #pragma omp for schedule(dynamic)
            for (int64_t item = 0; item < n * blocks; item++) {
                int64_t t = item / n * block;
                T *ys[count];
                for (int64_t i = 0; i < count; i++) ys[i] = parts[i].y + t * parts[i].outputs;
                through(&g, first + item % n, item % n, x + t * in, low + t * g.ranks, least(tokens - t, block), ys);
            }
        }
    }
    free(g.room);
}

void linears_backward(const Part *parts, int64_t count, const T *x, int64_t tokens, int64_t in, int64_t rank, float scale, const T *low, T *g_x) {
    Layers g = layers_of(parts, count, in, rank, scale);
    int64_t panels = g_x ? (in + WIDTH - 1) / WIDTH : 0, most = at_once(panels, panel_words_back(&g)), block = rows_within(OWN_CACHE, g.outputs), blocks = (tokens + block - 1) / block;
    make_room_back(&g, most, tokens);
    uint32_t *words = room_of_x(&g);
    #pragma omp parallel
    {
        lay_out_adapters_back(&g);
        if (rank) {
            #pragma omp barrier
            #pragma omp for schedule(dynamic)
            for (int64_t t = 0; t < tokens; t += block) lower_back(&g, t, least(tokens - t, block), low);
            sum_adapters(&g, x, tokens);
        }
        sum_weights(&g, x, tokens, words);
        for (int64_t first = 0; first < panels; first += most) {
            int64_t n = least(panels - first, most);
            lay_out_back(&g, first, n);
            #pragma omp barrier
            #pragma omp for schedule(dynamic)
            for (int64_t item = 0; item < n * blocks; item++) {
                int64_t t = item / n * block;
                back_through(&g, first + item % n, item % n, t, least(tokens - t, block), g_x + t * in);
            }
        }
    }
    free(words);
    free(g.room);
}
#endif
