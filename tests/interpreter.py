"""Makes Triton's interpreter convert between float32 and bfloat16 as hardware does.

Triton 3.6 and 3.7 keep a bfloat16 as its bits and convert by hand: from float32 they cut off the low bits, where every GPU (and Triton's
own compiler, by `cvt.rn.bf16`) rounds to nearest, ties to even. The kernels are held to the contract's rounding, so the stand-in
for a GPU is put right, not the expectation.
"""

from typing import Any

import numpy as np
import torch


def correct_bfloat16() -> None:
    """Replaces the interpreter's conversion of float32 to bfloat16 and back; leaves others as they are."""
    import triton.language as tl
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def converted(data: np.ndarray, source: Any, target: Any, rounding: Any) -> np.ndarray:
        if (source, target) == (tl.float32, tl.bfloat16):
            bits = torch.from_numpy(np.ascontiguousarray(data)).to(torch.bfloat16).view(torch.int16)
            return bits.numpy().view(np.uint16).reshape(data.shape)
        if (source, target) == (tl.bfloat16, tl.float32):
            return data.view(np.uint16).astype(np.uint32) << 16
        return convert(data, source, target, rounding)

    interpreter._convert_float = converted
