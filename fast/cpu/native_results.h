/* rescale, outlier_product: what both kinds of tile of native_product.h do with their sums, and how results are stored. */
#ifndef NATIVE_RESULTS_H
#define NATIVE_RESULTS_H
#include "native_quantize.h"

/* The products of the outlier columns are summed first and the regular part is added to their sum, as `reference` does: the contract
   leaves the order free, but with another one the last bit of Y differs, and in a model that turns codes of the next layer. */
INLINE float weight_scale(const Call *c, long n) {
    long slice = c->per_weight_row ? n : 0;
    if (!c->absmax) return c->scale[slice];
    float absmax = c->absmax[slice]; /* the rules of set_slices */
    return absmax < ZERO_SLICE ? 0 : absmax <= LARGEST ? absmax / 127.0f : NAN;
}

INLINE int32_t weight_zero(const Call *c, long n) { return c->zero_point ? c->zero_point[c->per_weight_row ? n : 0] : 0; }

/* Both of `width` rows from the n-th on. */
INLINE void weight_scales(const Call *c, long n, long width, vf *scale, vi *zero) {
    const long bytes = 4 * width;
    if (!c->per_weight_row) {
        *scale = broadcast_float(weight_scale(c, 0));
        *zero = broadcast(weight_zero(c, 0));
        return;
    }
    *zero = c->zero_point ? load_part(c->zero_point + n, bytes) : (vi){0};
    *scale = (vf)load_part((c->absmax ? c->absmax : c->scale) + n, bytes);
    if (!c->absmax) return;
    const vi finite = *scale <= LARGEST, usable = finite & (*scale >= ZERO_SLICE);
    *scale = (vf)(((vi)(*scale / 127.0f) & usable) | (bits_of(NAN) & ~finite));
}

enum { SOME = 64 }; /* outlier columns at a time */

/* What row n of W has in `some` outlier columns. */
static void outlier_weights(const Call *c, long n, const int32_t *columns, long some, float scale, int32_t zero, float *to) {
    if (c->float_weight)
        for (long o = 0; o < some; o++) to[o] = entry(c->float_weight, n * c->float_stride + columns[o], c->float_dtype);
    else {
        const int8_t *w = c->codes + n * c->codes_stride;
        for (long o = 0; o < some; o++) to[o] = (float)(w[columns[o]] - zero) * scale;
    }
}

/* What `width` rows of W from the n-th on have in one column. */
INLINE vf column_weights(const Call *c, long n, long width, long column, vf scale, vi zero) {
    float floats[LANES] = {0};
    int8_t codes[LANES] = {0};
    vb b;
    if (c->float_weight) {
        for (long j = 0; j < width; j++) floats[j] = entry(c->float_weight, (n + j) * c->float_stride + column, c->float_dtype);
        return load_floats(floats);
    }
    const int8_t *w = c->codes + n * c->codes_stride + column;
    for (long j = 0; j < width; j++) codes[j] = w[j * c->codes_stride];
    memcpy(&b, codes, sizeof b);
    return __builtin_convertvector(__builtin_convertvector(b, vi) - zero, vf) * scale;
}

/* The sum of (Xq - zx)(Wq - zw) as float32, rounded once, from the sum of Xq (Wq + offset) and those of Xq and Wq:
   acc - zx * sum Wq - zw * (sum Xq - K * zx). From K = 33,026 on it may leave int32. */
INLINE vf corrected(const Call *c, vi acc, vi x_zero, vi x_total, vi w_zero, vi w_sum, int zeropoint, int offset) {
    vu exact = (vu)acc - (vu)x_total * (uint32_t)offset;
    if (!zeropoint) return __builtin_convertvector((vi)exact, vf);
    if (c->k * 255 * 255 <= INT32_MAX) {
        exact -= (vu)x_zero * (vu)w_sum + (vu)w_zero * ((vu)x_total - (vu)x_zero * (uint32_t)c->k);
        return __builtin_convertvector((vi)exact, vf);
    }
    vf result;
    for (int j = 0; j < LANES; j++) {
        int64_t a = (int32_t)exact[j], zx = x_zero[j];
        result[j] = (float)(a - zx * w_sum[j] - w_zero[j] * (x_total[j] - c->k * zx));
    }
    return result;
}

/* float16 or bfloat16 in the upper half of each lane. */
INLINE vu rounded(vi v, int dtype) {
    if (dtype == FLOAT16) return from_halves(to_half((vf)v)) << 16;
    /* To nearest, ties to even; not vcvtneps2bf16, which takes subnormal numbers for zero. */
    const vu u = (vu)v, nan = (vu)((v & MAGNITUDE) > INFINITE);
    return ((u + 0x7fff + ((u >> 16) & 1)) & ~nan) | (0x7fc00000 & nan);
}

/* LANES results as entries of y from the i-th on; only `left` of them. */
static void put(void *y, long i, vi v, long left, int dtype) {
    const long size = size_of(dtype);
    char *at = (char *)y + i * size;
    if (dtype == FLOAT32 || dtype == INT32) {
        if (left >= LANES) store(at, v);
        else memcpy(at, &v, size * left);
        return;
    }
    const vh h = last_halves((dtype == FLOAT16 ? rounded(v, FLOAT16) : rounded(v, BFLOAT16)) >> 16);
    if (left >= LANES) memcpy(at, &h, sizeof h);
    else memcpy(at, &h, size * left);
}

#endif
