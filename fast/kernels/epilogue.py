"""What the product kernels do beside the sums of codes: which tile a program owns, scales, corrections, outlier weights.

On values in registers, in whatever layout: `product.py`, `decode.py` and, in Gluon, `hopper.py` share them.
"""

import triton
import triton.language as tl

from .arithmetic import INTERPRETED, absmax_scale


@triton.jit
def owned_tile(program, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    """(row, column) of the tile of Y (M, N) that a program owns, counted in tiles: column by column in groups of GROUP_M rows of tiles."""
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    in_group = GROUP_M * tiles_n
    first_m = program // in_group * GROUP_M
    group_m = tl.minimum(tiles_m - first_m, GROUP_M)
    return first_m + program % in_group % group_m, program % in_group // group_m


@triton.jit
def weight_scale(w_side, columns, live):
    """The scales (N,) of the rows `columns` (N,) of W; 0 where not `live`."""
    if w_side.absmax is None:
        return tl.load(w_side.scale + columns * w_side.per_row, mask=live, other=0.0)
    else:
        return absmax_scale(tl.load(w_side.absmax + columns * w_side.per_row, mask=live, other=0.0))


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
    """As `widened`, of codes, in float16, by operations on two entries at a time; conversions of integers take four times as long.

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
    return acc - x_zero_point * w_code_sum + w_zero_point * (K * x_zero_point - x_code_sum)
