"""Absmax quantization: one multiplication maps the largest magnitude of a slice to 127.

    scale = max|x| / 127          code = rint(x * 127 / max|x|)          x is about code * scale

Dettmers et al. (2022), section 2.1. The codes are symmetric, -127 to 127: -128 stays unused, so that
negating x negates its codes.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import arguments

INT8_MAX = 127

#: A slice with no magnitude of at least this is treated as zero. It keeps 1 / absmax finite, and is far from where
#: hardware that flushes subnormal numbers to zero and hardware that does not would disagree.
ZERO_SLICE = np.float32(2.0**-100)


class Absmax(NamedTuple):
    """What `absmax_quantize` returns: the codes and the scale that undoes them."""

    codes: NDArray[np.int8]
    scale: NDArray[np.float32]


def absmax_quantize(x: NDArray, axis: int | None = None) -> Absmax:
    """Quantizes `x` to int8 by its largest magnitude.

    Args:
        x: (..., K) float16, bfloat16 or float32.
        axis: None for one scale, -1 for one scale per row (a slice along the last axis).

    Returns:
        codes: (..., K) int8 in [-127, 127].
        scale: float32, x's shape with each reduced axis of length 1; 0 for a zero slice, NaN for a slice that holds a
            NaN or an infinity (its codes are 0, so it dequantizes to NaN).

    Raises:
        TypeError: x is not an array of one of these dtypes.
        ValueError: x has no axis, or axis is neither None nor -1.
    """
    x = arguments.floats("x", x)
    return encode(x, absolute_maximum(x, axis))


def absolute_maximum(x: NDArray[np.float32], axis: int | None) -> NDArray[np.float32]:
    """Returns max |x| over each slice, reduced axes kept; NaN where a slice holds a NaN, 0 where it is empty."""
    return np.max(np.abs(x), axis=arguments.axis(axis), keepdims=True, initial=0)


def encode(x: NDArray[np.float32], absmax: NDArray[np.float32]) -> Absmax:
    """Codes and scale of `x`, given the largest magnitude of each of its slices."""
    inverse, scale = inverse_and_scale(absmax, INT8_MAX)
    with np.errstate(invalid="ignore"):  # NaN and infinity times 0, in the slices that are discarded below
        codes = np.rint(x * inverse)
    return Absmax(np.where(inverse > 0, codes, 0).astype(np.int8), scale)


def inverse_and_scale(extent: NDArray[np.float32], steps: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The factor from values to codes, and the one back, of slices whose `extent` is to take `steps` codes."""
    usable = np.isfinite(extent) & (extent >= ZERO_SLICE)
    safe = np.where(usable, extent, np.float32(1))
    # A reciprocal, then a multiply: x * 127 / absmax rounds differently in the last place, and so near ties.
    inverse = np.where(usable, (np.float32(1) / safe) * np.float32(steps), np.float32(0))
    scale = np.where(usable, safe / np.float32(steps), np.where(np.isfinite(extent), np.float32(0), np.float32(np.nan)))
    return inverse, scale


def absmax_dequantize(codes: NDArray[np.int8], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns codes * scale in float32; `scale` broadcasts against `codes`.

    Args:
        codes: (..., K) int8.
        scale: float32, as `absmax_quantize` returns it.

    Raises:
        TypeError: codes are not int8, or scale is not floating point.
        ValueError: the shapes do not broadcast.
    """
    codes = arguments.codes("codes", codes)
    return arguments.scales(codes, scale) * codes.astype(np.float32)
