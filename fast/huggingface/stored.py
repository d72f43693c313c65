"""What a checkpoint holds, read from the headers of its files before any weight: names, dtypes and shapes, by the model's names."""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.modeling_utils import load_state_dict

from ..experts_layout import PROJECTIONS

#: What only a layer in int8 has: names of this package, and of bitsandbytes.
SCALES = ("weight_absmax", "weight_scale", "SCB")


@dataclass
class Stored:
    """The contents of a checkpoint.

    Attributes:
        shapes: of each tensor that goes into the model as it is, by the name of the parameter.
        present: names of the parameters that the checkpoint fills, also those that are put together from several tensors.
        codes: names of the parameters for which the checkpoint holds int8.
        layers: names of the layers that are int8 in the checkpoint, each with its name there.
        experts: names of the modules of experts that are int8 in the checkpoint, likewise.
    """

    shapes: dict[str, torch.Size] = field(default_factory=dict)
    present: set[str] = field(default_factory=set)
    codes: set[str] = field(default_factory=set)
    layers: dict[str, str] = field(default_factory=dict)
    experts: dict[str, str] = field(default_factory=dict)


def headers(files: Sequence[str] | None) -> dict[str, Tensor] | None:
    """Each tensor of a checkpoint's files, on meta, by its name there; None where transformers was given a state dict, and no files."""
    if not files:
        return None
    return {name: tensor for file in files for name, tensor in load_state_dict(file, map_location="meta").items()}


def are_merged_experts(tensor: Tensor) -> bool:
    """Whether a tensor of a checkpoint holds the codes of experts, all in one."""
    return tensor.dtype == torch.int8 and tensor.ndim == 3


def read(model: PreTrainedModel, tensors: dict[str, Tensor] | None, conversions: Iterable[Any]) -> Stored | None:
    """What a checkpoint holds for a model.

    Args:
        model: the float model, on the meta device.
        tensors: the `headers` of the checkpoint's files.
        conversions: by which transformers renames and converts what it reads into this model.

    Returns:
        What they hold; None without files.
    """
    if tensors is None:
        return None
    rename = _Renaming(model, conversions)
    stored = Stored()
    for name, tensor in tensors.items():
        targets, converted = rename(name)
        stored.present |= targets
        if tensor.dtype == torch.int8:
            stored.codes |= targets
        if not converted:
            stored.shapes |= dict.fromkeys(targets, tensor.shape)
        layer, _, own = name.rpartition(".")
        if are_merged_experts(tensor):
            found = {target.rpartition(".")[0]: layer for target in targets if target.rpartition(".")[2] in PROJECTIONS}
            stored.experts |= {owner: layer for owner, layer in found.items() if owner in rename.modules}
        elif own in SCALES or (own == "weight" and tensor.dtype == torch.int8):
            stored.layers |= {target.removesuffix(".weight"): layer for target in rename(f"{layer}.weight")[0] if target in rename.names}
    return stored


class _Renaming:
    """A tensor's name in the file to the names of the parameters that it fills."""

    def __init__(self, model: PreTrainedModel, conversions: Iterable[Any]) -> None:
        # Copies: that a conversion was used is remembered, and decides how the model is saved.
        own = [copy.deepcopy(conversion) for conversion in conversions]
        self.renamings = [entry for entry in own if isinstance(entry, WeightRenaming)]
        self.converters = [entry for entry in own if isinstance(entry, WeightConverter)]
        self.prefix = model.base_model_prefix
        self.names = model.state_dict()
        self.modules = {name for name, _ in model.named_modules(remove_duplicate=False)}

    def __call__(self, name: str) -> tuple[set[str], bool]:
        renamed, pattern = rename_source_key(name, self.renamings, self.converters, self.prefix, self.names)
        if renamed not in self.names and name in self.names:  # a name of the model itself, that a rule for old checkpoints matched
            return {name}, False
        if pattern is None:
            return {renamed}, False
        converter = next(entry for entry in self.converters if pattern in entry.source_patterns)
        first = converter.target_patterns[0]
        return {renamed.replace(first, target) for target in converter.target_patterns}, True
