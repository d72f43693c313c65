/* The layers of several experts in one call: what each does is what llm_int8_linear does with its rows and its weight.

   One expert after the other, each would wake the threads three times for some microseconds of work, and the caller come back from C in
   between. Here threads are woken twice: the rows of all experts are quantized, an expert per piece of work; then all weights are walked,
   in the pieces that each layer has by itself. Which thread takes a piece changes no result. */
#ifndef NATIVE_EXPERTS_H
#define NATIVE_EXPERTS_H

/* fast/cpu/native.py packs this structure. */
typedef struct {
    Call call;           /* of all rows of X and Y, with the addresses of the first expert's weight; no zeropoint, no float weight */
    const int64_t *ends; /* (experts,): where the rows of each end; rows from the last one on belong to none and give zeros */
    int64_t experts;
} Experts;

typedef struct {
    Layer layer; /* for `run`, which hands it to each piece: its call has the pool */
    Call *calls; /* of each expert with rows */
    Layer *layers;
    long *starts; /* the number of each one's first piece */
    long count;
    int failed, threads; /* threads: that share the rows of one expert */
} Several;

static void before_product_of(Layer *layer, long i) {
    Several *all = (Several *)layer;
    if (before_product(&all->layers[i], &all->calls[i], QUANTIZE | MULTIPLY, all->threads)) __atomic_store_n(&all->failed, 1, __ATOMIC_RELAXED);
}

static void product_piece_of(Layer *layer, long piece) {
    Several *all = (Several *)layer;
    long low = 0, high = all->count;
    while (high - low > 1) { /* the last one that does not start behind the piece */
        const long middle = (low + high) / 2;
        if (all->starts[middle] <= piece) low = middle;
        else high = middle;
    }
    product_piece(&all->layers[low], piece - all->starts[low]);
}

/* The calls of those experts that have rows; returns how many they are. */
static long calls_of(const Experts *e, Call *calls) {
    const Call *c = &e->call;
    const long entry_bytes = size_of(c->x_dtype);
    long count = 0, start = 0;
    for (long i = 0; i < e->experts; start = e->ends[i++]) {
        if (e->ends[i] <= start) continue;
        Call *own = &calls[count++];
        *own = *c;
        own->m = e->ends[i] - start;
        own->x = (const char *)c->x + start * c->x_stride * entry_bytes;
        own->y = (char *)c->y + start * c->n * entry_bytes;
        own->codes = c->codes + i * c->n * c->codes_stride;
        own->absmax = c->absmax + i * c->n;
        if (c->bias) own->bias = (const char *)c->bias + i * c->n * size_of(c->bias_dtype);
    }
    if (c->m > start) memset((char *)c->y + start * c->n * entry_bytes, 0, (c->m - start) * c->n * entry_bytes);
    return count;
}

/* All of some layers: two regions of threads. */
static int layers_of(Several *all, int threads) {
    const int one_each = all->count >= 2 * threads; /* enough to keep the threads busy; with fewer, threads share the rows of each */
    all->threads = one_each ? 1 : threads;
    run(&all->layer, before_product_of, all->count, one_each ? threads : 1);
    long pieces = 0;
    for (long i = 0; i < all->count && !all->failed; i++) {
        all->starts[i] = pieces;
        pieces += product_pieces(&all->layers[i], threads > 1 ? (4 * threads + all->count - 1) / all->count : 0);
    }
    if (!all->failed) run(&all->layer, product_piece_of, pieces, threads);
    for (long i = 0; i < all->count; i++) release(&all->layers[i]);
    return all->failed;
}

enum { SCRATCH = 1 << 24 }; /* bytes of codes of X after which the next experts wait: a bound on the memory that long inputs take */

static int experts_of(const Experts *e) {
    const Call *c = &e->call;
    const int threads = threads_for(c, (double)c->m * c->k * (double)c->n);
    char *memory = malloc(((size_t)e->experts + 1) * (sizeof(Call) + sizeof(Layer) + sizeof(long)));
    if (!memory) return 1;
    Call *calls = (Call *)memory;
    Several all = {.layer = {.call = c}, .layers = (Layer *)(calls + e->experts + 1)};
    all.starts = (long *)(all.layers + e->experts + 1);
    const long count = calls_of(e, calls);
    for (long first = 0; first < count && !all.failed; first += all.count) {
        all.calls = calls + first;
        all.count = 0;
        for (long bytes = 0; first + all.count < count && bytes < SCRATCH; all.count++) bytes += all.calls[all.count].m * c->k;
        layers_of(&all, threads);
    }
    free(memory);
    return all.failed;
}

#endif
