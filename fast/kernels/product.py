"""The product of codes, the outlier product and the epilogue, in one kernel.

One program owns a tile of Y, BLOCK_M x BLOCK_N:

              K ->                          1. int8 loop:    acc += X_codes[tile rows, k] @ W_codes[tile columns, k].T      int32, exact
    rows  [ . . . . . ]                     2. outlier loop: part += X[tile rows, O] @ W[tile columns, O].T                 float32
          X codes, W codes                  3. epilogue:     (float32(acc) * scale_x) * scale_w + part + bias, cast, stored once

The second loop runs over the list that `compact` left in device memory: how often is read there too, so the host never
waits, and without outliers it costs one load of a zero. It gathers the columns straight from X and from W: an outlier weight
is its int8 code, widened in registers to X's 16-bit type, in which code / 128 is exact, and scaled in float32 afterwards.
Nothing of what it computes goes through memory. With `outliers` None the loop is not compiled at all.

Neighbouring programs own tiles of GROUP_M rows of tiles, column by column, so that those running at one time read few
distinct tiles of both operands and find most of them in the second-level cache.

The float32 accumulators of step 2 come on top of the int32 ones, which fill half of the registers where a tile is wide: steps 2 and
3 therefore run on one of PARTS groups of the tile's columns after another, while the int8 loop, where the time goes, keeps the
wide tile.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..weights import QuantizedWeight
from .arithmetic import NO_FUSION
from .configurations import Product, architecture, product_configuration

#: The interpreter holds bfloat16 as bit patterns, and its dot would multiply those; products in float32 are the same numbers.
WIDEN_BFLOAT16 = tl.constexpr(bool(triton.knobs.runtime.interpret))

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
    WIDE: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_O: tl.constexpr,
    GROUP_M: tl.constexpr,
    PARTS: tl.constexpr,
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
    outliers: (K + 1,) int32, as `compact` stores it.
    scale_x, scale_w: float32, one a row (each_x, each_w are 1) or one in all (0).
    zero_x, zero_w: int32, as the scales; None for absmax.
    sum_x, sum_w: (M,), (N,) int32, sums of the rows of codes; None for absmax.
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

    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    if w_tiles is not None:
        # The copy engine fills with zeros what lies outside.
        for k in range(0, K, BLOCK_K):
            a_block = codes_tiles.load([tile_m * BLOCK_M, k])
            b_block = w_tiles.load([tile_n * BLOCK_N, k])
            acc = tl.dot(a_block, b_block.T, acc, out_dtype=tl.int32)
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

    _finish(
        acc, tile_m * BLOCK_M, tile_n * BLOCK_N, w, y, x, float_weight, bias, outliers,
        scale_x, scale_w, zero_x, zero_w, sum_x, sum_w, M, N, K,
        stride_wn, stride_wk, stride_xm, stride_xk, stride_fn, stride_fk, each_x, each_w, WIDE, BLOCK_M, BLOCK_N, BLOCK_O, PARTS,
    )  # fmt: skip


@triton.jit
def _finish(
    acc, first_row, first_column, w, y, x, float_weight, bias, outliers,
    scale_x, scale_w, zero_x, zero_w, sum_x, sum_w, M, N, K,
    stride_wn, stride_wk, stride_xm, stride_xk, stride_fn, stride_fk, each_x, each_w,
    WIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_O: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Steps 2 and 3 for the accumulators `acc` of the tile that starts at first_row, first_column."""
    if PARTS > 1:
        left, right = tl.split(acc.reshape(BLOCK_M, 2, BLOCK_N // 2).permute(0, 2, 1))
        _finish(
            left, first_row, first_column, w, y, x, float_weight, bias, outliers,
            scale_x, scale_w, zero_x, zero_w, sum_x, sum_w, M, N, K, stride_wn, stride_wk, stride_xm, stride_xk,
            stride_fn, stride_fk, each_x, each_w, WIDE, BLOCK_M, BLOCK_N // 2, BLOCK_O, PARTS // 2,
        )  # fmt: skip
        _finish(
            right, first_row, first_column + BLOCK_N // 2, w, y, x, float_weight, bias, outliers,
            scale_x, scale_w, zero_x, zero_w, sum_x, sum_w, M, N, K, stride_wn, stride_wk, stride_xm, stride_xk,
            stride_fn, stride_fk, each_x, each_w, WIDE, BLOCK_M, BLOCK_N // 2, BLOCK_O, PARTS // 2,
        )  # fmt: skip
    else:
        rows = first_row + tl.arange(0, BLOCK_M)
        columns = first_column + tl.arange(0, BLOCK_N)
        in_m = rows < M
        in_n = columns < N
        target = y + rows.to(tl.int64)[:, None] * N + columns[None, :]
        if scale_x is None:
            tl.store(target, acc, mask=in_m[:, None] & in_n[None, :])
        else:
            if outliers is not None:
                x_rows = x + tl.minimum(rows, M - 1).to(tl.int64) * stride_xm
                in_w = tl.minimum(columns, N - 1)
                zw = tl.load(zero_w + in_w * each_w) if zero_w is not None else None
                if float_weight is not None:
                    w_rows = float_weight + in_w.to(tl.int64) * stride_fn
                    part = _outlier_columns(x_rows, stride_xk, w_rows, stride_fk, None, outliers, K, BLOCK_M, BLOCK_N, BLOCK_O)
                else:
                    w_rows = w + in_w.to(tl.int64) * stride_wn
                    part = _outlier_columns(x_rows, stride_xk, w_rows, stride_wk, zw, outliers, K, BLOCK_M, BLOCK_N, BLOCK_O)
            # Loaded only now, so that the outlier loop has their registers.
            sx = tl.load(scale_x + rows * each_x, mask=in_m, other=0.0)
            sw = tl.load(scale_w + columns * each_w, mask=in_n, other=0.0)
            if zero_x is not None:
                zx = tl.load(zero_x + rows * each_x, mask=in_m, other=0)
                zw = tl.load(zero_w + columns * each_w, mask=in_n, other=0)
                x_sum = tl.load(sum_x + rows, mask=in_m, other=0)
                w_sum = tl.load(sum_w + columns, mask=in_n, other=0)
                acc = corrected(acc, zx, zw, x_sum, w_sum, K, WIDE)
            result = (acc.to(tl.float32) * sx[:, None]) * sw[None, :]
            if outliers is not None:
                result += part if float_weight is not None else scaled(part, sw)
            if bias is not None:
                result += tl.load(bias + columns, mask=in_n, other=0).to(tl.float32)[None, :]
            tl.store(target, result.to(y.dtype.element_ty), mask=in_m[:, None] & in_n[None, :])


@triton.jit
def _outlier_columns(
    x_rows, stride_xk, w_rows, stride_wk, zero_w, outliers, K, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_O: tl.constexpr
):
    """X[rows, O] @ W[columns, O].T in float32; W's codes count as in `outlier_product`.

    x_rows (BLOCK_M,), w_rows (BLOCK_N,): pointers to column 0 of the rows. zero_w (BLOCK_N,), or None.
    """
    count = tl.load(outliers + K)
    part = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if has_matrix_product(x_rows.dtype.element_ty, w_rows.dtype.element_ty):
        for o in tl.range(0, count, BLOCK_O, num_stages=1):
            listed = o + tl.arange(0, BLOCK_O)
            live = listed < count
            column = tl.load(outliers + listed, mask=live, other=0).to(tl.int64)[None, :]
            x_o = tl.load(x_rows[:, None] + column * stride_xk, mask=live[None, :], other=0)
            w_o = tl.load(w_rows[:, None] + column * stride_wk, mask=live[None, :], other=0)
            part = outlier_product(x_o, w_o, part, zero_w)
    else:
        # No matrix instruction has the precision of float32, so one column after the other.
        for o in tl.range(count, num_stages=1):
            column = tl.load(outliers + o).to(tl.int64)
            x_o = tl.load(x_rows + column * stride_xk).to(tl.float32)
            w_o = tl.load(w_rows + column * stride_wk)
            part += x_o[:, None] * widened(w_o, zero_w)[None, :]
    return part


#: Outlier codes enter their product as code / 128: at most 2 in magnitude, so that the product of a large x and a code does not
#: overflow where that of x and its weight does not; exact, being a power of two.
CODE_UNIT = tl.constexpr(128.0)


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
def outlier_product(x, w, part, zero_w):
    """part + x @ w.T, accumulated in float32.

    x (M, O) of X's 16-bit dtype; w (N, O) of the same dtype, or int8 codes: a code, less a zero point at most 255 in magnitude,
    is exact in float16 and in bfloat16. zero_w (N,), or None.
    """
    if w.dtype == tl.int8:
        w = widened(w, zero_w[:, None] if zero_w is not None else None).to(x.dtype)
    if WIDEN_BFLOAT16 and x.dtype == tl.bfloat16:
        x = x.to(tl.float32)
        w = w.to(tl.float32)
    return tl.dot(x, w.T, part, input_precision="ieee")


@triton.jit
def scaled(part, scale_w):
    """The outlier product of codes, of which each stood for code / CODE_UNIT, times the scales (N,) of W."""
    # In two steps: the largest scale, a 127th of the largest float32, times CODE_UNIT alone is infinite, and 0 times that is NaN.
    return part * (scale_w * (CODE_UNIT / 2))[None, :] * 2.0


@triton.jit
def corrected(acc, zx, zw, sum_x, sum_w, K, WIDE: tl.constexpr):
    """sum (xq - zx)(wq - zw), from acc = sum xq wq, exactly. acc (M, N); zx, sum_x (M,); zw, sum_w (N,)."""
    if WIDE:
        acc = acc.to(tl.int64)
        zx = zx.to(tl.int64)
        zw = zw.to(tl.int64)
    return acc - zx[:, None] * sum_w[None, :] - zw[None, :] * sum_x[:, None] + K * zx[:, None] * zw[None, :]


def launch_product(
    codes: Tensor,
    w: Tensor,
    y: Tensor,
    x: Tensor | None = None,
    weight: QuantizedWeight | None = None,
    bias: Tensor | None = None,
    outliers: Tensor | None = None,
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
        aligned = all(t.stride(1) == 1 and t.stride(0) % 16 == 0 and t.data_ptr() % 16 == 0 for t in (codes, w))
        general = wide or not aligned or not (x is None or sixteen_bits(x, float_weight))
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
            outliers,
            scale,
            None if weight is None else weight.scale,
            zero_point,
            None if weight is None else weight.zero_point,
            code_sum,
            None if weight is None else weight.code_sum,
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
            0 if weight is None else int(weight.scale.numel() > 1),
            WIDE=wide,
            EVEN_K=k % config.block_k == 0,
            BLOCK_M=config.block_m,
            BLOCK_N=config.block_n,
            BLOCK_K=config.block_k,
            BLOCK_O=config.block_o,
            GROUP_M=config.group_m,
            PARTS=config.parts,
            num_warps=config.warps,
            num_stages=config.stages,
            **NO_FUSION,
        )
    return y


def sixteen_bits(x: Tensor, float_weight: Tensor | None) -> bool:
    """Whether the outlier product has 16-bit matrix instructions: `has_matrix_product`, on the host."""
    return x.element_size() == 2 and (float_weight is None or float_weight.dtype == x.dtype)


def int8_matmul(a: Tensor, b: Tensor) -> Tensor:
    """a (M, K) @ b (N, K).T in int32, exact."""
    y = torch.empty(a.shape[0], b.shape[0], dtype=torch.int32, device=a.device)
    return y if y.numel() == 0 else launch_product(a, b, y)
