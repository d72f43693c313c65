"""The exercise of chapter 03: the vector-wise product."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import reference

from .engine import F32, ROUNDOFF, SEEDS, Exercise, array, within


def products() -> Iterator[tuple]:
    """X (M, K) and W (N, K): one entry, square (which hides a wrong axis), then every side different."""
    yield array([1.0]), array([1.0])
    yield array([1.0], [10.0]), array([1.0])
    yield array([1.0]), array([1.0], [10.0])
    yield array([1.0], [10.0]), array([1.0], [3.0])
    yield array([1.0, 0.3], [10.0, -2.0]), array([0.5, 0.2], [3.0, 1.0])
    yield array([0.0, 0.0], [1.0, -0.4]), array([0.7, 0.1], [0.0, 0.0])
    for seed in SEEDS:
        for m, n, k in ((1, 3, 5), (4, 2, 3), (2, 4, 7), (5, 1, 9), (3, 8, 64), (6, 5, 130)):
            rng = np.random.default_rng(seed)
            yield (rng.normal(size=(m, k)) * rng.uniform(0.1, 9, size=(m, 1))).astype(F32), rng.normal(size=(n, k)).astype(F32)


def _rescaled(name: str, got: Any, want: np.ndarray, args: tuple) -> str | None:
    # acc -> float32, times one scale, times the other: three roundings on either side, whichever scale comes first.
    return within(name, got, want, 6 * ROUNDOFF * np.abs(want.astype(np.float64)))


def _vectorwise_by(rescale: Callable) -> Callable:
    def mistaken(x: np.ndarray, w: np.ndarray) -> np.ndarray:
        (xq, sx), (wq, sw) = reference.absmax_quantize(x, -1), reference.absmax_quantize(w, -1)
        return rescale(xq, wq, sx, sw).astype(F32)

    return mistaken


def _exact_product(xq: np.ndarray, wq: np.ndarray) -> np.ndarray:
    return xq.astype(np.int32) @ wq.astype(np.int32).T


vectorwise = Exercise(
    right=lambda x, w: reference.quantized_matmul(x, w),
    inputs=("x", "w"),
    outputs=("y",),
    cases=products,
    shared_axes=([(0, 0)], [(1, 0)], [(0, 1), (1, 1)]),
    compare=_rescaled,
    mistakes=(
        (
            "the product ran in int8 and wrapped around at 128. Widen the codes before you multiply: xq.astype(np.int32) "
            "@ wq.astype(np.int32).T.",
            _vectorwise_by(lambda xq, wq, sx, sw: (xq @ wq.T) * sx * sw.T),
        ),
        (
            "the scales of W belong to its rows, and so to the columns of y: transpose them, scale_w.T.",
            _vectorwise_by(lambda xq, wq, sx, sw: _exact_product(xq, wq) * sx * sw),
        ),
        (
            "the scales of X belong to its rows, and so to the rows of y: no transpose there.",
            _vectorwise_by(lambda xq, wq, sx, sw: _exact_product(xq, wq) * sx.T * sw.T),
        ),
        (
            "the scales of both sides run along the wrong axis: x's down the rows of y, w's along its columns.",
            _vectorwise_by(lambda xq, wq, sx, sw: _exact_product(xq, wq) * sx.T * sw),
        ),
        (
            "that is y transposed: rows are tokens (x), columns are output features (w).",
            _vectorwise_by(lambda xq, wq, sx, sw: (_exact_product(xq, wq) * sx * sw.T).T),
        ),
        (
            "you multiplied by the largest magnitudes. A scale is absmax / 127, on either side.",
            _vectorwise_by(lambda xq, wq, sx, sw: _exact_product(xq, wq) * (sx * 127) * (sw.T * 127)),
        ),
        (
            'one scale for all of w is the granularity "row". Give each row of w its own.',
            lambda x, w: reference.quantized_matmul(x, w, "row"),
        ),
        (
            'one scale each is the granularity "tensor". Give each row of x and each row of w its own.',
            lambda x, w: reference.quantized_matmul(x, w, "tensor"),
        ),
        ("that is the float product: the codes were never used.", lambda x, w: x @ w.T),
    ),
)
