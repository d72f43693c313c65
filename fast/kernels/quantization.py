"""Row quantization: scales that leave out the outlier columns, then codes, X read once.

    program 0          the list of outlier columns, for the product's second loop (only where outliers are looked for)
    program 1, 2, ...  flags -> mask, once; then for each of its rows: X -> registers; largest magnitude -> scale; registers -> codes

    X row    [ ............ k ............ ]    2 or 4 bytes an entry, read once, 16 bytes a load
    flags    [ ............ k ............ ]    1 byte a column and split, once a program, from the second-level cache
    codes    [ ............ k ............ ]    1 byte an entry, written once

A row that fits into registers (HELD) is read once; a longer one is read in blocks, twice, the second time mostly from cache.
The list needs the flags only, so its program runs beside the others and costs no launch and no wait.

With one scale a tensor, the extremes come from the column extremes of `scan_columns`, which every program reduces anew: a few
bytes a column from the second-level cache instead of one more launch.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import NO_FUSION, encode, magnitudes, parameters
from .configurations import Rows, architecture, rows_configuration
from .outliers import compact, is_outlier, scan

#: Columns that go at a time through what is not limited by bandwidth: the list of outliers, the extremes of a tensor.
SHORT_BLOCK = tl.constexpr(2048)


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
    M,
    K,
    stride_xm,
    stride_xk,
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    REPEAT: tl.constexpr,
    HELD: tl.constexpr,
):
    """Program p owns ROWS * REPEAT rows (with flags: program 0 the list of outliers, program p the rows of p - 1).

    x: (M, K) float16, bfloat16 or float32, by strides in elements.
    codes: (M, K) int8, contiguous.
    scale: (M,) float32, or (1,) where `above` is given.
    zero_point: int32, as scale; None for absmax.
    code_sum: (M,) int32, the sum of each row of codes; None to leave it out.
    flags: (SPLITS, K) uint8 of `scan_columns`; None where no column is an outlier.
    above, below: (SPLITS, K) int32 of `scan_columns`, for one scale a tensor; None for one a row.
    outliers: (K + 1,) int32, as `compact` stores it; None without flags.
    HELD: K <= BLOCK_K, so that a block holds whole rows.
    """
    program = tl.program_id(0)
    if flags is not None:
        if program == 0:
            compact(flags, outliers, K, SPLITS, SHORT_BLOCK)
        else:
            _quantize_blocks(
                (program - 1) * REPEAT, x, codes, scale, zero_point, code_sum, flags, above, below,
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
    x: Tensor, limit: float | None, per_row: bool, zeropoint: bool, with_sums: bool, config: Rows | None = None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Codes of `x` (M, K) with its outlier columns left out: `scan_columns` where it is needed, then `quantize_rows`.

    Returns:
        codes (M, K) int8; scale float32 and zero_point int32 (None for absmax), (M, 1) or (1, 1); code_sum (M,) int32 or
        None; outliers (K + 1,) int32 as `compact` stores it, or None if limit is None.
    """
    m, k = x.shape
    slices = (m, 1) if per_row else (1, 1)
    codes = torch.empty(m, k, dtype=torch.int8, device=x.device)
    if x.numel() == 0:
        scale = torch.zeros(slices, dtype=torch.float32, device=x.device)
        zero_point = torch.zeros(slices, dtype=torch.int32, device=x.device) if zeropoint else None
        code_sum = torch.zeros(m, dtype=torch.int32, device=x.device) if with_sums else None
        outliers = None if limit is None else torch.zeros(k + 1, dtype=torch.int32, device=x.device)
        return codes, scale, zero_point, code_sum, outliers

    flags, above, below, splits = None, None, None, 1
    if limit is not None or not per_row:
        flags, above, below, splits = scan(x, limit, not per_row, zeropoint)
    scale = torch.empty(slices, dtype=torch.float32, device=x.device)
    zero_point = torch.empty(slices, dtype=torch.int32, device=x.device) if zeropoint else None
    code_sum = torch.empty(m, dtype=torch.int32, device=x.device) if with_sums else None
    outliers = None if flags is None else torch.empty(k + 1, dtype=torch.int32, device=x.device)
    config = config or rows_configuration(architecture(x.device), m, k)
    with torch.cuda.device_of(x):
        quantize_rows[(triton.cdiv(m, config.rows * config.repeat) + (flags is not None),)](
            x,
            codes,
            scale,
            zero_point,
            code_sum,
            flags,
            above,
            below,
            outliers,
            m,
            k,
            x.stride(0),
            x.stride(1),
            SPLITS=splits,
            ROWS=config.rows,
            BLOCK_K=config.block_k,
            REPEAT=config.repeat,
            HELD=k <= config.block_k,
            num_warps=config.warps,
            num_stages=1,
            **NO_FUSION,
        )
    return codes, scale, zero_point, code_sum, outliers


def quantize(x: Tensor, per_row: bool, quantizer: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes (M, K) int8, scale float32 and, for zeropoint, zero_point int32 of `x` (M, K); scales (M, 1) or (1, 1)."""
    codes, scale, zero_point, *_ = quantize_regular(x, None, per_row, quantizer == "zeropoint", with_sums=False)
    return codes, scale, zero_point
