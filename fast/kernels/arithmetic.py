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
def magnitude(x):
    """|x| of numbers to be compared with a threshold, a NaN passed over by `larger`; in x's own type, two of which an instruction takes.

    bfloat16, whose maximum Triton takes in float32, is widened once.
    """
    size = tl.abs(x.to(tl.float32) if x.dtype == tl.bfloat16 else x)
    # The maximum of PTX passes over a NaN, that of the interpreter does not.
    return tl.where(size == size, size, -1.0) if INTERPRETED else size


@triton.jit
def larger(a, b):
    """The larger one of two numbers, the number where the other is a NaN."""
    return tl.maximum(a, b)


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
def bits_where_positive(v, DTYPE: tl.constexpr):
    """All bits where v, int32 and not negative, is above 0, none where it is 0, in an integer as wide as DTYPE: an operand of `masked`.

    By a sum and a shift: out of a comparison the compiler would make a selection again.
    """
    return ((0 - v) >> 31).to(tl.int16 if DTYPE.primitive_bitwidth == 16 else tl.int32)


@triton.jit
def masked(x, bits):
    """x where `bits` are set, 0 elsewhere: one operation for two entries of 16 bits, where a selection would be one for each."""
    return (x.to(bits.dtype, bitcast=True) & bits).to(x.dtype, bitcast=True)


@triton.jit
def larger_or_nan(a, b):
    """The larger one of two numbers, or NaN where one is."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def sides(x, ZEROPOINT: tl.constexpr):
    """Numbers whose maximum over a slice is its largest number above zero, and likewise below; as in `magnitudes`, but in x's own type.

    As numbers, since the maximum of two float16 numbers each is one instruction, and that of two integers of 16 bits is not before sm_90.
    bfloat16, whose maximum Triton takes in float32, is widened once.
    """
    value = x.to(tl.float32) if x.dtype == tl.bfloat16 else x
    if ZEROPOINT:
        return value, -value
    else:
        above = tl.abs(value)
        return above, above


@triton.jit
def row_maximum(value):
    """(rows,) int32: the bits in float32 of the largest number in each row of value, of NaN where one is, 0 where none is above zero."""
    if INTERPRETED:  # its maximum of a row passes over a NaN
        wide = value.to(tl.float32)
        bits = tl.max(tl.where(wide == wide, wide.to(tl.int32, bitcast=True), MAGNITUDE_BITS), axis=1)
    else:
        bits = tl.reduce(value, 1, larger_or_nan).to(tl.float32).to(tl.int32, bitcast=True)
        bits = tl.where((bits & MAGNITUDE_BITS) > INFINITY_BITS, MAGNITUDE_BITS, bits)
    return tl.maximum(bits, 0)


@triton.jit
def encode(x, inverse, zero_point, ZEROPOINT: tl.constexpr):
    """int8 codes of x, in X's own type; inverse and zero_point broadcast against it."""
    # --8<-- [start:encode]
    usable = masked(x, bits_where_positive(inverse.to(tl.int32, bitcast=True), x.dtype))
    steps = round_to_integer(usable.to(tl.float32) * inverse)
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
