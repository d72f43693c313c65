"""Which layers of a model become int8, which stay as they are and why, and how many bytes that makes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .. import attachments
from ..adapters import parts_of_adapters
from ..linear import Int8Linear
from ..transformers_traits import float32_names, is_conv1d, tied_names
from .float_layers import is_float_linear, obstacle
from .readers import weight_readers
from .routers import routers

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


def choose_layers(model: nn.Module, skipped: Callable[[str], bool | str], summary: Summary) -> dict[nn.Module, list[str]]:
    """Returns the modules to replace, each with all names it goes by; notes in `summary` what stays and why.

    Args:
        model: its weights may be on the meta device.
        skipped: says of a module's full name whether to leave it alone; True for a user's wish, or the reason.
        summary: its `kept` is filled in.
    """
    owners: dict[int, list[str]] = {}
    for owner, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(f"{owner}.{name}".lstrip("."))
    adapters = parts_of_adapters(model)
    twins, in_float32, readers = tied_names(model), float32_names(model), weight_readers(model)
    choosing = routers(model)
    readers |= {
        f"{reader}.{name}".lstrip("."): type(module).__name__
        for reader, module in model.named_modules()
        if isinstance(module, READS_WEIGHTS)
        for name, _ in module.named_modules()
    }

    chosen: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if not is_float_linear(module):
            _note_large_parameters(name, module, summary)
            continue
        wish = skipped(name)
        if name in adapters:
            reason = "part of an adapter"
        elif wish:
            reason = wish if isinstance(wish, str) else "named in skip"
        elif name in readers:
            reason = "its parent reads the weight without calling the layer"
        elif name in choosing:
            reason = choosing[name]
        elif name in in_float32:
            reason = "transformers keeps it in float32"
        elif is_conv1d(module) and name.endswith(".base_layer"):
            reason = "an adapter was made for its layout (K, N); quantize the model first, then add adapters"
        else:
            reason = obstacle(module) or attachments.obstacle(module) or ""
        if not reason:
            weight: Tensor = module._parameters["weight"]  # type: ignore[assignment]
            tied = [owner for owner in owners[id(weight)] if owner != f"{name}.weight".lstrip(".")] if module not in chosen else []
            if weight.is_meta and f"{name}.weight" in twins:
                tied.append(twins[f"{name}.weight"])
            reason = f"its weight is also {tied[0]}" if tied else ""
        if reason:
            summary.kept[name] = (size_of(module), reason)
        else:
            chosen.setdefault(module, []).append(name)
    return chosen


def _note_large_parameters(name: str, module: nn.Module, summary: Summary) -> None:
    for own, parameter in module.named_parameters(recurse=False):
        if is_lazy(parameter) or isinstance(module, (nn.modules.conv._ConvNd, Int8Linear)):
            continue
        if parameter.ndim > 2:
            reason = f"a {parameter.ndim}-dimensional parameter, not a linear layer"
            summary.kept[f"{name}.{own}".lstrip(".")] = (_bytes(parameter), reason)


def named_in(names: Sequence[str]) -> Callable[[str], bool]:
    """Whether a module's name is one of `names`, ends with one, or has one as a dotted part."""
    return lambda name: any(f".{part}." in f".{name}." for part in names)


def _bytes(tensor: Tensor) -> int:
    if is_lazy(tensor):  # of a lazy module, whose shape its first input tells
        return 0
    return tensor.numel() * tensor.element_size()


def size_of(module: nn.Module) -> int:
    """Bytes of all parameters and buffers, each tensor once."""
    return sum(_bytes(t) for t in {id(t): t for t in (*module.parameters(), *module.buffers())}.values())
