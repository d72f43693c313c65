"""The whole layer in one launch for the few rows of decoding, bound by reading W once.

    X (at most 16 rows)  [ .......... K .......... ]      program p:  1. passes over all of X: outlier columns, row extremes -> scales
    W rows of program 0  [ .......... K .......... ]                  2. streams its BLOCK_N rows of W:
    W rows of program 1  [ .......... K .......... ]                       block of X -> codes, in registers
    ...                                                                    acc  += codes @ W block.T                         int32
                                                                           part += X outliers @ W block.T, if there are any  float32
                                                                      3. epilogue, as in product.py

With M rows, W is N * K bytes and X at most 32 * K: X stays in the caches, so every program reads all of it twice and repeats
the same small computation. That costs less than the launches of separate kernels and their trips through memory. A program
holds all rows of a block of columns, so the block alone tells its outlier columns: no list of them is needed, and
the 16-bit product of a block, masked to its outlier columns, runs only where there is one: in few blocks, on data that
the int8 product has already loaded.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..weights import QuantizedWeight
from .arithmetic import (
    INTERPRETED,
    NO_FUSION,
    absmax_scale,
    encode,
    larger,
    larger_or_nan,
    magnitude,
    masked,
    parameters,
    rounded,
    row_maximum,
    sides,
)
from .configurations import Decode, all_registers, architecture, decode_configuration
from .epilogue import corrected, from_code_units, outlier_product
from .operands import Matrix, Side, aligned
from .product import WIDE_FROM

#: The first pass is bound by the latency of loading X; three blocks in flight hide it.
SCAN_STAGES = tl.constexpr(3)


@triton.jit
def decode_kernel(
    x,
    w_side,
    y,
    float_weight,
    bias,
    threshold,
    M,
    N,
    K,
    DETECT: tl.constexpr,
    PER_ROW: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    TILE_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SCAN_K: tl.constexpr,
    SCAN_OWN: tl.constexpr,
    BLOCK_OWN: tl.constexpr,
):
    """Program p: all rows of Y, columns p * BLOCK_N onwards. Pass None for an absent operand; its code is compiled out.

    x: Matrix (M, K), float16, bfloat16 or float32, M <= ROWS.
    w_side: Side (N, K), without code_sum.
    y: (M, N) of X's dtype, contiguous.
    float_weight: Matrix (N, K) of a floating dtype; None takes the outlier weights from the codes.
    bias: (N,) of a floating dtype.
    threshold: float32, not negative, used where DETECT.
    PER_ROW: one scale per row of X, else one in all. WIDE: the zeropoint correction needs 64 bits.
    SCAN_OWN, BLOCK_OWN: the columns side by side that a thread has at most, of the blocks of X in the first pass and in the second: so
    few that all threads lie along K, and each has all rows of its columns.
    """
    rows = tl.arange(0, ROWS)
    tile_rows = tl.arange(0, TILE_M)
    live = rows < M
    tile_live = tile_rows < M
    column_numbers = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.minimum(column_numbers, N - 1).to(tl.int64)

    x_rows = x.pointer + rows.to(tl.int64)[:, None] * x.stride_row
    tile_x = x.pointer + tile_rows.to(tl.int64)[:, None] * x.stride_row
    if w_side.absmax is None:
        w_scale = tl.load(w_side.scale + columns * w_side.per_row)
    else:
        w_scale = absmax_scale(tl.load(w_side.absmax + columns * w_side.per_row))
    w_zero_point = tl.load(w_side.zero_point + columns * w_side.per_row) if w_side.zero_point is not None else None
    w_rows = w_side.codes.pointer + columns * w_side.codes.stride_row
    float_rows = None
    float_stride = 0
    if float_weight is not None:
        float_rows = float_weight.pointer + columns * float_weight.stride_row
        float_stride = float_weight.stride_column
    result = layer_of_rows(
        x_rows,
        live,
        tile_x,
        tile_live,
        x.stride_column,
        w_rows,
        w_side.codes.stride_column,
        w_scale,
        w_zero_point,
        float_rows,
        float_stride,
        threshold,
        K,
        DETECT,
        PER_ROW,
        WIDE,
        BLOCK_K,
        SCAN_K,
        SCAN_OWN,
        BLOCK_OWN,
    )
    if bias is not None:
        result += tl.load(bias + columns).to(tl.float32)[None, :]
    target = y + tile_rows.to(tl.int64)[:, None] * N + column_numbers[None, :]
    tl.store(target, rounded(result, y.dtype.element_ty), mask=tile_live[:, None] & (column_numbers < N)[None, :])


@triton.jit
def layer_of_rows(
    x_rows,
    live,
    tile_x,
    tile_live,
    x_stride,
    w_rows,
    w_stride,
    w_scale,
    w_zero_point,
    float_rows,
    float_stride,
    threshold,
    K,
    DETECT: tl.constexpr,
    PER_ROW: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SCAN_K: tl.constexpr,
    SCAN_OWN: tl.constexpr,
    BLOCK_OWN: tl.constexpr,
):
    """(TILE_M, BLOCK_N) float32: Y without the bias, of the rows of X and W that the pointers to their column 0 stand for.

    x_rows, live: (ROWS, 1) pointers and (ROWS,), whether there is such a row; its entries count as absent where not.
    tile_x, tile_live: (TILE_M, 1) and (TILE_M,), the same rows once more, filled up to a tile; row i of it is row i % ROWS.
    w_rows, float_rows: (BLOCK_N,) pointers; float_rows None takes the outlier weights from the codes. w_scale, w_zero_point: (BLOCK_N,),
    the latter None for absmax. x_stride, w_stride, float_stride: from one column to the next. Otherwise as in `decode_kernel`.
    """
    ZEROPOINT: tl.constexpr = w_zero_point is not None
    ROWS: tl.constexpr = live.shape[0]
    TILE_M: tl.constexpr = tile_live.shape[0]
    BLOCK_N: tl.constexpr = w_scale.shape[0]
    ks = tl.arange(0, BLOCK_K)
    wide = tl.arange(0, SCAN_K)
    all_up, all_down = sides(tl.zeros((ROWS, SCAN_K), x_rows.dtype.element_ty), ZEROPOINT)
    # --8<-- [start:first-pass]
    for k in tl.range(0, K, SCAN_K, num_stages=SCAN_STAGES):
        inside = live[:, None] & (k + wide < K)[None, :]
        side_by_side = tl.max_contiguous(k + wide, SCAN_OWN).to(tl.int64)
        value = tl.load(x_rows + side_by_side[None, :] * x_stride, mask=inside, other=0.0)
        if DETECT:
            value = masked(value, _regular(value, threshold)[None, :])
        up, down = sides(value, ZEROPOINT)
        all_up = larger_or_nan(all_up, up)
        if ZEROPOINT:
            all_down = larger_or_nan(all_down, down)
    # --8<-- [end:first-pass]
    up = row_maximum(all_up)
    down = row_maximum(all_down) if ZEROPOINT else up
    if not PER_ROW:
        up = tl.zeros_like(up) + tl.max(up, axis=0)
        down = tl.zeros_like(down) + tl.max(down, axis=0)
    x_scale, inverse, x_zero_point = parameters(up, down, ZEROPOINT)
    x_scale, inverse, x_zero_point = _repeated(x_scale, TILE_M), _repeated(inverse, TILE_M), _repeated(x_zero_point, TILE_M)

    # K runs down: a block of the shape of X's would be laid over the threads as that of X, which is not how its rows are to lie.
    w_codes = w_rows[None, :] + ks.to(tl.int64)[:, None] * w_stride
    acc = tl.zeros((TILE_M, BLOCK_N), tl.int32)
    part = tl.zeros((TILE_M, BLOCK_N), tl.float32)
    # The sums of the codes of X and of W, as products with ones: the blocks are at hand, the matrix unit is idle, and two accumulators of
    # the product's shape take fewer registers than sums of whole blocks.
    x_code_sums = tl.zeros((TILE_M, BLOCK_N), tl.int32)
    w_code_sums = tl.zeros((TILE_M, BLOCK_N), tl.int32)
    for k in range(0, K, BLOCK_K):
        in_k = k + ks < K
        inside = tile_live[:, None] & in_k[None, :]
        side_by_side = tl.max_contiguous(k + ks, BLOCK_OWN).to(tl.int64)
        value = tl.load(tile_x + side_by_side[None, :] * x_stride, mask=inside, other=0.0)
        w_block = tl.load(w_codes, mask=in_k[:, None], other=0)
        w_codes += BLOCK_K * tl.cast(w_stride, tl.int64)
        if DETECT:
            bits = _regular(value, threshold)
            regular = masked(value, bits[None, :])
        else:
            regular = value
        code = _apart(encode(regular, inverse[:, None], x_zero_point[:, None], ZEROPOINT))
        if ZEROPOINT:
            code = tl.where(in_k[None, :], code, 0)  # what lies outside has the code of zero
            x_code_sums = tl.dot(code, tl.full((BLOCK_K, BLOCK_N), 1, tl.int8), x_code_sums, out_dtype=tl.int32)
            w_code_sums = tl.dot(tl.full((TILE_M, BLOCK_K), 1, tl.int8), w_block, w_code_sums, out_dtype=tl.int32)
        acc = tl.dot(code, w_block, acc, out_dtype=tl.int32)
        if DETECT:  # noqa: SIM102 (the compiler evaluates this test, the program the next)
            if tl.max((bits + 1).to(tl.int32), axis=0) > 0:
                x_o = masked(value, ~bits[None, :])
                if float_rows is not None:
                    f = float_rows[None, :] + (k + ks).to(tl.int64)[:, None] * float_stride
                    # A weight that is not finite may meet a zero here: its row has the scale NaN, so the result is NaN anyway.
                    part = outlier_product(x_o, tl.load(f, mask=in_k[:, None], other=0.0).T, part, None)
                else:
                    part = outlier_product(x_o, w_block.T, part, w_zero_point)

    if ZEROPOINT:
        acc = corrected(acc, x_zero_point[:, None], w_zero_point[None, :], x_code_sums, w_code_sums, K, WIDE)  # type: ignore[index]
    result = (acc.to(tl.float32) * x_scale[:, None]) * w_scale[None, :]
    if DETECT:
        result += part if float_rows is not None else from_code_units(part, w_scale)
    return result


@triton.jit
def _repeated(v, TILE_M: tl.constexpr):
    """(ROWS,) -> (TILE_M,): the values, repeated; those in the padding are not stored."""
    copies: tl.constexpr = TILE_M // v.shape[0]
    return tl.broadcast_to(v[None, :], (copies, v.shape[0])).reshape(TILE_M)


@triton.jit
def _regular(value, threshold):
    """Of each column of the block all bits, or none where it holds a magnitude of `threshold` or more: an operand of `masked`.

    A NaN is not an outlier. With the threshold 0 the padding counts as well: it adds zeros to the outlier product, and its rows are not
    stored.
    """
    largest = _of_columns(magnitude(value)).to(tl.float32)
    # Bits of numbers that are not negative sort as they do; the sign of their difference tells which is the larger one.
    below = tl.maximum(largest, 0.0).to(tl.int32, bitcast=True) - tl.cast(threshold, tl.float32).to(tl.int32, bitcast=True)
    return (below >> 31).to(tl.int16)


@triton.jit
def _apart(code):
    """code, made in the layout of the block of X, each once.

    Were all that makes it entry by entry, the compiler would do that in the layout of the matrix instruction's operand: once in each
    warp, and where X has few rows, again for each row of the instruction. It moves nothing across a reduction, here of one entry each.
    """
    return code if INTERPRETED else tl.reduce(code.reshape(code.shape[0], code.shape[1], 1), 2, larger)


@triton.jit
def _of_columns(size):
    """(columns,) the largest of each column of size (rows, columns).

    By halves: the same code on a GPU as `tl.reduce` with `larger`, which the interpreter would apply entry by entry.
    """
    HALF: tl.constexpr = size.shape[0] // 2
    if HALF == 0:
        return size.reshape(size.shape[1])
    else:
        upper, lower = tl.split(size.reshape(2, HALF, size.shape[1]).permute(1, 2, 0))
        return _of_columns(larger(upper, lower))


def launch_options(config: Decode, m: int) -> dict[str, Any]:
    """What `config` makes of the kernels around `layer_of_rows`, for m rows of X: their shapes, and how Triton is to compile them."""
    rows = triton.next_power_of_2(m)
    scan, threads = config.scan // rows, 32 * config.warps
    return {
        "ROWS": rows,
        "TILE_M": max(config.tile_m, rows),
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "SCAN_K": scan,
        "SCAN_OWN": max(1, scan // threads),
        "BLOCK_OWN": max(1, config.block_k // threads),
        "num_warps": config.warps,
        "num_stages": config.stages,
        **NO_FUSION,
        **all_registers(config.warps),
    }


def decode_linear(
    x: Tensor, weight: QuantizedWeight, bias: Tensor | None, threshold: float | None, per_row: bool, config: Decode | None = None
) -> Tensor:
    """(M, N) of x's dtype, for 0 < M <= DECODE_ROWS, N > 0; arguments as in `linear`."""
    (m, k), n, float_weight = x.shape, weight.codes.shape[0], weight.float_weight
    config = config or decode_configuration(architecture(x.device), m, n, not aligned(weight.codes))
    y = torch.empty(m, n, dtype=x.dtype, device=x.device)
    with torch.cuda.device_of(x):
        decode_kernel[(triton.cdiv(n, config.block_n),)](
            Matrix.of(x),
            Side.of_weight(weight),
            y,
            None if float_weight is None else Matrix.of(float_weight),
            bias,
            0.0 if threshold is None else threshold,
            m,
            n,
            k,
            DETECT=threshold is not None,
            PER_ROW=per_row,
            WIDE=weight.zero_point is not None and k >= WIDE_FROM,
            **launch_options(config, m),
        )
    return y
