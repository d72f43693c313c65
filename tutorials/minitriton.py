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
import linecache
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from . import blocks, guarding
from .accesses import Access, Buffer, Pointer, Running, Watched, checked, current_program, given, note, now, running, watching
from .blocks import Block, DType

__all__ = [
    "Access", "Buffer", "Kernel", "Pointer", "Watched", "cdiv", "compiled", "constexpr", "current_program", "jit", "language",
    "next_power_of_2", "watching",
]  # fmt: skip

#: The name of the file that `compiled` takes a text for.
TEXT = "kernel"
#: Options of a launch that say how a kernel is compiled.
COMPILER_OPTIONS = ("num_warps", "num_stages", "num_ctas", "maxnreg", "enable_fp_fusion")


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
        ids = (*now().program, 0, 0)
        return Block(ids[axis], blocks.int32)

    @staticmethod
    def num_programs(axis: int) -> Block:
        """How many programs there are along an axis of the grid."""
        return Block((*now().grid, 1, 1)[axis], blocks.int32)

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
        buffer, offsets, active = checked(pointer, mask, False)
        assert buffer.dtype is not None
        found = np.zeros(offsets.shape, buffer.flat.dtype)
        found[active] = buffer.flat[offsets[active] + buffer.first]
        values = blocks.widened(found) if buffer.dtype == blocks.bfloat16 else found
        if other is not None:
            values = np.where(active, values, blocks.as_block(other).to(buffer.dtype).data)
        note(False, buffer, offsets, active, values)
        return Block(values, buffer.dtype)

    @staticmethod
    def store(pointer: Any, value: Any, mask: Any = None, **hints: Any) -> None:
        """Writes the values to where the pointers point, in the buffer's dtype."""
        buffer, offsets, active = checked(pointer, mask, True)
        assert buffer.dtype is not None
        values = np.broadcast_to(blocks.as_block(value).to(buffer.dtype).data, offsets.shape)
        stored = blocks.narrowed(values) if buffer.dtype == blocks.bfloat16 else values
        buffer.flat[offsets[active] + buffer.first] = stored[active]
        note(True, buffer, offsets, active, values)

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
        now()
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
                running.append(Running(program, sizes))
                try:
                    body(**passed)
                except Exception as error:
                    raise guarding.as_the_reader_sees_it(error) from None
                finally:
                    running.pop()


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
        return Pointer(given(name, value))
    return None if value is None else blocks.as_block(value)
