"""A linear layer in its two phases: the weight is quantized once, at load time; the input anew at every call.

Dettmers et al. (2022), section 3 and figure 2. Between the phases only the codes and one number per row need to be kept. The outlier
columns then take their weights from the codes ("dequantized", 1 byte per weight in all), or from the original weight kept
beside them ("float", 3 bytes per weight if it was float16, and no quantization error in the outlier columns).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import arguments
from .absmax import absolute_maximum
from .decomposition import outlier_product, split
from .vectorwise import AXES, QUANTIZERS, accumulator_fits


@dataclass(frozen=True, eq=False)
class Int8Linear:
    """A linear layer whose weight is held in int8. Make one with `Int8Linear.from_float`.

    Attributes:
        weight: (N, K) int8 codes.
        weight_absmax: (N, 1) float32, or (1, 1) if the granularity is "tensor" or "row": the largest magnitudes, from
            which the scales follow. None with the quantizer "zeropoint".
        weight_scale: float32, the shape of weight_absmax, for either quantizer.
        weight_zero_point: int32, the shape of weight_scale; None with the quantizer "absmax".
        float_weight: (N, K) float32, the original weight; None with the outlier weight "dequantized".
        bias: (N,) float32, or None.
    """

    weight: NDArray[np.int8]
    weight_absmax: NDArray[np.float32] | None
    weight_scale: NDArray[np.float32]
    weight_zero_point: NDArray[np.int32] | None
    float_weight: NDArray[np.float32] | None
    bias: NDArray[np.float32] | None
    threshold: float | None
    quantizer: str
    granularity: str

    @classmethod
    def from_float(
        cls,
        weight: NDArray,
        bias: NDArray | None = None,
        threshold: float | None = 6.0,
        outlier_weight: str = "dequantized",
        quantizer: str = "absmax",
        granularity: str = "vector",
    ) -> "Int8Linear":
        """The load phase: quantizes the weight.

        Args:
            weight: (N, K) float16, bfloat16 or float32.
            bias: (N,) of the same dtypes, or None.
            threshold: as in `outlier_columns`.
            outlier_weight: "dequantized" or "float": where the outlier columns' weights come from.
            quantizer: "absmax" or "zeropoint".
            granularity: "tensor", "row" or "vector".

        Raises:
            TypeError, ValueError: an argument has the wrong type or shape, or is not one of the allowed values; the message names it.
        """
        weight = arguments.floats("weight", weight, ndim=2)
        arguments.threshold(threshold)
        arguments.one_of("outlier_weight", outlier_weight, arguments.OUTLIER_WEIGHTS)
        arguments.one_of("quantizer", quantizer, QUANTIZERS)
        arguments.one_of("granularity", granularity, AXES)
        accumulator_fits(weight.shape[1], quantizer)
        if bias is not None:
            bias = arguments.floats("bias", bias, ndim=1)
            if bias.shape != weight.shape[:1]:
                raise ValueError(f"bias must have shape ({weight.shape[0]},), one entry per row of weight, got {bias.shape}")

        axis = AXES[granularity][1]
        codes, scale, *zero_point = QUANTIZERS[quantizer].quantize(weight, axis)
        absmax = absolute_maximum(weight, axis) if quantizer == "absmax" else None
        kept = weight if outlier_weight == "float" else None
        return cls(codes, absmax, scale, zero_point[0] if zero_point else None, kept, bias, threshold, quantizer, granularity)

    def __call__(self, x: NDArray) -> NDArray[np.float32]:
        """The inference phase: returns x @ weight.T + bias by mixed-precision decomposition.

        Args:
            x: (..., K) float16, bfloat16 or float32.

        Returns:
            (..., N) float32.

        Raises:
            TypeError: x is not an array of one of these dtypes.
            ValueError: x's last dimension is not K.
        """
        x = arguments.floats("x", x)
        arguments.same_k("x", x, "weight", self.weight)
        rows = arguments.rows_of(x)
        outliers, regular = split(rows, self.threshold)

        quantize, dequantize, product = QUANTIZERS[self.quantizer]
        zero_point = () if self.weight_zero_point is None else (self.weight_zero_point,)
        weight = (self.weight, self.weight_scale, *zero_point)
        y = product(*quantize(regular, AXES[self.granularity][0]), *weight)
        with np.errstate(over="ignore", invalid="ignore"):  # as in any float sum
            if outliers.any():
                outlier_weight = dequantize(*weight) if self.float_weight is None else self.float_weight
                y = y + outlier_product(rows, outlier_weight, outliers)
            if self.bias is not None:
                y = y + self.bias
        return y.reshape(*x.shape[:-1], self.weight.shape[0])
