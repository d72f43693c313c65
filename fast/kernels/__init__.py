"""The Triton path: what `fast.cpu` computes, on a GPU, or anywhere under TRITON_INTERPRET=1. Same functions, same results.

Read in this order:

1. `arithmetic.py`       the contract's rounding, scales and codes, in registers
2. `outliers.py`         which columns hold an outlier
3. `quantization.py`     scales and codes of rows
4. `product.py`          the int8 product, the outlier product, the epilogue
5. `decode.py`           all of it in one launch, for few rows
6. `configurations.py`   block shapes by architecture

A layer is three launches, or one where X has at most DECODE_ROWS rows. None of them makes the host wait.
"""

import torch
from torch import Tensor

from ..weights import QuantizedWeight
from .arithmetic import INTERPRETED
from .configurations import DECODE_ROWS
from .decode import decode_linear
from .outliers import outlier_columns
from .product import int8_matmul, launch_product, sixteen_bits
from .quantization import quantize, quantize_regular

if INTERPRETED.value:
    from . import interpreter  # noqa: F401, it mends Triton's

__all__ = ["int8_matmul", "linear", "outlier_columns", "quantize"]


def linear(x: Tensor, weight: QuantizedWeight, bias: Tensor | None, limit: float | None, per_row: bool) -> Tensor:
    """(M, N) of x's dtype: the inference phase of LLM.int8() on `x` (M, K)."""
    m, n = x.shape[0], weight.codes.shape[0]
    if 0 in (m, n):
        return x.new_empty(m, n)
    # The decoding kernel multiplies whole blocks, which float32 operands have no matrix instruction for.
    if m <= DECODE_ROWS and sixteen_bits(x, weight.float_weight):
        return decode_linear(x, weight, bias, limit, per_row)
    return tiled(x, weight, bias, limit, per_row)


def tiled(x: Tensor, weight: QuantizedWeight, bias: Tensor | None, limit: float | None, per_row: bool) -> Tensor:
    """As `linear`, by separate kernels for detection, quantization and the product."""
    zeropoint = weight.zero_point is not None
    outlier_weight = weight.codes if weight.float_weight is None else weight.float_weight
    gathers = sixteen_bits(x, weight.float_weight)
    quantized = quantize_regular(x, limit, per_row, zeropoint, with_sums=zeropoint, outlier_weight=outlier_weight if gathers else None)
    y = torch.empty(x.shape[0], weight.codes.shape[0], dtype=x.dtype, device=x.device)
    return launch_product(
        quantized.codes, weight.codes, y, x, weight, bias, quantized.outliers, quantized.scale, quantized.zero_point, quantized.code_sum
    )
