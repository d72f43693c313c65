"""The values of a kernel on NumPy alone: dtypes, blocks of numbers, and the rules by which Triton mixes them.

A Python number takes the dtype of the block that it meets, if it is of the same kind; two blocks meet in the wider dtype
(`triton.language.semantic`, `computation_type_impl`). NumPy has no bfloat16: such a block holds float32 numbers that are rounded to
bfloat16 after each operation, and memory holds their 16 bits.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class DType:
    """A dtype of Triton.

    Attributes:
        name: as Triton prints it.
        computed: NumPy's dtype of a block.
        stored: NumPy's dtype in memory.
        kind: 0 bool, 1 integer, 2 floating point: a Python number of no higher kind takes the block's dtype.
    """

    name: str
    computed: np.dtype
    stored: np.dtype
    kind: int

    @property
    def bits(self) -> int:
        return 1 if self.kind == 0 else 8 * self.stored.itemsize

    def __repr__(self) -> str:
        return self.name


def _dtype(name: str, computed: type, kind: int, stored: type | None = None) -> DType:
    return DType(name, np.dtype(computed), np.dtype(stored or computed), kind)


int1 = _dtype("int1", np.bool_, 0)
int8, int16, int32, int64 = (_dtype(f"int{n}", getattr(np, f"int{n}"), 1) for n in (8, 16, 32, 64))
uint8, uint16, uint32, uint64 = (_dtype(f"uint{n}", getattr(np, f"uint{n}"), 1) for n in (8, 16, 32, 64))
float16, float32, float64 = (_dtype(f"fp{n}", getattr(np, f"float{n}"), 2) for n in (16, 32, 64))
bfloat16 = _dtype("bf16", np.float32, 2, np.uint16)
EVERY = (int1, int8, int16, int32, int64, uint8, uint16, uint32, uint64, float16, float32, float64, bfloat16)
OF_NUMPY = {dtype.stored: dtype for dtype in EVERY if dtype is not bfloat16}


def is_unsigned(dtype: DType) -> bool:
    """Whether an integer dtype has no sign."""
    return dtype.computed.kind == "u"


class Block:
    """Numbers of one dtype in a shape; a scalar is a block without axes. Nothing changes it: every operation gives a new one."""

    __array_ufunc__ = None  # NumPy leaves the operators to this class

    def __init__(self, data: Any, dtype: DType) -> None:
        self.data: Array = np.asarray(data, dtype.computed)
        self.dtype = dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def T(self) -> "Block":
        return Block(self.data.T, self.dtype)

    def trans(self) -> "Block":
        """The transposed block."""
        return self.T

    def to(self, dtype: DType, bitcast: bool = False) -> "Block":
        """The same numbers in another dtype, or the same bits."""
        if not isinstance(dtype, DType):
            raise TypeError(f"to() takes a dtype such as tl.float32, got {dtype!r}")
        return _reinterpreted(self, dtype) if bitcast else Block(converted(self.data, self.dtype, dtype), dtype)

    def __getitem__(self, index: Any) -> "Block":
        return Block(indexed(self.data, index), self.dtype)

    def __bool__(self) -> bool:
        if self.data.ndim:
            raise ValueError(f"a block of shape {self.shape} is neither true nor false: use tl.where, or a mask")
        return bool(self.data)

    def __index__(self) -> int:
        if self.data.ndim or self.dtype.kind == 2:
            raise TypeError(f"a block of shape {self.shape} and dtype {self.dtype} is no whole number")
        return int(self.data)

    def __float__(self) -> float:
        return float(self.data)

    def __neg__(self) -> "Block":
        return Block(-self.data, self.dtype)

    def __invert__(self) -> "Block":
        if self.dtype.kind == 2:
            raise TypeError(f"~ needs integers, got {self.dtype}")
        return Block(~self.data, self.dtype)

    def __repr__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"

    __hash__ = None  # type: ignore[assignment]


def indexed(data: Array, index: Any) -> Array:
    """data[index], of which Triton knows `:` and None alone."""
    every = index if isinstance(index, tuple) else (index,)
    if any(one is not None and one != slice(None) for one in every):
        raise ValueError(f"unsupported tensor index: {index!r}; a block takes : and None, as in rows[:, None]")
    return data[index]


def as_block(value: Any) -> Block:
    """A Python number as Triton types it; a block as it is."""
    if isinstance(value, Block):
        return value
    if isinstance(value, bool):
        return Block(value, int1)
    if isinstance(value, int):
        for dtype in (int32, uint32, int64, uint64):
            if np.iinfo(dtype.computed).min <= value <= np.iinfo(dtype.computed).max:
                return Block(value, dtype)
        raise ValueError(f"Nonrepresentable integer {value}.")
    if isinstance(value, float):
        size = abs(value)
        single = size == 0 or not np.isfinite(size) or 2.0**-126 <= size <= (2 - 2.0**-23) * 2.0**127
        return Block(value, float32 if single else float64)
    raise TypeError(f"cannot convert {value} of type {type(value)} to tensor")


def converted(data: Array, source: DType, target: DType) -> Array:
    """Numbers of one dtype in another: floating point to integers cut off, to bfloat16 rounded, ties to even."""
    if source == target:
        return data
    if target == int1:
        return data != 0
    if source.kind == 2 and target.kind == 1:
        return _cut_off(data, target)
    if target == bfloat16:
        return widened(narrowed(data.astype(np.float32)))
    return data.astype(target.computed)


def _cut_off(data: Array, target: DType) -> Array:
    """Towards zero. What no int32 holds (int64 for that dtype) becomes the smallest one first, as on x86; a NaN as well."""
    wide = np.int64 if target.bits == 64 or target == uint32 else np.int32
    whole = np.trunc(data.astype(np.float64))
    limit = 2.0 ** (63 if wide is np.int64 else 31)
    inside = (whole >= -limit) & (whole < limit)
    return np.where(inside, whole, -limit).astype(wide).astype(target.computed)


def narrowed(data: Array) -> Array:
    """float32 numbers as the 16 bits of the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(data, np.float32).view(np.uint32).reshape(np.shape(data))
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(data), (bits >> np.uint32(16)) | np.uint32(0x40), rounded).astype(np.uint16)


def widened(bits: Array) -> Array:
    """The 16 bits of a bfloat16 as float32: exact, 16 zero bits are appended."""
    wide = np.asarray(bits, np.uint32) << np.uint32(16)
    return np.ascontiguousarray(wide).view(np.float32).reshape(np.shape(bits))


def _reinterpreted(block: Block, dtype: DType) -> Block:
    if block.dtype.bits != dtype.bits:
        raise ValueError(f"cannot bitcast {block.dtype} to {dtype}: {block.dtype.bits} bits and {dtype.bits}")
    stored = narrowed(block.data) if block.dtype == bfloat16 else np.ascontiguousarray(block.data)
    bits = stored.view(dtype.stored).reshape(block.shape)
    return Block(widened(bits) if dtype == bfloat16 else bits, dtype)


# ---- Two operands -------------------------------------------------------------------------------------------------------------


def common(a: Any, b: Any, divides: bool = False) -> tuple[Block, Block, DType]:
    """Two operands in the dtype in which Triton computes."""
    numbers = [isinstance(value, bool | int | float) for value in (a, b)]
    blocks = [as_block(a), as_block(b)]
    dtype = _computation_type(blocks[0].dtype, numbers[0], blocks[1].dtype, numbers[1], divides)
    for value, number in zip((a, b), numbers, strict=True):
        if number and dtype.kind == 1 and not np.iinfo(dtype.computed).min <= value <= np.iinfo(dtype.computed).max:
            raise ValueError(f"Scalar {value} is out of range for type {dtype}")
    left, right = (
        Block(value, dtype) if number and dtype != bfloat16 else block.to(dtype)
        for value, number, block in zip((a, b), numbers, blocks, strict=True)
    )
    return left, right, dtype


def _computation_type(a: DType, a_number: bool, b: DType, b_number: bool, divides: bool) -> DType:
    if a_number != b_number:
        number, block = (a, b) if a_number else (b, a)
        if number.kind <= block.kind:
            return float32 if divides and block in (float16, bfloat16) else block
    for wide in (float64, float32):
        if wide in (a, b):
            return wide
    if float16 in (a, b):
        return float32 if divides else float16
    if bfloat16 in (a, b):
        return bfloat16 if a == b and not divides else float32
    if divides and is_unsigned(a) != is_unsigned(b):
        raise TypeError(f"Cannot use /, //, or % with {a} and {b} because they have different signedness")
    if is_unsigned(a) == is_unsigned(b):
        return a if a.bits > b.bits else b
    unsigned, signed = (a, b) if is_unsigned(a) else (b, a)
    return unsigned if unsigned.bits >= signed.bits else signed


def _rounded(data: Array, dtype: DType) -> Block:
    return Block(converted(data, float32, bfloat16) if dtype == bfloat16 else data, dtype)


def _arithmetic(operation: Callable) -> Callable:
    def apply(self: Block, other: Any) -> Block:
        a, b, dtype = common(self, other)
        return _rounded(operation(a.data, b.data), dtype)

    return apply


def _comparison(operation: Callable) -> Callable:
    def apply(self: Block, other: Any) -> Block:
        a, b, _ = common(self, other)
        return Block(operation(a.data, b.data), int1)

    return apply


def _bits(operation: Callable) -> Callable:
    def apply(self: Block, other: Any) -> Block:
        a, b, dtype = common(self, other)
        if dtype.kind == 2:
            raise TypeError(f"unexpected type {a.dtype} and {b.dtype}: bits of integers and masks alone")
        return Block(operation(a.data, b.data), dtype)

    return apply


def divided(a: Any, b: Any) -> Block:
    """a / b, in floating point."""
    one, other, dtype = common(a, b, divides=True)
    if dtype.kind < 2:
        one, other, dtype = one.to(float32), other.to(float32), float32
    return Block(np.divide(one.data, other.data), dtype)


def floor_divided(a: Any, b: Any) -> Block:
    """a // b of integers, towards zero as in C."""
    one, other, dtype = common(a, b, divides=True)
    if dtype.kind == 2:
        raise TypeError(f"// needs integers, got {dtype}")
    return Block((one.data - np.fmod(one.data, other.data)) // other.data, dtype)


def remainder(a: Any, b: Any) -> Block:
    """a % b, with the sign of a as in C."""
    one, other, dtype = common(a, b, divides=True)
    return Block(np.fmod(one.data, other.data), dtype)


def _install() -> None:
    """Gives Block its operators, each in both orders."""
    symbols: dict[str, tuple[Callable, Callable]] = {"add": (_arithmetic, np.add), "sub": (_arithmetic, np.subtract)}
    symbols |= {"mul": (_arithmetic, np.multiply), "and": (_bits, np.bitwise_and), "or": (_bits, np.bitwise_or)}
    symbols |= {"xor": (_bits, np.bitwise_xor), "lshift": (_bits, np.left_shift), "rshift": (_bits, np.right_shift)}
    for name, (make, ufunc) in symbols.items():
        apply = make(ufunc)
        setattr(Block, f"__{name}__", _or_pointer(apply))
        setattr(Block, f"__r{name}__", lambda self, other, apply=apply: apply(other, self))
    for name, function in {"truediv": divided, "floordiv": floor_divided, "mod": remainder}.items():
        setattr(Block, f"__{name}__", function)
        setattr(Block, f"__r{name}__", lambda self, other, function=function: function(other, self))
    for name in ("lt", "le", "gt", "ge", "eq", "ne"):
        setattr(Block, f"__{name}__", _comparison(getattr(operator, name)))


def _or_pointer(apply: Callable) -> Callable:
    """The operator, which leaves what is neither a block nor a number (a pointer) to the other side."""
    return lambda self, other: apply(self, other) if isinstance(other, Block | bool | int | float) else NotImplemented


_install()
