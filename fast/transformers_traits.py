"""What the models of transformers are like, as far as it can be told without importing transformers; `huggingface/` imports it."""

import sys
from typing import TypeVar

from torch import nn

Module = TypeVar("Module", bound=type[nn.Module])


def is_conv1d(module: nn.Module) -> bool:
    """Whether `module` is the linear layer of GPT-2, whose weight is (K, N)."""
    return type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"


def transformers_is_loaded() -> bool:
    """Whether there can be a model of transformers at all."""
    return "transformers.modeling_utils" in sys.modules


def is_pretrained(model: nn.Module) -> bool:
    """Whether `model` is one of transformers, with a config that `save_pretrained` writes."""
    transformers = sys.modules.get("transformers.modeling_utils")
    return transformers is not None and isinstance(model, transformers.PreTrainedModel)


def pretrained_inside(model: nn.Module) -> dict[str, nn.Module]:
    """The models of transformers in `model`, itself included, by name: outer ones before those inside them."""
    return {name: module for name, module in model.named_modules() if is_pretrained(module)}


def heads(model: nn.Module) -> set[str]:
    """Names of the modules that stay float unless the user says otherwise.

    Of a model of transformers, those that transformers leaves alone: the output embeddings, and the module of the very last
    parameter if that is a weight. Of any model, what is named lm_head.
    """
    found = {name for name, _ in model.named_modules() if name.rpartition(".")[2] == "lm_head"}
    outer: list[str] = []
    for prefix, inside in pretrained_inside(model).items():
        head = _output_embeddings(inside)
        found |= {name for name, module in model.named_modules() if head is not None and module is head}
        if not any(prefix == name or name == "" or prefix.startswith(f"{name}.") for name in outer):
            outer.append(prefix)
            names = [name for name, _ in inside.named_parameters()]
            if names and names[-1].endswith(".weight"):
                found.add(f"{prefix}.{names[-1].removesuffix('.weight')}".lstrip("."))
    return found


def _output_embeddings(model: nn.Module) -> nn.Module | None:
    try:
        return model.get_output_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):  # a model without
        return None


def float32_names(model: nn.Module) -> set[str]:
    """Names of the modules that transformers keeps in float32 where the rest of the model has 16 bits."""
    found = set()
    for prefix, inside in pretrained_inside(model).items():
        kept = {*(getattr(inside, "_keep_in_fp32_modules", None) or ()), *(getattr(inside, "_keep_in_fp32_modules_strict", None) or ())}
        parts = [f".{pattern.removesuffix('.weight')}." for pattern in kept]
        found |= {f"{prefix}.{name}".lstrip(".") for name, _ in inside.named_modules() if any(part in f".{name}." for part in parts)}
    return found


def tied_names(model: nn.Module) -> dict[str, str]:
    """The names of parameters that share a weight, each with the other: transformers ties weights only after it has loaded them."""
    announced = getattr(model, "all_tied_weights_keys", {})
    return {a: b for pair in announced.items() for a, b in (pair, pair[::-1])}


def initialized(module: Module) -> Module:
    """Marks a class of modules, whose weights transformers would otherwise draw at random where a checkpoint does not fill them."""
    module._is_hf_initialized = True  # type: ignore[attr-defined]
    return module
