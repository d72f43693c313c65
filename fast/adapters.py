"""Adapters of PEFT on top of int8 layers: they compute with a weight, a layer holds codes.

A tuner layer of PEFT (LoRA, DoRA, IA3, ...) holds the layer as its `base_layer`.

    reading    `layer.weight`, read by code of PEFT, is the dequantized weight; whoever else reads it gets the codes
    writing    while a tuner layer merges, unmerges or is set up, its base layer is a float one; what has become of the float weight is
               then quantized again, with the layer's settings, as PEFT does for bitsandbytes

Calls go to the layer in int8, before and after. PEFT need not be there, nor be imported before this package.
"""

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

#: Methods of tuner layers that may write to the weight of their base layer.
WRITERS = ("merge", "unmerge", "update_layer")

#: Under these names modules of PEFT hold what they adapt; whatever else they hold is an adapter.
ADAPTED = ("base_layer", "base_model", "model", "original_module", "lora_model")


class Adaptable(nn.Module):
    """A module that holds a weight in codes, as PEFT sees it: with a float `weight`.

    It has `dequantize`, `dequantized_weight` and `requantize`, as `Int8Linear`.
    """

    dequantize: Callable[..., nn.Linear]
    dequantized_weight: Callable[..., Tensor]
    requantize: Callable[[Tensor], None]

    #: Whether a tuner layer holds it. torch.compile cannot trace who reads the weight, and goes by this.
    adapted = False

    def weight_for_peft(self) -> Tensor:
        """(N, K), a new float parameter: what `weight` is for code of PEFT."""
        read = nn.Parameter(self.dequantized_weight(), requires_grad=False)
        read.codes = self._parameters["weight"]  # type: ignore[attr-defined]
        return read

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As torch.nn.Module's; but a weight that PEFT has read here, and puts back, leaves the codes as they are."""
        if name != "weight" or getattr(param, "codes", None) is None or param.codes is not self._parameters.get("weight"):  # type: ignore[union-attr]
            super().register_parameter(name, param)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if (tuner := _tuner_layer()) is not None:  # in a process that unpickles a tuner layer and has made none
            _prepare(tuner)


def read_by_peft(layer: Adaptable) -> bool:
    """Whether the code that reads `layer.weight`, two calls up, is PEFT's."""
    if torch.compiler.is_compiling():
        return layer.adapted
    return is_peft(sys._getframe(2).f_globals.get("__name__", ""))


def is_peft(module: str) -> bool:
    """Whether the module of this name is one of PEFT's."""
    return module == "peft" or module.startswith("peft.")


def _tuner_layer() -> type | None:
    """The base class of PEFT's tuner layers, if it has been imported."""
    return getattr(sys.modules.get("peft.tuners.tuners_utils"), "BaseTunerLayer", None)


def _on_registration(parent: nn.Module, name: str, module: nn.Module | None) -> None:
    """Sees each module that becomes part of another: tuner layers that take a layer in int8, and models that get it back."""
    if isinstance(module, Adaptable) and (tuner := _tuner_layer()) is not None:
        if isinstance(parent, tuner):
            _prepare(type(parent))
            module.adapted = True
        elif isinstance(parent._modules.get(name), tuner):
            module.adapted = False


register_module_module_registration_hook(_on_registration)


def _prepare(tuner: type) -> None:
    """Gives the methods of a class of tuner layers, and of those derived from it, that write to the base layer a float one to write to."""
    for kind in (*tuner.__mro__, *tuner.__subclasses__()):
        for name in WRITERS:
            method = vars(kind).get(name)
            if inspect.isfunction(method) and not hasattr(method, "_llm_int8_original"):
                setattr(kind, name, _on_floats(method))
    for kind in tuner.__subclasses__():
        _prepare(kind)


def _on_floats(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method of a tuner layer, with a float layer in the place of its `Int8Linear` while it runs."""

    @functools.wraps(method)
    def wrapped(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        holder = self
        while isinstance(inner := holder._modules.get("base_layer"), nn.Module) and "base_layer" in inner._modules:
            holder = inner
        layer = holder._modules.get("base_layer")
        if not isinstance(layer, Adaptable):
            return method(self, *args, **kwargs)
        # In float32, so that nothing but quantizing rounds; the bias is the layer's own.
        stand_in = layer.dequantize(None if method.__name__ == "update_layer" else torch.float32)
        stand_in._parameters["bias"] = layer._parameters["bias"]
        before = stand_in.weight.detach().clone()
        holder._modules["base_layer"] = stand_in
        try:
            result = method(self, *args, **kwargs)
        finally:
            holder._modules["base_layer"] = layer
        _take(layer, stand_in, before)
        return result

    wrapped._llm_int8_original = method  # type: ignore[attr-defined]
    return wrapped


def _take(layer: Adaptable, stand_in: nn.Linear, before: Tensor) -> None:
    """Writes what has become of the stand-in's parameters into the layer; a weight that has not changed keeps its codes."""
    weight = stand_in.weight.detach()
    if weight.shape != before.shape or not torch.equal(weight, before):
        layer.requantize(weight.to(before.device))
    layer._parameters["bias"] = stand_in._parameters["bias"]


def parts_of_adapters(model: nn.Module) -> set[str]:
    """Names of the modules in `model` that belong to an adapter of PEFT, and not to what it adapts."""
    tuner, parts = _tuner_layer(), set()
    for name, module in model.named_modules(remove_duplicate=False):
        if is_peft(type(module).__module__) or (tuner is not None and isinstance(module, tuner)):
            for child_name, child in module.named_children():
                if child_name not in ADAPTED:
                    prefix = f"{name}.{child_name}".lstrip(".")
                    parts |= {f"{prefix}.{inner}".rstrip(".") for inner, _ in child.named_modules(remove_duplicate=False)}
    return parts
