"""`import fast.huggingface` makes transformers know LLM.int8() of this package, for `from_pretrained` and `save_pretrained`.

    AutoModelForCausalLM.from_pretrained(path, quantization_config=fast.huggingface.Int8Config())

Before transformers reads any weight, the linear layers of the (still empty) model are replaced by `Int8Linear`; each weight is
quantized as it is read. A saved model loads back with plain `from_pretrained(path)`, as long as this module is imported.
"""

import copy
import logging
import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, BitsAndBytesConfig, PretrainedConfig, PreTrainedModel
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.distributed.tensor_parallel import ALL_PARALLEL_STYLES, TensorParallelLayer, replace_layer_number_by_wildcard
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.quantizers.quantizers_utils import should_convert_module
from transformers.utils.quantization_config import QuantizationConfigMixin

from . import arguments
from .bitsandbytes_checkpoint import check_layout, to_bitsandbytes
from .linear import Int8Linear
from .selection import Summary, choose_layers, size_of
from .transformers_traits import is_conv1d

logger = logging.getLogger(__name__)

#: The method's name in config.json. Where this module is not imported, transformers warns that it does not know a method of this
#: name, and goes on, with codes in the place of weights. So the name says what to do.
METHOD = "llm_int8: `import fast.huggingface` before loading this model"


@register_quantization_config(METHOD)
class Int8Config(QuantizationConfigMixin):
    """How `from_pretrained` quantizes a model, and what `save_pretrained` writes into config.json.

    Args:
        threshold: as in `Int8Linear.from_float`.
        skip_modules: names of linear layers to leave alone, as transformers takes them: the start, the end or a regular expression of a
            module's name. None for those that transformers leaves alone: the output head, the last module and tied weights.
        outlier_weight, quantizer, granularity: as in `Int8Linear.from_float`.
        checkpoint: whose names a quantized checkpoint has, "own" or "bitsandbytes"; `bitsandbytes_config` sets it.

    Raises:
        TypeError, ValueError: an argument is none of these; the message names it.
    """

    def __init__(
        self,
        threshold: float | None = 6.0,
        skip_modules: Sequence[str] | None = None,
        outlier_weight: str = "dequantized",
        quantizer: str = "absmax",
        granularity: str = "vector",
        checkpoint: str = "own",
        **kwargs: Any,
    ) -> None:
        kwargs.pop("quant_method", None)  # config.json names it
        if kwargs:
            raise TypeError(f"Int8Config has no argument {', '.join(kwargs)}")
        if isinstance(skip_modules, str):
            raise TypeError(f"skip_modules must be a sequence of names, got the string {skip_modules!r}; write [{skip_modules!r}]")
        self.quant_method = METHOD  # type: ignore[assignment]
        # JSON has no infinity.
        self.threshold = None if arguments.threshold(threshold) is None else threshold
        self.skip_modules = None if skip_modules is None else list(skip_modules)
        self.outlier_weight = arguments.one_of("outlier_weight", outlier_weight, arguments.OUTLIER_WEIGHTS)
        self.quantizer = arguments.one_of("quantizer", quantizer, arguments.QUANTIZERS)
        self.granularity = arguments.one_of("granularity", granularity, arguments.GRANULARITIES)
        self.checkpoint = arguments.one_of("checkpoint", checkpoint, ("own", "bitsandbytes"))

    def layer_arguments(self) -> dict[str, Any]:
        """The arguments of `Int8Linear.from_float` that follow weight and bias."""
        return {name: getattr(self, name) for name in ("threshold", "outlier_weight", "quantizer", "granularity")}


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

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        """Refuses what would fail later, or silently go wrong."""
        if not self.pre_quantized and isinstance(device_map, dict) and "disk" in device_map.values():
            raise ValueError(
                'device_map must not hold "disk" while a model is quantized; quantize it once without, save_pretrained it, and '
                "load the saved model with this device_map"
            )

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        config = self.quantization_config
        in_float32 = list(model._keep_in_fp32_modules or ())
        config.skip_modules = sorted(self.get_modules_to_not_convert(model, config.skip_modules, in_float32))
        chosen = choose_layers(model, lambda name: not should_convert_module(name, config.skip_modules), self.summary)
        module: Any
        for module, names in chosen.items():
            layer = Int8Linear.from_float(module, None, **config.layer_arguments())
            self.summary.quantized[names[0]] = (size_of(module), size_of(layer))
            if is_conv1d(module):
                self.conv1d.update(names)
            if not self.pre_quantized:
                # transformers casts what it reads to the dtype that it finds here, before it is quantized.
                layer.weight = nn.Parameter(torch.empty_like(layer.weight, dtype=module.weight.dtype), requires_grad=False)
            for name in names:
                model.set_submodule(name, layer)
        if self.quantization_config.checkpoint == "bitsandbytes":
            for file in kwargs.get("checkpoint_files") or ():
                _check_layouts(file)
            model._keys_to_ignore_on_load_unexpected = {*(model._keys_to_ignore_on_load_unexpected or ()), r"weight_format$"}
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            _use_int8_styles(model, self.summary.quantized)

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **kwargs: Any) -> bool:
        """Whether the parameter is a float weight in the file and int8 in the model."""
        layer, _, name = param_name.rpartition(".")
        return not self.pre_quantized and name == "weight" and isinstance(model.get_submodule(layer), Int8Linear)

    def param_element_size(self, model: PreTrainedModel, param_name: str, param: Tensor) -> float:
        """Bytes an entry, for `device_map="auto"`."""
        return 1 if self.param_needs_quantization(model, param_name) else super().param_element_size(model, param_name, param)

    def get_quantize_ops(self) -> ConversionOps:
        """What turns a float weight into the parameters of an `Int8Linear`."""
        return _Quantize(self)

    def update_weight_conversions(self, weight_conversions: list, *args: Any) -> list:
        """What renames the keys of a file; bitsandbytes has its own name, and shape, for the row maxima."""
        own = [WeightConverter("SCB", "weight_absmax", [_Column()])] if self.quantization_config.checkpoint == "bitsandbytes" else []
        return [*weight_conversions, *own]

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        for name, parameter in model.named_parameters():
            layer = model.get_submodule(name.rpartition(".")[0])
            if isinstance(layer, Int8Linear):
                if not (parameter.is_meta or getattr(parameter, "_is_hf_initialized", False)):
                    raise ValueError(f"the checkpoint holds no {name}, which a layer in int8 needs; was it saved with other skip_modules?")
                parameter.requires_grad_(False)  # transformers sets it for whatever is floating
        self.quantization_config.checkpoint = "own"  # what save_pretrained writes, without the renaming
        renamed = [c for c in model._weight_conversions if "weight_absmax" not in c.target_patterns]  # type: ignore[union-attr]
        model._weight_conversions = renamed  # type: ignore[assignment]
        saved = sum(before - after for before, after in self.summary.quantized.values())
        self.summary.bytes_after = size_of(model)
        self.summary.bytes_before = self.summary.bytes_after + saved
        model.quantization_summary = self.summary  # type: ignore[assignment]
        logger.info("loaded a model in int8\n%s", self.summary)
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


class _Quantize(ConversionOps):
    """A float weight, as it is read from a file, to the parameters of its layer."""

    def __init__(self, hf_quantizer: Int8Quantizer) -> None:
        self.hf_quantizer = hf_quantizer

    def convert(self, input_dict: dict[str, Any], *args: Any, model: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        converted: dict[str, Tensor] = {}
        for name, value in input_dict.items():
            weight = value[0] if isinstance(value, list) else value
            prefix = name.removesuffix(".weight")
            weight = weight.T if prefix in self.hf_quantizer.conv1d else weight
            expected = model.get_parameter(name).shape
            if weight.shape != expected:
                raise ValueError(f"{name} must have shape {tuple(expected)}, the file holds {tuple(weight.shape)}")
            layer = Int8Linear.from_float(weight, None, **self.hf_quantizer.quantization_config.layer_arguments())
            converted |= {f"{prefix}.{own}": parameter for own, parameter in layer.named_parameters()}
        return converted


class _Column(ConversionOps):
    """One number a row, (N,), to a column, (N, 1)."""

    def convert(  # type: ignore[override]
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **kwargs: Any
    ) -> dict[str, Tensor]:
        (value,) = input_dict.values()
        return {target_patterns[0]: (value[0] if isinstance(value, list) else value).reshape(-1, 1)}

    @property
    def reverse_op(self) -> ConversionOps:
        return self


def declare(model: PreTrainedModel) -> None:
    """Writes into `model.config` what its `Int8Linear` layers are, so that `from_pretrained` can read what `save_pretrained` writes.

    `quantize_model` calls it. Layers with different settings cannot be declared: a warning says so.
    """
    names = ("threshold", "outlier_weight", "quantizer", "granularity")
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) or is_conv1d(m)}
    settings = {tuple(getattr(m, name) for name in names) for m in linear.values() if isinstance(m, Int8Linear)}
    if len(settings) != 1:
        if settings:
            logger.warning("the layers in int8 have different settings; save_pretrained will write a model that cannot be loaded")
        return
    loader = getattr(model, "hf_quantizer", None)
    if loader is not None and loader.quantization_config.quant_method == "gguf" and not getattr(loader, "packed_modules", None):
        # The weights came from a GGUF file as floats; transformers would refuse to save them all the same.
        loader.remove_quantization_config(model)
    skipped = [name for name, module in linear.items() if not isinstance(module, Int8Linear)]
    model.config.quantization_config = Int8Config(skip_modules=skipped, **dict(zip(names, settings.pop(), strict=True)))


def bitsandbytes_config(path: str | os.PathLike[str], **kwargs: Any) -> PretrainedConfig:
    """Reads the config of a checkpoint that was saved in 8 bits with bitsandbytes, for loading it with this package:

        AutoModelForCausalLM.from_pretrained(path, config=bitsandbytes_config(path))

    Args:
        path: a folder or a hub name, as in `from_pretrained`.
        kwargs: for `AutoConfig.from_pretrained`.

    Raises:
        ValueError: the checkpoint is none, or holds float weights (llm_int8_has_fp16_weight).
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
        ValueError: bitsandbytes has no counterpart: zeropoint, one scale a tensor, a kept float weight, or the threshold 0.
    """
    ours = model.config.quantization_config
    if ours.threshold == 0:
        raise ValueError("threshold must not be 0 for bitsandbytes, where 0 turns decomposition off")
    state = to_bitsandbytes(model.state_dict())
    theirs = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=ours.threshold or 0.0, llm_int8_skip_modules=ours.skip_modules)
    quantizer = model.__dict__.pop("hf_quantizer", None)  # save_pretrained would ask it for another state
    try:
        model.config.quantization_config = theirs
        model.save_pretrained(folder, state_dict=state, **kwargs)
    finally:
        model.config.quantization_config = ours
        if quantizer is not None:
            model.hf_quantizer = quantizer


class _TensorParallel(TensorParallelLayer):
    """A style of transformers' tensor-parallel plans for layers in int8; other layers keep the style `otherwise`."""

    def __init__(self, otherwise: str, style: Any) -> None:
        self.otherwise, self.style = otherwise, style

    def shard_param(self, module: nn.Module, param: str, mesh: Any) -> None:
        if not isinstance(module, Int8Linear):
            ALL_PARALLEL_STYLES[self.otherwise].shard_param(module, param, mesh)
            return
        if module.weight.dtype != torch.int8:
            raise ValueError(
                "a model cannot be quantized while it is sharded; quantize it once without, and load what save_pretrained wrote"
            )
        if self.style is None:
            raise ValueError(
                f"the tensor-parallel style {self.otherwise!r} has no counterpart for Int8Linear; name such layers in skip_modules"
            )
        self.style.shard(module, param, mesh)

    def install_forward(self, module: nn.Module, mesh: Any) -> nn.Module:
        if not isinstance(module, Int8Linear):
            return ALL_PARALLEL_STYLES[self.otherwise].install_forward(module, mesh)
        self.style.convert(module)
        return module


def _use_int8_styles(model: PreTrainedModel, layers: Iterable[str]) -> None:
    """Puts "int8_colwise" for "colwise" and so on into the model's tensor-parallel plan, for the layers in int8."""
    from .distributed import Int8ColwiseParallel, Int8RowwiseParallel

    styles = {
        "colwise": Int8ColwiseParallel(),
        "colwise_rep": Int8ColwiseParallel(gather_output=True),
        "colwise_gather_output": Int8ColwiseParallel(gather_output=True),
        "rowwise": Int8RowwiseParallel(),
        "rowwise_rep": Int8RowwiseParallel(split_input=True),
        "rowwise_split_input": Int8RowwiseParallel(split_input=True),
    }
    patterns = {replace_layer_number_by_wildcard(name) for name in layers}
    for pattern, name in list(model.tp_plan.items()):
        if pattern in patterns and not name.startswith("int8_"):
            ALL_PARALLEL_STYLES.register(f"int8_{name}", _TensorParallel(name, styles.get(name)))  # type: ignore[arg-type]
            model.tp_plan[pattern] = f"int8_{name}"
