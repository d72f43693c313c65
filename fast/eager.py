"""When a layer may go straight to the native engine, past Torch's dispatcher and its operator: the results are the same bits.

For one row the dispatcher takes longer than the layer. It is needed where somebody listens: autograd, autocast, torch.compile and
torch.export, vmap and its kin, modes, tensor subclasses, the profiler. Everything here says no in doubt.
"""

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
    if type(x) is not Tensor or x.dtype not in DTYPES or not x.ndim or _keys(x) not in _plain_keys:
        return None
    gradients = torch.is_grad_enabled()
    if (gradients and x.requires_grad) or _somebody_listens():
        return None
    for parameter in (*weight, bias):
        if parameter is not None and (type(parameter) is not Parameter or not parameter.is_cpu or (gradients and parameter.requires_grad)):
            return None
    return native_engine()


def _keys(x: Tensor) -> int:
    """The dispatcher's keys: they tell a tensor of numbers in memory from what only behaves like one."""
    return torch._C._dispatch_keys(x).raw_repr()


def _somebody_listens() -> bool:
    c = torch._C
    return bool(
        torch.is_autocast_enabled("cpu")
        or c._len_torch_dispatch_stack()
        or c._len_torch_function_stack()
        or c._functorch.peek_interpreter_stack() is not None
        or c._get_tracing_state() is not None
        or c._autograd._profiler_enabled()
        or forward_ad._current_level >= 0
    )


def _known_keys() -> frozenset[int]:
    """The keys of ordinary tensors, made inside and outside of inference mode; none where this Torch does not say all that is asked."""
    try:
        _somebody_listens()
        found = set()
        for inside in (False, True):
            with torch.inference_mode(inside):
                found.add(_keys(torch.empty(1)))
        return frozenset(found)
    except AttributeError:
        return frozenset()


_plain_keys = _known_keys()
