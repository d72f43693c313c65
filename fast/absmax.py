"""Absmax quantization, symmetric: see reference/absmax.py for the idea; the same codes and scales, bit for bit."""

from typing import NamedTuple

from torch import Tensor

from . import arguments
from .operators import quantize


class Absmax(NamedTuple):
    """What `absmax_quantize` returns: the codes and the scale that undoes them."""

    codes: Tensor
    scale: Tensor


def absmax_quantize(x: Tensor, axis: int | None = None) -> Absmax:
    """Quantizes `x` to int8 by its largest magnitude.

    Args:
        x: (..., K) float16, bfloat16 or float32, any strides.
        axis: None for one scale, -1 for one scale per row (a slice along the last axis).

    Returns:
        codes: (..., K) int8 in [-127, 127], contiguous.
        scale: float32, x's shape with each reduced axis of length 1; 0 for a zero slice, NaN for a slice that holds a
            NaN or an infinity (its codes are 0, so it dequantizes to NaN).

    Raises:
        TypeError: x is not a tensor of one of these dtypes.
        ValueError: x has no axis, or axis is neither None nor -1.
    """
    x = arguments.floats("x", x)
    per_row = arguments.axis(axis) is not None
    codes, scale, _ = quantize(arguments.rows_of(x), per_row, "absmax")
    return Absmax(codes.reshape(x.shape), scale.reshape(scale_shape(x, per_row)))


def scale_shape(x: Tensor, per_row: bool) -> tuple[int, ...]:
    """x's shape with each reduced axis of length 1."""
    return (*x.shape[:-1], 1) if per_row else (1,) * x.ndim


def absmax_dequantize(codes: Tensor, scale: Tensor) -> Tensor:
    """Returns codes * scale in float32; `scale` broadcasts against `codes`.

    Args:
        codes: (..., K) int8.
        scale: float32, as `absmax_quantize` returns it.

    Raises:
        TypeError: codes are not int8, or scale is not float32.
        ValueError: the shapes do not broadcast.
    """
    codes = arguments.codes("codes", codes)
    return codes * arguments.scales(codes, scale)
