"""Weights that are not there yet, or no longer: what stands in their place must not be quantized."""

from collections.abc import Callable

from torch import Tensor, nn

from ..experts import Int8Experts
from ..experts_layout import PROJECTIONS, layout
from ..experts_layout import obstacle as experts_obstacle
from .float_layers import is_float_linear, obstacle

_HINT = (
    "quantize the model before it is offloaded, sharded or dispatched. One that was saved in int8 can be loaded with any device_map: "
    "from_pretrained(folder, quantization_config=fast.huggingface.Int8Config()), then save_pretrained"
)


def check_weights_are_here(model: nn.Module, skipped: Callable[[str], bool | str]) -> None:
    """Checks that what is to be quantized, linear layers and experts, holds its weights. A model that is on meta as a whole passes.

    Args:
        model: whose parameters tell whether all of it is on the meta device.
        skipped: says of a module's full name whether the user wants to leave it alone.

    Raises:
        ValueError: a weight is offloaded, on the meta device beside others that are not, or has been emptied.
    """
    everything_is_meta = all(parameter.is_meta for parameter in model.parameters())
    for name, layer in model.named_modules():
        owns: tuple[str, ...]
        if is_float_linear(layer):
            blocked, owns, expected = obstacle(layer), ("weight",), _shape(layer)
        elif layout(layer) is not None and not isinstance(layer, Int8Experts):
            blocked, owns, expected = experts_obstacle(layer), PROJECTIONS, None
        else:
            continue
        if skipped(name) or blocked:
            continue
        for own in owns:
            weight = layer._parameters.get(own)
            if weight is not None:
                _check(f"the {own} of {name or type(layer).__name__}", layer, weight, expected, everything_is_meta)


def _check(name: str, layer: nn.Module, weight: Tensor, expected: tuple[int, ...] | None, everything_is_meta: bool) -> None:
    if _is_offloaded(layer):
        undo = "accelerate.hooks.remove_hook_from_submodules(model) brings the weights back"
        raise ValueError(f"{name} is offloaded, a placeholder on {weight.device} stands in its place: {_HINT}; {undo}")
    if weight.is_meta and not everything_is_meta:
        raise ValueError(f"{name} is on the meta device, without values, while other weights are not: {_HINT}")
    if expected is not None and tuple(weight.shape) != expected:
        raise ValueError(f"{name} has shape {tuple(weight.shape)}, its layer {expected}: a placeholder; {_HINT}")


def _shape(layer: nn.Module) -> tuple[int, ...] | None:
    return (layer.out_features, layer.in_features) if isinstance(layer, nn.Linear) else None


def _is_offloaded(layer: nn.Module) -> bool:
    hook = getattr(layer, "_hf_hook", None)
    return any(getattr(each, "offload", False) for each in getattr(hook, "hooks", (hook,)))
