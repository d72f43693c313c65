"""The exercise of chapter 07: a kernel that quantizes rows."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import reference
from tutorials.minitriton import next_power_of_2

from .chapter_01_absmax import within_half_a_step
from .engine import F32, SEEDS, Exercise, OutOfBounds, Verdict, array
from .launching import Launch, launched
from .poisoning import NOTHING_STORED, SENTINEL_CODE, SENTINEL_SCALE


def _rows() -> Iterator[tuple]:
    yield (array([1.0]),)
    yield (array([1.0, 0.996]),)
    yield (array([-1.0, 0.25]),)
    yield (array([0.22, 0.11]),)
    yield (array([0.14, 0.07]),)
    yield (array([-0.02, 0.01]),)
    yield (array([0.06, 0.01]),)
    yield (array([0.0, 0.0]),)
    yield (array([2.0**-101]),)  # counts as zero; a NaN on the way to int8 may look like a 0, this does not
    yield (array([1.0, 0.5], [10.0, 0.5]),)
    yield (array([1.0, 0.3, 0.2]),)  # K is no power of two
    yield (array([127.0, 0.5, 1.5, -2.5]),)
    for seed in SEEDS:
        for shape in ((4, 4), (3, 5), (2, 33), (5, 64)):
            yield (np.random.default_rng(seed).normal(size=shape).astype(F32),)


def prepare_rows(memory: Any, x: np.ndarray) -> Launch:
    """One program per row; beyond K lies 1e30."""
    m, k = x.shape
    source = memory.rows("x", x, 3, 1e30)
    results = memory.result("codes", (m, k), np.int8, SENTINEL_CODE), memory.result("scale", (m,), np.float32, SENTINEL_SCALE)
    # Unfused, as the kernels of `fast` are launched: a fused multiply-add would round another way at ties.
    options = {"BLOCK_K": next_power_of_2(k), "enable_fp_fusion": False}
    return Launch((m,), (source, *results, k, k + 3), options, results)


def _by_rows(encode: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Callable:
    def mistaken(x: np.ndarray) -> tuple:
        top = np.abs(x).max(axis=1, keepdims=True)
        safe = np.where(top < 2.0**-100, F32(1), top)
        scale = np.where(top < 2.0**-100, F32(0), safe / F32(127))
        return encode(x, safe).astype(np.int8), scale.ravel()

    return mistaken


def _unguarded(x: np.ndarray) -> tuple:
    top = np.abs(x).max(axis=1, keepdims=True)
    codes = np.nan_to_num(np.rint(x * ((F32(1) / top) * F32(127))))
    return codes.astype(np.int8), (top / F32(127)).ravel()


def _signed(x: np.ndarray) -> tuple:
    """What the largest value instead of the largest magnitude gives, with the zeros of the padding among the values."""
    top = np.maximum(x.max(axis=1, keepdims=True), F32(0))
    safe = np.where(top < 2.0**-100, F32(1), top)
    inverse = np.where(top < 2.0**-100, F32(0), (F32(1) / safe) * F32(127))
    return np.rint(x * inverse).astype(np.int8), np.where(top < 2.0**-100, F32(0), safe / F32(127)).ravel()


def _right_rows(x: np.ndarray) -> tuple:
    codes, scale = reference.absmax_quantize(x, axis=-1)
    return codes, scale.ravel()


def _neighbours_read(x: np.ndarray) -> tuple:
    """Rows as an unmasked load reads them: the block continues into the next row of X."""
    m, k = x.shape
    flat = np.append(np.pad(x, ((0, 0), (0, 3)), constant_values=1e30).ravel(), np.full(next_power_of_2(k), 1e30, F32))
    block = np.stack([flat[i * (k + 3) : i * (k + 3) + next_power_of_2(k)] for i in range(m)])
    codes, scale = _right_rows(block.astype(F32))
    return codes[:, :k], scale


def _packed(x: np.ndarray) -> tuple:
    m, k = x.shape
    flat = np.pad(x, ((0, 0), (0, 3)), constant_values=1e30).ravel()
    return _right_rows(flat[: m * k].reshape(m, k).astype(F32))


def _columns(results: tuple) -> tuple:
    """Codes (M, K) and scale (M,) as the quantizers of NumPy give them: scale (M, 1)."""
    return results[0], np.asarray(results[1])[:, None]


def _stops(outside: Callable[[int, int], bool]) -> Callable:
    """What a store outside of codes gives: the launch is stopped wherever `outside(M, K)`."""

    def mistaken(x: np.ndarray) -> tuple:
        if outside(*x.shape):
            raise OutOfBounds("stores codes")
        return _right_rows(x)

    return mistaken


def _other_scale(x: np.ndarray, other: Callable[[np.ndarray], np.ndarray]) -> tuple:
    codes, scale = _right_rows(x)
    return codes, np.where(scale == 0, F32(0), other(scale)).astype(F32)


_INVERSE = F32(127)
rows_of_codes = Exercise(
    right=_right_rows,
    inputs=("x",),
    outputs=("codes", "scale"),
    cases=_rows,
    unwritten=NOTHING_STORED,
    shared_axes=([(0, 0)], [(0, 1)]),
    idea=("within half a step", lambda results, wanted, args: within_half_a_step(_columns(results), _columns(wanted), args)),
    mistakes=(
        (
            "truncation. `.to(tl.int8)` cuts the fraction off. Add and subtract 1.5 * 2**23 first.",
            _by_rows(lambda x, t: x * ((F32(1) / t) * _INVERSE)),
        ),
        (
            "adding 0.5 and cutting off, or rounding halves away from zero: a tie goes to the even code.",
            _by_rows(lambda x, t: np.sign(x) * np.floor(np.abs(x * ((F32(1) / t) * _INVERSE)) + F32(0.5))),
        ),
        ("x / scale lands on the other side of a tie: multiply by (1 / absmax) * 127.", _by_rows(lambda x, t: np.rint(x / (t / _INVERSE)))),
        (
            "x * 127 / absmax lands on the other side of a tie: multiply by (1 / absmax) * 127.",
            _by_rows(lambda x, t: np.rint(x * _INVERSE / t)),
        ),
        ("127 / absmax is one rounding; the rule is (1 / absmax) * 127, two.", _by_rows(lambda x, t: np.rint(x * (_INVERSE / t)))),
        (
            "a row without a magnitude of at least 2**-100 is a zero row: scale 0, codes 0. Without the guard 1 / 0 is infinite.",
            _unguarded,
        ),
        ("tl.max(values) is the largest value; tl.max(tl.abs(values)) the largest magnitude.", _signed),
        (
            "the load reads beyond column K: mask it with columns < K, other=0.0, or the next row takes part in the maximum.",
            _neighbours_read,
        ),
        ("codes is packed: its rows are K apart, not stride: codes + row * K + columns.", _stops(lambda m, k: m > 1)),
        ("the store of codes writes beyond column K: mask it with columns < K.", _stops(lambda m, k: k != next_power_of_2(k))),
        ("the scale is the value of one step, absmax / 127, not its reciprocal.", lambda x: _other_scale(x, lambda scale: 1 / scale)),
        ("the scale is the value of one step, absmax / 127.", lambda x: _other_scale(x, lambda scale: scale * F32(127))),
        ("rows of x are `stride` apart, not K: x + row * stride + columns. (codes is packed: row * K.)", _packed),
    ),
)


def quantize_rows(kernel: Any) -> Verdict:
    """Checks a kernel `(x, codes, scale, K, stride, BLOCK_K: tl.constexpr)`, launched with one program per row.

    x: (M, K) float32, rows `stride` apart. codes: (M, K) int8, packed. scale: (M,) float32. BLOCK_K: a power of two, at
    least K.
    """
    return rows_of_codes(launched(kernel, prepare_rows))
