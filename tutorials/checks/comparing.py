"""What is wrong with one answer: its form (how many results, in which order, of which dtype and shape) or its values."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import showing

#: The unit roundoff of float32: one rounded operation is off by at most this, relative to its result.
ROUNDOFF = 2.0**-24


@dataclass(frozen=True)
class Fault:
    """What is wrong with an answer.

    Attributes:
        text: what came out and what was expected.
        form: whether it is the form of the results; their values were not looked at then.
        advice: how to mend a fault of form.
    """

    text: str
    form: bool = False
    advice: str | None = None


def form(names: Sequence[str], results: Any, wanted: tuple, plain: Sequence[str]) -> Fault | None:
    """The fault in number, order, dtype or shape of the results, or None.

    Args:
        names: of the results that are expected, in order.
        results: what an answer returned.
        wanted: the right results, arrays.
        plain: names of results of one entry that may come as a plain number.
    """
    if isinstance(results, list) and len(names) > 1 and len(results) == len(names):
        return Fault(f"it returned a list; expected a tuple: {', '.join(names)}", True, f"write `return {', '.join(names)}`.")
    got = results if isinstance(results, tuple) else (results,)
    if len(got) != len(names):
        count = f"{len(got)} value{'' if len(got) == 1 else 's'}"
        return Fault(f"it returned {count}; expected {len(names)}: {', '.join(names)}", True)
    faults = [_form_of_one(*each, plain) for each in zip(names, got, wanted, strict=True)]
    first = next((fault for fault in faults if fault), None)
    if first is None:
        return None
    for order in itertools.permutations(range(len(got))):
        if not any(_form_of_one(n, got[i], w, plain) for n, i, w in zip(names, order, wanted, strict=True)):
            return Fault("the results are in another order", True, f"write `return {', '.join(names)}`.")
    return first


def _form_of_one(name: str, got: Any, want: np.ndarray, plain: Sequence[str]) -> Fault | None:
    if not isinstance(got, np.ndarray | np.generic | int | float):
        return Fault(f"{name} is of type {type(got).__name__}; expected an array of {want.dtype}", True, "return a NumPy array.")
    got = plain_number(got, want) if name in plain else np.asarray(got)
    if got.dtype != want.dtype:
        return Fault(f"{name} has dtype {got.dtype}; expected {want.dtype}", True, _dtype_advice(got.dtype, want.dtype))
    if got.shape != want.shape:
        return Fault(f"{name} has shape {got.shape}; expected {want.shape}", True)
    return None


def _dtype_advice(got: np.dtype, want: np.dtype) -> str | None:
    if want == np.int8:
        if got == np.uint8:
            return "uint8 holds 0 to 255. The codes have a sign: use int8, -128 to 127."
        return "round with np.rint, then cast with .astype(np.int8)."
    if (got, want) == (np.float64, np.float32):
        return "a float64 number or array took part. Compute in float32: np.float32(127), acc.astype(np.float32)."
    if (got, want) == (np.float16, np.float32):
        return "never narrow to float16: compute and return float32."
    if want == np.bool_ and got.kind in "iu":
        return "return the mask itself, one True or False per feature, not the positions that np.flatnonzero gives."
    return None


def plain_number(got: Any, want: np.ndarray) -> np.ndarray:
    """One entry in the shape of `want`, and of its dtype where that is an integer and nothing is lost."""
    got = np.asarray(got)
    if want.size != 1 or got.size != 1:
        return got
    if want.dtype.kind in "iu" and got.dtype.kind in "iuf" and got == np.rint(got):
        got = got.astype(want.dtype)
    return got.reshape(want.shape)


def value(name: str, got: Any, want: np.ndarray, bound: np.ndarray | None, plain: Sequence[str]) -> Fault | None:
    """The fault in the entries of one result of the right form: equal bit for bit, NaN to NaN, or within `bound`."""
    got = plain_number(got, want) if name in plain else np.asarray(got)
    if bound is None:
        right = np.array_equal(got, want, equal_nan=got.dtype.kind == "f")
    else:
        right = bool((np.abs(got.astype(np.float64) - want) <= bound).all())
    return None if right else Fault(f"{name}: got {showing.short(got)}; expected {showing.short(want)}")


def up_to_float_sums(got: np.ndarray, want: np.ndarray, terms: int, magnitudes: np.ndarray) -> bool:
    """Whether two float32 sums of the same products, in any order and rounded at any step, can lie that far apart.

    Args:
        got, want: the sums.
        terms: how many products, at most.
        magnitudes: the sums of the products' magnitudes. On either side each factor was rounded once, each product once, and
            each sum once per term: 2 (terms + 3) roundings.
    """
    with np.errstate(all="ignore"):  # an answer may hold infinities
        return bool((np.abs(got.astype(np.float64) - want) <= 2 * (terms + 3) * ROUNDOFF * magnitudes).all())


def same(a: Any, b: Any) -> bool:
    """Whether two answers are one and the same: integers exactly, floats up to a few roundings, dtypes and order as well."""
    if isinstance(a, Exception) or isinstance(b, Exception):
        return type(a) is type(b) and getattr(a, "what", None) == getattr(b, "what", None)
    a, b = (r if isinstance(r, tuple) else (r,) for r in (a, b))
    return len(a) == len(b) and all(_equal(np.asarray(p), np.asarray(q)) for p, q in zip(a, b, strict=True))


def _equal(p: np.ndarray, q: np.ndarray) -> bool:
    if p.size == q.size == 1:
        p, q = p.ravel(), q.ravel()
    elif p.shape != q.shape or p.dtype != q.dtype:
        return False
    if p.dtype.kind == "f":
        finite = np.abs(q[np.isfinite(q)])
        return np.allclose(p, q, rtol=0, atol=16 * ROUNDOFF * finite.max(initial=0), equal_nan=True)
    return np.array_equal(p, q)
