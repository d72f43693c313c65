"""What every checker is made of: an `Exercise` runs an answer on its inputs, and a `Verdict` says what came out.

An answer is compared with `reference`: integers and scales bit for bit, products within a bound that is derived where it is used.
"""

import contextlib
import io
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tutorials.guarding import OutOfBounds, Stopped

from . import comparing, showing
from .comparing import ROUNDOFF, Fault

__all__ = ["F32", "ROUNDOFF", "SEEDS", "SHAPES", "Exercise", "OutOfBounds", "Stopped", "Verdict", "array", "call"]

F32 = np.float32

#: Rows and columns of the generated inputs: single rows and columns, odd sizes, more columns than rows and the reverse.
SHAPES = ((1, 1), (1, 7), (5, 1), (3, 5), (4, 4), (17, 9), (2, 129))
SEEDS = (0, 1, 2)

#: A known mistake is named only if it gives what the answer gives on the input shown and on this share of the failing inputs.
EXPLAINED = 0.8

#: How many entries of smaller inputs are tried to shrink a counterexample: hundreds of small inputs, a few large ones.
SHRINKING = 50_000


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
        plain: names of results of one entry that may come as a plain number.
        bound: for a result that need not be equal bit for bit, how far it may be off: (right result, arguments) to an array.
        idea: (in words, (results, right results, arguments) to bool): when the idea is right although bits are not.
        unwritten: what a stub does, and what to do about it.
    """

    right: Callable
    outputs: Sequence[str]
    cases: Callable[[], Iterator[tuple]]
    inputs: Sequence[str]
    mistakes: Sequence[tuple[str, Callable]] = ()
    shared_axes: Sequence[Sequence[tuple[int, int]]] = ()
    plain: Sequence[str] = ()
    bound: Callable[[np.ndarray, tuple], np.ndarray] | None = None
    idea: tuple[str, Callable[[tuple, tuple, tuple], bool]] | None = None
    unwritten: str = "returns NotImplemented. Write it, then run this cell again."

    def __call__(self, candidate: Callable) -> Verdict:
        """Runs `candidate` on every case; reports a fault of form first, then the first case that fails, as small as it gets."""
        name = getattr(candidate, "__name__", "your function")
        cases = list(self.cases())
        first = call(candidate, cases[0])
        if first is NotImplemented:
            return Verdict(False, f"not yet: {name} {self.unwritten}")
        answers = [first, *(call(candidate, args) for args in cases[1:])]
        faults = [self._fault_of(answer, args, candidate) for answer, args in zip(answers, cases, strict=True)]
        wrong = {index: fault for index, fault in enumerate(faults) if fault}
        if not wrong:
            return Verdict(True, f"right: {name} agrees {self._exactly} on {len(cases)} of {len(cases)} inputs, edges included.")
        shown = next((index for index, fault in wrong.items() if fault.form), min(wrong))
        smallest = self._shrink(candidate, cases[shown], wrong[shown].form)
        fault = self.fault(candidate, smallest) or wrong[shown]
        alike = [index for index, other in wrong.items() if other.form == fault.form]
        hint = fault.advice or self._hint(candidate, smallest, cases, answers, alike)
        grade = self._grade(name, answers, cases, faults)
        return Verdict(False, "\n".join([grade, *self._report(candidate, smallest, fault), *([f"Hint: {hint}"] if hint else [])]))

    def fault(self, candidate: Callable, args: tuple) -> Fault | None:
        """What is wrong with the candidate's answer to `args`, or None."""
        return self._fault_of(call(candidate, args), args, candidate)

    def _fault_of(self, answer: Any, args: tuple, candidate: Callable) -> Fault | None:
        if isinstance(answer, Stopped):
            return Fault(str(answer))
        if isinstance(answer, Exception):
            return Fault(f"it raised {type(answer).__name__}{_line(answer, candidate)}: {answer}")
        wanted = _tuple(self.right(*args))
        fault = comparing.form(self.outputs, answer, wanted, self.plain)
        if fault:
            return fault
        for name, got, want in zip(self.outputs, _tuple(answer), wanted, strict=True):
            fault = comparing.value(name, got, want, self.bound and self.bound(want, args), self.plain)
            if fault:
                return fault
        return None

    @property
    def _exactly(self) -> str:
        return "within its bound" if self.bound else "bit for bit"

    def _grade(self, name: str, answers: list, cases: list[tuple], faults: list[Fault | None]) -> str:
        """The first line: whether the idea is right, and on how many inputs the answer is."""
        passed = sum(fault is None for fault in faults)
        if self.idea and not any(fault and fault.form for fault in faults):
            words, holds = self.idea
            with np.errstate(all="ignore"):  # an answer may hold infinities
                close = [
                    not isinstance(answer, Exception) and holds(_tuple(answer), _tuple(self.right(*args)), args)
                    for answer, args in zip(answers, cases, strict=True)
                ]
            if all(close):
                grades = f"{words} on {len(cases)} of {len(cases)} inputs, {self._exactly} on {passed}"
                return f"the idea is right: {grades}. The smallest input where not:"
        return f"not right yet: {name} is right on {passed} of {len(cases)} inputs. The smallest input found where it is wrong:"

    def _hint(self, candidate: Callable, smallest: tuple, cases: list[tuple], answers: list, wrong: list[int]) -> str | None:
        """The known mistake that gives what the candidate gives here and on most of the failing inputs; of several the best."""
        here = call(candidate, smallest)
        best, most = None, (0.0, 0)
        for hint, mistake in self.mistakes:
            if not comparing.same(here, call(mistake, smallest)):
                continue
            explained = [comparing.same(answer, call(mistake, args)) for args, answer in zip(cases, answers, strict=True)]
            share = sum(explained[index] for index in wrong) / len(wrong)
            if share >= EXPLAINED and (share, sum(explained)) > most:
                best, most = hint, (share, sum(explained))
        return best

    def _shrink(self, candidate: Callable, args: tuple, form: bool) -> tuple:
        """Removes rows and columns, many at once at first, for as long as the answer stays wrong in the same way."""
        left = SHRINKING
        shrunk = True
        while shrunk:
            shrunk = False
            for group in self.shared_axes:
                argument, axis = group[0]
                size = args[argument].shape[axis]
                step = size // 2
                while step >= 1:
                    start = 0
                    while start < args[argument].shape[axis] and left > 0:
                        smaller = list(args)
                        for a, ax in group:
                            smaller[a] = np.delete(smaller[a], slice(start, start + step), axis=ax)
                        left -= 50 + sum(np.size(value) for value in smaller)
                        fault = self.fault(candidate, tuple(smaller)) if smaller[argument].size else None
                        if fault and fault.form == form:
                            args, shrunk = tuple(smaller), True
                        else:
                            start += step
                    step //= 2
        return args

    def _report(self, candidate: Callable, args: tuple, fault: Fault) -> list[str]:
        """The input as code to paste, the fault, and what the answer printed on this input."""
        lines = [line for label, value in zip(self.inputs, args, strict=True) for line in showing.assignment(label, value).split("\n")]
        lines.append(fault.text)
        printed = io.StringIO()
        call(candidate, args, printed)
        if printed.getvalue().strip():
            lines += ["printed on this input:", *(f"  {line}" for line in printed.getvalue().rstrip("\n").split("\n"))]
        return [f"  {line}" for line in lines]


def call(f: Callable, args: tuple, printed: io.StringIO | None = None) -> Any:
    """f(*args) on copies, so that an answer that writes into its input is not believed; what it raises is the result.

    What it prints goes to `printed`, or nowhere: an answer runs on many inputs, of which the reader sees one.
    """
    with np.errstate(all="ignore"), contextlib.redirect_stdout(printed or io.StringIO()):
        try:
            return f(*(a.copy() if isinstance(a, np.ndarray) else a for a in args))
        except Exception as error:
            return error


def _line(error: Exception, candidate: Callable) -> str:
    """Where in the candidate's own file it happened, if it did."""
    own = getattr(getattr(candidate, "__code__", None), "co_filename", None)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == own]
    return f" in line {lines[-1]}" if lines else ""


def _tuple(result: Any) -> tuple:
    return tuple(result) if isinstance(result, tuple) else (result,)


def array(*rows: Sequence[float]) -> np.ndarray:
    """Rows of float32."""
    return np.array(rows, F32)
