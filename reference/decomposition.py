"""LLM.int8(): the few outlier columns in 16 bits, everything else in int8.

    O = { k : some |X[m, k]| >= threshold }
    Y = X[:, O] @ W[:, O].T  +  int8 product of the remaining columns

Dettmers et al. (2022), section 3.2, equation 8. An outlier would set the scale of its row and leave too few codes for all other
entries. Outliers are few and keep to the same feature columns, so computing those columns in 16 bits costs little.
"""

import numpy as np
from numpy.typing import NDArray

from . import arguments
from .vectorwise import quantized_matmul


def outlier_columns(x: NDArray, threshold: float | None = 6.0) -> NDArray[np.bool_]:
    """Says which feature columns hold an outlier, an entry of magnitude `threshold` or more.

    Args:
        x: (..., K) float16, bfloat16 or float32; a column is an outlier for all rows of all leading dimensions.
        threshold: 0 or more, compared in float32; 0 makes every column an outlier, None or infinity makes none.

    Returns:
        (K,) bool. An infinite entry is an outlier; a NaN is not.

    Raises:
        TypeError: x is not an array of one of these dtypes, or threshold is not a number.
        ValueError: x has no axis, or threshold is negative or NaN.
    """
    x = arguments.floats("x", x)
    rounded = arguments.threshold(threshold)
    if rounded is None:
        return np.zeros(x.shape[-1], np.bool_)
    return np.any(np.abs(x) >= rounded, axis=tuple(range(x.ndim - 1)))


def split(x: NDArray[np.float32], threshold: float | None) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Which columns of `x` (M, K) are outlier columns, and `x` with those columns zero: its regular part."""
    outliers = outlier_columns(x, threshold)
    return outliers, np.where(outliers, np.float32(0), x)


def llm_int8_matmul(
    x: NDArray, w: NDArray, threshold: float | None = 6.0, quantizer: str = "absmax", granularity: str = "vector"
) -> NDArray[np.float32]:
    """Returns x @ w.T by mixed-precision decomposition.

    The outlier columns meet the columns of `w` as given, as in the paper; a layer that keeps only the codes is
    `Int8Linear`.

    Args:
        x: (..., K) float16, bfloat16 or float32; leading dimensions are flattened to M and restored.
        w: (N, K) float16, bfloat16 or float32.
        threshold: as in `outlier_columns`.
        quantizer: "absmax" or "zeropoint", for the regular columns.
        granularity: "tensor", "row" or "vector", for the regular columns; the paper's method is "vector".

    Returns:
        (..., N) float32.

    Raises:
        TypeError, ValueError: as `outlier_columns` and `quantized_matmul`.
    """
    x, w = arguments.floats("x", x), arguments.floats("w", w, ndim=2)
    arguments.same_k("x", x, "w", w)
    rows = arguments.rows_of(x)
    outliers, regular = split(rows, threshold)
    with np.errstate(over="ignore", invalid="ignore"):  # as in any float sum
        y = quantized_matmul(regular, w, granularity, quantizer) + outlier_product(rows, w, outliers)
    return y.reshape(*x.shape[:-1], w.shape[0])


def outlier_product(x: NDArray[np.float32], w: NDArray[np.float32], outliers: NDArray[np.bool_]) -> NDArray[np.float32]:
    """X[:, O] @ W[:, O].T in float32; zeros where there is no outlier."""
    with np.errstate(over="ignore", invalid="ignore"):  # an infinite outlier gives what it gives in any float product
        return x[:, outliers] @ w[:, outliers].T
