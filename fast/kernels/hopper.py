"""The product of `product.py` for Hopper (sm_90), in Gluon: the matrix unit multiplies one block of K while the next is being issued.

Triton's compiler keeps matrix instructions in flight from one iteration to the next only where their sums are float32; after a block of
int8 it waits, and until the next block is issued the matrix unit has nothing to do. A Gluon program itself says what it waits for:

    for each block k of K:   wait until block k has arrived in its slot of shared memory
                             issue its products             the matrix unit has two blocks to multiply, k - 1 and k
                             wait until one is left         block k - 1 is multiplied, its slot is free
                             have block k + 3 copied there  while the matrix unit multiplies block k

Everything else, tiles, outlier columns, corrections and epilogue, is that of `product_kernel`, whose result it gives bit for bit.
Gluon is experimental: `product.py` imports this file only where it is asked for, and multiplies by `product_kernel` where that fails.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from .arithmetic import rounded
from .epilogue import CODE_UNIT, corrected, from_code_units, owned_tile, weight_scale, widened

#: Columns of a tile that one int8 matrix instruction multiplies: Triton knows those of up to 224, and these divide every tile. Those on
#: 16 bits multiply all columns of it at once.
INT8_COLUMNS = gl.constexpr(128)

#: How blocks of codes lie in shared memory: rows of 128 bytes, the pieces of 16 bytes exchanged so that no banks conflict.
CODES = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=8, rank=2)


@gluon.jit
def hopper_product_kernel(
    x_tiles,
    w_tiles,
    x_side,
    w_side,
    y,
    x,
    float_weight,
    bias,
    outliers,
    M,
    N,
    K,
    DECOMPOSE: gl.constexpr,
    WIDE: gl.constexpr,
    BLOCK_M: gl.constexpr,
    BLOCK_N: gl.constexpr,
    BLOCK_K: gl.constexpr,
    BLOCK_O: gl.constexpr,
    GROUP_M: gl.constexpr,
    STAGES: gl.constexpr,
):
    """One program per tile of Y. The arguments are those of `product_kernel`; each warp has 16 rows of a tile, or several times 16.

    x_tiles, w_tiles: there, in the layout CODES.
    x, float_weight: of 16 bits and, if both are there, of one dtype.
    """
    WARPS: gl.constexpr = gl.num_warps()
    # --8<-- [start:layouts]
    COLUMNS: gl.constexpr = min(BLOCK_N, INT8_COLUMNS)
    INT8: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[WARPS, 1], instr_shape=[16, COLUMNS, 32])
    SUMS: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[WARPS, 1], instr_shape=[16, BLOCK_N, 16])
    # --8<-- [end:layouts]
    tile_m, tile_n = owned_tile(gl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP_M)
    first_row, first_column = tile_m * BLOCK_M, tile_n * BLOCK_N
    count = gl.load(outliers.columns + K) if DECOMPOSE else 0
    acc = int8_sums(x_tiles, w_tiles, first_row, first_column, K, BLOCK_M, BLOCK_N, BLOCK_K, STAGES, INT8)
    if x_side.scale is None:
        store_tile(y, acc, first_row, first_column, M, N, BLOCK_M, BLOCK_N)
    else:
        # Both layouts give a thread the same sums in the same order, so this moves nothing.
        acc = gl.convert_layout(acc, SUMS)
        rows = first_row + gl.arange(0, BLOCK_M, gl.SliceLayout(1, SUMS))
        columns = first_column + gl.arange(0, BLOCK_N, gl.BlockedLayout([1], [32], [WARPS], [0]))
        in_m, in_n = rows < M, columns < N
        if x_side.zero_point is not None:
            x_zero_point = gl.load(x_side.zero_point + rows * x_side.per_row, mask=in_m, other=0)
            x_code_sum = gl.load(x_side.code_sum + rows, mask=in_m, other=0)
            w_zero_point = by_column(gl.load(w_side.zero_point + columns * w_side.per_row, mask=in_n, other=0), SUMS)
            w_code_sum = by_column(gl.load(w_side.code_sum + columns, mask=in_n, other=0), SUMS)
            acc = corrected(acc, x_zero_point[:, None], w_zero_point[None, :], x_code_sum[:, None], w_code_sum[None, :], K, WIDE)
        x_scale = gl.load(x_side.scale + rows * x_side.per_row, mask=in_m, other=0.0)
        w_scale = weight_scale(w_side, columns, in_n)
        if DECOMPOSE and float_weight is None:
            result = acc.to(gl.float32) * (x_scale * (1 / CODE_UNIT))[:, None]
        else:
            result = (acc.to(gl.float32) * x_scale[:, None]) * by_column(w_scale, SUMS)[None, :]
        if DECOMPOSE:
            outlier_weight = w_side.codes if float_weight is None else float_weight
            result = add_outliers(
                result, x, outlier_weight, w_side, outliers, count, first_row, first_column, M, N, BLOCK_M, BLOCK_N, BLOCK_O
            )
            if float_weight is None:
                result = from_code_units(result, by_column(w_scale, SUMS))
        if bias is not None:
            result += by_column(gl.load(bias + columns, mask=in_n, other=0).to(gl.float32), SUMS)[None, :]
        store_tile(y, rounded(result, y.dtype.element_ty), first_row, first_column, M, N, BLOCK_M, BLOCK_N)


@gluon.jit
def by_column(values, SUMS: gl.constexpr):
    """(N,), of which each thread holds one: given to all threads that hold a sum of the column."""
    return gl.convert_layout(values, gl.SliceLayout(0, SUMS))


@gluon.jit
def int8_sums(
    x_tiles, w_tiles, first_row, first_column, K, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, BLOCK_K: gl.constexpr, STAGES: gl.constexpr,
    LAYOUT: gl.constexpr,
):  # fmt: skip
    """int32 (BLOCK_M, BLOCK_N): the sums of products of codes, exact; one group of matrix instructions is in flight from step to step."""
    x_blocks = gl.allocate_shared_memory(gl.int8, [STAGES, BLOCK_M, BLOCK_K], x_tiles.layout)
    w_blocks = gl.allocate_shared_memory(gl.int8, [STAGES, BLOCK_N, BLOCK_K], w_tiles.layout)
    arrived = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(arrived.index(stage), count=1)
    # The copy engine is to see them initialized, as the CUDA programming guide asks; Triton's own kernels go without this fence.
    fence_async_shared()
    for stage in gl.static_range(STAGES - 1):
        copy(x_tiles, w_tiles, first_row, first_column, stage * BLOCK_K, K, x_blocks, w_blocks, arrived, stage)
    acc = warpgroup_mma_init(gl.zeros((BLOCK_M, BLOCK_N), gl.int32, LAYOUT))
    # --8<-- [start:int8-loop]
    slot, phase, freed = 0, 0, STAGES - 1
    for k in range(0, K, BLOCK_K):
        mbarrier.wait(arrived.index(slot), phase)
        acc = warpgroup_mma(x_blocks.index(slot), w_blocks.index(slot).permute((1, 0)), acc, is_async=True)
        # All but this block have been multiplied, so the slot of the block before it is free.
        acc = warpgroup_mma_init(warpgroup_mma_wait(1, deps=(acc,)))
        copy(x_tiles, w_tiles, first_row, first_column, k + (STAGES - 1) * BLOCK_K, K, x_blocks, w_blocks, arrived, freed)
        freed = slot
        slot = (slot + 1) % STAGES
        phase = phase ^ (slot == 0).to(gl.int32)
    sums = warpgroup_mma_wait(0, deps=(acc,))
    # --8<-- [end:int8-loop]
    for stage in gl.static_range(STAGES):
        mbarrier.invalidate(arrived.index(stage))
    return sums


@gluon.jit
def copy(x_tiles, w_tiles, first_row, first_column, k, K, x_blocks, w_blocks, arrived, slot):
    """Has the copy engine bring columns k onwards of both operands to a slot, if there are any; what lies outside arrives as zeros."""
    there = k < K
    mbarrier.expect(arrived.index(slot), x_tiles.block_type.nbytes + w_tiles.block_type.nbytes, pred=there)
    tma.async_copy_global_to_shared(x_tiles, [first_row, k], arrived.index(slot), x_blocks.index(slot), pred=there)
    tma.async_copy_global_to_shared(w_tiles, [first_column, k], arrived.index(slot), w_blocks.index(slot), pred=there)


@gluon.jit
def add_outliers(
    result, x, outlier_weight, w_side, outliers, count, first_row, first_column, M, N, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr,
    BLOCK_O: gl.constexpr,
):  # fmt: skip
    """result (BLOCK_M, BLOCK_N) + the outlier product of a tile: the gathered columns first, then those that are read in place."""
    X: gl.constexpr = row_layout(BLOCK_O, x.pointer.dtype.element_ty.primitive_bitwidth, gl.num_warps())
    W: gl.constexpr = row_layout(BLOCK_O, outlier_weight.pointer.dtype.element_ty.primitive_bitwidth, gl.num_warps())
    x_numbers = gl.minimum(first_row + gl.arange(0, BLOCK_M, gl.SliceLayout(1, X)), M - 1).to(gl.int64)
    w_numbers = gl.minimum(first_column + gl.arange(0, BLOCK_N, gl.SliceLayout(1, W)), N - 1).to(gl.int64)
    w_zero_point = None
    if w_side.zero_point is not None:
        w_zero_point = gl.load(w_side.zero_point + w_numbers * w_side.per_row)
    gathered = 0
    if outliers.x is not None:
        gathered = gl.minimum(count, outliers.capacity)
        x_gathered = outliers.x + x_numbers * outliers.capacity
        w_gathered = outliers.w + w_numbers * outliers.capacity
        result = add_outlier_columns(result, x_gathered, 1, w_gathered, 1, w_zero_point, None, 0, gathered, BLOCK_O, X, W)
    x_rows = x.pointer + x_numbers * x.stride_row
    w_rows = outlier_weight.pointer + w_numbers * outlier_weight.stride_row
    x_stride, w_stride, listed = x.stride_column, outlier_weight.stride_column, outliers.columns
    return add_outlier_columns(result, x_rows, x_stride, w_rows, w_stride, w_zero_point, listed, gathered, count, BLOCK_O, X, W)


@gluon.jit
def add_outlier_columns(
    result, x_rows, x_stride_column, w_rows, w_stride_column, w_zero_point, listed, first, last, BLOCK_O: gl.constexpr, X: gl.constexpr,
    W: gl.constexpr,
):  # fmt: skip
    """As that of `product.py`. X, W: the layouts in which blocks of X and of W are loaded, rows in the order of x_rows and w_rows."""
    DTYPE: gl.constexpr = x_rows.dtype.element_ty
    BLOCK: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=min(128, 2 * BLOCK_O), element_bitwidth=16, rank=2)
    x_block = gl.allocate_shared_memory(DTYPE, [x_rows.shape[0], BLOCK_O], BLOCK)
    w_block = gl.allocate_shared_memory(DTYPE, [w_rows.shape[0], BLOCK_O], BLOCK)
    for o in range(first, last, BLOCK_O):
        x_places = o + gl.arange(0, BLOCK_O, gl.SliceLayout(0, X))
        w_places = o + gl.arange(0, BLOCK_O, gl.SliceLayout(0, W))
        if listed is None:
            x_o = gl.load(x_rows[:, None] + x_places[None, :])
            w_o = gl.load(w_rows[:, None] + w_places[None, :])
        else:
            x_columns = gl.load(listed + x_places, mask=x_places < last, other=0).to(gl.int64)[None, :]
            w_columns = gl.load(listed + w_places, mask=w_places < last, other=0).to(gl.int64)[None, :]
            x_o = gl.load(x_rows[:, None] + x_columns * x_stride_column, mask=(x_places < last)[None, :], other=0)
            w_o = gl.load(w_rows[:, None] + w_columns * w_stride_column, mask=(w_places < last)[None, :], other=0)
        if w_o.dtype == gl.int8:
            w_o = widened(w_o, w_zero_point[:, None] if w_zero_point is not None else None).to(DTYPE)
        x_block.store(x_o)
        w_block.store(w_o)
        fence_async_shared()
        result = warpgroup_mma(x_block, w_block.permute((1, 0)), result)
    return result


@gluon.jit
def store_tile(y, value, first_row, first_column, M, N, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr):
    """Stores a tile of Y (M, N), contiguous, 16 bytes at a time."""
    LAYOUT: gl.constexpr = row_layout(BLOCK_N, value.dtype.primitive_bitwidth, gl.num_warps())
    rows = first_row + gl.arange(0, BLOCK_M, gl.SliceLayout(1, LAYOUT))
    columns = first_column + gl.arange(0, BLOCK_N, gl.SliceLayout(0, LAYOUT))
    target = y + rows.to(gl.int64)[:, None] * N + columns[None, :]
    gl.store(target, gl.convert_layout(value, LAYOUT), mask=(rows < M)[:, None] & (columns < N)[None, :])


@gluon.constexpr_function
def row_layout(columns, bits, warps):
    """A layout of rows of so many entries of so many bits: 16 bytes per thread, neighbouring threads along a row first."""
    entries = min(columns, 128 // bits)
    threads = min(32, columns // entries)
    return gl.BlockedLayout([1, entries], [32 // threads, threads], [warps, 1], [1, 0])


def tiles_of(codes, rows, columns):
    """The tensor descriptor of codes, in blocks of (rows, columns), that the kernel takes."""
    return TensorDescriptor.from_tensor(codes, [rows, columns], CODES)
