"""What every checker is made of: an `Exercise` runs an answer on its inputs, and a `Verdict` says what came out.

An answer is compared with `reference`: integers and scales bit for bit, products within a bound that is derived where it is used.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

F32 = np.float32
#: The unit roundoff of float32: one rounded operation is off by at most this, relative to its result.
ROUNDOFF = 2.0**-24

#: Rows and columns of the generated inputs: single rows and columns, odd sizes, more columns than rows and the reverse.
SHAPES = ((1, 1), (1, 7), (5, 1), (3, 5), (4, 4), (17, 9), (2, 129))
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Verdict:
    """What a checker found: `passed`, and the `message` for the reader, which is also how it prints."""

    passed: bool
    message: str

    def __repr__(self) -> str:
        return self.message


@dataclass
class Exercise:
    """One exercise: the right answer, inputs from small to large, and the mistakes that are known.

    Attributes:
        right: the function to agree with; its results are named in `outputs`.
        cases: makes the argument tuples, smallest first.
        mistakes: (what to say, a function that makes the mistake).
        shared_axes: groups of (argument, axis) that lose an index together while a counterexample is made smaller.
        compare: fault of one output, as `exact`; the default of every output.
    """

    right: Callable
    outputs: Sequence[str]
    cases: Callable[[], Iterator[tuple]]
    inputs: Sequence[str]
    mistakes: Sequence[tuple[str, Callable]] = ()
    shared_axes: Sequence[Sequence[tuple[int, int]]] = ()
    compare: Callable[..., str | None] = field(default=lambda name, got, want, args: exact(name, got, want))

    def __call__(self, candidate: Callable) -> Verdict:
        """Runs `candidate` on every case and reports on the first that fails, made as small as it gets."""
        name = getattr(candidate, "__name__", "your function")
        cases = list(self.cases())
        if call(candidate, cases[0]) is NotImplemented:
            return Verdict(False, f"not yet: {name} returns NotImplemented. Write it, then run this cell again.")
        for args in cases:
            if self.fault(candidate, args):
                smallest = self._shrink(candidate, args)
                return Verdict(False, self._report(name, candidate, smallest, self._diagnose(candidate, cases, smallest)))
        return Verdict(True, f"right: {name} agrees with the reference on {len(cases)} inputs, edges included.")

    def fault(self, candidate: Callable, args: tuple) -> str | None:
        """What is wrong with the candidate's answer to `args`, in a line or two, or None."""
        got = call(candidate, args)
        if isinstance(got, Exception):
            return f"it raised {type(got).__name__}: {got}"
        results = got if isinstance(got, tuple) else (got,)
        if len(results) != len(self.outputs):
            return f"it returned {_count(len(results), 'value')}; expected {len(self.outputs)}: {', '.join(self.outputs)}"
        wanted = _tuple(self.right(*args))
        faults = (self.compare(n, g, w, args) for n, g, w in zip(self.outputs, results, wanted, strict=True))
        return next((fault for fault in faults if fault), None)

    def _diagnose(self, candidate: Callable, cases: list[tuple], smallest: tuple) -> str | None:
        """The known mistake that gives what the candidate gives: on every case; or here, and wherever else it explains most."""
        for hint, mistake in self.mistakes:
            if all(_same(call(candidate, args), call(mistake, args)) for args in [smallest, *cases]):
                return f"Hint: {hint}"
        wrong = [args for args in cases if self.fault(candidate, args)]
        here = [(hint, mistake) for hint, mistake in self.mistakes if _same(call(candidate, smallest), call(mistake, smallest))]
        if not here:
            return None
        explained = [sum(_same(call(candidate, args), call(mistake, args)) for args in wrong) for _, mistake in here]
        return f"Perhaps, among other things: {here[explained.index(max(explained))][0]}"

    def _shrink(self, candidate: Callable, args: tuple) -> tuple:
        """Removes rows and columns for as long as the answer stays wrong."""
        shrunk = True
        while shrunk:
            shrunk = False
            for group in self.shared_axes:
                argument, axis = group[0]
                for index in range(args[argument].shape[axis]):
                    smaller = list(args)
                    for a, ax in group:
                        smaller[a] = np.delete(smaller[a], index, axis=ax)
                    if smaller[argument].size and self.fault(candidate, tuple(smaller)):
                        args, shrunk = tuple(smaller), True
                        break
        return args

    def _report(self, name: str, candidate: Callable, args: tuple, hint: str | None) -> str:
        lines = [f"not right yet. The smallest input found where {name} is wrong:"]
        lines += [f"  {label} = {_show(value)}" for label, value in zip(self.inputs, args, strict=True)]
        lines.append(f"  {self.fault(candidate, args)}")
        if hint:
            lines.append(hint)
        return "\n".join(lines)


def exact(name: str, got: Any, want: np.ndarray) -> str | None:
    """Fault of a result that has to have the dtype, shape and values of `want`, bit for bit; NaN equals NaN."""
    got = np.asarray(got)
    if got.dtype != want.dtype:
        return f"{name} has dtype {got.dtype}; expected {want.dtype}"
    if got.shape != want.shape:
        return f"{name} has shape {got.shape}; expected {want.shape}"
    if not np.array_equal(got, want, equal_nan=got.dtype.kind == "f"):
        return f"{name}: got {_show(got)}; expected {_show(want)}"
    return None


def one_scale(name: str, got: Any, want: np.ndarray, args: tuple) -> str | None:
    """As `exact`; a result of one entry may come as a plain number."""
    if want.size == 1 and np.size(got) == 1 and name in ("scale", "zero_point"):
        got = np.asarray(got).reshape(want.shape)
        got = got.astype(want.dtype) if name == "zero_point" and got.dtype.kind in "iu" else got
    return exact(name, got, want)


def within(name: str, got: Any, want: np.ndarray, bound: np.ndarray) -> str | None:
    """Fault of a float32 result that has to lie within `bound` of `want`, entry by entry."""
    got = np.asarray(got)
    if got.dtype != want.dtype or got.shape != want.shape:
        return exact(name, got, want)
    off = ~(np.abs(got.astype(np.float64) - want) <= bound)
    if off.any():
        return f"{name}: got {_show(got)}; expected {_show(want)}"
    return None


def call(f: Callable, args: tuple) -> Any:
    """f(*args) on copies, so that an answer that writes into its input is not believed; what it raises is the result."""
    with np.errstate(all="ignore"):
        try:
            return f(*(a.copy() if isinstance(a, np.ndarray) else a for a in args))
        except Exception as error:
            return error


def _tuple(result: Any) -> tuple:
    return tuple(result) if isinstance(result, tuple) else (result,)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Exception) or isinstance(b, Exception):
        return type(a) is type(b)
    a, b = _tuple(a), _tuple(b)
    return len(a) == len(b) and all(_equal(p, q) for p, q in zip(a, b, strict=True))


def _equal(p: Any, q: Any) -> bool:
    """Whether two answers are one and the same: whole numbers exactly, floats up to a few roundings, in whatever order they came."""
    p, q = np.asarray(p), np.asarray(q)
    if p.shape != q.shape and not p.size == q.size == 1:
        return False
    if p.dtype.kind == q.dtype.kind == "f":
        return np.allclose(p.ravel(), q.ravel(), rtol=16 * ROUNDOFF, atol=0, equal_nan=True)
    return np.array_equal(p.ravel(), q.ravel())


def _show(value: Any) -> str:
    if not isinstance(value, np.ndarray):
        return repr(value)
    if value.size > 64:
        return f"an array of shape {value.shape} {value.dtype}"
    if value.dtype.kind == "f":
        digits = 5 if value.size > 4 else 9
        return _nested(value.astype(np.float64).tolist(), digits)
    return str(value.tolist())


def _nested(value: Any, digits: int) -> str:
    return "[" + ", ".join(_nested(v, digits) for v in value) + "]" if isinstance(value, list) else f"{value:.{digits}g}"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def array(*rows: Sequence[float]) -> np.ndarray:
    return np.array(rows, F32)
