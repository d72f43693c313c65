"""Values as NumPy code: what a checker shows can be pasted into a cell."""

import math
from typing import Any

import numpy as np

#: Arrays with more entries are written as one number plus the entries that are not, if those are few.
FEW = 64
FEW_OTHERS = 16


def assignment(name: str, value: Any) -> str:
    """Lines of Python that give `name` this value."""
    if isinstance(value, np.ndarray) and value.size > FEW:
        numbers, counts = np.unique(value, return_counts=True)
        most = numbers[counts.argmax()]
        if value.size - counts.max() <= FEW_OTHERS:
            lines = [f"{name} = np.full({value.shape}, {_entries(most.item(), value.dtype)}, np.{value.dtype})"]
            places = np.nonzero(value != most)
            if places[0].size:
                index = ", ".join(str(axis.tolist()) for axis in places)
                lines.append(f"{name}[{index}] = {_entries(value[places].tolist(), value.dtype)}")
            return "\n".join(lines)
    return f"{name} = {code(value)}"


def code(value: Any) -> str:
    """An expression with this value: `np.array([[1.0, 0.996]], np.float32)`."""
    if isinstance(value, np.ndarray):
        return f"np.array({entries(value)}, np.{value.dtype})"
    return repr(value.item()) if isinstance(value, np.generic) else repr(value)


def entries(value: np.ndarray) -> str:
    """The entries of an array as nested lists; of a large one only the shape and dtype."""
    return _entries(value.tolist(), value.dtype)


def short(value: Any) -> str:
    """The entries as `entries`, or shape and dtype of what would fill the screen."""
    value = np.asarray(value)
    return f"an array of shape {value.shape} {value.dtype}" if value.size > FEW else entries(value)


def _entries(value: Any, dtype: np.dtype) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_entries(entry, dtype) for entry in value) + "]"
    if dtype.kind == "f":
        return _number(dtype.type(value))
    return repr(value)


def _number(value: np.floating) -> str:
    """The shortest decimal that reads back as this number; a tiny or huge power of two as a power."""
    if not np.isfinite(value):
        return f"np.{'nan' if np.isnan(value) else 'inf'}" if not value < 0 else "-np.inf"
    mantissa, exponent = math.frexp(abs(float(value)))
    if mantissa == 0.5 and abs(exponent - 1) >= 20:
        return f"{'-' if value < 0 else ''}2.0**{exponent - 1}"
    return str(value)
