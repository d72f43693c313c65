/* outlier_columns and quantize: what happens to X before the product. */
#ifndef NATIVE_QUANTIZE_H
#define NATIVE_QUANTIZE_H
#include "native_layer.h"

/* ---- magnitudes, a register of entries at a time -------------------------------------------------------------------------------- */
/* As integers magnitudes have the order of the numbers; a NaN lies above infinity. So they are compared in X's own width. */
INLINE vi magnitudes(vi bits, int dtype) { return bits & (dtype == FLOAT32 ? MAGNITUDE : 0x7fff7fff); }
INLINE vi larger_entries(vi a, vi b, int dtype) { return dtype == FLOAT32 ? larger(a, b) : (vi)larger_halves((vs)a, (vs)b); }
INLINE int32_t infinity_of(int dtype) { return dtype == FLOAT32 ? INFINITE : dtype == BFLOAT16 ? INFINITE >> 16 : 0x7c00; }

/* Entry i of magnitudes, or of `kept`; a 16-bit one with its sign. */
INLINE int32_t entry_of(const char *entries, long i, int dtype) {
    int32_t wide;
    int16_t half;
    if (dtype == FLOAT32) { memcpy(&wide, entries + 4 * i, 4); return wide; }
    memcpy(&half, entries + 2 * i, 2);
    return half;
}

/* LANES magnitudes of 16 bits, each in a lane, as the bits of float32. */
INLINE vi widened(vi halves, int dtype) {
    return dtype == BFLOAT16 ? (vi)((vu)halves << 16) : (vi)from_half(last_halves((vu)halves));
}

/* ---- outlier_columns ------------------------------------------------------------------------------------------------------------ */
/* Four rows per walk along the maxima. */
INLINE void column_maxima(const Call *c, long first, long last, char *largest, int dtype) {
    const long size = c->k * size_of(dtype);
    for (; first < last; first += 4) {
        const char *x[4];
        for (int r = 0; r < 4; r++) x[r] = row_of(c, least(first + r, last - 1));
        for (long at = 0; at < size; at += WIDTH) {
            vi most = load(largest + at);
            UNROLL for (int r = 0; r < 4; r++) most = larger_entries(most, magnitudes(load_part(x[r] + at, size - at), dtype), dtype);
            store(largest + at, most);
        }
    }
}

/* Whether column k has an entry of this magnitude, or a larger one: a NaN has none, but may hide one. */
static int has_outlier(const Call *c, long k, int32_t limit) {
    for (long r = 0; r < c->m; r++) {
        int32_t magnitude = entry_of(row_of(c, r), k, c->x_dtype) & (c->x_dtype == FLOAT32 ? MAGNITUDE : 0x7fff);
        if (magnitude >= limit && magnitude <= infinity_of(c->x_dtype)) return 1;
    }
    return 0;
}

/* The least magnitude, as an integer, that is at least c->limit. */
static int32_t least_outlier(const Call *c) {
    const float limit = c->limit + 0.0f; /* -0.0 becomes 0.0 */
    if (c->x_dtype == FLOAT32) return bits_of(limit);
    int32_t half = c->x_dtype == BFLOAT16 ? bits_of(limit) >> 16 : to_half((vf){0} + limit)[0];
    return half + (number(widened((vi){0} + half, c->x_dtype)[0]) < limit);
}

enum { SCANS = 16 }; /* pieces of the rows in a scan by several threads, each with maxima of its own */

static void scan(Layer *l, long piece) {
    const Call *c = l->call;
    const long rows = (c->m + l->scans - 1) / l->scans, first = piece * rows, last = least(c->m, first + rows);
    char *largest = l->kept + piece * l->kept_size;
    memset(largest, -1, l->kept_size);
    BY_DTYPE(c->x_dtype, column_maxima, c, first, last, largest);
}

/* The maxima become `kept` where they lie. */
INLINE void mark_columns(Layer *l, int dtype) {
    const Call *c = l->call;
    const long each = WIDTH / size_of(dtype);
    const int32_t limit = least_outlier(c);
    for (long i = 0; i < c->k; i += each) {
        char *at = l->kept + i * size_of(dtype);
        const vi most = load(at), none = dtype == FLOAT32 ? most < limit : (vi)((vs)most < (int16_t)limit);
        store(at, none);
        int64_t every[WIDTH / 8], together = -1;
        memcpy(every, &none, sizeof every);
        for (int j = 0; j < WIDTH / 8; j++) together &= every[j];
        if (together == -1) continue;
        for (long j = i; j < least(c->k, i + each); j++) {
            const int32_t magnitude = entry_of((const char *)&most, j - i, dtype), keep = -1;
            if (magnitude < limit) continue;
            if (magnitude <= infinity_of(dtype) || has_outlier(c, j, limit)) l->outliers[l->count++] = (int32_t)j;
            else memcpy(at + (j - i) * size_of(dtype), &keep, size_of(dtype));
        }
    }
}

static void outlier_columns(Layer *l, int threads) {
    const int dtype = l->call->x_dtype;
    run(l, scan, l->scans, threads);
    for (long piece = 1; piece < l->scans; piece++)
        for (long at = 0; at < l->kept_size; at += WIDTH)
            store(l->kept + at, larger_entries(load(l->kept + at), load(l->kept + piece * l->kept_size + at), dtype));
    BY_DTYPE(dtype, mark_columns, l);
    if (!l->count) l->kept = NULL;
}

/* ---- range and scale ------------------------------------------------------------------------------------------------------------ */
/* Numbers as integers in the order of the numbers, -0.0 one below 0.0; beyond the infinities lie the NaNs of either sign. */
INLINE vi ordered(vi bits) { return bits ^ ((bits >> 31) & MAGNITUDE); }

/* The least and the largest entry of each of a group's rows, in the order of `ordered`; 0 is always among them. For absmax the largest
   magnitude is enough. */
INLINE void extremes_of(const Layer *l, long first, long rows, vi *lo, vi *hi, int dtype) {
    const Call *c = l->call;
    const long size = c->k * size_of(dtype);
    vi most[LANES], least_of_all[LANES];
    for (long r = 0; r < LANES; r++) {
        vi largest = {0}, smallest = {0};
        if (r < rows) {
            const char *x = row_of(c, first + r);
            if (c->zeropoint)
                for (long i = 0; i < c->k; i += LANES) {
                    const vi v = ordered(kept_entries(l, x, i, c->k, l->kept != NULL, dtype));
                    largest = larger(largest, v);
                    smallest = ~larger(~smallest, ~v);
                }
            else if (l->kept)
                for (long at = 0; at < size; at += WIDTH)
                    largest = larger_entries(largest, magnitudes(load_part(x + at, size - at) & load(l->kept + at), dtype), dtype);
            else for (long at = 0; at < size; at += WIDTH) largest = larger_entries(largest, magnitudes(load_part(x + at, size - at), dtype), dtype);
        }
        most[r] = dtype == FLOAT32 || c->zeropoint ? largest : larger(largest & 0xffff, (vi)((vu)largest >> 16));
        least_of_all[r] = ~smallest;
    }
    *hi = largest_of(most);
    if (dtype != FLOAT32 && !c->zeropoint) *hi = widened(*hi, dtype);
    if (c->zeropoint) *lo = ~largest_of(least_of_all);
}

static void group_extremes(const Layer *l, long first, vi *lo, vi *hi) {
    const long rows = least(LANES, l->call->m - first);
    *lo = (vi){0};
    BY_DTYPE(l->call->x_dtype, extremes_of, l, first, rows, lo, hi);
}

static const float ROUND = 0x1.8p23f; /* in float32 x + ROUND has no places after the point: it is rint(x), to even, for |x| < 2**22 */

/* What follows for a group from the ranges of its rows. */
static void set_slices(Layer *l, long first, vi lo, vi hi) {
    const int zeropoint = l->call->zeropoint;
    const float steps = zeropoint ? 255.0f : 127.0f;
    const vf low = (vf)ordered(lo), extent = zeropoint ? (vf)ordered(hi) - low : (vf)hi;
    const vi finite = extent <= LARGEST, usable = finite & (extent >= ZERO_SLICE); /* a NaN is neither */
    const vf inverse = (1.0f / extent) * steps, scale = extent / steps;
    vi zero = {0};
    if (zeropoint) {
        vf z = ((-128.0f - low * inverse) + ROUND) - ROUND;
        zero = __builtin_convertvector((vf)((vi)z & usable), vi);
        zero = ~larger(~larger(zero, broadcast(-128)), broadcast(~127));
    }
    store(l->inverse + first, (vi)inverse & usable);
    store(l->row_scale + first, ((vi)scale & usable) | (bits_of(NAN) & ~finite));
    store(l->row_zero + first, zero);
}

/* ---- codes ---------------------------------------------------------------------------------------------------------------------- */
/* LANES codes of a row from column i on. */
INLINE vb encode(const Layer *l, const char *x, long i, long k, float inverse, int32_t zero, int zeropoint, int masked, int dtype) {
    vi q = (vi)((vf)kept_entries(l, x, i, k, masked, dtype) * inverse + ROUND) - bits_of(ROUND);
    if (zeropoint) q = ~larger(~larger(q + zero, broadcast(-128)), broadcast(~127));
    return last_bytes(q);
}

/* Codes of row r from column i on, WIDTH to each of some blocks, which lie `apart` bytes from each other; zeros from the k-th on. */
INLINE void encode_row(const Layer *l, long r, long i, long blocks, uint8_t *codes, long apart, int zeropoint, int masked, int dtype) {
    const long k = l->call->k;
    const char *x = row_of(l->call, r);
    const float inverse = l->inverse[r];
    const int32_t zero = l->row_zero[r];
    for (; blocks--; i += WIDTH, codes += apart) {
        vb narrow;
        if (k - i >= WIDTH) UNROLL for (int j = 0; j < WIDTH; j += LANES) {
            narrow = encode(l, x, i + j, i + WIDTH, inverse, zero, zeropoint, masked, dtype);
            memcpy(codes + j, &narrow, LANES);
        } else for (int j = 0; j < WIDTH; j += LANES) {
            narrow = (vb){0};
            if (i + j < k) {
                narrow = encode(l, x, i + j, k, inverse, zero, zeropoint, masked, dtype);
                if (zeropoint) for (long past = k - i - j; past < LANES; past++) narrow[past] = 0;
            }
            memcpy(codes + j, &narrow, LANES);
        }
    }
}

/* Compiled once for each dtype, quantizer, and with or without outlier columns. */
#define ENCODE_ROW(name, zeropoint, masked, dtype)                                                                             \
    static __attribute__((noinline)) void name(const Layer *l, long r, long i, long blocks, uint8_t *codes, long apart) {      \
        encode_row(l, r, i, blocks, codes, apart, zeropoint, masked, dtype);                                                   \
    }
#define ENCODE_ROWS(dtype)                                                                                \
    ENCODE_ROW(absmax_##dtype, 0, 0, dtype) ENCODE_ROW(absmax_masked_##dtype, 0, 1, dtype)                \
    ENCODE_ROW(zeropoint_##dtype, 1, 0, dtype) ENCODE_ROW(zeropoint_masked_##dtype, 1, 1, dtype)
ENCODE_ROWS(FLOAT32) ENCODE_ROWS(BFLOAT16) ENCODE_ROWS(FLOAT16)

typedef void (*EncodeRow)(const Layer *, long, long, long, uint8_t *, long);
static const EncodeRow encode_rows[3][2][2] = {
    [FLOAT32] = {{absmax_FLOAT32, absmax_masked_FLOAT32}, {zeropoint_FLOAT32, zeropoint_masked_FLOAT32}},
    [BFLOAT16] = {{absmax_BFLOAT16, absmax_masked_BFLOAT16}, {zeropoint_BFLOAT16, zeropoint_masked_BFLOAT16}},
    [FLOAT16] = {{absmax_FLOAT16, absmax_masked_FLOAT16}, {zeropoint_FLOAT16, zeropoint_masked_FLOAT16}},
};

/* As encode_row: of a row of X, of codes that are given, or of no row. */
static void codes_of_row(const Layer *l, long r, long i, long blocks, uint8_t *codes, long apart) {
    const Call *c = l->call;
    if (r < c->m && l->given) {
        const char *x = row_of(c, r);
        for (; blocks--; i += WIDTH, codes += apart) store(codes, load_part(x + i, c->k - i));
    } else if (r >= c->m || l->inverse[r] == 0) /* codes of 0: an infinity times 0 would be none */
        for (; blocks--; codes += apart) memset(codes, 0, WIDTH);
    else encode_rows[c->x_dtype][c->zeropoint != 0][l->kept != NULL](l, r, i, blocks, codes, apart);
}

/* The sum of k codes. */
static int32_t sum_of(const int8_t *codes, long k) {
    vi s[4] = {{0}, {0}, {0}, {0}};
    const operand ones = operand_of(broadcast(0x01010101));
    long i = 0;
    for (; i + 4 * WIDTH <= k; i += 4 * WIDTH)
        UNROLL for (int d = 0; d < 4; d++) s[d] = dot(s[d], operand_of(load(codes + i + d * WIDTH)), ones);
    for (; i < k; i += WIDTH) s[0] = dot(s[0], operand_of(load_part(codes + i, k - i)), ones);
    const vi total = s[0] + s[1] + s[2] + s[3];
    int32_t sum = 0;
    for (int j = 0; j < LANES; j++) sum += total[j];
    return sum;
}

/* Rows of codes as they lie. */
static void quantize_rows(Layer *l, long first, long rows) {
    for (long r = first; r < first + rows; r++) {
        uint8_t *codes = l->codes + r * l->row_bytes;
        codes_of_row(l, r, 0, l->row_bytes / WIDTH, codes, WIDTH);
        l->row_total[r] = sum_of((const int8_t *)codes, l->row_bytes);
    }
}

enum { CHUNK = 4 };

/* Groups of codes, [K / 4][LANES][4]. */
static void quantize_group(Layer *l, long first) {
    vi total = {0};
    const operand ones = operand_of(broadcast(0x01010101));
    for (long from = 0; from < l->row_bytes; from += CHUNK * WIDTH) {
        const long blocks = least(CHUNK, (l->row_bytes - from) / WIDTH);
        /* Some blocks are written before the first is read: four stores that a load spans make it wait until they reach the cache. */
        _Alignas(64) uint8_t codes[CHUNK][LANES][WIDTH];
        for (long r = 0; r < LANES; r++) codes_of_row(l, first + r, from, blocks, codes[0][r], LANES * WIDTH);
        for (long b = 0; b < blocks; b++) {
            vi v[LANES];
            uint8_t *to = l->codes + first * l->row_bytes + (from + b * WIDTH) * LANES;
            UNROLL for (int r = 0; r < LANES; r++) v[r] = load(codes[b][r]);
            transpose(v);
            UNROLL for (int r = 0; r < LANES; r++) {
                store(to + r * WIDTH, v[r]);
                total = dot(total, operand_of(v[r]), ones);
            }
        }
    }
    store(l->row_total + first, total);
}

/* Rows of codes as they lie, to their caller. */
static void give_codes(const Layer *l, long first, long rows) {
    const Call *c = l->call;
    for (long r = first; r < first + rows; r++)
        for (long i = 0; i < c->k; i += WIDTH) {
            uint8_t codes[WIDTH];
            codes_of_row(l, r, i, 1, codes, 0);
            memcpy(c->x_codes + r * c->k + i, codes, least(WIDTH, c->k - i));
        }
}

/* X[:, O] of a group. */
INLINE void take_entries(Layer *l, long first, long rows, int dtype) {
    const Call *c = l->call;
    const long size = size_of(dtype);
    for (long o = 0; o < l->count; o++) {
        _Alignas(64) char column[WIDTH] = {0};
        for (long r = 0; r < rows; r++) memcpy(column + r * size, (const char *)c->x + ((first + r) * c->x_stride + l->outliers[o]) * size, size);
        store(l->entries + first * l->count + o * LANES, widen(column, 0, LANES, dtype));
    }
}

static void quantize_piece(Layer *l, long piece) {
    const Call *c = l->call;
    const long first = piece * LANES, rows = least(LANES, c->m - first);
    if (c->per_row && !l->given) {
        vi lo, hi;
        group_extremes(l, first, &lo, &hi);
        set_slices(l, first, lo, hi);
    }
    if (!l->codes) give_codes(l, first, rows);
    else if (l->along) quantize_rows(l, first, rows);
    else quantize_group(l, first);
    if (l->entries) BY_DTYPE(c->x_dtype, take_entries, l, first, rows);
}

static void extremes_piece(Layer *l, long piece) {
    vi lo, hi;
    group_extremes(l, piece * LANES, &lo, &hi);
    store(l->lowest + piece * LANES, lo);
    store(l->highest + piece * LANES, hi);
}

static void quantize(Layer *l, int threads) {
    const Call *c = l->call;
    const long groups = round_up(c->m, LANES) / LANES;
    if (!c->per_row && !l->given) { /* one slice: its range first */
        run(l, extremes_piece, groups, threads);
        int32_t lo = 0, hi = 0;
        for (long r = 0; r < c->m; r++) {
            if (l->lowest[r] < lo) lo = l->lowest[r];
            if (l->highest[r] > hi) hi = l->highest[r];
        }
        for (long group = 0; group < groups; group++) set_slices(l, group * LANES, broadcast(lo), broadcast(hi));
    }
    run(l, quantize_piece, groups, threads);
}

#endif
