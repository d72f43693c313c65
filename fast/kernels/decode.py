"""The whole layer in one launch for the few rows of decoding, bound by reading W once.

    X (at most 16 rows)  [ .......... K .......... ]      program p:  1. passes over all of X: outlier columns, row extremes -> scales
    W rows of program 0  [ .......... K .......... ]                  2. streams its BLOCK_N rows of W:
    W rows of program 1  [ .......... K .......... ]                       block of X -> codes, in registers
    ...                                                                    acc  += codes @ W block.T                         int32
                                                                           part += X outliers @ W block.T, if there are any  float32
                                                                      3. epilogue, as in product.py

With M rows, W is N * K bytes and X at most 32 * K: X stays in the caches, so that every program may read all of it twice and repeat
the same small computation. That costs less than the launches of separate kernels and their trips through memory. A block
of K lies in one program at a time, so its outlier columns are known from the block alone: no list of them is needed, and
the 16-bit product of a block, masked to its outlier columns, is run only where there is one: few blocks, on data that
the int8 product has already brought.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..weights import QuantizedWeight
from .arithmetic import NO_FUSION, encode, magnitudes, parameters, rounded, weight_scale
from .configurations import Decode, architecture, decode_configuration
from .operands import aligned
from .product import WIDE_FROM, corrected, from_code_units, outlier_product

#: The first pass has nothing but X's latency to wait for: three blocks on their way hide it.
SCAN_STAGES = tl.constexpr(3)


@triton.jit
def decode_kernel(
    x,
    w,
    y,
    float_weight,
    bias,
    scale_w,
    zero_w,
    limit,
    M,
    N,
    K,
    stride_xm,
    stride_xk,
    stride_wn,
    stride_wk,
    stride_fn,
    stride_fk,
    each_w,
    DETECT: tl.constexpr,
    PER_ROW: tl.constexpr,
    FROM_ABSMAX: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    TILE_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SCAN_K: tl.constexpr,
):
    """Program p: all rows of Y, columns p * BLOCK_N onwards. Strides are in elements; None compiles away.

    x: (M, K) float16, bfloat16 or float32, M <= ROWS, by stride_xm, stride_xk.
    w: (N, K) int8, by stride_wn, stride_wk.
    y: (M, N) of X's dtype, contiguous.
    float_weight: (N, K) of a floating dtype, by stride_fn, stride_fk; None takes the outlier weights from w.
    bias: (N,) of a floating dtype, or None.
    scale_w: float32, one a row (each_w is 1) or one in all (0).
    zero_w: int32, as scale_w; None for absmax.
    limit: float32, not negative, used where DETECT.
    PER_ROW: one scale per row of X, else one in all. FROM_ABSMAX: scale_w are the largest magnitudes, as in `weight_scale`.
    WIDE: the zeropoint correction needs 64 bits.
    """
    ZEROPOINT: tl.constexpr = zero_w is not None
    rows = tl.arange(0, ROWS)
    live = rows < M
    ks = tl.arange(0, BLOCK_K)
    column_numbers = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.minimum(column_numbers, N - 1).to(tl.int64)

    x_rows = x + rows.to(tl.int64)[:, None] * stride_xm
    wide = tl.arange(0, SCAN_K)
    all_up = tl.zeros((ROWS, SCAN_K), tl.int32)
    all_down = tl.zeros((ROWS, SCAN_K), tl.int32)
    # --8<-- [start:first-pass]
    for k in tl.range(0, K, SCAN_K, num_stages=SCAN_STAGES):
        inside = live[:, None] & (k + wide < K)[None, :]
        value = tl.load(x_rows + (k + wide).to(tl.int64)[None, :] * stride_xk, mask=inside, other=0.0).to(tl.float32)
        if DETECT:
            value = tl.where(_outliers(value, limit)[None, :], 0.0, value)
        up, down = magnitudes(value, ZEROPOINT)
        all_up = tl.maximum(all_up, up)
        if ZEROPOINT:
            all_down = tl.maximum(all_down, down)
    # --8<-- [end:first-pass]
    up = tl.max(all_up, axis=1)
    down = tl.max(all_down, axis=1) if ZEROPOINT else up
    if not PER_ROW:
        up = tl.zeros_like(up) + tl.max(up, axis=0)
        down = tl.zeros_like(down) + tl.max(down, axis=0)
    sx, inverse, zx = parameters(up, down, ZEROPOINT)
    sx, inverse, zx = _repeated(sx, TILE_M), _repeated(inverse, TILE_M), _repeated(zx, TILE_M)

    tile_rows = tl.arange(0, TILE_M)
    tile_live = tile_rows < M
    tile_x = x + tile_rows.to(tl.int64)[:, None] * stride_xm
    sw = weight_scale(tl.load(scale_w + columns * each_w), FROM_ABSMAX)
    zw = tl.load(zero_w + columns * each_w) if ZEROPOINT else None
    b = w + columns[:, None] * stride_wn + ks.to(tl.int64)[None, :] * stride_wk
    acc = tl.zeros((TILE_M, BLOCK_N), tl.int32)
    part = tl.zeros((TILE_M, BLOCK_N), tl.float32)
    sum_x = tl.zeros((TILE_M, BLOCK_K), tl.int32)
    # The sums of W's rows, as a product with ones, in every row alike: the blocks of W are at hand, and the matrix unit is idle.
    ones = tl.full((TILE_M, BLOCK_K), 1, tl.int8)
    sums_w = tl.zeros((TILE_M, BLOCK_N), tl.int32)
    for k in range(0, K, BLOCK_K):
        in_k = k + ks < K
        inside = tile_live[:, None] & in_k[None, :]
        value = tl.load(tile_x + (k + ks).to(tl.int64)[None, :] * stride_xk, mask=inside, other=0.0)
        b_block = tl.load(b, mask=in_k[None, :], other=0)
        b += BLOCK_K * tl.cast(stride_wk, tl.int64)
        regular = value.to(tl.float32)
        if DETECT:
            outlier = _outliers(regular, limit)
            regular = tl.where(outlier[None, :], 0.0, regular)
        code = encode(regular, inverse[:, None], zx[:, None], ZEROPOINT)
        if ZEROPOINT:
            sum_x += tl.where(inside, code.to(tl.int32), 0)
            sums_w = tl.dot(ones, b_block.T, sums_w, out_dtype=tl.int32)
        acc = tl.dot(code, b_block.T, acc, out_dtype=tl.int32)
        if DETECT:  # noqa: SIM102 (the compiler makes this test, the program the next)
            if tl.max(outlier.to(tl.int32), axis=0) > 0:
                x_o = tl.where(outlier[None, :], value, 0.0).to(x.dtype.element_ty)
                if float_weight is not None:
                    f = float_weight + columns[:, None] * stride_fn + (k + ks).to(tl.int64)[None, :] * stride_fk
                    # A weight that is not finite may meet a zero here: its row has the scale NaN, so the result is NaN anyway.
                    part = outlier_product(x_o, tl.load(f, mask=in_k[None, :], other=0.0), part, None)
                else:
                    part = outlier_product(x_o, b_block, part, zw)

    if ZEROPOINT:
        x_sum = tl.sum(sum_x, axis=1)
        acc = corrected(acc, zx[:, None], zw[None, :], x_sum[:, None], sums_w, K, WIDE)  # type: ignore[index]
    result = (acc.to(tl.float32) * sx[:, None]) * sw[None, :]
    if DETECT:
        result += part if float_weight is not None else from_code_units(part, sw)
    if bias is not None:
        result += tl.load(bias + columns).to(tl.float32)[None, :]
    target = y + tile_rows.to(tl.int64)[:, None] * N + column_numbers[None, :]
    tl.store(target, rounded(result, y.dtype.element_ty), mask=tile_live[:, None] & (column_numbers < N)[None, :])


@triton.jit
def _repeated(v, TILE_M: tl.constexpr):
    """(ROWS,) -> (TILE_M,): the values again and again; whatever stands in the padding is not stored."""
    copies: tl.constexpr = TILE_M // v.shape[0]
    return tl.broadcast_to(v[None, :], (copies, v.shape[0])).reshape(TILE_M)


@triton.jit
def _outliers(value, limit):
    """Which columns of the block hold a magnitude of `limit` or more; NaN is none.

    With limit 0 the padding counts as well: it adds zeros to the outlier product, and rows in whose place it stands are not stored.
    """
    return tl.max((tl.abs(value) >= limit).to(tl.int32), axis=0) > 0


def decode_linear(
    x: Tensor, weight: QuantizedWeight, bias: Tensor | None, limit: float | None, per_row: bool, config: Decode | None = None
) -> Tensor:
    """(M, N) of x's dtype, for 0 < M <= block_m of the configuration, N > 0; arguments as in `linear`."""
    (m, k), n = x.shape, weight.codes.shape[0]
    float_weight = weight.float_weight
    config = config or decode_configuration(architecture(x.device), m, n, not aligned(weight.codes))
    y = torch.empty(m, n, dtype=x.dtype, device=x.device)
    rows = triton.next_power_of_2(m)
    with torch.cuda.device_of(x):
        decode_kernel[(triton.cdiv(n, config.block_n),)](
            x,
            weight.codes,
            y,
            float_weight,
            bias,
            weight.stored_scale,
            weight.zero_point,
            0.0 if limit is None else limit,
            m,
            n,
            k,
            x.stride(0),
            x.stride(1),
            weight.codes.stride(0),
            weight.codes.stride(1),
            0 if float_weight is None else float_weight.stride(0),
            0 if float_weight is None else float_weight.stride(1),
            int(weight.stored_scale.numel() > 1),
            DETECT=limit is not None,
            PER_ROW=per_row,
            FROM_ABSMAX=weight.absmax is not None,
            WIDE=weight.zero_point is not None and k >= WIDE_FROM,
            ROWS=rows,
            TILE_M=config.tile_m,
            BLOCK_N=config.block_n,
            BLOCK_K=config.block_k,
            SCAN_K=config.scan // rows,
            num_warps=config.warps,
            num_stages=config.stages,
            **NO_FUSION,
        )
    return y
