"""How wrong the result can be, at most: three bounds, each a short formula. docs/bounds.md proves them.

    round trip      half a step
    product         K times (the error of one factor times the magnitude of the other, both ways round)
    LLM.int8()      the same over the regular columns alone, plus what the outlier columns' weights lost

Each adds the roundings of float32 that lie on the way, and each is given in float64, so that computing it adds none. A bound speaks
of finite slices, and of results that did not overflow float32; a NaN in a scale gives a NaN.
"""

import numpy as np
from numpy.typing import NDArray

from . import arguments
from .absmax import INT8_MAX, ZERO_SLICE
from .decomposition import split
from .vectorwise import AXES, QUANTIZERS
from .zeropoint import CODE_STEPS

#: float32's unit roundoff: a rounded operation is off by a factor of at most 1 + U.
U = 2.0**-24

#: What an operation whose result is too small for float32's relative precision may lose, flushed to zero or not.
UNDERFLOW = 2.0**-126

#: The largest magnitude in a slice, in steps.
STEPS = {"absmax": INT8_MAX, "zeropoint": CODE_STEPS}

#: What float32 adds to the error of a round trip, in steps: about 8 U on the 127 steps of absmax, and 10 U on the 255 of zeropoint.
ROUNDINGS = {"absmax": 2.0**-14, "zeropoint": 2.0**-12}


def round_trip_bound(scale: NDArray[np.float32], quantizer: str = "absmax") -> NDArray[np.float64]:
    """The largest |dequantize(quantize(x)) - x| of an entry: half a step, and float32's roundings.

        scale * (1/2 + 2**-14)  for absmax,   scale * (1/2 + 2**-12)  for zeropoint,   2**-100  for a zero slice

    Args:
        scale: float32, as the quantizer returns it.
        quantizer: "absmax" or "zeropoint".

    Returns:
        float64, the shape of scale; NaN where it is NaN.

    Raises:
        ValueError: an unknown quantizer.
    """
    arguments.one_of("quantizer", quantizer, QUANTIZERS)
    return np.where(scale == 0, float(ZERO_SLICE), scale.astype(np.float64) * (0.5 + ROUNDINGS[quantizer]))


def magnitude_bound(scale: NDArray[np.float32], quantizer: str = "absmax") -> NDArray[np.float64]:
    """The largest |x| and |dequantize(quantize(x))| that the scale admits.

        127 * scale  for absmax,   255 * scale  for zeropoint,   2**-100  for a zero slice

    Arguments, result and errors as in `round_trip_bound`. An entry may exceed it by a factor of 1 + U.
    """
    arguments.one_of("quantizer", quantizer, QUANTIZERS)
    return np.where(scale == 0, float(ZERO_SLICE), scale.astype(np.float64) * STEPS[quantizer])


def quantized_matmul_bound(
    x_scale: NDArray[np.float32], w_scale: NDArray[np.float32], k: int, quantizer: str = "absmax"
) -> NDArray[np.float64]:
    """The largest |Y - X @ W.T| of a quantized product, from both scales and K.

        K * (ex * mw + mx * ew + 4 U * mx * mw) + 2**-126

    with e the `round_trip_bound` and m the `magnitude_bound` of a row of X or of W. For absmax this is less than
    127 * K * x_scale * w_scale * (1 + 2**-12): one part in 127 of the largest product that the scales admit.

    Args:
        x_scale: (M, 1) or (1, 1) float32.
        w_scale: (N, 1) or (1, 1) float32.
        k: the length of the sum; for LLM.int8(), how many columns are regular.
        quantizer: "absmax" or "zeropoint".

    Returns:
        float64, (M, N) or what broadcasts to it.

    Raises:
        ValueError: an unknown quantizer.
    """
    x_error, w_error = round_trip_bound(x_scale, quantizer), round_trip_bound(w_scale, quantizer).T
    x_most, w_most = magnitude_bound(x_scale, quantizer), magnitude_bound(w_scale, quantizer).T
    return k * (x_error * w_most + x_most * w_error + 4 * U * x_most * w_most) + UNDERFLOW


def llm_int8_matmul_bound(
    x: NDArray,
    w: NDArray,
    threshold: float | None = 6.0,
    quantizer: str = "absmax",
    granularity: str = "vector",
    outlier_weight: str = "float",
    bias: NDArray | None = None,
) -> NDArray[np.float64]:
    """The largest |Y - (X @ W.T + bias)| of LLM.int8(): only the regular columns pay for both factors.

        quantized_matmul_bound(K - |O|)  +  T * (ew + g * mw)  +  (3 U + g) * (K - |O|) * mx * mw  +  3 U * (T * mw + |bias|)

    with O the outlier columns, T the sum of |X[m, k]| over them, ew the `round_trip_bound` of W's row, or 0 where the outlier
    columns meet the float weight, and g = 2 |O| U / (1 - 2 |O| U), the forward bound of a float32 dot product in any order whose
    sums may be cut off instead of rounded, as in a GPU's matrix unit. The last two terms are for regular + outliers + bias, whether
    the regular part is added to the sum over the outliers or that sum starts from it.

    Args:
        x, w, threshold, quantizer, granularity: as in `llm_int8_matmul`.
        outlier_weight: "float", as `llm_int8_matmul` computes, or "dequantized", as `Int8Linear` does unless told otherwise.
        bias: (N,), or None.

    Returns:
        (..., N) float64, for a float32 result; a cast to another dtype adds one rounding of Y.

    Raises:
        TypeError, ValueError: an argument has the wrong type or shape, or is not one of the allowed values; the message names it.
    """
    x, w = arguments.floats("x", x), arguments.floats("w", w, ndim=2)
    arguments.same_k("x", x, "w", w)
    arguments.one_of("granularity", granularity, AXES)
    arguments.one_of("quantizer", quantizer, QUANTIZERS)
    arguments.one_of("outlier_weight", outlier_weight, arguments.OUTLIER_WEIGHTS)
    rows = arguments.rows_of(x)
    outliers, regular = split(rows, threshold)
    x_axis, w_axis = AXES[granularity]
    quantize = QUANTIZERS[quantizer].quantize
    x_scale, w_scale = quantize(regular, x_axis).scale, quantize(w, w_axis).scale

    count = int(outliers.sum())
    k = len(outliers) - count
    x_most, w_most = magnitude_bound(x_scale, quantizer), magnitude_bound(w_scale, quantizer).T
    total = np.abs(rows[:, outliers]).sum(axis=-1, keepdims=True, dtype=np.float64)
    w_error = 0.0 if outlier_weight == "float" else round_trip_bound(w_scale, quantizer).T
    dot = 2 * count * U / (1 - 2 * count * U)

    product = quantized_matmul_bound(x_scale, w_scale, k, quantizer)
    outlier = total * (w_error + dot * w_most) + count * UNDERFLOW
    sums = (3 * U + dot) * k * x_most * w_most + 3 * U * (total * w_most + (0 if bias is None else np.abs(bias)))
    return np.broadcast_to(product + outlier + sums, (len(rows), len(w))).reshape(*x.shape[:-1], len(w))
