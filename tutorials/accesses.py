"""The memory of a kernel that `minitriton` runs: buffers, pointers into them, and a note of every access."""

import contextlib
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import blocks, guarding
from .blocks import Array, Block, DType


@dataclass(eq=False)
class Buffer:
    """One piece of memory.

    Attributes:
        name: of the argument.
        flat: its entries, as they lie in memory.
        shape: of the matrix or vector in it.
        stride_of_rows: entries from one row to the next; None for the row's own length.
        writable: whether it may be stored to.
        first: the entry that the kernel's pointer points to.
        dtype: of its entries; None for NumPy's own.
    """

    name: str
    flat: Array
    shape: tuple[int, ...] = ()
    stride_of_rows: int | None = None
    writable: bool = True
    first: int = 0
    dtype: DType | None = None

    def __post_init__(self) -> None:
        self.shape = self.shape or (self.flat.size,)
        self.dtype = self.dtype or blocks.OF_NUMPY[self.flat.dtype]

    def stride(self, axis: int) -> int:
        """Entries from one index to the next along an axis, as a tensor of Torch has it."""
        if axis == len(self.shape) - 1:
            return 1
        return self.shape[-1] if self.stride_of_rows is None else self.stride_of_rows


class Pointer:
    """A block of pointers into one buffer."""

    def __init__(self, buffer: Buffer, offsets: Any = 0) -> None:
        self.buffer, self.offsets = buffer, np.asarray(offsets, np.int64)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.offsets.shape

    def __add__(self, other: Any) -> "Pointer":
        offsets = blocks.as_block(other)
        if offsets.dtype.kind == 2:
            raise TypeError(f"a pointer moves by whole numbers of entries, got {offsets.dtype}")
        return Pointer(self.buffer, self.offsets + offsets.data)

    __radd__ = __add__

    def __sub__(self, other: Any) -> "Pointer":
        return self + -blocks.as_block(other)

    def __getitem__(self, index: Any) -> "Pointer":
        if not self.offsets.ndim:
            raise TypeError(f"{self.buffer.name} is a pointer, not an array")
        return Pointer(self.buffer, blocks.indexed(self.offsets, index))


@dataclass(frozen=True, eq=False)
class Access:
    """One load or store of one program.

    Attributes:
        program: its ids.
        line: of the kernel's source, in the file that it comes from.
        stores: whether it writes.
        buffer: which memory.
        offsets: of each lane, in entries from where the kernel's pointer points.
        mask: of each lane, whether it is active.
        values: what each lane loaded or stored.
    """

    program: tuple[int, ...]
    line: int
    stores: bool
    buffer: Buffer
    offsets: Array
    mask: Array
    values: Array

    @property
    def bytes(self) -> int:
        """Bytes that the active lanes move."""
        return int(self.mask.sum()) * self.buffer.flat.itemsize


@dataclass(eq=False)
class Watched:
    """Every access of the launches within `watching`."""

    accesses: list[Access] = field(default_factory=list)


@dataclass(eq=False)
class Running:
    """The program that runs now."""

    program: tuple[int, ...]
    grid: tuple[int, ...]


running: list[Running] = []
watchers: list[Watched] = []


@contextlib.contextmanager
def watching() -> Iterator[Watched]:
    """Notes every load and store of the kernels that are launched within."""
    seen = Watched()
    watchers.append(seen)
    try:
        yield seen
    finally:
        watchers.remove(seen)


def now() -> Running:
    if not running:
        raise RuntimeError("tl.program_id, tl.load and tl.store work inside of a kernel that is launched: kernel[grid](...)")
    return running[-1]


def current_program() -> tuple[int, ...]:
    """The ids of the program that runs now."""
    return now().program


def checked(pointer: Any, mask: Any, stores: bool) -> tuple[Buffer, Array, Array]:
    """(buffer, offsets, active lanes) of an access that stays inside."""
    if not isinstance(pointer, Pointer):
        raise TypeError(f"tl.{'store' if stores else 'load'} needs a pointer, got {pointer!r}")
    if isinstance(mask, Block) and mask.data.ndim and not pointer.offsets.ndim:
        raise ValueError("Mask argument cannot be block type if pointer argument is not a block")
    active = np.ones(pointer.shape, bool) if mask is None else np.broadcast_to(blocks.as_block(mask).data != 0, pointer.shape)
    buffer, offsets = pointer.buffer, pointer.offsets
    if stores and not buffer.writable and active.any():
        raise guarding.into_an_input(now().program, buffer.name, guarding.place())
    wrong = active & ((offsets + buffer.first < 0) | (offsets + buffer.first >= buffer.flat.size))
    if wrong.any():
        size = buffer.flat.size - buffer.first
        raise guarding.outside(now().program, stores, buffer.name, int(offsets[wrong].ravel()[0]), size, guarding.place())
    return buffer, offsets, active


def note(stores: bool, buffer: Buffer, offsets: Array, active: Array, values: Array) -> None:
    if watchers:
        access = Access(now().program, _line(), stores, buffer, offsets.copy(), active.copy(), np.array(values))
        for seen in watchers:
            seen.accesses.append(access)


def _line() -> int:
    """The reader's line that is running."""
    frame: types.FrameType | None = sys._getframe()
    while frame is not None and not guarding.is_readers(frame.f_code.co_filename):
        frame = frame.f_back
    return 0 if frame is None else frame.f_lineno


def given(name: str, array: Array) -> Buffer:
    """All of the memory of an array, which may be a view of a part of it."""
    whole = array
    while isinstance(whole.base, np.ndarray):
        whole = whole.base
    if not whole.flags.c_contiguous:
        raise ValueError(f"{name} lies in memory that is not contiguous")
    first = (array.__array_interface__["data"][0] - whole.__array_interface__["data"][0]) // array.itemsize
    flat = whole.view(array.dtype).reshape(-1)
    stride = array.strides[0] // array.itemsize if array.ndim == 2 else None
    return Buffer(name, flat, array.shape, stride, first=first)
