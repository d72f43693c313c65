"""Experts between files and models: many checkpoints hold one matrix per expert and projection, the models of transformers 5 one tensor.

Loading, transformers merges single matrices into one tensor. Here each is quantized as it is read and its codes are merged, so that no more
than one projection's float weights exist at once, and the merged tensor never exists in float. Saving, an int8 model keeps the merged
tensors: codes and maxima have the names of the model's parameters, and are read back under these.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import Concatenate, MergeModulelist, PrefixChange, WeightConverter

from ..experts import ABSMAX, Int8Experts, quantize_experts, quantize_rows
from ..experts_layout import PROJECTIONS


def is_merge_of_experts(conversion: Any) -> bool:
    """Whether a conversion of transformers fills the merged weights of experts."""
    if not isinstance(conversion, WeightConverter):
        return False
    return any(target.rpartition(".")[2] in PROJECTIONS and "expert" in target for target in conversion.target_patterns)


def without_merges(conversions: Iterable[Any]) -> list[Any]:
    """The conversions for files that hold the merged weights of experts, as this package writes them."""
    return [conversion for conversion in conversions if not is_merge_of_experts(conversion)]


def quantizing_merges(conversions: Iterable[Any]) -> list[Any]:
    """The conversions with those that merge single experts row by row replaced by ones that quantize first."""
    return [QuantizingMerge.of(each) if is_merge_of_experts(each) and _keeps_rows(each) else each for each in conversions]


def _keeps_rows(converter: WeightConverter) -> bool:
    """Whether a converter only puts matrices (N, K) side by side, experts along dimension 0 and rows along 1."""
    allowed = ((MergeModulelist, 0), (Concatenate, 1))
    return len(converter.target_patterns) == 1 and all(
        any(type(operation) is kind and operation.dim == dim for kind, dim in allowed) for operation in converter.operations
    )


class QuantizingMerge(WeightConverter):
    """Merges single experts' weights, each quantized as soon as it is read."""

    @classmethod
    def of(cls, converter: WeightConverter) -> "QuantizingMerge":
        """The same conversion, by the patterns that it was made with."""
        made = cls(converter._original_source_patterns.copy(), converter._original_target_patterns.copy(), converter.operations)
        made.scope_prefix, made.base_model_prefix = converter.scope_prefix, converter.base_model_prefix
        return made

    def convert(self, layer_name: str, model: Any = None, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """As WeightConverter's; for experts that become int8 also the row maxima, under a name of their own."""
        if (
            self.quantization_operation is None
            or model is None
            or model.get_submodule(layer_name.rpartition(".")[0]).experts_layout.transposed
        ):
            return super().convert(layer_name, model, *args, **kwargs)
        codes: dict[str, list[Tensor]] = {}
        maxima: dict[str, list[Tensor]] = {}
        for pattern in list(self.collected_tensors):
            pairs = [quantize_rows(_read(tensor)) for tensor in self.collected_tensors.pop(pattern)]
            codes[pattern], maxima[pattern] = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        return {layer_name: self._merged(codes), layer_name + ABSMAX: self._merged(maxima)}

    def _merged(self, tensors: dict[str, Any]) -> Tensor:
        for operation in self.operations:
            tensors = operation.convert(tensors, source_patterns=self.source_patterns, target_patterns=self.target_patterns)
        (merged,) = tensors.values()
        return merged


def _read(tensor: Any) -> Tensor:
    """What transformers has put aside: a function that reads, or the future of one."""
    return tensor() if callable(tensor) else tensor.result()


def quantize_merged(name: str, weight: Tensor, experts: Int8Experts) -> dict[str, Tensor]:
    """Codes and row maxima of weights that a file holds merged, by the names of their parameters.

    Raises:
        ValueError: the weights have another shape than the model's.
    """
    own = name.rpartition(".")[2]
    weight = weight.transpose(1, 2) if experts.experts_layout.transposed else weight
    expected = experts._parameters[own].shape  # type: ignore[union-attr]
    if weight.shape != expected:
        raise ValueError(f"{name} must have shape {tuple(expected)}, as (E, N, K), the file holds {tuple(weight.shape)}")
    codes, absmax = quantize_experts(weight)
    return {name: codes, name + ABSMAX: absmax}


def float_placeholders(experts: Int8Experts, dtypes: dict[str, torch.dtype]) -> None:
    """Puts float parameters in the place of codes on meta: transformers casts what it reads to the dtype that it finds."""
    for name, dtype in dtypes.items():
        empty = torch.empty_like(experts._parameters[name], dtype=dtype)  # type: ignore[arg-type]
        experts._parameters[name] = nn.Parameter(empty, requires_grad=False)


def experts_of(model: nn.Module) -> dict[str, Int8Experts]:
    """The modules of experts of `model` that are int8, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Int8Experts)}


@contextmanager
def saved_as_fused(model: PreTrainedModel) -> Iterator[None]:
    """Within, `save_pretrained` writes the merged weights of experts as they are, if any are int8."""
    if not experts_of(model):
        yield
        return
    before = model.__dict__.get("_weight_conversions")
    conversions = before
    if conversions is None:  # what transformers takes for a model that was not loaded
        every = get_model_conversion_mapping(model, add_legacy=False)
        conversions = [conversion for conversion in every if not isinstance(conversion, PrefixChange)]
    model._weight_conversions = without_merges(conversions)  # type: ignore[assignment]
    try:
        yield
    finally:
        if before is None:
            del model._weight_conversions
        else:
            model._weight_conversions = before  # type: ignore[assignment]
