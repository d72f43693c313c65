"""Enough of Triton on NumPy alone to run the kernels of the tutorial unchanged, in a browser as well, and to watch them.

    @minitriton.jit
    def copy(x, y, n, BLOCK: tl.constexpr): ...      # tl = minitriton.language

    with minitriton.watching() as seen:
        copy[(4,)](x, y, 13, BLOCK=4)                # arrays of NumPy
    seen.accesses                                    # every load and store: program, line, buffer, offsets, mask

One program runs after the other. An access outside of a buffer is stopped before it happens, with the message of `guarding`. What the
tutorial does not use is refused by name. `tests/test_minitriton.py` holds it against Triton's interpreter.
"""

import builtins
import contextlib
import linecache
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import blocks, guarding
from .blocks import Array, Block, DType

#: The name of the file that `compiled` takes a text for.
TEXT = "kernel"
#: Options of a launch that say how a kernel is compiled.
COMPILER_OPTIONS = ("num_warps", "num_stages", "num_ctas", "maxnreg", "enable_fp_fusion")


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
class _Running:
    """The program that runs now."""

    program: tuple[int, ...]
    grid: tuple[int, ...]


_running: list[_Running] = []
_watchers: list[Watched] = []


@contextlib.contextmanager
def watching() -> Iterator[Watched]:
    """Notes every load and store of the kernels that are launched within."""
    seen = Watched()
    _watchers.append(seen)
    try:
        yield seen
    finally:
        _watchers.remove(seen)


def _now() -> _Running:
    if not _running:
        raise RuntimeError("tl.program_id, tl.load and tl.store work inside of a kernel that is launched: kernel[grid](...)")
    return _running[-1]


def current_program() -> tuple[int, ...]:
    """The ids of the program that runs now."""
    return _now().program


# ---- Memory -------------------------------------------------------------------------------------------------------------------


def _checked(pointer: Any, mask: Any, stores: bool) -> tuple[Buffer, Array, Array]:
    """(buffer, offsets, active lanes) of an access that stays inside."""
    if not isinstance(pointer, Pointer):
        raise TypeError(f"tl.{'store' if stores else 'load'} needs a pointer, got {pointer!r}")
    if isinstance(mask, Block) and mask.data.ndim and not pointer.offsets.ndim:
        raise ValueError("Mask argument cannot be block type if pointer argument is not a block")
    active = np.ones(pointer.shape, bool) if mask is None else np.broadcast_to(blocks.as_block(mask).data != 0, pointer.shape)
    buffer, offsets = pointer.buffer, pointer.offsets
    if stores and not buffer.writable and active.any():
        raise guarding.into_an_input(_now().program, buffer.name, guarding.place())
    wrong = active & ((offsets + buffer.first < 0) | (offsets + buffer.first >= buffer.flat.size))
    if wrong.any():
        size = buffer.flat.size - buffer.first
        raise guarding.outside(_now().program, stores, buffer.name, int(offsets[wrong].ravel()[0]), size, guarding.place())
    return buffer, offsets, active


def _note(stores: bool, buffer: Buffer, offsets: Array, active: Array, values: Array) -> None:
    if _watchers:
        access = Access(_now().program, _line(), stores, buffer, offsets.copy(), active.copy(), np.array(values))
        for seen in _watchers:
            seen.accesses.append(access)


def _line() -> int:
    """The reader's line that is running."""
    frame: types.FrameType | None = sys._getframe()
    while frame is not None and not guarding.is_readers(frame.f_code.co_filename):
        frame = frame.f_back
    return 0 if frame is None else frame.f_lineno


# ---- triton.language ----------------------------------------------------------------------------------------------------------


class constexpr:
    """Marks an argument that is known when the kernel is compiled; its value stays a Python number."""


class _Math:
    """triton.language.math."""

    @staticmethod
    def div_rn(x: Any, y: Any) -> Block:
        """x / y of float32, rounded to nearest as IEEE says."""
        a, b, dtype = blocks.common(x, y)
        for block in (blocks.as_block(x), blocks.as_block(y)):
            if block.dtype != blocks.float32:
                raise ValueError(f"Expected dtype ['fp32'] but got {block.dtype}")
        return Block(np.divide(a.data, b.data), dtype)


class _Language:
    """triton.language, as far as the tutorial goes."""

    constexpr = constexpr
    math = _Math()
    dtype = DType
    float16, bfloat16, float32, float64 = blocks.float16, blocks.bfloat16, blocks.float32, blocks.float64
    int1, int8, int16, int32, int64 = blocks.int1, blocks.int8, blocks.int16, blocks.int32, blocks.int64
    uint8, uint16, uint32, uint64 = blocks.uint8, blocks.uint16, blocks.uint32, blocks.uint64

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"tl.{name} is not among what runs here; the tutorial's kernels do without it")

    @staticmethod
    def program_id(axis: int) -> Block:
        """The number of this program along an axis of the grid."""
        ids = (*_now().program, 0, 0)
        return Block(ids[axis], blocks.int32)

    @staticmethod
    def num_programs(axis: int) -> Block:
        """How many programs there are along an axis of the grid."""
        return Block((*_now().grid, 1, 1)[axis], blocks.int32)

    @staticmethod
    def arange(start: int, end: int) -> Block:
        """The whole numbers from `start` to below `end`, a power of two of them."""
        if isinstance(start, Block) or isinstance(end, Block):
            raise ValueError("arange's arguments must be of type tl.constexpr")
        count = end - start
        if count <= 0:
            raise ValueError("arange's end argument must be greater than the start argument")
        if count & (count - 1):
            raise ValueError("arange's range must be a power of 2")
        return Block(np.arange(start, end), blocks.int32)

    @staticmethod
    def zeros(shape: Any, dtype: DType) -> Block:
        """A block of zeros."""
        return Block(np.zeros(shape), dtype)

    @staticmethod
    def full(shape: Any, value: Any, dtype: DType) -> Block:
        """A block that holds one value."""
        return Block(np.full(shape, blocks.as_block(value).to(dtype).data), dtype)

    @staticmethod
    def load(pointer: Any, mask: Any = None, other: Any = None, **hints: Any) -> Block:
        """What the pointers point to; `other` where the mask is not set, 0 without it."""
        if mask is None and other is not None:
            raise ValueError("`other` cannot be provided without `mask`")
        buffer, offsets, active = _checked(pointer, mask, False)
        assert buffer.dtype is not None
        found = np.zeros(offsets.shape, buffer.flat.dtype)
        found[active] = buffer.flat[offsets[active] + buffer.first]
        values = blocks.widened(found) if buffer.dtype == blocks.bfloat16 else found
        if other is not None:
            values = np.where(active, values, blocks.as_block(other).to(buffer.dtype).data)
        _note(False, buffer, offsets, active, values)
        return Block(values, buffer.dtype)

    @staticmethod
    def store(pointer: Any, value: Any, mask: Any = None, **hints: Any) -> None:
        """Writes the values to where the pointers point, in the buffer's dtype."""
        buffer, offsets, active = _checked(pointer, mask, True)
        assert buffer.dtype is not None
        values = np.broadcast_to(blocks.as_block(value).to(buffer.dtype).data, offsets.shape)
        stored = blocks.narrowed(values) if buffer.dtype == blocks.bfloat16 else values
        buffer.flat[offsets[active] + buffer.first] = stored[active]
        _note(True, buffer, offsets, active, values)

    @staticmethod
    def abs(x: Any) -> Block:
        """Magnitudes."""
        block = blocks.as_block(x)
        return Block(np.abs(block.data), block.dtype)

    @staticmethod
    def maximum(x: Any, y: Any) -> Block:
        """The larger of two, entry by entry; of a number and a NaN the number."""
        a, b, dtype = blocks.common(x, y)
        return Block(np.fmax(a.data, b.data), dtype)

    @staticmethod
    def minimum(x: Any, y: Any) -> Block:
        """The smaller of two, entry by entry; of a number and a NaN the number."""
        a, b, dtype = blocks.common(x, y)
        return Block(np.fmin(a.data, b.data), dtype)

    @staticmethod
    def max(x: Block, axis: int | None = None) -> Block:
        """The largest along an axis, or of all; NaN only where there is nothing else."""
        return _reduced(np.fmax, x, axis, widen_floats=True)

    @staticmethod
    def min(x: Block, axis: int | None = None) -> Block:
        """The smallest along an axis, or of all; NaN only where there is nothing else."""
        return _reduced(np.fmin, x, axis, widen_floats=True)

    @staticmethod
    def sum(x: Block, axis: int | None = None) -> Block:
        """The sum along an axis, or of all."""
        return _reduced(np.add, x, axis, widen_floats=False)

    @staticmethod
    def where(condition: Any, x: Any, y: Any) -> Block:
        """x where the condition holds, else y."""
        a, b, dtype = blocks.common(x, y)
        return Block(np.where(blocks.as_block(condition).data != 0, a.data, b.data), dtype)

    @staticmethod
    def dot(a: Block, b: Block, acc: Block | None = None, out_dtype: DType = blocks.float32, **hints: Any) -> Block:
        """a @ b + acc: of int8 in int32, of floating point in `out_dtype`."""
        if a.dtype.kind != b.dtype.kind or (a.dtype.kind == 1 and (a.dtype.bits, b.dtype.bits) != (8, 8)):
            raise ValueError(f"tl.dot multiplies int8 with int8 or floating point with floating point, got {a.dtype} and {b.dtype}")
        if a.shape[1] != b.shape[0]:
            raise ValueError(f"First input shape ({a.shape}) and second input shape {b.shape} are not compatible for matmul")
        dtype = blocks.int32 if a.dtype.kind == 1 else out_dtype
        if acc is not None and (acc.dtype != dtype or acc.shape != (a.shape[0], b.shape[1])):
            raise ValueError(f"acc must be a block of {dtype} of shape {(a.shape[0], b.shape[1])}, got {acc}")
        product = np.matmul(a.data, b.data, dtype=dtype.computed)
        return Block(product if acc is None else product + acc.data, dtype)

    @staticmethod
    def cdiv(x: Any, y: Any) -> Any:
        """x / y, rounded up."""
        return (x + y - 1) // y

    @staticmethod
    def trans(x: Block) -> Block:
        """The transposed block."""
        return x.T

    @staticmethod
    def static_range(*ends: int) -> builtins.range:
        """A loop that the compiler unrolls."""
        return builtins.range(*ends)

    @staticmethod
    def range(*ends: Any) -> Iterator[Block]:
        """The numbers of a loop."""
        return _range(*ends)


def _reduced(ufunc: np.ufunc, x: Block, axis: int | None, widen_floats: bool) -> Block:
    """Triton reduces integers of fewer than 32 bits in int32, and bfloat16 in float32; float16 in float32 for an extreme."""
    dtype = x.dtype
    if dtype == blocks.bfloat16 or (dtype == blocks.float16 and widen_floats):
        dtype = blocks.float32
    elif dtype.kind < 2 and dtype.bits < 32:
        dtype = blocks.uint32 if blocks.is_unsigned(dtype) and ufunc is np.add else blocks.int32
    data = x.to(dtype).data
    if ufunc is np.add:
        return Block(np.sum(data, axis=axis), dtype)
    return Block(ufunc.reduce(data, axis=axis), dtype)


def _range(*ends: Any) -> Iterator[Block]:
    """range() inside of a kernel: its numbers are int32, as Triton's are."""
    for number in builtins.range(*(int(end) for end in ends)):
        yield Block(number, blocks.int32)


language = _Language()

# ---- Launches -----------------------------------------------------------------------------------------------------------------


class Kernel:
    """A function that `kernel[grid](arguments)` runs once per program of the grid."""

    def __init__(self, function: Callable) -> None:
        self.function = getattr(function, "fn", function)  # a kernel of Triton keeps its Python function there
        self.__name__ = self.function.__name__

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return lambda *arguments, **options: self._launch(grid, arguments, options)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Runs it as a part of the kernel that calls it."""
        _now()
        return self.function(*arguments, **options)

    def _launch(self, grid: Any, arguments: tuple, options: dict[str, Any]) -> None:
        code = self.function.__code__
        names = code.co_varnames[: code.co_argcount]
        given = dict(zip(names, arguments, strict=False))
        given |= {name: value for name, value in options.items() if name in names or name not in COMPILER_OPTIONS}
        fixed = {name for name, kind in self.function.__annotations__.items() if "constexpr" in getattr(kind, "__name__", str(kind))}
        passed = {name: value if name in fixed else _argument(name, value) for name, value in given.items()}
        sizes = tuple(int(size) for size in (grid(given) if callable(grid) else grid))
        body = _bound(self.function)
        with np.errstate(all="ignore"):
            for program in np.ndindex(*sizes):
                _running.append(_Running(program, sizes))
                try:
                    body(**passed)
                except Exception as error:
                    raise guarding.as_the_reader_sees_it(error) from None
                finally:
                    _running.pop()


def jit(function: Callable) -> Kernel:
    """Makes a kernel of a function."""
    return Kernel(function)


def compiled(text: str, name: str) -> Any:
    """What a text, compiled with this module as Triton, calls `name`; None if nothing. Its lines are found in what is said of errors."""
    linecache.cache[TEXT] = len(text), None, text.splitlines(keepends=True), TEXT
    scope: dict[str, Any] = {"triton": sys.modules[__name__], "tl": language, "__name__": TEXT}
    exec(compile(text, TEXT, "exec"), scope)
    return scope.get(name)


def cdiv(x: int, y: int) -> int:
    """x / y, rounded up."""
    return -(-x // y)


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()


def _bound(function: Callable) -> types.FunctionType:
    """The function with this module instead of Triton, and with loops whose numbers are int32."""
    scope = {name: _replaced(value) for name, value in function.__globals__.items()} | {"range": _range}
    assert isinstance(function, types.FunctionType)
    return types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__, function.__closure__)


def _replaced(value: Any) -> Any:
    name = getattr(value, "__name__", None)
    if isinstance(value, types.ModuleType) and name == "triton.language":
        return language
    return Kernel(value) if type(value).__module__.startswith("triton.runtime") and hasattr(value, "fn") else value


def _argument(name: str, value: Any) -> Any:
    if isinstance(value, Buffer):
        return Pointer(value)
    if isinstance(value, np.ndarray):
        return Pointer(_given(name, value))
    return None if value is None else blocks.as_block(value)


def _given(name: str, array: Array) -> Buffer:
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
