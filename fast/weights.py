"""A weight as the inference phase takes it: quantized once, at load time."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import arguments
from .codes import INT8_MAX, ZERO_SLICE


def absolute_maximum(w: Tensor, per_row: bool) -> Tensor:
    """Largest magnitude of `w` (N, K) in float32, (N, 1) or (1, 1); NaN where there is a NaN, 0 where there is nothing."""
    if w.numel() == 0:
        return w.new_zeros(w.shape[0] if per_row else 1, 1, dtype=torch.float32)
    slices = w if per_row else w.reshape(1, -1)
    return torch.linalg.vector_norm(slices, float("inf"), dim=1, keepdim=True, dtype=torch.float32)


#: The largest float32 below ZERO_SLICE.
_BELOW = ZERO_SLICE * (1 - 2.0**-24)


def absmax_scale(absmax: Tensor) -> Tensor:
    """The scale that belongs to each largest magnitude: absmax / 127, 0 for a zero slice, NaN for a non-finite one.

    It is derived at every call of a layer, since nothing tells of every write to `absmax`: three operations, N numbers each.
    """
    # By a number that lies on the CPU Torch would divide on a GPU as by its reciprocal, which may round to another scale.
    steps = absmax.new_full((), INT8_MAX) if absmax.is_cuda else INT8_MAX
    scale = torch.nn.functional.threshold(absmax, _BELOW, 0.0) / steps
    return scale.nan_to_num(nan=torch.nan, posinf=torch.nan)


class QuantizedWeight(NamedTuple):
    """The weight of a layer after its load phase. N and K as in torch.nn.Linear: (out_features, in_features).

    Attributes:
        codes: (N, K) int8.
        absmax: float32, (N, 1) for the granularity "vector", else (1, 1): the largest magnitudes, from which the scale of an absmax
            weight follows. None for zeropoint, or where `kept_scale` is given.
        kept_scale: float32, likewise: the scale of a zeropoint weight, or of one that keeps no absmax; None where `absmax` is given.
        zero_point: int32, the shape of the scale; None for absmax.
        float_weight: (N, K) float16, bfloat16 or float32, where the outlier columns take their weights from; None to
            take them from the codes.
    """

    codes: Tensor
    absmax: Tensor | None = None
    kept_scale: Tensor | None = None
    zero_point: Tensor | None = None
    float_weight: Tensor | None = None

    @classmethod
    def from_float(
        cls, w: Tensor, granularity: str = "vector", quantizer: str = "absmax", outlier_weight: str = "dequantized"
    ) -> "QuantizedWeight":
        """The load phase: quantizes a weight (N, K), per row for the granularity "vector", else as one slice.

        Args:
            w: (N, K) float16, bfloat16 or float32.
            granularity: "tensor", "row" or "vector".
            quantizer: "absmax" or "zeropoint".
            outlier_weight: "float" keeps `w` as the float weight, "dequantized" keeps none.

        Raises:
            ValueError: an unknown granularity, quantizer or outlier weight, or K so large that int32 could overflow.
        """
        arguments.one_of("granularity", granularity, arguments.GRANULARITIES)
        arguments.one_of("quantizer", quantizer, arguments.QUANTIZERS)
        arguments.one_of("outlier_weight", outlier_weight, arguments.OUTLIER_WEIGHTS)
        arguments.accumulator_fits(w.shape[1], quantizer)
        codes, scale, zero_point = torch.ops.llm_int8.quantize(w, granularity == "vector", quantizer)
        return cls(codes, None, scale, None if quantizer == "absmax" else zero_point, w if outlier_weight == "float" else None)

    @classmethod
    def of_layer(cls, layer: Any) -> "QuantizedWeight":
        """The weight of an `Int8Linear`: its parameters themselves, as they are now."""
        own = layer._parameters  # an attribute of a module takes ten times as long
        try:
            return cls(own["weight"], own["weight_absmax"], own["weight_scale"], own["weight_zero_point"], own["float_weight"])
        except KeyError:  # copies of a module for several devices (DataParallel, FSDP1) keep parameters as attributes
            kept_scale = layer.weight_scale if layer.weight_absmax is None else None
            return cls(layer.weight, layer.weight_absmax, kept_scale, layer.weight_zero_point, layer.float_weight)

    @property
    def stored_scale(self) -> Tensor:
        """float32, (N, 1) or (1, 1): what is kept of the scale, `absmax` or `kept_scale`; the kernels derive the scale themselves."""
        stored = self.kept_scale if self.absmax is None else self.absmax
        if stored is None:
            raise ValueError("kept_scale must be given where absmax is None")
        return stored

    @property
    def scale(self) -> Tensor:
        """float32, (N, 1) or (1, 1): what one step of the codes is worth. Derived anew each time."""
        return self.stored_scale if self.absmax is None else absmax_scale(self.absmax)

    def dequantized(self) -> Tensor:
        """(N, K) float32: what the codes stand for."""
        return (self.codes if self.zero_point is None else self.codes - self.zero_point) * self.scale
