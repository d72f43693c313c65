"""The product of codes, the outlier product and the epilogue, in one kernel.

One program owns a tile of Y, BLOCK_M x BLOCK_N:

              K ->                          1. int8 loop:    acc += X_codes[tile rows, k] @ W_codes[tile columns, k].T      int32, exact
    rows  [ . . . . . ]                     2. outlier loop: Y = (float32(acc) * scale_x) * scale_w
                                                             Y += X[tile rows, O] @ W[tile columns, O].T                    float32
          X codes, W codes                  3. epilogue:     + bias, cast, stored once

The second loop runs over the list that `compact` left in device memory: how often is read there too, so the host never
waits, and without outliers it costs one load of a zero. It reads the columns that `quantize_rows` has gathered, and those that
have no place there straight from X and W. An outlier weight is a float that the layer keeps, or its int8 code, widened in registers to
X's 16-bit type, in which code / 128 is exact. With `outliers` None the loop is not compiled at all.

The accumulators are turned into float32 where they are, and the outlier products are added to them: a tile of 128 x 256 fills half of
the registers, and a second set of sums would not fit beside it.

Neighbouring programs own tiles of GROUP_M rows of tiles, column by column, so that those running at one time read few
distinct tiles of both operands and find most of them in the second-level cache.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..weights import QuantizedWeight
from .arithmetic import INTERPRETED, NO_FUSION, rounded, weight_scale
from .configurations import Product, architecture, product_configuration
from .operands import aligned, sixteen_bits
from .outliers import Outliers

#: From here on the corrected zeropoint accumulator may leave int32: each of K terms is at most 255 * 255.
WIDE_FROM = (2**31 - 1) // 255**2 + 1


@triton.jit
def product_kernel(
    codes,
    w,
    codes_tiles,
    w_tiles,
    y,
    x,
    float_weight,
    bias,
    outliers,
    x_outliers,
    w_outliers,
    scale_x,
    scale_w,
    zero_x,
    zero_w,
    sum_x,
    sum_w,
    M,
    N,
    K,
    stride_qm,
    stride_qk,
    stride_wn,
    stride_wk,
    stride_xm,
    stride_xk,
    stride_fn,
    stride_fk,
    each_x,
    each_w,
    capacity,
    FROM_ABSMAX: tl.constexpr,
    WIDE: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_O: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """One program a tile of Y. Strides are in elements; None stands for what is not there and compiles away.

    codes: (M, K) int8, by stride_qm, stride_qk.
    w: (N, K) int8, by stride_wn, stride_wk.
    codes_tiles, w_tiles: tensor descriptors of the two, with blocks (BLOCK_M, BLOCK_K) and (BLOCK_N, BLOCK_K), where the copy
        engine loads the tiles; None where the threads do.
    y: (M, N), contiguous: int32 to store the bare accumulators (scale_x None), else X's dtype.
    x: (M, K) float16, bfloat16 or float32, by stride_xm, stride_xk; read in outlier columns only.
    float_weight: (N, K) of a floating dtype, by stride_fn, stride_fk; None takes the outlier weights from w.
    bias: (N,) of a floating dtype.
    outliers: (K + 1,) int32, the columns of `Outliers`.
    x_outliers, w_outliers: (M, capacity), (N, capacity), as in `Outliers`; None where nothing was gathered.
    scale_x, scale_w: float32, one a row (each_x, each_w are 1) or one in all (0).
    zero_x, zero_w: int32, as the scales; None for absmax.
    sum_x, sum_w: (M,), (N,) int32, sums of the rows of codes; None for absmax.
    FROM_ABSMAX: scale_w are the largest magnitudes, as in `weight_scale`.
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

    # Asked for here, so that the answer is there when the int8 loop is done.
    count = tl.load(outliers + K) if outliers is not None else 0
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    if w_tiles is not None:
        # --8<-- [start:int8-loop]
        # The copy engine fills with zeros what lies outside.
        for k in range(0, K, BLOCK_K):
            a_block = codes_tiles.load([tile_m * BLOCK_M, k])
            b_block = w_tiles.load([tile_n * BLOCK_N, k])
            acc = tl.dot(a_block, b_block.T, acc, out_dtype=tl.int32)
        # --8<-- [end:int8-loop]
    else:
        # Rows past the end repeat the last one: they are computed and not stored, and the loads need no mask.
        rows = tl.minimum(tile_m * BLOCK_M + tl.arange(0, BLOCK_M), M - 1).to(tl.int64)
        columns = tl.minimum(tile_n * BLOCK_N + tl.arange(0, BLOCK_N), N - 1).to(tl.int64)
        ks = tl.arange(0, BLOCK_K)
        a = codes + rows[:, None] * stride_qm + ks.to(tl.int64)[None, :] * stride_qk
        b = w + columns[:, None] * stride_wn + ks.to(tl.int64)[None, :] * stride_wk
        for k in range(0, K, BLOCK_K):
            if EVEN_K:
                a_block = tl.load(a)
                b_block = tl.load(b)
            else:
                a_block = tl.load(a, mask=(ks < K - k)[None, :], other=0)
                b_block = tl.load(b, mask=(ks < K - k)[None, :], other=0)
            acc = tl.dot(a_block, b_block.T, acc, out_dtype=tl.int32)
            a += BLOCK_K * tl.cast(stride_qk, tl.int64)
            b += BLOCK_K * tl.cast(stride_wk, tl.int64)

    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    in_m = rows < M
    in_n = columns < N
    target = y + rows.to(tl.int64)[:, None] * N + columns[None, :]
    if scale_x is None:
        tl.store(target, acc, mask=in_m[:, None] & in_n[None, :])
    else:
        sx = tl.load(scale_x + rows * each_x, mask=in_m, other=0.0)
        sw = weight_scale(tl.load(scale_w + columns * each_w, mask=in_n, other=0.0), FROM_ABSMAX)
        zw = tl.load(zero_w + columns * each_w, mask=in_n, other=0) if zero_w is not None else None
        if zero_x is not None:
            zx = tl.load(zero_x + rows * each_x, mask=in_m, other=0)
            x_sum = tl.load(sum_x + rows, mask=in_m, other=0)
            w_sum = tl.load(sum_w + columns, mask=in_n, other=0)
            acc = corrected(acc, zx[:, None], zw[None, :], x_sum[:, None], w_sum[None, :], K, WIDE)  # type: ignore[index]
        if outliers is None:
            result = (acc.to(tl.float32) * sx[:, None]) * sw[None, :]
        else:
            x_numbers = tl.minimum(rows, M - 1).to(tl.int64)
            w_numbers = tl.minimum(columns, N - 1).to(tl.int64)
            x_rows = x + x_numbers * stride_xm
            # --8<-- [start:outliers-in-place]
            if float_weight is not None:
                w_rows = float_weight + w_numbers * stride_fn
                stride_k = stride_fk
                result = (acc.to(tl.float32) * sx[:, None]) * sw[None, :]
            else:
                w_rows = w + w_numbers * stride_wn
                stride_k = stride_wk
                # sx is 0 or at least 2**-100 / 127: dividing it by a power of two is exact.
                result = acc.to(tl.float32) * (sx * (1 / CODE_UNIT))[:, None]
            gathered = 0
            if x_outliers is not None:
                gathered = tl.minimum(count, capacity)
                x_side = x_outliers + x_numbers * capacity
                w_side = w_outliers + w_numbers * capacity
                result = _outlier_columns(result, x_side, 1, w_side, 1, zw, None, 0, gathered, BLOCK_O)
            result = _outlier_columns(result, x_rows, stride_xk, w_rows, stride_k, zw, outliers, gathered, count, BLOCK_O)
            if float_weight is None:
                result = from_code_units(result, sw)
            # --8<-- [end:outliers-in-place]
        if bias is not None:
            result += tl.load(bias + columns, mask=in_n, other=0).to(tl.float32)[None, :]
        tl.store(target, rounded(result, y.dtype.element_ty), mask=in_m[:, None] & in_n[None, :])


@triton.jit
def _outlier_columns(result, x_rows, stride_xk, w_rows, stride_wk, zero_w, outliers, first, last, BLOCK_O: tl.constexpr):
    """result (M, N) + X[rows, O] @ W[columns, O].T in float32, O the entries first to last - 1 of `outliers`; W's codes as in `widened`.

    x_rows (M,), w_rows (N,): pointers to column 0 of the rows. zero_w (N,), or None.
    outliers: None for gathered columns, which lie in their order and end in a block filled up with zeros.
    """
    if has_matrix_product(x_rows.dtype.element_ty, w_rows.dtype.element_ty):
        for o in tl.range(first, last, BLOCK_O, num_stages=1):
            listed = o + tl.arange(0, BLOCK_O)
            if outliers is None:
                x_o = tl.load(x_rows[:, None] + listed[None, :])
                w_o = tl.load(w_rows[:, None] + listed[None, :])
            else:
                live = listed < last
                column = tl.load(outliers + listed, mask=live, other=0).to(tl.int64)[None, :]
                x_o = tl.load(x_rows[:, None] + column * stride_xk, mask=live[None, :], other=0)
                w_o = tl.load(w_rows[:, None] + column * stride_wk, mask=live[None, :], other=0)
            result = outlier_product(x_o, w_o, result, zero_w)
    else:
        # No matrix instruction has the precision of float32, so one column after the other.
        for o in tl.range(first, last, num_stages=1):
            column = tl.load(outliers + o).to(tl.int64)
            x_o = tl.load(x_rows + column * stride_xk).to(tl.float32)
            w_o = tl.load(w_rows + column * stride_wk)
            result += x_o[:, None] * widened(w_o, zero_w)[None, :]
    return result


#: Where outlier weights are taken from the codes, the float32 sums are in units of scale_w * CODE_UNIT: a code, less a zero point at
#: most 255 in magnitude, enters as code / 128: exact in both 16-bit types, and at most 2, so that a product overflows no sooner than x * 2.
CODE_UNIT = tl.constexpr(128.0)


@triton.jit
def from_code_units(result, scale_w):
    """result * (scale_w * CODE_UNIT), in two steps: the factor alone may overflow, half of it does not. scale_w (N,)."""
    return (result * (scale_w * (CODE_UNIT / 2))[None, :]) * 2.0


@triton.constexpr_function
def has_matrix_product(x, w):
    """Whether the outlier product of these element types runs on 16-bit matrix instructions without narrowing either."""
    return x.primitive_bitwidth == 16 and (w == tl.int8 or w == x)


@triton.jit
def widened(w, zero_w):
    """Outlier weights in float32: codes as (code - zero_w) / CODE_UNIT, floats as they are. zero_w: as w by broadcasting, or None."""
    if w.dtype == tl.int8:
        if zero_w is not None:
            w = w.to(tl.int32) - zero_w
        return w.to(tl.float32) * (1 / CODE_UNIT)
    else:
        return w.to(tl.float32)


@triton.jit
def outlier_product(x, w, result, zero_w):
    """result + x @ w.T, accumulated in float32.

    x (M, O) of X's 16-bit dtype; w (N, O) of the same dtype, or int8 codes, as in `widened`. zero_w (N,), or None.
    """
    if w.dtype == tl.int8:
        w = widened(w, zero_w[:, None] if zero_w is not None else None).to(x.dtype)
    if INTERPRETED and x.dtype == tl.bfloat16:
        x = x.to(tl.float32)
        w = w.to(tl.float32)
    return tl.dot(x, w.T, result, input_precision="ieee")


@triton.jit
def corrected(acc, zx, zw, sum_x, sum_w, K, WIDE: tl.constexpr):
    """sum (xq - zx)(wq - zw), from acc = sum xq wq, exactly. acc (M, N); zx, sum_x (M, 1); zw, sum_w (1, N)."""
    if WIDE:
        acc = acc.to(tl.int64)
        zx = zx.to(tl.int64)
        zw = zw.to(tl.int64)
    return acc - zx * sum_w - zw * sum_x + K * zx * zw


def launch_product(
    codes: Tensor,
    w: Tensor,
    y: Tensor,
    x: Tensor | None = None,
    weight: QuantizedWeight | None = None,
    bias: Tensor | None = None,
    outliers: Outliers | None = None,
    scale: Tensor | None = None,
    zero_point: Tensor | None = None,
    code_sum: Tensor | None = None,
    config: Product | None = None,
) -> Tensor:
    """Fills `y` (M, N), neither of them 0, from codes (M, K) and w (N, K); the rest as in `product_kernel`."""
    (m, k), n = codes.shape, w.shape[0]
    float_weight = None if weight is None else weight.float_weight
    wide = zero_point is not None and k >= WIDE_FROM
    if config is None:
        general = wide or not (aligned(codes) and aligned(w)) or not (x is None or sixteen_bits(x, float_weight))
        config = product_configuration(architecture(codes.device), m, n, general)
    tiles = config.tma and k > 0
    with torch.cuda.device_of(codes):
        product_kernel[(triton.cdiv(m, config.block_m) * triton.cdiv(n, config.block_n),)](
            codes,
            w,
            TensorDescriptor.from_tensor(codes, [config.block_m, config.block_k]) if tiles else None,
            TensorDescriptor.from_tensor(w, [config.block_n, config.block_k]) if tiles else None,
            y,
            x,
            float_weight,
            bias,
            None if outliers is None else outliers.columns,
            None if outliers is None else outliers.x,
            None if outliers is None else outliers.w,
            scale,
            None if weight is None else weight.stored_scale,
            zero_point,
            None if weight is None else weight.zero_point,
            code_sum,
            None if weight is None or weight.zero_point is None else weight.codes.sum(-1, dtype=torch.int32),
            m,
            n,
            k,
            codes.stride(0),
            codes.stride(1),
            w.stride(0),
            w.stride(1),
            0 if x is None else x.stride(0),
            0 if x is None else x.stride(1),
            0 if float_weight is None else float_weight.stride(0),
            0 if float_weight is None else float_weight.stride(1),
            0 if scale is None else int(scale.numel() > 1),
            0 if weight is None else int(weight.stored_scale.numel() > 1),
            0 if outliers is None or outliers.x is None else outliers.x.shape[1],
            FROM_ABSMAX=weight is not None and weight.absmax is not None,
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


def int8_matmul(a: Tensor, b: Tensor) -> Tensor:
    """a (M, K) @ b (N, K).T in int32, exact."""
    y = torch.empty(a.shape[0], b.shape[0], dtype=torch.int32, device=a.device)
    return y if y.numel() == 0 else launch_product(a, b, y)
