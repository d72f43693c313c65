"""Where an exercise's kernel runs: on NumPy alone if `minitriton` made it, else in Triton's interpreter or on a GPU.

Both memories are laid out alike, so that the same mistake is seen in both: rows are longer than K with huge numbers beyond, a result
starts as a sentinel, and an access outside of a buffer is stopped.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tutorials import minitriton

from .poisoning import SENTINEL_CODE, padded


def memory_for(kernel: Any) -> Any:
    """The buffers of one launch of `kernel`, with `rows`, `result`, `values` and `launch`."""
    if isinstance(kernel, minitriton.Kernel):
        return Memory()
    from . import launches  # needs Torch and Triton, which the browser has not

    return launches.Memory()


class Launch(NamedTuple):
    """A launch that is prepared: the grid, the kernel's arguments in order, its constexpr arguments, and which buffers are results."""

    grid: tuple[int, ...]
    arguments: tuple
    options: dict[str, Any]
    results: tuple


#: Lays out the buffers of one launch: (memory, *arrays) -> Launch.
Prepare = Callable[..., Launch]


def launched(kernel: Any, prepare: Prepare) -> Callable:
    """The kernel as a function of arrays; NotImplemented if it has stored nothing."""

    def run(*arrays: np.ndarray) -> Any:
        memory = memory_for(kernel)
        launch = prepare(memory, *arrays)
        memory.launch(kernel, launch.grid, *launch.arguments, **launch.options)
        values = tuple(memory.values(result) for result in launch.results)
        if all((value == SENTINEL_CODE).all() for value in values):
            return NotImplemented
        return values if len(values) > 1 else values[0]

    run.__name__ = getattr(kernel, "__name__", "the kernel")
    return run


class Memory:
    """The buffers of one launch on `minitriton`; `launches.Memory` is the same for Triton."""

    def __init__(self) -> None:
        self.buffers: list[minitriton.Buffer] = []

    def rows(self, name: str, values: np.ndarray, extra: int = 0, fill: float = 0, tail: bool = True) -> minitriton.Buffer:
        """An input: `values` (rows, K) or (rows,), as rows that are `extra` longer; `fill` there, and in a block beyond the last row.

        tail: False for memory that ends with the last entry.
        """
        if values.ndim == 1:
            return self._buffer(minitriton.Buffer(name, values.copy(), values.shape, writable=False))
        flat, stride = padded(values, extra, fill, tail)
        return self._buffer(minitriton.Buffer(name, flat, values.shape, stride, writable=False))

    def result(self, name: str, shape: tuple[int, ...], dtype: type, sentinel: float) -> minitriton.Buffer:
        """A result, every entry of it the sentinel."""
        return self._buffer(minitriton.Buffer(name, np.full(int(np.prod(shape)), sentinel, dtype), shape))

    def values(self, buffer: minitriton.Buffer) -> np.ndarray:
        """What a buffer holds, after a launch."""
        return buffer.flat[: int(np.prod(buffer.shape))].reshape(buffer.shape)

    def launch(self, kernel: minitriton.Kernel, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
        """Runs the kernel.

        Raises:
            OutOfBounds: it loaded or stored outside of its buffers.
            Stopped: it raised in one of its lines.
        """
        kernel[grid](*arguments, **options)

    def _buffer(self, buffer: minitriton.Buffer) -> minitriton.Buffer:
        self.buffers.append(buffer)
        return buffer
