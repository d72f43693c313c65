"""Pictures of the tutorial: readable on a light and on a dark page, and none without a description in words.

The ground is transparent, and every colour is of middle brightness, so that it is visible on white and on near-black.
"""

import io
from collections.abc import Sequence

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

#: From small to large magnitude; the grey entries stay readable on its full end, on either ground.
MAGNITUDE = LinearSegmentedColormap.from_list("magnitude", [(0.29, 0.56, 0.85, 0.0), (0.29, 0.56, 0.85, 0.3)])

matplotlib.use("agg")
plt.rcParams.update(style.STYLE | {"figure.figsize": (7.2, 3.2), "text.color": GREY})


def show(figure: Figure, alt: str) -> None:
    """Puts the figure below the cell, with `alt` as its description for those who cannot see it."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120, transparent=True, metadata={"Software": None})
    plt.close(figure)
    display({"image/png": image.getvalue(), "text/plain": alt}, raw=True, metadata={"image/png": {"alt": alt}})


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
    ax.imshow(np.abs(values) / top, cmap=MAGNITUDE, vmin=0, vmax=1, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        ax.text(j, i, text.format(value), ha="center", va="center", fontsize=10.5)
        if marked is not None and np.broadcast_to(marked, values.shape)[i, j]:
            ax.add_patch(Rectangle((j - 0.46, i - 0.46), 0.92, 0.92, fill=False, edgecolor=ORANGE, linewidth=2))
    ax.set(title=title, xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set_visible(False)


def movement(steps: Sequence[tuple[str, str, int] | str]) -> Figure:
    """What moves where: boxes (name, shape and dtype, bytes) joined by arrows (a word for the operation).

    Args:
        steps: boxes and operations in turn, a box first and last.
    """
    boxes = [s for s in steps if not isinstance(s, str)]
    operations = [s for s in steps if isinstance(s, str)]
    figure, ax = plt.subplots(figsize=(2.35 * len(boxes), 1.5))
    for i, (name, shape, size) in enumerate(boxes):
        box(ax, 2 * i, 0, 1.25, 1, BLUE if i in (0, len(boxes) - 1) else GREEN)
        ax.text(2 * i + 0.625, 0.5, f"{name}\n{shape}\n{quantity(size)}", ha="center", va="center", fontsize=9.5)
    for i, operation in enumerate(operations):
        arrow(ax, (2 * i + 1.28, 0.5), (2 * i + 1.97, 0.5))
        ax.text(2 * i + 1.62, 0.58, operation, ha="center", va="bottom", fontsize=9)
    blank(ax, (-0.1, 2 * len(boxes) - 0.65), (-0.1, 1.25))
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
