"""A launch as the theatre shows it: line by line, with every load and store, what the registers hold, and the bytes counted.

`record` runs a kernel on `minitriton` and returns numbers, strings and lists alone, so that a page can step through it without Python.
"""

import ast
import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import minitriton
from .blocks import Array, Block, widened
from .guarding import Stopped

#: Of a block in registers the first rows and columns are kept.
CORNER = 4
#: A launch of more steps is cut off here: a page shows the beginning.
MOST_STEPS = 4000


def record(text: str, kernel: minitriton.Kernel, grid: Sequence[int], arguments: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Runs `kernel`, which `minitriton.compiled` made of `text`, and notes all that happens.

    Args:
        text: the source; its lines are those of the record.
        kernel: what was made of it.
        grid: programs along each axis.
        arguments: buffers and numbers by name.
        options: the constexpr arguments.

    Returns:
        source: lines; statements: line -> first and last line of its statement; grid; sizes: the numbers among the arguments;
        buffers: what each holds before the launch; steps: one per statement that ran; error: why it was stopped, or None.
    """
    buffers = [value for value in arguments.values() if isinstance(value, minitriton.Buffer)]
    before = [_buffer(buffer) for buffer in buffers]
    statements = _statements(text)
    sizes = {name: value for name, value in {**arguments, **options}.items() if isinstance(value, int)}
    follower = _Follower(statements, buffers, set(sizes))
    error = None
    with minitriton.watching() as follower.seen:
        try:
            with follower:
                kernel[tuple(grid)](**arguments, **options)
        except Stopped as stopped:
            error = str(stopped)
        except Exception as raised:
            error = f"it raised {type(raised).__name__}: {raised}"
    return {
        "source": text.rstrip("\n").split("\n"),
        "statements": statements,
        "grid": list(grid),
        "sizes": sizes,
        "buffers": before,
        "steps": follower.steps,
        "error": error,
    }


def _statements(text: str) -> dict[int, tuple[int, int]]:
    """Each line of the source -> the lines of the statement that it belongs to; of a loop or a branch those of its head."""
    found: dict[int, tuple[int, int]] = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.stmt) and not isinstance(node, ast.FunctionDef):
            body = getattr(node, "body", None)
            last = body[0].lineno - 1 if body else node.end_lineno or node.lineno
            for line in range(node.lineno, last + 1):
                found.setdefault(line, (node.lineno, last))
    return found


class _Follower:
    """Follows Python through the lines of a kernel; within `with follower:` it notes a step for each statement."""

    def __init__(self, statements: dict[int, tuple[int, int]], buffers: list[minitriton.Buffer], sizes: set[str]) -> None:
        self.statements, self.buffers, self.sizes = statements, buffers, sizes
        self.steps: list[dict[str, Any]] = []
        self.seen = minitriton.Watched()
        self.taken = 0  # accesses that belong to steps already
        self.held: dict[str, Any] = {}
        self.program: tuple[int, ...] = ()
        self.counted = _Counted(buffers)

    def __enter__(self) -> "_Follower":
        self.previous = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *raised: Any) -> None:
        sys.settrace(self.previous)
        self._finish()

    def _call(self, frame: types.FrameType, event: str, argument: Any) -> Any:
        return self._line if frame.f_code.co_filename == minitriton.TEXT else None

    def _line(self, frame: types.FrameType, event: str, argument: Any) -> Any:
        if event == "line" and frame.f_lineno in self.statements:
            program = minitriton.current_program()
            first = self.statements[frame.f_lineno][0]
            if not self.steps or self.steps[-1]["line"] != first or program != self.program:
                self._finish(frame)
                if len(self.steps) < MOST_STEPS:
                    self.steps.append({"program": list(program), "line": first})
                if program != self.program:
                    self.program, self.held = program, {}
        elif event == "return":
            self._finish(frame)
        return self._line

    def _finish(self, frame: types.FrameType | None = None) -> None:
        """What the step that ran last has done."""
        if not self.steps:
            return
        step = self.steps[-1]
        accesses = self.seen.accesses[self.taken :]
        self.taken = len(self.seen.accesses)
        if accesses:
            step["accesses"] = step.get("accesses", []) + [_access(access, self.buffers) for access in accesses]
        for access in accesses:
            self.counted.add(access)
        step["bytes"] = self.counted.totals()
        if frame is not None:
            now = {name: value for name, value in frame.f_locals.items() if isinstance(value, Block) and name not in self.sizes}
            changed = {name: _register(value) for name, value in now.items() if self.held.get(name) is not value}
            self.held = now
            if changed:
                step["registers"] = step.get("registers", {}) | changed


@dataclass
class _Counted:
    """Bytes of a launch so far: loaded, of these loaded before (`again`), and stored."""

    buffers: list[minitriton.Buffer]

    def __post_init__(self) -> None:
        self.known = [np.zeros(buffer.flat.size, bool) for buffer in self.buffers]
        self.loaded = self.again = self.stored = 0

    def add(self, access: minitriton.Access) -> None:
        if access.stores:
            self.stored += access.bytes
            return
        known = self.known[_number(access.buffer, self.buffers)]
        places = access.offsets[access.mask] + access.buffer.first
        fresh = np.unique(places[~known[places]])
        known[fresh] = True
        self.loaded += access.bytes
        self.again += access.bytes - len(fresh) * access.buffer.flat.itemsize

    def totals(self) -> list[int]:
        return [self.loaded, self.again, self.stored]


def _number(buffer: minitriton.Buffer, buffers: list[minitriton.Buffer]) -> int:
    return next(n for n, one in enumerate(buffers) if one is buffer)


def _buffer(buffer: minitriton.Buffer) -> dict[str, Any]:
    flat = widened(buffer.flat) if str(buffer.dtype) == "bf16" else buffer.flat
    rows, columns = buffer.shape if len(buffer.shape) == 2 else (1, buffer.shape[0] if buffer.shape else 1)
    return {
        "name": buffer.name,
        "dtype": str(buffer.dtype),
        "rows": rows,
        "columns": columns,
        "stride": buffer.stride(0) if len(buffer.shape) == 2 else columns,
        "writable": buffer.writable,
        "values": _texts(flat),
    }


def _access(access: minitriton.Access, buffers: list[minitriton.Buffer]) -> dict[str, Any]:
    shape = access.offsets.shape
    found = {
        "buffer": _number(access.buffer, buffers),
        "stores": access.stores,
        "shape": list(shape),
        "offsets": access.offsets.ravel().tolist(),
        "mask": "".join("1" if active else "0" for active in access.mask.ravel()),
        "bytes": access.bytes,
    }
    if access.stores:
        found["values"] = _texts(access.values[access.mask])
    return found


def _register(block: Block) -> dict[str, Any]:
    corner = block.data[tuple(slice(CORNER) for _ in block.shape)]
    rows = np.atleast_2d(corner)
    return {"dtype": str(block.dtype), "shape": list(block.shape), "corner": [_texts(row) for row in rows]}


def _texts(values: Array) -> list[str]:
    return [text(value) for value in np.ravel(values)]


def text(value: Any) -> str:
    """A number as the theatre shows it: four digits are enough to tell entries apart."""
    if isinstance(value, bool | np.bool_):
        return "1" if value else "0"
    return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)
