"""The layer as one PyTorch operator."""

from torch import Tensor

from . import arguments
from .dispatch import implementation
from .weights import QuantizedWeight


def int8_linear(x: Tensor, weight: QuantizedWeight, bias: Tensor | None, threshold: float | None, granularity: str) -> Tensor:
    """Returns x @ weight.T + bias by the inference phase of LLM.int8(), in x's dtype.

    Args:
        x: (..., K) float16, bfloat16 or float32.
        weight: of N rows and K columns.
        bias: (N,) of a floating dtype, or None.
        threshold: as in `outlier_columns`.
        granularity: "tensor" gives x one scale, "row" and "vector" one a row.

    Raises:
        TypeError, ValueError: an argument is none of these; the message names it.
    """
    x = arguments.floats("x", x)
    arguments.same_k("x", x, "weight", weight.codes)
    limit = arguments.threshold(threshold)
    y = implementation(x).linear(arguments.rows_of(x), weight, bias, limit, granularity != "tensor")
    return y.reshape(*x.shape[:-1], weight.codes.shape[0])
