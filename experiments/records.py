"""The output of an experiment: a JSON record and its pictures. Each file is written whole or not at all."""

import json
import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .command import InputError
from .pages import style

if TYPE_CHECKING:  # a record can be written where no picture can be drawn
    from matplotlib.figure import Figure

Record = dict[str, Any]
#: From the name of a record to the record, None where there is none.
Read = Callable[[str], Record | None]

RESULTS = Path(__file__).parent / "results"


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
    contents = {path.with_name(f"{path.stem}{'' if i == 0 else f'-{i + 1}'}.png"): style.png(figure) for i, figure in enumerate(pictures)}
    contents[path] = text.encode()
    for name, content in contents.items():
        temporary = name.with_name(f".{name.name}")
        try:
            temporary.write_bytes(content)
            os.replace(temporary, name)
        finally:
            temporary.unlink(missing_ok=True)
    return [path, *(name for name in contents if name != path)]


def finish(path: Path, record: Record, pictures: Iterable["Figure"] = (), shown: Iterable[str] = ()) -> None:
    """The end of a command: writes the record and its pictures, then prints `shown`, and on standard error what was written."""
    written = write(path, record, pictures)
    print(*shown, sep="\n\n")
    print("wrote", *written, file=sys.stderr)


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
