"""The exercise of chapter 00: the number that sixteen bits stand for."""

from collections.abc import Callable, Iterator

import numpy as np

from .engine import SEEDS, Exercise


def _float16(bits: int) -> np.float64:
    return np.float64(np.uint16(bits).view(np.float16))


def _read(sign: Callable, exponent: Callable, fraction: Callable, normal: Callable, subnormal: Callable | None, special: bool) -> Callable:
    """A reader of the three fields, by the rules given."""

    def answer(bits: int) -> np.float64:
        s, e, f = sign(bits), exponent(bits), fraction(bits)
        if special and e == 31:
            return np.float64(s * np.inf if f == 0 else np.nan)
        if subnormal and e == 0:
            return np.float64(s * subnormal(f))
        return np.float64(s * normal(e, f))

    return answer


def _sign(bits: int) -> int:
    return -1 if bits >> 15 else 1


def _mistaken(
    sign: Callable = _sign,
    exponent: Callable = lambda bits: (bits >> 10) & 31,
    fraction: Callable = lambda bits: bits & 1023,
    normal: Callable = lambda e, f: 2.0 ** (e - 15) * (1 + f / 1024),
    subnormal: Callable | None = lambda f: 2.0**-14 * f / 1024,
    special: bool = True,
) -> Callable:
    return _read(sign, exponent, fraction, normal, subnormal, special)


def _patterns() -> Iterator[tuple]:
    yield (0x3C00,)  # 1
    yield (0x4000,)  # 2
    yield (0x3E00,)  # 1.5
    yield (0xC100,)  # -2.5
    yield (0x4A5A,)  # what 12.70 becomes
    yield (0x7BFF,)  # the largest, 65504
    yield (0x0400,)  # the smallest with an implicit 1
    yield (0x0000,)
    yield (0x0001,)  # the smallest of all
    yield (0x83FF,)
    yield (0x7C00,)  # infinity
    yield (0xFC00,)
    yield (0x7E00,)  # not a number
    for seed in SEEDS:
        for bits in np.random.default_rng(seed).integers(0, 2**16, 40):
            yield (int(bits),)


def _ordinary(results: tuple, wanted: tuple, args: tuple) -> bool:
    """Whether the number is right, if its exponent is not one of the two that are reserved."""
    return (args[0] >> 10) & 31 in (0, 31) or bool(np.float64(results[0]) == wanted[0])


float16 = Exercise(
    right=_float16,
    inputs=("bits",),
    outputs=("value",),
    cases=_patterns,
    plain=("value",),
    idea=("right for exponents 1 to 30", _ordinary),
    mistakes=(
        (
            "the 1 before the point is not stored: the value is (1 + fraction / 1024), not fraction / 1024.",
            _mistaken(normal=lambda e, f: 2.0 ** (e - 15) * f / 1024),
        ),
        (
            "the exponent is stored with 15 added, so that it needs no sign: 2.0 ** (exponent - 15).",
            _mistaken(normal=lambda e, f: 2.0**e * (1 + f / 1024)),
        ),
        (
            "127 is the bias of float32 and bfloat16. float16 has 5 bits of exponent: its bias is 15.",
            _mistaken(normal=lambda e, f: 2.0 ** (e - 127) * (1 + f / 1024)),
        ),
        ("the bias is 15, not 16: 0 01111 0000000000 is 1.", _mistaken(normal=lambda e, f: 2.0 ** (e - 16) * (1 + f / 1024))),
        (
            "ten bits of fraction are 1024 steps, not 1023.",
            _mistaken(normal=lambda e, f: 2.0 ** (e - 15) * (1 + f / 1023), subnormal=lambda f: 2.0**-14 * f / 1023),
        ),
        ("the first bit is the sign: 1 means negative.", _mistaken(sign=lambda bits: 1)),
        (
            "with exponent 0 there is no 1 before the point: fraction / 1024 * 2 ** -14, which is 0 for fraction 0.",
            _mistaken(subnormal=None),
        ),
        (
            "with exponent 0 the power of two is that of exponent 1, -14: fraction / 1024 * 2.0 ** -14.",
            _mistaken(subnormal=lambda f: 2.0**-15 * f / 1024),
        ),
        ("exponent 31 is reserved: infinity if the fraction is 0, else not a number.", _mistaken(special=False)),
        (
            "only exponents 1 to 30 are ordinary: 0 has no 1 before the point, 31 is infinity or not a number.",
            _mistaken(subnormal=None, special=False),
        ),
        (
            "that is bfloat16, with 8 bits of exponent and 7 of fraction. float16 has 5 and 10.",
            lambda bits: np.float64(np.uint32(bits << 16).view(np.float32)),
        ),
        (
            "you took the bits from the other end: the fraction is the last ten, bits & 1023.",
            _mistaken(exponent=lambda bits: (bits >> 1) & 31, fraction=lambda bits: bits >> 6, sign=lambda bits: -1 if bits & 1 else 1),
        ),
        (
            "that is a 16-bit integer. The bits are three fields: sign, exponent, fraction.",
            lambda bits: np.float64(np.uint16(bits).view(np.int16)),
        ),
    ),
)
