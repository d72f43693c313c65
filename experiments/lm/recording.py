"""What the linear layers of a model read, by kind of input."""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ..command import InputError
from . import engines, models


class Kind(NamedTuple):
    """What the linear layers of one kind read.

    Attributes:
        layers: for each of L layers, in order, the names of the modules that read the same input.
        inputs: (L, P, K) float32, that input at P positions.
    """

    layers: list[list[str]]
    inputs: NDArray[np.float32]


def record_inputs(model: torch.nn.Module, windows: NDArray[np.int64], progress: bool = True) -> dict[str, Kind]:
    """Runs windows (count, T) through the model, one at a time, and returns what its linear layers read, by kind.

    It keeps 4 bytes per entry: L * P * K for each kind, 0.6 GB for SmolLM2 and three windows of 512 tokens.
    """
    linears = engines.linear_layers(model)
    found: dict[str, list[NDArray[np.float32]]] = {}
    readers: dict[tuple, list[str]] = {}

    def keep(name: str) -> Callable[[torch.nn.Module, tuple], None]:
        def hook(module: torch.nn.Module, inputs: tuple) -> None:
            x = inputs[0]
            # Arrays that are alive at the same time and start at the same place are one array.
            same = readers.setdefault((x.data_ptr(), x.shape), [])
            alive.append(x)
            same.append(name)
            if same[0] == name:
                found.setdefault(name, []).append(x.detach().float().cpu().numpy().reshape(-1, x.shape[-1]).copy())

        return hook

    with hooked(linears, keep):
        for window in tqdm(windows, desc="recording", unit="window", disable=not progress, leave=False):
            alive: list[torch.Tensor] = []
            readers.clear()
            with torch.inference_mode():
                model(torch.from_numpy(window[None]).to(models.device_of(model)), use_cache=False)

    kinds: dict[str, tuple[list[list[str]], list[NDArray[np.float32]]]] = {}
    for names in readers.values():
        layers, inputs = kinds.setdefault(_kind(names), ([], []))
        layers.append(names)
        inputs.append(np.concatenate(found.pop(names[0])))
    return {name: Kind(layers, np.stack(inputs)) for name, (layers, inputs) in kinds.items()}


def readers(model: torch.nn.Module, tokens: NDArray[np.int64]) -> dict[str, list[str]]:
    """For each norm whose output linear layers read, the names of these layers.

    Found by running the model on `tokens` (B, T): a layer reads a norm if its input is the very array that the norm gave.

    Raises:
        InputError: no linear layer reads a norm.
    """
    norms = {name: m for name, m in model.named_modules() if "norm" in type(m).__name__.lower() and getattr(m, "weight", None) is not None}
    made: dict[int, str] = {}
    found: dict[str, list[str]] = {}
    alive: list[torch.Tensor] = []

    def note(name: str) -> Any:
        def hook(module: torch.nn.Module, inputs: tuple, y: torch.Tensor) -> None:
            alive.append(y)  # or its memory would be used again
            made[y.data_ptr()] = name

        return hook

    def look(name: str) -> Any:
        def hook(module: torch.nn.Module, inputs: tuple) -> None:
            norm = made.get(inputs[0].data_ptr())
            if norm is not None:
                found.setdefault(norm, []).append(name)

        return hook

    handles = [m.register_forward_hook(note(n)) for n, m in norms.items()]
    handles += [m.register_forward_pre_hook(look(n)) for n, m in engines.linear_layers(model).items()]
    try:
        with torch.inference_mode():
            model(torch.from_numpy(tokens).to(models.device_of(model)), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise InputError("no linear layer of the model reads the output of a norm, so there is nothing to turn")
    return found


def _kind(names: Sequence[str]) -> str:
    """The name of a kind: its readers' names without the number of the block, and their common parent once."""
    first, *others = (re.sub(r"^.*\.\d+\.", "", name) for name in names)
    parent = first.rpartition(".")[0] + "."
    return ", ".join([first, *(name.removeprefix(parent) for name in others)])


@contextlib.contextmanager
def hooked(modules: dict[str, torch.nn.Module], make: Callable[[str], Callable], **options: Any) -> Iterator[None]:
    """Within this context each module has the forward pre-hook that `make` gives for its name; `options` as for registering it."""
    handles = [module.register_forward_pre_hook(make(name), **options) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
