"""The int8 product and its granularities: see reference/vectorwise.py for the idea."""

import torch
from torch import Tensor

from . import arguments
from .operators import int8_linear
from .weights import QuantizedWeight


def int8_matmul(a: Tensor, b: Tensor) -> Tensor:
    """Returns a @ b.T, exactly.

    Args:
        a: (..., M, K) int8, any leading dimensions, any strides.
        b: (N, K) int8, any strides.

    Returns:
        (..., M, N) int32.

    Raises:
        TypeError: a or b is not int8.
        ValueError: b is not 2-D, the Ks or the devices differ, or K > 131,071, where int32 could overflow.
    """
    a, b = arguments.codes("a", a), arguments.codes("b", b, ndim=2)
    arguments.accumulator_fits(arguments.same_k("a", a, "b", b), "zeropoint")
    return torch.ops.llm_int8.int8_matmul(arguments.rows_of(a), b).reshape(*a.shape[:-1], b.shape[0])


def quantized_matmul(x: Tensor, w: Tensor, granularity: str = "vector", quantizer: str = "absmax") -> Tensor:
    """Returns x @ w.T computed in int8: quantize both, multiply exactly, scale back.

    Args:
        x: (..., K) float16, bfloat16 or float32; leading dimensions are flattened to M and restored.
        w: (N, K) float16, bfloat16 or float32.
        granularity: "tensor", one scale for x and one for w; "row", one per row of x and one for w; "vector", one per
            row of x and one per row of w.
        quantizer: "absmax" or "zeropoint", for both sides.

    Returns:
        (..., N) of x's dtype. A row of x or w whose scale is NaN gives NaN, in its own row or column only.

    Raises:
        TypeError: x or w is not a tensor of one of these dtypes.
        ValueError: an unknown granularity or quantizer, w not 2-D, the Ks or devices differ, or K so large that int32
            could overflow.
    """
    x, w = arguments.floats("x", x), arguments.floats("w", w, ndim=2)
    arguments.same_k("x", x, "w", w)
    return int8_linear(x, QuantizedWeight.from_float(w, granularity, quantizer), None, None, granularity)
