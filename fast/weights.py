"""A weight as the inference phase takes it: quantized once, at load time."""

from typing import NamedTuple

import torch
from torch import Tensor

from .codes import INT8_MAX, ZERO_SLICE


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


def absolute_maximum(w: Tensor, per_row: bool) -> Tensor:
    """Largest magnitude of `w` (N, K) in float32, (N, 1) or (1, 1); NaN where there is a NaN, 0 where there is nothing."""
    if w.numel() == 0:
        return w.new_zeros(w.shape[0] if per_row else 1, 1, dtype=torch.float32)
    slices = w if per_row else w.reshape(1, -1)
    return torch.linalg.vector_norm(slices, float("inf"), dim=1, keepdim=True, dtype=torch.float32)


def absmax_scale(absmax: Tensor) -> Tensor:
    """The scale that belongs to each largest magnitude: absmax / 127, 0 for a zero slice, NaN for a non-finite one."""
    scale = torch.where(absmax < ZERO_SLICE, 0.0, absmax / INT8_MAX)
    return torch.where(absmax.isinf(), torch.nan, scale)
