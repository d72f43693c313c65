"""The contract's arithmetic on values in registers: shared by every kernel that quantizes.

Two integers summarize a slice: the bits of its largest magnitude above zero and of its largest below. Read as an
integer, the bits of a float32 that is not negative sort as the numbers do, with infinity above all of them and NaN above
infinity. An integer maximum thus finds the extreme of a slice and, at no extra cost, whether it is finite.

    x -> magnitudes -> (integer max over the slice) -> parameters -> scale, inverse, zero point -> encode -> codes

Everything here is launched without fused multiply-add (`NO_FUSION`): x * inverse, then the sum that rounds it, are two
roundings in the contract, and one fused operation would round a product that lies near a tie to another code.
"""

import triton
import triton.language as tl

from .. import codes
from ..interpreter import interpreted

#: Launch option of every kernel: no multiply-add contraction.
NO_FUSION = {"enable_fp_fusion": False}

#: The numbers of codes, as kernels take them.
INT8_MAX = tl.constexpr(float(codes.INT8_MAX))
CODE_MIN = tl.constexpr(codes.CODE_MIN)
CODE_MAX = tl.constexpr(codes.CODE_MAX)
CODE_STEPS = tl.constexpr(float(codes.CODE_STEPS))
ZERO_SLICE = tl.constexpr(codes.ZERO_SLICE)

#: v + 1.5 * 2**23 has no bits left for a fraction, so the sum itself rounds v to an integer, ties to even, and leaves that
#: integer in the low bits of its mantissa; right for |v| < 2**22, and codes stay below 2**9.
ROUNDER = tl.constexpr(1.5 * 2**23)
ROUNDER_BITS = tl.constexpr(0x4B400000)

#: The interpreter holds bfloat16 as bit patterns: arithmetic would act on the raw bits, and its cast truncates instead of rounding.
INTERPRETED = tl.constexpr(interpreted())

MAGNITUDE_BITS = tl.constexpr(0x7FFFFFFF)
INFINITY_BITS = tl.constexpr(0x7F800000)
SIGN_BIT = tl.constexpr(-(2**31))


@triton.jit
def round_to_integer(v):
    """rint(v) as int32, ties to even, for |v| < 2**22."""
    return (v + ROUNDER).to(tl.int32, bitcast=True) - ROUNDER_BITS


@triton.jit
def magnitudes(x, ZEROPOINT: tl.constexpr):
    """Bits of |x| where x counts as above zero, and where it counts as below; 0 elsewhere.

    Absmax has one side only: all magnitudes count as above, and the second result repeats the first.
    """
    bits = x.to(tl.int32, bitcast=True)
    if ZEROPOINT:
        return tl.maximum(bits, 0), tl.maximum(bits ^ SIGN_BIT, 0)
    else:
        above = bits & MAGNITUDE_BITS
        return above, above


@triton.jit
def parameters(above, below, ZEROPOINT: tl.constexpr):
    """Scale, inverse and zero point of slices, from the largest `magnitudes` of each; inverse is 0 where codes are 0."""
    steps: tl.constexpr = CODE_STEPS if ZEROPOINT else INT8_MAX
    finite = (above < INFINITY_BITS) & (below < INFINITY_BITS)
    hi = tl.where(finite, above, 0).to(tl.float32, bitcast=True)
    minus_lo = tl.where(finite, below, 0).to(tl.float32, bitcast=True)
    extent = hi
    if ZEROPOINT:
        extent = hi + minus_lo
        finite = finite & (extent < float("inf"))
    usable = finite & (extent >= ZERO_SLICE)
    safe = tl.where(usable, extent, 1.0)
    # div_rn: the plain division of float32 is approximate on a GPU.
    inverse = tl.where(usable, tl.math.div_rn(1.0, safe) * steps, 0.0)
    scale = tl.where(usable, tl.math.div_rn(safe, steps), tl.where(finite, 0.0, float("nan")))
    zero_point = tl.zeros_like(above)
    if ZEROPOINT:
        # -128 - lo * inverse. In a discarded slice the product may be NaN, whose bits are no integer.
        shift = round_to_integer(tl.where(usable, minus_lo, 0.0) * inverse + CODE_MIN)
        zero_point = tl.where(usable, tl.minimum(tl.maximum(shift, CODE_MIN), CODE_MAX), 0)
    return scale, inverse, zero_point


@triton.jit
def absmax_scale(absmax):
    """The scales that belong to the largest magnitudes of a layer's rows, rounded as `parameters` rounds.

    Derived in every launch: a scale that the host keeps beside the magnitudes may be out of date, also in a captured CUDA graph.
    """
    usable = (absmax >= ZERO_SLICE) & (absmax < float("inf"))
    scale = tl.math.div_rn(tl.where(usable, absmax, 1.0), INT8_MAX)
    return tl.where(usable, scale, tl.where(absmax < ZERO_SLICE, 0.0, float("nan")))


@triton.jit
def encode(x, inverse, zero_point, ZEROPOINT: tl.constexpr):
    """int8 codes of x; inverse and zero_point broadcast against it."""
    # --8<-- [start:encode]
    steps = round_to_integer(tl.where(inverse > 0.0, x, 0.0) * inverse)
    if ZEROPOINT:
        steps = tl.minimum(tl.maximum(steps + zero_point, CODE_MIN), CODE_MAX)
    return steps.to(tl.int8)
    # --8<-- [end:encode]


@triton.jit
def rounded(value, DTYPE: tl.constexpr):
    """value, float32, as DTYPE: to nearest, ties to even."""
    if INTERPRETED and tl.bfloat16 == DTYPE:
        bits = value.to(tl.int32, bitcast=True)
        upper = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return tl.where(value == value, upper, 0x7FC0).to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        return value.to(DTYPE)
