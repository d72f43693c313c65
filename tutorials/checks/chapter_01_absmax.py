"""The exercise of chapter 01: one scale per tensor, by the largest magnitude."""

from collections.abc import Callable, Iterator

import numpy as np

import reference

from .engine import F32, SEEDS, SHAPES, Exercise, array


def one_tensor() -> Iterator[tuple]:
    """Inputs of a quantizer with one scale: the edges by hand, then random ones of awkward shapes."""
    yield (array([1.0]),)
    yield (array([0.0, 0.0]),)  # a zero slice
    yield (array([2.0**-101]),)  # a zero slice that is not quite zero
    yield (array([1.0, 0.996]),)  # rint, not truncation
    yield (array([-1.0, 0.25]),)  # the largest magnitude is negative
    yield (array([0.14, 0.07]),)  # 63.5 on paper: a tie, where the way 127 / absmax is evaluated shows
    yield (array([127.0, 0.5, 1.5, -2.5]),)  # exact ties go to even
    yield (array([0.22, 0.11]),)
    yield (array([-0.02, 0.01]),)
    yield (array([-1.5, 253.5]),)  # as zeropoint, the largest code would be 128
    yield (array([0.06, 0.01]),)
    yield (array([-0.25, 0.11, 0.06]),)
    yield (array([1.0, 2.0, 4.0], [8.0, 3.0, 0.5]),)
    yield (array([200.0, -300.0]),)
    yield (array([5.0, 7.0]),)  # all positive: zero must stay inside the range
    yield (array([70000.0, -1.0]),)  # more than float16 holds
    for seed in SEEDS:
        for shape in SHAPES:
            yield (np.random.default_rng(seed).normal(size=shape).astype(F32),)


def _absmax_by(encode: Callable[[np.ndarray, np.ndarray], np.ndarray], largest: Callable = lambda x: np.abs(x).max()) -> Callable:
    def mistaken(x: np.ndarray) -> tuple:
        top = largest(x)
        if top < 2.0**-100:
            return np.zeros(x.shape, np.int8), np.zeros((1,) * x.ndim, F32)
        return encode(x, top).astype(np.int8), np.full((1,) * x.ndim, top / F32(127))

    return mistaken


def inverse_of(top: np.ndarray, steps: int = 127) -> np.ndarray:
    return (F32(1) / top) * F32(steps)


def round_half_away(x: np.ndarray) -> np.ndarray:
    return np.sign(x) * np.floor(np.abs(x) + F32(0.5))


def _absmax_unguarded(x: np.ndarray) -> tuple:
    top = np.abs(x).max()
    return np.rint(x * inverse_of(top)).astype(np.int8), np.full((1,) * x.ndim, top / F32(127))


def _absmax_128(x: np.ndarray) -> tuple:
    top = np.abs(x).max()
    if top < 2.0**-100:
        return np.zeros(x.shape, np.int8), np.zeros((1,) * x.ndim, F32)
    return np.clip(np.rint(x * inverse_of(top, 128)), -128, 127).astype(np.int8), np.full((1,) * x.ndim, top / F32(128))


def _absmax_scale_of(scale: Callable[[np.ndarray], np.ndarray]) -> Callable:
    """The right codes with another scale."""

    def mistaken(x: np.ndarray) -> tuple:
        codes, right = reference.absmax_quantize(x)
        return codes, np.full(right.shape, scale(np.abs(x).max()) if right.item() else F32(0), F32)

    return mistaken


def within_half_a_step(results: tuple, wanted: tuple, args: tuple) -> bool:
    """Whether codes and scale dequantize to x within half a step (absmax, or zeropoint where there is a third result).

    A slice below 2**-100 may also come back as itself: it is off by less than that.
    """
    codes, scale, zero_point = (np.float64(np.asarray(r)) for r in (*results, 0)[:3])
    step = np.float64(wanted[1])
    back = (codes - zero_point) * np.reshape(scale, step.shape if np.size(scale) == 1 else np.shape(scale))
    return bool((np.abs(back - args[0]) <= step * (0.5 + 2.0**-12) + 2.0**-100).all())


ZERO_HINT = (
    "an all-zero tensor (anything below 2**-100) divides by zero here. Give it scale 0 and codes 0, which dequantizes to the zeros it was."
)
NARROW_HINT = "you narrowed x to float16 on the way: it loses half of its digits, and beyond 65504 becomes infinite. Widen, never narrow."

absmax = Exercise(
    right=lambda x: tuple(reference.absmax_quantize(x)),
    inputs=("x",),
    outputs=("codes", "scale"),
    cases=one_tensor,
    shared_axes=([(0, 0)], [(0, 1)]),
    plain=("scale",),
    idea=("within half a step", within_half_a_step),
    mistakes=(
        (
            "truncation. `astype(np.int8)` cuts the fraction off; np.rint first, or the error doubles.",
            _absmax_by(lambda x, t: x * inverse_of(t)),
        ),
        (
            "np.floor rounds down always, so every code is low by half a step on average. Use np.rint.",
            _absmax_by(lambda x, t: np.floor(x * inverse_of(t))),
        ),
        (
            "you round halves away from zero; np.rint sends a tie to the even code.",
            _absmax_by(lambda x, t: round_half_away(x * inverse_of(t))),
        ),
        (
            "x / scale lands on the other side of a tie. Multiply by inverse = (1 / absmax) * 127, all in float32.",
            _absmax_by(lambda x, t: np.rint(x / (t / F32(127)))),
        ),
        (
            "x * 127 / absmax lands on the other side of a tie. Multiply by inverse = (1 / absmax) * 127, in float32.",
            _absmax_by(lambda x, t: np.rint(x * F32(127) / t)),
        ),
        (
            "127 / absmax is a true division, one rounding; the rule is (1 / absmax) * 127, two. It differs in the last "
            "place, so near ties.",
            _absmax_by(lambda x, t: np.rint(x * (F32(127) / t))),
        ),
        (
            "the scale is the value of one step, absmax / 127. 127 / absmax is its reciprocal, by which you multiply x.",
            _absmax_scale_of(lambda top: F32(127) / top),
        ),
        ("the scale is the value of one step, absmax / 127: the largest magnitude has 127 of them.", _absmax_scale_of(lambda top: top)),
        ("you scale to 128. int8 has -128 and no +128: use 127, so that -x always has the negated codes.", _absmax_128),
        (
            "you took the largest value, not the largest magnitude: take np.abs first, or large negative entries wrap around.",
            _absmax_by(lambda x, t: np.rint(x * inverse_of(t)), lambda x: x.max()),
        ),
        (ZERO_HINT, _absmax_unguarded),
        (NARROW_HINT, lambda x: tuple(reference.absmax_quantize(x.astype(np.float16)))),
        ("one scale per row is chapter 03. Here the whole tensor has one.", lambda x: tuple(reference.absmax_quantize(x, axis=-1))),
    ),
)
