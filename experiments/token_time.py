"""Where the time of a decoded token goes: linear layers, output head, attention, norms, and the rest, Python's own among it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

#: In the order of the page. Attention is what its module takes beside its linear layers.
PARTS = ("linear layers", "output head", "attention", "norms", "rest")


class Parts:
    """Seconds by part, from when the context of `counted` is entered, of everything that a model calls.

    Each module's hooks note when it begins and ends; what a module inside another takes counts for the inner one. The hooks themselves
    take about 2 microseconds per module, which fall to the parts around them.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._inner: list[float] = []
        self._begun: list[float] = []

    def restart(self) -> float:
        """Forgets what has been counted; returns the time."""
        self.seconds = dict.fromkeys(PARTS, 0.0)
        return time.perf_counter()

    def begin(self, *_: Any) -> None:
        """A module begins."""
        self._inner.append(0.0)
        self._begun.append(time.perf_counter())

    def end(self, part: str) -> Callable[..., None]:
        """What notes that a module of this part ends."""

        def note(*_: Any) -> None:
            passed = time.perf_counter() - self._begun.pop()
            self.seconds[part] += passed - self._inner.pop()
            if self._inner:
                self._inner[-1] += passed

        return note


def part_of(module: nn.Module, head: nn.Module | None) -> str | None:
    """Which part a module belongs to; None for one that only calls others."""
    if module is head:
        return "output head"
    name = type(module).__name__
    if isinstance(module, nn.Linear):
        return "linear layers"
    return "norms" if "Norm" in name else "attention" if "Attention" in name else None


@contextmanager
def counted(model: Any) -> Iterator[Parts]:
    """Counts the time of the model's parts within this context."""
    parts = Parts()
    head = model.get_output_embeddings()
    hooks = []
    for module in model.modules():
        if (part := part_of(module, head)) is not None:
            hooks += [module.register_forward_pre_hook(parts.begin), module.register_forward_hook(parts.end(part))]
    try:
        yield parts
    finally:
        for hook in hooks:
            hook.remove()


def per_token(model: Any, decode: Callable[[Callable[[], float]], float], rounds: int, count: int) -> dict[str, float]:
    """Mean seconds of a decoded token by part.

    Args:
        model: a torch module.
        decode: decodes once with a clock, which it reads when decoding begins and when it ends, and returns the mean seconds of a token.
        rounds: how often.
        count: of the tokens between the two readings.
    """
    found = dict.fromkeys(PARTS, 0.0)
    with counted(model) as parts:
        for _ in range(rounds):
            readings = 0

            def now() -> float:
                nonlocal readings
                readings += 1
                return parts.restart() if readings == 1 else time.perf_counter()

            whole = decode(now)
            parts.seconds["rest"] = whole * count - sum(parts.seconds.values())
            for part, seconds in parts.seconds.items():
                found[part] += seconds / (count * rounds)
    return found
