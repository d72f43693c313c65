"""The Triton path: what `fast.cpu` computes, on a GPU, or anywhere under TRITON_INTERPRET=1. Same functions, same results.

Read in this order:

1. `arithmetic.py`       the contract's rounding, scales and codes, in registers
2. `outliers.py`         which columns hold an outlier
3. `quantization.py`     scales and codes of rows
4. `product.py`          the int8 product, the outlier product, the epilogue
5. `epilogue.py`         scales, corrections and outlier weights, in registers
6. `hopper.py`           the same product in Gluon, for sm_90: the matrix unit does not wait between blocks
7. `decode.py`           all of it in one launch, for few rows
8. `layer.py`            the layer, by the separate kernels or by the one launch
9. `experts.py`          the layers of a mixture of experts, all in the same launches; `expert_decoding.py`, for few tokens
10. `operands.py`        how operands lie in memory, and what the kernels can make of it
11. `configurations.py`  block shapes by architecture
"""

from ..interpreter import interpreted
from .configurations import DECODE_ROWS, gluon
from .expert_decoding import experts_decode
from .experts import experts_linear
from .layer import linear, tiled
from .outliers import outlier_columns
from .product import int8_matmul
from .quantization import quantize

if interpreted():
    from . import old_interpreter  # noqa: F401, it mends Triton 3.6's

__all__ = ["DECODE_ROWS", "experts_decode", "experts_linear", "gluon", "int8_matmul", "linear", "outlier_columns", "quantize", "tiled"]
