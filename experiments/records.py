"""The output of an experiment: a JSON record and its pictures. Each file is written whole or not at all."""

import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .command import InputError

if TYPE_CHECKING:  # a record can be written where no picture can be drawn
    from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / "results"

#: Of middle brightness, so that each stands out on a white page and on a near-black one.
BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#4a90d9", "#e0862b", "#3fa36b", "#d9574e", "#9a72d0", "#7d828c"
COLORS = (BLUE, ORANGE, GREEN, RED, PURPLE, GREY)

STYLE: dict[str, Any] = {
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
    "axes.titlesize": 11,
    "font.size": 11,
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "llm-int8",
}


def output_path(out: str | None, name: str) -> Path:
    """Returns where the JSON record goes: `out`, or experiments/results/NAME.json.

    Raises:
        InputError: `out` does not end in .json, its folder does not exist, or nothing can be written there.
    """
    if out is None:
        RESULTS.mkdir(exist_ok=True)
        return RESULTS / f"{name}.json"
    path = Path(out)
    if path.suffix != ".json":
        raise InputError(f"--out must end in .json, got {out}")
    if not path.parent.is_dir():
        raise InputError(f"--out {out}: there is no folder {path.parent}")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(f"--out {out}: cannot be written there")
    return path


def write(path: Path, record: dict[str, Any], pictures: Iterable["Figure"] = ()) -> list[Path]:
    """Writes the record to `path`, and each picture beside it: NAME.png, NAME-2.png and so on.

    Returns:
        The paths written. Nothing is written before everything has been drawn; each file appears whole, the record last.
    """
    text = json.dumps(plain(record), indent=1, allow_nan=False) + "\n"
    # A list of numbers on one line. JSON's strings hold no line break, so none of them is touched.
    text = re.sub(r'\[\n[^][{}"]*\]', lambda numbers: " ".join(numbers[0].split()), text)
    contents = {path.with_name(f"{path.stem}{'' if i == 0 else f'-{i + 1}'}.png"): png(figure) for i, figure in enumerate(pictures)}
    contents[path] = text.encode()
    for name, content in contents.items():
        temporary = name.with_name(f".{name.name}")
        try:
            temporary.write_bytes(content)
            os.replace(temporary, name)
        finally:
            temporary.unlink(missing_ok=True)
    return [path, *(name for name in contents if name != path)]


def png(figure: "Figure") -> bytes:
    """The figure as a file, without the date."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120, transparent=True, metadata={"Software": None})
    return content.getvalue()


def plain(value: Any) -> Any:
    """Numbers as JSON has them: six significant digits, None for what is not finite."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(v) for v in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def rows_to_resume(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the rows of the record at `path`; none where there is no record.

    Raises:
        InputError: it was made with other settings, or is no record.
    """
    if not path.is_file():
        return []
    try:
        record = json.loads(path.read_text())
        found, rows = record["settings"], record["rows"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"--resume: {path} is not a record of this experiment") from error
    if found != plain(settings):
        raise InputError(f"--resume: {path} was made with other settings; name another file with --out")
    return rows


def read(name: str) -> dict[str, Any] | None:
    """Returns the record experiments/results/NAME.json, or None where there is none."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else None


@contextmanager
def figure(width: float = 7.2, height: float = 3.6, rows: int = 1, columns: int = 1) -> Iterator[tuple["Figure", Any]]:
    """Within this context, the figure and its axes have the style of all pictures here; sizes in inches."""
    import matplotlib
    import matplotlib.pyplot as plt
    from cycler import cycler

    matplotlib.use("agg")
    style: dict[Any, Any] = STYLE | {"axes.prop_cycle": cycler(color=COLORS)}
    with matplotlib.rc_context(style):
        made, axes = plt.subplots(rows, columns, figsize=(width, height))
        yield made, axes
    plt.close(made)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A text table: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [head, ["-" * w for w in widths], *rows]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]) for row in lines)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: the first column to the left, the others to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def provenance(record: dict[str, Any]) -> str:
    """One line of Markdown: on what, with which Torch, when, by which command."""
    place = record["device"]
    device = f"{place['cpu']}, {place['threads']} thread{'' if place['threads'] == 1 else 's'}"
    return f"{device}, Torch {record['versions']['torch']}; {record['date']}; `{record['command']}`"


def text_of(settings: dict[str, Any]) -> str:
    """What the model read, from the settings that `models.described` made."""
    windows = sum(passage["windows"] for passage in settings["passages"])
    passages = len(settings["passages"])
    return (
        f"{settings['model']} on {windows} window{'' if windows == 1 else 's'} of {settings['tokens_per_window']} tokens "
        f"from {passages} passage{'' if passages == 1 else 's'}"
    )
