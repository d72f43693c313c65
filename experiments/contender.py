"""What every contender of a comparison of layers is: how it is prepared, checked and called, and the least that it has to do."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .shapes import Shape
from .timing import Call
from .truth import Truth

#: From X (M, K) to a call that is timed.
Bind = Callable[[Tensor], Call]


class Work(NamedTuple):
    """The least that a contender has to do: bytes to and from memory, and operations by the unit that does them."""

    bytes: int
    operations: dict[str, int]

    def floor(self, bandwidth: float, rates: dict[str, float]) -> float:
        """Seconds below which it cannot be done at `bandwidth` bytes and `rates` operations per second."""
        return max(self.bytes / bandwidth, sum(count / rates[unit] for unit, count in self.operations.items()))


@dataclass(frozen=True)
class Contender:
    """What is timed under one name.

    Attributes:
        label: for people.
        prepare: from W to a function from X to the call: what a model does once is done here.
        check: raises `WrongResult` if what the call returned is not what `Truth` says.
        work: what it has to do at least, from a shape.
        clean: whether it reads the X without outliers.
        stage: it is a part of our layer, not a layer.
        foreign: it may fail where the device or the shape is unsuitable.
        capturable: its call can be captured into a CUDA graph: it does not make the host wait.
    """

    label: str
    prepare: Callable[[Tensor], Bind]
    check: Callable[[Truth, Any], None]
    work: Callable[[Shape], Work]
    clean: bool = False
    stage: bool = False
    foreign: bool = False
    capturable: bool = True


def called(layer: Callable[[Tensor], Any], x: Tensor) -> Call:
    """The call of a layer on X."""
    return lambda: layer(x)


def float_work(dtype: torch.dtype) -> Callable[[Shape], Work]:
    """X and W read, Y written, 2 M N K operations."""

    def work(s: Shape) -> Work:
        return Work(dtype.itemsize * (s.m * s.k + s.n * s.k + s.m * s.n), {str(dtype).removeprefix("torch."): 2 * s.m * s.n * s.k})

    return work


def int8_work(s: Shape) -> Work:
    """16-bit X, codes and scales of W, 16-bit Y; the outlier columns once more in 16 bits."""
    operations = {"int8": 2 * s.m * s.n * s.k, "bfloat16": 2 * s.m * s.n * s.columns}
    return Work(2 * s.m * s.k + s.n * s.k + 4 * s.n + 2 * s.m * s.n, operations)


def accumulator_work(s: Shape) -> Work:
    """Codes of both, int32 sums."""
    return Work(s.m * s.k + s.n * s.k + 4 * s.m * s.n, {"int8": 2 * s.m * s.n * s.k})


def product_work(s: Shape) -> Work:
    """Codes and scales of both, 16-bit Y."""
    return Work(s.m * s.k + s.n * s.k + 4 * (s.m + s.n) + 2 * s.m * s.n, {"int8": 2 * s.m * s.n * s.k})


def detect_work(s: Shape) -> Work:
    """X read, one byte per column written."""
    return Work(2 * s.m * s.k + s.k, {})


def quantize_work(s: Shape) -> Work:
    """X read, codes and scales written."""
    return Work(3 * s.m * s.k + 4 * s.m, {})
