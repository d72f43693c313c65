"""Where an exercise's kernel runs: on NumPy alone if `minitriton` made it, else in Triton's interpreter or on a GPU.

Both memories are laid out alike, so that the same mistake is seen in both: rows are longer than K with huge numbers beyond, a result
starts as a sentinel, and an access outside of a buffer is stopped.
"""

from typing import Any

import numpy as np

from tutorials import minitriton


def memory_for(kernel: Any) -> Any:
    """The buffers of one launch of `kernel`, with `rows`, `result`, `values` and `launch`."""
    if isinstance(kernel, minitriton.Kernel):
        return Memory()
    from . import launches  # needs Torch and Triton, which the browser has not

    return launches.Memory()


class Memory:
    """The buffers of one launch on `minitriton`; `launches.Memory` is the same for Triton."""

    def __init__(self) -> None:
        self.buffers: list[minitriton.Buffer] = []

    def rows(self, name: str, values: np.ndarray, extra: int = 0, fill: float = 0) -> minitriton.Buffer:
        """An input: `values` (rows, K) or (rows,), as rows that are `extra` longer; `fill` there, and in a block beyond the last row."""
        if values.ndim == 1:
            return self._buffer(minitriton.Buffer(name, values.copy(), values.shape, writable=False))
        count, k = values.shape
        flat = np.full(count * (k + extra) + minitriton.next_power_of_2(k), fill, values.dtype)
        flat[: count * (k + extra)].reshape(count, k + extra)[:, :k] = values
        return self._buffer(minitriton.Buffer(name, flat, (count, k), k + extra, writable=False))

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
