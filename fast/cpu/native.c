/* The inference phase of LLM.int8() on a CPU, one call per layer: docs/contract.md in C, with the steps and the names of `reference`.

       outlier_columns    X is read once: which columns hold an outlier
       quantize           X is read again, a group of rows at a time: range, scale, codes; outlier columns count as zero
       accumulate         the int32 product of the codes
       rescale            times the scale of the row of X, times the scale of the row of W
       outlier_product    plus X[:, O] @ W[:, O].T, plus the bias, rounded once to X's dtype

   The last three run tile by tile, so that a sum goes from its register to Y without passing through memory.

   Nothing is packed, copied or kept of the weight: it is read where it lies, once per block of 64 rows of X. Codes of X are written
   anew in every call anyway, so it is they that take the order that the product wants:

       up to 8 rows of X    codes lie as the rows do. A sum runs along K: a register holds 4 * LANES neighbours of a row of X, another
                            those of a row of W. Rows of W are read in the order of memory, which is what bounds the time here.
       more rows            a register holds 4 neighbours of each of LANES rows of X, [K / 4][LANES][4]; 4 bytes of a row of W are
                            broadcast against it. TALL rows of W times WIDE registers of X give TALL * WIDE sums, all in registers.

   GCC's vector types (Clang has them too) say in C what is the same for all processors; a section of a few lines says what is not.
   One library is compiled for each set of instructions, from this one file: the compiler's -m flags choose the section.

   -ffp-contract=off is part of the meaning: x * r + c has to round twice. */
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 64") /* an array of registers stays in registers only where every index is a constant */
#endif

/* ---- what differs between processors ------------------------------------------------------------------------------------------- */
/* LANES   int32 numbers in a register
   OFFSET  what is added to a code of X: instructions that multiply unsigned by signed bytes want code + 128. It is taken off again
           as OFFSET * sum(W[n]), modulo 2**32 and so exactly
   TALL, WIDE  the tile. TALL * WIDE sums, WIDE operands of X and one of W have to find room in 32 registers, or 16. Taller tiles
           would read less, but the rows of W that they walk along often lie a multiple of 4096 bytes apart, so in one and the same
           set of the first cache, which has 8 places or 12
   FEW     the most rows of X in one sum along K, for the same reason */
#if defined(__AVX512VNNI__)
#include <immintrin.h>
#define INSTRUCTIONS "avx512_vnni"
#define LANES 16
enum { OFFSET = 128, TALL = 6, WIDE = 4, FEW = 8 };
#elif defined(__AVXVNNI__)
#include <immintrin.h>
#define INSTRUCTIONS "avx_vnni"
#define LANES 8
enum { OFFSET = 128, TALL = 6, WIDE = 2, FEW = 4 };
#elif defined(__AVX2__)
#include <immintrin.h>
#define INSTRUCTIONS "avx2"
#define LANES 8
enum { OFFSET = 0, TALL = 4, WIDE = 2, FEW = 4 };
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#define INSTRUCTIONS "neon_dotprod"
#define LANES 4
enum { OFFSET = 0, TALL = 6, WIDE = 4, FEW = 8 };
#else
#define INSTRUCTIONS "portable"
#define LANES 4
enum { OFFSET = 0, TALL = 4, WIDE = 2, FEW = 4 };
#endif
enum { WIDTH = 4 * LANES }; /* bytes of a register */

typedef float vf __attribute__((vector_size(WIDTH)));
typedef int32_t vi __attribute__((vector_size(WIDTH)));
typedef uint32_t vu __attribute__((vector_size(WIDTH))); /* where a sum may wrap around */
typedef uint16_t vh __attribute__((vector_size(WIDTH / 2)));
typedef int8_t vb __attribute__((vector_size(LANES)));

/* dot adds to each int32 the product of the 4 bytes of x and the 4 of w that lie in its lane; operand_of is what can be prepared for
   it of one side. larger is the maximum per lane; multiply_add is a * b + c, rounded once where there is an instruction for it, and
   used only where the contract leaves the rounding open. */
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
typedef vi operand;
INLINE operand operand_of(vi bytes) { return bytes; }
INLINE vi dot(vi sum, operand x, operand w) {
    /* Not the intrinsic, with which GCC 12 moves each sum to another register and back, and spills some. */
#if LANES == 16
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w));
#else
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(x), "x"(w));
#endif
    return sum;
}
#elif defined(__AVX2__)
/* vpmaddubsw, of bytes, saturates at 2**15. So bytes become 16 bits, the even and the odd ones apart: then the two products that
   vpmaddwd adds belong to one lane. */
typedef struct { __m256i even, odd; } operand;
INLINE operand operand_of(vi bytes) {
    __m256i b = (__m256i)bytes;
    return (operand){_mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8), _mm256_srai_epi16(b, 8)};
}
INLINE vi dot(vi sum, operand x, operand w) {
    return sum + (vi)_mm256_madd_epi16(x.even, w.even) + (vi)_mm256_madd_epi16(x.odd, w.odd);
}
#elif defined(__ARM_FEATURE_DOTPROD)
typedef vi operand;
INLINE operand operand_of(vi bytes) { return bytes; }
INLINE vi dot(vi sum, operand x, operand w) { return (vi)vdotq_s32((int32x4_t)sum, (int8x16_t)x, (int8x16_t)w); }
#else
typedef vi operand;
INLINE operand operand_of(vi bytes) { return bytes; }
INLINE vi dot(vi sum, operand x, operand w) {
    UNROLL for (int shift = 0; shift < 32; shift += 8) sum += ((vi)((vu)x << shift) >> 24) * ((vi)((vu)w << shift) >> 24);
    return sum;
}
#endif

#if LANES == 16
INLINE vi larger(vi a, vi b) { return (vi)_mm512_max_epi32((__m512i)a, (__m512i)b); }
INLINE vf multiply_add(vf a, vf b, vf c) { return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
INLINE vf from_half(vh h) { return (vf)_mm512_cvtph_ps((__m256i)h); }
INLINE vh to_half(vf f) { return (vh)_mm512_cvtps_ph((__m512)f, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
#elif LANES == 8
INLINE vi larger(vi a, vi b) { return (vi)_mm256_max_epi32((__m256i)a, (__m256i)b); }
INLINE vf multiply_add(vf a, vf b, vf c) { return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
INLINE vf from_half(vh h) { return (vf)_mm256_cvtph_ps((__m128i)h); }
INLINE vh to_half(vf f) { return (vh)_mm256_cvtps_ph((__m256)f, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
#elif defined(__ARM_FEATURE_DOTPROD)
INLINE vi larger(vi a, vi b) { return (vi)vmaxq_s32((int32x4_t)a, (int32x4_t)b); }
INLINE vf multiply_add(vf a, vf b, vf c) { return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
INLINE vf from_half(vh h) { return (vf)vcvt_f32_f16((float16x4_t)h); }
INLINE vh to_half(vf f) { return (vh)vcvt_f16_f32((float32x4_t)f); }
#else
INLINE vi larger(vi a, vi b) { return (a & (a > b)) | (b & ~(a > b)); }
INLINE vf multiply_add(vf a, vf b, vf c) { return a * b + c; }
INLINE vf from_half(vh h) {
    vi bits = __builtin_convertvector(h, vi), sign = (vi)((vu)(bits & 0x8000) << 16), magnitude = bits & 0x7fff;
    vi normal = (magnitude << 13) + (112 << 23), subnormal = (vi)(__builtin_convertvector(magnitude, vf) * 0x1p-24f);
    vi special = (magnitude << 13) | 0x7f800000;
    vi small = magnitude < 0x400, large = magnitude >= 0x7c00;
    return (vf)(sign | (subnormal & small) | (special & large) | (normal & ~small & ~large));
}
INLINE vh to_half(vf f) {
    vi bits = (vi)f, sign = (vi)((vu)bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
    /* Halfway between two numbers the even one: 0xfff and the last bit that stays carry upwards where they have to. */
    vi normal = (vi)(((vu)magnitude - (112u << 23) + 0xfff + (((vu)magnitude >> 13) & 1)) >> 13);
    vi subnormal = (vi)((vf)magnitude + 0.5f) - 0x3f000000; /* the last place of 0.5 is 2**-24, that of a subnormal number */
    vi small = magnitude < 113 << 23, large = magnitude >= 0x477ff000, nan = magnitude > 0x7f800000;
    vi half = (subnormal & small) | (normal & ~small & ~large) | (0x7c00 & large) | (0x200 & nan);
    return __builtin_convertvector(sign | half, vh);
}
#endif

/* ---- registers: the same for all ----------------------------------------------------------------------------------------------- */
#if LANES == 16
#define EACH(f, s) f(0, s), f(1, s), f(2, s), f(3, s), f(4, s), f(5, s), f(6, s), f(7, s), f(8, s), f(9, s), f(10, s), f(11, s), \
    f(12, s), f(13, s), f(14, s), f(15, s)
#elif LANES == 8
#define EACH(f, s) f(0, s), f(1, s), f(2, s), f(3, s), f(4, s), f(5, s), f(6, s), f(7, s)
#else
#define EACH(f, s) f(0, s), f(1, s), f(2, s), f(3, s)
#endif
#if defined(__clang__)
#define SHUFFLE(a, b, f, s) __builtin_shufflevector(a, b, EACH(f, s))
#else
#define SHUFFLE(a, b, f, s) __builtin_shuffle(a, b, (vi){EACH(f, s)})
#endif
/* Lane `lane` of a shuffle of a and b takes this lane of both, one after the other. */
#define EVERY_OTHER(lane, first) (2 * (lane) + (first))
#define UPPER(lane, s) ((lane) & (s) ? LANES + ((lane) ^ (s)) : (lane))
#define LOWER(lane, s) ((lane) & (s) ? LANES + (lane) : ((lane) ^ (s)))

INLINE vi load(const void *at) { vi v; memcpy(&v, at, sizeof v); return v; }
INLINE vf load_floats(const float *at) { return (vf)load(at); }
INLINE void store(void *at, vi v) { memcpy(at, &v, sizeof v); }
INLINE vi broadcast(int32_t value) { return (vi){0} + value; }
INLINE vf broadcast_float(float value) { return (vf)broadcast(*(int32_t *)memcpy(&(int32_t){0}, &value, 4)); }
INLINE long least(long a, long b) { return a < b ? a : b; }
INLINE long round_up(long size, long step) { return (size + step - 1) / step * step; }

/* The first `left` bytes, zeros after them; nothing is read beyond. */
INLINE vi load_part(const void *at, long left) {
    if (left >= WIDTH) return load(at);
    vi v = {0};
    memcpy(&v, at, left > 0 ? left : 0);
    return v;
}

/* Rows become columns, in log2(LANES) steps: step s swaps the s x s blocks beside the diagonal of every 2s x 2s block. */
#define SWAP(s)                                                                   \
    UNROLL for (int i = 0; i < LANES; i++) if (!(i & s)) {                        \
        vi a = v[i], b = v[i | s];                                                \
        v[i] = SHUFFLE(a, b, UPPER, s); v[i | s] = SHUFFLE(a, b, LOWER, s);       \
    }
INLINE void transpose(vi *v) {
    SWAP(1)
    SWAP(2)
#if LANES >= 8
    SWAP(4)
#endif
#if LANES >= 16
    SWAP(8)
#endif
}

/* Lane j of the result is the sum of the lanes of v[j]; v is used up. */
INLINE vi sums_of(vi *v) {
    UNROLL for (int half = LANES / 2; half; half /= 2)
        UNROLL for (int i = 0; i < half; i++) {
            vi a = v[2 * i], b = v[2 * i + 1];
            v[i] = SHUFFLE(a, b, EVERY_OTHER, 0) + SHUFFLE(a, b, EVERY_OTHER, 1);
        }
    return v[0];
}

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

typedef struct { float inverse, scale; int32_t zero_point; } Slice;

/* A call and its scratch memory. Rows of X come in groups of LANES, the last filled up with rows of zeros. */
typedef struct {
    const Call *call;
    int along, given, sums, scans; /* sums run along K; X is codes already; the sum of each row of W is needed; pieces of a scan */
    long block;             /* groups of X that share a walk over W */
    long count;             /* of outlier columns */
    int32_t *outliers;      /* (K,): the first `count` are their indices */
    int32_t *kept;          /* (K,), filled up to whole registers: -1, and 0 in outlier columns */
    int32_t *extremes;      /* (M, 2): the least and the largest entry of each row, in the order of `ordered` */
    Slice *slices;          /* per row */
    float *row_scale;       /* per row, and so the next two */
    int32_t *row_zero;      /* the zero point of X, plus OFFSET */
    int32_t *row_sum;       /* the sum of (code - zero point), for zeropoint weights */
    float *entries;         /* [group][outlier][LANES]: X[:, O] */
    uint8_t *codes;         /* along: rows of `row_bytes`; else groups of LANES * row_bytes, [K / 4][LANES][4] */
    long row_bytes;
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

/* The bits of LANES entries from the i-th on, widened to float32; zeros from the k-th on. */
INLINE vi widen(const void *x, long i, long k, int dtype) {
    const char *at = (const char *)x + i * size_of(dtype);
    if (dtype == FLOAT32) return load_part(at, 4 * (k - i));
    vh h = {0};
    if (k - i >= LANES) memcpy(&h, at, sizeof h);
    else memcpy(&h, at, 2 * (k - i));
    return dtype == BFLOAT16 ? (vi)(__builtin_convertvector(h, vu) << 16) : (vi)from_half(h);
}

static float entry(const void *x, long i, int dtype) { return number(BY_DTYPE(dtype, widen, x, i, i + 1)[0]); }

INLINE const void *row_of(const Call *c, long r) { return (const char *)c->x + r * c->x_stride * size_of(c->x_dtype); }

/* ---- outlier_columns ------------------------------------------------------------------------------------------------------------ */
/* Magnitudes as integers have the order of the numbers; a NaN lies above infinity. Four rows per walk along the maxima. */
INLINE void column_maxima(const Call *c, long first, long last, int32_t *largest, int dtype) {
    for (; first < last; first += 4) {
        const void *x[4];
        for (int r = 0; r < 4; r++) x[r] = row_of(c, least(first + r, last - 1));
        for (long i = 0; i < c->k; i += LANES) {
            vi most = load(largest + i);
            UNROLL for (int r = 0; r < 4; r++) most = larger(most, widen(x[r], i, c->k, dtype) & MAGNITUDE);
            store(largest + i, most);
        }
    }
}

/* The largest magnitude of column k, -1 if it has none: a NaN is no outlier, but may hide one. */
static int32_t largest_number(const Call *c, long k) {
    int32_t largest = -1;
    for (long r = 0; r < c->m; r++) {
        int32_t magnitude = bits_of(entry(row_of(c, r), k, c->x_dtype)) & MAGNITUDE;
        if (magnitude <= INFINITE && magnitude > largest) largest = magnitude;
    }
    return largest;
}

enum { SCANS = 16 }; /* pieces of the rows in a scan by several threads, each with maxima of its own */

static void scan(Layer *l, long piece) {
    const Call *c = l->call;
    long rows = (c->m + l->scans - 1) / l->scans, first = piece * rows, last = least(c->m, first + rows);
    int32_t *largest = l->kept + piece * round_up(c->k, LANES);
    memset(largest, -1, round_up(c->k, LANES) * 4);
    BY_DTYPE(c->x_dtype, column_maxima, c, first, last, largest);
}

static void outlier_columns(Layer *l, int threads) {
    const Call *c = l->call;
    long padded = round_up(c->k, LANES);
    int32_t limit = bits_of(c->limit + 0.0f); /* -0.0 becomes 0.0 */
    run(l, scan, l->scans, threads);
    for (long piece = 1; piece < l->scans; piece++)
        for (long i = 0; i < padded; i += LANES) store(l->kept + i, larger(load(l->kept + i), load(l->kept + piece * padded + i)));
    for (long i = 0; i < c->k; i++) {
        int32_t largest = l->kept[i] > INFINITE ? largest_number(c, i) : l->kept[i];
        int outlier = largest >= limit;
        l->outliers[l->count] = (int32_t)i;
        l->count += outlier;
        l->kept[i] = outlier - 1;
    }
}

/* ---- quantize ------------------------------------------------------------------------------------------------------------------- */
/* Numbers as integers in the order of the numbers, -0.0 one below 0.0; beyond the infinities lie the NaNs of either sign. */
INLINE vi ordered(vi bits) { return bits ^ ((bits >> 31) & MAGNITUDE); }
static float number_of_ordered(int32_t v) { return number(v ^ ((v >> 31) & MAGNITUDE)); }

static const float ZERO_SLICE = 0x1p-100f, LARGEST = 0x1.fffffep127f;

/* For absmax the largest magnitude is enough. */
INLINE void row_extremes(const Call *c, const int32_t *kept, long r, int32_t *extremes, int dtype) {
    const void *x = row_of(c, r);
    vi most = {0}, least_of_all = {0};
    for (long i = 0; i < c->k; i += LANES) {
        vi bits = widen(x, i, c->k, dtype);
        if (kept) bits &= load(kept + i);
        if (c->zeropoint) {
            most = larger(most, ordered(bits));
            least_of_all = ~larger(~least_of_all, ~ordered(bits));
        } else most = larger(most, bits & MAGNITUDE);
    }
    extremes[0] = extremes[1] = 0;
    for (int j = 0; j < LANES; j++) {
        if (least_of_all[j] < extremes[0]) extremes[0] = least_of_all[j];
        if (most[j] > extremes[1]) extremes[1] = most[j];
    }
}

static const float ROUND = 0x1.8p23f; /* in float32 x + ROUND has no places after the point: it is rint(x), to even, for |x| < 2**22 */

static Slice slice_of(const int32_t *extremes, int zeropoint) {
    float lo = number_of_ordered(extremes[0]), hi = number_of_ordered(extremes[1]), steps = zeropoint ? 255.0f : 127.0f;
    float extent = zeropoint ? hi - lo : hi;
    if (!(extent <= LARGEST)) return (Slice){0, NAN, 0};
    if (extent < ZERO_SLICE) return (Slice){0, 0, 0};
    Slice s = {(1.0f / extent) * steps, extent / steps, 0};
    if (zeropoint) {
        float z = ((-128.0f - lo * s.inverse) + ROUND) - ROUND;
        s.zero_point = z < -128 ? -128 : z > 127 ? 127 : (int32_t)z;
    }
    return s;
}

/* LANES codes of a row from column i on, plus OFFSET. */
INLINE vb encode(const void *x, const int32_t *kept, long i, long k, Slice s, int zeropoint, int masked, int dtype) {
    vi bits = widen(x, i, k, dtype);
    if (masked) bits &= load(kept + i);
    vi q = (vi)((vf)bits * s.inverse + ROUND) - bits_of(ROUND);
    if (zeropoint) q = ~larger(~larger(q + s.zero_point, broadcast(-128)), broadcast(~127));
    return __builtin_convertvector(q + OFFSET, vb);
}

/* Codes of a row from column i on, WIDTH to each of some blocks. */
INLINE void encode_row(const Call *c, const int32_t *kept, const void *x, long i, int blocks, Slice s, uint8_t *codes, int zeropoint, int masked, int dtype) {
    const long k = c->k;
    for (; blocks--; i += WIDTH, codes += LANES * WIDTH) {
        vb narrow;
        if (k - i >= WIDTH) UNROLL for (int j = 0; j < WIDTH; j += LANES) {
            narrow = encode(x, kept, i + j, i + WIDTH, s, zeropoint, masked, dtype);
            memcpy(codes + j, &narrow, LANES);
        } else for (int j = 0; j < WIDTH; j += LANES) {
            narrow = (vb){0};
            if (i + j < k) narrow = encode(x, kept, i + j, k, s, zeropoint, masked, dtype);
            memcpy(codes + j, &narrow, LANES);
        }
    }
}

/* Once compiled for each dtype, quantizer, and with or without outlier columns. */
#define ENCODE_ROW(name, zeropoint, masked, dtype)                                                                                          \
    static __attribute__((noinline)) void name(const Call *c, const int32_t *kept, const void *x, long i, int blocks, Slice s, uint8_t *codes) { \
        encode_row(c, kept, x, i, blocks, s, codes, zeropoint, masked, dtype);                                                              \
    }
#define ENCODE_ROWS(dtype)                                                                                \
    ENCODE_ROW(absmax_##dtype, 0, 0, dtype) ENCODE_ROW(absmax_masked_##dtype, 0, 1, dtype)                \
    ENCODE_ROW(zeropoint_##dtype, 1, 0, dtype) ENCODE_ROW(zeropoint_masked_##dtype, 1, 1, dtype)
ENCODE_ROWS(FLOAT32) ENCODE_ROWS(BFLOAT16) ENCODE_ROWS(FLOAT16)

typedef void (*EncodeRow)(const Call *, const int32_t *, const void *, long, int, Slice, uint8_t *);
static const EncodeRow encode_rows[3][2][2] = {
    [FLOAT32] = {{absmax_FLOAT32, absmax_masked_FLOAT32}, {zeropoint_FLOAT32, zeropoint_masked_FLOAT32}},
    [BFLOAT16] = {{absmax_BFLOAT16, absmax_masked_BFLOAT16}, {zeropoint_BFLOAT16, zeropoint_masked_BFLOAT16}},
    [FLOAT16] = {{absmax_FLOAT16, absmax_masked_FLOAT16}, {zeropoint_FLOAT16, zeropoint_masked_FLOAT16}},
};

/* WIDTH codes that are given, plus OFFSET. */
INLINE void take_codes(const Call *c, const void *x, long i, uint8_t *codes) {
    vi given = load_part((const char *)x + i, c->k - i);
    store(codes, OFFSET ? given ^ (vi)((vu){0} + 0x80808080u) : given);
}

/* X[:, O] of a group. */
INLINE void take_entries(Layer *l, long first, int rows, int dtype) {
    const Call *c = l->call;
    const long size = size_of(dtype);
    for (long o = 0; o < l->count; o++) {
        _Alignas(64) char column[WIDTH] = {0};
        for (int r = 0; r < rows; r++) memcpy(column + r * size, (const char *)c->x + ((first + r) * c->x_stride + l->outliers[o]) * size, size);
        store(l->entries + first * l->count + o * LANES, widen(column, 0, LANES, dtype));
    }
}

enum { CHUNK = 4 };

static void quantize_piece(Layer *l, long piece) {
    const Call *c = l->call;
    const long first = piece * LANES;
    const int32_t *kept = l->count ? l->kept : NULL;
    int rows = (int)least(LANES, c->m - first);
    int32_t total[LANES] = {0};
    for (int r = 0; r < rows && !l->given; r++) {
        int32_t extremes[2];
        if (c->per_row) {
            BY_DTYPE(c->x_dtype, row_extremes, c, kept, first + r, extremes);
            l->slices[first + r] = slice_of(extremes, c->zeropoint);
        }
    }
    for (long from = 0; from < l->row_bytes; from += CHUNK * WIDTH) {
        const int blocks = (int)least(CHUNK, (l->row_bytes - from) / WIDTH);
        /* Some blocks are written before the first is read: four stores that a load spans make it wait until they reach the cache. */
        _Alignas(64) uint8_t codes[CHUNK][LANES][WIDTH];
        for (int r = 0; r < LANES; r++) {
            const Slice s = r < rows && !l->given ? l->slices[first + r] : (Slice){0, 0, 0};
            if (r < rows && l->given)
                for (int b = 0; b < blocks; b++) take_codes(c, row_of(c, first + r), from + b * WIDTH, codes[b][r]);
            else if (s.inverse == 0) /* no row, or codes of 0: an infinity times 0 would be none */
                for (int b = 0; b < blocks; b++) memset(codes[b][r], OFFSET, WIDTH);
            else encode_rows[c->x_dtype][c->zeropoint != 0][kept != NULL](c, kept, row_of(c, first + r), from, blocks, s, codes[0][r]);
        }
        for (int b = 0; b < blocks; b++) {
            const long i = from + b * WIDTH, width = least(WIDTH, c->k - i);
            for (int r = 0; r < rows && (c->zeropoint || c->x_codes); r++)
                for (long j = 0; j < width; j++) {
                    const int8_t code = (int8_t)(codes[b][r][j] - OFFSET);
                    total[r] += code;
                    if (c->x_codes) c->x_codes[(first + r) * c->k + i + j] = code;
                }
            if (!l->codes) continue;
            if (l->along)
                for (int r = 0; r < rows; r++) memcpy(l->codes + (first + r) * l->row_bytes + i, codes[b][r], WIDTH);
            else {
                vi v[LANES];
                UNROLL for (int r = 0; r < LANES; r++) v[r] = load(codes[b][r]);
                transpose(v);
                UNROLL for (int r = 0; r < LANES; r++) store(l->codes + first * l->row_bytes + i * LANES + r * WIDTH, v[r]);
            }
        }
    }
    for (int r = 0; r < LANES; r++) {
        Slice s = r < rows && !l->given ? l->slices[first + r] : (Slice){0, 0, 0};
        l->row_scale[first + r] = s.scale;
        l->row_zero[first + r] = s.zero_point + OFFSET;
        l->row_sum[first + r] = (int32_t)(total[r] - c->k * s.zero_point);
    }
    if (l->entries) BY_DTYPE(c->x_dtype, take_entries, l, first, rows);
}

static void extremes_piece(Layer *l, long piece) {
    const Call *c = l->call;
    for (long r = piece * LANES; r < least(c->m, (piece + 1) * LANES); r++)
        BY_DTYPE(c->x_dtype, row_extremes, c, l->count ? l->kept : NULL, r, l->extremes + 2 * r);
}

static void quantize(Layer *l, int threads) {
    const Call *c = l->call;
    long groups = round_up(c->m, LANES) / LANES;
    if (!c->per_row && !l->given) { /* one slice: its range first */
        run(l, extremes_piece, groups, threads);
        int32_t extremes[2] = {0, 0};
        for (long r = 0; r < c->m; r++) {
            if (l->extremes[2 * r] < extremes[0]) extremes[0] = l->extremes[2 * r];
            if (l->extremes[2 * r + 1] > extremes[1]) extremes[1] = l->extremes[2 * r + 1];
        }
        for (long r = 0; r < c->m; r++) l->slices[r] = slice_of(extremes, c->zeropoint);
    }
    run(l, quantize_piece, groups, threads);
}

/* ---- rescale, outlier_product: what both kinds of tile do with their sums ------------------------------------------------------- */
INLINE float weight_scale(const Call *c, long n) {
    long slice = c->per_weight_row ? n : 0;
    if (!c->absmax) return c->scale[slice];
    float absmax = c->absmax[slice]; /* the rules of slice_of */
    return absmax < ZERO_SLICE ? 0 : absmax <= LARGEST ? absmax / 127.0f : NAN;
}

INLINE int32_t weight_zero(const Call *c, long n) { return c->zero_point ? c->zero_point[c->per_weight_row ? n : 0] : 0; }

/* Both of `width` rows from the n-th on. */
static void weight_scales(const Call *c, long n, long width, vf *scale, vi *zero) {
    float scales[LANES] = {0};
    int32_t zeros[LANES] = {0};
    for (long j = 0; j < width; j++) { scales[j] = weight_scale(c, n + j); zeros[j] = weight_zero(c, n + j); }
    *scale = load_floats(scales);
    *zero = load(zeros);
}

/* What row n of W has in `some` outlier columns, to every step-th place. */
static void outlier_weights(const Call *c, long n, const int32_t *columns, long some, float scale, int32_t zero, float *to, long step) {
    if (c->float_weight)
        for (long o = 0; o < some; o++) to[o * step] = entry(c->float_weight, n * c->float_stride + columns[o], c->float_dtype);
    else {
        const int8_t *w = c->codes + n * c->codes_stride;
        for (long o = 0; o < some; o++) to[o * step] = (float)(w[columns[o]] - zero) * scale;
    }
}

enum { SOME = 64 }; /* outlier columns at a time */

/* The sum of (Xq - zx)(Wq - zw) as float32, rounded once: acc - zx * sum Wq - zw * sum (Xq - zx). From K = 33,026 on it may leave
   int32. */
INLINE vf corrected(const Layer *l, vi acc, vi x_zero, vi x_sum, vi w_zero, vi w_sum) {
    const Call *c = l->call;
    if (!c->zeropoint || c->k * 255 * 255 <= INT32_MAX) {
        vu exact = (vu)acc - (vu)x_zero * (vu)w_sum;
        if (c->zero_point) exact -= (vu)w_zero * (vu)x_sum;
        return __builtin_convertvector((vi)exact, vf);
    }
    vf result;
    for (int j = 0; j < LANES; j++) {
        int32_t a = (int32_t)((uint32_t)acc[j] - (uint32_t)OFFSET * (uint32_t)w_sum[j]);
        result[j] = (float)(a - (int64_t)(x_zero[j] - OFFSET) * w_sum[j] - (int64_t)w_zero[j] * x_sum[j]);
    }
    return result;
}

/* LANES results as entries of y from the i-th on; only `left` of them. */
static void put(void *y, long i, vi v, long left, int dtype) {
    char *at = (char *)y + i * size_of(dtype);
    if (dtype == FLOAT32 || dtype == INT32) {
        if (left >= LANES) store(at, v);
        else memcpy(at, &v, 4 * left);
        return;
    }
    vh h;
    if (dtype == FLOAT16) h = to_half((vf)v);
    else { /* to nearest, ties to even; not vcvtneps2bf16, which takes subnormal numbers for zero */
        vu u = (vu)v, rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
        vu nan = (vu)((v & MAGNITUDE) > INFINITE);
        h = __builtin_convertvector((rounded & ~nan) | (0x7fc0 & nan), vh);
    }
    if (left >= LANES) memcpy(at, &h, sizeof h);
    else memcpy(at, &h, 2 * left);
}

/* ---- accumulate, up to 8 rows --------------------------------------------------------------------------------------------------- */
/* Sums along K of `rows` rows of X with `columns` rows of W, LANES partial sums each, to partial[row][j ..]. A further row, of ones,
   gives the sums of W. Pairs that are few get several sums each (depth), since an instruction starts before the last one has ended. */
INLINE void dots(const Layer *l, const uint8_t *x, const int8_t *w, int rows, int columns, int depth, int sums, vi (*partial)[LANES], long j) {
    vi s[FEW + 1][2][4];
    const operand ones = operand_of(broadcast(0x01010101));
    long k = l->call->k, stride = l->call->codes_stride, i = 0;
    UNROLL for (int r = 0; r <= rows; r++)
        UNROLL for (int c = 0; c < columns; c++)
            UNROLL for (int d = 0; d < depth; d++) s[r][c][d] = (vi){0};
#define STEP(d, loaded)                                                                                      \
    {                                                                                                        \
        operand wv[2];                                                                                       \
        UNROLL for (int c = 0; c < columns; c++) wv[c] = operand_of(loaded);                                 \
        UNROLL for (int r = 0; r < rows; r++) {                                                              \
            operand xv = operand_of(load(x + r * l->row_bytes + i + d * WIDTH));                             \
            UNROLL for (int c = 0; c < columns; c++) s[r][c][d] = dot(s[r][c][d], xv, wv[c]);                \
        }                                                                                                    \
        if (sums) UNROLL for (int c = 0; c < columns; c++) s[rows][c][d] = dot(s[rows][c][d], ones, wv[c]);  \
    }
    for (; i + depth * WIDTH <= k; i += depth * WIDTH) {
        UNROLL for (int c = 0; c < columns; c++) /* the next rows: the processor's own prefetching ends with each page of 4096 bytes */
            UNROLL for (int d = 0; d < depth; d++) __builtin_prefetch(w + (columns + c) * stride + i + d * WIDTH);
        UNROLL for (int d = 0; d < depth; d++) STEP(d, load(w + c * stride + i + d * WIDTH))
    }
    for (; i < k; i += WIDTH) STEP(0, load_part(w + c * stride + i, k - i))
#undef STEP
    UNROLL for (int r = 0; r < rows + sums; r++)
        UNROLL for (int c = 0; c < columns; c++) {
            vi total = s[r][c][0];
            UNROLL for (int d = 1; d < depth; d++) total += s[r][c][d];
            partial[r][j + c] = total;
        }
}

/* The same with `width` rows of W. One or two rows of X: one row of W after the other, as memory is read fastest. */
INLINE void dots_of(const Layer *l, const uint8_t *x, const int8_t *w, int rows, long width, vi (*partial)[LANES]) {
    const int half = WIDE * TALL <= 16, depth = rows == 1 ? (half ? 2 : 4) : rows <= 4 && !half ? 2 : 1;
    const long stride = l->call->codes_stride;
    long j = 0;
    if (rows > 2) for (; j + 2 <= width; j += 2) dots(l, x, w + j * stride, rows, 2, depth, OFFSET != 0, partial, j);
    for (; j < width; j++) dots(l, x, w + j * stride, rows, 1, depth, OFFSET != 0, partial, j);
}

typedef void (*Dots)(const Layer *, const uint8_t *, const int8_t *, long, vi (*)[LANES]);
#define DOTS(rows)                                                                                                             \
    static void dots##rows(const Layer *l, const uint8_t *x, const int8_t *w, long width, vi (*partial)[LANES]) {              \
        dots_of(l, x, w, rows, width, partial);                                                                                \
    }
DOTS(1) DOTS(2) DOTS(3) DOTS(4)
#if LANES != 8
DOTS(5) DOTS(6) DOTS(7) DOTS(8)
static const Dots dots_by_rows[] = {NULL, dots1, dots2, dots3, dots4, dots5, dots6, dots7, dots8};
#else
static const Dots dots_by_rows[] = {NULL, dots1, dots2, dots3, dots4};
#endif

static int32_t row_sum(const int8_t *w, long k) {
    vi s[4] = {{0}, {0}, {0}, {0}};
    const operand ones = operand_of(broadcast(0x01010101));
    long i = 0;
    for (; i + 4 * WIDTH <= k; i += 4 * WIDTH)
        UNROLL for (int d = 0; d < 4; d++) s[d] = dot(s[d], ones, operand_of(load(w + i + d * WIDTH)));
    for (; i < k; i += WIDTH) s[0] = dot(s[0], ones, operand_of(load_part(w + i, k - i)));
    vi total = s[0] + s[1] + s[2] + s[3];
    int32_t sum = 0;
    for (int j = 0; j < LANES; j++) sum += total[j];
    return sum;
}

/* Rows first .. first + rows of X with rows begin .. end of W. */
static void along(const Layer *l, long first, int rows, long begin, long end) {
    const Call *c = l->call;
    const uint8_t *x = l->codes + first * l->row_bytes;
    vi partial[FEW + 1][LANES];
    memset(partial, 0, sizeof partial);
    for (long n = begin; n < end; n += LANES) {
        const int8_t *w = c->codes + n * c->codes_stride;
        const long width = least(LANES, end - n);
        vi total = {0}, zero = {0};
        vf scale = {0};
        dots_by_rows[rows](l, x, w, width, partial);
        if (OFFSET) total = sums_of(partial[rows]);
        else if (l->sums) for (long j = 0; j < width; j++) total[j] = row_sum(w + j * c->codes_stride, c->k);
        if (!l->given) weight_scales(c, n, width, &scale, &zero);
        vf y[FEW];
        for (int r = 0; r < rows; r++) {
            vi acc = sums_of(partial[r]);
            long row = first + r;
            if (l->given) y[r] = (vf)((vu)acc - (vu)total * OFFSET);
            else y[r] = corrected(l, acc, broadcast(l->row_zero[row]), broadcast(l->row_sum[row]), zero, total) * l->row_scale[row] * scale;
        }
        for (long from = 0; from < l->count; from += SOME) {
            const long some = least(SOME, l->count - from);
            float weights[SOME][LANES];
            for (long j = 0; j < width; j++) outlier_weights(c, n + j, l->outliers + from, some, scale[j], zero[j], weights[0] + j, LANES);
            for (long o = 0; o < some; o++)
                for (int r = 0; r < rows; r++) {
                    const float *x = l->entries + ((first + r) / LANES * l->count + from + o) * LANES;
                    y[r] = multiply_add(load_floats(weights[o]), broadcast_float(x[(first + r) % LANES]), y[r]);
                }
        }
        for (int r = 0; r < rows; r++) {
            if (c->bias) y[r] += (vf)BY_DTYPE(c->bias_dtype, widen, c->bias, n, end);
            put(c->y, (first + r) * c->n + n, (vi)y[r], width, l->given ? INT32 : c->x_dtype);
        }
    }
}

enum { ALONG = 8, PIECE = 1 << 16 }; /* PIECE: bytes of W per piece, several microseconds of work */

static void along_piece(Layer *l, long piece) {
    const Call *c = l->call;
    long rows = round_up(PIECE / (c->k + 1) + 1, LANES), begin = piece * rows, end = least(c->n, begin + rows);
    for (long first = 0; first < c->m; first += FEW) along(l, first, (int)least(FEW, c->m - first), begin, end);
}

/* ---- accumulate, more rows ------------------------------------------------------------------------------------------------------ */
enum { STRIPE = 48 }; /* rows of W whose results are turned around together */

/* What the results need of a row of W beside its sums; `weights`: of its first outlier columns. */
typedef struct { float scale, bias, weights[SOME]; int32_t zero, total; } Row;

static void prepare(const Layer *l, long n, int height, Row *row) {
    const Call *c = l->call;
    for (; height--; n++, row++) {
        row->total = OFFSET || l->sums ? row_sum(c->codes + n * c->codes_stride, c->k) : 0;
        if (l->given) continue;
        row->scale = weight_scale(c, n);
        row->zero = weight_zero(c, n);
        row->bias = c->bias ? entry(c->bias, n, c->bias_dtype) : 0;
        outlier_weights(c, n, l->outliers, least(SOME, l->count), row->scale, row->zero, row->weights, 1);
    }
}

/* The sums of a row of W with `vectors` groups become results. */
INLINE void finish_row(const Layer *l, const vi *sums, long group, int vectors, long n, const Row *row, vi *results) {
    const Call *c = l->call;
    vf y[WIDE];
    UNROLL for (int v = 0; v < vectors; v++) {
        const long r = (group + v) * LANES;
        vf acc = corrected(l, sums[v], load(l->row_zero + r), load(l->row_sum + r), broadcast(row->zero), broadcast(row->total));
        y[v] = acc * load_floats(l->row_scale + r) * row->scale;
    }
    for (long from = 0; from < l->count; from += SOME) {
        const long some = least(SOME, l->count - from);
        float others[SOME];
        if (from) outlier_weights(c, n, l->outliers + from, some, row->scale, row->zero, others, 1);
        const float *weights = from ? others : row->weights, *x = l->entries + (group * l->count + from) * LANES;
        for (long o = 0; o < some; o++, x += LANES) {
            const vf weight = broadcast_float(weights[o]);
            UNROLL for (int v = 0; v < vectors; v++) y[v] = multiply_add(weight, load_floats(x + v * l->count * LANES), y[v]);
        }
    }
    UNROLL for (int v = 0; v < vectors; v++) results[v] = (vi)(c->bias ? y[v] + row->bias : y[v]);
}

/* A tile of sums, height x vectors, becomes results: tile[row of W][vector][lane]. */
static __attribute__((noinline)) void finish(
    const Layer *l, vi (*sums)[WIDE], long group, int vectors, long n, int height, const Row *row, vi (*tile)[WIDE]) {
    for (; height--; n++, sums++, row++, tile++) {
        if (l->given)
            for (int v = 0; v < vectors; v++) (*tile)[v] = (vi)((vu)(*sums)[v] - (uint32_t)row->total * (uint32_t)OFFSET);
        else if (vectors == WIDE) finish_row(l, *sums, group, WIDE, n, row, *tile);
        else for (int v = 0; v < vectors; v++) finish_row(l, *sums + v, group + v, 1, n, row, *tile + v);
    }
}

/* Groups group .. of X with rows n .. of W. With few groups each sum is split in several (depth), as in dots. */
INLINE void tile_sums(const Layer *l, long group, long n, int vectors, int height, int depth, const Row *rows, vi (*tile)[WIDE]) {
    const Call *c = l->call;
    long quads = c->k / 4, step = l->row_bytes * LANES, stride = c->codes_stride, i = 0;
    const uint8_t *x = l->codes + group * step;
    const int8_t *w = c->codes + n * stride;
    vi s[TALL][WIDE];
    UNROLL for (int row = 0; row < height; row++)
        UNROLL for (int v = 0; v < vectors * depth; v++) s[row][v] = (vi){0};
#define STEP(d, first)                                                                                                   \
    {                                                                                                                    \
        operand xv[WIDE];                                                                                                \
        UNROLL for (int v = 0; v < vectors; v++) xv[v] = operand_of(load(x + v * step + (i + d) * WIDTH));               \
        UNROLL for (int row = 0; row < height; row++) {                                                                  \
            int32_t quad = 0;                                                                                            \
            memcpy(&quad, w + row * stride + (i + d) * 4, first);                                                        \
            operand wv = operand_of(broadcast(quad));                                                                    \
            UNROLL for (int v = 0; v < vectors; v++) s[row][v * depth + d] = dot(s[row][v * depth + d], xv[v], wv);      \
        }                                                                                                                \
    }
    for (; i + depth <= quads; i += depth) {
        if (i % 16 < depth) /* the next rows of W, a cache line of each */
            UNROLL for (int row = 0; row < height; row++) __builtin_prefetch(w + (height + row) * stride + i * 4);
        UNROLL for (int d = 0; d < depth; d++) STEP(d, 4)
    }
    for (; i < quads; i++) STEP(0, 4)
    if (c->k % 4) STEP(0, c->k % 4)
#undef STEP
    vi sums[TALL][WIDE];
    UNROLL for (int row = 0; row < height; row++)
        UNROLL for (int v = 0; v < vectors; v++) {
            vi total = s[row][v * depth];
            UNROLL for (int d = 1; d < depth; d++) total += s[row][v * depth + d];
            sums[row][v] = total;
        }
    finish(l, sums, group, vectors, n, height, rows, tile);
}

/* Compiled once for each width of a tile. */
static __attribute__((noinline)) void tall_tile(const Layer *l, long group, long n, int vectors, const Row *rows, vi (*tile)[WIDE]) {
    switch (vectors) {
        case 1: tile_sums(l, group, n, 1, TALL, 2, rows, tile); break;
        case 2: tile_sums(l, group, n, 2, TALL, 1, rows, tile); break;
#if LANES != 8 && (LANES == 16 || defined(__ARM_FEATURE_DOTPROD))
        case 3: tile_sums(l, group, n, 3, TALL, 1, rows, tile); break;
        case 4: tile_sums(l, group, n, 4, TALL, 1, rows, tile); break;
#endif
    }
}

static __attribute__((noinline)) void low_tile(const Layer *l, long group, long n, int vectors, const Row *row, vi (*tile)[WIDE]) {
    for (int v = 0; v < vectors; v++) {
        vi one[1][WIDE];
        tile_sums(l, group + v, n, 1, 1, 2, row, one);
        tile[0][v] = one[0][0];
    }
}

static void turn_around(const Layer *l, vi (*tile)[WIDE], long group, int vectors, long n, long width) {
    const Call *c = l->call;
    for (int v = 0; v < vectors; v++)
        for (long j = 0; j < width; j += LANES) {
            vi rows[LANES];
            UNROLL for (int i = 0; i < LANES; i++) rows[i] = tile[j + i][v];
            transpose(rows);
            long first = (group + v) * LANES, count = least(LANES, c->m - first);
            for (long i = 0; i < count; i++) put(c->y, (first + i) * c->n + n + j, rows[i], width - j, l->given ? INT32 : c->x_dtype);
        }
}

/* A block of groups with a part of the rows of W: stripe by stripe, of which W is in the second cache for all groups but the first. */
enum { PART = 8 * STRIPE };
static long parts_of(const Call *c) { return (c->n + PART - 1) / PART; }

static void across_piece(Layer *l, long piece) {
    const Call *c = l->call;
    const long groups = round_up(c->m, LANES) / LANES, first = piece / parts_of(c) * l->block, last = least(groups, first + l->block);
    const long begin = piece % parts_of(c) * PART, end = least(c->n, begin + PART);
    vi tile[STRIPE][WIDE];
    Row rows[STRIPE];
    memset(tile, 0, sizeof tile);
    for (long n = begin; n < end; n += STRIPE) {
        const long width = least(STRIPE, end - n);
        for (long group = first; group < last; group += WIDE) {
            const int vectors = (int)least(WIDE, last - group);
            for (long j = 0, height; j < width; j += height) {
                height = j + TALL <= width ? TALL : 1;
                if (group == first) prepare(l, n + j, (int)height, rows + j); /* here, where the last tile has fetched these rows */
                if (height > 1) tall_tile(l, group, n + j, vectors, rows + j, tile + j);
                else low_tile(l, group, n + j, vectors, rows + j, tile + j);
            }
            turn_around(l, tile, group, vectors, n, width);
        }
    }
}

static void accumulate(Layer *l, int threads) {
    const Call *c = l->call;
    if (l->along) {
        long rows = round_up(PIECE / (c->k + 1) + 1, LANES);
        run(l, along_piece, (c->n + rows - 1) / rows, threads);
        return;
    }
    /* As many rows of X as leave half of a second cache of 1 MiB to W, in whole tiles, up to 256; fewer where threads would go idle. */
    const long groups = round_up(c->m, LANES) / LANES, least_block = 64 / LANES;
    l->block = least(256, (1 << 19) / (l->row_bytes + 1) / 64 * 64) / LANES;
    if (l->block < least_block || (threads > 1 && parts_of(c) * groups < 4 * threads * l->block)) l->block = least_block;
    run(l, across_piece, parts_of(c) * ((groups + l->block - 1) / l->block), threads);
}

/* ---- the calls: 0, or 1 where there is no memory -------------------------------------------------------------------------------- */
enum { QUANTIZE = 1, MULTIPLY = 2, GIVEN = 4 };

/* Threads are worth waking for some 10 microseconds of work. */
static int threads_for(const Call *c, double work) { return work > 4e5 ? c->threads : 1; }

static int layer_of(const Call *c, int steps) {
    Layer l = {.call = c, .along = c->m <= ALONG, .given = steps & GIVEN, .sums = c->zeropoint};
    long rows = round_up(c->m, LANES), columns = round_up(c->k, LANES), detect = !(steps & GIVEN) && c->limit < INFINITY;
    /* Along K one more register apart: rows a multiple of 4096 bytes apart would share a set of the cache. */
    l.row_bytes = round_up(c->k, WIDTH) + (l.along ? WIDTH : 0);
    int threads = threads_for(c, (double)c->m * c->k * (steps & MULTIPLY ? (double)c->n : 16));
    l.scans = threads > 1 && c->m >= 4 * SCANS ? SCANS : 1;
    size_t sizes[] = {
        detect ? 4 * columns * l.scans : 0, detect ? 4 * columns + 4 : 0, 8 * rows, sizeof(Slice) * rows,
        4 * rows, 4 * rows, 4 * rows, steps & MULTIPLY ? rows * l.row_bytes : 0,
    };
    enum { ARRAYS = sizeof sizes / sizeof *sizes };
    size_t size = 0;
    for (int i = 0; i < ARRAYS; i++) size += round_up(sizes[i], 64);
    char *memory = NULL, *at[ARRAYS];
    if (posix_memalign((void **)&memory, 64, size + 64)) return 1;
    for (size_t i = 0, used = 0; i < ARRAYS; used += round_up(sizes[i++], 64)) at[i] = memory + used;
    l.kept = (void *)at[0]; l.outliers = (void *)at[1]; l.extremes = (void *)at[2]; l.slices = (void *)at[3];
    l.row_scale = (void *)at[4]; l.row_zero = (void *)at[5]; l.row_sum = (void *)at[6];
    l.codes = steps & MULTIPLY ? (void *)at[7] : NULL;

    if (detect) outlier_columns(&l, threads);
    if (c->columns) for (long i = 0; i < c->k; i++) c->columns[i] = (uint8_t)(l.kept[i] + 1);
    if (l.count && steps & MULTIPLY && posix_memalign((void **)&l.entries, 64, rows * l.count * 4)) { free(memory); return 1; }
    if (steps & (QUANTIZE | GIVEN)) quantize(&l, threads);
    if (c->x_scale)
        for (long r = 0; r < (c->per_row ? c->m : 1); r++) {
            Slice s = c->m ? l.slices[r] : (Slice){0, 0, 0};
            c->x_scale[r] = s.scale;
            if (c->x_zero_point) c->x_zero_point[r] = s.zero_point;
        }
    if (steps & MULTIPLY) accumulate(&l, threads);
    free(l.entries);
    free(memory);
    return 0;
}

int llm_int8_linear(const Call *c) { return layer_of(c, QUANTIZE | MULTIPLY); }
int llm_int8_quantize(const Call *c) { return layer_of(c, QUANTIZE); }
int llm_int8_outlier_columns(const Call *c) { return layer_of(c, 0); }
int llm_int8_matmul(const Call *c) { return layer_of(c, GIVEN | MULTIPLY); }
const char *llm_int8_instructions(void) { return INSTRUCTIONS; }
long llm_int8_call_size(void) { return sizeof(Call); }
