/* The inference phase of LLM.int8() on a CPU, one call per layer: docs/contract.md in C, with the steps and the names of `reference`.

       outlier_columns    X is read once: which columns hold an outlier
       quantize           X is read again, a group of rows at a time: range, scale, codes; outlier columns count as zero
       accumulate         the int32 product of the codes
       rescale            times the scale of the row of X, times the scale of the row of W
       outlier_product    plus X[:, O] @ W[:, O].T, plus the bias, rounded once to X's dtype

   The last three run tile by tile, so that no sum leaves the first cache before it is an entry of Y.

   Nothing is packed, copied or kept of the weight: it is read where it lies, once per block of 256 rows of X. Codes of X are written
   anew in every call anyway, so it is they that take the order that the product wants:

       few rows of X        codes lie as the rows do. A sum runs along K: a register holds 4 * LANES neighbours of a row of X, another
                            those of a row of W. Rows of W are read in the order of memory, which is what bounds the time here.
       more rows            a register holds 4 neighbours of each of LANES rows of X, [K / 4][LANES][4]; 4 bytes of a row of W are
                            broadcast against it. TALL rows of W times WIDE registers of X give TALL * WIDE sums, all in registers.
                            Where there are matrix registers, 16 of these quads and 64 codes of 16 rows of W fill one each.

   In reading order: native_registers.h, the instruction sets; native_layer.h, what a call is given and its scratch memory;
   native_quantize.h, the first two steps; native_results.h, the last two; native_tiles.h and native_product.h, the one between;
   here the calls, and in native_experts.h that of several layers at once.
   GCC's vector types (Clang has them too) say in C what is the same for all processors. One library is compiled for each set of
   instructions: the compiler's -m flags choose the section of native_registers.h.

   -ffp-contract=off is part of the meaning: x * r + c has to round twice. */
#include "native_product.h"

#if MATRIX
#include <sys/syscall.h>
#include <unistd.h>
#endif

/* ---- the calls: 0, or 1 where there is no memory -------------------------------------------------------------------------------- */
enum { QUANTIZE = 1, MULTIPLY = 2, GIVEN = 4 };

/* Threads are worth waking for some 10 microseconds of work. */
static int threads_for(const Call *c, double work) { return work > 4e5 ? c->threads : 1; }

/* What a call needs in memory. */
static int lay_out(Layer *l, const Call *c, int steps, int threads) {
    *l = (Layer){.call = c, .along = c->m <= ALONG, .given = steps & GIVEN};
    const long rows = round_up(c->m, LANES), detect = !(steps & GIVEN) && c->limit < INFINITY;
    /* Along K one more register apart: rows a multiple of 4096 bytes apart would share a set of the cache. */
    l->row_bytes = round_up(c->k, WIDTH) + (l->along ? WIDTH : 0);
    l->kept_size = round_up(c->k * size_of(c->x_dtype), WIDTH);
    l->scans = threads > 1 && c->m >= 4 * SCANS ? SCANS : 1;
    const size_t sizes[] = {
        detect ? l->kept_size * l->scans : 0, detect ? 4 * c->k : 0, 4 * rows, 4 * rows, 4 * rows, 4 * rows, 4 * rows, 4 * rows,
        steps & MULTIPLY ? rows * l->row_bytes : 0,
    };
    enum { ARRAYS = sizeof sizes / sizeof *sizes };
    size_t size = 0;
    for (int i = 0; i < ARRAYS; i++) size += round_up(sizes[i], 64);
    char *at[ARRAYS];
    if (posix_memalign((void **)&l->memory, 64, size + 64)) { l->memory = NULL; return 1; }
    for (size_t i = 0, used = 0; i < ARRAYS; used += round_up(sizes[i++], 64)) at[i] = l->memory + used;
    l->kept = detect ? at[0] : NULL; l->outliers = (void *)at[1]; l->lowest = (void *)at[2]; l->highest = (void *)at[3];
    l->inverse = (void *)at[4]; l->row_scale = (void *)at[5]; l->row_zero = (void *)at[6]; l->row_total = (void *)at[7];
    l->codes = steps & MULTIPLY ? (void *)at[8] : NULL;
    return 0;
}

/* All that comes before the product. */
static int before_product(Layer *l, const Call *c, int steps, int threads) {
    if (lay_out(l, c, steps, threads)) return 1;
    if (l->kept) outlier_columns(l, threads);
    if (c->columns) for (long i = 0; i < c->k; i++) c->columns[i] = l->kept && !entry_of(l->kept, i, c->x_dtype);
    const size_t size = steps & MULTIPLY ? round_up(c->m, LANES) * l->count * 4 : 0;
    if (size && posix_memalign((void **)&l->entries, 64, size)) { l->entries = NULL; return 1; }
    if (steps & (QUANTIZE | GIVEN)) quantize(l, threads);
    return 0;
}

static void release(Layer *l) { free(l->entries); free(l->memory); }

static int layer_of(const Call *c, int steps) {
    Layer l;
    const int threads = threads_for(c, (double)c->m * c->k * (steps & MULTIPLY ? (double)c->n : 16));
    const int failed = before_product(&l, c, steps, threads);
    if (!failed && c->x_scale)
        for (long r = 0; r < (c->per_row ? c->m : 1); r++) {
            c->x_scale[r] = c->m ? l.row_scale[r] : 0;
            if (c->x_zero_point) c->x_zero_point[r] = c->m ? l.row_zero[r] : 0;
        }
    if (!failed && steps & MULTIPLY) accumulate(&l, threads);
    release(&l);
    return failed;
}

#include "native_experts.h"

int llm_int8_linear(const Call *c) { return layer_of(c, QUANTIZE | MULTIPLY); }
int llm_int8_experts(const Experts *e) { return experts_of(e); }
int llm_int8_quantize(const Call *c) { return layer_of(c, QUANTIZE); }
int llm_int8_outlier_columns(const Call *c) { return layer_of(c, 0); }
int llm_int8_matmul(const Call *c) { return layer_of(c, GIVEN | MULTIPLY); }
/* Before any other call: 0, or 1 where the system does not let this process use the instructions. Linux wants to be asked for the
   matrix registers (Documentation/arch/x86/xstate.rst). */
int llm_int8_prepare(void) {
#if MATRIX
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) != 0;
#else
    return 0;
#endif
}
const char *llm_int8_instructions(void) { return INSTRUCTIONS; }
long llm_int8_call_size(void) { return sizeof(Call); }
long llm_int8_experts_size(void) { return sizeof(Experts); }
