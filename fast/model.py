"""Turns the linear layers of a model into int8, in place, and says what it did."""

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn

from . import arguments
from .linear import Int8Linear, is_conv1d, weight_and_bias

logger = logging.getLogger(__name__)

#: Modules of torch that read the weights of their linear layers themselves, instead of calling them.
READS_WEIGHTS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


@dataclass
class Summary:
    """What `quantize_model` did. `print` it for a table.

    Attributes:
        quantized: name -> (bytes before, bytes after) of each layer that is int8 now.
        kept: name -> (bytes, reason) of each linear layer or large parameter that stays as it was.
        bytes_before: of all parameters and buffers of the model, each tensor counted once.
        bytes_after: likewise.
    """

    quantized: dict[str, tuple[int, int]] = field(default_factory=dict)
    kept: dict[str, tuple[int, str]] = field(default_factory=dict)
    bytes_before: int = 0
    bytes_after: int = 0

    def __str__(self) -> str:
        before, after = (sum(sizes[i] for sizes in self.quantized.values()) for i in (0, 1))
        kept = sum(size for size, _ in self.kept.values())
        rows = [
            ("", "layers", "MB before", "MB after"),
            ("quantized", str(len(self.quantized)), _mb(before), _mb(after)),
            ("kept", str(len(self.kept)), _mb(kept), _mb(kept)),
            ("all else", "", _mb(self.bytes_before - before - kept), _mb(self.bytes_after - after - kept)),
            ("model", "", _mb(self.bytes_before), _mb(self.bytes_after)),
        ]
        table = [f"{name:<10}{layers:>8}{old:>12}{new:>12}" for name, layers, old, new in rows]
        return "\n".join(table + [f"kept {name}: {reason}" for name, (_, reason) in self.kept.items()])


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f}"


def quantize_model(
    model: nn.Module,
    threshold: float | None = 6.0,
    skip: Sequence[str] = ("lm_head",),
    outlier_weight: str = "dequantized",
    quantizer: str = "absmax",
    granularity: str = "vector",
    progress: bool | None = None,
) -> nn.Module:
    """Replaces the linear layers of `model` by `Int8Linear`, in place.

    torch.nn.Linear and transformers' Conv1D are replaced. What stays as it was, and why, is in the summary: it is logged
    (logger "fast.model", level INFO) and kept as `model.quantization_summary`. Layers are replaced one after another, so that
    no more than one layer's float and int8 weights exist together. All arguments are checked before the first. If one fails all
    the same (no memory), each layer is either the float one or the int8 one and the model works; calling again goes on.

    Args:
        model: any module; a bare linear layer is replaced and returned.
        threshold: as in `Int8Linear.from_float`.
        skip: names not to touch: a module's full name, the end of one or any dotted part of one ("lm_head", "model.layers.0").
        outlier_weight, quantizer, granularity: as in `Int8Linear.from_float`.
        progress: whether to show a progress bar on stderr; None for where stderr is a terminal. It needs the package tqdm.

    Returns:
        The same model.

    Raises:
        TypeError, ValueError: an argument is none of these, or a layer cannot be quantized (K too large); nothing was changed.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(skip, str):
        raise TypeError(f"skip must be a sequence of names, got the string {skip!r}; write ({skip!r},)")
    arguments.threshold(threshold)
    arguments.one_of("outlier_weight", outlier_weight, arguments.OUTLIER_WEIGHTS)
    arguments.one_of("quantizer", quantizer, arguments.QUANTIZERS)
    arguments.one_of("granularity", granularity, arguments.GRANULARITIES)

    summary = Summary(bytes_before=size_of(model))
    chosen = choose_layers(model, lambda name: any(f".{part}." in f".{name}." for part in skip), summary)
    for module in chosen:
        arguments.accumulator_fits(weight_and_bias(module)[0].shape[1], quantizer)

    pending = [(module, names) for module, names in chosen.items()]
    chosen.clear()
    with _progress_bar(len(pending), progress) as advance:
        while pending:
            module, names = pending.pop(0)  # so that the float layer goes as soon as the model lets go of it
            try:
                layer = Int8Linear.from_float(module, None, threshold, outlier_weight, quantizer, granularity)
            except Exception as error:
                done = len(summary.quantized)
                error.add_note(
                    f"quantize_model stopped at {names[0]}: {done} of {done + 1 + len(pending)} layers are int8, the others still float; "
                    "the model works as it is, and calling again goes on"
                )
                raise
            layer.train(module.training)
            summary.quantized[names[0]] = (size_of(module), size_of(layer))
            for name in names:
                if name == "":
                    model = layer
                else:
                    parent, _, last = name.rpartition(".")
                    setattr(model.get_submodule(parent), last, layer)
            advance()

    summary.bytes_after = size_of(model)
    model.quantization_summary = summary  # type: ignore[assignment]
    transformers = sys.modules.get("transformers.modeling_utils")
    if transformers is not None and isinstance(model, transformers.PreTrainedModel):
        from .huggingface import declare

        declare(model)  # so that what save_pretrained writes can be read back
    logger.info("quantized a model\n%s", summary)
    return model


def choose_layers(model: nn.Module, skipped: Callable[[str], bool], summary: Summary) -> dict[nn.Module, list[str]]:
    """Returns the modules to replace, each with all names it goes by; notes in `summary` what stays and why.

    Args:
        model: its weights may be on the meta device.
        skipped: says of a module's full name whether the user wants to leave it alone.
        summary: its `kept` is filled in.
    """
    owners: dict[int, list[str]] = {}
    for owner, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(f"{owner}.{name}".lstrip("."))
    # transformers ties weights only after it has loaded them; until then it names them.
    announced = getattr(model, "all_tied_weights_keys", {})
    twins = {a: b for pair in announced.items() for a, b in (pair, pair[::-1])}
    readers = [name for name, module in model.named_modules() if isinstance(module, READS_WEIGHTS)]

    chosen: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, Int8Linear):
            continue
        if not (isinstance(module, nn.Linear) or is_conv1d(module)):
            for own, parameter in module.named_parameters(recurse=False):
                if parameter.ndim > 2 and not isinstance(module, nn.modules.conv._ConvNd):
                    reason = f"a {parameter.ndim}-dimensional parameter, not a linear layer"
                    summary.kept[f"{name}.{own}".lstrip(".")] = (_bytes(parameter), reason)
            continue
        weight = module.weight
        tied = [owner for owner in owners[id(weight)] if owner != f"{name}.weight".lstrip(".")] if module not in chosen else []
        if weight.is_meta and f"{name}.weight" in twins:
            tied.append(twins[f"{name}.weight"])
        if skipped(name):
            reason = "named in skip"
        elif type(module) is not nn.Linear and not is_conv1d(module):
            reason = f"{type(module).__name__} is a linear layer of its own kind"
        elif any(name.startswith(reader + ".") or reader == "" for reader in readers):
            reason = "its parent reads the weight without calling the layer"
        elif weight.dtype not in arguments.FLOATS:
            reason = f"its weight is {weight.dtype}"
        elif tied:
            reason = f"its weight is also {tied[0]}"
        else:
            chosen.setdefault(module, []).append(name)
            continue
        summary.kept[name] = (size_of(module), reason)
    return chosen


@contextmanager
def _progress_bar(total: int, progress: bool | None) -> Iterator[Callable[[], object]]:
    try:
        from tqdm import tqdm
    except ImportError:
        if progress:
            raise ModuleNotFoundError("progress=True needs the package tqdm: pip install tqdm") from None
        yield lambda: None
        return
    # tqdm's None: only where stderr is a terminal.
    with tqdm(total=total, desc="quantizing", unit="layer", disable=None if progress is None else not progress) as bar:
        yield bar.update


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def size_of(module: nn.Module) -> int:
    """Bytes of all parameters and buffers, each tensor once."""
    return sum(_bytes(t) for t in {id(t): t for t in (*module.parameters(), *module.buffers())}.values())
