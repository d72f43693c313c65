"""A weight as a layer keeps it: quantized once, at load time."""

from typing import NamedTuple

from torch import Tensor


class QuantizedWeight(NamedTuple):
    """The weight of a layer after its load phase. N and K as in torch.nn.Linear: (out_features, in_features).

    Attributes:
        codes: (N, K) int8.
        scale: float32, (N, 1) for the granularity "vector", else (1, 1).
        zero_point: int32, the shape of scale; None for absmax.
        code_sum: (N,) int32, the sum of each row of codes, which the zeropoint product needs; None for absmax.
        float_weight: (N, K) float16, bfloat16 or float32, where the outlier columns take their weights from; None to
            take them from the codes.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None = None
    code_sum: Tensor | None = None
    float_weight: Tensor | None = None
