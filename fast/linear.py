"""A linear layer in int8, as a torch module: see reference/linear.py for the two phases."""

from torch import Tensor, nn

from . import arguments
from .operators import int8_linear
from .vectorwise import quantize_weight
from .weights import QuantizedWeight


class Int8Linear(nn.Module):
    """A linear layer whose weight is held in int8. Make one with `Int8Linear.from_float`."""

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None, threshold: float | None, granularity: str) -> None:
        super().__init__()
        self.threshold = threshold
        self.granularity = granularity
        for name, value in weight._asdict().items():
            self.register_buffer(name, value)
        self.register_buffer("bias", bias)

    @classmethod
    def from_float(
        cls,
        weight: Tensor | nn.Linear,
        bias: Tensor | None = None,
        threshold: float | None = 6.0,
        outlier_weight: str = "dequantized",
        quantizer: str = "absmax",
        granularity: str = "vector",
    ) -> "Int8Linear":
        """The load phase: quantizes the weight (N, K)."""
        if isinstance(weight, nn.Linear):
            weight, bias = weight.weight.detach(), weight.bias
        weight = arguments.floats("weight", weight, ndim=2)
        arguments.threshold(threshold)
        arguments.one_of("outlier_weight", outlier_weight, arguments.OUTLIER_WEIGHTS)
        quantized = quantize_weight(weight, granularity, quantizer)
        if outlier_weight == "float":
            quantized = quantized._replace(float_weight=weight)
        return cls(quantized, bias, threshold, granularity)

    def forward(self, x: Tensor) -> Tensor:
        weight = QuantizedWeight(self.codes, self.scale, self.zero_point, self.code_sum, self.float_weight)
        return int8_linear(x, weight, self.bias, self.threshold, self.granularity)
