"""What follows from a stored tensor and is kept beside it while that tensor lives: a layer's scale, its packed codes.

Deriving it anew at every call would cost time, storing it in the layer would cost checkpoints and could go stale when a
framework replaces a parameter behind the layer's back. So it is remembered by the tensor itself: weakly, so that it goes
when the tensor goes, and only as long as the tensor has the same memory and has not been written to.
"""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

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
        # Inference tensors do not count their writes. While a CUDA graph is captured nothing is computed yet, so a
        # value made then must not outlive the capture.
        if tensor.is_inference() or (tensor.is_cuda and torch.cuda.is_current_stream_capturing()):
            return self._function(tensor)
        state = (tensor._version, tensor.data_ptr(), tensor.device, tensor.shape, tensor.stride())
        with self._lock:
            kept = self._kept.get(tensor)
        if kept is not None and kept[0] == state:
            return kept[1]
        value = self._function(tensor)
        with self._lock:
            self._kept[tensor] = (state, value)
        return value
