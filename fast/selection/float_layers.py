"""Which modules are linear layers that an `Int8Linear` can stand for, and what is in the way for the others."""

import copy
import inspect

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .. import arguments
from ..linear import Int8Linear
from ..transformers_traits import is_conv1d


def is_float_linear(module: nn.Module) -> bool:
    """Whether `module` is a linear layer, of whatever kind, that is not an `Int8Linear`."""
    return (isinstance(module, nn.Linear) or is_conv1d(module)) and not isinstance(module, Int8Linear)


def obstacle(module: nn.Module) -> str | None:
    """Why an `Int8Linear` cannot stand for this linear layer; None if it can."""
    if sources := computed_from(module):
        return f"its weight is computed from {', '.join(sources)}"
    if "weight" not in module._parameters:
        return "its weight is not a parameter"
    if not computes_as_linear(module):
        return f"{type(module).__name__} is a linear layer of its own kind"
    weight = module._parameters["weight"]
    if not (isinstance(weight, Tensor) and type(weight) in (Tensor, nn.Parameter)):
        return f"its weight is a {type(weight).__name__}"
    if weight.layout != torch.strided:
        return f"its weight has the layout {weight.layout}"
    if weight.dtype not in arguments.FLOATS:
        return f"its weight is {weight.dtype}"
    return None


def computed_from(module: nn.Module) -> list[str]:
    """What weight or bias are computed from (pruning, weight_norm, spectral_norm, parametrizations); empty if both are parameters."""
    if parametrize.is_parametrized(module):
        return [f"parametrizations.{name}" for name in module.parametrizations]  # type: ignore[union-attr]
    computed = [name for name in ("weight", "bias") if name not in module._parameters and _has(module, name)]
    if not computed:
        return []
    own = (*module._parameters, *module._buffers)
    return [name for name in own if name.startswith(tuple(computed)) and name not in ("weight", "bias")]


def _has(module: nn.Module, name: str) -> bool:
    return name == "weight" or inspect.getattr_static(module, name, None) is not None or name in module._buffers


def computes_as_linear(module: nn.Module) -> bool:
    """Whether the module's class computes x @ weight.T + bias from weight and bias alone: `torch.nn.Linear`, transformers' Conv1D,
    or a subclass of `torch.nn.Linear` whose forward pass does, as tried on a small weight (Falcon's writes it with `@`)."""
    kind = type(module)
    if kind is nn.Linear or is_conv1d(module):
        return True
    stored = {name for name in (*module._parameters, *module._buffers, *module._modules)}
    if stored - {"weight", "bias"} or kind.__call__ is not nn.Module.__call__:
        return False
    if kind.forward is nn.Linear.forward:
        return True
    return len(inspect.signature(kind.forward).parameters) == 2 and _agrees_with_linear(module)


def _agrees_with_linear(module: nn.Module) -> bool:
    """Runs the forward pass of the module's class on a weight of (2, 3), in both modes, and compares."""
    weight, bias = module._parameters["weight"], module._parameters.get("bias")
    if weight is None or weight.dtype not in arguments.FLOATS:
        return False
    dtype = weight.dtype
    small = torch.tensor([[1.0, -0.5, 3.0], [0.25, 8.0, -2.0]], dtype=dtype)
    small_bias = None if bias is None else torch.tensor([0.5, -4.0], dtype=dtype)
    shell = copy.copy(module)
    shell._parameters = {"weight": nn.Parameter(small), "bias": None if small_bias is None else nn.Parameter(small_bias)}
    if hasattr(shell, "in_features") and hasattr(shell, "out_features"):
        shell.in_features, shell.out_features = 3, 2  # type: ignore[assignment]
    # Sums of these are exact in float16 and bfloat16 alike.
    inputs = [torch.tensor([1.0, 2.0, -1.0]), torch.tensor([[0.5, 0.0, 4.0], [-8.0, 1.0, 2.0]]), torch.ones(2, 1, 3), torch.zeros(0, 3)]
    try:
        with torch.no_grad():
            for training in (True, False):
                shell.training = training
                for x in inputs:
                    y = type(module).forward(shell, x.to(dtype))
                    expected = nn.functional.linear(x.to(dtype), small, small_bias)
                    if not (isinstance(y, Tensor) and y.dtype == dtype and torch.equal(y, expected)):
                        return False
    except Exception:  # a forward pass that cannot run on such a weight is one of its own kind
        return False
    return True
