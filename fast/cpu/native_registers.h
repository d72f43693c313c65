/* Instruction sets, and registers as GCC's vector types.

   A section of a few lines says what differs between processors; the rest of this file, and of native.c, is the same for all. */
#ifndef NATIVE_REGISTERS_H
#define NATIVE_REGISTERS_H
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 64") /* an array of registers stays in registers only where every index is a constant */
#endif

/* ---- what differs between processors ------------------------------------------------------------------------------------------- */
/* LANES   int32 numbers in a register
   REGISTERS   how many there are
   OFFSET  what is added to a code of W: instructions that multiply unsigned by signed bytes want code + 128. It is taken off again
           as OFFSET * sum(X[m]), modulo 2**32 and so exactly
   TALL, WIDE  the tile. TALL * WIDE sums, WIDE operands of X and one of W have to find room in 32 registers, or 16. Taller tiles
           would read less, but the rows of W that they walk along often lie a multiple of 4096 bytes apart, so in one and the same
           set of the first cache, which has 8 places or 12
   FEW     the most rows of X in one sum along K, for the same reason
   MATRIX  whether there are matrix registers, for the tiles (native_tiles.h); 0 where a section does not say */
#if defined(__AVX512VNNI__)
#include <immintrin.h>
#if defined(__AMX_INT8__)
#define INSTRUCTIONS "amx_int8"
#define MATRIX 1
#else
#define INSTRUCTIONS "avx512_vnni"
#endif
#define LANES 16
#define REGISTERS 32
enum { OFFSET = 128, TALL = 6, WIDE = 4, FEW = 8 };
#elif defined(__AVXVNNI__)
#include <immintrin.h>
#define INSTRUCTIONS "avx_vnni"
#define LANES 8
#define REGISTERS 16
enum { OFFSET = 128, TALL = 6, WIDE = 2, FEW = 4 };
#elif defined(__AVX2__)
#include <immintrin.h>
#define INSTRUCTIONS "avx2"
#define LANES 8
#define REGISTERS 16
enum { OFFSET = 0, TALL = 4, WIDE = 2, FEW = 4 };
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#define INSTRUCTIONS "neon_dotprod"
#define LANES 4
#define REGISTERS 32
enum { OFFSET = 0, TALL = 6, WIDE = 4, FEW = 8 };
#else
#define INSTRUCTIONS "portable"
#define LANES 4
#define REGISTERS 16
enum { OFFSET = 0, TALL = 4, WIDE = 2, FEW = 4 };
#endif
#ifndef MATRIX
#define MATRIX 0
#endif
enum { WIDTH = 4 * LANES }; /* bytes of a register */

typedef float vf __attribute__((vector_size(WIDTH)));
typedef int32_t vi __attribute__((vector_size(WIDTH)));
typedef uint32_t vu __attribute__((vector_size(WIDTH))); /* where a sum may wrap around */
typedef uint16_t vh __attribute__((vector_size(WIDTH / 2)));
typedef int8_t vb __attribute__((vector_size(LANES)));
typedef int16_t vs __attribute__((vector_size(WIDTH))); /* magnitudes of 16-bit floats */

/* dot adds to each int32 the product of the 4 bytes of x and the 4 of w that lie in its lane; operand_of is what can be prepared for
   it of one side, weight_of of W's, its codes plus OFFSET. larger is the maximum per lane; multiply_add is a * b + c, rounded once where there is an instruction for it, and
   used only where the contract leaves the rounding open. */
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
typedef vi operand;
INLINE operand operand_of(vi bytes) { return bytes; }
INLINE vi dot(vi sum, operand x, operand w) {
    /* Not the intrinsic, with which GCC 12 moves each sum to another register and back, and spills some. */
#if LANES == 16
    __asm__("vpdpbusd %1, %2, %0" : "+v"(sum) : "v"(x), "v"(w));
#else
    __asm__("%{vex%} vpdpbusd %1, %2, %0" : "+x"(sum) : "x"(x), "x"(w));
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

INLINE operand weight_of(vi codes) { return operand_of(OFFSET ? codes ^ (vi)((vu){0} + 0x80808080u) : codes); }

#if LANES == 16
INLINE vi larger(vi a, vi b) { return (vi)_mm512_max_epi32((__m512i)a, (__m512i)b); }
INLINE vs larger_halves(vs a, vs b) { return (vs)_mm512_max_epi16((__m512i)a, (__m512i)b); }
INLINE vf multiply_add(vf a, vf b, vf c) { return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
INLINE vf from_half(vh h) { return (vf)_mm512_cvtph_ps((__m256i)h); }
INLINE vh to_half(vf f) { return (vh)_mm512_cvtps_ph((__m512)f, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
#elif LANES == 8
INLINE vi larger(vi a, vi b) { return (vi)_mm256_max_epi32((__m256i)a, (__m256i)b); }
INLINE vs larger_halves(vs a, vs b) { return (vs)_mm256_max_epi16((__m256i)a, (__m256i)b); }
INLINE vf multiply_add(vf a, vf b, vf c) { return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
INLINE vf from_half(vh h) { return (vf)_mm256_cvtph_ps((__m128i)h); }
INLINE vh to_half(vf f) { return (vh)_mm256_cvtps_ph((__m256)f, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
#elif defined(__ARM_FEATURE_DOTPROD)
INLINE vi larger(vi a, vi b) { return (vi)vmaxq_s32((int32x4_t)a, (int32x4_t)b); }
INLINE vs larger_halves(vs a, vs b) { return (vs)vmaxq_s16((int16x8_t)a, (int16x8_t)b); }
INLINE vf multiply_add(vf a, vf b, vf c) { return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
INLINE vf from_half(vh h) { return (vf)vcvt_f32_f16((float16x4_t)h); }
INLINE vh to_half(vf f) { return (vh)vcvt_f16_f32((float32x4_t)f); }
#else
INLINE vi larger(vi a, vi b) { return (a & (a > b)) | (b & ~(a > b)); }
INLINE vs larger_halves(vs a, vs b) { return (a & (a > b)) | (b & ~(a > b)); }
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

#if MATRIX
/* Eight registers of 16 lines of 64 bytes. A product adds to each of the 16 x 16 sums of one those of a line of the second, 64 codes, with
   a column of the third, which has 4 codes in each line. A thread has them from matrices_begin to matrices_end, and is switched to and fro
   with 8 KiB more in between. The compiler knows them by number alone. */
enum { LINES = 16, LINE = 64 };
typedef struct { uint8_t palette, start, unused[14]; uint16_t bytes[16]; uint8_t lines[16]; } Shapes; /* what ldtilecfg reads */

INLINE void matrices_begin(void) {
    static const Shapes whole = {.palette = 1, .bytes = {LINE, LINE, LINE, LINE, LINE, LINE, LINE, LINE}, .lines = {16, 16, 16, 16, 16, 16, 16, 16}};
    __asm__ volatile("ldtilecfg %0" : : "m"(whole));
}
INLINE void matrices_end(void) { __asm__ volatile("tilerelease"); }
#define MATRIX_CLEAR(number) __asm__ volatile("tilezero %%tmm" #number : :)
#define MATRIX_LOAD(number, at, apart) __asm__ volatile("tileloadd (%0,%1), %%tmm" #number : : "r"(at), "r"((long)(apart)) : "memory")
#define MATRIX_STORE(number, at, apart) __asm__ volatile("tilestored %%tmm" #number ", (%0,%1)" : : "r"(at), "r"((long)(apart)) : "memory")
#define MATRIX_PRODUCT(sum, w, x) __asm__ volatile("tdpbssd %%tmm" #x ", %%tmm" #w ", %%tmm" #sum : :)
#else
INLINE void matrices_begin(void) {}
INLINE void matrices_end(void) {}
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
/* Lane `lane` of a shuffle of a and b. In each block of 4 lanes: one of a, one of b, one of a, ..., from the first or the third on;
   two of a, two of b, likewise. And of all blocks: every other of a, then of b. */
#define ONE_OF_EACH(lane, first) (((lane) & ~3) + ((lane) & 3) / 2 + (first) + ((lane) & 1 ? LANES : 0))
#define TWO_OF_EACH(lane, first) (((lane) & ~3) + ((lane) & 1) + (first) + ((lane) & 2 ? LANES : 0))
#define BLOCK_OF_EACH(lane, first) ((2 * ((lane) / 4 % (LANES / 8)) + (first)) * 4 + (lane) % 4 + ((lane) >= LANES / 2 ? LANES : 0))

/* The last byte of each lane, the last half; and halves as whole lanes. GCC 12 makes several instructions of what is one. */
#if LANES == 16
INLINE vb last_bytes(vi v) { return (vb)_mm512_cvtepi32_epi8((__m512i)v); }
INLINE vh last_halves(vu v) { return (vh)_mm512_cvtepi32_epi16((__m512i)v); }
INLINE vu from_halves(vh h) { return (vu)_mm512_cvtepu16_epi32((__m256i)h); }
#else
INLINE vb last_bytes(vi v) { return __builtin_convertvector(v, vb); }
INLINE vh last_halves(vu v) { return __builtin_convertvector(v, vh); }
INLINE vu from_halves(vh h) { return __builtin_convertvector(h, vu); }
#endif

INLINE vi load(const void *at) { vi v; memcpy(&v, at, sizeof v); return v; }
INLINE vf load_floats(const float *at) { return (vf)load(at); }
INLINE void store(void *at, vi v) { memcpy(at, &v, sizeof v); }
INLINE vi broadcast(int32_t value) { return (vi){0} + value; }
INLINE vf broadcast_float(float value) { return (vf)broadcast(*(int32_t *)memcpy(&(int32_t){0}, &value, 4)); }
INLINE long least(long a, long b) { return a < b ? a : b; }
INLINE long round_up(long size, long step) { return (size + step - 1) / step * step; }

/* A whole line of 64 bytes on its way past the caches: it need not be read before. Other threads see it after lines_done. */
#if LANES == 16
INLINE void store_line(void *at, vi v) { _mm512_stream_si512(at, (__m512i)v); }
INLINE void lines_done(void) { _mm_sfence(); }
#else
INLINE void store_line(void *at, vi v) { store(at, v); }
INLINE void lines_done(void) {}
#endif

/* The first `left` bytes, zeros after them; nothing is read beyond. */
INLINE vi load_part(const void *at, long left) {
    if (left >= WIDTH) return load(at);
    vi v = {0};
    memcpy(&v, at, left > 0 ? left : 0);
    return v;
}

/* Rows become columns: first in each block of 4 x 4, then the blocks. */
INLINE void transpose(vi *v) {
    UNROLL for (int i = 0; i < LANES; i += 4) {
        vi a = SHUFFLE(v[i], v[i + 1], ONE_OF_EACH, 0), b = SHUFFLE(v[i], v[i + 1], ONE_OF_EACH, 2);
        vi c = SHUFFLE(v[i + 2], v[i + 3], ONE_OF_EACH, 0), d = SHUFFLE(v[i + 2], v[i + 3], ONE_OF_EACH, 2);
        v[i] = SHUFFLE(a, c, TWO_OF_EACH, 0); v[i + 1] = SHUFFLE(a, c, TWO_OF_EACH, 2);
        v[i + 2] = SHUFFLE(b, d, TWO_OF_EACH, 0); v[i + 3] = SHUFFLE(b, d, TWO_OF_EACH, 2);
    }
#if LANES == 8
    UNROLL for (int i = 0; i < 4; i++) {
        vi a = v[i], b = v[i + 4];
        v[i] = SHUFFLE(a, b, BLOCK_OF_EACH, 0); v[i + 4] = SHUFFLE(a, b, BLOCK_OF_EACH, 1);
    }
#elif LANES == 16
    UNROLL for (int i = 0; i < 4; i++) {
        vi a = SHUFFLE(v[i], v[i + 4], BLOCK_OF_EACH, 0), b = SHUFFLE(v[i], v[i + 4], BLOCK_OF_EACH, 1);
        vi c = SHUFFLE(v[i + 8], v[i + 12], BLOCK_OF_EACH, 0), d = SHUFFLE(v[i + 8], v[i + 12], BLOCK_OF_EACH, 1);
        v[i] = SHUFFLE(a, c, BLOCK_OF_EACH, 0); v[i + 8] = SHUFFLE(a, c, BLOCK_OF_EACH, 1);
        v[i + 4] = SHUFFLE(b, d, BLOCK_OF_EACH, 0); v[i + 12] = SHUFFLE(b, d, BLOCK_OF_EACH, 1);
    }
#endif
}

/* Lane j of the result is the sum of the lanes of v[j], or the largest of them; v is used up. Each step takes registers in pairs. */
#define STEP(pairs, both, shuffle, second) \
    UNROLL for (int i = 0; i < (pairs); i++) v[i] = both(SHUFFLE(v[2 * i], v[2 * i + 1], shuffle, 0), SHUFFLE(v[2 * i], v[2 * i + 1], shuffle, second));
#if LANES == 16
#define BLOCK_STEPS(both) STEP(2, both, BLOCK_OF_EACH, 1) STEP(1, both, BLOCK_OF_EACH, 1)
#elif LANES == 8
#define BLOCK_STEPS(both) STEP(1, both, BLOCK_OF_EACH, 1)
#else
#define BLOCK_STEPS(both)
#endif
#define STEPS(both) STEP(LANES / 2, both, ONE_OF_EACH, 2) STEP(LANES / 4, both, TWO_OF_EACH, 2) BLOCK_STEPS(both) return v[0];

INLINE vi added(vi a, vi b) { return (vi)((vu)a + (vu)b); } /* with OFFSET in them sums may wrap around */
INLINE vi sums_of(vi *v) { STEPS(added) }
INLINE vi largest_of(vi *v) { STEPS(larger) }
#undef STEP

#endif
