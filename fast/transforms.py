"""torch.func's transforms and forward mode, which torch.library has no registrations for: an autograd.Function stands in there.

Without it `grad` and `jacrev` would fail, and a forward-mode derivative would be zero without a word.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def is_transformed() -> bool:
    """Whether a transform of torch.func or forward mode is on."""
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def in_transform(function: type[torch.autograd.Function], *inputs: Any) -> Tensor:
    """Applies a function that is differentiable in every mode."""
    # torch.compile cannot trace what `save_for_forward` belongs to. Not as a decorator: that would load the compiler, and Triton with
    # it, whenever this package is imported.
    return torch.compiler.disable(function.apply)(*inputs)
