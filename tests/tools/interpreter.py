"""Makes Triton's interpreter read a bfloat16 as hardware does.

Triton 3.7 keeps a bfloat16 as its bits and widens it by hand, and the 254 subnormal ones come out as other numbers. Widening is
exact: 16 zero bits are appended.
"""

from typing import Any

import numpy as np


def correct_bfloat16() -> None:
    """Replaces the interpreter's conversion of bfloat16 to float32; leaves others as they are."""
    import triton.language as tl
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def converted(data: np.ndarray, source: Any, target: Any, rounding: Any) -> np.ndarray:
        if (source, target) == (tl.bfloat16, tl.float32):
            return data.view(np.uint16).astype(np.uint32) << 16
        return convert(data, source, target, rounding)

    interpreter._convert_float = converted
