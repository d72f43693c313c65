"""LLM.int8(), fast: Triton kernels on a GPU, oneDNN on a CPU, under the same contract as `reference` (docs/contract.md).

The files have the names of their twins in `reference`, the functions their names and arguments. What only a fast path
needs has a file of its own: `dispatch.py` chooses between `cpu/` and `kernels/`, whose files have the same names;
`operators.py` makes the layer known to torch.compile; `weights.py` holds a quantized weight.
"""

from .absmax import absmax_dequantize, absmax_quantize
from .cpu.engine import cpu_engine
from .decomposition import llm_int8_matmul, outlier_columns
from .dispatch import backend
from .linear import Int8Linear
from .model import dequantize_model, quantize_model
from .vectorwise import int8_matmul, quantized_matmul
from .zeropoint import zeropoint_dequantize, zeropoint_quantize

__all__ = [
    "Int8Linear",
    "absmax_dequantize",
    "absmax_quantize",
    "backend",
    "cpu_engine",
    "dequantize_model",
    "int8_matmul",
    "llm_int8_matmul",
    "outlier_columns",
    "quantize_model",
    "quantized_matmul",
    "zeropoint_dequantize",
    "zeropoint_quantize",
]
