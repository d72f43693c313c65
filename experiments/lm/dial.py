"""The outlier dial: features of a model made larger, and the weights that read them smaller, so that its outputs stay the same."""

import copy
import math
from collections.abc import Sequence

import numpy as np
import torch

from fast.transformers_traits import is_conv1d

from . import recording


def turn(model: torch.nn.Module, read: dict[str, list[str]], columns: Sequence[int], factor: float) -> torch.nn.Module:
    """Returns a model that computes the same, whose linear layers read these columns of the norms' outputs `factor` times larger.

    Args:
        model: stays as it is; parameters that do not change are shared.
        read: as `recording.readers` returns it.
        columns: numbers of features.
        factor: a power of two, so that nothing is rounded.

    Raises:
        ValueError: factor is not a power of two.
    """
    if not factor > 0 or math.frexp(factor)[0] != 0.5:
        raise ValueError(f"factor must be a power of two, got {factor}")
    columns = list(columns)
    changed = {f"{norm}.{part}" for norm in read for part in ("weight", "bias")}
    changed |= {f"{name}.weight" for names in read.values() for name in names}
    turned = copy.deepcopy(model, memo={id(p): p for n, p in model.named_parameters() if n not in changed})
    for norm, names in read.items():
        for parameter in turned.get_submodule(norm).parameters():
            parameter.data[columns] *= factor
        for name in names:
            reader = turned.get_submodule(name)
            weight = reader.weight.data.T if is_conv1d(reader) else reader.weight.data
            weight[:, columns] /= factor
    return turned


def ordinary_features(kinds: Sequence[recording.Kind], count: int) -> list[int]:
    """The `count` features of the most ordinary size: nearest to the median of their mean magnitude over layers and positions."""
    size = np.mean([np.abs(kind.inputs).mean(axis=(0, 1)) for kind in kinds], axis=0)
    return sorted(np.argsort(np.abs(size - np.median(size)), kind="stable")[:count].tolist())
