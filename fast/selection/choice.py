"""Which layers of a model become int8, which stay as they are and why, and how many bytes that makes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .. import attachments
from ..adapters import parts_of_adapters
from ..experts import Int8Experts
from ..experts_layout import FOREIGN, PROJECTIONS, layout, looks_like_experts
from ..experts_layout import obstacle as experts_obstacle
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
        quantized: name -> (bytes before, bytes after) of each layer that is int8 now, and of each module of experts.
        kept: name -> (bytes, reason) of each linear layer or large parameter that stays as it was.
        bytes_before: of all parameters and buffers of the model, each tensor counted once.
        bytes_after: likewise.
        experts: the names in `quantized` that are modules of experts.
    """

    quantized: dict[str, tuple[int, int]] = field(default_factory=dict)
    kept: dict[str, tuple[int, str]] = field(default_factory=dict)
    bytes_before: int = 0
    bytes_after: int = 0
    experts: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        layers = [sizes for name, sizes in self.quantized.items() if name not in self.experts]
        experts = [self.quantized[name] for name in sorted(self.experts)]
        before, after = (sum(sizes[i] for sizes in self.quantized.values()) for i in (0, 1))
        kept = sum(size for size, _ in self.kept.values())
        rows = [
            ("", "layers", "MB before", "MB after"),
            ("quantized", str(len(layers)), *_mb_of(layers)),
            *([("experts", str(len(experts)), *_mb_of(experts))] if experts else []),
            ("kept", str(len(self.kept)), _mb(kept), _mb(kept)),
            ("all else", "", _mb(self.bytes_before - before - kept), _mb(self.bytes_after - after - kept)),
            ("model", "", _mb(self.bytes_before), _mb(self.bytes_after)),
        ]
        table = [f"{name:<10}{layers:>8}{old:>12}{new:>12}" for name, layers, old, new in rows]
        return "\n".join(table + [f"kept {name}: {reason}" for name, (_, reason) in self.kept.items()])


def _mb_of(sizes: list[tuple[int, int]]) -> tuple[str, str]:
    return _mb(sum(before for before, _ in sizes)), _mb(sum(after for _, after in sizes))


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f}"


def choose_layers(
    model: nn.Module, skipped: Callable[[str], bool | str], summary: Summary, experts: str | None = None
) -> dict[nn.Module, list[str]]:
    """Returns the modules to replace, each with all names it goes by; notes in `summary` what stays and why.

    Args:
        model: its weights may be on the meta device.
        skipped: says of a module's full name whether to leave it alone; True for a user's wish, or the reason.
        summary: its `kept` is filled in.
        experts: why no experts are to be chosen, if so.
    """
    owners = _owners(model)
    adapters = parts_of_adapters(model)
    twins, in_float32, readers = tied_names(model), float32_names(model), weight_readers(model)
    choosing = routers(model)
    readers |= {
        f"{reader}.{name}".lstrip("."): type(module).__name__
        for reader, module in model.named_modules()
        if isinstance(module, READS_WEIGHTS)
        for name, _ in module.named_modules()
    }

    def why_kept(name: str, module: nn.Module) -> str:
        wish = skipped(name)
        if name in adapters:
            return "part of an adapter"
        if wish:
            return wish if isinstance(wish, str) else "named in skip"
        if name in readers:
            return "its parent reads the weight without calling the layer"
        if name in choosing:
            return choosing[name]
        if name in in_float32:
            return "transformers keeps it in float32"
        if not is_float_linear(module):
            return experts or experts_obstacle(module) or ""
        if is_conv1d(module) and name.endswith(".base_layer"):
            return "an adapter was made for its layout (K, N); quantize the model first, then add adapters"
        return obstacle(module) or attachments.obstacle(module) or ""

    chosen: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if not is_float_linear(module) and not is_float_experts(module):
            _note_large_parameters(name, module, summary)
            continue
        reason = why_kept(name, module)
        if not reason:
            tied = _other_owners(name, module, owners, twins) if module not in chosen else []
            reason = f"its weight is also {tied[0]}" if tied else ""
        if reason:
            summary.kept[name] = (size_of(module), reason)
        else:
            chosen.setdefault(module, []).append(name)
    return chosen


def is_float_experts(module: nn.Module) -> bool:
    """Whether `module` holds experts that are known, in float."""
    return not isinstance(module, Int8Experts) and layout(module) is not None


def _owners(model: nn.Module) -> dict[int, list[str]]:
    """The full names of each parameter, by its id."""
    owners: dict[int, list[str]] = {}
    for owner, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(f"{owner}.{name}".lstrip("."))
    return owners


def _other_owners(name: str, module: nn.Module, owners: dict[int, list[str]], twins: dict[str, str]) -> list[str]:
    """Under which names beside the module's own its weights are, or will be once transformers has tied them."""
    found: list[str] = []
    for own in ("weight",) if is_float_linear(module) else PROJECTIONS:
        weight: Tensor | None = module._parameters.get(own)
        if weight is not None:
            full = f"{name}.{own}".lstrip(".")
            found += [owner for owner in owners[id(weight)] if owner != full]
            found += [twins[full]] if weight.is_meta and full in twins else []
    return found


def _note_large_parameters(name: str, module: nn.Module, summary: Summary) -> None:
    experts = looks_like_experts(module)
    for own, parameter in module.named_parameters(recurse=False):
        if is_lazy(parameter) or isinstance(module, (nn.modules.conv._ConvNd, Int8Linear, Int8Experts)):
            continue
        if parameter.ndim > 2 or (experts and parameter.ndim == 2 and not own.endswith("bias")):
            reason = FOREIGN if experts else f"a {parameter.ndim}-dimensional parameter, not a linear layer"
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
