"""The style of all pictures here."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what only writes records does without matplotlib
    from matplotlib.figure import Figure

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

#: Of middle brightness, so that each stands out on a white page and on a near-black one. The site replaces them by a darker or a
#: lighter one of each, for the page that it shows (docs/stylesheets/extra.css).
BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#4a90d9", "#e0862b", "#3fa36b", "#d9574e", "#9a72d0", "#70757e"

COLORS = (BLUE, ORANGE, GREEN, RED, PURPLE, GREY)

STYLE: dict[Any, Any] = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.framealpha": 0,
    "text.color": GREY,
    "axes.labelcolor": GREY,
    "axes.edgecolor": GREY,
    "axes.titlecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "grid.color": GREY,
    "grid.alpha": 0.25,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": f"cycler(color={list(COLORS)})",
    "axes.titlesize": 11,
    "font.size": 11,
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "llm-int8",
    "svg.fonttype": "none",
}


def png(figure: "Figure") -> bytes:
    """The figure as a file, without the date."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120, transparent=True, metadata={"Software": None})
    return content.getvalue()


def svg(figure: "Figure") -> str:
    """The figure as SVG, its text as text, without the date; coordinates to a hundredth of a point."""
    import matplotlib

    content = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": STYLE["svg.hashsalt"], "svg.fonttype": "none"}):
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})

    def short(tag: re.Match[str]) -> str:
        return re.sub(r"\d+\.\d{3,}", lambda digits: f"{float(digits[0]):.2f}".rstrip("0").rstrip("."), tag[0])

    return re.sub(r"<[^>]*>", short, content.getvalue())  # in the elements, not in the text that they show


@contextmanager
def figure(width: float = 7.2, height: float = 3.6, rows: int = 1, columns: int = 1) -> Iterator[tuple["Figure", Any]]:
    """Within this context, the figure and its axes have the style of all pictures here; sizes in inches."""
    import matplotlib
    import matplotlib.pyplot as plt

    matplotlib.use("agg")
    with matplotlib.rc_context(STYLE):
        made, axes = plt.subplots(rows, columns, figsize=(width, height))
        yield made, axes
    plt.close(made)
