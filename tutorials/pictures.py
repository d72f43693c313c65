"""Pictures of the tutorial: readable on a light and on a dark page, on a wide and on a narrow one, and none without a description
in words.

The ground is transparent, and every colour is of middle brightness, so that it is visible on white and on near-black.
Each picture is drawn twice, as SVG: for a page, and for a phone.
"""

from collections.abc import Callable, Sequence

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from experiments.pages import style
from experiments.pages.style import BLUE, GREEN, GREY, ORANGE, PURPLE, RED

COLORS = (BLUE, ORANGE, GREEN, RED, PURPLE)

#: For maps without text in the cells.
MAGNITUDE_STRONG = LinearSegmentedColormap.from_list("strong", [(0.29, 0.56, 0.85, 0.0), (0.88, 0.53, 0.17, 0.9), (0.85, 0.34, 0.31, 1.0)])

#: How strongly the largest magnitude fills its cell; the entry on it stays readable, on either ground.
FULL = 0.3

#: The outputs of a picture: what Jupyter and GitHub show, and what the site shows up to the width PHONE.
WIDE, NARROW, PHONE = "image/svg+xml", "application/vnd.llm-int8.narrow+svg", "48em"

matplotlib.use("agg")
plt.rcParams.update(style.STYLE | {"figure.figsize": (7.2, 3.2), "text.color": GREY})


class Drawing(Figure):
    """A figure that is drawn in another way for a phone."""

    narrow: Callable[[], Figure]


def show(figure: Figure, alt: str) -> None:
    """Puts the figure below the cell, with `alt` as its description for those who cannot see it."""
    wide = style.svg(figure)
    narrow = figure.narrow() if isinstance(figure, Drawing) else style.narrow(figure)
    display({WIDE: wide, NARROW: style.svg(narrow), "text/plain": alt}, raw=True)
    for drawn in (figure, narrow):
        plt.close(drawn)


def matrices(panels: Sequence[tuple], width: float = 2.4) -> Figure:
    """Small matrices side by side, every entry written out.

    Args:
        panels: (title, array (rows, columns), format such as "{:.2f}", mask of the entries to mark or None).
        width: of one panel of four columns, in inches.
    """
    shapes = [np.atleast_2d(p[1]).shape for p in panels]
    figure, axes = plt.subplots(
        1,
        len(panels),
        figsize=(sum(max(c, 2) for _, c in shapes) * width / 4, 0.52 * max(r for r, _ in shapes) + 0.5),
        width_ratios=[max(c, 2) for _, c in shapes],
        squeeze=False,
    )
    for ax, (title, values, text, marked) in zip(axes[0], panels, strict=True):
        matrix(ax, np.atleast_2d(values), title, text, marked)
    return figure


def matrix(ax: Axes, values: np.ndarray, title: str, text: str = "{:.2f}", marked: np.ndarray | None = None) -> None:
    """One matrix with its entries; the fill grows with the magnitude, `marked` entries get an orange frame."""
    top = np.abs(values).max() or 1
    for (i, j), value in np.ndenumerate(values):
        ax.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=BLUE, alpha=FULL * float(abs(value) / top), linewidth=0))
        ax.text(j, i, text.format(value), ha="center", va="center", fontsize=10.5)
        if marked is not None and np.broadcast_to(marked, values.shape)[i, j]:
            ax.add_patch(Rectangle((j - 0.46, i - 0.46), 0.92, 0.92, fill=False, edgecolor=ORANGE, linewidth=2))
    rows, columns = values.shape
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

    def down() -> Figure:
        """Below each other, each operation beside its arrow."""
        figure, ax = plt.subplots(figsize=(style.PHONE_INCHES, 1.15 * len(boxes)))
        for i, (name, shape, size) in enumerate(boxes):
            _step(ax, (0, -1.75 * i), 2.6, f"{name}\n{shape}\n{quantity(size)}", ends=i in (0, len(boxes) - 1))
        for i, operation in enumerate(operations):
            arrow(ax, (0.4, -1.75 * i - 0.03), (0.4, -1.75 * i - 0.7))
            ax.text(0.6, -1.75 * i - 0.37, operation, ha="left", va="center", fontsize=9)
        blank(ax, (-0.1, 2.7), (0.9 - 1.75 * len(boxes) + 0.75, 1.1))
        return figure

    longest = max(len(line) for name, shape, size in boxes for line in (name, *shape.split("\n")))
    side = max(1.25, 0.065 * longest + 0.2)  # the width of a box, so that its text fits
    figure = plt.figure(figsize=(1.15 * ((side + 0.75) * len(boxes) - 0.55), 1.5), FigureClass=Drawing)
    assert isinstance(figure, Drawing)
    figure.narrow = down
    ax = figure.subplots()
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
