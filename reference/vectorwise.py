"""The int8 product, and the granularity of its scales: one per tensor, one per row of X, or one per vector of each side.

    Y[m, n]  is about  acc[m, n] * x_scale[m] * w_scale[n],      acc = X_codes @ W_codes.T  in int32

Dettmers et al. (2022), sections 2.1 and 3.1, equations 6 and 7. Every product Y[m, n] belongs to one row of X and one row of
W, so each may bring its own scale without disturbing the sum: the scales form an outer product.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import arguments
from .absmax import INT8_MAX, absmax_dequantize, absmax_quantize
from .zeropoint import CODE_MIN, zeropoint_dequantize, zeropoint_quantize

#: granularity -> the axis of the slices of X, and of W.
AXES: dict[str, tuple[int | None, int | None]] = {"tensor": (None, None), "row": (-1, None), "vector": (-1, -1)}


def int8_matmul(a: NDArray[np.int8], b: NDArray[np.int8]) -> NDArray[np.int32]:
    """Returns a @ b.T, exactly.

    Args:
        a: (..., M, K) int8, any leading dimensions.
        b: (N, K) int8.

    Returns:
        (..., M, N) int32.

    Raises:
        TypeError: a or b is not int8.
        ValueError: b is not 2-D, the Ks differ, or K > 131,071, where int32 could overflow.
    """
    a, b = arguments.codes("a", a), arguments.codes("b", b, ndim=2)
    accumulator_fits(arguments.same_k("a", a, "b", b), "zeropoint")
    return accumulate(a, b)


def accumulate(a: NDArray[np.int8], b: NDArray[np.int8]) -> NDArray[np.int32]:
    """a @ b.T of codes whose shapes and K have been checked."""
    # In float64 every partial sum is an integer far below 2**53, so this is exact, and it is a fast BLAS product;
    # NumPy has none for integers.
    return (a.astype(np.float64) @ b.T.astype(np.float64)).astype(np.int32)


def quantized_matmul(x: NDArray, w: NDArray, granularity: str = "vector", quantizer: str = "absmax") -> NDArray[np.float32]:
    """Returns x @ w.T computed in int8: quantize both, multiply exactly, scale back.

    Args:
        x: (..., K) float16, bfloat16 or float32; leading dimensions are flattened to M and restored.
        w: (N, K) float16, bfloat16 or float32.
        granularity: "tensor", one scale for x and one for w; "row", one per row of x and one for w; "vector", one per
            row of x and one per row of w.
        quantizer: "absmax" or "zeropoint", for both sides.

    Returns:
        (..., N) float32. A row of x or w whose scale is NaN gives NaN, in its own row or column only.

    Raises:
        TypeError: x or w is not an array of one of these dtypes.
        ValueError: an unknown granularity or quantizer, w not 2-D, the Ks differ, or K so large that int32 could overflow.
    """
    x, w = arguments.floats("x", x), arguments.floats("w", w, ndim=2)
    arguments.one_of("granularity", granularity, AXES)
    arguments.one_of("quantizer", quantizer, QUANTIZERS)
    accumulator_fits(arguments.same_k("x", x, "w", w), quantizer)

    x_axis, w_axis = AXES[granularity]
    quantize, _, product = QUANTIZERS[quantizer]
    y = product(*quantize(arguments.rows_of(x), x_axis), *quantize(w, w_axis))
    return y.reshape(*x.shape[:-1], w.shape[0])


def absmax_product(x_codes, x_scale, w_codes, w_scale) -> NDArray[np.float32]:
    """Y of an absmax-quantized X (M, K) and W (N, K), in float32: the accumulator, times one scale, times the other."""
    return rescale(accumulate(x_codes, w_codes), x_scale, w_scale)


def zeropoint_product(x_codes, x_scale, x_zero_point, w_codes, w_scale, w_zero_point) -> NDArray[np.float32]:
    """Y of a zeropoint-quantized X (M, K) and W (N, K), in float32.

    sum (xq - zx)(wq - zw) = sum xq wq - zx sum wq - zw sum xq + K zx zw, so the expensive part stays an int8 product;
    the corrections need one sum per row. int64, since with K > 33,025 the corrected value may pass int32.
    """
    k = x_codes.shape[-1]
    acc = accumulate(x_codes, w_codes).astype(np.int64)
    x_code_sum = x_codes.sum(axis=-1, keepdims=True, dtype=np.int64)
    w_code_sum = w_codes.sum(axis=-1, keepdims=True, dtype=np.int64).T
    x_zero_point, w_zero_point = x_zero_point.astype(np.int64), w_zero_point.astype(np.int64).T
    corrected = acc - x_zero_point * w_code_sum - w_zero_point * x_code_sum + k * x_zero_point * w_zero_point
    return rescale(corrected, x_scale, w_scale)


def rescale(acc: NDArray, x_scale: NDArray[np.float32], w_scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """(float32(acc) * x_scale) * w_scale: the order matters to the last place, and is part of the contract."""
    with np.errstate(over="ignore", invalid="ignore"):  # products past float32 are infinite, as in any float product
        return (acc.astype(np.float32) * x_scale) * w_scale.T


class Quantizer(NamedTuple):
    """A way to quantize: what makes codes of values, values of codes, and a product of what it returns for X and for W."""

    quantize: Callable[..., Any]
    dequantize: Callable[..., NDArray[np.float32]]
    product: Callable[..., NDArray[np.float32]]


QUANTIZERS = {
    "absmax": Quantizer(absmax_quantize, absmax_dequantize, absmax_product),
    "zeropoint": Quantizer(zeropoint_quantize, zeropoint_dequantize, zeropoint_product),
}

#: The largest K whose int32 accumulator cannot overflow, by the largest magnitude of a code.
MAX_K = {"absmax": np.iinfo(np.int32).max // INT8_MAX**2, "zeropoint": np.iinfo(np.int32).max // CODE_MIN**2}


def accumulator_fits(k: int, quantizer: str) -> None:
    """Checks that K products of two codes cannot overflow an int32; a ValueError says that they can."""
    if k > MAX_K[quantizer]:
        raise ValueError(f"K must be at most {MAX_K[quantizer]} for {quantizer} codes, or the int32 accumulator may overflow, got K = {k}")
