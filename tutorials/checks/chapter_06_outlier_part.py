"""The exercise of chapter 06: the outlier columns, with weights from the codes."""

from collections.abc import Callable, Iterator

import numpy as np

import reference

from .chapter_05_decomposition import decompositions
from .engine import F32, ROUNDOFF, Exercise


def _loaded() -> Iterator[tuple]:
    for x, w, threshold in decompositions():
        yield x, *reference.absmax_quantize(w, axis=-1), threshold


def _from_codes(split: Callable = reference.outlier_columns, weight: Callable = lambda codes, scale: codes * scale) -> Callable:
    def mistaken(x: np.ndarray, codes: np.ndarray, scale: np.ndarray, threshold: float) -> np.ndarray:
        o = split(x, threshold)
        return x[:, o] @ weight(codes, scale)[:, o].T

    return mistaken


def _bound(want: np.ndarray, args: tuple) -> np.ndarray:
    # A product has two roundings, codes * scale and times x, in whichever order; a sum of |O| of them fewer than |O| more.
    x, codes, scale, threshold = args
    o = reference.outlier_columns(x, threshold)
    magnitudes = np.abs(x[:, o]).astype(np.float64) @ (np.abs(codes[:, o].astype(np.float64)) * scale).T
    return 2 * (int(o.sum()) + 2) * ROUNDOFF * magnitudes


def _in_float16(x: np.ndarray, codes: np.ndarray, scale: np.ndarray, threshold: float) -> np.ndarray:
    o = reference.outlier_columns(x, threshold)
    return (x[:, o].astype(np.float16) @ (codes[:, o] * scale).astype(np.float16).T).astype(F32)


def _entries_only(x: np.ndarray, codes: np.ndarray, scale: np.ndarray, threshold: float) -> np.ndarray:
    return np.where(np.abs(x) >= threshold, x, F32(0)) @ (codes * scale).T


def _rows_out(x: np.ndarray, codes: np.ndarray, scale: np.ndarray, threshold: float) -> np.ndarray:
    rows = (np.abs(x) >= threshold).any(axis=1)[:, None]
    return np.where(rows, x, F32(0)) @ (codes * scale).T


def _in_int8(x: np.ndarray, codes: np.ndarray, scale: np.ndarray, threshold: float) -> np.ndarray:
    o = reference.outlier_columns(x, threshold)
    return reference.quantized_matmul(x[:, o], (codes * scale)[:, o])


def _whole_layer(x: np.ndarray, codes: np.ndarray, scale: np.ndarray, threshold: float) -> np.ndarray:
    return reference.llm_int8_matmul(x, codes * scale, threshold)


outlier_part = Exercise(
    right=_from_codes(),
    inputs=("x", "codes", "scale", "threshold"),
    outputs=("y",),
    cases=_loaded,
    shared_axes=([(0, 0)], [(1, 0), (2, 0)], [(0, 1), (1, 1)]),
    bound=_bound,
    mistakes=(
        ("an entry of exactly the threshold is an outlier: >=, not >.", _from_codes(lambda x, t: (np.abs(x) > t).any(0))),
        ("magnitude: -7 is an outlier as well. Take np.abs.", _from_codes(lambda x, t: (x >= t).any(0))),
        ("a column is an outlier if any row reaches the threshold, not if all do.", _from_codes(lambda x, t: (np.abs(x) >= t).all(0))),
        ("codes are numbers of steps: multiply them by their scale.", _from_codes(weight=lambda codes, scale: codes.astype(F32))),
        (
            "the scale of a row of the codes belongs to a column of y: (codes[:, o] * scale).T, or scale.T after the product.",
            lambda x, codes, scale, t: _from_codes(weight=lambda c, s: c.astype(F32))(x, codes, scale, t) * scale,
        ),
        ("you took every column; only the outlier columns were asked for.", lambda x, codes, scale, t: x @ (codes * scale).T),
        ("you left the outlier columns out and took the others: x[:, ~o] for x[:, o].", _from_codes(lambda x, t: (np.abs(x) < t).all(0))),
        ("you took single entries out. The paper takes whole columns.", _entries_only),
        ("outliers are columns, features: .any(axis=0). You took out whole rows, tokens.", _rows_out),
        ("you quantized the outlier columns of x. They stay as they arrived: only the weights come from codes.", _in_int8),
        ("the product of the regular columns is in it. Only the outlier part was asked for.", _whole_layer),
        ("the outlier columns were multiplied in float16, which rounds float32 inputs. Nothing is narrowed here.", _in_float16),
        ("the threshold is an argument; 6 is only its usual value.", lambda x, codes, scale, t: _from_codes()(x, codes, scale, 6.0)),
    ),
)
