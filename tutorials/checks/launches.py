"""Launches of a reader's kernel, under TRITON_INTERPRET=1 or on a GPU, in memory where every wrong address shows.

Triton's interpreter loads and stores at whatever address a kernel computes: a wrong one can end the process, and with it everything
in a notebook that was not saved. Here each buffer lies in memory of its own between wide margins, and every access is looked at
before it happens: one outside of the buffers stops the kernel, and says which program, which buffer and which line it was.

On a GPU accesses are not seen. There a margin behind each result is compared after the launch.

Inputs are rows longer than K with huge numbers beyond it, results start as a sentinel: a forgotten mask, a wrong stride or an entry
never written all show.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tutorials import guarding

from .poisoning import SENTINEL_CODE, padded

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"

#: Bytes on either side of a buffer: a wrong address that is nearer is known to be meant for this buffer.
MARGIN = 1 << 24
#: On a GPU, entries behind a result that are compared after the launch.
TAIL = 256


@dataclass
class Buffer:
    """One argument of the kernel: where it lies, what it may be used for."""

    name: str
    tensor: torch.Tensor
    whole: torch.Tensor
    writable: bool
    #: The entry that the kernel's pointer points to.
    first: int = 0

    @property
    def start(self) -> int:
        return self.tensor.data_ptr()

    @property
    def entry(self) -> int:
        return self.tensor.element_size()

    @property
    def end(self) -> int:
        return self.start + self.tensor.numel() * self.entry


class Memory:
    """The buffers of one launch."""

    def __init__(self) -> None:
        self.buffers: list[Buffer] = []

    def rows(self, name: str, values: np.ndarray, extra: int = 0, fill: float = 0, tail: bool = True) -> torch.Tensor:
        """An input: `values` (rows, K) or (rows,), as rows that are `extra` longer; `fill` there, and in a block beyond the last row.

        tail: False for memory that ends with the last entry.
        """
        if values.ndim == 1:
            return self._buffer(name, values, writable=False)
        flat, stride = padded(values, extra, fill, tail)
        return torch.as_strided(self._buffer(name, flat, writable=False), values.shape, (stride, 1))

    def result(self, name: str, shape: tuple[int, ...], dtype: type, sentinel: float) -> torch.Tensor:
        """A result, every entry of it the sentinel."""
        return self._buffer(name, np.full(int(np.prod(shape)), sentinel, dtype), writable=True).view(shape)

    def values(self, tensor: torch.Tensor) -> np.ndarray:
        """What a buffer holds, after a launch."""
        return tensor.cpu().numpy()

    def _buffer(self, name: str, flat: np.ndarray, writable: bool) -> torch.Tensor:
        if DEVICE == "cpu":
            memory = np.zeros(MARGIN + flat.nbytes + MARGIN, np.uint8)  # pages that nobody touches take no memory
            inside = memory[MARGIN : MARGIN + flat.nbytes].view(flat.dtype)
            inside[:] = flat
            tensor = whole = torch.from_numpy(inside)
        else:
            whole = torch.from_numpy(np.concatenate([flat, np.full(TAIL, SENTINEL_CODE, flat.dtype)])).to(DEVICE)
            tensor = whole[: flat.size]
        self.buffers.append(Buffer(name, tensor, whole, writable))
        return tensor

    def launch(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
        """Runs the kernel.

        Raises:
            OutOfBounds: it loaded or stored outside of its buffers.
            Stopped: it raised in one of its lines.
        """
        with self._watched(len(grid)) if DEVICE == "cpu" else contextlib.nullcontext():
            kernel[grid](*arguments, **options)
        for buffer in self.buffers:
            if (buffer.whole[buffer.tensor.numel() :] != SENTINEL_CODE).any():
                raise guarding.OutOfBounds(
                    f"stores {buffer.name}", f"the kernel stores beyond the end of {buffer.name}, a buffer of {buffer.tensor.numel()}"
                )

    @contextlib.contextmanager
    def _watched(self, axes: int) -> Iterator[None]:
        from triton.runtime import interpreter

        original = interpreter._interpreter
        interpreter._interpreter = _Watch(original, self, axes)
        try:
            yield
        except Exception as error:
            raise guarding.as_the_reader_sees_it(error, _own) from None
        finally:
            interpreter._interpreter = original

    def check(self, addresses: np.ndarray, active: np.ndarray, size: int, stores: bool, axes: int) -> None:
        """Stops the kernel if one of the active lanes would load or store outside of every buffer, or store into an input.

        Args:
            addresses: of each lane, uint64.
            active: of each lane, whether its mask is set.
            size: bytes that each lane moves.
            stores: whether it writes.
            axes: how many numbers a program's id has.
        """
        lanes = np.asarray(addresses).astype(np.int64)[np.broadcast_to(np.asarray(active).astype(bool), np.shape(addresses))]
        within = np.zeros(lanes.shape, bool)
        for buffer in self.buffers:
            inside = (lanes >= buffer.start) & (lanes + size <= buffer.end)
            if stores and not buffer.writable and inside.any():
                raise guarding.into_an_input(_program(axes), buffer.name, guarding.place(_own))
            within |= inside
        if within.all():
            return
        first = int(lanes[~within][0])
        buffer = min(self.buffers, key=lambda b: max(b.start - first, first - b.end))
        offset = (first - buffer.start) // buffer.entry - buffer.first
        size = buffer.tensor.numel() - buffer.first
        raise guarding.outside(_program(axes), stores, buffer.name, offset, size, guarding.place(_own))


def guard_every_launch() -> None:
    """From here on no kernel that Triton's interpreter runs can load or store outside of the tensors that it was given.

    For a notebook, whose process a wrong address would end. Buffers that lie next to each other in memory are not told apart:
    a checker, which lays them out itself, sees more. On a GPU it does nothing.
    """
    if DEVICE != "cpu":
        return
    from triton.runtime import interpreter

    executor = interpreter.GridExecutor
    if getattr(executor.__call__, "guarded", False):
        return
    unguarded = executor.__call__

    def guarded(self: Any, *arguments: Any, **options: Any) -> None:
        memory = Memory()
        for name, argument in (*zip(self.arg_names, arguments, strict=False), *options.items()):
            memory.buffers += [_given(name, tensor) for tensor in _tensors(argument)]
        axes = len(self.grid) if isinstance(self.grid, tuple) else 3
        with memory._watched(axes):
            unguarded(self, *arguments, **options)

    guarded.guarded = True  # type: ignore[attr-defined]
    executor.__call__ = guarded


def _tensors(argument: Any) -> Iterator[torch.Tensor]:
    """The tensors in an argument: itself, the base of a descriptor, the fields of a record."""
    if isinstance(argument, torch.Tensor):
        yield argument
    elif isinstance(argument, tuple):
        for field in argument:
            yield from _tensors(field)
    elif isinstance(getattr(argument, "base", None), torch.Tensor):
        yield argument.base


def _given(name: str, tensor: torch.Tensor) -> Buffer:
    """All of the memory of a tensor, which may be a view of a part of it."""
    storage = tensor.untyped_storage()
    entry = tensor.element_size()
    whole = torch.empty(0, dtype=tensor.dtype).set_(storage, 0, (storage.nbytes() // entry,), (1,))
    return Buffer(name, whole, whole, writable=True, first=int(tensor.storage_offset()))


class _Watch:
    """Triton's interpreter of memory, with a look at each access first; all else is the original's."""

    def __init__(self, original: Any, memory: Memory, axes: int) -> None:
        self._original, self._memory, self._axes = original, memory, axes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)

    def load(self, pointers: np.ndarray, mask: np.ndarray, other: np.ndarray, dtype: np.dtype) -> np.ndarray:
        self._memory.check(pointers, mask, np.dtype(dtype).itemsize, False, self._axes)
        return self._original.load(pointers, mask, other, dtype)

    def store(self, pointers: np.ndarray, values: np.ndarray, mask: np.ndarray) -> None:
        self._memory.check(pointers, mask, values.dtype.itemsize, True, self._axes)
        return self._original.store(pointers, values, mask)

    def atomic_rmw(self, operation: Any, pointers: np.ndarray, values: np.ndarray, mask: np.ndarray, order: Any) -> np.ndarray:
        self._memory.check(pointers, mask, values.dtype.itemsize, True, self._axes)
        return self._original.atomic_rmw(operation, pointers, values, mask, order)

    def atomic_cas(self, pointers: np.ndarray, compared: np.ndarray, values: np.ndarray, order: Any) -> np.ndarray:
        self._memory.check(pointers, np.ones(np.shape(pointers), bool), values.dtype.itemsize, True, self._axes)
        return self._original.atomic_cas(pointers, compared, values, order)


def _program(axes: int) -> tuple[int, ...]:
    from triton.runtime.interpreter import interpreter_builder

    return tuple(interpreter_builder.grid_idx[:axes])


def _own(filename: str) -> bool:
    """Whether a file is the reader's, and not Triton's either."""
    import triton

    return guarding.is_readers(filename, (Path(triton.__file__).parent,))
