"""What the theatre shows first: kernels of the chapters on inputs that fit a screen, with the bytes that they have to move.

Each example is a kernel of a chapter, unchanged, and the arguments of one launch. `formula` says what a launch of these sizes loads and
stores; the recorded counters must come to the same, which `tests/test_theatre.py` checks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import reference

from . import chapter_kernels, minitriton, recording
from .example import W, X

F32 = np.float32


@dataclass(frozen=True)
class Example:
    """One launch to watch.

    Attributes:
        title: what is shown.
        kernel: the name of a chapter's kernel.
        grid: programs along each axis.
        arguments: makes the buffers and numbers, by name.
        options: the constexpr arguments.
        formula: what is loaded or stored -> (in symbols, bytes for the sizes of this launch).
        opening: a part of the line at whose last run the page opens.
    """

    title: str
    kernel: str
    grid: tuple[int, ...]
    arguments: Callable[[], dict[str, Any]]
    options: dict[str, Any]
    formula: dict[str, tuple[str, int]]
    opening: str


def recorded(example: Example) -> dict[str, Any]:
    """The record of an example, with its title, its formula and the step at which it opens."""
    source = chapter_kernels.every()[example.kernel]
    kernel = minitriton.compiled(source.text, example.kernel)
    found = recording.record(source.text, kernel, example.grid, example.arguments(), example.options)
    lines = [found["statements"][n][0] for n, line in enumerate(found["source"], 1) if example.opening in line]
    opening = max(n for n, step in enumerate(found["steps"]) if step["line"] in lines)
    formula = [[what, symbols, size] for what, (symbols, size) in example.formula.items()]
    return found | {"title": example.title, "chapter": source.chapter, "formula": formula, "opening": opening}


def given(name: str, values: np.ndarray, extra: int = 0, fill: float = 0) -> minitriton.Buffer:
    """An input: a vector, or rows that are `extra` entries longer than they need to be."""
    if values.ndim == 1:
        return minitriton.Buffer(name, values.copy(), values.shape, writable=False)
    rows, columns = values.shape
    wide = np.full((rows, columns + extra), fill, values.dtype)
    wide[:, :columns] = values
    return minitriton.Buffer(name, wide.ravel(), values.shape, columns + extra, writable=False)


def empty(name: str, shape: tuple[int, ...], dtype: type) -> minitriton.Buffer:
    """A result that nothing has been stored to: NaN, or -99 where there is none."""
    fill = np.nan if np.dtype(dtype).kind == "f" else -99
    return minitriton.Buffer(name, np.full(int(np.prod(shape)), fill, dtype), shape)


def _rows(x: np.ndarray, extra: int) -> dict[str, Any]:
    m, k = x.shape
    buffers = given("x", x, extra, 1e30), empty("codes", (m, k), np.int8), empty("scale", (m,), np.float32)
    return dict(zip(("x", "codes", "scale", "K", "stride"), (*buffers, k, k + extra), strict=True))


def _copied() -> dict[str, Any]:
    return {"x": given("x", X), "y": empty("y", (4, 4), np.float32), "K": 4, "stride": 4}


def _product(m: int, n: int, k: int, y: type, scales: bool) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    a, b = (given(name, rng.integers(-9, 10, (rows, k), np.int8)) for name, rows in (("a", m), ("b", n)))
    found: dict[str, Any] = {"a": a, "b": b, "y": empty("y", (m, n), y)}
    if scales:
        found["scale_a"], found["scale_b"] = (given(f"scale_{s}", np.linspace(0.5, 2, r, dtype=F32)) for s, r in (("a", m), ("b", n)))
    return found | {"M": m, "N": n, "K": k, "stride_a": k, "stride_b": k}


def _llm_int8() -> dict[str, Any]:
    outliers = reference.outlier_columns(X)
    (xq, sx), (wq, sw) = reference.absmax_quantize(np.where(outliers, F32(0), X), -1), reference.absmax_quantize(W, -1)
    listed = np.array([*np.flatnonzero(outliers), *[0] * int((~outliers).sum()), outliers.sum()], np.int32)
    buffers = {"a": given("a", xq), "b": given("b", wq), "y": empty("y", (4, 4), np.float32)}
    buffers |= {"scale_a": given("scale_a", sx.ravel()), "scale_b": given("scale_b", sw.ravel())}
    buffers |= {"x": given("x", X), "outliers": given("outliers", listed)}
    return buffers | {"M": 4, "N": 4, "K": 4, "stride_a": 4, "stride_b": 4}


TILE = {"BLOCK": 16, "BLOCK_K": 32}


def _tiles(m: int, n: int, k: int, y: int, scales: int) -> dict[str, tuple[str, int]]:
    """The bytes of a product in tiles of 16 x 16: each tile loads its rows of both operands."""
    down, along = -(-m // 16), -(-n // 16)
    found = {"a loaded": ("⌈N/16⌉ · M · K", along * m * k), "b loaded": ("⌈M/16⌉ · N · K", down * n * k)}
    if scales:
        found["scales loaded"] = ("4 (⌈N/16⌉ · M + ⌈M/16⌉ · N)", 4 * (along * m + down * n))
    return found | {"y stored": (f"{y} · M · N", y * m * n)}


EXAMPLES = {
    "outliers": Example(
        "LLM.int8() on the 4 x 4: the outlier loop", "llm_int8_product", (1, 1), _llm_int8, TILE,
        _tiles(4, 4, 4, 4, scales=1)
        | {"count loaded": ("4", 4), "per outlier": ("o (4 + 4 M + N)", 1 * (4 + 4 * 4 + 4))},
        "w_o = tl.load",
    ),
    "quantize": Example(
        "Quantizing rows: K = 3, a block of 4", "quantize_rows", (4,), lambda: _rows(X[:, :3], 1), {"BLOCK_K": 4},
        {"x loaded": ("4 · M · K", 4 * 4 * 3), "codes stored": ("M · K", 4 * 3), "scale stored": ("4 · M", 4 * 4)},
        "codes + row",
    ),
    "copy": Example(
        "Copying rows: one program per row", "copy_rows", (4,), _copied, {"BLOCK_K": 4},
        {"x loaded": ("4 · M · K", 64), "y stored": ("4 · M · K", 64)},
        "tl.store",
    ),
    "tiles": Example(
        "Six tiles and two blocks of K: codes used again", "int8_product", (2, 3), lambda: _product(20, 36, 40, np.int32, False), TILE,
        _tiles(20, 36, 40, 4, scales=0),
        "acc = tl.dot",
    ),
    "epilogue": Example(
        "The epilogue: scales applied in registers", "scaled_product", (1, 2), lambda: _product(5, 20, 12, F32, True), TILE,
        _tiles(5, 20, 12, 4, scales=1),
        "result =",
    ),
}  # fmt: skip
