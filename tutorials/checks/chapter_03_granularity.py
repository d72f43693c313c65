"""The exercise of chapter 03: the vector-wise product."""

from collections.abc import Callable, Iterator

import numpy as np

import reference

from .comparing import up_to_float_sums
from .engine import F32, ROUNDOFF, SEEDS, Exercise, array


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


def _rescaled(want: np.ndarray, args: tuple) -> np.ndarray:
    # acc -> float32, times one scale, times the other: three roundings on either side, whichever scale comes first.
    return 6 * ROUNDOFF * np.abs(want.astype(np.float64))


def _up_to_float_sums(results: tuple, wanted: tuple, args: tuple) -> bool:
    """Whether y is the product of the dequantized factors, in any float32 arithmetic."""
    x, w = (np.abs(_dequantized(a).astype(np.float64)) for a in args)
    return up_to_float_sums(results[0], wanted[0], x.shape[1], x @ w.T)


def _vectorwise_by(rescale: Callable) -> Callable:
    def mistaken(x: np.ndarray, w: np.ndarray) -> np.ndarray:
        (xq, sx), (wq, sw) = reference.absmax_quantize(x, -1), reference.absmax_quantize(w, -1)
        return rescale(xq, wq, sx, sw).astype(F32)

    return mistaken


def _dequantized(a: np.ndarray) -> np.ndarray:
    return reference.absmax_dequantize(*reference.absmax_quantize(a, -1))


def _by_columns(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Scales by column, multiplied as if they belonged to rows; it raises where K is neither M nor N nor 1."""
    (xq, sx), (wq, sw) = reference.absmax_quantize(x.T, -1), reference.absmax_quantize(w.T, -1)
    return (_exact_product(xq.T, wq.T) * sx * sw.T).astype(F32)


def _exact_product(xq: np.ndarray, wq: np.ndarray) -> np.ndarray:
    return xq.astype(np.int32) @ wq.astype(np.int32).T


vectorwise = Exercise(
    right=lambda x, w: reference.quantized_matmul(x, w),
    inputs=("x", "w"),
    outputs=("y",),
    cases=products,
    shared_axes=([(0, 0)], [(1, 0)], [(0, 1), (1, 1)]),
    bound=_rescaled,
    idea=("equal up to the roundings of a float32 product", _up_to_float_sums),
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
            "you dequantized both sides and multiplied floats, whose sums round. Multiply the codes, in int32, and scale the sums.",
            lambda x, w: _dequantized(x) @ _dequantized(w).T,
        ),
        ("the scales are missing: multiply the sums by both of them.", _vectorwise_by(lambda xq, wq, sx, sw: _exact_product(xq, wq))),
        ("the scales of w are missing.", _vectorwise_by(lambda xq, wq, sx, sw: _exact_product(xq, wq) * sx)),
        ("the scales of x are missing.", _vectorwise_by(lambda xq, wq, sx, sw: _exact_product(xq, wq) * sw.T)),
        (
            "the sums ran in int16 and wrapped around at 32,768, which two products of codes can pass. Use int32.",
            _vectorwise_by(lambda xq, wq, sx, sw: (xq.astype(np.int16) @ wq.astype(np.int16).T) * sx * sw.T),
        ),
        (
            "one scale per column cannot be factored out of the sum over k: quantize by rows, axis=1.",
            lambda x, w: _by_columns(x, w),
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
