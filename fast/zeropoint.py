"""Zeropoint quantization, asymmetric: see reference/zeropoint.py for the idea; the same codes, bit for bit."""

from typing import NamedTuple

from torch import Tensor

from . import arguments
from .absmax import scale_shape
from .operators import quantize


class Zeropoint(NamedTuple):
    """What `zeropoint_quantize` returns: the codes, the scale, and the code that stands for zero."""

    codes: Tensor
    scale: Tensor
    zero_point: Tensor


def zeropoint_quantize(x: Tensor, axis: int | None = None) -> Zeropoint:
    """Quantizes `x` to int8 by its smallest and largest value.

    Args:
        x: (..., K) float16, bfloat16 or float32, any strides.
        axis: None for one scale, -1 for one scale per row (a slice along the last axis).

    Returns:
        codes: (..., K) int8 in [-128, 127], contiguous.
        scale: float32, x's shape with each reduced axis of length 1; 0 for a zero slice, NaN for a slice that holds a
            NaN or an infinity or whose range overflows float32 (its codes are 0, so it dequantizes to NaN).
        zero_point: int32, the shape of scale, in [-128, 127]; 0 where the scale is 0 or NaN.

    Raises:
        TypeError: x is not a tensor of one of these dtypes.
        ValueError: x has no axis, or axis is neither None nor -1.
    """
    x = arguments.floats("x", x)
    per_row = arguments.axis(axis) is not None
    codes, scale, zero_point = quantize(arguments.rows_of(x), per_row, "zeropoint")
    assert zero_point is not None
    shape = scale_shape(x, per_row)
    return Zeropoint(codes.reshape(x.shape), scale.reshape(shape), zero_point.reshape(shape))


def zeropoint_dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
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
    return (codes - shift) * arguments.scales(codes, scale)
