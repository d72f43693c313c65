"""What hangs on a linear layer besides weight and bias (hooks, buffers, attributes), and how the layer that takes its place takes it over.

What cannot be taken over is named: the layer then stays float, or `Int8Linear.from_float` refuses it. Nothing is dropped.
"""

from torch import nn

#: What each layer has of its own, and what transformers notes about a float weight.
_OWN = {
    "_parameters",
    "_buffers",
    "_non_persistent_buffers_set",
    "_modules",
    "in_features",
    "out_features",
    "nf",
    "nx",
    "_is_hf_initialized",
}

#: Names that an `Int8Linear` needs for itself.
_NEEDED = {
    "threshold", "outlier_weight", "quantizer", "granularity", "float_dtype", "weight_absmax", "weight_scale", "weight_zero_point",
    "float_weight", "dequantize", "dequantized_weight", "requantize",
}  # fmt: skip


def obstacle(module: nn.Module) -> str | None:
    """What hangs on `module`, a torch.nn.Linear or a Conv1D, that an `Int8Linear` cannot take over; None if there is no such thing."""
    names = (*vars(module), *module._parameters, *module._buffers, *module._modules)
    if taken := sorted(_NEEDED.intersection(names)):
        return f"it has an attribute {taken[0]}, which is one of Int8Linear's own"
    return patched(module)


def patched(module: nn.Module) -> str | None:
    """What has been put in the way between a module and its weights: a patched or compiled method, a hook of accelerate's or on a gradient.

    None if there is no such thing.
    """
    offloaded = any(parameter is not None and parameter.is_meta for parameter in module._parameters.values())
    for name in () if offloaded else vars(module):  # refused elsewhere, with what to do
        if name in ("_compiled_call_impl", "_old_forward", "_hf_hook") or callable(getattr(type(module), name, None)):
            return f"it has a {name} of its own: patched, compiled, or a hook of accelerate's"
    for name, parameter in module._parameters.items():
        if parameter is not None and (parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None)):
            return f"gradient hooks hang on its {name}"
    return None


def take_over(layer: nn.Module, module: nn.Module) -> None:
    """Gives `layer`, an `Int8Linear`, what hangs on `module`, of which it was made.

    Hooks are shared, not copied: a handle that came with one removes it from the layer, too.

    Args:
        layer: an `Int8Linear`.
        module: without an `obstacle`.
    """
    layer.__dict__.update({name: value for name, value in vars(module).items() if name not in _OWN})
    for key, hook in module._load_state_dict_pre_hooks.items():
        if getattr(hook, "with_module", False):  # torch keeps a weak reference to the module, which is about to go
            layer._load_state_dict_pre_hooks[key] = type(hook)(hook.hook, layer)  # type: ignore[call-arg, attr-defined, misc]
    for name, parameter in module._parameters.items():
        if name not in ("weight", "bias"):
            layer.register_parameter(name, parameter)
        elif parameter is not None and (own := layer._parameters[name]) is not None:
            own.__dict__.update({key: value for key, value in vars(parameter).items() if key not in _OWN})
    for name, buffer in module._buffers.items():
        layer.register_buffer(name, buffer, name not in module._non_persistent_buffers_set)
    for name, child in module._modules.items():
        layer.add_module(name, child)
