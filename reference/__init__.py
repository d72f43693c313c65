"""LLM.int8() in NumPy, as the paper tells it.

Read the files in this order; each is one section of Dettmers, Lewis, Belkada and Zettlemoyer (2022),
"LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale", https://arxiv.org/abs/2208.07339:

1. `absmax.py`         one scale, symmetric codes (section 2.1)
2. `zeropoint.py`      a scale and a zero point, asymmetric codes (section 2.1)
3. `vectorwise.py`     the int8 product, and one scale per tensor, row or vector (sections 2.1 and 3.1)
4. `decomposition.py`  the outlier features in 16 bits, the rest in int8 (section 3.2)
5. `linear.py`         the two phases of a layer: load, then infer
6. `experts.py`        a mixture of experts, which the paper does not have
7. `bounds.py`         how wrong the result can be, proved
8. `features.py`       the criterion for an emergent outlier feature (section 4)

The exact arithmetic that both this package and `fast` meet is written in docs/contract.md.
"""

from .absmax import absmax_dequantize, absmax_quantize
from .decomposition import llm_int8_matmul, outlier_columns
from .experts import Int8Experts
from .linear import Int8Linear
from .vectorwise import int8_matmul, quantized_matmul
from .zeropoint import zeropoint_dequantize, zeropoint_quantize

__all__ = [
    "Int8Experts",
    "Int8Linear",
    "absmax_dequantize",
    "absmax_quantize",
    "int8_matmul",
    "llm_int8_matmul",
    "outlier_columns",
    "quantized_matmul",
    "zeropoint_dequantize",
    "zeropoint_quantize",
]
