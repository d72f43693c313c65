"""Row quantization: scales that leave out the outlier columns, then codes, X read once.

    program 0     the list of outlier columns, for the product's second loop (only where outliers are looked for)
    the next      the outlier columns of X and of W, side by side, for the same loop (only where X is long enough for that to pay)
    all others    flags -> mask, once; then for each of its rows: X -> registers; largest magnitude -> scale; registers -> codes

    X row    [ ............ k ............ ]    2 or 4 bytes per entry, read once, 16 bytes per load
    flags    [ ............ k ............ ]    1 byte per column and split, once per program, from the second-level cache
    codes    [ ............ k ............ ]    1 byte per entry, written once

A row that fits into registers (HELD) is read once; a longer one is read in blocks, twice, the second time mostly from cache.
The list and the columns need the flags only, so their programs run beside the others and cost neither a launch nor a wait.

With one scale per tensor, the extremes come from the column extremes of `scan_columns`, which every program reduces anew: a few
bytes per column from the second-level cache instead of one more launch.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import NO_FUSION, encode, magnitudes, masked, parameters, row_maximum, sides
from .configurations import Gather, Rows, all_registers, architecture, gather_configuration, rows_configuration
from .operands import Matrix, Outliers, Quantized
from .outliers import Scanned, bits_of_regular, compact, gather, is_outlier, scan

#: Block size of the passes that are not bandwidth-bound: the list of outliers, the extremes of a tensor.
SHORT_BLOCK = tl.constexpr(2048)


@triton.jit
def quantize_rows(
    x,
    w,
    quantized,
    scanned,
    lists,
    M,
    N,
    K,
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    REPEAT: tl.constexpr,
    HELD: tl.constexpr,
    GATHER_ROWS: tl.constexpr,
    GATHER_BLOCK: tl.constexpr,
):
    """A program owns ROWS * REPEAT rows of X; with flags, one before them owns the list, and others GATHER_ROWS rows of X or of W each.

    x: Matrix (M, K), float16, bfloat16 or float32.
    w: Matrix (N, K) of codes or floats, the outlier weight; None to gather nothing.
    quantized: Quantized, to be filled: one scale where `scanned.above` is given, else one per row; outliers None without flags.
    scanned: Scanned, (SPLITS, K); flags None where no column is an outlier, above and below None for one scale per row.
    lists: (programs that gather, capacity) int32: scratch, one private outlier list per gathering program.
    HELD: K <= BLOCK_K, so that a block holds whole rows.
    """
    program = tl.program_id(0)
    if scanned.flags is not None:
        outliers = quantized.outliers
        gathering_x = tl.cdiv(M, GATHER_ROWS) if w is not None else 0
        gathering = gathering_x + tl.cdiv(N, GATHER_ROWS) if w is not None else 0
        if program == 0:
            tl.store(outliers.columns + K, compact(scanned.flags, outliers.columns, K, K, SPLITS, SHORT_BLOCK))
        elif program <= gathering:
            if w is not None:
                flags = scanned.flags
                capacity = outliers.capacity
                mine = lists + (program - 1) * capacity
                if program <= gathering_x:
                    first = (program - 1) * GATHER_ROWS
                    gather(x, outliers.x, first, M, mine, capacity, flags, K, SPLITS, SHORT_BLOCK, GATHER_ROWS, GATHER_BLOCK)
                else:
                    first = (program - 1 - gathering_x) * GATHER_ROWS
                    gather(w, outliers.w, first, N, mine, capacity, flags, K, SPLITS, SHORT_BLOCK, GATHER_ROWS, GATHER_BLOCK)
        else:
            first = (program - 1 - gathering) * REPEAT
            quantize_blocks(first, x, quantized, scanned, scanned.flags, M, K, SPLITS, ROWS, BLOCK_K, REPEAT, HELD)
    else:
        quantize_blocks(program * REPEAT, x, quantized, scanned, None, M, K, SPLITS, ROWS, BLOCK_K, REPEAT, HELD)


@triton.jit
def quantize_blocks(
    first,
    x,
    quantized,
    scanned,
    flags,
    M,
    K,
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    REPEAT: tl.constexpr,
    HELD: tl.constexpr,
):
    """Blocks of ROWS rows, REPEAT of them from `first` on. flags: those of these rows, or None; otherwise as in `quantize_rows`."""
    ZEROPOINT: tl.constexpr = quantized.zero_point is not None
    DTYPE: tl.constexpr = x.pointer.dtype.element_ty
    columns = tl.arange(0, BLOCK_K)
    # A thread stores the codes of no more entries than one load of 16 bytes has: with twice as many, which is how stores alone would
    # have it, the loads of a warp would lie 32 bytes apart and take half of each sector.
    side_by_side = tl.max_contiguous(columns, 128 // DTYPE.primitive_bitwidth)
    kept = bits_of_regular(flags, columns, K, SPLITS, DTYPE) if flags is not None and HELD else None
    if scanned.above is not None:
        tensor_up, tensor_down = _tensor_extremes(scanned, K, SPLITS, SHORT_BLOCK)

    for block in tl.range(first, tl.minimum(first + REPEAT, tl.cdiv(M, ROWS)), num_stages=3):
        rows = tl.cast(block, tl.int64) * ROWS + tl.arange(0, ROWS)
        live = rows < M
        source = x.pointer + rows[:, None] * x.stride_row
        target = quantized.codes + rows[:, None] * K

        if HELD:
            held = _regular(source, columns, live, kept, K, x.stride_column)
        if scanned.above is not None:
            up, down = tensor_up, tensor_down
        elif HELD:
            above, below = sides(held, ZEROPOINT)
            up = row_maximum(above)
            down = row_maximum(below) if ZEROPOINT else up
        else:
            all_up = tl.zeros((ROWS, BLOCK_K), tl.int32)
            all_down = tl.zeros((ROWS, BLOCK_K), tl.int32)
            for k in range(0, K, BLOCK_K):
                counted = bits_of_regular(flags, k + columns, K, SPLITS, DTYPE) if flags is not None else None
                value = _regular(source, k + columns, live, counted, K, x.stride_column)
                value_up, value_down = magnitudes(value.to(tl.float32), ZEROPOINT)
                all_up = tl.maximum(all_up, value_up)
                if ZEROPOINT:
                    all_down = tl.maximum(all_down, value_down)
            up = tl.max(all_up, axis=1)
            down = tl.max(all_down, axis=1) if ZEROPOINT else up

        slice_scale, inverse, shift = parameters(up, down, ZEROPOINT)
        if scanned.above is not None:
            if block == 0:
                tl.store(quantized.scale, slice_scale)
                if ZEROPOINT:
                    tl.store(quantized.zero_point, shift)
        else:
            tl.store(quantized.scale + rows, slice_scale, mask=live)
            if ZEROPOINT:
                tl.store(quantized.zero_point + rows, shift, mask=live)
            inverse = inverse[:, None]
            shift = shift[:, None]

        if HELD:
            inside = live[:, None] & (columns < K)[None, :]
            code = encode(held, inverse, shift, ZEROPOINT)
            tl.store(target + side_by_side[None, :], code, mask=inside)
            if quantized.code_sum is not None:
                tl.store(quantized.code_sum + rows, tl.sum(tl.where(inside, code.to(tl.int32), 0), axis=1), mask=live)
        else:
            total = tl.zeros((ROWS, BLOCK_K), tl.int32)
            for k in range(0, K, BLOCK_K):
                inside = live[:, None] & (k + columns < K)[None, :]
                counted = bits_of_regular(flags, k + columns, K, SPLITS, DTYPE) if flags is not None else None
                code = encode(_regular(source, k + columns, live, counted, K, x.stride_column), inverse, shift, ZEROPOINT)
                tl.store(target + k + side_by_side[None, :], code, mask=inside)
                if quantized.code_sum is not None:
                    total += tl.where(inside, code.to(tl.int32), 0)
            if quantized.code_sum is not None:
                tl.store(quantized.code_sum + rows, tl.sum(total, axis=1), mask=live)


@triton.jit
def _regular(source, columns, live, kept, K, stride_column):
    """`columns` of the rows at `source`, in X's type; 0 where the bits of `kept` are (None: nowhere) and outside X."""
    inside = live[:, None] & (columns < K)[None, :]
    value = tl.load(source + columns.to(tl.int64)[None, :] * stride_column, mask=inside, other=0.0)
    if kept is not None:
        value = masked(value, kept[None, :])
    return value


@triton.jit
def _tensor_extremes(scanned, K, SPLITS: tl.constexpr, BLOCK_K: tl.constexpr):
    """The largest `magnitudes` over all columns that are not outliers, as two scalars."""
    up = tl.zeros((BLOCK_K,), tl.int32)
    down = tl.zeros((BLOCK_K,), tl.int32)
    for k in range(0, K, BLOCK_K):
        columns = k + tl.arange(0, BLOCK_K)
        counted = columns < K
        if scanned.flags is not None:
            counted = counted & ~is_outlier(scanned.flags, columns, K, SPLITS)
        for split in tl.static_range(SPLITS):
            up = tl.maximum(up, tl.load(scanned.above + split * K + columns, mask=counted, other=0))
            if scanned.below is not None:
                down = tl.maximum(down, tl.load(scanned.below + split * K + columns, mask=counted, other=0))
    return tl.max(up, axis=0), tl.max(down, axis=0)


def quantize_regular(
    x: Tensor,
    threshold: float | None,
    *,
    per_row: bool = True,
    zeropoint: bool = False,
    code_sums: bool = False,
    outlier_weight: Tensor | None = None,
    config: Rows | None = None,
) -> Quantized:
    """`x` (M, K) with its outlier columns left out: `scan_columns` where it is needed, then `quantize_rows`.

    Args:
        x: (M, K) float16, bfloat16 or float32.
        threshold: not negative; None looks for no outliers.
        per_row: one scale per row, or one in all.
        zeropoint: zeropoint codes instead of absmax codes.
        code_sums: whether the sums of the rows of codes are wanted.
        outlier_weight: (N, K) codes or floats; its outlier columns and those of x are gathered, where that pays. None gathers nothing.
        config: instead of the one that the tables have.
    """
    m, k = x.shape
    gathering = None
    if threshold is not None and outlier_weight is not None and x.numel():
        gathering = gather_configuration(architecture(x.device), m, k)
    w = None if gathering is None else outlier_weight
    allocate = torch.empty if x.numel() else torch.zeros  # of which nothing will be stored
    slices = (m, 1) if per_row else (1, 1)
    quantized = Quantized(
        allocate(m, k, dtype=torch.int8, device=x.device),
        allocate(slices, dtype=torch.float32, device=x.device),
        allocate(slices, dtype=torch.int32, device=x.device) if zeropoint else None,
        allocate(m, dtype=torch.int32, device=x.device) if code_sums else None,
        None if threshold is None else _outlier_buffers(x, w, gathering.columns if gathering else 0),
    )
    if x.numel():
        scanned = Scanned() if threshold is None and per_row else scan(x, threshold, not per_row, zeropoint)
        _launch(x, w, quantized, scanned, gathering or Gather(rows=1, block_o=1, columns=0), config)
    return quantized


def _outlier_buffers(x: Tensor, w: Tensor | None, capacity: int) -> Outliers:
    """Buffers for the outlier columns of `x` (M, K), and for `capacity` of them side by side where `w` is the outlier weight."""
    columns = (torch.empty if x.numel() else torch.zeros)(x.shape[1] + 1, dtype=torch.int32, device=x.device)
    if w is None:
        return Outliers(columns)
    x_gathered = torch.empty(x.shape[0], capacity, dtype=x.dtype, device=x.device)
    w_gathered = torch.empty(w.shape[0], capacity, dtype=w.dtype, device=x.device)
    return Outliers(columns, x_gathered, w_gathered, capacity)


def _launch(x: Tensor, w: Tensor | None, quantized: Quantized, scanned: Scanned, gathering: Gather, config: Rows | None) -> None:
    """Launches `quantize_rows`; `w` is the outlier weight whose columns are gathered, or None."""
    m, k = x.shape
    config = config or rows_configuration(architecture(x.device), m, k)
    n, lists, programs = 0, None, triton.cdiv(m, config.rows * config.repeat) + (scanned.flags is not None)
    if w is not None:
        n = w.shape[0]
        gathering_programs = triton.cdiv(m, gathering.rows) + triton.cdiv(n, gathering.rows)
        programs += gathering_programs
        lists = torch.empty(gathering_programs, gathering.columns, dtype=torch.int32, device=x.device)
    with torch.cuda.device_of(x):
        quantize_rows[(programs,)](
            Matrix.of(x),
            None if w is None else Matrix.of(w),
            quantized,
            scanned,
            lists,
            m,
            n,
            k,
            SPLITS=scanned.splits,
            ROWS=config.rows,
            BLOCK_K=config.block_k,
            REPEAT=config.repeat,
            HELD=k <= config.block_k,
            GATHER_ROWS=gathering.rows,
            GATHER_BLOCK=gathering.block_o,
            num_warps=config.warps,
            num_stages=1,
            **NO_FUSION,
            **all_registers(config.warps),
        )


def quantize(x: Tensor, per_row: bool, quantizer: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes (M, K) int8, scale float32 and, for zeropoint, zero_point int32 of `x` (M, K); scales (M, 1) or (1, 1)."""
    quantized = quantize_regular(x, None, per_row=per_row, zeropoint=quantizer == "zeropoint")
    return quantized.codes, quantized.scale, quantized.zero_point
