"""What a model of transformers says about what is int8 in it: the marks that `from_pretrained` leaves, and what config.json will hold.

`quantize_model` and `from_pretrained` leave the same marks. What is saved is written anew whenever `save_pretrained` is called, from the
layers that the model holds then: a part of it may have been quantized, a layer exchanged, a threshold set, or the model may
share its config with another. For that `save_pretrained` is wrapped, once this module is imported.
"""

import copy
import functools
import gc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.quantizers.auto import AutoHfQuantizer

from .. import arguments
from ..experts import ABSMAX, Int8Experts
from ..experts_layout import PROJECTIONS
from ..linear import SCALES, Int8Linear
from ..selection.choice import is_float_experts
from ..selection.float_layers import is_float_linear
from .config import METHOD, SETTINGS, Int8Config
from .fused_experts import saved_as_fused

MARKS = ("is_quantized", "quantization_method", "hf_quantizer")


def int8_layers(model: nn.Module) -> dict[str, Int8Linear | Int8Experts]:
    """The layers of `model` that are int8, and its modules of experts that are, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, (Int8Linear, Int8Experts))}


def declaration(model: nn.Module) -> Int8Config:
    """What config.json has to hold so that the model's int8 layers are read as they are.

    Settings that differ by layer are written by layer. `skip_modules` names the float layers, for readers that go by it.
    """
    layers = int8_layers(model)
    settings = {name: _settings(layer) for name, layer in layers.items()}
    common = dict(Counter(tuple(own.items()) for own in settings.values()).most_common(1)[0][0])
    own = {name: {key: value for key, value in each.items() if value != common[key]} for name, each in settings.items()}
    skipped = [name for name, module in model.named_modules() if is_float_linear(module) or is_float_experts(module)]
    config = Int8Config(skip_modules=skipped, layers=own if any(own.values()) else None, **common)
    # As patterns, some names would also match those of int8 layers ("head" matches "blocks.0.head").
    alone = [Int8Config(skip_modules=[name]) for name in skipped]
    exact = [any(pattern.skips(name) for name in layers) for pattern in alone]
    config.skip_modules = [f"^{name}$".replace(".", r"\.") if e else name for name, e in zip(skipped, exact, strict=True)]
    return config


def _settings(layer: Int8Linear | Int8Experts) -> dict[str, Any]:
    limit = arguments.threshold(layer.threshold)
    # JSON has no infinity, and numbers of other libraries are not JSON either.
    return {name: getattr(layer, name) for name in SETTINGS} | {"threshold": None if limit is None else float(layer.threshold)}  # type: ignore[arg-type]


def declare(model: nn.Module) -> None:
    """Marks the models of transformers inside `model` and around it, as `from_pretrained` marks what it quantizes.

    Each gets a config of its own first: one that it shares with a model elsewhere must not declare that one, too.
    """
    for outer in [*_around(model), *_outermost(model)]:
        _give_own_config(outer)
        mark(outer)


def mark(model: PreTrainedModel) -> None:
    """Leaves the marks of transformers on a model and on those inside it; takes them away where there is no int8 layer."""
    holders: dict[int, PreTrainedModel] = {}
    for inside in _pretrained(model):
        if not int8_layers(inside):
            unmark(inside)
            continue
        loader = getattr(inside, "hf_quantizer", None)
        if _is_float_gguf(loader):
            # The weights came from a GGUF file as floats; transformers would refuse to save them all the same.
            loader.remove_quantization_config(inside)  # type: ignore[union-attr]
        elif loader is not None and loader.quantization_config.quant_method != METHOD:
            continue  # quantized by another method; saving is refused
        config = declaration(inside)
        inside.is_quantized = True  # type: ignore[assignment]
        inside.quantization_method = METHOD  # type: ignore[assignment]
        inside.hf_quantizer = AutoHfQuantizer.from_config(config, pre_quantized=True)
        inside.config._is_quantized = True
        # Models inside a model may share its config: it tells of the outer one.
        if holders.setdefault(id(inside.config), inside) is inside:
            inside.config.quantization_config = config


def unmark(model: PreTrainedModel) -> None:
    """Takes this package's marks away from a model, whose layers are float."""
    loader = model.__dict__.get("hf_quantizer")
    if loader is not None and loader.quantization_config.quant_method == METHOD:
        for name in MARKS:
            model.__dict__.pop(name, None)
    if _is_ours(getattr(model.config, "quantization_config", None)):
        del model.config.quantization_config
        model.config.__dict__.pop("_is_quantized", None)


def _pretrained(model: nn.Module) -> list[PreTrainedModel]:
    return [module for module in model.modules() if isinstance(module, PreTrainedModel)]


def _outermost(model: nn.Module) -> list[PreTrainedModel]:
    found = _pretrained(model)
    inner = {id(inside) for outer in found for inside in _pretrained(outer)[1:]}
    return [module for module in found if id(module) not in inner]


def _around(model: nn.Module) -> list[PreTrainedModel]:
    """The models of transformers that hold `model` as a part, found among all objects that live: a module does not know its parents."""
    everything = [each for each in gc.get_objects() if issubclass(type(each), PreTrainedModel) and each is not model]
    holders = [each for each in everything if "_modules" in vars(each) and any(module is model for module in each.modules())]
    inner = {id(inside) for outer in holders for inside in _pretrained(outer)[1:]}
    return [each for each in holders if id(each) not in inner]


def _give_own_config(model: PreTrainedModel) -> None:
    """Replaces the model's config, and what it holds, by copies, wherever a module of the model refers to them."""
    copies: dict[int, Any] = {}
    copy.deepcopy(model.config, copies)
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, PretrainedConfig) and id(value) in copies:
                module.__dict__[name] = copies[id(value)]


def _is_ours(config: Any) -> bool:
    return isinstance(config, Int8Config) or (isinstance(config, dict) and config.get("quant_method") == METHOD)


def _is_float_gguf(loader: Any) -> bool:
    return loader is not None and loader.quantization_config.quant_method == "gguf" and not getattr(loader, "packed_modules", None)


# What transformers does with such a model.


@contextmanager
def declared(model: PreTrainedModel) -> Iterator[None]:
    """Within, the model's config holds what is true of the model now, and configs inside it say nothing about int8.

    Raises:
        ValueError: the model is quantized by another method as well.
    """
    if int8_layers(model) and getattr(model, "hf_quantizer", None) is None:
        _give_own_config(model)
    mark(model)
    loader = getattr(model, "hf_quantizer", None)
    if int8_layers(model) and (loader is None or loader.quantization_config.quant_method != METHOD):
        method = loader.quantization_config.quant_method if loader is not None else "another method"
        other = getattr(method, "value", method)
        raise ValueError(
            f"a model quantized with {other} that also holds Int8Linear layers ({next(iter(int8_layers(model)))}) cannot be saved: "
            "config.json has room for one method"
        )
    configs = {id(each): each for each in _configs(model.config)}
    before = {key: each.quantization_config for key, each in configs.items() if _is_ours(getattr(each, "quantization_config", None))}
    for key in before:
        del configs[key].quantization_config
    try:
        if int8_layers(model):
            model.config.quantization_config = declaration(model)
        with saved_as_fused(model):
            yield
    finally:
        if id(model.config) not in before and _is_ours(getattr(model.config, "quantization_config", None)):
            del model.config.quantization_config
        for key, config in before.items():
            configs[key].quantization_config = config


def _configs(config: PretrainedConfig) -> Iterator[PretrainedConfig]:
    """A config and all those inside it."""
    yield config
    for value in vars(config).values():
        for inside in value.values() if isinstance(value, dict) else (value,):
            if isinstance(inside, PretrainedConfig):
                yield from _configs(inside)


def _declaring(save: Callable) -> Callable:
    @functools.wraps(save)
    def save_pretrained(self: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
        with declared(self):
            return save(self, *args, **kwargs)

    return save_pretrained


def _beside(layer: Int8Linear | Int8Experts) -> list[str]:
    """Names of the parameters that a layer in int8 has beside those of a float one."""
    if isinstance(layer, Int8Experts):
        return [name for name in layer.stored_names() if name.endswith(ABSMAX)]
    return [*SCALES, "weight_zero_point", "float_weight"]


def _without_scales(count: Callable) -> Callable:
    @functools.wraps(count)
    def num_parameters(self: PreTrainedModel, *args: Any, **kwargs: Any) -> int:
        """As before, without what a layer in int8 holds beside weight and bias."""
        only_trainable = args[0] if args else kwargs.get("only_trainable", False)
        extra = [layer._parameters.get(name) for layer in int8_layers(self).values() for name in _beside(layer)]
        return count(self, *args, **kwargs) - sum(p.numel() for p in extra if p is not None and (p.requires_grad or not only_trainable))

    return num_parameters


def _refusing_codes(resize: Callable) -> Callable:
    @functools.wraps(resize)
    def get_resized_lm_head(
        self: PreTrainedModel, old_lm_head: nn.Module, new_num_tokens: int | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        if isinstance(old_lm_head, Int8Linear) and new_num_tokens not in (None, old_lm_head.out_features):
            name = next((name for name, layer in int8_layers(self).items() if layer is old_lm_head), "the output head")
            raise TypeError(
                f"{name} is an Int8Linear, whose codes cannot be resized with the token embeddings: name it in skip (quantize_model) or "
                "skip_modules (Int8Config), or resize before the model is quantized"
            )
        return resize(self, old_lm_head, new_num_tokens, *args, **kwargs)

    return get_resized_lm_head


def _refusing_codes_for_floats(finalize: Callable) -> Callable:
    @functools.wraps(finalize)
    def finalize_model_loading(model: PreTrainedModel, load_config: Any, loading_info: Any) -> Any:
        loader = load_config.hf_quantizer
        ours = loader is not None and loader.quantization_config.quant_method == METHOD  # which looks itself
        modules = dict(model.named_modules())
        for key in () if ours else sorted(loading_info.unexpected_keys):
            name, _, last = key.rpartition(".")
            module = modules.get(name, model)
            weight = "weight" if last in ("weight_absmax", "weight_zero_point") else last.removesuffix(ABSMAX)
            if is_float_linear(module) if weight == "weight" else weight in PROJECTIONS and is_float_experts(module):
                raise ValueError(
                    f"the checkpoint holds int8 codes for {name}.{weight}, which goes into a float layer: its config.json has no "
                    "quantization_config. Save the model with save_pretrained, which writes one"
                )
        return finalize(model, load_config, loading_info)

    return finalize_model_loading


PreTrainedModel._finalize_model_loading = staticmethod(  # type: ignore[method-assign]
    _refusing_codes_for_floats(PreTrainedModel._finalize_model_loading)
)
PreTrainedModel.save_pretrained = _declaring(PreTrainedModel.save_pretrained)  # type: ignore[method-assign]
PreTrainedModel.num_parameters = _without_scales(PreTrainedModel.num_parameters)  # type: ignore[method-assign]
PreTrainedModel._get_resized_lm_head = _refusing_codes(PreTrainedModel._get_resized_lm_head)  # type: ignore[method-assign]
