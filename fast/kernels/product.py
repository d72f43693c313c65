"""The product of codes, the outlier product and the epilogue, in one kernel.

One program owns a tile of Y, BLOCK_M x BLOCK_N:

              K ->                          1. int8 loop:    acc += X_codes[tile rows, k] @ W_codes[tile columns, k].T      int32, exact
    rows  [ . . . . . ]                     2. outlier loop: Y = (float32(acc) * x_scale) * w_scale
                                                             Y += X[tile rows, O] @ W[tile columns, O].T                    float32
          X codes, W codes                  3. epilogue:     + bias, cast, stored once

The second loop runs over the list that `compact` left in device memory: the trip count is read from device memory as well, so the
host never synchronizes, and without outliers the loop costs one load of a zero. It reads the columns that `quantize_rows` has
gathered; columns that did not fit in the buffer are read directly from X and W. An outlier weight is a float that the layer keeps, or
its int8 code, widened in registers to X's 16-bit type, in which code / 128 is exact. Without `DECOMPOSE` the loop is compiled out.

The accumulators are converted to float32 in place, and the outlier products are added to them: a tile of 128 x 256 fills half of
the registers, and a second set of sums would not fit beside it.

Neighbouring programs own tiles of GROUP_M rows of tiles, column by column, so that programs that run at the same time read few
distinct tiles of both operands, most of them from the second-level cache.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..weights import QuantizedWeight
from .arithmetic import INTERPRETED, NO_FUSION, absmax_scale, rounded
from .configurations import Product, architecture, product_configuration
from .operands import Matrix, Quantized, Side, aligned, sixteen_bits

#: From this K on, the corrected zeropoint accumulator can overflow int32: each of K terms is at most 255 * 255.
WIDE_FROM = (2**31 - 1) // 255**2 + 1

#: Outlier columns read in place, at a time: one step of a 16-bit matrix instruction. The addresses of more would spill.
IN_PLACE = tl.constexpr(16)


@triton.jit
def product_kernel(
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
    DECOMPOSE: tl.constexpr,
    WIDE: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_O: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """One program per tile of Y. Pass None for an absent operand; its code is compiled out.

    x_side, w_side: Side (M, K) and (N, K); the tiles of both, with blocks (BLOCK_M, BLOCK_K) and (BLOCK_N, BLOCK_K), or of neither.
    y: (M, N), contiguous: int32 to store the bare accumulators (no scale), else X's dtype.
    x: Matrix (M, K), float16, bfloat16 or float32; read in outlier columns only.
    float_weight: Matrix (N, K) of a floating dtype; None takes the outlier weights from the codes.
    bias: (N,) of a floating dtype.
    outliers: Outliers, x and w None where nothing was gathered; None where no column is an outlier.
    DECOMPOSE: outliers is not None, which Triton 3.6 cannot tell of a record with an absent field.
    WIDE: the zeropoint correction needs 64 bits.
    EVEN_K: BLOCK_K divides K, so the int8 loop needs no mask.
    """
    program = tl.program_id(0)
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    in_group = GROUP_M * tiles_n
    first_m = program // in_group * GROUP_M
    group_m = tl.minimum(tiles_m - first_m, GROUP_M)
    tile_m = first_m + program % in_group % group_m
    tile_n = program % in_group // group_m

    # Load the count now, so that its latency is hidden by the int8 loop.
    count = tl.load(outliers.columns + K) if DECOMPOSE else 0
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    if w_side.tiles is not None:
        # --8<-- [start:int8-loop]
        # The copy engine fills entries outside of the matrix with zeros.
        for k in range(0, K, BLOCK_K):
            x_block = x_side.tiles.load([tile_m * BLOCK_M, k])
            w_block = w_side.tiles.load([tile_n * BLOCK_N, k])
            acc = tl.dot(x_block, w_block.T, acc, out_dtype=tl.int32)
        # --8<-- [end:int8-loop]
    else:
        # Rows past the end repeat the last one: they are computed and not stored, and the loads need no mask.
        rows = tl.minimum(tile_m * BLOCK_M + tl.arange(0, BLOCK_M), M - 1).to(tl.int64)
        columns = tl.minimum(tile_n * BLOCK_N + tl.arange(0, BLOCK_N), N - 1).to(tl.int64)
        ks = tl.arange(0, BLOCK_K)
        x_codes = x_side.codes.pointer + rows[:, None] * x_side.codes.stride_row + ks.to(tl.int64)[None, :] * x_side.codes.stride_column
        w_codes = w_side.codes.pointer + columns[:, None] * w_side.codes.stride_row + ks.to(tl.int64)[None, :] * w_side.codes.stride_column
        for k in range(0, K, BLOCK_K):
            if EVEN_K:
                x_block = tl.load(x_codes)
                w_block = tl.load(w_codes)
            else:
                x_block = tl.load(x_codes, mask=(ks < K - k)[None, :], other=0)
                w_block = tl.load(w_codes, mask=(ks < K - k)[None, :], other=0)
            acc = tl.dot(x_block, w_block.T, acc, out_dtype=tl.int32)
            x_codes += BLOCK_K * tl.cast(x_side.codes.stride_column, tl.int64)
            w_codes += BLOCK_K * tl.cast(w_side.codes.stride_column, tl.int64)

    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    in_m = rows < M
    in_n = columns < N
    target = y + rows.to(tl.int64)[:, None] * N + columns[None, :]
    if x_side.scale is None:
        tl.store(target, acc, mask=in_m[:, None] & in_n[None, :])
    else:
        x_scale = tl.load(x_side.scale + rows * x_side.per_row, mask=in_m, other=0.0)
        if w_side.absmax is None:
            w_scale = tl.load(w_side.scale + columns * w_side.per_row, mask=in_n, other=0.0)
        else:
            w_scale = absmax_scale(tl.load(w_side.absmax + columns * w_side.per_row, mask=in_n, other=0.0))
        w_zero_point = None
        if w_side.zero_point is not None:
            w_zero_point = tl.load(w_side.zero_point + columns * w_side.per_row, mask=in_n, other=0)
        if x_side.zero_point is not None:
            x_zero_point = tl.load(x_side.zero_point + rows * x_side.per_row, mask=in_m, other=0)
            x_code_sum = tl.load(x_side.code_sum + rows, mask=in_m, other=0)
            w_code_sum = tl.load(w_side.code_sum + columns, mask=in_n, other=0)
            acc = corrected(acc, x_zero_point[:, None], w_zero_point[None, :], x_code_sum[:, None], w_code_sum[None, :], K, WIDE)  # type: ignore[index]
        if not DECOMPOSE:
            result = (acc.to(tl.float32) * x_scale[:, None]) * w_scale[None, :]
        else:
            x_numbers = tl.minimum(rows, M - 1).to(tl.int64)
            w_numbers = tl.minimum(columns, N - 1).to(tl.int64)
            x_rows = x.pointer + x_numbers * x.stride_row
            # --8<-- [start:outliers-in-place]
            if float_weight is not None:
                outlier_weight = float_weight
                result = (acc.to(tl.float32) * x_scale[:, None]) * w_scale[None, :]
            else:
                outlier_weight = w_side.codes
                # x_scale is 0 or at least 2**-100 / 127: dividing it by a power of two is exact.
                result = acc.to(tl.float32) * (x_scale * (1 / CODE_UNIT))[:, None]
            w_rows = outlier_weight.pointer + w_numbers * outlier_weight.stride_row
            gathered = 0
            if outliers.x is not None:
                gathered = tl.minimum(count, outliers.capacity)
                x_gathered = outliers.x + x_numbers * outliers.capacity
                w_gathered = outliers.w + w_numbers * outliers.capacity
                result = add_outlier_columns(result, x_gathered, 1, w_gathered, 1, w_zero_point, None, 0, gathered, BLOCK_O)
            w_stride = outlier_weight.stride_column
            listed = outliers.columns
            result = add_outlier_columns(result, x_rows, x.stride_column, w_rows, w_stride, w_zero_point, listed, gathered, count, IN_PLACE)
            if float_weight is None:
                result = from_code_units(result, w_scale)
            # --8<-- [end:outliers-in-place]
        if bias is not None:
            result += tl.load(bias + columns, mask=in_n, other=0).to(tl.float32)[None, :]
        tl.store(target, rounded(result, y.dtype.element_ty), mask=in_m[:, None] & in_n[None, :])


@triton.jit
def add_outlier_columns(result, x_rows, x_stride_column, w_rows, w_stride_column, w_zero_point, listed, first, last, BLOCK_O: tl.constexpr):
    """result (M, N) + X[rows, O] @ W[columns, O].T in float32, O the entries first to last - 1 of `listed`; W's codes as in `widened`.

    x_rows (M,), w_rows (N,): pointers to column 0 of the rows. w_zero_point (N,), or None.
    listed: int32, column numbers; None for gathered columns, which lie in their order and end in a block filled up with zeros.
    """
    if has_matrix_product(x_rows.dtype.element_ty, w_rows.dtype.element_ty):
        for o in tl.range(first, last, BLOCK_O, num_stages=1):
            places = o + tl.arange(0, BLOCK_O)
            if listed is None:
                x_o = tl.load(x_rows[:, None] + places[None, :])
                w_o = tl.load(w_rows[:, None] + places[None, :])
            else:
                live = places < last
                column = tl.load(listed + places, mask=live, other=0).to(tl.int64)[None, :]
                x_o = tl.load(x_rows[:, None] + column * x_stride_column, mask=live[None, :], other=0)
                w_o = tl.load(w_rows[:, None] + column * w_stride_column, mask=live[None, :], other=0)
            result = outlier_product(x_o, w_o, result, w_zero_point)
    else:
        # No matrix instruction has the precision of float32, so this adds one column at a time.
        for o in tl.range(first, last, num_stages=1):
            column = tl.load(listed + o).to(tl.int64)
            x_o = tl.load(x_rows + column * x_stride_column).to(tl.float32)
            w_o = tl.load(w_rows + column * w_stride_column)
            result += x_o[:, None] * widened(w_o, w_zero_point)[None, :]
    return result


#: Where outlier weights are taken from the codes, the float32 sums are in units of w_scale * CODE_UNIT: a code, less a zero point at
#: most 255 in magnitude, enters as code / 128: exact in both 16-bit types, and at most 2, so that a product overflows no sooner than x * 2.
CODE_UNIT = tl.constexpr(128.0)

#: The bits of 8.0 in float16, and the one whose inversion adds 128 to a code.
LIFTED_CODE = tl.constexpr(0x4800 ^ 0x80)


@triton.jit
def from_code_units(result, w_scale):
    """result * (w_scale * CODE_UNIT), in two steps: the factor alone may overflow, half of it does not. w_scale (N,)."""
    return (result * (w_scale * (CODE_UNIT / 2))[None, :]) * 2.0


@triton.constexpr_function
def has_matrix_product(x, w):
    """Whether the outlier product of these element types runs on 16-bit matrix instructions without narrowing either."""
    return x.primitive_bitwidth == 16 and (w == tl.int8 or w == x)


@triton.jit
def widened(w, w_zero_point):
    """Outlier weights in float32: codes as (code - w_zero_point) / CODE_UNIT, floats as they are.

    w_zero_point: as w by broadcasting, or None.
    """
    if w.dtype == tl.int8:
        if w_zero_point is not None:
            w = w.to(tl.int32) - w_zero_point
        return w.to(tl.float32) * (1 / CODE_UNIT)
    else:
        return w.to(tl.float32)


@triton.jit
def widened_to_sixteen(w, w_zero_point):
    """As `widened`, of codes, in float16, by operations on two entries at a time; conversions of integers go one at a time, at a quarter of the rate.

    From 8 to 16 the step of float16 is 1 / CODE_UNIT: with 8's exponent, the bits of code + 128 make 8 + (code + 128) / CODE_UNIT.
    """
    lifted = (w.to(tl.uint8, bitcast=True).to(tl.int16) ^ LIFTED_CODE).to(tl.float16, bitcast=True)
    if w_zero_point is not None:
        # Exact, as each step: multiples of 1 / CODE_UNIT below 2 in magnitude, at most 10 and 11 before.
        return lifted - (w_zero_point.to(tl.float32) * (1 / CODE_UNIT) + 9.0).to(tl.float16)
    else:
        return lifted - 9.0


@triton.jit
def outlier_product(x, w, result, w_zero_point):
    """result + x @ w.T, accumulated in float32.

    x (M, O) of X's 16-bit dtype; w (N, O) of the same dtype, or int8 codes, as in `widened`. w_zero_point (N,), or None.
    """
    if w.dtype == tl.int8:
        w = widened_to_sixteen(w, w_zero_point[:, None] if w_zero_point is not None else None).to(x.dtype)
    if INTERPRETED and x.dtype == tl.bfloat16:
        x = x.to(tl.float32)
        w = w.to(tl.float32)
    return tl.dot(x, w.T, result, input_precision="ieee")


@triton.jit
def corrected(acc, x_zero_point, w_zero_point, x_code_sum, w_code_sum, K, WIDE: tl.constexpr):
    """The sum of (x - x_zero_point) * (w - w_zero_point) over codes, exactly, from `acc`, the sum of x * w.

    acc (M, N); x_zero_point, x_code_sum (M, 1); w_zero_point, w_code_sum (1, N).
    """
    if WIDE:
        acc = acc.to(tl.int64)
        x_zero_point = x_zero_point.to(tl.int64)
        w_zero_point = w_zero_point.to(tl.int64)
    return acc - x_zero_point * w_code_sum - w_zero_point * x_code_sum + K * x_zero_point * w_zero_point


def launch_product(
    quantized: Quantized,
    weight: QuantizedWeight | Quantized,
    y: Tensor,
    x: Tensor | None = None,
    float_weight: Tensor | None = None,
    bias: Tensor | None = None,
    config: Product | None = None,
) -> Tensor:
    """Fills `y` (M, N), neither of them 0, from a quantized X (M, K) and W (N, K); the other tensors as in `product_kernel`."""
    codes, w = quantized.codes, weight.codes
    (m, k), n = codes.shape, w.shape[0]
    wide = quantized.zero_point is not None and k >= WIDE_FROM
    if config is None:
        general = wide or not (aligned(codes) and aligned(w)) or not (x is None or sixteen_bits(x, float_weight))
        config = product_configuration(architecture(codes.device), m, n, general)
    x_tiles = w_tiles = None
    if config.tma and k > 0:
        x_tiles = TensorDescriptor.from_tensor(codes, [config.block_m, config.block_k])
        w_tiles = TensorDescriptor.from_tensor(w, [config.block_n, config.block_k])
    with torch.cuda.device_of(codes):
        product_kernel[(triton.cdiv(m, config.block_m) * triton.cdiv(n, config.block_n),)](
            Side.of(quantized, x_tiles),
            _weight_side(weight, w_tiles),
            y,
            None if x is None else Matrix.of(x),
            None if float_weight is None else Matrix.of(float_weight),
            bias,
            quantized.outliers,
            m,
            n,
            k,
            DECOMPOSE=quantized.outliers is not None,
            WIDE=wide,
            EVEN_K=k % config.block_k == 0,
            BLOCK_M=config.block_m,
            BLOCK_N=config.block_n,
            BLOCK_K=config.block_k,
            BLOCK_O=config.block_o,
            GROUP_M=config.group_m,
            num_warps=config.warps,
            num_stages=config.stages,
            **NO_FUSION,
        )
    return y


def _weight_side(weight: QuantizedWeight | Quantized, tiles: Any) -> Side:
    if isinstance(weight, Quantized):
        return Side.of(weight, tiles)
    return Side.of_weight(weight, tiles, None if weight.zero_point is None else code_sums(weight.codes))


def code_sums(codes: Tensor) -> Tensor:
    """(rows,) int32, the sums of the rows of codes; taken in every call, since W may have been written to since the last."""
    return codes.sum(-1, dtype=torch.int32)


def quantized_product(
    x: Tensor, quantized: Quantized, weight: QuantizedWeight, bias: Tensor | None = None, config: Product | None = None
) -> Tensor:
    """(M, N) of x's dtype, neither of them 0: the product of the quantized x (M, K) and a weight, with outlier columns and bias."""
    y = torch.empty(x.shape[0], weight.codes.shape[0], dtype=x.dtype, device=x.device)
    return launch_product(quantized, weight, y, x, weight.float_weight, bias, config)


def int8_matmul(a: Tensor, b: Tensor) -> Tensor:
    """a (M, K) @ b (N, K).T in int32, exact."""
    y = torch.empty(a.shape[0], b.shape[0], dtype=torch.int32, device=a.device)
    return y if y.numel() == 0 else launch_product(Quantized(a), Quantized(b), y)
