"""What transformers calls while it loads or saves a model in int8; see the package for how it is used."""

import copy
import inspect
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, BitsAndBytesConfig, PretrainedConfig, PreTrainedModel
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.quantizers import HfQuantizer, register_quantizer

from ..bitsandbytes_checkpoint import check_layout, to_bitsandbytes
from ..experts import Int8Experts, other_settings
from ..experts_layout import PROJECTIONS, layout
from ..linear import Int8Linear
from ..selection import Summary, choose_layers, size_of
from ..selection.choice import is_float_experts
from ..selection.float_layers import computes_as_linear, is_float_linear
from ..transformers_traits import heads, is_conv1d
from . import stored
from .config import METHOD, Int8Config
from .declarations import declaration, mark
from .fused_experts import float_placeholders, quantize_merged, quantizing_merges, without_merges
from .parallel_plan import use_int8_styles

logger = logging.getLogger(__name__)

#: Why a layer stays float that transformers will refuse, or initialize anew where it is told to ignore sizes.
OTHER_SHAPE = "of another shape in the checkpoint"


@register_quantizer(METHOD)
class Int8Quantizer(HfQuantizer):
    """What transformers calls while it loads a model with an `Int8Config`."""

    quantization_config: Int8Config

    def __init__(self, quantization_config: Int8Config, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        # A copy: what is skipped depends on the model, the user's object may serve several.
        self.quantization_config = copy.copy(quantization_config)
        self.conv1d: set[str] = set()
        self.summary = Summary()
        self.empty: tuple[PreTrainedModel, Sequence[str] | None] | None = None
        self.shapes: dict[str, torch.Size] = {}

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        """Refuses what would fail later, or silently go wrong."""
        if not self.pre_quantized and isinstance(device_map, dict) and "disk" in device_map.values():
            raise ValueError(
                'device_map must not hold "disk" while a model is quantized; quantize it once without, save_pretrained it, and '
                "load the saved model with this device_map"
            )

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        files = kwargs.get("checkpoint_files")
        if self.quantization_config.checkpoint == "bitsandbytes":
            for file in files or ():
                _check_layouts(file)
            model._keys_to_ignore_on_load_unexpected = {*(model._keys_to_ignore_on_load_unexpected or ()), r"weight_format$"}
        self.empty = model, files  # what the files hold is told by their names, and those by the conversions, which come next

    def update_weight_conversions(self, weight_conversions: list, *args: Any) -> list:
        """What renames the keys of a file; bitsandbytes has its own name, and shape, for the row maxima.

        transformers calls it between building the model and reading the weights. Here the layers are replaced: only now it is known
        which tensor of a file fills which parameter.
        """
        if self.empty is not None:
            (model, files), self.empty = self.empty, None
            tensors = stored.headers(files)
            if not self.pre_quantized:
                weight_conversions = quantizing_merges(weight_conversions)
            elif tensors is None or any(map(stored.are_merged_experts, tensors.values())):
                weight_conversions = without_merges(weight_conversions)
            self._replace_layers(model, stored.read(model, tensors, weight_conversions))
        own = [WeightConverter("SCB", "weight_absmax", [_Column()])] if self.quantization_config.checkpoint == "bitsandbytes" else []
        return [*weight_conversions, *own]

    def _replace_layers(self, model: PreTrainedModel, checkpoint: stored.Stored | None) -> None:
        config = self.quantization_config
        if self.pre_quantized and checkpoint is not None:
            chosen = _as_stored(model, checkpoint, self.summary)
        else:
            settings = config.layer_arguments()
            refused = other_settings(settings["outlier_weight"], settings["quantizer"], settings["granularity"])
            chosen = choose_layers(model, _skipped(model, config, checkpoint), self.summary, refused)
        for module, names in chosen.items():
            in_file = checkpoint.layers | checkpoint.experts if checkpoint is not None else {}
            settings = config.layer_arguments(names[0], in_file.get(names[0], names[0]))
            if is_float_experts(module):
                self._replace_experts(module, names[0], settings["threshold"])
            else:
                self._replace_layer(model, module, names, settings)
        self.shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            use_int8_styles(model, self.summary.quantized)

    def _replace_layer(self, model: PreTrainedModel, module: nn.Module, names: list[str], settings: dict[str, Any]) -> None:
        layer = Int8Linear.from_float(module, None, **settings)
        self.summary.quantized[names[0]] = (size_of(module), size_of(layer))
        if is_conv1d(module):
            self.conv1d.update(names)
        if not self.pre_quantized:
            # transformers casts what it reads to the dtype that it finds here, before it is quantized.
            dtype = module._parameters["weight"].dtype  # type: ignore[union-attr]
            layer.weight = nn.Parameter(torch.empty_like(layer.weight, dtype=dtype), requires_grad=False)  # type: ignore[misc]
        for name in names:
            model.set_submodule(name, layer)

    def _replace_experts(self, module: nn.Module, name: str, threshold: float | None) -> None:
        before, dtypes = size_of(module), {own: p.dtype for own, p in module.named_parameters(recurse=False) if own in PROJECTIONS}
        experts = Int8Experts.from_float(module, threshold)
        self.summary.quantized[name] = (before, size_of(experts))
        self.summary.experts.add(name)
        if not self.pre_quantized:
            float_placeholders(experts, dtypes)

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **kwargs: Any) -> bool:
        """Whether the parameter is a float weight in the file and int8 in the model."""
        layer, _, name = param_name.rpartition(".")
        if self.pre_quantized or name not in ("weight", *PROJECTIONS):
            return False
        return isinstance(model.get_submodule(layer), Int8Linear if name == "weight" else Int8Experts)

    def param_element_size(self, model: PreTrainedModel, param_name: str, param: Tensor) -> float:
        """Bytes per entry, for `device_map="auto"`."""
        return 1 if self.param_needs_quantization(model, param_name) else super().param_element_size(model, param_name, param)

    def get_quantize_ops(self) -> ConversionOps:
        """What turns a float weight into the parameters of an `Int8Linear` or of `Int8Experts`."""
        return _Quantize(self)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        for name, tensor in model.state_dict(keep_vars=True).items():
            layer = model.get_submodule(name.rpartition(".")[0])
            if tensor.shape != self.shapes.get(name, tensor.shape):  # transformers 5.17 does not look where a model is quantized
                raise RuntimeError(
                    f"size mismatch for {name}: the checkpoint holds {tuple(tensor.shape)}, the model takes {tuple(self.shapes[name])}"
                )
            if isinstance(layer, (Int8Linear, Int8Experts)):
                if not (tensor.is_meta or getattr(tensor, "_is_hf_initialized", False)):
                    raise ValueError(f"the checkpoint holds no {name}, which a layer in int8 needs; was it saved with other skip_modules?")
                tensor.requires_grad_(False)  # transformers sets it for whatever is floating
            elif (is_float_linear(layer) or is_float_experts(layer)) and tensor.dtype == torch.int8:
                raise ValueError(f"the checkpoint holds int8 codes for {name}, the model a float {type(layer).__name__}")
        renamed = [c for c in model._weight_conversions if "weight_absmax" not in c.target_patterns]  # type: ignore[union-attr]
        model._weight_conversions = renamed  # type: ignore[assignment]
        saved = sum(before - after for before, after in self.summary.quantized.values())
        self.summary.bytes_after = size_of(model)
        self.summary.bytes_before = self.summary.bytes_after + saved
        model.quantization_summary = self.summary  # type: ignore[assignment]
        mark(model)
        if self.summary.quantized:
            logger.info("loaded a model in int8\n%s", self.summary)
        else:
            logger.warning("no layer of %s was quantized\n%s", type(model).__name__, self.summary)
        return model

    def _dequantize(self, model: PreTrainedModel, dtype: torch.dtype | str | None = None) -> PreTrainedModel:
        dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype  # a config that has been saved holds its name
        kinds = (Int8Linear, Int8Experts)
        layers = {name: module for name, module in model.named_modules(remove_duplicate=False) if isinstance(module, kinds)}
        floats = {layer: layer.dequantize(dtype) for layer in set(layers.values())}
        for name, layer in layers.items():
            model.set_submodule(name, floats[layer])
        mark(model)
        return model

    def is_serializable(self) -> bool:
        """Whether `save_pretrained` works."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether adapters can be trained on top."""
        return True

    @property
    def is_compileable(self) -> bool:
        """Whether `generate` may compile the model."""
        return True


def _check_layouts(file: str) -> None:
    """Reads the layouts, and nothing else, of the int8 layers in a checkpoint's file; transformers itself would ignore them."""
    if file.endswith(".safetensors"):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118, it is no dict
                if name.endswith("weight_format"):
                    check_layout(name, tensors.get_tensor(name))


def _skipped(model: PreTrainedModel, config: Int8Config, checkpoint: stored.Stored | None) -> Callable[[str], bool | str]:
    """Which layers to leave alone while a float checkpoint is quantized, and why."""
    left_alone = heads(model) if config.skip_modules is None else set()

    def skipped(name: str) -> bool | str:
        module = model.get_submodule(name)
        own = [f"{name}.{parameter}" for parameter, _ in module.named_parameters(recurse=False)]
        if checkpoint is not None and (codes := checkpoint.codes.intersection(own)):
            raise ValueError(
                f"the checkpoint holds int8 codes for {min(codes)}, but its config.json does not say how it was quantized: "
                "save the model with save_pretrained while fast.huggingface is imported, or write its quantization_config"
            )
        if config.skips(name):
            return True
        tied = any(parameter in model.all_tied_weights_keys for parameter in own)
        if not tied and checkpoint is not None and not checkpoint.present.issuperset(own):
            return "the checkpoint does not hold it"
        if checkpoint is not None and any(checkpoint.shapes.get(each, shape) != shape for each, shape in _shapes(name, module).items()):
            return OTHER_SHAPE
        return name in left_alone and "an output head; write skip_modules=[] to quantize it, too"

    return skipped


def _shapes(name: str, module: nn.Module) -> dict[str, torch.Size]:
    return {f"{name}.{own}": parameter.shape for own, parameter in module.named_parameters(recurse=False)}


def _as_stored(model: PreTrainedModel, checkpoint: stored.Stored, summary: Summary) -> dict[nn.Module, list[str]]:
    """The layers that are int8 in the checkpoint, whatever would be chosen of a float model; notes in `summary` what is not."""
    modules = dict(model.named_modules(remove_duplicate=False))

    in_int8 = checkpoint.layers | checkpoint.experts

    def skipped(name: str) -> bool | str:
        own = {f"{name}.{parameter}" for parameter, _ in modules[name].named_parameters(recurse=False)}
        present = own & checkpoint.present
        return name not in in_int8 and ("float in the checkpoint" if present else "the checkpoint does not hold it")

    choose_layers(model, skipped, summary)
    chosen: dict[nn.Module, list[str]] = {}
    for name in sorted(in_int8, key=list(modules).index):
        module = modules[name]
        if not (is_float_experts(module) if name in checkpoint.experts else is_float_linear(module) and computes_as_linear(module)):
            wanted = "experts that are known" if name in checkpoint.experts else "a linear layer"
            raise ValueError(f"the checkpoint holds int8 codes for {name}, which is a {type(module).__name__}, not {wanted}")
        summary.kept.pop(name, None)
        if all(checkpoint.shapes.get(own, shape) == shape for own, shape in _shapes_in_int8(name, module).items()):
            chosen.setdefault(module, []).append(name)
        else:
            summary.kept[name] = (size_of(module), OTHER_SHAPE)
    return chosen


def _shapes_in_int8(name: str, module: nn.Module) -> dict[str, torch.Size]:
    """The shapes that the codes of a float module will have, by the names of their parameters."""
    if (experts := layout(module)) is not None:
        weights = {f"{name}.{own}": module._parameters[own] for own in (experts.first, "down_proj")}
        return {own: (w.transpose(1, 2) if experts.transposed else w).shape for own, w in weights.items()}  # type: ignore[union-attr]
    features = (module.nf, module.nx) if is_conv1d(module) else (module.out_features, module.in_features)
    return {f"{name}.weight": torch.Size(features)}  # type: ignore[arg-type]


class _Quantize(ConversionOps):
    """A float weight, as it is read from a file, to the parameters of its layer or its experts."""

    def __init__(self, hf_quantizer: Int8Quantizer) -> None:
        self.hf_quantizer = hf_quantizer

    def convert(self, input_dict: dict[str, Any], *args: Any, model: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        converted: dict[str, Tensor] = {}
        for name, value in input_dict.items():
            weight = value[0] if isinstance(value, list) else value
            experts = model.get_submodule(name.rpartition(".")[0])
            if isinstance(experts, Int8Experts):
                converted |= quantize_merged(name, weight, experts)
                continue
            prefix = name.removesuffix(".weight")
            weight = weight.T if prefix in self.hf_quantizer.conv1d else weight
            expected = model.get_parameter(name).shape
            if weight.shape != expected:
                raise ValueError(f"{name} must have shape {tuple(expected)}, the file holds {tuple(weight.shape)}")
            layer = Int8Linear.from_float(weight, None, **self.hf_quantizer.quantization_config.layer_arguments(prefix))
            converted |= {f"{prefix}.{own}": parameter for own, parameter in layer.named_parameters()}
        return converted


class _Column(ConversionOps):
    """One number per row, (N,), to a column, (N, 1)."""

    def convert(  # type: ignore[override]
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **kwargs: Any
    ) -> dict[str, Tensor]:
        (value,) = input_dict.values()
        return {target_patterns[0]: (value[0] if isinstance(value, list) else value).reshape(-1, 1)}

    @property
    def reverse_op(self) -> ConversionOps:
        return self


def bitsandbytes_config(path: str | os.PathLike[str], **kwargs: Any) -> PretrainedConfig:
    """Reads the config of a checkpoint that was saved in 8 bits with bitsandbytes, for loading it with this package:

        AutoModelForCausalLM.from_pretrained(path, config=bitsandbytes_config(path))

    Args:
        path: a folder or a hub name, as in `from_pretrained`.
        kwargs: for `AutoConfig.from_pretrained`.

    Raises:
        ValueError: path is not an 8-bit bitsandbytes checkpoint, or holds float weights (llm_int8_has_fp16_weight).
    """
    config = AutoConfig.from_pretrained(path, **kwargs)
    found = getattr(config, "quantization_config", None) or {}
    if not found.get("load_in_8bit") or found.get("llm_int8_has_fp16_weight"):
        raise ValueError(f"{os.fspath(path)} must be a checkpoint that bitsandbytes saved in 8 bits, its quantization_config is {found}")
    # 0 turns decomposition off there; here it would send every column to 16 bits.
    threshold = found.get("llm_int8_threshold", 6.0) or None
    config.quantization_config = Int8Config(threshold, found.get("llm_int8_skip_modules"), checkpoint="bitsandbytes").to_dict()
    return config


def save_bitsandbytes(model: PreTrainedModel, folder: str | os.PathLike[str], **kwargs: Any) -> None:
    """Saves a model in int8 as a checkpoint that transformers loads with bitsandbytes; the codes and row maxima are the same bits.

    Args:
        model: with a `quantization_config` of this package, by `from_pretrained` or `quantize_model`.
        folder: to write to.
        kwargs: for `save_pretrained`.

    Raises:
        ValueError: bitsandbytes has no counterpart: zeropoint, one scale per tensor, a kept float weight, or the threshold 0.
    """
    ours = declaration(model)
    if ours.layers is not None and any("threshold" in own for own in ours.layers.values()):
        raise ValueError("threshold must be the same for all layers for bitsandbytes, whose config holds one")
    if ours.threshold == 0:
        raise ValueError("threshold must not be 0 for bitsandbytes, where 0 turns decomposition off")
    state = to_bitsandbytes(model.state_dict())
    theirs = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=ours.threshold or 0.0, llm_int8_skip_modules=ours.skip_modules)
    quantizer = model.__dict__.pop("hf_quantizer", None)  # save_pretrained would ask it for another state
    before = getattr(model.config, "quantization_config", None)
    try:
        model.config.quantization_config = theirs
        inspect.unwrap(PreTrainedModel.save_pretrained)(model, folder, state_dict=state, **kwargs)
    finally:
        model.config.quantization_config = before
        if quantizer is not None:
            model.hf_quantizer = quantizer
