"""The second rendering of a figure: for a page as narrow as a phone.

The panels go below each other; what is written beside them is wrapped, and marks on an axis that would overlap are left out.
"""

import itertools
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

#: The width, in inches: 358 CSS pixels of a screen of 390 show 280 points, so that a label of 8 points has 10 pixels.
INCHES = 3.9
#: The size of the numbers and names along an axis, in points, and the height of a line of them in inches.
LABEL, LINE = 8.5, 0.15
#: After how many characters a name along the vertical axis, the label of an axis and a title are wrapped; the longest entry of a legend
#: with two columns.
NAME, AXIS, TITLE, ENTRY = 15, 34, 36, 18


def narrow(figure: "Figure") -> "Figure":
    """The same figure for a phone. Changes `figure` and returns it."""
    height = _stack(figure)
    _name_all(figure.axes)
    height += sum(_wrap(axes) for axes in figure.axes) + sum(_list(legend) for legend in tuple(figure.legends))
    for legend in filter(None, (axes.get_legend() for axes in figure.axes)):
        for text in legend.get_texts():
            text.set_fontsize(LABEL)
    figure.set_size_inches(INCHES, height)
    figure.draw_without_rendering()
    for axes in figure.axes:
        _thin(axes)
    return figure


def _stack(figure: "Figure") -> float:
    """Puts the panels below each other; returns the height that they then need, in inches."""
    height = float(figure.get_size_inches()[1])
    placed = [(spec, axes) for axes in figure.axes if (spec := axes.get_subplotspec()) is not None]
    panels = sorted({spec.num1 for spec, _ in placed})
    if not panels:
        return height
    rows = placed[0][0].get_gridspec().nrows
    grid = figure.add_gridspec(len(panels), 1)
    for spec, axes in placed:
        axes.set_subplotspec(grid[panels.index(spec.num1)])
    return height / rows * len(panels)


def _names(axes: "Axes") -> list[str]:
    """The names along the vertical axis; empty if there are numbers."""
    names = [label.get_text() for label in axes.get_yticklabels()]
    return [] if any("$" in name for name in names) else names


def _name_all(panels: "Sequence[Axes]") -> None:
    """Repeats the names that a panel has from the one to the left of it."""
    for left, right in itertools.pairwise(panels):
        if any(_names(left)) and not any(_names(right)) and len(_names(left)) == len(right.get_yticks()):
            right.set_yticks(right.get_yticks(), _names(left))
            right.tick_params(labelleft=True)


def _wrap(axes: "Axes") -> float:
    """Wraps the title, the axes' labels and names along the vertical axis; returns how much higher the panel has to be, in inches."""
    for place in ("center", "left"):
        axes.set_title(textwrap.fill(axes.get_title(loc=place), TITLE), loc=place)
    for text in (axes.xaxis.label, axes.yaxis.label):
        text.set(text=textwrap.fill(text.get_text(), AXIS), fontsize=LABEL + 1)
    axes.tick_params(labelsize=LABEL)
    names = _names(axes)
    if max(map(len, names), default=0) <= NAME:
        return 0
    wrapped = [textwrap.fill(name, NAME) for name in names]
    axes.set_yticks(axes.get_yticks(), wrapped)
    return LINE * sum(name.count("\n") for name in wrapped)


def _list(legend: "Legend") -> float:
    """Lays out a figure's legend in one or two columns; returns its height in inches."""
    figure: Any = legend.figure
    handles, labels = next(found for axes in figure.axes if (found := axes.get_legend_handles_labels())[1])
    columns = 2 if max(map(len, labels)) <= ENTRY else 1
    legend.remove()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=LABEL)
    return 1.4 * LINE * len(labels) / columns


def _thin(axes: "Axes") -> None:
    """Leaves out every second mark of the horizontal axis until their labels do not overlap."""
    low, high = sorted(axes.get_xlim())
    marks = [(at, label) for at, label in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True) if low <= at <= high]
    boxes = [label.get_window_extent() for _, label in marks]
    step = 1
    while any(a.x1 + 2 > b.x0 for a, b in zip(boxes[::step], boxes[step::step], strict=False)):
        step *= 2
    if step > 1:
        axes.set_xticks([at for at, _ in marks[::step]], [label.get_text() for _, label in marks[::step]])
