"""What a module of experts is: several linear layers side by side in one 3-dimensional parameter, as transformers 5 stores them.

    gate_up_proj (E, 2 I, H), down_proj (E, H, I)     most models: gate and up of an expert in one
    up_proj (E, I, H), down_proj (E, H, I)            without a gate: Nemotron-H
    gate_up_proj (E, H, 2 I), down_proj (E, I, H)     transposed: gpt-oss, Aria, Llama 4

Known are those that follow transformers' interface for experts (the decorator `use_experts_implementation`, which leaves these attributes),
by which one forward pass serves all of them, and Llama 4's. Others stay float.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from . import arguments, attachments

#: Names of the 3-dimensional parameters; the first two exclude each other.
PROJECTIONS = ("gate_up_proj", "up_proj", "down_proj")

#: What the decorator `use_experts_implementation` leaves on a module.
INTERFACE = ("has_gate", "has_bias", "is_transposed", "num_experts")

#: Names that `Int8Experts` need for themselves.
_NEEDED = {"threshold", "float_dtype", "experts_layout", "float_class", "outlier_weight", "quantizer", "granularity", "dequantize"}

#: Why experts stay float that are not stored and computed as above.
FOREIGN = "experts of a kind of their own, outside transformers' interface for experts"


class Layout(NamedTuple):
    """How a module stores its experts.

    Attributes:
        first: name of the first projection; the second is "down_proj".
        transposed: whether a weight is (E, K, N) and not (E, N, K).
        in_blocks: Llama 4: the input holds a block of rows for each expert, in their order, and nothing is routed.
    """

    first: str
    transposed: bool
    in_blocks: bool


def layout(module: nn.Module) -> Layout | None:
    """How a module stores its experts; None if it is no module of experts that is known."""
    own = {
        name for name, parameter in module._parameters.items() if parameter is not None and not is_lazy(parameter) and parameter.ndim == 3
    }
    first = "gate_up_proj" if "gate_up_proj" in own else "up_proj"
    if own != {first, "down_proj"}:
        return None
    if type(module).__name__ == "Llama4TextExperts" and type(module).__module__.startswith("transformers."):
        return Layout(first, transposed=True, in_blocks=True)
    if not all(hasattr(module, name) for name in INTERFACE) or not hasattr(type(module), "_apply_gate"):
        return None
    if module.has_gate != (first == "gate_up_proj"):
        return None
    return Layout(first, bool(module.is_transposed), in_blocks=False)


def obstacle(module: nn.Module) -> str | None:
    """Why the experts of a module with a `layout` cannot be held in int8; None if they can."""
    if parametrize.is_parametrized(module):
        return "its weights are computed from parametrizations"
    if reason := attachments.patched(module):
        return reason
    if taken := sorted(_NEEDED.intersection((*vars(module), *module._parameters, *module._buffers, *module._modules))):
        return f"it has an attribute {taken[0]}, which is one of Int8Experts' own"
    for name in PROJECTIONS:
        weight = module._parameters.get(name)
        if weight is None:
            continue
        if type(weight) not in (Tensor, nn.Parameter):
            return f"its {name} is a {type(weight).__name__}"
        if weight.layout != torch.strided or weight.dtype not in arguments.FLOATS:
            return f"its {name} is {weight.dtype}, {weight.layout}"
    return None


def looks_like_experts(module: nn.Module) -> bool:
    """Whether a module holds weights of experts by its name, known or not."""
    return "Expert" in type(module).__name__
