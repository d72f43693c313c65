"""Numbers as registers hold them: one unsigned integer per thread, or one NumPy scalar where all threads have the same.

Nothing changes an array of a register in place.
Sources: PTX ISA 9.0, 5.2.1 "Fundamental Types", 5.2.4 "Packed Data Types", 6.5.2 "Rounding Modifiers".
"""

from typing import Any

import numpy as np

#: One value per thread, or one NumPy scalar for all of them.
Array = Any

UNSIGNED: dict[int, Any] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
SIGNED: dict[int, Any] = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}
FLOATS = {"f16": np.float16, "f32": np.float32, "f64": np.float64}
#: Two numbers side by side in one register, and the type of each.
PACKED = {"f16x2": "f16", "bf16x2": "bf16", "f32x2": "f32", "s16x2": "s16", "u16x2": "u16"}
#: The NaN that an operation on 16 bits gives.
NAN16 = np.uint16(0x7FFF)


def bits_of(kind: str) -> int:
    """Bits of a PTX type."""
    if kind == "pred":
        return 1
    if kind in PACKED:
        return 2 * bits_of(PACKED[kind])
    return int("".join(c for c in kind.partition("x")[0] if c.isdigit())[-2:])


def dtype(kind: str) -> Any:
    """NumPy's type of a PTX type; bfloat16 and packed pairs are plain bits."""
    if kind == "pred":
        return np.bool_
    if kind in FLOATS:
        return FLOATS[kind]
    return (SIGNED if kind in ("s8", "s16", "s32", "s64") else UNSIGNED)[bits_of(kind) // 8]


def constant(text: str, kind: str) -> np.generic:
    """A number as it stands in the code, as the bits of `kind` (PTX ISA 9.0, 4.5 "Constants")."""
    if text[:2] in ("0f", "0F"):
        return np.uint32(int(text[2:], 16))
    if text[:2] in ("0d", "0D"):
        return np.uint64(int(text[2:], 16))
    number = int(text.rstrip("U"), 0)
    if kind == "pred":
        return np.bool_(number != 0)
    bits = bits_of(kind)
    return UNSIGNED[bits // 8](number & (2**bits - 1))


def widened(bits: Array, kind: str) -> Array:
    """Numbers of 16 bits in float32, which is exact."""
    return bits.view(np.float16).astype(np.float32) if kind == "f16" else (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def narrowed(x: Array, kind: str) -> Array:
    """Bits of float32 or float64 numbers rounded to 16 bits, ties to even; float64 is rounded once."""
    if kind == "f16":
        return np.where(np.isnan(x), NAN16, x.astype(np.float16).view(np.uint16))
    if x.dtype == np.float64:
        x = odd_float32(x)
    bits = x.view(np.uint32).astype(np.uint64)
    rounded = (bits + np.uint64(0x7FFF) + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)
    return np.where(np.isnan(x), NAN16, rounded.astype(np.uint16))


def odd_float32(x: Array) -> Array:
    """float64 in float32, rounded to odd: another rounding, to fewer bits, then gives what one rounding of x would."""
    near = x.astype(np.float32)
    error = x - near.astype(np.float64)
    even = (near.view(np.uint32) & np.uint32(1)) == 0
    other = np.nextafter(near, np.where(error > 0, np.float32(np.inf), np.float32(-np.inf)).astype(np.float32))
    return np.where(even & (error != 0) & np.isfinite(near), other, near)


def fused(a: Array, b: Array, c: Array) -> Array:
    """a * b + c of float32 numbers, rounded once.

    The product is exact in float64. The sum is not; rounded to odd there, it rounds to float32 as the exact one would.
    """
    product, addend = a.astype(np.float64) * b, c.astype(np.float64)
    total = product + addend
    # Knuth's two-sum: total + error is exact.
    back = total - product
    error = (product - (total - back)) + (addend - back)
    bits = np.asarray(total).view(np.uint64)
    even = (bits & np.uint64(1)) == 0
    other = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
    return np.where(even & (error != 0) & np.isfinite(total), other, total).astype(np.float32)


def fused16(a: Array, b: Array, c: Array, kind: str) -> Array:
    """Bits of a * b + c of 16-bit numbers, rounded once."""
    a, b, c = (widened(v, kind).astype(np.float64) for v in (a, b, c))
    product = a * b
    total = product + c
    back = total - product
    error = (product - (total - back)) + (c - back)
    even = (np.asarray(total).view(np.uint64) & np.uint64(1)) == 0
    other = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
    odd = np.where(even & (error != 0) & np.isfinite(total), other, total)
    return narrowed(odd_float32(odd), kind)


def flushed(x: Array) -> Array:
    """Subnormal float32 numbers as zeros of their sign (.ftz)."""
    return np.where(np.abs(x) < np.float32(2.0**-126), np.copysign(np.float32(0), x), x)


def halves(x: Array, kind: str) -> tuple[Array, Array]:
    """The lower and the upper number of a packed register, as bits of `kind`."""
    bits = bits_of(kind)
    narrow = UNSIGNED[bits // 8]
    return x.astype(narrow), (x >> x.dtype.type(bits)).astype(narrow)


def joined(low: Array, high: Array) -> Array:
    """A packed register of two numbers, each given as unsigned bits."""
    wide = UNSIGNED[2 * low.dtype.itemsize]
    return low.astype(wide) | (high.astype(wide) << wide(8 * low.dtype.itemsize))
