"""The exercise of chapter 05: the mixed-precision decomposition."""

from collections.abc import Callable, Iterator

import numpy as np

import reference
from reference.decomposition import outlier_product

from .chapter_01_absmax import NARROW_HINT
from .chapter_03_granularity import products
from .comparing import up_to_float_sums
from .engine import F32, ROUNDOFF, SEEDS, Exercise, array


def decompositions() -> Iterator[tuple]:
    for x, w in products():
        yield x, w, 6.0
    yield array([6.0, 1.0]), array([1.0, 1.0]), 6.0  # exactly the threshold
    yield array([-7.0, 0.3]), array([1.0, 0.5]), 6.0  # a negative outlier
    yield array([7.0, 0.3]), array([0.3, 0.5]), 6.0
    yield array([0.5, 0.3], [7.0, 0.3]), array([0.3, 0.5]), 6.0  # the column is an outlier column for both rows
    yield array([1.0, 0.5]), array([0.3, 0.7]), 0.0
    yield array([70000.0, 0.5]), array([0.3, 0.7]), 6.0  # more than float16 holds
    for seed in SEEDS:
        for m, n, k, planted in ((2, 3, 5, 1), (4, 3, 17, 2), (3, 5, 64, 3)):
            rng = np.random.default_rng(seed)
            x = rng.normal(size=(m, k)).astype(F32)
            x[rng.integers(m, size=planted), rng.choice(k, planted, replace=False)] = rng.choice([-20, 8, 31], planted)
            yield x, rng.normal(size=(n, k)).astype(F32), 6.0


def _decomposed(want: np.ndarray, args: tuple) -> np.ndarray:
    # The regular part carries three roundings per side, a sum of |O| products at most |O| per side, and adding the two
    # one more: so 2 (|O| + 4) roundings in all, each at most ROUNDOFF of the magnitudes that were summed.
    x, w, threshold = args
    o = reference.outlier_columns(x, threshold)
    regular = np.abs(reference.quantized_matmul(np.where(o, F32(0), x), w)).astype(np.float64)
    outlier = np.abs(x[:, o]).astype(np.float64) @ np.abs(w[:, o]).astype(np.float64).T
    return 2 * (int(o.sum()) + 4) * ROUNDOFF * (regular + outlier)


def _up_to_float_sums(results: tuple, wanted: tuple, args: tuple) -> bool:
    """Whether y is the product of the dequantized regular columns plus that of the outlier columns, in any float32 arithmetic."""
    x, w, threshold = args
    o = reference.outlier_columns(x, threshold)
    regular, weight = (
        np.abs(reference.absmax_dequantize(*reference.absmax_quantize(a, -1)).astype(np.float64)) for a in (np.where(o, F32(0), x), w)
    )
    magnitudes = regular @ weight.T + np.abs(x[:, o]).astype(np.float64) @ np.abs(w[:, o]).T
    return up_to_float_sums(results[0], wanted[0], x.shape[1] + 1, magnitudes)


def _llm_int8_by(split: Callable, keep_regular: bool = True, keep_outliers: bool = True, clear: bool = True) -> Callable:
    def mistaken(x: np.ndarray, w: np.ndarray, threshold: float) -> np.ndarray:
        o = split(x, threshold)
        regular = reference.quantized_matmul(np.where(o, F32(0), x) if clear else x, w)
        return keep_regular * regular + keep_outliers * outlier_product(x, w, o)

    return mistaken


def _entries_only(x: np.ndarray, w: np.ndarray, threshold: float) -> np.ndarray:
    big = np.abs(x) >= threshold
    return reference.quantized_matmul(np.where(big, F32(0), x), w) + np.where(big, x, F32(0)) @ w.T


def _weight_without_outliers(x: np.ndarray, w: np.ndarray, threshold: float) -> np.ndarray:
    o = reference.outlier_columns(x, threshold)
    return reference.quantized_matmul(np.where(o, F32(0), x), np.where(o, F32(0), w)) + outlier_product(x, w, o)


def _outliers_in_float16(x: np.ndarray, w: np.ndarray, threshold: float) -> np.ndarray:
    o = reference.outlier_columns(x, threshold)
    part = x[:, o].astype(np.float16) @ w[:, o].astype(np.float16).T
    return reference.quantized_matmul(np.where(o, F32(0), x), w) + part.astype(F32)


def _rows_out(x: np.ndarray, w: np.ndarray, threshold: float) -> np.ndarray:
    rows = (np.abs(x) >= threshold).any(axis=1)[:, None]
    return reference.quantized_matmul(np.where(rows, F32(0), x), w) + np.where(rows, x, F32(0)) @ w.T


def _all_columns_added(x: np.ndarray, w: np.ndarray, threshold: float) -> np.ndarray:
    return reference.quantized_matmul(np.where(reference.outlier_columns(x, threshold), F32(0), x), w) + x @ w.T


decomposition = Exercise(
    right=lambda x, w, threshold: reference.llm_int8_matmul(x, w, threshold),
    inputs=("x", "w", "threshold"),
    outputs=("y",),
    cases=decompositions,
    shared_axes=([(0, 0)], [(1, 0)], [(0, 1), (1, 1)]),
    bound=_decomposed,
    idea=("equal up to the roundings of a float32 product", _up_to_float_sums),
    mistakes=(
        ("an entry of exactly the threshold is an outlier: >=, not >.", _llm_int8_by(lambda x, t: (np.abs(x) > t).any(0))),
        ("magnitude: -7 is an outlier as well. Take np.abs.", _llm_int8_by(lambda x, t: (x >= t).any(0))),
        ("a column is an outlier if any row reaches the threshold, not if all do.", _llm_int8_by(lambda x, t: (np.abs(x) >= t).all(0))),
        (
            "set the outlier columns of x to zero before you quantize: they still set the scale of their rows, and are counted twice.",
            _llm_int8_by(lambda x, t: (np.abs(x) >= t).any(0), clear=False),
        ),
        (
            "the outlier columns are missing from the result: add x[:, o] @ w[:, o].T.",
            _llm_int8_by(lambda x, t: (np.abs(x) >= t).any(0), keep_outliers=False),
        ),
        ("the regular columns are missing from the result.", _llm_int8_by(lambda x, t: (np.abs(x) >= t).any(0), keep_regular=False)),
        ("you took single entries out. The paper takes whole columns, so that the 16-bit part is a small dense product.", _entries_only),
        ("quantize w over all its columns. It is quantized once, at load time, before any outlier is known.", _weight_without_outliers),
        (
            "the outlier columns were multiplied in float16, which rounds float32 inputs. The 16 bits of the paper are those in which X "
            "and W arrive; here nothing is narrowed: x[:, o] @ w[:, o].T.",
            _outliers_in_float16,
        ),
        ("outliers are columns, features: .any(axis=0). You took out whole rows, tokens.", _rows_out),
        ("the threshold is an argument; 6 is only its usual value.", lambda x, w, t: reference.llm_int8_matmul(x, w, 6.0)),
        ("the outlier columns of x need those of w, w[:, o]: you added the float product of all columns.", _all_columns_added),
        ("that is the float product: nothing was quantized.", lambda x, w, t: x @ w.T),
        (NARROW_HINT, lambda x, w, t: reference.llm_int8_matmul(x.astype(np.float16), w, t)),
        ("that is the vector-wise product: nothing was decomposed.", lambda x, w, t: reference.quantized_matmul(x, w)),
    ),
)
