"""Codes and scales on their way: moved without being cast, and checked before they are copied into a module."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


def without_casting(stored: Iterable[Any], fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`fn` of `torch.nn.Module._apply`, such that the `stored` tensors are moved, but not cast: a scale in 16 bits is another scale."""
    kept = {id(tensor) for tensor in stored}

    def apply(tensor: Tensor) -> Tensor:
        applied = fn(tensor)
        return tensor.to(applied.device) if id(tensor) in kept and applied.dtype != tensor.dtype else applied

    return apply


def check_stored(name: str, own: Tensor, given: Tensor, symmetric: bool) -> None:
    """Checks what copying an entry of a state dict into codes, scales or zero points would silently accept.

    Args:
        name: of the entry.
        own: the parameter that it goes into.
        given: the entry.
        symmetric: whether codes are those of absmax, where -128 does not occur.

    Raises:
        ValueError: another dtype, a negative scale, a code that the quantizer never gives.
    """
    if given.dtype != own.dtype:
        hint = "; quantize a float weight with from_float" if own.dtype == torch.int8 else ""
        raise ValueError(f"{name} must have dtype {own.dtype}, the state dict holds {given.dtype}{hint}")
    if given.is_meta:
        return
    if own.dtype == torch.float32 and bool((given < 0).any()):
        raise ValueError(f"{name} must not be negative, the state dict holds {given.min().item()}")
    if own.dtype == torch.int8 and symmetric and given.numel() and given.min() == -128:
        raise ValueError(f"{name} must hold codes of -127 to 127, the state dict holds -128")
