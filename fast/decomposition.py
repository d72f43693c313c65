"""LLM.int8(), mixed-precision decomposition: see reference/decomposition.py for the idea."""

import torch
from torch import Tensor

from . import arguments
from .operators import int8_linear
from .weights import QuantizedWeight


def outlier_columns(x: Tensor, threshold: float | None = 6.0) -> Tensor:
    """Says which feature columns hold an outlier, an entry of magnitude `threshold` or more.

    Args:
        x: (..., K) float16, bfloat16 or float32; a column is an outlier for all rows of all leading dimensions.
        threshold: 0 or more, compared in float32; 0 makes every column an outlier, None or infinity makes none.

    Returns:
        (K,) bool on x's device. An infinite entry is an outlier; a NaN is not.

    Raises:
        TypeError: x is not a tensor of one of these dtypes, or threshold is not a number.
        ValueError: x has no axis, or threshold is negative or NaN.
    """
    x = arguments.floats("x", x)
    arguments.check_threshold(threshold)
    return torch.ops.llm_int8.outlier_columns(arguments.rows_of(x), threshold)


def llm_int8_matmul(x: Tensor, w: Tensor, threshold: float | None = 6.0, quantizer: str = "absmax", granularity: str = "vector") -> Tensor:
    """Returns x @ w.T by mixed-precision decomposition.

    The outlier columns meet the columns of `w` as given, as in the paper; a layer that keeps only the codes is
    `Int8Linear`.

    Args:
        x: (..., K) float16, bfloat16 or float32; leading dimensions are flattened to M and restored.
        w: (N, K) float16, bfloat16 or float32.
        threshold: as in `outlier_columns`.
        quantizer: "absmax" or "zeropoint", for the regular columns.
        granularity: "tensor", "row" or "vector", for the regular columns; the paper's method is "vector".

    Returns:
        (..., N) of x's dtype.

    Raises:
        TypeError, ValueError: as `outlier_columns` and `quantized_matmul`.
    """
    x, w = arguments.floats("x", x), arguments.floats("w", w, ndim=2)
    arguments.same_k("x", x, "w", w)
    arguments.check_threshold(threshold)
    return int8_linear(x, QuantizedWeight.from_float(w, granularity, quantizer, "float"), None, threshold, granularity)
