"""Each instruction that the emulator knows, on PTX written by hand, against a formula of its own.

Integers: Python's, which have no width. Floating point: exact fractions, rounded once by `rounded`. Nothing here comes from the emulator
but the machine that runs the program.
"""

import math
import re
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emulator import Unsupported
from emulator.machine import supported
from emulator.manual import numbers
from tests import ptx

THREADS = 128
#: Numbers at which instructions differ from what one would think, of any width.
EDGES = [0, 1, 2, 3, 7, 8, 31, 32, 33, 63, 64, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
EDGES += [0x7FFFFFFFFFFFFFFF, 0x8000000000000000, 0xFFFFFFFFFFFFFFFF]


def given(seed: int, small: bool) -> list[tuple[int, int, int]]:
    """Three numbers of 64 bits per thread: edges with edges, then any; where `small`, the second and third are shifts and lengths."""
    generator = np.random.default_rng(seed)
    first = [EDGES[i % len(EDGES)] if i < 64 else int(generator.integers(2**64, dtype=np.uint64)) for i in range(THREADS)]
    other = [EDGES[(5 * i + i // 24) % len(EDGES)] if i < 64 else int(generator.integers(2**64, dtype=np.uint64)) for i in range(THREADS)]
    third = [EDGES[(7 * i + 3) % len(EDGES)] if i < 64 else int(generator.integers(2**64, dtype=np.uint64)) for i in range(THREADS)]
    if small:
        other, third = ([int(n) for n in generator.integers(0, 70, THREADS)] for _ in range(2))
    return list(zip(first, other, third, strict=True))


#: Loads of a thread's three numbers, as 64, 32, 16 bits and as predicates; and what stores the result.
LOAD = "".join(
    f"ld.global.b64 %rd{10 + n}, [%rd9+{8 * n}]; cvt.u32.u64 %r{10 + n}, %rd{10 + n}; cvt.u16.u64 %rs{10 + n}, %rd{10 + n};\n"
    f"and.b64 %rd20, %rd{10 + n}, 1; setp.ne.b64 %p{10 + n}, %rd20, 0;\n"
    for n in range(3)
)
NAMES = {"64": "%rd", "32": "%r", "16": "%rs", "p": "%p"}


def execute(instruction: str, numbers: list[tuple[int, int, int]], result: str) -> list[int]:
    """The result of `instruction` in each thread. In it a64, b32, c16, ap stand for the numbers, d32 for the result of that width."""

    def register(found: re.Match[str]) -> str:
        letter, width = found.groups()
        return NAMES[width] + str(90 if letter == "d" else 10 + "abc".index(letter))

    text = re.sub(r"(?<!\.)\b([abcd])(64|32|16|p)\b", register, instruction)
    to = {
        "64": "mov.b64 %rd91, %rd90;",
        "32": "cvt.u64.u32 %rd91, %r90;",
        "16": "cvt.u64.u16 %rd91, %rs90;",
        "p": "selp.b64 %rd91, 1, 0, %p90;",
    }
    body = f"mul.wide.u32 %rd8, %r1, 24; add.s64 %rd9, %rd1, %rd8;\n{LOAD}\n{text}\n{to[result]}\n"
    body += "mul.wide.u32 %rd8, %r1, 8; add.s64 %rd9, %rd2, %rd8; st.global.b64 [%rd9], %rd91;"
    data = np.array(numbers, np.uint64)
    return [int(n) for n in ptx.run(body, data, threads=THREADS, result=np.zeros(THREADS, np.uint64))]


def signed(a: int, bits: int) -> int:
    a &= 2**bits - 1
    return a - 2**bits if a >> (bits - 1) else a


def of(kind: str, a: int) -> int:
    """The number that the low bits of `a` are in the type s32, u16, b64 ..."""
    bits = int(kind[1:])
    return signed(a, bits) if kind[0] == "s" else a & (2**bits - 1)


def toward_zero(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


Formula = Callable[..., int]
INTEGERS: list[tuple[str, str, Formula]] = []
for kind in ("s16", "u16", "s32", "u32", "s64", "u64"):
    n = kind[1:]
    wrapped = {
        "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "min": min, "max": max, "mul.lo": lambda a, b: a * b,
        "div": lambda a, b: toward_zero(a, b) if b else None, "rem": lambda a, b: a - toward_zero(a, b) * b if b else None,
        "mul.hi": lambda a, b, n=n: (a * b) >> int(n),
    }  # fmt: skip
    for name, function in wrapped.items():
        INTEGERS.append((f"{name}.{kind} d{n}, a{n}, b{n};", n, lambda a, b, c, f=function, k=kind: f(of(k, a), of(k, b))))
    INTEGERS.append((f"mad.lo.{kind} d{n}, a{n}, b{n}, c{n};", n, lambda a, b, c: a * b + c))
    INTEGERS.append(
        (f"mad.hi.{kind} d{n}, a{n}, b{n}, c{n};", n, lambda a, b, c, k=kind, n=n: ((of(k, a) * of(k, b)) >> int(n)) + of(k, c))
    )
    INTEGERS.append((f"sad.{kind} d{n}, a{n}, b{n}, c{n};", n, lambda a, b, c, k=kind: of(k, c) + abs(of(k, a) - of(k, b))))
    if n != "64":
        wide = str(2 * int(n))
        INTEGERS.append((f"mul.wide.{kind} d{wide}, a{n}, b{n};", wide, lambda a, b, c, k=kind: of(k, a) * of(k, b)))
        INTEGERS.append((f"mad.wide.{kind} d{wide}, a{n}, b{n}, c{wide};", wide, lambda a, b, c, k=kind: of(k, a) * of(k, b) + c))
    if kind[0] == "s":
        INTEGERS.append((f"abs.{kind} d{n}, a{n};", n, lambda a, b, c, k=kind: abs(of(k, a))))
        INTEGERS.append((f"neg.{kind} d{n}, a{n};", n, lambda a, b, c, k=kind: -of(k, a)))
    for how, holds in {"eq": lambda a, b: a == b, "lt": lambda a, b: a < b, "ge": lambda a, b: a >= b, "le": lambda a, b: a <= b}.items():
        INTEGERS.append((f"setp.{how}.{kind} dp, a{n}, b{n};", "p", lambda a, b, c, f=holds, k=kind: int(f(of(k, a), of(k, b)))))
for width in ("16", "32", "64"):
    INTEGERS += [
        (f"and.b{width} d{width}, a{width}, b{width};", width, lambda a, b, c: a & b),
        (f"or.b{width} d{width}, a{width}, b{width};", width, lambda a, b, c: a | b),
        (f"xor.b{width} d{width}, a{width}, b{width};", width, lambda a, b, c: a ^ b),
        (f"not.b{width} d{width}, a{width};", width, lambda a, b, c: ~a),
        (f"mov.b{width} d{width}, a{width};", width, lambda a, b, c: a),
        (f"selp.b{width} d{width}, a{width}, b{width}, cp;", width, lambda a, b, c: a if c & 1 else b),
        (f"setp.ne.b{width} dp, a{width}, b{width};", "p", lambda a, b, c, w=int(width): int(a % 2**w != b % 2**w)),
    ]
INTEGERS += [
    ("and.pred dp, ap, bp;", "p", lambda a, b, c: a & b & 1),
    ("or.pred dp, ap, bp;", "p", lambda a, b, c: (a | b) & 1),
    ("xor.pred dp, ap, bp;", "p", lambda a, b, c: (a ^ b) & 1),
    ("not.pred dp, ap;", "p", lambda a, b, c: ~a & 1),
    ("mov.pred dp, ap;", "p", lambda a, b, c: a & 1),
    ("setp.gt.and.s32 dp, a32, b32, cp;", "p", lambda a, b, c: int(signed(a, 32) > signed(b, 32)) & c & 1),
    ("setp.ge.or.u32 dp, a32, b32, !cp;", "p", lambda a, b, c: int(a % 2**32 >= b % 2**32) | (~c & 1)),
    ("setp.hi.u32 dp, a32, b32;", "p", lambda a, b, c: int(a % 2**32 > b % 2**32)),
    ("add.sat.s32 d32, a32, b32;", "32", lambda a, b, c: max(-(2**31), min(2**31 - 1, signed(a, 32) + signed(b, 32)))),
    ("sub.sat.s32 d32, a32, b32;", "32", lambda a, b, c: max(-(2**31), min(2**31 - 1, signed(a, 32) - signed(b, 32)))),
    ("max.relu.s32 d32, a32, b32;", "32", lambda a, b, c: max(0, signed(a, 32), signed(b, 32))),
    ("min.relu.s32 d32, a32, b32;", "32", lambda a, b, c: max(0, min(signed(a, 32), signed(b, 32)))),
    ("add.s16x2 d32, a32, b32;", "32", lambda a, b, c: (a + b) % 2**16 | ((a >> 16) + (b >> 16)) % 2**16 << 16),
    *(
        (
            f"{name}.{sign}16x2 d32, a32, b32;", "32",
            lambda a, b, c, f=f, s=sign: sum((f(of(f"{s}16", a >> at), of(f"{s}16", b >> at)) % 2**16) << at for at in (0, 16)),
        )
        for name, f in (("max", max), ("min", min)) for sign in "us"
    ),
    ("popc.b32 d32, a32;", "32", lambda a, b, c: (a % 2**32).bit_count()),
    ("popc.b64 d32, a64;", "32", lambda a, b, c: a.bit_count()),
    ("clz.b32 d32, a32;", "32", lambda a, b, c: 32 - (a % 2**32).bit_length()),
    ("clz.b64 d32, a64;", "32", lambda a, b, c: 64 - a.bit_length()),
    ("brev.b32 d32, a32;", "32", lambda a, b, c: int(f"{a % 2**32:032b}"[::-1], 2)),
    ("brev.b64 d64, a64;", "64", lambda a, b, c: int(f"{a:064b}"[::-1], 2)),
    ("bfind.u32 d32, a32;", "32", lambda a, b, c: (a % 2**32).bit_length() - 1),
    ("bfind.s32 d32, a32;", "32", lambda a, b, c: (signed(a, 32) if signed(a, 32) >= 0 else ~signed(a, 32)).bit_length() - 1),
    ("bfind.shiftamt.u32 d32, a32;", "32", lambda a, b, c: 32 - (a % 2**32).bit_length() if a % 2**32 else -1),
    (
        "dp4a.s32.s32 d32, a32, b32, c32;", "32",
        lambda a, b, c: c + sum(signed(a >> s, 8) * signed(b >> s, 8) for s in (0, 8, 16, 24)),
    ),
    (
        "dp4a.u32.s32 d32, a32, b32, c32;", "32",
        lambda a, b, c: c + sum((a >> s & 255) * signed(b >> s, 8) for s in (0, 8, 16, 24)),
    ),
    (
        "lop3.b32 d32, a32, b32, c32, 0x6A;", "32",
        lambda a, b, c: sum((0x6A >> ((a >> i & 1) << 2 | (b >> i & 1) << 1 | (c >> i & 1)) & 1) << i for i in range(32)),
    ),
    ("prmt.b32 d32, a32, b32, 0x7610;", "32", lambda a, b, c: a & 0xFFFF | b & 0xFFFF0000),
    ("prmt.b32 d32, a32, b32, 0xB9C2;", "32", lambda a, b, c: bytes_of_prmt(a, b, 0xB9C2)),
    ("prmt.b32 d32, a32, b32, c32;", "32", lambda a, b, c: bytes_of_prmt(a, b, c)),
    ("mov.b64 d64, {a32, b32};", "64", lambda a, b, c: a % 2**32 | b % 2**32 << 32),
    ("mov.b32 d32, {a16, b16};", "32", lambda a, b, c: a % 2**16 | b % 2**16 << 16),
    ("mov.b64 {%r80, d32}, a64;", "32", lambda a, b, c: a >> 32),
    ("mov.b32 {d16, %rs80}, a32;", "16", lambda a, b, c: a),
    ("cvta.to.global.u64 d64, a64;", "64", lambda a, b, c: a),
    ("{ .reg .b32 %t; not.b32 %t, a32; xor.b32 d32, %t, b32; }", "32", lambda a, b, c: ~a ^ b),
]  # fmt: skip
#: Of shifts and of fields, whose second and third number are small.
SHIFTS: list[tuple[str, str, Formula]] = []
for width in (16, 32, 64):
    SHIFTS += [
        (f"shl.b{width} d{width}, a{width}, b32;", str(width), lambda a, b, c: a << b),
        (f"shr.u{width} d{width}, a{width}, b32;", str(width), lambda a, b, c, w=width: a % 2**w >> b),
        (f"shr.s{width} d{width}, a{width}, b32;", str(width), lambda a, b, c, w=width: signed(a, w) >> b),
    ]
for width in (32, 64):

    def insert(a: int, b: int, start: int, length: int, w: int) -> int:
        mask = ((1 << length) - 1) << start
        return b & ~mask | (a << start) & mask

    def field(a: int, start: int, length: int, w: int, keeps_sign: bool) -> int:
        """Bit by bit as the manual's program: beyond the register, and beyond the field, stands the sign."""
        number = a % 2**w
        sign = number >> min(start + length - 1, w - 1) & 1 if keeps_sign and length else 0
        return sum((number >> (start + i) & 1 if i < length and start + i < w else sign) << i for i in range(w))

    SHIFTS += [
        (f"bfe.u{width} d{width}, a{width}, b32, c32;", str(width), lambda a, b, c, w=width, f=field: f(a, b, c, w, False)),
        (f"bfe.s{width} d{width}, a{width}, b32, c32;", str(width), lambda a, b, c, w=width, f=field: f(a, b, c, w, True)),
        (f"bfi.b{width} d{width}, a{width}, a{width}, b32, c32;", str(width), lambda a, b, c, w=width, f=insert: f(a, a, b, c, w)),
    ]
SHIFTS += [
    ("shf.l.wrap.b32 d32, a32, %r80, b32;", "32", lambda a, b, c: ((a % 2**32 | 0x12345678 << 32) << (b & 31)) >> 32),
    ("shf.r.wrap.b32 d32, a32, %r80, b32;", "32", lambda a, b, c: (a % 2**32 | 0x12345678 << 32) >> (b & 31)),
    ("shf.l.clamp.b32 d32, a32, %r80, b32;", "32", lambda a, b, c: ((a % 2**32 | 0x12345678 << 32) << min(b, 32)) >> 32),
    ("shf.r.clamp.b32 d32, a32, %r80, b32;", "32", lambda a, b, c: (a % 2**32 | 0x12345678 << 32) >> min(b, 32)),
]
for to in ("s8", "u8", "s16", "u16", "s32", "u32", "s64", "u64"):
    for source in ("s8", "u8", "s16", "u16", "s32", "u32", "s64", "u64"):
        out, into = (str(max(16, int(k[1:]))) for k in (to, source))
        # A register wider than the destination is filled up by the destination's sign.
        INTEGERS.append((f"cvt.{to}.{source} d{out}, a{into};", out, lambda a, b, c, t=to, s=source: of(t, of(s, a))))
        low, high = (-(2 ** (int(to[1:]) - 1)), 2 ** (int(to[1:]) - 1) - 1) if to[0] == "s" else (0, 2 ** int(to[1:]) - 1)
        INTEGERS.append(
            (f"cvt.sat.{to}.{source} d{out}, a{into};", out, lambda a, b, c, s=source, low=low, high=high: max(low, min(high, of(s, a))))
        )


def bytes_of_prmt(a: int, b: int, selector: int) -> int:
    eight = [(a >> 8 * i) & 255 for i in range(4)] + [(b >> 8 * i) & 255 for i in range(4)]
    found = 0
    for i in range(4):
        nibble = selector >> 4 * i & 15
        byte = eight[nibble & 7]
        found |= ((255 if byte & 128 else 0) if nibble & 8 else byte) << 8 * i
    return found


@pytest.mark.parametrize(("instruction", "result", "formula"), INTEGERS, ids=[i[0] for i in INTEGERS])
def test_integer_instructions(instruction: str, result: str, formula: Formula) -> None:
    check(instruction, result, formula, given(len(instruction), False))


@pytest.mark.parametrize(("instruction", "result", "formula"), SHIFTS, ids=[i[0] for i in SHIFTS])
def test_shifts_and_fields(instruction: str, result: str, formula: Formula) -> None:
    check(f"mov.b32 %r80, 0x12345678; {instruction}", result, formula, given(len(instruction), True))


def check(instruction: str, result: str, formula: Formula, numbers: list[tuple[int, int, int]]) -> None:
    mask = 1 if result == "p" else 2 ** int(result) - 1
    for triple, actual in zip(numbers, execute(instruction, numbers, result), strict=True):
        expected = formula(*triple)
        if expected is not None:  # what the manual leaves open: division by zero
            assert actual == expected & mask, f"{instruction} of {[hex(n) for n in triple]}: {actual:#x}, expected {expected & mask:#x}"


# Floating point. A number is a Fraction, or "nan", "inf", "-inf", "-0".

#: Format -> (bits of the significand, smallest exponent of a normal number, bits of the exponent).
FORMATS = {"f16": (11, -14, 5), "bf16": (8, -126, 8), "f32": (24, -126, 8), "f64": (53, -1022, 11)}
Number = Any


def decoded(bits: int, kind: str) -> Number:
    """The number that these bits are: a Fraction, -0.0, or a float that is NaN or infinite."""
    precision, lowest, exponent_bits = FORMATS[kind]
    width = precision + exponent_bits
    bits &= 2**width - 1
    sign, exponent, fraction = bits >> (width - 1), bits >> (precision - 1) & (2**exponent_bits - 1), bits & (2 ** (precision - 1) - 1)
    if exponent == 2**exponent_bits - 1:
        return math.nan if fraction else (-math.inf if sign else math.inf)
    scale = Fraction(2) ** (max(exponent, 1) + lowest - 1 - (precision - 1))
    size = Fraction(fraction + (2 ** (precision - 1) if exponent else 0)) * scale
    return -0.0 if sign and not size else (-size if sign else size)


def magnitude(x: Fraction) -> int:
    """The exponent e with 2**e <= |x| < 2**(e + 1); 0 has a small one."""
    if not x:
        return -(10**6)
    guess = abs(x).numerator.bit_length() - x.denominator.bit_length()
    return guess if abs(x) >= Fraction(2) ** guess else guess - 1


def rounded(x: Number, kind: str) -> Number:
    """`x` in the format, to nearest, ties to even."""
    if isinstance(x, float) or x == 0:
        return x
    precision, lowest, exponent_bits = FORMATS[kind]
    exponent = max(magnitude(x), lowest)
    unit = Fraction(2) ** (exponent - precision + 1)
    steps = x / unit
    whole = math.floor(steps)
    rest = steps - whole
    if rest > Fraction(1, 2) or (rest == Fraction(1, 2) and whole % 2):
        whole += 1
    found = whole * unit
    largest = (2 - Fraction(2) ** (1 - precision)) * Fraction(2) ** (2 ** (exponent_bits - 1) - 1)
    if abs(found) > largest:
        return math.inf if found > 0 else -math.inf
    return found if found else (-0.0 if x < 0 else Fraction(0))


def encoded(x: Number, kind: str) -> int:
    """The bits of a number of the format; NaN as all bits of a positive one below the sign."""
    precision, lowest, exponent_bits = FORMATS[kind]
    width = precision + exponent_bits
    if isinstance(x, float):
        if math.isnan(x):
            return 2 ** (width - 1) - 1
        if math.isinf(x):
            return (2**exponent_bits - 1) << (precision - 1) | (x < 0) << (width - 1)
        return (math.copysign(1, x) < 0) << (width - 1)
    exponent = max(magnitude(x), lowest)
    fraction = abs(x) / Fraction(2) ** (exponent - precision + 1)
    assert fraction.denominator == 1
    whole = fraction.numerator
    held = whole if whole < 2 ** (precision - 1) else (exponent - lowest + 1 << (precision - 1)) + whole - 2 ** (precision - 1)
    return held | (x < 0) << (width - 1)


def plus(a: Number, b: Number) -> Number:
    if isinstance(a, float) or isinstance(b, float) or (a == 0 and b == 0):
        result = float(a) + float(b) if not finite(a, b) or (a == 0 and b == 0) else (b if a == 0 else a)
        return (
            result if isinstance(result, float) and (result != result or math.isinf(result) or str(result) == "-0.0") else Fraction(result)
        )
    return a + b


def times(a: Number, b: Number) -> Number:
    if isinstance(a, float) or isinstance(b, float) or a == 0 or b == 0:
        if not finite(a, b):
            if a != a or b != b or a == 0 or b == 0:
                return math.nan
            return math.inf if (sign(a) < 0) == (sign(b) < 0) else -math.inf
        return -0.0 if (sign(a) < 0) != (sign(b) < 0) else Fraction(0)
    return a * b


def over(a: Number, b: Number) -> Number:
    if a != a or b != b:
        return math.nan
    negative = (sign(a) < 0) != (sign(b) < 0)
    if not finite(a):
        return math.nan if not finite(b) else (-math.inf if negative else math.inf)
    if b == 0:
        return math.nan if a == 0 else (-math.inf if negative else math.inf)
    if a == 0 or not finite(b):
        return -0.0 if negative else Fraction(0)
    return a / b


def finite(*numbers: Number) -> bool:
    return all(not isinstance(n, float) or math.isfinite(n) for n in numbers)


def sign(a: Number) -> int:
    return -1 if (math.copysign(1, a) < 0 if isinstance(a, float) else a < 0) else 1


def order(a: Number) -> tuple[Any, int]:
    """By size, -0.0 below 0."""
    return (a if finite(a) and not isinstance(a, float) else (Fraction(0) if a == 0 else Fraction(10) ** 400 * sign(a))), sign(a)


def smaller(a: Number, b: Number) -> Number:
    return b if a != a else a if b != b else min(a, b, key=order)


def larger(a: Number, b: Number) -> Number:
    return b if a != a else a if b != b else max(a, b, key=order)


def spread(function: Callable[[Number, Number], Number]) -> Callable[[Number, Number], Number]:
    return lambda a, b: math.nan if a != a or b != b else function(a, b)


def negated(a: Number) -> Number:
    return -a if isinstance(a, float) or a else -0.0


def flush(a: Number) -> Number:
    return (-0.0 if a < 0 else Fraction(0)) if finite(a) and a != 0 and abs(a) < Fraction(2) ** -126 else a


BINARY = {"add": plus, "sub": lambda a, b: plus(a, negated(b)), "mul": times, "min": smaller, "max": larger}
#: Bits of numbers that rounding, overflow and specials meet, by format.
SPECIALS = {
    "f16": [0, 0x8000, 1, 0x3FF, 0x400, 0x3C00, 0xBC00, 0x3C01, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00, 0x0200, 0x1400],
    "bf16": [0, 0x8000, 1, 0x7F, 0x80, 0x3F80, 0xBF80, 0x3F81, 0x7F7F, 0xFF7F, 0x7F80, 0xFF80, 0x7FC0, 0x3B80, 0x4380],
    "f32": [0, 0x80000000, 1, 0x7FFFFF, 0x800000, 0x3F800000, 0xBF800000, 0x3F800001, 0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000, 0xFF800000,
            0x7FC00000, 0x33800000, 0x4B000001],
    "f64": [0, 1 << 63, 1, 0x3FF0000000000000, 0xBFF0000000000000, 0x7FEFFFFFFFFFFFFF, 0x7FF0000000000000, 0xFFF0000000000000,
            0x7FF8000000000000, 0x3CA0000000000000, 0x36A0000000000000, 0x47EFFFFFE0000000, 0x3FF0000010000000],
}  # fmt: skip


def floats(kind: str, seed: int = 0) -> list[tuple[int, int, int]]:
    """Three numbers of the format per thread as bits: specials with specials, numbers of similar size, any bits."""
    generator = np.random.default_rng([seed, *kind.encode()])
    precision, _, exponent_bits = FORMATS[kind]
    width, specials = precision + exponent_bits, SPECIALS[kind]
    found = []
    for i in range(THREADS):
        if i < 64:
            found.append(
                (specials[i % len(specials)], specials[(i // len(specials) + 3 * i) % len(specials)], specials[5 * i % len(specials)])
            )
            continue
        bits = [int(generator.integers(2**width, dtype=np.uint64)) for _ in range(3)]
        if i < 112:  # exponents close to that of 1
            mask = (2**exponent_bits - 1) << (precision - 1)
            middle = (2 ** (exponent_bits - 1) - 1) << (precision - 1)
            bits = [b & ~mask | middle + (int(generator.integers(-3, 4)) << (precision - 1)) for b in bits]
        found.append((bits[0], bits[1], bits[2]))
    return found


FLOATING: list[tuple[str, str, str, Callable[..., Number], str]] = []
for kind in ("f32", "f64", "f16", "bf16"):
    n = {"f32": "32", "f64": "64"}.get(kind, "16")
    for name, function in BINARY.items():
        rounding = ".rn" if name in ("add", "mul") else ""
        FLOATING.append(
            (f"{name}{rounding}.{kind} d{n}, a{n}, b{n};", n, kind, lambda a, b, c, f=function, k=kind: rounded(f(a, b), k), kind)
        )
    for name in ("min", "max"):
        FLOATING.append((f"{name}.NaN.{kind} d{n}, a{n}, b{n};", n, kind, lambda a, b, c, f=BINARY[name]: spread(f)(a, b), kind))
    if kind != "f64":
        FLOATING.append((f"fma.rn.{kind} d{n}, a{n}, b{n}, c{n};", n, kind, lambda a, b, c, k=kind: rounded(plus(times(a, b), c), k), kind))
    if kind in ("f32", "f64"):
        FLOATING.append((f"div.rn.{kind} d{n}, a{n}, b{n};", n, kind, lambda a, b, c, k=kind: rounded(over(a, b), k), kind))
for name, function in BINARY.items():
    FLOATING.append(
        (f"{name}.ftz.f32 d32, a32, b32;", "32", "f32", lambda a, b, c, f=function: flush(rounded(f(flush(a), flush(b)), "f32")), "f32")
    )
FLOATING += [
    ("fma.rn.ftz.f32 d32, a32, b32, c32;", "32", "f32",
     lambda a, b, c: flush(rounded(plus(times(flush(a), flush(b)), flush(c)), "f32")), "f32"),
    ("div.full.f32 d32, a32, b32;", "32", "f32", lambda a, b, c: rounded(over(a, b), "f32"), "f32"),
    ("div.full.ftz.f32 d32, a32, b32;", "32", "f32", lambda a, b, c: flush(rounded(over(flush(a), flush(b)), "f32")), "f32"),
    ("rcp.rn.f32 d32, a32;", "32", "f32", lambda a, b, c: rounded(over(Fraction(1), a), "f32"), "f32"),
    ("copysign.f32 d32, a32, b32;", "32", "f32", lambda a, b, c: b if b != b else negated(b) if sign(a) != sign(b) else b, "f32"),
    ("cvt.f32.f16 d32, a16;", "32", "f16", lambda a, b, c: a, "f32"),
    ("cvt.f32.bf16 d32, a16;", "32", "bf16", lambda a, b, c: a, "f32"),
    ("cvt.f64.f32 d64, a32;", "64", "f32", lambda a, b, c: a, "f64"),
    ("cvt.rn.f32.f64 d32, a64;", "32", "f64", lambda a, b, c: rounded(a, "f32"), "f32"),
    ("cvt.rn.f16.f32 d16, a32;", "16", "f32", lambda a, b, c: rounded(a, "f16"), "f16"),
    ("cvt.rn.bf16.f32 d16, a32;", "16", "f32", lambda a, b, c: rounded(a, "bf16"), "bf16"),
    ("cvt.rn.f16.f64 d16, a64;", "16", "f64", lambda a, b, c: rounded(a, "f16"), "f16"),
    ("cvt.rn.bf16.f64 d16, a64;", "16", "f64", lambda a, b, c: rounded(a, "bf16"), "bf16"),
    *(
        (f"cvt.r{way}i.f32.f32 d32, a32;", "32", "f32", lambda a, b, c, f=f: integral(a, f), "f32")
        for way, f in (("n", round), ("z", math.trunc), ("m", math.floor), ("p", math.ceil))
    ),
]  # fmt: skip


FLOATING += [
    (f"{name}.f32 d32, a32, b32, c32;", "32", "f32", lambda a, b, c, f=f: f(f(a, b), c), "f32")
    for name, f in (("min", smaller), ("max", larger))
]


def integral(a: Number, function: Callable[[Fraction], int]) -> Number:
    if isinstance(a, float):
        return a
    whole = function(a)
    return Fraction(whole) if whole or not a < 0 else -0.0


@pytest.mark.parametrize(("instruction", "result", "kind", "formula", "to"), FLOATING, ids=[f[0] for f in FLOATING])
def test_floating_point_instructions(instruction: str, result: str, kind: str, formula: Callable[..., Number], to: str) -> None:
    numbers = floats(kind)
    width = sum(FORMATS[to][::2])
    nan_mask = (2 ** FORMATS[to][2] - 1) << (FORMATS[to][0] - 1)
    for triple, actual in zip(numbers, execute(instruction, numbers, result), strict=True):
        expected = encoded(formula(*(decoded(n, kind) for n in triple)), to)
        if expected == 2 ** (width - 1) - 1:  # NaN, whatever its bits
            assert actual & nan_mask == nan_mask, f"{instruction} of {[hex(n) for n in triple]}: {actual:#x}"
            assert actual & (2 ** (FORMATS[to][0] - 1) - 1)
        else:
            assert actual == expected, f"{instruction} of {[hex(n) for n in triple]}: {actual:#x}, expected {expected:#x}"


SIGNS = [(f"{name}.{kind}", kind) for name in ("abs", "neg") for kind in ("f32", "f64", "f16", "bf16", "f16x2", "bf16x2")]


@pytest.mark.parametrize(("opcode", "kind"), SIGNS, ids=[s[0] for s in SIGNS])
def test_signs_are_bits(opcode: str, kind: str) -> None:
    width = {"f16": 16, "bf16": 16, "f64": 64}.get(kind, 32)
    bit = 1 << (width - 1) | (1 << 15 if kind.endswith("x2") else 0)
    check(
        f"{opcode} d{width}, a{width};", str(width), lambda a, b, c: a ^ bit if opcode.startswith("neg") else a & ~bit, given(width, False)
    )


PAIRS = [
    (f"{name}{'.rn' if name in ('add', 'mul') else ''}.{kind}x2", name, kind)
    for kind in ("f16", "bf16") for name in ("add", "sub", "mul", "min", "max")
] + [(f"fma.rn.{kind}x2", "fma", kind) for kind in ("f16", "bf16")]  # fmt: skip


@pytest.mark.parametrize(("opcode", "name", "kind"), PAIRS, ids=[p[0] for p in PAIRS])
def test_packed_halves_are_two_numbers(opcode: str, name: str, kind: str) -> None:
    low, high = floats(kind, 1), floats(kind, 2)
    numbers = [tuple(a | b << 16 for a, b in zip(x, y, strict=True)) for x, y in zip(low, high, strict=True)]
    operands = "a32, b32, c32" if name == "fma" else "a32, b32"
    for x, y, actual in zip(low, high, execute(f"{opcode} d32, {operands};", numbers, "32"), strict=True):  # type: ignore[arg-type]
        for triple, half in ((x, actual & 0xFFFF), (y, actual >> 16)):
            a, b, c = (decoded(n, kind) for n in triple)
            expected = encoded(rounded(plus(times(a, b), c) if name == "fma" else BINARY[name](a, b), kind), kind)
            assert half == expected or (expected == 0x7FFF and decoded(half, kind) != decoded(half, kind)), (opcode, triple)


@pytest.mark.parametrize("name", ["add", "sub", "mul", "fma"])
def test_packed_singles_are_two_numbers(name: str) -> None:
    low, high = floats("f32", 1), floats("f32", 2)
    numbers = [tuple(a | b << 32 for a, b in zip(x, y, strict=True)) for x, y in zip(low, high, strict=True)]
    operands = "a64, b64, c64" if name == "fma" else "a64, b64"
    for x, y, actual in zip(low, high, execute(f"{name}.rn.f32x2 d64, {operands};", numbers, "64"), strict=True):  # type: ignore[arg-type]
        for triple, half in ((x, actual % 2**32), (y, actual >> 32)):
            a, b, c = (decoded(n, "f32") for n in triple)
            expected = encoded(rounded(plus(times(a, b), c) if name == "fma" else BINARY[name](a, b), "f32"), "f32")
            assert half == expected or (expected == 0x7FFFFFFF and decoded(half, "f32") != decoded(half, "f32")), (name, triple)


@pytest.mark.parametrize(("name", "kind"), [(n, k) for n in ("add", "sub") for k in ("f16", "bf16")])
def test_mixed_precision_widens_the_first_operand(name: str, kind: str) -> None:
    narrow, wide = floats(kind), floats("f32")
    numbers = [(a[0], b[1], 0) for a, b in zip(narrow, wide, strict=True)]
    for triple, actual in zip(numbers, execute(f"{name}.rn.f32.{kind} d32, a16, b32;", numbers, "32"), strict=True):
        a, b = decoded(triple[0], kind), decoded(triple[1], "f32")
        expected = encoded(rounded(BINARY[name](a, b), "f32"), "f32")
        assert actual == expected or (expected == 0x7FFFFFFF and decoded(actual, "f32") != decoded(actual, "f32"))


#: setp on floats: what is true of ordered numbers, and whether NaN makes it true.
COMPARISONS = {
    "eq": lambda a, b: a == b, "ne": lambda a, b: a != b, "lt": lambda a, b: a < b, "le": lambda a, b: a <= b, "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["f16", "bf16", "f32", "f64"])
@pytest.mark.parametrize("how", [*COMPARISONS, *(f"{c}u" for c in COMPARISONS), "num", "nan"])
def test_comparisons_of_floats(how: str, kind: str) -> None:
    width = {"f32": "32", "f64": "64"}.get(kind, "16")

    def formula(a: int, b: int, c: int) -> int:
        x, y = decoded(a, kind), decoded(b, kind)
        unordered = x != x or y != y
        if how in ("num", "nan"):
            return int(unordered == (how == "nan"))
        test = COMPARISONS[how.removesuffix("u")]
        return int(how.endswith("u") or test(1, 1) is None) if unordered else int(test(x, y))

    check(f"setp.{how}.{kind} dp, a{width}, b{width};", "p", formula, floats(kind))


INTEGRAL = {"n": round, "z": math.trunc, "m": math.floor, "p": math.ceil}


@pytest.mark.parametrize("source", ["f16", "bf16", "f32", "f64"])
@pytest.mark.parametrize("to", ["s8", "u8", "s16", "s32", "u32", "s64", "u64"])
@pytest.mark.parametrize("way", INTEGRAL)
def test_floats_to_integers_are_clamped(way: str, to: str, source: str) -> None:
    width = {"f32": "32", "f64": "64"}.get(source, "16")
    out = str(max(16, int(to[1:])))
    low, high = (-(2 ** (int(to[1:]) - 1)), 2 ** (int(to[1:]) - 1) - 1) if to[0] == "s" else (0, 2 ** int(to[1:]) - 1)

    def formula(a: int, b: int, c: int) -> int:
        x = decoded(a, source)
        if x != x:
            return 0
        return (low if x < 0 else high) if not finite(x) else max(low, min(high, INTEGRAL[way](Fraction(x))))

    check(f"cvt.r{way}i.{to}.{source} d{out}, a{width};", out, formula, floats(source, 3))


@pytest.mark.parametrize("source", ["s8", "u8", "s16", "u16", "s32", "u32", "s64", "u64"])
@pytest.mark.parametrize("to", ["f16", "bf16", "f32", "f64"])
def test_integers_to_floats_are_rounded(to: str, source: str) -> None:
    width = {"f32": "32", "f64": "64"}.get(to, "16")
    into = str(max(16, int(source[1:])))
    instruction = f"cvt.rn.{to}.{source} d{width}, a{into};"
    if width == "16" and source[1:] == "64":
        with pytest.raises(Unsupported):
            execute(instruction, given(1, False), width)
        return
    check(instruction, width, lambda a, b, c: encoded(rounded(Fraction(of(source, a)), to), to), given(1, False))


@pytest.mark.parametrize("relu", ["", ".relu"])
@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_two_numbers_are_packed_the_first_above(kind: str, relu: str) -> None:
    numbers = floats("f32", 4)

    def half(bits: int) -> int:
        x = decoded(bits, "f32")
        return encoded(rounded(larger(x, Fraction(0)) if relu and x == x else x, kind), kind)

    for triple, actual in zip(numbers, execute(f"cvt.rn{relu}.{kind}x2.f32 d32, a32, b32;", numbers, "32"), strict=True):
        assert actual == half(triple[0]) << 16 | half(triple[1]), [hex(n) for n in triple]


def test_tf32_keeps_ten_bits_and_rounds_ties_away_from_zero() -> None:
    check(
        "cvt.rna.tf32.f32 d32, a32;", "32", lambda a, b, c: a if (a >> 23) & 255 == 255 else (a + 0x1000) & 0xFFFFE000,
        [t for t in floats("f32", 5)],
    )  # fmt: skip


APPROXIMATE = {
    "ex2": lambda x: 2.0**x, "lg2": math.log2, "rcp": lambda x: 1 / x, "rsqrt": lambda x: x**-0.5, "sqrt": math.sqrt, "sin": math.sin,
    "cos": math.cos, "tanh": math.tanh,
}  # fmt: skip


@pytest.mark.parametrize("name", APPROXIMATE)
def test_approximate_functions_are_within_a_unit_in_the_last_place(name: str) -> None:
    values = np.abs(np.random.default_rng(0).normal(0, 3, THREADS)).astype(np.float32) + np.float32(0.1)
    numbers = [(int(v.view(np.uint32)), 0, 0) for v in values]
    for value, actual in zip(values, execute(f"{name}.approx.f32 d32, a32;", numbers, "32"), strict=True):
        found = struct.unpack("f", struct.pack("I", actual))[0]
        assert abs(found - APPROXIMATE[name](float(value))) <= np.spacing(np.float32(abs(found)))


@pytest.mark.parametrize("opcode", ["ex2.approx.ftz.f32", "sqrt.rn.f32", "lg2.approx.ftz.f32", "rcp.approx.ftz.f32"])
def test_specials_of_functions(opcode: str) -> None:
    values = {"ex2": (-math.inf, 0.0), "sqrt": (math.inf, math.inf), "lg2": (0.0, -math.inf), "rcp": (2.0**-130, math.inf)}
    value, expected = values[opcode.split(".")[0]]
    numbers = [(int(np.float32(value).view(np.uint32)), 0, 0)] * THREADS
    assert execute(f"{opcode} d32, a32;", numbers, "32")[0] == int(np.float32(expected).view(np.uint32))


def test_every_form_in_the_table_has_a_test() -> None:
    """Each pattern of the table matches an opcode in the programs of these tests, for each name that it begins with."""
    text = "".join(p.read_text() for p in Path(__file__).parent.glob("test_emulator*.py"))
    # Names that the tables above put together.
    tables = [i for i, *_ in [*INTEGERS, *SHIFTS, *FLOATING]] + [s[0] for s in [*SIGNS, *PAIRS]]
    tables += [f"{name}.rn.f32x2" for name in ("add", "sub", "mul", "fma")] + [f"{n}.rn.f32.f16" for n in ("add", "sub")]
    tables += [f"{name}.approx.f32" for name in APPROXIMATE] + [f"setp.{how}.f32" for how in COMPARISONS] + ["setp.num.f32"]
    tables += [f"{name}.sync.aligned.m8n8.x4.shared.b16" for name in ("ldmatrix", "stmatrix")] + [
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32"
    ]
    tables += [f"atom.{space}.gpu.relaxed.add.u32" for space in ("global", "shared")] + ["shfl.sync.bfly.b32"]
    tables += [
        "red.global.gpu.relaxed.add.f32",
        "redux.sync.add.s32",
        "vote.sync.any.pred",
        "wgmma.mma_async.sync.aligned.m64n8k32.s32.s8.s8",
        "cvt.rni.s32.f32",
        "cvt.rn.f32.s32",
        "cvt.rn.f16x2.f32",
    ]
    words = set(re.findall(r"[a-z][a-z0-9_]*(?:\.[\w:]+)+", " ".join([text, *tables])))
    for pattern, section in supported():
        assert any(re.fullmatch(pattern, word) for word in words), f"no test has {pattern} ({section})"
        if stems := re.match(r"\(([a-z0-9|]+)\)", pattern):
            for stem in stems[1].split("|"):
                assert any(re.fullmatch(pattern, w) and w.split(".")[0] == stem for w in words), f"no test has {stem} of {pattern}"


def test_every_rule_names_a_section_of_the_manual():
    for _, section in supported():
        assert numbers(section)
    assert numbers("Data Movement and Conversion Instructions: ld, ld.global.nc (.global)") == ["9.7.9.8", "9.7.9.9"]
    assert numbers("Parallel Synchronization and Communication Instructions: mbarrier.init, mbarrier.inval") == ["9.7.13.15"]
    with pytest.raises(KeyError):
        numbers("Logic and Shift Instructions: cnot")
