"""The inference phase of a layer on a GPU: three launches, or one where X has at most DECODE_ROWS rows. None synchronizes with the host."""

from torch import Tensor

from ..weights import QuantizedWeight
from .configurations import DECODE_ROWS
from .decode import decode_linear
from .operands import sixteen_bits
from .product import quantized_product
from .quantization import quantize_regular


def linear(x: Tensor, weight: QuantizedWeight, bias: Tensor | None, threshold: float | None, per_row: bool) -> Tensor:
    """(M, N) of x's dtype: the inference phase of LLM.int8() on `x` (M, K)."""
    m, n = x.shape[0], weight.codes.shape[0]
    if 0 in (m, n):
        return x.new_empty(m, n)
    # The decoding kernel multiplies whole blocks, which float32 operands have no matrix instruction for.
    if m <= DECODE_ROWS and sixteen_bits(x, weight.float_weight):
        return decode_linear(x, weight, bias, threshold, per_row)
    return tiled(x, weight, bias, threshold, per_row)


def tiled(x: Tensor, weight: QuantizedWeight, bias: Tensor | None, threshold: float | None, per_row: bool) -> Tensor:
    """As `linear`, by separate kernels for detection, quantization and the product."""
    zeropoint = weight.zero_point is not None
    outlier_weight = weight.codes if weight.float_weight is None else weight.float_weight
    gathers = sixteen_bits(x, weight.float_weight)
    quantized = quantize_regular(
        x,
        threshold,
        per_row=per_row,
        zeropoint=zeropoint,
        code_sums=zeropoint,
        outlier_weight=outlier_weight if gathers else None,
    )
    return quantized_product(x, quantized, weight, bias)
