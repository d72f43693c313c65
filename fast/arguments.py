"""Argument checks, once for every file: what is wrong, what it was, what is allowed."""

import ctypes
import math
import numbers
from typing import Any

import torch
from torch import Tensor

from .codes import CODE_MIN, INT8_MAX
from .guard import unguarded

INT32_MAX = torch.iinfo(torch.int32).max
FLOAT32_MAX = torch.finfo(torch.float32).max

#: The largest K whose int32 accumulator cannot overflow, by the largest magnitude of a code.
MAX_K = {"absmax": INT32_MAX // INT8_MAX**2, "zeropoint": INT32_MAX // CODE_MIN**2}

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
GRANULARITIES = ("tensor", "row", "vector")
QUANTIZERS = ("absmax", "zeropoint")
OUTLIER_WEIGHTS = ("dequantized", "float")


def floats(name: str, x: Any, ndim: int | None = None) -> Tensor:
    """Returns `x` if it is a dense tensor of float16, bfloat16 or float32 on a CPU or a CUDA device.

    Raises:
        TypeError: it is not a tensor, or has another dtype.
        ValueError: it has no axis or not the `ndim` asked for, or lies on another device.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if x.dtype not in FLOATS:
        raise TypeError(f"{name} must have dtype float16, bfloat16 or float32, got {x.dtype}; {_hint(name, x)}")
    _layout(name, x, ndim)
    return x


def _hint(name: str, x: Tensor) -> str:
    if x.dtype != torch.int8:
        return f"write {name}.float()"
    return f"write {name}.float(), unless a model cast it to a layer's dtype: Int8Linear's weight holds codes; name the layer in skip"


def codes(name: str, q: Any, ndim: int | None = None) -> Tensor:
    """Returns `q` if it is a dense tensor of int8 codes on a CPU or a CUDA device; who calls this knows that they are codes.

    Raises:
        TypeError: it is not a tensor of int8.
        ValueError: it has no axis or not the `ndim` asked for, or lies on another device.
    """
    if not isinstance(q, Tensor) or q.dtype != torch.int8:
        raise TypeError(f"{name} must be a torch.Tensor of int8 codes, got {q.dtype if isinstance(q, Tensor) else type(q).__name__}")
    _layout(name, q, ndim)
    return unguarded(q)


def _layout(name: str, x: Tensor, ndim: int | None) -> None:
    if x.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {x.layout}")
    if x.device.type not in ("cpu", "cuda", "meta"):
        raise ValueError(f"{name} must be on a cpu or cuda device, got {x.device}")
    if x.ndim == 0 or (ndim is not None and x.ndim != ndim):
        allowed = "at least 1 dimension" if ndim is None else f"{ndim} dimensions"
        raise ValueError(f"{name} must have {allowed}, got shape {tuple(x.shape)}")


def scales(q: Tensor, scale: Any, name: str = "scale") -> Tensor:
    """Returns `scale` (or a zero point, by `name`) if it broadcasts to the shape of the codes `q`.

    A scale of shape (N,) beside codes of shape (N, K) is refused even where K = N would let it broadcast: it would
    scale columns where rows are meant.

    Raises:
        TypeError: it is not a tensor of float32 (a zero point: of int32).
        ValueError: its shape is not that of `q` with some axes of length 1, or it lies on another device.
    """
    dtype = torch.int32 if name == "zero_point" else torch.float32
    if not isinstance(scale, Tensor) or scale.dtype != dtype:
        found = scale.dtype if isinstance(scale, Tensor) else type(scale).__name__
        raise TypeError(f"{name} must be a torch.Tensor of {dtype}, got {found}")
    if scale.ndim != q.ndim or any(s not in (1, n) for s, n in zip(scale.shape, q.shape, strict=True)):
        raise ValueError(
            f"{name} must have the codes' dimensions, each reduced one of length 1, got {tuple(scale.shape)} for codes {tuple(q.shape)}"
        )
    same_device("codes", q, name, scale)
    return scale


def axis(value: Any) -> int | None:
    """Returns `value` if it is None (one slice) or -1 (one slice per row).

    Raises:
        ValueError: anything else.
    """
    if value is not None and (isinstance(value, bool) or value != -1):
        raise ValueError(f"axis must be None (one scale) or -1 (a scale for each row), got {value!r}")
    return value


def one_of(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    """Returns `value` if it is one of `allowed`.

    Raises:
        ValueError: it is not.
    """
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    return value


def threshold(value: Any) -> float | None:
    """Returns the outlier threshold rounded to float32, or None where it turns decomposition off.

    None, infinity and whatever float32 rounds to infinity mean the same: no column is an outlier.

    Raises:
        TypeError, ValueError: as `check_threshold`.
    """
    if type(value) is not float or not 0.0 <= value < FLOAT32_MAX:  # the usual ones, at every call of a layer, without a further question
        check_threshold(value)
        if value is None:
            return None
    rounded = ctypes.c_float(value).value  # ten times as fast as through a tensor
    return None if math.isinf(rounded) else rounded


def check_threshold(value: Any) -> None:
    """Checks that `value` is None or a number that may be an outlier threshold. It computes nothing, so torch.compile can trace it.

    Raises:
        TypeError: it is not a number.
        ValueError: it is negative or NaN.
    """
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"threshold must be a number or None, got {type(value).__name__}")
    if math.isnan(value) or value < 0:
        raise ValueError(f"threshold must be 0 or more, or None to turn decomposition off, got {value}")


def same_device(a_name: str, a: Tensor, b_name: str, b: Tensor) -> None:
    """Checks that two tensors lie on one device.

    Raises:
        ValueError: they do not.
    """
    if a.device != b.device:
        raise ValueError(f"{a_name} and {b_name} must be on the same device, got {a.device} and {b.device}")


def same_k(a_name: str, a: Tensor, b_name: str, b: Tensor) -> int:
    """Returns K, the length of the axis over which a product sums.

    Raises:
        ValueError: the last axes or the devices differ.
    """
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(
            f"{a_name} and {b_name} must have the same last dimension K, got {a_name} {tuple(a.shape)} and {b_name} {tuple(b.shape)}; "
            f"{b_name} is laid out as in torch.nn.Linear, (N, K)"
        )
    same_device(a_name, a, b_name, b)
    return a.shape[-1]


def rows_of(x: Tensor) -> Tensor:
    """Flattens the leading dimensions: (..., K) to (M, K), also where K or M is 0."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def accumulator_fits(k: int, quantizer: str) -> None:
    """Checks that K products of two codes cannot overflow an int32.

    Raises:
        ValueError: they can.
    """
    if k > MAX_K[quantizer]:
        raise ValueError(f"K must be at most {MAX_K[quantizer]} for {quantizer} codes, or the int32 accumulator may overflow, got K = {k}")
