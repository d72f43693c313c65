"""What the models of transformers are like, as far as it can be told without importing transformers; `huggingface.py` imports it."""

import sys
from typing import TypeVar

from torch import nn

Module = TypeVar("Module", bound=type[nn.Module])


def is_conv1d(module: nn.Module) -> bool:
    """Whether `module` is the linear layer of GPT-2, whose weight is (K, N)."""
    return type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"


def is_pretrained(model: nn.Module) -> bool:
    """Whether `model` is one of transformers, with a config that `save_pretrained` writes."""
    transformers = sys.modules.get("transformers.modeling_utils")
    return transformers is not None and isinstance(model, transformers.PreTrainedModel)


def tied_names(model: nn.Module) -> dict[str, str]:
    """The names of parameters that share a weight, each with the other: transformers ties weights only after it has loaded them."""
    announced = getattr(model, "all_tied_weights_keys", {})
    return {a: b for pair in announced.items() for a, b in (pair, pair[::-1])}


def initialized(module: Module) -> Module:
    """Marks a class of modules, whose weights transformers would otherwise draw at random where a checkpoint does not fill them."""
    module._is_hf_initialized = True  # type: ignore[attr-defined]
    return module
