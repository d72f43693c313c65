"""Which layers of a model become int8, which stay as they are and why, and how many bytes that makes."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

from . import arguments, attachments
from .adapters import parts_of_adapters
from .linear import Int8Linear
from .transformers_traits import is_conv1d, tied_names

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
    twins = tied_names(model)
    adapters = parts_of_adapters(model)
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
        if name in adapters:
            reason = "part of an adapter"
        elif skipped(name):
            reason = "named in skip"
        elif is_conv1d(module) and name.endswith(".base_layer"):
            reason = "an adapter was made for its layout (K, N); quantize the model first, then add adapters"
        elif type(module) is not nn.Linear and not is_conv1d(module):
            reason = f"{type(module).__name__} is a linear layer of its own kind"
        elif any(name.startswith(reader + ".") or reader == "" for reader in readers):
            reason = "its parent reads the weight without calling the layer"
        elif weight.dtype not in arguments.FLOATS:
            reason = f"its weight is {weight.dtype}"
        elif tied:
            reason = f"its weight is also {tied[0]}"
        elif hanging := attachments.obstacle(module):
            reason = hanging
        else:
            chosen.setdefault(module, []).append(name)
            continue
        summary.kept[name] = (size_of(module), reason)
    return chosen


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def size_of(module: nn.Module) -> int:
    """Bytes of all parameters and buffers, each tensor once."""
    return sum(_bytes(t) for t in {id(t): t for t in (*module.parameters(), *module.buffers())}.values())
