"""When a layer may go straight to the native engine, past Torch's dispatcher and its operator: the results are the same bits.

For one row the dispatcher takes longer than the layer. It is needed where somebody listens: autograd, autocast, torch.compile and
torch.export, vmap and its kin, modes, tensor subclasses, the profiler. Everything here says no in doubt.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from .cpu.native import DTYPES, Native
from .dispatch import native_engine
from .weights import QuantizedWeight


def engine_for(x: Tensor, weight: QuantizedWeight, bias: Tensor | None) -> Native | None:
    """The native engine, if nothing but this call sees `x` (..., K), the weight and the bias; else None."""
    if torch.compiler.is_compiling():  # the first question: torch.compile traces the others
        return None
    if type(x) is not Tensor or x.dtype not in DTYPES or not x.ndim or not _plain_keys or _keys(x).raw_repr() not in _plain_keys:
        return None
    gradients = torch.is_grad_enabled()
    if gradients and x.requires_grad:
        return None
    for listens in _listeners:
        if listens():
            return None
    if forward_ad._current_level >= 0:
        return None
    for parameter in (*weight, bias):
        if parameter is not None and (type(parameter) is not Parameter or not parameter.is_cpu or (gradients and parameter.requires_grad)):
            return None
    return native_engine()


def _known_keys() -> tuple[Callable[[Tensor], Any], frozenset[int], tuple[Callable[[], Any], ...]]:
    """How to ask for a tensor's keys in the dispatcher, which tell a tensor of numbers in memory from what only behaves like one; the keys
    of ordinary tensors, made inside and outside of inference mode; and who may listen: autocast, modes, functorch, tracing, the profiler.

    No keys where this Torch does not say all of it.
    """
    c = torch._C
    try:
        listeners = (
            c._is_any_autocast_enabled,
            c._len_torch_dispatch_stack,
            c._len_torch_function_stack,
            c._functorch.peek_interpreter_stack,
            c._get_tracing_state,
            c._autograd._profiler_enabled,
        )
        found = set()
        for inside in (False, True):
            with torch.inference_mode(inside):
                found.add(c._dispatch_keys(torch.empty(1)).raw_repr())
        return c._dispatch_keys, frozenset(found), listeners
    except AttributeError:
        return id, frozenset(), ()


_keys, _plain_keys, _listeners = _known_keys()
