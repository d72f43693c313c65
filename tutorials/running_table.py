"""The table that grows from chapter to chapter: what each method costs in bytes, and how far off its product is."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

import reference
from reference import Int8Linear


class Method(NamedTuple):
    """One line: the chapter that brings it, its name, X and W to Y, and the bytes that W (n, k) then takes."""

    chapter: int
    name: str
    product: Callable[[NDArray, NDArray], NDArray]
    weight_bytes: Callable[[int, int], int]


def _quantized(granularity: str, quantizer: str) -> Callable:
    return lambda x, w: reference.quantized_matmul(x, w, granularity, quantizer)


def _layer(outlier_weight: str) -> Callable:
    return lambda x, w: Int8Linear.from_float(w, outlier_weight=outlier_weight)(x)


METHODS = (
    Method(0, "float16 weights, float32 sums", lambda x, w: x @ w.astype(np.float16).astype(np.float32).T, lambda n, k: 2 * n * k),
    Method(1, "absmax, one scale each", _quantized("tensor", "absmax"), lambda n, k: n * k + 4),
    Method(2, "zeropoint, one scale each", _quantized("tensor", "zeropoint"), lambda n, k: n * k + 8),
    Method(3, "absmax, one scale per row of X", _quantized("row", "absmax"), lambda n, k: n * k + 4),
    Method(3, "absmax, vector-wise", _quantized("vector", "absmax"), lambda n, k: n * k + 4 * n),
    Method(3, "zeropoint, vector-wise", _quantized("vector", "zeropoint"), lambda n, k: n * k + 8 * n),
    Method(5, "LLM.int8(), 16-bit W kept", _layer("float"), lambda n, k: 3 * n * k + 4 * n),
    Method(6, "LLM.int8(), weights from codes", _layer("dequantized"), lambda n, k: n * k + 4 * n),
)


def error(y: NDArray, exact: NDArray) -> float:
    """How far y is from `exact`, relative: the root of the summed squares of one over that of the other."""
    return float(np.linalg.norm(y - exact) / np.linalg.norm(exact))


def show(x: NDArray[np.float32], w: NDArray[np.float32], chapter: int, seconds: Mapping[str, float] | None = None) -> None:
    """Prints the lines up to `chapter`, measured on the input x (M, K) and weight w (N, K) of one real layer.

    Args:
        x, w, chapter: as above.
        seconds: from a record, by method, for a column of times; None leaves it out.
    """
    exact = x.astype(np.float64) @ w.T.astype(np.float64)
    print(f"{'method':<32} {'error of Y':>10} {'bytes of W':>11} {'per weight':>10}{'' if seconds is None else ' ' * 7 + 'us'}")
    for method in METHODS:
        if method.chapter <= chapter:
            size = method.weight_bytes(*w.shape)
            mark = "  <- new" if method.chapter == chapter else ""
            if seconds is not None:
                mark = f" {1e6 * seconds[method.name]:>8,.0f}" if method.name in seconds else f" {'-':>8}"
            print(f"{method.name:<32} {error(method.product(x, w), exact):>10.3%} {size:>11,} {size / w.size:>10.3f}{mark}")
