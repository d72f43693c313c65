"""Zeropoint quantization: a scale and a shift, so that an asymmetric slice uses all 256 codes.

    scale = (hi - lo) / 255       zero_point = rint(-128 - lo * 255 / (hi - lo))
    code = rint(x * 255 / (hi - lo)) + zero_point        x is about (code - zero_point) * scale

Dettmers et al. (2022), section 2.1, equations 1 to 3. lo and hi enclose zero, so zero is always representable, exactly:
a padded or a removed entry stays a zero.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import arguments
from .absmax import inverse_and_scale

CODE_MIN, CODE_MAX = -128, 127
CODE_STEPS = CODE_MAX - CODE_MIN


class Zeropoint(NamedTuple):
    """What `zeropoint_quantize` returns: the codes, the scale, and the code that stands for zero."""

    codes: NDArray[np.int8]
    scale: NDArray[np.float32]
    zero_point: NDArray[np.int32]


def zeropoint_quantize(x: NDArray, axis: int | None = None) -> Zeropoint:
    """Quantizes `x` to int8 by its smallest and largest value.

    Args:
        x: (..., K) float16, bfloat16 or float32.
        axis: None for one scale, -1 for one scale per row (a slice along the last axis).

    Returns:
        codes: (..., K) int8 in [-128, 127].
        scale: float32, x's shape with each reduced axis of length 1; 0 for a zero slice, NaN for a slice that holds a
            NaN or an infinity or whose range overflows float32 (its codes are 0, so it dequantizes to NaN).
        zero_point: int32, the shape of scale, in [-128, 127]; 0 where the scale is 0 or NaN.

    Raises:
        TypeError: x is not an array of one of these dtypes.
        ValueError: x has no axis, or axis is neither None nor -1.
    """
    x = arguments.floats("x", x)
    axis = arguments.axis(axis)
    lo = np.min(x, axis=axis, keepdims=True, initial=0)
    hi = np.max(x, axis=axis, keepdims=True, initial=0)
    with np.errstate(over="ignore", invalid="ignore"):  # an overflowing or non-finite range becomes a NaN scale below
        inverse, scale = inverse_and_scale(hi - lo, CODE_STEPS)
    usable = inverse > 0
    shift = np.clip(np.rint(np.float32(CODE_MIN) - np.where(usable, lo, 0) * inverse), CODE_MIN, CODE_MAX)
    zero_point = np.where(usable, shift, 0).astype(np.int32)
    steps = np.rint(np.where(usable, x, 0) * inverse)
    codes = np.clip(steps + zero_point, CODE_MIN, CODE_MAX)
    return Zeropoint(codes.astype(np.int8), scale, zero_point)


def zeropoint_dequantize(codes: NDArray[np.int8], scale: NDArray[np.float32], zero_point: NDArray[np.int32]) -> NDArray[np.float32]:
    """Returns (codes - zero_point) * scale in float32; `scale` and `zero_point` broadcast against `codes`.

    Args:
        codes: (..., K) int8.
        scale: float32, as `zeropoint_quantize` returns it.
        zero_point: int32, as `zeropoint_quantize` returns it.

    Raises:
        TypeError: one of them has another dtype.
        ValueError: the shapes do not broadcast.
    """
    codes = arguments.codes("codes", codes)
    shift = arguments.scales(codes, zero_point, "zero_point")
    return (codes - shift).astype(np.float32) * arguments.scales(codes, scale)
