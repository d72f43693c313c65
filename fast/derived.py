"""What follows from a stored tensor and is kept beside it while that tensor lives: a layer's scale, its packed codes.

Deriving it anew at every call would cost time, storing it in the layer would cost checkpoints and could go stale when a
framework replaces a parameter behind the layer's back. So it is remembered by the tensor itself: weakly, so that it goes
when the tensor goes, and only as long as the tensor has the same memory and has not been written to.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

Value = TypeVar("Value")


class Derived(Generic[Value]):
    """Wraps a function of one tensor: calls it once for each state of each tensor. Threads may share it.

    Writes through `tensor.data` leave no trace that this could see; write to the tensor itself.
    """

    def __init__(self, function: Callable[[Tensor], Value]) -> None:
        self._function = function
        self._kept: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._lock = threading.Lock()

    def __call__(self, tensor: Tensor) -> Value:
        """The function's value for `tensor` as it is now."""
        if tensor.is_inference():  # such a tensor does not count its writes
            return self._function(tensor)
        capturing = is_capturing(tensor)
        state = (tensor._version, tensor.data_ptr(), tensor.device, tensor.shape, tensor.stride())
        with self._lock:
            kept = self._kept.get(tensor)
            if kept is not None and kept.state == state:
                kept.captured |= capturing
                return kept.value
        value = self._function(tensor)
        if not capturing:  # nothing is computed yet while a CUDA graph is captured: a value made then must not outlive the capture
            with self._lock:
                self._kept[tensor] = _Kept(state, value, before=_captured(kept))
        return value


@dataclass
class _Kept:
    """A value, the state of the tensor that it belongs to, and what a CUDA graph may still read of earlier ones.

    A graph reads the memory that it saw when it was captured, however often the tensor is written to afterwards.
    """

    state: tuple
    value: Any
    captured: bool = False
    before: "_Kept | None" = None


def _captured(kept: _Kept | None) -> _Kept | None:
    """The newest of these values that a graph may read; it keeps the older ones."""
    return kept if kept is None or kept.captured else kept.before


def is_capturing(tensor: Tensor) -> bool:
    """Whether the tensor's device is recording a CUDA graph."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()
