"""Pictures of the tutorial: readable on a light and on a dark page, on a wide and on a narrow one, and none without a description
in words.

The ground is transparent, and every colour is of middle brightness, so that it is visible on white and on near-black.
Each picture is drawn twice, as SVG: for a page, and for a phone.
"""

import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import FancyBboxPatch, Rectangle

from experiments.pages import phone, style
from experiments.pages.style import BLUE, GREEN, GREY, ORANGE, PURPLE, RED

COLORS = (BLUE, ORANGE, GREEN, RED, PURPLE)

#: For maps without text in the cells.
MAGNITUDE_STRONG = LinearSegmentedColormap.from_list("strong", [(0.29, 0.56, 0.85, 0.0), (0.88, 0.53, 0.17, 0.9), (0.85, 0.34, 0.31, 1.0)])

#: How strongly the largest magnitude fills its cell; the entry on it stays readable, on either ground.
FULL = 0.3

#: How many characters of a matrix's row a phone shows, with a space behind each entry.
PHONE_CHARACTERS = 46

#: How many characters of a matrix's title stand above one of its columns.
TITLE_CHARACTERS = 7

#: How figures that are not panels of axes are drawn for a phone.
NARROWED: dict[Figure, Callable[[Figure], Figure]] = {}

#: The outputs of a picture: what Jupyter and GitHub show, and what the site shows up to the width PHONE.
WIDE, NARROW, PHONE = "image/svg+xml", "application/vnd.llm-int8.narrow+svg", "48em"

matplotlib.use("agg")
plt.rcParams.update(style.STYLE | {"figure.figsize": (7.2, 3.2), "text.color": GREY})


def show(figure: Figure, alt: str, narrow: Figure | None = None) -> None:
    """Puts the figure below the cell, with `alt` as its description for those who cannot see it.

    Args:
        figure: as a wide page shows it.
        alt: what it shows, in words.
        narrow: as a phone shows it; by default the panels below each other.
    """
    wide = style.svg(figure)
    narrow = narrow or NARROWED.pop(figure, phone.narrow)(figure)
    display({WIDE: wide, NARROW: style.svg(narrow), "text/plain": alt}, raw=True)
    for drawn in (figure, narrow):
        plt.close(drawn)


def matrices(panels: Sequence[tuple], width: float = 2.4) -> Figure:
    """Small matrices side by side, every entry written out.

    Args:
        panels: (title, array (rows, columns), format such as "{:.2f}", mask of the entries to mark or None).
        width: of one panel of four columns, in inches.
    """
    arrays = [np.atleast_2d(panel[1]) for panel in panels]
    columns = [max(a.shape[1], 2) for a in arrays]
    figure = plt.figure(figsize=(sum(columns) * width / 4, _height(arrays)))
    _row(figure, list(zip(panels, arrays, columns, strict=True)))

    def down(_: Figure) -> Figure:
        lines: list[list[tuple]] = []
        filled = PHONE_CHARACTERS
        for panel, array, count in zip(panels, arrays, columns, strict=True):
            characters = count * (1 + max(len(panel[2].format(value)) for value in array.ravel()))
            if filled + characters > PHONE_CHARACTERS:
                lines.append([])
                filled = 0
            lines[-1].append((panel, array, count))
            filled += characters
        heights = [_height([array for _, array, _ in line]) for line in lines]
        figure = plt.figure(figsize=(phone.INCHES, sum(heights)))
        parts: Any = figure.subfigures(len(lines), 1, squeeze=False, height_ratios=heights)
        for line, part in zip(lines, parts[:, 0], strict=True):
            _row(part, line)
        return figure

    NARROWED[figure] = down
    return figure


def _height(arrays: Sequence[np.ndarray]) -> float:
    return 0.52 * max(a.shape[0] for a in arrays) + 0.5


def _row(figure: Figure | SubFigure, panels: Sequence[tuple]) -> None:
    """Panels side by side, each as wide as its columns."""
    axes = figure.subplots(1, len(panels), width_ratios=[columns for _, _, columns in panels], squeeze=False)
    for ax, ((title, _, text, marked), array, _) in zip(axes[0], panels, strict=True):
        matrix(ax, array, title, text, marked)


def matrix(ax: Axes, values: np.ndarray, title: str, text: str = "{:.2f}", marked: np.ndarray | None = None) -> None:
    """One matrix with its entries; the fill grows with the magnitude, `marked` entries get an orange frame."""
    magnitudes = np.abs(values.astype(np.float64))  # of -128 in int8, too
    fill = FULL * magnitudes / (magnitudes.max() or 1)
    for (i, j), value in np.ndenumerate(values):
        ax.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=BLUE, alpha=fill[i, j], linewidth=0))
        ax.text(j, i, text.format(value), ha="center", va="center", fontsize=10.5)
        if marked is not None and np.broadcast_to(marked, values.shape)[i, j]:
            ax.add_patch(Rectangle((j - 0.46, i - 0.46), 0.92, 0.92, fill=False, edgecolor=ORANGE, linewidth=2))
    rows, columns = values.shape
    title = textwrap.fill(title, TITLE_CHARACTERS * max(columns, 2))
    ax.set(title=title, xticks=[], yticks=[], xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    ax.grid(False)
    ax.spines[:].set_visible(False)


def movement(steps: Sequence[tuple[str, str, int] | str]) -> Figure:
    """What moves where: boxes (name, shape and dtype, bytes) joined by arrows (a word for the operation).

    Args:
        steps: boxes and operations in turn, a box first and last.
    """
    boxes = [s for s in steps if not isinstance(s, str)]
    operations = [s for s in steps if isinstance(s, str)]

    def down(_: Figure) -> Figure:
        """Below each other, each operation beside its arrow."""
        figure, ax = plt.subplots(figsize=(phone.INCHES, 1.15 * len(boxes)))
        for i, (name, shape, size) in enumerate(boxes):
            _step(ax, (0, -1.75 * i), 2.6, f"{name}\n{shape}\n{quantity(size)}", ends=i in (0, len(boxes) - 1))
        for i, operation in enumerate(operations):
            arrow(ax, (0.4, -1.75 * i - 0.03), (0.4, -1.75 * i - 0.7))
            ax.text(0.6, -1.75 * i - 0.37, operation, ha="left", va="center", fontsize=9)
        blank(ax, (-0.1, 2.7), (0.9 - 1.75 * len(boxes) + 0.75, 1.1))
        return figure

    longest = max(len(line) for name, shape, size in boxes for line in (name, *shape.split("\n")))
    side = max(1.25, 0.065 * longest + 0.2)  # the width of a box, so that its text fits
    figure, ax = plt.subplots(figsize=(1.15 * ((side + 0.75) * len(boxes) - 0.55), 1.5))
    NARROWED[figure] = down
    for i, (name, shape, size) in enumerate(boxes):
        _step(ax, ((side + 0.75) * i, 0), side, f"{name}\n{shape}\n{quantity(size)}", ends=i in (0, len(boxes) - 1))
    for i, operation in enumerate(operations):
        start = (side + 0.75) * i + side
        arrow(ax, (start + 0.03, 0.5), (start + 0.72, 0.5))
        ax.text(start + 0.37, 0.58, operation, ha="center", va="bottom", fontsize=9)
    blank(ax, (-0.1, (side + 0.75) * len(boxes) - 0.65), (-0.1, 1.25))
    return figure


def _step(ax: Axes, corner: tuple[float, float], width: float, text: str, ends: bool) -> None:
    """A box of `movement`; the first and the last one have another colour."""
    box(ax, *corner, width, 1, BLUE if ends else GREEN)
    ax.text(corner[0] + width / 2, corner[1] + 0.5, text, ha="center", va="center", fontsize=9.5)


def memory(values: np.ndarray, rows: Sequence[str]) -> Figure:
    """A matrix as it lies in memory: its entries one behind the other, with their offsets, each row in its colour.

    Args:
        values: the matrix; on a phone each row has a line of its own.
        rows: what is written above each row.
    """
    count, columns = values.shape

    def draw(ax: Axes, place: Callable[[int], tuple[float, float]], limits: tuple[tuple[float, float], tuple[float, float]]) -> None:
        for row in range(count):
            x, y = place(row)
            ax.text(x + columns / 2, y + 1.1, rows[row], ha="center", fontsize=8.5)
            for column in range(columns):
                box(ax, x + column, y, 0.94, 0.8, COLORS[row % len(COLORS)])
                ax.text(x + column + 0.47, y + 0.4, f"{values[row, column]:g}", ha="center", va="center", fontsize=9)
                ax.text(x + column + 0.47, y - 0.3, str(row * columns + column), ha="center", va="center", fontsize=8.5)
        blank(ax, *limits)

    def down(_: Figure) -> Figure:
        figure, ax = plt.subplots(figsize=(phone.INCHES, 1.2 * count))
        draw(ax, lambda row: (0, -2.3 * row), ((-0.1, columns + 0.1), (-2.3 * (count - 1) - 0.5, 1.5)))
        return figure

    figure, ax = plt.subplots(figsize=(8, 1.9))
    draw(ax, lambda row: (columns * row, 0), ((-0.1, values.size + 0.1), (-0.5, 1.4)))
    NARROWED[figure] = down
    return figure


def box(ax: Axes, x: float, y: float, width: float, height: float, color: str, fill: float = 0.18) -> None:
    """A rounded box with its lower left corner at (x, y)."""
    style = "round,pad=0,rounding_size=0.08"
    ax.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=(*matplotlib.colors.to_rgb(color), fill), edgecolor=color))


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], color: str = GREY) -> None:
    """An arrow from `start` to `end`."""
    ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": color, "linewidth": 1.5, "shrinkA": 0, "shrinkB": 0})


def blank(ax: Axes, xlim: tuple[float, float], ylim: tuple[float, float]) -> None:
    """Makes `ax` a drawing surface: no axes, no grid."""
    ax.set(xlim=xlim, ylim=ylim)
    ax.axis("off")


def quantity(size: int) -> str:
    """A number of bytes as people read it."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size} B"
