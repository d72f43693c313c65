"""Integers, bits, comparisons, moves: what works on registers alone and has no rounding."""

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from .parse import Instruction, Unsupported
from .rules import Run, rule
from .values import UNSIGNED, Array, bits_of, dtype, halves, joined, widened

if TYPE_CHECKING:
    from .machine import Machine

INTEGER = "Integer Arithmetic Instructions: "
BITS = "Logic and Shift Instructions: "
MOVE = "Data Movement and Conversion Instructions: "
COMPARISON = "Comparison and Selection Instructions: "
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


def permute_bytes(a: Array, b: Array, selector: Array) -> Array:
    """prmt: four of the eight bytes of b and a by the nibbles of the selector, whose highest bit repeats the byte's sign."""
    both = a.astype(np.uint64) | (b.astype(np.uint64) << np.uint64(32))
    result: Array = np.uint32(0)
    for i in range(4):
        nibble = (selector >> np.uint32(4 * i)) & np.uint32(15)
        byte = ((both >> ((nibble & np.uint32(7)).astype(np.uint64) * np.uint64(8))) & np.uint64(255)).astype(np.uint32)
        sign = np.where(byte & np.uint32(128), np.uint32(255), np.uint32(0))
        result = result | (np.where(nibble & np.uint32(8), sign, byte).astype(np.uint32) << np.uint32(8 * i))
    return np.asarray(result)


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


@rule(r"prmt\.b32", MOVE + "prmt (the general form)", own=True)
def permuted(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    permute = machine.pure(permute_bytes, i.operands, "b32", ["b32"] * 3)
    target, *sources = (machine.place(o, "b32") for o in i.operands)
    selector = machine.start[sources[2]] if i.operands[3] not in machine.kernel.registers else None

    def run(m: "Machine") -> None:
        tainted = m.undefined_in(sources)
        if tainted is not None and selector is not None:
            low, high = (m.undefined_in([slot]) for slot in sources[:2])
            tainted = chosen_bytes(low, high, int(selector), m.threads)
        elif tainted is not None:
            tainted = tainted != 0
        permute(m)
        m.mark(target, tainted)

    return run


def chosen_bytes(low: Array | None, high: Array | None, selector: int, threads: int) -> Array:
    """Which bytes of prmt's result are undefined, bit by byte, where the selector is a constant."""
    none = np.zeros(threads, np.uint8)
    both = [(none if low is None else low) >> np.uint8(n) & np.uint8(1) for n in range(4)]
    both += [(none if high is None else high) >> np.uint8(n) & np.uint8(1) for n in range(4)]
    found = none
    for n in range(4):
        found = found | both[selector >> 4 * n & 7] << np.uint8(n)
    return found


# Comparisons. NumPy's agree with PTX's ordered ones except that NaN != NaN is true there; unordered ones are true where either is NaN.
COMPARE = {"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal}
COMPARE |= {"lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal}


def comparison(how: str, kind: str) -> Any:
    """The function of two operands of `kind` that setp.<how> computes."""
    if kind not in ("f16", "bf16", "f32", "f64"):
        return COMPARE[how]
    widen = (lambda v: widened(v, "bf16")) if kind == "bf16" else (lambda v: v)
    if how in ("num", "nan"):
        return lambda a, b: (np.isnan(widen(a)) | np.isnan(widen(b))) == (how == "nan")
    plain = COMPARE[how.removesuffix("u")]
    if how.endswith("u"):
        return lambda a, b: plain(widen(a), widen(b)) | np.isnan(widen(a)) | np.isnan(widen(b))
    if how == "ne":
        return lambda a, b: (widen(a) != widen(b)) & ~np.isnan(widen(a)) & ~np.isnan(widen(b))
    return lambda a, b: plain(widen(a), widen(b))


@rule(
    r"setp\.(?:(eq|ne)\.(b16|b32|b64)|(eq|ne|lt|le|gt|ge|lo|ls|hi|hs)\.([us](?:16|32|64))"
    r"|((?:eq|ne|lt|le|gt|ge)u?|num|nan)(?:\.ftz)?\.(f16|bf16|f32|f64))",
    COMPARISON + "setp",
)
def compared(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    how, kind = (g for g in found.groups() if g)
    if "ftz" in i.opcode:
        raise Unsupported("setp.ftz")
    if "|" in str(i.operands[0]):
        raise Unsupported("setp with two destinations")
    return machine.pure(comparison(how, kind), i.operands, "pred", [kind] * 2)


@rule(
    r"setp\.(eq|ne|lt|le|gt|ge|ltu|leu|gtu|geu|equ|neu)\.(and|or|xor)\.(b16|b32|b64|[us](?:16|32|64)|f32|f64)",
    COMPARISON + "setp (.BoolOp)",
)
def compared_and_combined(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    function, combine = comparison(found[1], found[3]), LOGIC[found[2]]
    name = str(i.operands[3])
    negated = name.startswith("!")

    def run(a: Array, b: Array, other: Array) -> Array:
        return combine(function(a, b), ~other if negated else other)

    return machine.pure(run, (*i.operands[:3], name.lstrip("!")), "pred", [found[3]] * 2 + ["pred"])


@rule(r"selp\.(b16|b32|b64|[us](?:16|32|64)|f32|f64)", COMPARISON + "selp", own=True)
def selected(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    kind = found[1]
    choose = machine.pure(lambda a, b, p: np.where(p, a, b), i.operands, kind, [kind] * 2 + ["pred"])
    target, a, b, p = (machine.place(o, "pred" if n == 3 else kind) for n, o in enumerate(i.operands))

    def run(m: "Machine") -> None:
        tainted = None
        if m.undefined[p] is not None or m.undefined[a] is not None or m.undefined[b] is not None:
            # The operand that is not chosen does not matter.
            either = [m.undefined_in([slot]) for slot in (a, b, p)]
            left, right, which = (np.zeros(m.threads, np.uint8) if e is None else e for e in either)
            tainted = np.where(which != 0, np.uint8(255), np.where(m.full(m.regs[p]), left, right))
        choose(m)
        m.mark(target, tainted)

    return run


# Moves.


@rule(r"mov\.(pred|[bus](?:16|32|64)|f32|f64)", MOVE + "mov (also of packed registers)", own=True)
def moved(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    kind = found[1]
    to, source = i.operands
    move = _moving(i, machine, kind)
    targets, sources = ([machine.place(n, kind) for n in (o if isinstance(o, tuple) else (o,)) if n != "_"] for o in (to, source))
    part = bits_of(kind) // 8 // max(len(targets), len(sources))  # bytes of a register of the packed side

    def run(m: "Machine") -> None:
        tainted = None
        if len(sources) > 1:
            for n, slot in enumerate(sources):
                if (held := m.undefined_in([slot])) is not None:
                    shifted = (held & np.uint8(2**part - 1)) << np.uint8(n * part)
                    tainted = shifted if tainted is None else tainted | shifted
        else:
            tainted = m.undefined_in(sources)
        move(m)
        names = to if isinstance(to, tuple) else (to,)
        for n, name in enumerate(names):
            if name != "_":
                apart = tainted if tainted is None or len(names) == 1 else tainted >> np.uint8(n * part) & np.uint8(2**part - 1)
                m.mark(machine.slots[name], apart)

    return run


def _moving(i: Instruction, machine: "Machine", kind: str) -> Run:
    to, source = i.operands
    if isinstance(source, tuple):  # pack
        part = bits_of(kind) // len(source)
        wide = dtype(kind)

        def pack(*parts: Array) -> Array:
            return sum((p.astype(wide) << wide(part * n) for n, p in enumerate(parts)), wide(0))

        return machine.pure(pack, (to, *source), kind, [f"b{part}"] * len(source))
    if isinstance(to, tuple):  # unpack
        part = bits_of(kind) // len(to)
        narrow = dtype(f"b{part}")
        steps = [
            machine.pure(lambda a, n=n: (a >> a.dtype.type(part * n)).astype(narrow), (name, source), f"b{part}", [kind])
            for n, name in enumerate(to)
            if name != "_"
        ]

        def unpack(m: "Machine") -> None:
            for step in steps:
                step(m)

        return unpack
    return machine.pure(lambda a: a, i.operands, kind, [kind])


@rule(r"cvta(?:\.to)?\.(?:global|shared|param|const)\.u64", MOVE + "cvta (here the generic address is the same)")
def generic_address(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    return machine.pure(lambda a: a, i.operands, "u64", ["u64"])


@rule(r"cvt\.([us](?:8|16|32|64))\.([us](?:8|16|32|64))", MOVE + "cvt (integer to integer: cut off or extended)")
def converted_integer(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    to, source = found.groups()
    target = dtype(to)
    return machine.pure(lambda a: a.astype(target), i.operands, to, [source])


@rule(r"cvt\.sat\.([us](?:8|16|32|64))\.([us](?:8|16|32|64))", MOVE + "cvt (.sat: clamped)")
def clamped_integer(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    to, source = found.groups()
    limits, held = np.iinfo(dtype(to)), np.iinfo(dtype(source))
    low, high = max(limits.min, held.min), min(limits.max, held.max)
    return machine.pure(lambda a: a.clip(low, high).astype(dtype(to)), i.operands, to, [source])
