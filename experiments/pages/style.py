"""The style of all pictures here."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what only writes records does without matplotlib
    from matplotlib.figure import Figure

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

#: Of middle brightness, so that each stands out on a white page and on a near-black one.
BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#4a90d9", "#e0862b", "#3fa36b", "#d9574e", "#9a72d0", "#7d828c"

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
}


def png(figure: "Figure") -> bytes:
    """The figure as a file, without the date."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120, transparent=True, metadata={"Software": None})
    return content.getvalue()


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
