"""LLM.int8(), fast: Triton kernels on a GPU, one C file or oneDNN on a CPU, under the same contract as `reference` (docs/contract.md).

The files have the names of their twins in `reference`, the functions their names and arguments. What only a fast path
needs has a file of its own: `dispatch.py` chooses between `cpu/` and `kernels/`, whose files have the same names;
`operators.py` makes the layer known to torch.compile, `eager.py` goes past it where nobody listens; `weights.py` holds a quantized
weight. `experts_layout.py` says what a module of experts is, `expert_operators.py` computes one of its projections. Around a layer:
`guard.py` keeps its codes from being taken for floats, `adapters.py` lets PEFT read and write a weight, `attachments.py` carries over
what hangs on it. Around a model: `model.py`, `selection/`, `huggingface/`, `distributed.py`.
"""

from .absmax import absmax_dequantize, absmax_quantize
from .cpu.engine import cpu_engine
from .decomposition import llm_int8_matmul, outlier_columns
from .dispatch import backend
from .experts import Int8Experts
from .linear import Int8Linear
from .model import dequantize_model, quantize_model
from .vectorwise import int8_matmul, quantized_matmul
from .zeropoint import zeropoint_dequantize, zeropoint_quantize

__all__ = [
    "Int8Experts",
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
