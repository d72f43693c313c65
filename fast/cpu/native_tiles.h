/* The sums of a tile, rows of W by groups of X: in vector registers, or where there are any in matrix registers. */
#ifndef NATIVE_TILES_H
#define NATIVE_TILES_H
#include "native_results.h"

#if !MATRIX
/* ---- in vector registers -------------------------------------------------------------------------------------------------------- */
enum { TILE_OFFSET = OFFSET }; /* that of `dot` */
INLINE long tile_height(long left) { return left >= TALL ? TALL : 1; }

/* Groups group .. of X with rows n .. of W, columns from .. to: sums are added to the tile, or begin there. With few groups each sum is
   split in several (depth), as in dots. */
INLINE void tile_sums(const Layer *l, long group, long n, long from, long to, int vectors, int height, int depth, vi (*tile)[WIDE]) {
    const Call *c = l->call;
    const long quads = to / 4, step = l->row_bytes * LANES, stride = c->codes_stride;
    const uint8_t *x = l->codes + group * step;
    const int8_t *w = c->codes + n * stride;
    long i = from / 4;
    vi s[TALL][WIDE];
    UNROLL for (int row = 0; row < height; row++)
        UNROLL for (int v = 0; v < vectors * depth; v++) s[row][v] = (vi){0};
    if (from) UNROLL for (int row = 0; row < height; row++)
        UNROLL for (int v = 0; v < vectors; v++) s[row][v * depth] = tile[row][v];
#define STEP(d, first)                                                                                                   \
    {                                                                                                                    \
        operand xv[WIDE];                                                                                                \
        UNROLL for (int v = 0; v < vectors; v++) xv[v] = operand_of(load(x + v * step + (i + d) * WIDTH));               \
        UNROLL for (int row = 0; row < height; row++) {                                                                  \
            int32_t quad = 0;                                                                                            \
            memcpy(&quad, w + row * stride + (i + d) * 4, first);                                                        \
            operand wv = weight_of(broadcast(quad));                                                                     \
            UNROLL for (int v = 0; v < vectors; v++) s[row][v * depth + d] = dot(s[row][v * depth + d], xv[v], wv);      \
        }                                                                                                                \
    }
    for (; i + depth <= quads; i += depth) {
        if (i % 16 < depth) /* the next rows of W, a cache line of each */
            UNROLL for (int row = 0; row < height; row++) __builtin_prefetch(w + (height + row) * stride + i * 4);
        UNROLL for (int d = 0; d < depth; d++) STEP(d, 4)
    }
    for (; i < quads; i++) STEP(0, 4)
    if (to % 4) STEP(0, to % 4)
#undef STEP
    UNROLL for (int row = 0; row < height; row++)
        UNROLL for (int v = 0; v < vectors; v++) {
            vi total = s[row][v * depth];
            UNROLL for (int d = 1; d < depth; d++) total = added(total, s[row][v * depth + d]);
            tile[row][v] = total;
        }
}

/* Compiled once for each width of a tile. */
static __attribute__((noinline)) void tall_tile(const Layer *l, long group, long n, long from, long to, int vectors, vi (*tile)[WIDE]) {
    switch (vectors) {
        case 1: tile_sums(l, group, n, from, to, 1, TALL, 2, tile); break;
        case 2: tile_sums(l, group, n, from, to, 2, TALL, 1, tile); break;
#if REGISTERS == 32
        case 3: tile_sums(l, group, n, from, to, 3, TALL, 1, tile); break;
        case 4: tile_sums(l, group, n, from, to, 4, TALL, 1, tile); break;
#endif
    }
}

static __attribute__((noinline)) void low_tile(const Layer *l, long group, long n, long from, long to, int vectors, vi (*tile)[WIDE]) {
    for (int v = 0; v < vectors; v++) {
        vi one[1][WIDE] = {{tile[0][v]}};
        tile_sums(l, group + v, n, from, to, 1, 1, 2, one);
        tile[0][v] = one[0][0];
    }
}

INLINE void tile_of(const Layer *l, long group, long n, long from, long to, int vectors, int height, vi (*tile)[WIDE]) {
    if (height > 1) tall_tile(l, group, n, from, to, vectors, tile);
    else low_tile(l, group, n, from, to, vectors, tile);
}

#else
/* ---- in matrix registers -------------------------------------------------------------------------------------------------------- */
/* A register times a register: 16 rows of W as they lie, 64 codes of each, and a group of X, [K / 4][LANES][4], as it lies. Both are
   signed, so there is no offset. Two blocks of rows by two groups make four sums, and each block that is loaded is used twice: 4 KiB for
   four products, which take 64 cycles. Sums are registers 0 to 3, blocks of W 4 and 5, groups of X 6 and 7. */
enum { TILE_OFFSET = 0, HIGHEST = 2 * LINES };
INLINE long tile_height(long left) { return least(left, HIGHEST); }

/* Columns i .. of `height` rows of W: where they lie, or at an edge what there is of them in a block of its own. What else it holds meets
   the zeros behind X's rows, or makes sums of rows that are not there. */
INLINE const int8_t *block_of(const Call *c, long n, long i, long height, long lines, int8_t (*edge)[LINE], long *apart) {
    const int8_t *w = c->codes + n * c->codes_stride + i;
    const long bytes = least(LINE, c->k - i);
    *apart = c->codes_stride;
    if (height >= lines && bytes == LINE) return w;
    for (long row = 0; row < height; row++) memcpy(edge[row], w + row * c->codes_stride, bytes);
    *apart = LINE;
    return edge[0];
}

INLINE void matrix_sums(const Layer *l, long group, long n, long from, long to, int two_groups, long height, int two_blocks, vi (*tile)[WIDE]) {
    _Alignas(64) int8_t edge[HIGHEST][LINE];
    const long step = l->row_bytes * LANES;
    const uint8_t *x = l->codes + group * step;
    if (from) {
        MATRIX_LOAD(0, tile[0], sizeof *tile);
        if (two_groups) MATRIX_LOAD(1, tile[0] + 1, sizeof *tile);
        if (two_blocks) MATRIX_LOAD(2, tile[LINES], sizeof *tile);
        if (two_blocks && two_groups) MATRIX_LOAD(3, tile[LINES] + 1, sizeof *tile);
    } else {
        MATRIX_CLEAR(0);
        if (two_groups) MATRIX_CLEAR(1);
        if (two_blocks) MATRIX_CLEAR(2);
        if (two_blocks && two_groups) MATRIX_CLEAR(3);
    }
    for (long i = from; i < to; i += LINE) {
        long apart;
        const int8_t *w = block_of(l->call, n, i, height, two_blocks ? HIGHEST : LINES, edge, &apart);
        MATRIX_LOAD(4, w, apart);
        MATRIX_LOAD(6, x + i * LANES, LINE);
        MATRIX_PRODUCT(0, 4, 6);
        if (two_groups) {
            MATRIX_LOAD(7, x + step + i * LANES, LINE);
            MATRIX_PRODUCT(1, 4, 7);
        }
        if (two_blocks) {
            MATRIX_LOAD(5, w + LINES * apart, apart);
            MATRIX_PRODUCT(2, 5, 6);
            if (two_groups) MATRIX_PRODUCT(3, 5, 7);
        }
    }
    MATRIX_STORE(0, tile[0], sizeof *tile);
    if (two_groups) MATRIX_STORE(1, tile[0] + 1, sizeof *tile);
    if (two_blocks) MATRIX_STORE(2, tile[LINES], sizeof *tile);
    if (two_blocks && two_groups) MATRIX_STORE(3, tile[LINES] + 1, sizeof *tile);
}

/* The tile has room for whole blocks: a stripe is a multiple of HIGHEST. */
static __attribute__((noinline)) void tile_of(const Layer *l, long group, long n, long from, long to, int vectors, int height, vi (*tile)[WIDE]) {
    for (int v = 0; v < vectors; v += 2) {
        vi (*part)[WIDE] = (void *)(tile[0] + v);
        if (height > LINES && v + 1 < vectors) matrix_sums(l, group + v, n, from, to, 1, height, 1, part);
        else if (height > LINES) matrix_sums(l, group + v, n, from, to, 0, height, 1, part);
        else if (v + 1 < vectors) matrix_sums(l, group + v, n, from, to, 1, height, 0, part);
        else matrix_sums(l, group + v, n, from, to, 0, height, 0, part);
    }
}
#endif

#endif
