"""Argument checks, once for every file: what is wrong, what it was, what is allowed."""

import math
from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

OUTLIER_WEIGHTS = ("dequantized", "float")


def floats(name: str, x: Any, ndim: int | None = None) -> NDArray[np.float32]:
    """Returns `x` widened to float32; nothing is ever narrowed.

    bfloat16 is accepted under the name that the package ml_dtypes gives it, since NumPy has none of its own.

    Raises:
        TypeError: `x` is not an array of float16, bfloat16 or float32.
        ValueError: `x` has no axis, or not the `ndim` axes asked for.
    """
    if not isinstance(x, np.ndarray):
        raise TypeError(f"{name} must be a numpy.ndarray, got {type(x).__name__}; write numpy.asarray({name}, numpy.float32)")
    if x.dtype.name not in ("float16", "bfloat16", "float32"):
        raise TypeError(f"{name} must have dtype float16, bfloat16 or float32, got {x.dtype}; write {name}.astype(numpy.float32)")
    _rank(name, x, ndim)
    return x.astype(np.float32, copy=False)


def codes(name: str, q: Any, ndim: int | None = None) -> NDArray[np.int8]:
    """Returns `q` if it is an array of int8 codes.

    Raises:
        TypeError: `q` is not an array of int8.
        ValueError: `q` has no axis, or not the `ndim` axes asked for.
    """
    if not isinstance(q, np.ndarray) or q.dtype != np.int8:
        found = q.dtype if isinstance(q, np.ndarray) else type(q).__name__
        raise TypeError(f"{name} must be a numpy.ndarray of int8 codes, got {found}")
    _rank(name, q, ndim)
    return q


def _rank(name: str, x: np.ndarray, ndim: int | None) -> None:
    if x.ndim == 0 or (ndim is not None and x.ndim != ndim):
        allowed = "at least 1 dimension" if ndim is None else f"{ndim} dimensions"
        raise ValueError(f"{name} must have {allowed}, got shape {x.shape}")


def axis(value: Any) -> int | None:
    """Returns `value` if it is None (one slice) or -1 (one slice per row).

    Raises:
        ValueError: anything else.
    """
    if value is not None and (isinstance(value, bool) or value != -1):
        raise ValueError(f"axis must be None (one scale) or -1 (a scale for each row), got {value!r}")
    return value


def one_of(name: str, value: Any, allowed: Collection[str]) -> str:
    """Returns `value` if it is one of `allowed`.

    Raises:
        ValueError: it is not.
    """
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    return value


def threshold(value: Any) -> np.float32 | None:
    """Returns the outlier threshold in float32, or None where it turns decomposition off.

    None, infinity and whatever float32 rounds to infinity mean the same: no column is an outlier.

    Raises:
        TypeError: it is not a number.
        ValueError: it is negative or NaN.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"threshold must be a number or None, got {type(value).__name__}")
    if math.isnan(value) or value < 0:
        raise ValueError(f"threshold must be 0 or more, or None to turn decomposition off, got {value}")
    with np.errstate(over="ignore"):
        rounded = np.float32(value)
    return None if np.isinf(rounded) else rounded


def rows_of(x: np.ndarray) -> np.ndarray:
    """Flattens the leading dimensions: (..., K) to (M, K), also where K or M is 0."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def same_k(a_name: str, a: np.ndarray, b_name: str, b: np.ndarray) -> int:
    """Returns K, the length of the axis over which a product sums.

    Raises:
        ValueError: the last axes differ.
    """
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(
            f"{a_name} and {b_name} must have the same last dimension K, got {a_name} {a.shape} and {b_name} {b.shape}; "
            f"{b_name} is laid out as in torch.nn.Linear, (N, K)"
        )
    return a.shape[-1]


def scales(q: NDArray[np.int8], scale: Any, name: str = "scale") -> np.ndarray:
    """Returns `scale` (or a zero point, by `name`) if it broadcasts to the shape of the codes `q`.

    A scale of shape (N,) beside codes of shape (N, K) is refused even where K = N would let it broadcast: it would
    scale columns where rows are meant, the best known mistake in published int8 code.

    Raises:
        TypeError: `scale` is not an array of float32 (a zero point: of int32).
        ValueError: its shape is not that of `q` with some axes of length 1.
    """
    dtype = np.int32 if name == "zero_point" else np.float32
    if not isinstance(scale, np.ndarray) or scale.dtype != dtype:
        found = scale.dtype if isinstance(scale, np.ndarray) else type(scale).__name__
        raise TypeError(f"{name} must be a numpy.ndarray of {np.dtype(dtype)}, got {found}")
    if scale.ndim != q.ndim or any(s not in (1, n) for s, n in zip(scale.shape, q.shape, strict=True)):
        raise ValueError(f"{name} must have the codes' dimensions, each reduced one of length 1, got {scale.shape} for codes {q.shape}")
    return scale
