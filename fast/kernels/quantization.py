"""Row quantization: scales that leave out the outlier columns, then codes, X read once.

    program 0     the list of outlier columns, for the product's second loop (only where outliers are looked for)
    the next      the outlier columns of X and of W, side by side, for the same loop (only where X is long enough for that to pay)
    all others    flags -> mask, once; then for each of its rows: X -> registers; largest magnitude -> scale; registers -> codes

    X row    [ ............ k ............ ]    2 or 4 bytes an entry, read once, 16 bytes a load
    flags    [ ............ k ............ ]    1 byte a column and split, once a program, from the second-level cache
    codes    [ ............ k ............ ]    1 byte an entry, written once

A row that fits into registers (HELD) is read once; a longer one is read in blocks, twice, the second time mostly from cache.
The list and the columns need the flags only, so their programs run beside the others and cost no launch and no wait.

With one scale a tensor, the extremes come from the column extremes of `scan_columns`, which every program reduces anew: a few
bytes a column from the second-level cache instead of one more launch.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import NO_FUSION, encode, magnitudes, parameters
from .configurations import Rows, all_registers, architecture, gather_configuration, rows_configuration
from .outliers import Outliers, compact, gather, is_outlier, scan

#: Columns that go at a time through what is not limited by bandwidth: the list of outliers, the extremes of a tensor.
SHORT_BLOCK = tl.constexpr(2048)


class Quantized(NamedTuple):
    """X without its outlier columns, in int8, and what else the product needs of it.

    codes: (M, K) int8.
    scale: (M, 1) or (1, 1) float32.
    zero_point: int32, as scale; None for absmax.
    code_sum: (M,) int32, the sums of the rows of codes; None if not asked for.
    outliers: None if they were not looked for.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None
    code_sum: Tensor | None
    outliers: Outliers | None


@triton.jit
def quantize_rows(
    x,
    codes,
    scale,
    zero_point,
    code_sum,
    flags,
    above,
    below,
    outliers,
    w,
    x_outliers,
    w_outliers,
    lists,
    M,
    N,
    K,
    capacity,
    stride_xm,
    stride_xk,
    stride_wn,
    stride_wk,
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    REPEAT: tl.constexpr,
    HELD: tl.constexpr,
    GATHER_ROWS: tl.constexpr,
    GATHER_BLOCK: tl.constexpr,
):
    """A program owns ROWS * REPEAT rows of X; with flags, one before them owns the list, and others GATHER_ROWS rows of X or of W each.

    x: (M, K) float16, bfloat16 or float32, by strides in elements.
    codes: (M, K) int8, contiguous.
    scale: (M,) float32, or (1,) where `above` is given.
    zero_point: int32, as scale; None for absmax.
    code_sum: (M,) int32, the sum of each row of codes; None to leave it out.
    flags: (SPLITS, K) uint8 of `scan_columns`; None where no column is an outlier.
    above, below: (SPLITS, K) int32 of `scan_columns`, for one scale a tensor; None for one a row.
    outliers: (K + 1,) int32, the columns of `Outliers`; None without flags.
    w: (N, K) codes or floats, the outlier weight; None, like the next three, to gather nothing.
    x_outliers, w_outliers: (M, capacity), (N, capacity), as in `Outliers`, of the dtypes of x and w.
    lists: (programs that gather, capacity) int32, for the use of those programs.
    HELD: K <= BLOCK_K, so that a block holds whole rows.
    """
    program = tl.program_id(0)
    if flags is not None:
        gathering_x = tl.cdiv(M, GATHER_ROWS) if w is not None else 0
        gathering = gathering_x + tl.cdiv(N, GATHER_ROWS) if w is not None else 0
        if program == 0:
            tl.store(outliers + K, compact(flags, outliers, K, K, SPLITS, SHORT_BLOCK))
        elif program <= gathering:
            if w is not None:
                mine = lists + (program - 1) * capacity
                if program <= gathering_x:
                    gather(
                        x, stride_xm, stride_xk, x_outliers, (program - 1) * GATHER_ROWS, M, mine, capacity,
                        flags, K, SPLITS, SHORT_BLOCK, GATHER_ROWS, GATHER_BLOCK,
                    )  # fmt: skip
                else:
                    gather(
                        w, stride_wn, stride_wk, w_outliers, (program - 1 - gathering_x) * GATHER_ROWS, N, mine, capacity,
                        flags, K, SPLITS, SHORT_BLOCK, GATHER_ROWS, GATHER_BLOCK,
                    )  # fmt: skip
        else:
            _quantize_blocks(
                (program - 1 - gathering) * REPEAT, x, codes, scale, zero_point, code_sum, flags, above, below,
                M, K, stride_xm, stride_xk, SPLITS, ROWS, BLOCK_K, REPEAT, HELD,
            )  # fmt: skip
    else:
        _quantize_blocks(
            program * REPEAT, x, codes, scale, zero_point, code_sum, flags, above, below,
            M, K, stride_xm, stride_xk, SPLITS, ROWS, BLOCK_K, REPEAT, HELD,
        )  # fmt: skip


@triton.jit
def _quantize_blocks(
    first, x, codes, scale, zero_point, code_sum, flags, above, below,
    M, K, stride_xm, stride_xk, SPLITS: tl.constexpr, ROWS: tl.constexpr, BLOCK_K: tl.constexpr, REPEAT: tl.constexpr, HELD: tl.constexpr,
):  # fmt: skip
    """Blocks of ROWS rows, REPEAT of them from `first` on; arguments as in `quantize_rows`."""
    ZEROPOINT: tl.constexpr = zero_point is not None
    columns = tl.arange(0, BLOCK_K)
    skipped = is_outlier(flags, columns, K, SPLITS) if flags is not None and HELD else None
    if above is not None:
        tensor_up, tensor_down = _tensor_extremes(above, below, flags, K, SPLITS, SHORT_BLOCK)

    for block in tl.range(first, tl.minimum(first + REPEAT, tl.cdiv(M, ROWS)), num_stages=2):
        rows = tl.cast(block, tl.int64) * ROWS + tl.arange(0, ROWS)
        live = rows < M
        source = x + rows[:, None] * stride_xm
        target = codes + rows[:, None] * K

        if HELD:
            held = _regular(source, columns, live, skipped, K, stride_xk)
        if above is not None:
            up, down = tensor_up, tensor_down
        elif HELD:
            all_up, all_down = magnitudes(held, ZEROPOINT)
            up = tl.max(all_up, axis=1)
            down = tl.max(all_down, axis=1) if ZEROPOINT else up
        else:
            all_up = tl.zeros((ROWS, BLOCK_K), tl.int32)
            all_down = tl.zeros((ROWS, BLOCK_K), tl.int32)
            for k in range(0, K, BLOCK_K):
                skip = is_outlier(flags, k + columns, K, SPLITS) if flags is not None else None
                value_up, value_down = magnitudes(_regular(source, k + columns, live, skip, K, stride_xk), ZEROPOINT)
                all_up = tl.maximum(all_up, value_up)
                if ZEROPOINT:
                    all_down = tl.maximum(all_down, value_down)
            up = tl.max(all_up, axis=1)
            down = tl.max(all_down, axis=1) if ZEROPOINT else up

        slice_scale, inverse, shift = parameters(up, down, ZEROPOINT)
        if above is not None:
            if block == 0:
                tl.store(scale, slice_scale)
                if ZEROPOINT:
                    tl.store(zero_point, shift)
        else:
            tl.store(scale + rows, slice_scale, mask=live)
            if ZEROPOINT:
                tl.store(zero_point + rows, shift, mask=live)
            inverse = inverse[:, None]
            shift = shift[:, None]

        if HELD:
            inside = live[:, None] & (columns < K)[None, :]
            code = encode(held, inverse, shift, ZEROPOINT)
            tl.store(target + columns[None, :], code, mask=inside)
            if code_sum is not None:
                tl.store(code_sum + rows, tl.sum(tl.where(inside, code.to(tl.int32), 0), axis=1), mask=live)
        else:
            total = tl.zeros((ROWS, BLOCK_K), tl.int32)
            for k in range(0, K, BLOCK_K):
                inside = live[:, None] & (k + columns < K)[None, :]
                skip = is_outlier(flags, k + columns, K, SPLITS) if flags is not None else None
                code = encode(_regular(source, k + columns, live, skip, K, stride_xk), inverse, shift, ZEROPOINT)
                tl.store(target + k + columns[None, :], code, mask=inside)
                if code_sum is not None:
                    total += tl.where(inside, code.to(tl.int32), 0)
            if code_sum is not None:
                tl.store(code_sum + rows, tl.sum(total, axis=1), mask=live)


@triton.jit
def _regular(source, columns, live, skipped, K, stride_xk):
    """`columns` of the rows at `source` in float32; 0 in `skipped` columns (None: in none) and outside X."""
    inside = live[:, None] & (columns < K)[None, :]
    value = tl.load(source + columns.to(tl.int64)[None, :] * stride_xk, mask=inside, other=0.0).to(tl.float32)
    if skipped is not None:
        value = tl.where(skipped[None, :], 0.0, value)
    return value


@triton.jit
def _tensor_extremes(above, below, flags, K, SPLITS: tl.constexpr, BLOCK_K: tl.constexpr):
    """The largest `magnitudes` over all columns that are not outliers, as two scalars."""
    up = tl.zeros((BLOCK_K,), tl.int32)
    down = tl.zeros((BLOCK_K,), tl.int32)
    for k in range(0, K, BLOCK_K):
        columns = k + tl.arange(0, BLOCK_K)
        counted = columns < K
        if flags is not None:
            counted = counted & ~is_outlier(flags, columns, K, SPLITS)
        for split in tl.static_range(SPLITS):
            up = tl.maximum(up, tl.load(above + split * K + columns, mask=counted, other=0))
            if below is not None:
                down = tl.maximum(down, tl.load(below + split * K + columns, mask=counted, other=0))
    return tl.max(up, axis=0), tl.max(down, axis=0)


def quantize_regular(
    x: Tensor,
    limit: float | None,
    per_row: bool,
    zeropoint: bool,
    with_sums: bool,
    outlier_weight: Tensor | None = None,
    config: Rows | None = None,
) -> Quantized:
    """`x` (M, K) with its outlier columns left out: `scan_columns` where it is needed, then `quantize_rows`.

    `outlier_weight` (N, K), codes or floats: its outlier columns and those of x are gathered, where that pays. None gathers nothing.
    """
    m, k = x.shape
    slices = (m, 1) if per_row else (1, 1)
    codes = torch.empty(m, k, dtype=torch.int8, device=x.device)
    if x.numel() == 0:
        scale = torch.zeros(slices, dtype=torch.float32, device=x.device)
        zero_point = torch.zeros(slices, dtype=torch.int32, device=x.device) if zeropoint else None
        code_sum = torch.zeros(m, dtype=torch.int32, device=x.device) if with_sums else None
        none = None if limit is None else Outliers(torch.zeros(k + 1, dtype=torch.int32, device=x.device))
        return Quantized(codes, scale, zero_point, code_sum, none)

    flags, above, below, splits = None, None, None, 1
    if limit is not None or not per_row:
        flags, above, below, splits = scan(x, limit, not per_row, zeropoint)
    scale = torch.empty(slices, dtype=torch.float32, device=x.device)
    zero_point = torch.empty(slices, dtype=torch.int32, device=x.device) if zeropoint else None
    code_sum = torch.empty(m, dtype=torch.int32, device=x.device) if with_sums else None
    config = config or rows_configuration(architecture(x.device), m, k)
    programs = triton.cdiv(m, config.rows * config.repeat)

    outliers = w = lists = None
    n, capacity, gather_rows, block_o = 0, 0, 1, 1
    if flags is not None:
        programs += 1
        outliers = Outliers(torch.empty(k + 1, dtype=torch.int32, device=x.device))
        gathered = None if outlier_weight is None else gather_configuration(architecture(x.device), m, k)
        if outlier_weight is not None and gathered is not None:
            w, (gather_rows, block_o, capacity) = outlier_weight, gathered
            n = w.shape[0]
            gathering = triton.cdiv(m, gather_rows) + triton.cdiv(n, gather_rows)
            programs += gathering
            lists = torch.empty(gathering, capacity, dtype=torch.int32, device=x.device)
            x_side = torch.empty(m, capacity, dtype=x.dtype, device=x.device)
            w_side = torch.empty(n, capacity, dtype=w.dtype, device=x.device)
            outliers = outliers._replace(x=x_side, w=w_side)
    with torch.cuda.device_of(x):
        quantize_rows[(programs,)](
            x,
            codes,
            scale,
            zero_point,
            code_sum,
            flags,
            above,
            below,
            None if outliers is None else outliers.columns,
            w,
            None if outliers is None else outliers.x,
            None if outliers is None else outliers.w,
            lists,
            m,
            n,
            k,
            capacity,
            x.stride(0),
            x.stride(1),
            0 if w is None else w.stride(0),
            0 if w is None else w.stride(1),
            SPLITS=splits,
            ROWS=config.rows,
            BLOCK_K=config.block_k,
            REPEAT=config.repeat,
            HELD=k <= config.block_k,
            GATHER_ROWS=gather_rows,
            GATHER_BLOCK=block_o,
            num_warps=config.warps,
            num_stages=1,
            **NO_FUSION,
            **all_registers(config.warps),
        )
    return Quantized(codes, scale, zero_point, code_sum, outliers)


def quantize(x: Tensor, per_row: bool, quantizer: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes (M, K) int8, scale float32 and, for zeropoint, zero_point int32 of `x` (M, K); scales (M, 1) or (1, 1)."""
    quantized = quantize_regular(x, None, per_row, quantizer == "zeropoint", with_sums=False)
    return quantized.codes, quantized.scale, quantized.zero_point
