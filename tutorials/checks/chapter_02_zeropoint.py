"""The exercise of chapter 02: a scale and a zero point."""

from collections.abc import Callable

import numpy as np

import reference

from .chapter_01_absmax import ZERO_HINT, inverse_of, one_tensor, within_half_a_step
from .engine import F32, Exercise


def _zeropoint_by(encode: Callable, include_zero: bool = True) -> Callable:
    def mistaken(x: np.ndarray) -> tuple:
        lo, hi = (np.minimum(x.min(), F32(0)), np.maximum(x.max(), F32(0))) if include_zero else (x.min(), x.max())
        extent, ones = hi - lo, (1,) * x.ndim
        if extent < 2.0**-100:
            return np.zeros(x.shape, np.int8), np.zeros(ones, F32), np.zeros(ones, np.int32)
        inverse = inverse_of(extent, 255)
        zero = np.clip(np.rint(F32(-128) - lo * inverse), -128, 127)
        codes = encode(x, inverse, zero, extent / F32(255))
        return codes.astype(np.int8), np.full(ones, extent / F32(255)), np.full(ones, zero, np.int32)

    return mistaken


def _clip(codes: np.ndarray) -> np.ndarray:
    return np.clip(codes, -128, 127)


def _zeropoint_unguarded(x: np.ndarray) -> tuple:
    lo, hi = np.minimum(x.min(), F32(0)), np.maximum(x.max(), F32(0))
    inverse, ones = inverse_of(hi - lo, 255), (1,) * x.ndim
    zero = np.clip(np.rint(F32(-128) - lo * inverse), -128, 127)
    codes = _clip(np.rint(x * inverse) + zero)
    return codes.astype(np.int8), np.full(ones, (hi - lo) / F32(255)), np.full(ones, zero).astype(np.int32)


def _with_steps(lowest: int, steps: int, sign: int = 1) -> Callable:
    """Codes from `lowest` in `steps` steps; the zero point with this sign."""

    def mistaken(x: np.ndarray) -> tuple:
        lo, hi = np.minimum(x.min(), F32(0)), np.maximum(x.max(), F32(0))
        extent, ones = hi - lo, (1,) * x.ndim
        if extent < 2.0**-100:
            return np.zeros(x.shape, np.int8), np.zeros(ones, F32), np.zeros(ones, np.int32)
        inverse = inverse_of(extent, steps)
        zero = sign * np.clip(np.rint(F32(lowest) - lo * inverse), lowest, 127)
        codes = np.clip(np.rint(x * inverse) + sign * zero, lowest, 127)
        return codes.astype(np.int8), np.full(ones, extent / F32(steps)), np.full(ones, zero, np.int32)

    return mistaken


def _sign_lost(x: np.ndarray) -> tuple:
    """The zero point as 128 + lo * inverse, with the codes shifted by it."""
    lo, hi = np.minimum(x.min(), F32(0)), np.maximum(x.max(), F32(0))
    extent, ones = hi - lo, (1,) * x.ndim
    if extent < 2.0**-100:
        return np.zeros(x.shape, np.int8), np.zeros(ones, F32), np.zeros(ones, np.int32)
    inverse = inverse_of(extent, 255)
    zero = np.clip(np.rint(F32(-128) + lo * inverse), -128, 127)
    return _clip(np.rint(x * inverse) + zero).astype(np.int8), np.full(ones, extent / F32(255)), np.full(ones, zero, np.int32)


zeropoint = Exercise(
    right=lambda x: tuple(reference.zeropoint_quantize(x)),
    inputs=("x",),
    outputs=("codes", "scale", "zero_point"),
    cases=one_tensor,
    shared_axes=([(0, 0)], [(0, 1)]),
    plain=("scale", "zero_point"),
    idea=("within half a step", within_half_a_step),
    mistakes=(
        (
            "truncation. Round x * inverse with np.rint before adding the zero point.",
            _zeropoint_by(lambda x, i, z, s: _clip(np.trunc(x * i) + z)),
        ),
        (
            "you rounded the sum x * inverse + zero_point. Round the product first, then add the (already whole) zero "
            "point: the sum rounds ties the other way.",
            _zeropoint_by(lambda x, i, z, s: _clip(np.rint(x * i + z))),
        ),
        (
            "x / scale lands on the other side of a tie. Multiply by inverse = (1 / (hi - lo)) * 255, all in float32.",
            _zeropoint_by(lambda x, i, z, s: _clip(np.rint(x / s) + z)),
        ),
        (
            "255 / (hi - lo) is a true division, one rounding; the rule is (1 / (hi - lo)) * 255, two. It differs in the last place, "
            "so near ties.",
            _zeropoint_by(lambda x, i, z, s: _clip(np.rint(x * (F32(255) / (s * F32(255)))) + z)),
        ),
        (
            "that is the paper's formula, 254 steps from -127. Here all 256 codes are used: 255 steps from -128.",
            _with_steps(-127, 254),
        ),
        ("the sign of the zero point: the codes are rint(x * inverse) + zero_point, with zero_point added.", _with_steps(-128, 255, -1)),
        ("the sign in the zero point: lo is the code -128, so zero_point = rint(-128 - lo * inverse).", _sign_lost),
        (
            "without a clip the largest code can be 128, which wraps around to -128. Clip to [-128, 127] before the cast.",
            _zeropoint_by(lambda x, i, z, s: (np.rint(x * i) + z).astype(np.int32)),
        ),
        (
            "the range has to hold zero, or zero itself gets no code: lo = min(x, 0), hi = max(x, 0).",
            _zeropoint_by(lambda x, i, z, s: _clip(np.rint(x * i) + z), include_zero=False),
        ),
        (
            "you left the zero point out of the codes: they must be shifted by it, or the upper part of the range wraps around.",
            _zeropoint_by(lambda x, i, z, s: _clip(np.rint(x * i))),
        ),
        (ZERO_HINT, _zeropoint_unguarded),
    ),
)
