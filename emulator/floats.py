"""Floating-point arithmetic and conversions.

What the manual calls approximate (.approx, .full) is computed in float64 and rounded to float32: closer than hardware, which may be
off by a unit or two in the last place.
"""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from .parse import Instruction, Unsupported
from .rules import Run, rule
from .values import PACKED, Array, bits_of, dtype, flushed, fused, fused16, halves, joined, narrowed, widened

if TYPE_CHECKING:
    from .machine import Machine

SINGLE = "Floating-Point Instructions: "
HALF = "Half Precision Floating-Point Instructions: "
MIXED = "Mixed Precision Floating-Point Instructions: "
CONVERSION = "Data Movement and Conversion Instructions: cvt"

Function = Callable[..., Array]


def smaller(a: Array, b: Array) -> Array:
    """min: NaN only where both are; -0.0 is below 0.0."""
    return np.where((a == 0) & (b == 0), np.where(np.signbit(a), a, b), np.fmin(a, b))


def larger(a: Array, b: Array) -> Array:
    """max: NaN only where both are; 0.0 is above -0.0."""
    return np.where((a == 0) & (b == 0), np.where(np.signbit(a), b, a), np.fmax(a, b))


def spreading(function: Function) -> Function:
    """As `function`, but NaN where either operand is (.NaN)."""
    return lambda a, b: np.where(np.isnan(a) | np.isnan(b), a.dtype.type(np.nan), function(a, b))


TWO: dict[str, Function] = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "min": smaller, "max": larger}


def canonical(x: Array) -> Array:
    """Every NaN as the one that hardware gives (PTX ISA 9.0, 9.7.3 "Floating-Point Instructions"): all bits of a positive one."""
    if x.dtype == np.float32 and np.isnan(x).any():
        return np.where(np.isnan(x), np.uint32(0x7FFFFFFF), x.view(np.uint32)).view(np.float32)
    return x


@rule(r"(add|sub|mul)(\.rn)?(\.ftz)?(\.sat)?\.(f32|f64)", SINGLE + "add, sub, mul")
@rule(r"(min|max)()(\.ftz)?(\.NaN)?\.(f32|f64)", SINGLE + "min, max (.NaN: NaN where either operand is)")
def two_numbers(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    name, _, flushes, special, kind = found.groups()
    if special == ".sat" or (flushes and kind == "f64"):
        raise Unsupported(f"{i.opcode}")
    function = spreading(TWO[name]) if special == ".NaN" else TWO[name]
    if flushes:
        plain = function
        function = lambda a, b: flushed(plain(flushed(a), flushed(b)))  # noqa: E731
    if name in ("min", "max") and len(i.operands) == 4:  # of three, from sm_100 on
        return machine.pure(lambda a, b, c: canonical(function(function(a, b), c)), i.operands, kind, [kind] * 3)
    return machine.pure(lambda a, b: canonical(function(a, b)), i.operands, kind, [kind] * 2)


@rule(r"(add|sub|mul)(\.rn)?()\.(f16|bf16|f16x2|bf16x2)", HALF + "add, sub, mul")
@rule(r"(min|max)()(\.NaN)?\.(f16|bf16|f16x2|bf16x2)", HALF + "min, max")
def two_halves(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    name, _, spreads, kind = found.groups()
    part = PACKED.get(kind, kind)
    # float32 has more than twice the bits and two: rounding the float32 result again gives what one rounding would.
    function = spreading(TWO[name]) if spreads else TWO[name]
    return _of_halves(i, machine, lambda a, b: narrowed(function(widened(a, part), widened(b, part)), part), kind, 2)


@rule(r"fma\.rn\.(f16|bf16|f16x2|bf16x2)", HALF + "fma")
def fused_halves(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    part = PACKED.get(found[1], found[1])
    return _of_halves(i, machine, lambda a, b, c: fused16(a, b, c, part), found[1], 3)


def _of_halves(i: Instruction, machine: "Machine", function: Function, kind: str, count: int) -> Run:
    """The step of a function on bits of 16-bit numbers, on one or on both of a register."""
    if kind not in PACKED:
        return machine.pure(function, i.operands, "b16", ["b16"] * count)

    def both(*packed: Array) -> Array:
        parts = [halves(p, "u16") for p in packed]
        return joined(function(*(p[0] for p in parts)), function(*(p[1] for p in parts)))

    return machine.pure(both, i.operands, "b32", ["b32"] * count)


@rule(r"(add|sub|mul)\.rn\.f32x2", SINGLE + "add, sub, mul (.f32x2: on both halves)")
def two_pairs(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    function = TWO[found[1]]
    return _of_pairs(i, machine, lambda a, b: canonical(function(a, b)), 2)


@rule(r"fma\.rn\.f32x2", SINGLE + "fma (.f32x2)")
def fused_pairs(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    return _of_pairs(i, machine, lambda a, b, c: canonical(fused(a, b, c)), 3)


def _of_pairs(i: Instruction, machine: "Machine", function: Function, count: int) -> Run:
    def both(*packed: Array) -> Array:
        parts = [[h.view(np.float32) for h in halves(p, "u32")] for p in packed]
        return joined(*(function(*(p[n] for p in parts)).view(np.uint32) for n in (0, 1)))

    return machine.pure(both, i.operands, "b64", ["b64"] * count)


@rule(r"fma\.rn(\.ftz)?\.f32", SINGLE + "fma (rounded once)")
def fused_numbers(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    if found[1]:
        function: Function = lambda a, b, c: flushed(fused(flushed(a), flushed(b), flushed(c)))  # noqa: E731
    else:
        function = fused
    return machine.pure(lambda a, b, c: canonical(function(a, b, c)), i.operands, "f32", ["f32"] * 3)


@rule(r"(add|sub)\.rn\.f32\.(f16|bf16)", MIXED + "add, sub (a narrow number and a wide one)")
def mixed(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    function, kind = TWO[found[1]], found[2]
    return machine.pure(lambda a, b: canonical(function(widened(a, kind), b)), i.operands, "f32", ["b16", "f32"])


@rule(r"(abs|neg)(\.ftz)?\.(f32|f64|f16|bf16|f16x2|bf16x2)", SINGLE + "abs, neg; " + HALF + "abs, neg")
def signs(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    if found[2]:
        raise Unsupported(f"{found[1]}.ftz")
    kind = found[3]
    bits = bits_of(kind)
    sign = 1 << (bits - 1)
    if kind.endswith("x2"):
        sign |= 1 << 15
    to = dtype(f"b{bits}")
    if found[1] == "neg":
        return machine.pure(lambda a: a ^ to(sign), i.operands, f"b{bits}", [f"b{bits}"])
    return machine.pure(lambda a: a & to(~sign & (2**bits - 1)), i.operands, f"b{bits}", [f"b{bits}"])


@rule(r"copysign\.(f32|f64)", SINGLE + "copysign (of the first, with the magnitude of the second)")
def copied_sign(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    return machine.pure(lambda a, b: np.copysign(b, a), i.operands, found[1], [found[1]] * 2)


@rule(r"div\.(?:rn|full|approx)(\.ftz)?\.(f32|f64)", SINGLE + "div")
def divided(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    flushes, kind = found.groups()
    function: Function = np.divide
    if flushes:
        function = lambda a, b: flushed(np.divide(flushed(a), flushed(b)))  # noqa: E731
    return machine.pure(lambda a, b: canonical(function(a, b)), i.operands, kind, [kind] * 2)


#: In float64, of float32 numbers.
ONE: dict[str, Function] = {
    "ex2": np.exp2, "lg2": np.log2, "rcp": lambda x: 1.0 / x, "rsqrt": lambda x: 1.0 / np.sqrt(x), "sqrt": np.sqrt,
    "sin": np.sin, "cos": np.cos, "tanh": np.tanh,
}  # fmt: skip


@rule(r"(ex2|lg2|sin|cos|rsqrt|rcp|sqrt)\.approx(\.ftz)?\.f32", SINGLE + "rcp, sqrt, rsqrt, sin, cos, lg2, ex2")
@rule(r"(rcp|sqrt)\.rn(\.ftz)?\.f32", SINGLE + "rcp, sqrt (.rn)")
@rule(r"(tanh)\.approx()\.f32", SINGLE + "tanh")
def of_one_number(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    function, flushes = ONE[found[1]], bool(found[2])

    def run(x: Array) -> Array:
        x = flushed(x) if flushes else x
        result = function(x.astype(np.float64)).astype(np.float32)
        return canonical(flushed(result) if flushes else result)

    return machine.pure(run, i.operands, "f32", ["f32"])


# Conversions.

#: Rounding to an integer by the modifier's second letter.
INTEGRAL: dict[str, Function] = {"n": np.rint, "z": np.trunc, "m": np.floor, "p": np.ceil}


@rule(r"cvt\.r([nzmp])i(\.ftz)?(?:\.sat)?\.([us](?:8|16|32|64))\.(f16|bf16|f32|f64)", CONVERSION + " (float to integer: clamped, NaN is 0)")
def to_integer(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    function, to, source = INTEGRAL[found[1]], found[3], found[4]
    limits, target = np.iinfo(dtype(to)), dtype(to)

    def run(x: Array) -> Array:
        number = widened(x, source) if bits_of(source) == 16 else x
        whole = function(number.astype(np.float64))
        low, high = whole <= limits.min, whole >= float(limits.max)
        inside = np.where(np.isnan(whole) | low | high, 0.0, whole).astype(target)
        clamped = np.where(low, target(limits.min), np.where(high, target(limits.max), inside))
        return np.where(np.isnan(whole), target(0), clamped).astype(target)

    return machine.pure(run, i.operands, to, ["b16" if bits_of(source) == 16 else source])


@rule(r"cvt\.rn\.(f16|bf16|f32|f64)\.([us](?:8|16|32|64))", CONVERSION + " (integer to float)")
def from_integer(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    to, source = found.groups()
    if bits_of(to) == 16:
        if bits_of(source) == 64:
            raise Unsupported("64-bit integers to 16-bit floats")  # float64 does not hold them all
        return machine.pure(lambda a: narrowed(a.astype(np.float64), to), i.operands, "b16", [source])
    return machine.pure(lambda a: a.astype(dtype(to)), i.operands, to, [source])


@rule(r"cvt\.r([nzmp])i(\.ftz)?\.(f32|f64)\.\3", CONVERSION + " (to an integral float)")
def to_integral(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    function, kind = INTEGRAL[found[1]], found[3]
    return machine.pure(lambda a: canonical(function(flushed(a) if found[2] else a)), i.operands, kind, [kind])


@rule(r"cvt(?:\.ftz)?\.f32\.(f16|bf16)", CONVERSION + " (16 bits to float32)")
def to_single(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    return machine.pure(lambda a: canonical(widened(a, found[1])), i.operands, "f32", ["b16"])


@rule(r"cvt\.f64\.f32", CONVERSION + " (float32 to float64)")
def to_double(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    return machine.pure(lambda a: a.astype(np.float64), i.operands, "f64", ["f32"])


@rule(r"cvt\.rn\.f32\.f64", CONVERSION + " (float64 to float32)")
def from_double(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    return machine.pure(lambda a: canonical(a.astype(np.float32)), i.operands, "f32", ["f64"])


@rule(r"cvt\.rn\.(f16|bf16)\.f(32|64)", CONVERSION + " (to 16 bits)")
def to_half(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    return machine.pure(lambda a: narrowed(a, found[1]), i.operands, "b16", [f"f{found[2]}"])


@rule(r"cvt\.rn(\.relu)?\.(f16x2|bf16x2)\.f32", CONVERSION + " (two numbers to one register, the first to its upper half)")
def to_two_halves(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    kind = PACKED[found[2]]
    cut: Function = (lambda x: np.where(np.isnan(x), x, np.maximum(x, np.float32(0)))) if found[1] else (lambda x: x)
    return machine.pure(lambda a, b: joined(narrowed(cut(b), kind), narrowed(cut(a), kind)), i.operands, "b32", ["f32"] * 2)


@rule(r"cvt\.rna(?:\.satfinite)?\.tf32\.f32", CONVERSION + " (to tf32: 10 bits of fraction, ties away from zero)")
def to_tf32(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    def run(bits: Array) -> Array:
        rounded = (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
        special = (bits & np.uint32(0x7F800000)) == np.uint32(0x7F800000)
        return np.where(special, bits, rounded)

    return machine.pure(run, i.operands, "b32", ["b32"])
