"""Comparisons, selections, moves, and conversions between integers.

Sources: PTX ISA 9.0, 9.7.6 "Comparison and Selection Instructions", 9.7.9.3 "mov", 9.7.9.7 "prmt", 9.7.9.20 "cvta", 9.7.9.21 "cvt".
"""

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from .integers import LOGIC
from .parse import Instruction, Unsupported
from .rules import Run, rule
from .values import Array, bits_of, dtype, widened

if TYPE_CHECKING:
    from .machine import Machine

MOVE = "Data Movement and Conversion Instructions: "
COMPARISON = "Comparison and Selection Instructions: "


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
