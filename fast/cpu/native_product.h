/* accumulate: the int32 product of the codes, tile by tile, each followed by native_results.h. */
#ifndef NATIVE_PRODUCT_H
#define NATIVE_PRODUCT_H
#include "native_tiles.h"

/* ---- accumulate, few rows ------------------------------------------------------------------------------------------------------- */
/* Sums along K, columns from .. to, of `rows` rows of X with `columns` rows of W, LANES partial sums each, are added to
   partial[row][j ..]. Pairs that are few get several sums each (depth), since an instruction starts before the last one has ended.

   What is fetched ahead are the rows of W about AHEAD bytes further on: the processor's own prefetching ends with each page of 4096
   bytes, and in the time that memory takes to answer one core reads some thousand bytes. */
enum { AHEAD = 8192 };

INLINE void dots(const Layer *l, const uint8_t *x, const int8_t *w, long from, long to, int rows, int columns, int depth, vi (*partial)[LANES], long j) {
    vi s[FEW][2][4];
    const long stride = l->call->codes_stride, ahead = stride * (columns + AHEAD / (stride + 1));
    long i = from;
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int c = 0; c < columns; c++)
            UNROLL for (int d = 0; d < depth; d++) s[r][c][d] = (vi){0};
#define STEP(d, loaded)                                                                                      \
    {                                                                                                        \
        operand wv[2];                                                                                       \
        UNROLL for (int c = 0; c < columns; c++) wv[c] = weight_of(loaded);                                  \
        UNROLL for (int r = 0; r < rows; r++) {                                                              \
            operand xv = operand_of(load(x + r * l->row_bytes + i + d * WIDTH));                             \
            UNROLL for (int c = 0; c < columns; c++) s[r][c][d] = dot(s[r][c][d], xv, wv[c]);                \
        }                                                                                                    \
    }
    for (; i + depth * WIDTH <= to; i += depth * WIDTH) {
        UNROLL for (int c = 0; c < columns; c++)
            UNROLL for (int d = 0; d < depth; d++) __builtin_prefetch(w + c * stride + ahead + i + d * WIDTH);
        UNROLL for (int d = 0; d < depth; d++) STEP(d, load(w + c * stride + i + d * WIDTH))
    }
    for (; i < to; i += WIDTH) STEP(0, load_part(w + c * stride + i, to - i))
#undef STEP
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int c = 0; c < columns; c++) {
            vi total = s[r][c][0];
            UNROLL for (int d = 1; d < depth; d++) total = added(total, s[r][c][d]);
            partial[r][j + c] = from ? added(partial[r][j + c], total) : total;
        }
}

/* The same with `width` rows of W. One or two rows of X: one row of W after the other, as memory is read fastest. */
INLINE void dots_of(const Layer *l, const uint8_t *x, const int8_t *w, long from, long to, int rows, long width, vi (*partial)[LANES]) {
    const int depth = rows == 1 ? REGISTERS / 8 : rows <= REGISTERS / 8 ? REGISTERS / 16 : 1;
    const long stride = l->call->codes_stride;
    long j = 0;
    if (rows > 2) for (; j + 2 <= width; j += 2) dots(l, x, w + j * stride, from, to, rows, 2, depth, partial, j);
    for (; j < width; j++) dots(l, x, w + j * stride, from, to, rows, 1, depth, partial, j);
}

typedef void (*Dots)(const Layer *, const uint8_t *, const int8_t *, long, long, long, vi (*)[LANES]);
#define DOTS(rows)                                                                                                                 \
    static void dots##rows(const Layer *l, const uint8_t *x, const int8_t *w, long from, long to, long width, vi (*partial)[LANES]) { \
        dots_of(l, x, w, from, to, rows, width, partial);                                                                          \
    }
DOTS(1) DOTS(2) DOTS(3) DOTS(4)
#if REGISTERS == 32
DOTS(5) DOTS(6) DOTS(7) DOTS(8)
static const Dots dots_by_rows[] = {NULL, dots1, dots2, dots3, dots4, dots5, dots6, dots7, dots8};
#else
static const Dots dots_by_rows[] = {NULL, dots1, dots2, dots3, dots4};
#endif

enum { CODES = 1 << 14 }; /* bytes of codes of X that every row of W meets: a third of a first cache of 48 KiB, through which W comes, too */

/* Rows first .. first + rows of X with rows begin .. end of W. */
static void along(const Layer *l, long first, int rows, long begin, long end) {
    const Call *c = l->call;
    const uint8_t *x = l->codes + first * l->row_bytes;
    const long part = CODES / rows / WIDTH * WIDTH;
    vi partial[FEW][LANES];
    memset(partial, 0, sizeof partial);
    for (long n = begin; n < end; n += LANES) {
        const int8_t *w = c->codes + n * c->codes_stride;
        const long width = least(LANES, end - n);
        vi w_sum = {0}, zero = {0};
        vf scale = {0}, y[FEW];
        for (long from = 0; from < c->k || !from; from += part) dots_by_rows[rows](l, x, w, from, least(c->k, from + part), width, partial);
        if (c->zeropoint) for (long j = 0; j < width; j++) w_sum[j] = sum_of(w + j * c->codes_stride, c->k);
        if (!l->given) weight_scales(c, n, width, &scale, &zero);
        for (int r = 0; r < rows; r++) y[r] = broadcast_float(-0.0f);
        for (long o = 0; o < l->count; o++) {
            const vf weight = column_weights(c, n, width, l->outliers[o], scale, zero);
            for (int r = 0; r < rows; r++) {
                const float *entries = l->entries + ((first + r) / LANES * l->count + o) * LANES;
                y[r] = multiply_add(weight, broadcast_float(entries[(first + r) % LANES]), y[r]);
            }
        }
        for (int r = 0; r < rows; r++) {
            const vi acc = sums_of(partial[r]);
            const long row = first + r;
            if (l->given) y[r] = (vf)((vu)acc - (uint32_t)l->row_total[row] * (uint32_t)OFFSET);
            else y[r] += corrected(c, acc, broadcast(l->row_zero[row]), broadcast(l->row_total[row]), zero, w_sum, c->zeropoint, OFFSET) * l->row_scale[row] * scale;
            if (c->bias) y[r] += (vf)BY_DTYPE(c->bias_dtype, widen, c->bias, n, end);
            put(c->y, (first + r) * c->n + n, (vi)y[r], width, l->given ? INT32 : c->x_dtype);
        }
    }
}

/* ALONG: up to so many rows; in wide layers matrix registers are faster than eight sums along K, and not than four.
   PIECE: bytes of W per piece, several microseconds of work. */
enum { ALONG = MATRIX ? 4 : 8, PIECE = 1 << 16 };

static void along_piece(Layer *l, long piece) {
    const Call *c = l->call;
    long rows = round_up(PIECE / (c->k + 1) + 1, LANES), begin = piece * rows, end = least(c->n, begin + rows);
    for (long first = 0; first < c->m; first += FEW) along(l, first, (int)least(FEW, c->m - first), begin, end);
}

/* ---- accumulate, more rows ------------------------------------------------------------------------------------------------------ */
enum {
    STRIPE = 96, /* rows of W whose results are turned around together: whole tiles, and whole lines of Y */
    DEEP = 2048, /* columns at a time: the codes of 64 rows of X and of a stripe have room in half of a second cache of 1 MiB */
};

/* What the results need of a row of W beside its sums; `weights`: of its first outlier columns. */
typedef struct { float scale, bias, weights[SOME]; int32_t zero, sum; } Row;

static void prepare(const Layer *l, long n, int height, Row *row) {
    const Call *c = l->call;
    if (l->given) return;
    for (; height--; n++, row++) {
        row->scale = weight_scale(c, n);
        row->zero = weight_zero(c, n);
        row->sum = c->zeropoint ? sum_of(c->codes + n * c->codes_stride, c->k) : 0;
        row->bias = c->bias ? entry(c->bias, n, c->bias_dtype) : -0.0f;
        outlier_weights(c, n, l->outliers, least(SOME, l->count), row->scale, row->zero, row->weights);
    }
}

/* The sums of `height` rows of W with `vectors` groups of X become results, where they lie. */
INLINE void finish_rows(const Layer *l, vi (*tile)[WIDE], long group, int vectors, long n, int height, const Row *row, int zeropoint) {
    const Call *c = l->call;
    vf scale[WIDE];
    vi zero[WIDE], total[WIDE];
    UNROLL for (int v = 0; v < vectors; v++) {
        const long r = (group + v) * LANES;
        scale[v] = load_floats(l->row_scale + r);
        zero[v] = load(l->row_zero + r);
        total[v] = load(l->row_total + r);
    }
    for (; height--; n++, row++, tile++) {
        vf y[WIDE];
        UNROLL for (int v = 0; v < vectors; v++) y[v] = broadcast_float(-0.0f); /* x + -0 is x, of x = -0 too */
        for (long from = 0; from < l->count; from += SOME) {
            const long some = least(SOME, l->count - from);
            float others[SOME];
            if (from) outlier_weights(c, n, l->outliers + from, some, row->scale, row->zero, others);
            const float *weights = from ? others : row->weights, *x = l->entries + (group * l->count + from) * LANES;
            for (long o = 0; o < some; o++, x += LANES) {
                const vf weight = broadcast_float(weights[o]);
                UNROLL for (int v = 0; v < vectors; v++) y[v] = multiply_add(weight, load_floats(x + v * l->count * LANES), y[v]);
            }
        }
        UNROLL for (int v = 0; v < vectors; v++) {
            const vf acc = corrected(c, (*tile)[v], zero[v], total[v], broadcast(row->zero), broadcast(row->sum), zeropoint, TILE_OFFSET);
            (*tile)[v] = (vi)(y[v] + acc * scale[v] * row->scale + row->bias);
        }
    }
}

/* Compiled once for each quantizer; a tile of fewer groups goes one group at a time. */
#define FINISH(name, zeropoint)                                                                                                        \
    static __attribute__((noinline)) void name(const Layer *l, vi (*tile)[WIDE], long group, int vectors, long n, int height, const Row *row) { \
        if (vectors == WIDE) finish_rows(l, tile, group, WIDE, n, height, row, zeropoint);                                             \
        else for (int v = 0; v < vectors; v++) finish_rows(l, (vi (*)[WIDE])(tile[0] + v), group + v, 1, n, height, row, zeropoint);    \
    }
FINISH(finish_absmax, 0) FINISH(finish_zeropoint, 1)

static void finish(const Layer *l, vi (*tile)[WIDE], long group, int vectors, long n, int height, const Row *row) {
    if (!l->given) (l->call->zeropoint ? finish_zeropoint : finish_absmax)(l, tile, group, vectors, n, height, row);
    else if (TILE_OFFSET)
        for (; height--; tile++)
            for (int v = 0; v < vectors; v++) (*tile)[v] = (vi)((vu)(*tile)[v] - (vu)load(l->row_total + (group + v) * LANES) * TILE_OFFSET);
}

enum { LARGE = 1 << 22 }; /* bytes of Y that no cache would hold until they are read */

/* Columns of a tile become rows of Y: of 16 bits two columns at a time, so that a register holds 2 * LANES entries of a row. */
INLINE void turn_around(const Layer *l, vi (*tile)[WIDE], long group, int vectors, long n, long width, int dtype) {
    const Call *c = l->call;
    const long size = size_of(dtype), each = WIDTH / size;
    const int past = c->m * c->n * size >= LARGE && ((uintptr_t)c->y | (uintptr_t)(c->n * size)) % 64 == 0;
    for (int v = 0; v < vectors; v++) {
        const long first = (group + v) * LANES, count = least(LANES, c->m - first);
        for (long j = 0; j < width; j += each) {
            const long bytes = least(WIDTH, (width - j) * size);
            char *y = (char *)c->y + (first * c->n + n + j) * size;
            vi rows[LANES];
            UNROLL for (int i = 0; i < LANES; i++) {
                if (size == 4) rows[i] = tile[j + i][v];
                else rows[i] = (vi)((rounded(tile[j + 2 * i][v], dtype) >> 16) | (rounded(tile[j + 2 * i + 1][v], dtype) & 0xffff0000));
            }
            transpose(rows);
            if (bytes == WIDTH && past) for (long i = 0; i < count; i++, y += c->n * size) store_line(y, rows[i]);
            else if (bytes == WIDTH) for (long i = 0; i < count; i++, y += c->n * size) store(y, rows[i]);
            else for (long i = 0; i < count; i++, y += c->n * size) memcpy(y, &rows[i], bytes);
        }
    }
}

/* A block of groups with a part of the rows of W, stripe by stripe. */
enum { PART = 4 * STRIPE };
static long parts_of(const Call *c) { return (c->n + PART - 1) / PART; }

static void across_piece(Layer *l, long piece) {
    const Call *c = l->call;
    const long groups = round_up(c->m, LANES) / LANES, start = piece / parts_of(c) * l->block, stop = least(groups, start + l->block);
    const long begin = piece % parts_of(c) * PART, end = least(c->n, begin + PART);
    const int dtype = l->given ? INT32 : c->x_dtype;
    vi tile[STRIPE][WIDE];
    Row rows[STRIPE];
    memset(tile, 0, sizeof tile);
    matrices_begin();
    for (long n = begin; n < end; n += STRIPE) {
        const long width = least(STRIPE, end - n);
        for (long group = start; group < stop; group += WIDE) {
            const int vectors = (int)least(WIDE, stop - group);
            for (long from = 0; from < c->k || !from; from += DEEP) {
                const long to = least(c->k, from + DEEP);
                for (long j = 0, height; j < width; j += height) {
                    height = tile_height(width - j);
                    tile_of(l, group, n + j, from, to, vectors, (int)height, tile + j);
                    if (to < c->k) continue;
                    if (group == start) prepare(l, n + j, (int)height, rows + j); /* here, where the tile has fetched these rows */
                    finish(l, tile + j, group, vectors, n + j, (int)height, rows + j);
                }
            }
            if (dtype == INT32) turn_around(l, tile, group, vectors, n, width, INT32);
            else BY_DTYPE(dtype, turn_around, l, tile, group, vectors, n, width);
        }
    }
    matrices_end();
    lines_done();
}

static void product_piece(Layer *l, long piece) { l->along ? along_piece(l, piece) : across_piece(l, piece); }

/* How many pieces the product of a layer has; chooses the block. `tasks` pieces at least are wanted, so that no thread goes idle. */
static long product_pieces(Layer *l, long tasks) {
    const Call *c = l->call;
    if (l->along) {
        long rows = round_up(PIECE / (c->k + 1) + 1, LANES);
        return (c->n + rows - 1) / rows;
    }
    /* 256 rows of X; fewer where threads would go idle. */
    const long groups = round_up(c->m, LANES) / LANES, least_block = 64 / LANES;
    l->block = 256 / LANES;
    if (parts_of(c) * groups < tasks * l->block) l->block = least_block;
    return parts_of(c) * ((groups + l->block - 1) / l->block);
}

static void accumulate(Layer *l, int threads) { run(l, product_piece, product_pieces(l, threads > 1 ? 4 * threads : 0), threads); }

#endif
