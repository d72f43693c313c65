"""What a reader is told when a kernel is stopped: one wording, for Triton's interpreter, for a GPU and for `minitriton`.

An access outside of a buffer is stopped before it happens; the message says which program, which buffer and which line it was.
"""

import contextlib
import linecache
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

#: Files and folders that are not the reader's: Python's, NumPy's, the checkers, and what runs a kernel.
HERE = Path(__file__).parent
MACHINERY = (
    Path(np.__file__).parent,
    Path(contextlib.__file__).parent,
    HERE / "checks",
    *(HERE / f"{name}.py" for name in ("guarding", "minitriton", "accesses", "blocks", "recording", "ladder")),
)


class Stopped(Exception):
    """An answer was stopped; the text says where and why, without a name of an exception before it."""


class OutOfBounds(Stopped):
    """An answer was stopped because it would have loaded or stored outside of its buffers.

    Attributes:
        what: "loads a", "stores y": what it does to which buffer, by which two such answers are told apart.
    """

    def __init__(self, what: str, text: str = "") -> None:
        super().__init__(text)
        self.what = what


def outside(program: Sequence[int], stores: bool, name: str, offset: int, size: int, place: str) -> OutOfBounds:
    """An access at `offset` of the buffer `name`, which has `size` entries from where the kernel's pointer points."""
    does = "stores" if stores else "loads"
    advice = f"a mask is missing or too wide, or the offset is not that of {name}"
    where = f"offset {offset} of {name}, a buffer of {size}"
    return OutOfBounds(f"{does} {name}", f"{program_name(program)} {does} {where}, {place}\n  ({advice})")


def into_an_input(program: Sequence[int], name: str, place: str) -> OutOfBounds:
    """A store into a buffer that is only to be read."""
    return OutOfBounds(f"stores {name}", f"{program_name(program)} stores into {name}, an input, {place}")


def program_name(program: Sequence[int]) -> str:
    """A program by its ids: `program 3`, `program (1, 0)`."""
    return f"program {program[0] if len(program) == 1 else tuple(program)}"


def is_readers(filename: str, others: Sequence[Path] = ()) -> bool:
    """Whether a file is the reader's: neither of MACHINERY nor of `others`."""
    return not any(Path(filename).is_relative_to(path) for path in (*MACHINERY, *others))


def place(own: Callable[[str], bool] = is_readers) -> str:
    """The reader's line that is running: its number, which in a notebook counts from the top of the cell, and its text."""
    frame: types.FrameType | None = sys._getframe()
    while frame is not None and not own(frame.f_code.co_filename):
        frame = frame.f_back
    return "in the kernel" if frame is None else named(frame.f_code.co_filename, frame.f_lineno)


def named(filename: str, number: int) -> str:
    """A line: its number and its text."""
    text = linecache.getline(filename, number).strip()
    return f"line {number}{f': {text}' if text else ''}"


def as_the_reader_sees_it(error: BaseException, own: Callable[[str], bool] = is_readers) -> BaseException:
    """What went wrong, without the machinery around it, and with the line of the kernel."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, Stopped):
        return error
    trace, found = error.__traceback__, None
    while trace is not None:
        if own(trace.tb_frame.f_code.co_filename):
            found = trace.tb_frame.f_code.co_filename, trace.tb_lineno
        trace = trace.tb_next
    if found is None:
        return error
    text = f"it raised {type(error).__name__} in {named(*found)}\n  {error}"
    if isinstance(error, TypeError | AttributeError) and "[" in linecache.getline(*found) and "tl.load" not in linecache.getline(*found):
        text += "\n  (a kernel gets pointers, not arrays: tl.load(x + offsets) instead of x[...])"
    return Stopped(text)
