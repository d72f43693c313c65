"""Weights that are not there yet, or no longer: what stands in their place must not be quantized."""

from collections.abc import Callable

from torch import nn

from .float_layers import is_float_linear, obstacle

_HINT = (
    "quantize the model before it is offloaded, sharded or dispatched. One that was saved in int8 can be loaded with any device_map: "
    "from_pretrained(folder, quantization_config=fast.huggingface.Int8Config()), then save_pretrained"
)


def check_weights_are_here(model: nn.Module, skipped: Callable[[str], bool | str]) -> None:
    """Checks that each linear layer that is to be quantized holds its weight. A model that is on the meta device as a whole passes.

    Args:
        model: whose parameters tell whether all of it is on the meta device.
        skipped: says of a module's full name whether the user wants to leave it alone.

    Raises:
        ValueError: a weight is offloaded, on the meta device beside others that are not, or has been emptied.
    """
    everything_is_meta = all(parameter.is_meta for parameter in model.parameters())
    for name, layer in model.named_modules():
        if not is_float_linear(layer) or skipped(name) or obstacle(layer):
            continue
        name = name or type(layer).__name__
        weight = layer._parameters["weight"]
        assert weight is not None  # or there had been an obstacle
        if _is_offloaded(layer):
            undo = "accelerate.hooks.remove_hook_from_submodules(model) brings the weights back"
            raise ValueError(f"the weight of {name} is offloaded, a placeholder on {weight.device} stands in its place: {_HINT}; {undo}")
        if weight.is_meta and not everything_is_meta:
            raise ValueError(f"the weight of {name} is on the meta device, without values, while other weights are not: {_HINT}")
        expected = (layer.out_features, layer.in_features) if isinstance(layer, nn.Linear) else tuple(weight.shape)
        if tuple(weight.shape) != expected:
            raise ValueError(f"the weight of {name} has shape {tuple(weight.shape)}, its layer {expected}: a placeholder; {_HINT}")


def _is_offloaded(layer: nn.Module) -> bool:
    hook = getattr(layer, "_hf_hook", None)
    return any(getattr(each, "offload", False) for each in getattr(hook, "hooks", (hook,)))
