/* A call, its scratch memory, how its work is divided, and how entries of X are read. */
#ifndef NATIVE_LAYER_H
#define NATIVE_LAYER_H
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include "native_registers.h"

/* ---- what a call is given ------------------------------------------------------------------------------------------------------- */
enum { FLOAT32, BFLOAT16, FLOAT16, INT32, INT8 };

/* fast/cpu/native.py packs this structure; the same fields in the same order. Where nothing else is said arrays are contiguous. */
typedef struct {
    const void *x;             /* (M, K), rows x_stride entries apart; or codes, for int8_matmul */
    const int8_t *codes;       /* (N, K), rows codes_stride apart */
    const float *absmax;       /* (N,), or (1,) for one scale of all rows; NULL where scale is given */
    const float *scale;        /* likewise */
    const int32_t *zero_point; /* likewise, NULL for absmax */
    const void *float_weight;  /* (N, K), rows float_stride apart: what outlier columns meet; NULL to take it from the codes */
    const void *bias;          /* (N,), or NULL */
    void *y;                   /* (M, N) of x's dtype; int32 for int8_matmul */
    int8_t *x_codes;           /* (M, K), and (M,) or (1,): what quantize gives back; else NULL */
    float *x_scale;
    int32_t *x_zero_point;
    uint8_t *columns;          /* (K,): what outlier_columns gives back; else NULL */
    void (*pool)(void (*)(void *), void *, unsigned, unsigned); /* OpenMP's GOMP_parallel, or NULL: threads made for the call */
    int64_t m, k, n, x_stride, codes_stride, float_stride;
    float limit;               /* an entry of this magnitude is an outlier; infinity for none */
    int32_t x_dtype, float_dtype, bias_dtype;
    int32_t per_row;           /* whether each row of X is a slice, or all of it one */
    int32_t per_weight_row;    /* whether absmax, scale, zero_point have an entry per row of W */
    int32_t zeropoint;         /* the quantizer of X */
    int32_t threads;
} Call;

/* A call and its scratch memory. Rows of X come in groups of LANES, the last filled up with rows of zeros. */
typedef struct {
    const Call *call;
    int along, given, scans; /* sums run along K; X is codes already; pieces of a scan */
    long block;             /* groups of X that share a walk over W */
    long count;             /* of outlier columns */
    int32_t *outliers;      /* (K,): the first `count` are their indices */
    char *kept;             /* (K,) of X's width, filled up to whole registers: -1, and 0 in outlier columns; NULL where there are none */
    long kept_size;         /* its bytes */
    int32_t *lowest, *highest; /* per row, for one slice of all: its least and its largest entry, in the order of `ordered` */
    float *inverse;         /* per row, as all of these: the factor from X to codes; 0 where the codes are 0 */
    float *row_scale;
    int32_t *row_zero;      /* the zero point */
    int32_t *row_total;     /* the sum of the codes */
    float *entries;         /* [group][outlier][LANES]: X[:, O] */
    uint8_t *codes;         /* along: rows of `row_bytes`; else groups of LANES * row_bytes, [K / 4][LANES][4] */
    long row_bytes;
    char *memory;           /* all of these but `entries` */
} Layer;

/* ---- work in pieces: whoever is free takes the next, so the pieces and their results do not depend on the number of threads ----- */
typedef struct { void (*piece)(Layer *, long); Layer *layer; long pieces, next; } Work;

static void take_pieces(void *data) {
    Work *work = data;
    for (long i; (i = __atomic_fetch_add(&work->next, 1, __ATOMIC_RELAXED)) < work->pieces;) work->piece(work->layer, i);
}

static void *take_pieces_in_a_thread(void *data) { take_pieces(data); return NULL; }

enum { MOST_THREADS = 256 };

static void run(Layer *layer, void (*piece)(Layer *, long), long pieces, int threads) {
    Work work = {piece, layer, pieces, 0};
    threads = (int)least(threads, least(pieces, MOST_THREADS));
    if (threads <= 1) take_pieces(&work);
    else if (layer->call->pool) layer->call->pool(take_pieces, &work, (unsigned)threads, 0);
    else {
        pthread_t others[MOST_THREADS];
        int made = 0; /* where the system has no more threads, fewer do the same work */
        while (made < threads - 1 && !pthread_create(&others[made], NULL, take_pieces_in_a_thread, &work)) made++;
        take_pieces(&work);
        while (made) pthread_join(others[--made], NULL);
    }
}

/* ---- entries of X --------------------------------------------------------------------------------------------------------------- */
enum { MAGNITUDE = 0x7fffffff, INFINITE = 0x7f800000 };
#define BY_DTYPE(dtype, function, ...)                                         \
    ((dtype) == BFLOAT16 ? function(__VA_ARGS__, BFLOAT16)                     \
     : (dtype) == FLOAT16 ? function(__VA_ARGS__, FLOAT16) : function(__VA_ARGS__, FLOAT32))

INLINE long size_of(int dtype) { return dtype == INT8 ? 1 : dtype == BFLOAT16 || dtype == FLOAT16 ? 2 : 4; }
INLINE float number(int32_t bits) { float f; memcpy(&f, &bits, 4); return f; }
INLINE int32_t bits_of(float f) { int32_t bits; memcpy(&bits, &f, 4); return bits; }

/* LANES 16-bit entries from the i-th on, zeros from the k-th on; and what they are as the bits of float32. */
INLINE vh halves(const char *x, long i, long k) {
    vh h = {0};
    if (k - i >= LANES) memcpy(&h, x + 2 * i, sizeof h);
    else memcpy(&h, x + 2 * i, 2 * (k - i));
    return h;
}
INLINE vi widen_halves(vh h, int dtype) { return dtype == BFLOAT16 ? (vi)(from_halves(h) << 16) : (vi)from_half(h); }

/* The bits of LANES entries from the i-th on, widened to float32; zeros from the k-th on. */
INLINE vi widen(const char *x, long i, long k, int dtype) {
    return dtype == FLOAT32 ? load_part(x + 4 * i, 4 * (k - i)) : widen_halves(halves(x, i, k), dtype);
}

/* The same; if masked, zeros in outlier columns. */
INLINE vi kept_entries(const Layer *l, const char *x, long i, long k, int masked, int dtype) {
    if (!masked) return widen(x, i, k, dtype);
    if (dtype == FLOAT32) return widen(x, i, k, dtype) & load(l->kept + 4 * i);
    return widen_halves(halves(x, i, k) & halves(l->kept, i, i + LANES), dtype);
}

INLINE float entry(const void *x, long i, int dtype) {
    if (dtype == FLOAT32) return ((const float *)x)[i];
    const uint16_t half = ((const uint16_t *)x)[i];
    return dtype == BFLOAT16 ? number((int32_t)((uint32_t)half << 16)) : from_half((vh){0} + half)[0];
}

INLINE const void *row_of(const Call *c, long r) { return (const char *)c->x + r * c->x_stride * size_of(c->x_dtype); }

static const float ZERO_SLICE = 0x1p-100f, LARGEST = 0x1.fffffep127f;

#endif
