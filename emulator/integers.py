"""Integer arithmetic, bits and shifts: what works on registers alone and has no rounding.

Sources: PTX ISA 9.0, 9.7.1 "Integer Arithmetic Instructions", 9.7.8 "Logic and Shift Instructions".
"""

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from .parse import Instruction
from .rules import Run, rule
from .values import UNSIGNED, Array, bits_of, dtype, halves, joined

if TYPE_CHECKING:
    from .machine import Machine

INTEGER = "Integer Arithmetic Instructions: "
BITS = "Logic and Shift Instructions: "
WHOLE = r"([us](?:16|32|64))"


def shift_left(a: Array, b: Array) -> Array:
    """Bits shifted out are gone; a shift by the width or more gives 0."""
    bits = a.dtype.itemsize * 8
    return np.where(b >= bits, a.dtype.type(0), a << np.minimum(b, bits - 1).astype(a.dtype))


def shift_right(a: Array, b: Array) -> Array:
    """Signed numbers keep their sign; a shift by the width or more counts as one by all bits."""
    bits = a.dtype.itemsize * 8
    shifted = a >> np.minimum(b, bits - 1).astype(a.dtype)
    return shifted if a.dtype.kind == "i" else np.where(b >= bits, a.dtype.type(0), shifted)


def bit_field(a: Array, start: Array, length: Array) -> Array:
    """bfe: bits start to start + length - 1; a signed field is extended by its highest bit inside the register."""
    bits, unsigned = a.dtype.itemsize * 8, UNSIGNED[a.dtype.itemsize]
    start, length = start.astype(np.int64) & 0xFF, length.astype(np.int64) & 0xFF
    inside = np.minimum(length, np.maximum(bits - start, 0))  # bits of the field that the register has
    ones = shift_left(unsigned(1), inside) - unsigned(1)
    field = shift_right(a.view(unsigned), start) & ones
    if a.dtype.kind == "u":
        return field
    top = np.minimum(start + length - 1, bits - 1)
    sign = (length > 0) & (shift_right(a.view(unsigned), np.maximum(top, 0)) & unsigned(1)).astype(bool)
    return np.where(sign, field | ~ones, field).view(a.dtype)


def insert_bits(a: Array, b: Array, start: Array, length: Array) -> Array:
    """bfi: `length` low bits of a in the place of b's bits from `start` on."""
    start, length = start & np.uint32(0xFF), length & np.uint32(0xFF)
    mask = shift_left(shift_left(a.dtype.type(1), length) - a.dtype.type(1), start)
    return (b & ~mask) | (shift_left(a, start) & mask)


def quotient(a: Array, b: Array) -> Array:
    """Division towards zero; what a division by zero gives is not defined: here all bits."""
    zero = b == 0
    if a.dtype.kind == "u":
        return np.where(zero, ~a.dtype.type(0), a // np.where(zero, a.dtype.type(1), b))
    size = UNSIGNED[a.dtype.itemsize]
    size_a, size_b = np.abs(a).view(size), np.abs(b).view(size)  # the smallest number keeps its bits, which read unsigned are right
    whole = size_a // np.where(zero, size(1), size_b)
    signed = np.where((a < 0) != (b < 0), -whole.view(a.dtype), whole.view(a.dtype))
    return np.where(zero, a.dtype.type(-1), signed)


def high_product(a: Array, b: Array) -> Array:
    """The upper half of the product."""
    bits = a.dtype.itemsize * 8
    if bits < 64:
        wide = np.int64 if a.dtype.kind == "i" else np.uint64
        return ((a.astype(wide) * b.astype(wide)) >> wide(bits)).astype(a.dtype)
    x, y = a.view(np.uint64), b.view(np.uint64)
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    crossed = (x >> half) * (y & low)
    middle = (x & low) * (y >> half) + (((x & low) * (y & low)) >> half)
    # Two summands below 2**64 - 2**32 + 1 each: their sum may carry, so halves are added apart.
    carried = ((crossed & low) + (middle & low)) >> half
    found = (x >> half) * (y >> half) + (crossed >> half) + (middle >> half) + carried
    if a.dtype.kind == "i":
        found = found - np.where(a < 0, y, np.uint64(0)) - np.where(b < 0, x, np.uint64(0))
    return found.view(a.dtype)


TWO: dict[str, Any] = {
    "add": np.add, "sub": np.subtract, "min": np.minimum, "max": np.maximum, "div": quotient,
    "rem": lambda a, b: a - quotient(a, b) * b,
}  # fmt: skip


@rule(rf"(add|sub|min|max|div|rem)\.{WHOLE}", INTEGER + "add, sub, div, rem, min, max")
def arithmetic(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    return machine.pure(TWO[found[1]], i.operands, found[2], [found[2]] * 2)


@rule(r"(add|sub)\.sat\.s32", INTEGER + "add, sub (.sat: clamped to the smallest and largest number)")
def saturated(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    function = TWO[found[1]]
    limits = np.iinfo(np.int32)

    def run(a: Array, b: Array) -> Array:
        return function(a.astype(np.int64), b.astype(np.int64)).clip(limits.min, limits.max).astype(np.int32)

    return machine.pure(run, i.operands, "s32", ["s32"] * 2)


@rule(r"(min|max)\.relu\.s32", INTEGER + "min, max (.relu: not below 0)")
def not_negative(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    return machine.pure(lambda a, b: np.maximum(TWO[found[1]](a, b), np.int32(0)), i.operands, "s32", ["s32"] * 2)


@rule(r"(add|min|max)\.([us])16x2", INTEGER + "add, min, max (.u16x2, .s16x2: on both halves)")
def packed_integers(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    function, kind = TWO[found[1]], dtype(f"{found[2]}16")

    def run(a: Array, b: Array) -> Array:
        low, high = (function(x.view(kind), y.view(kind)).view(np.uint16) for x, y in zip(halves(a, "u16"), halves(b, "u16"), strict=True))
        return joined(low, high)

    return machine.pure(run, i.operands, "b32", ["b32"] * 2)


@rule(rf"(mul|mad)\.(lo|hi|wide)\.{WHOLE}", INTEGER + "mul, mad (.lo, .hi: half of the product, .wide: all of it)")
def product(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    name, part, kind = found.groups()
    to = kind if part != "wide" else f"{kind[0]}{2 * bits_of(kind)}"
    wide = dtype(to)
    multiply = high_product if part == "hi" else (lambda a, b: a.astype(wide) * b.astype(wide))
    if name == "mul":
        return machine.pure(multiply, i.operands, to, [kind] * 2)
    return machine.pure(lambda a, b, c: multiply(a, b) + c, i.operands, to, [kind, kind, to])


@rule(r"(abs|neg)\.(s(?:16|32|64))", INTEGER + "abs, neg")
def one_integer(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    return machine.pure(np.abs if found[1] == "abs" else np.negative, i.operands, found[2], [found[2]])


@rule(r"sad\.([us](?:16|32|64))", INTEGER + "sad (c + |a - b|)")
def absolute_difference(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    return machine.pure(lambda a, b, c: c + np.where(a < b, b - a, a - b), i.operands, found[1], [found[1]] * 3)


def count_bits(a: Array) -> Array:
    return np.bitwise_count(a).astype(np.uint32)


def leading_zeros(a: Array) -> Array:
    bits = a.dtype.itemsize * 8
    found = np.full(a.shape, bits, np.uint32)
    for at in range(bits):
        found = np.where((a >> a.dtype.type(at)) & a.dtype.type(1), np.uint32(bits - 1 - at), found)
    return found


def reversed_bits(a: Array) -> Array:
    bits, one = a.dtype.itemsize * 8, a.dtype.type(1)
    return sum((((a >> a.dtype.type(at)) & one) << a.dtype.type(bits - 1 - at) for at in range(bits)), a.dtype.type(0))


@rule(r"(popc|clz|brev)\.(b32|b64)", INTEGER + "popc, clz, brev")
def bit_counts(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    function = {"popc": count_bits, "clz": leading_zeros, "brev": reversed_bits}[found[1]]
    return machine.pure(function, i.operands, found[2] if found[1] == "brev" else "u32", [found[2]])


@rule(r"bfind(\.shiftamt)?\.([us](?:32|64))", INTEGER + "bfind (the highest bit that differs from the sign)")
def highest_bit(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    kind, bits = found[2], bits_of(found[2])

    def run(a: Array) -> Array:
        plain = (np.where(a < 0, ~a, a) if a.dtype.kind == "i" else a).view(UNSIGNED[bits // 8])
        zeros = leading_zeros(plain)
        return np.where(zeros == bits, np.uint32(0xFFFFFFFF), zeros if found[1] else np.uint32(bits - 1) - zeros)

    return machine.pure(run, i.operands, "u32", [kind])


@rule(r"bfe\.([us](?:32|64))", INTEGER + "bfe")
def extracted(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    return machine.pure(bit_field, i.operands, found[1], [found[1], "u32", "u32"])


@rule(r"bfi\.(b32|b64)", INTEGER + "bfi")
def inserted(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    return machine.pure(insert_bits, i.operands, found[1], [found[1]] * 2 + ["u32"] * 2)


@rule(r"dp4a\.([us])32\.([us])32", INTEGER + "dp4a (c + the product of four bytes with four)")
def dot_of_bytes(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    left, right = (np.uint8 if kind == "u" else np.int8 for kind in found.groups())

    def run(a: Array, b: Array, c: Array) -> Array:
        a, b = np.broadcast_arrays(a, b)
        four = np.ascontiguousarray(a).reshape(-1, 1).view(left).astype(np.int64) * np.ascontiguousarray(b).reshape(-1, 1).view(right)
        return (c.astype(np.int64) + four.sum(1).reshape(a.shape)).astype(np.uint32)

    return machine.pure(run, i.operands, "u32", ["b32", "b32", "u32"])


LOGIC: dict[str, Any] = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}


@rule(r"(and|or|xor)\.(pred|b16|b32|b64)", BITS + "and, or, xor")
def logic(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    return machine.pure(LOGIC[found[1]], i.operands, found[2], [found[2]] * 2)


@rule(r"not\.(pred|b16|b32|b64)", BITS + "not")
def inverted(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    return machine.pure(np.invert, i.operands, found[1], [found[1]])


@rule(r"lop3\.b32", BITS + "lop3 (a function of three bits by its table)")
def three_bits(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    table = int(str(i.operands[4]), 0)

    def run(a: Array, b: Array, c: Array) -> Array:
        result: Array = np.uint32(0)
        for row in range(8):
            if table >> row & 1:
                result = result | ((a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c))
        return np.asarray(result)

    return machine.pure(run, i.operands[:4], "b32", ["b32"] * 3)


@rule(r"(shl|shr)\.([bus](?:16|32|64))", BITS + "shl, shr")
def shifted(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    return machine.pure(shift_left if found[1] == "shl" else shift_right, i.operands, found[2], [found[2], "u32"])


@rule(r"shf\.([lr])\.(wrap|clamp)\.b32", BITS + "shf (two registers shifted as one)")
def funnel_shifted(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    left, wraps = found[1] == "l", found[2] == "wrap"

    def run(low: Array, high: Array, by: Array) -> Array:
        both = low.astype(np.uint64) | (high.astype(np.uint64) << np.uint64(32))
        by = (by & np.uint32(31) if wraps else np.minimum(by, np.uint32(32))).astype(np.uint64)
        return ((both << by) >> np.uint64(32)).astype(np.uint32) if left else (both >> by).astype(np.uint32)

    return machine.pure(run, i.operands, "b32", ["b32", "b32", "u32"])
