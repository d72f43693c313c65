"""Triton 3.6's interpreter, mended for NumPy 2.5: imported where kernels are interpreted, and nowhere else.

In the interpreter a scalar is an array of one entry, and a loop's bounds are read from it by `int(array)`. NumPy 2.5 refuses
that for arrays of one dimension or more. Triton 3.7 squeezes the array first; this does the same for Triton 3.6.
"""

from typing import Any

from triton.runtime import interpreter

_patch_tensor = interpreter._patch_lang_tensor


def _patch_tensor_and_index(tensor: Any, scope: Any) -> None:
    _patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())


interpreter._patch_lang_tensor = _patch_tensor_and_index
