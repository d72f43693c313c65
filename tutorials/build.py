"""Executes the percent scripts of this folder into the notebooks beside them, or checks that they still agree.

    python -m tutorials.build                 # every chapter
    python -m tutorials.build 01 04_outliers  # some
    python -m tutorials.build --check         # execute again, compare with what is stored, write nothing

The script `NN_name.py` is what people edit. The notebook `NN_name.ipynb` is committed with its outputs, so that it reads well
without running anything. Building twice gives the same bytes: cell ids are counted, and nothing records a time or a version.

`--check` fails if a notebook raises, writes to stderr, or differs from the stored one in its sources, in the kinds of its
outputs, or in their text. Numbers in that text may differ by 1e-3 of their value, and those printed with decimals by one unit
of the last place printed, since another processor sums in another order. A number with a `~` before it may differ by 5 %: the
perplexity of a quantized model, where one code that turns at a tie moves everything behind it; with a `≈` by a third: that of a model
that int8 has damaged. Pictures are compared by kind: their descriptions are text, and are compared as such.
"""

import argparse
import os
import re
import sys
import time
from itertools import zip_longest
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

from tutorials import folding

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent

#: The longest that one cell may take, in seconds, on a machine that is busy with other things.
CELL_SECONDS = 900

#: What a notebook runs under: a fixed number of threads. The chapters on kernels turn on Triton's interpreter themselves.
#: The warning is tqdm's, which transformers imports, where Jupyter's widgets are not installed.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "2",
    "PYTHONHASHSEED": "0",
    "PYTHONPATH": str(ROOT),
    "PYTHONWARNINGS": "ignore:IProgress not found",
}

RELATIVE_TOLERANCE = 1e-3
#: For a number with such a mark before it.
ABOUT_TOLERANCE = {"~": 0.05, "≈": 1 / 3}
#: A number on its own, not a part of a word (int8) or of a version (2.13.0).
NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?(?:e[-+]?\d+)?(?![\w]|\.\d)", re.IGNORECASE)

#: A picture inside of a text.
PICTURE = re.compile(r"data:image/[\w+;]+,[\w+/=]*")


class Mismatch(Exception):
    """A stored notebook differs from a fresh run."""


def scripts(names: list[str]) -> list[Path]:
    """The percent scripts, in reading order; those whose name starts with one of `names`, if any are given.

    Raises:
        SystemExit: a name fits no script.
    """
    every = sorted(FOLDER.glob("[0-9][0-9]_*.py"))
    unknown = [name for name in names if not any(script.stem.startswith(name) for script in every)]
    if unknown:
        raise SystemExit(f"no tutorial is called {', '.join(unknown)}; there are {', '.join(script.stem for script in every)}")
    return [script for script in every if not names or any(script.stem.startswith(name) for name in names)]


def execute(script: Path) -> NotebookNode:
    """Runs a percent script from top to bottom and returns it as a notebook with outputs.

    Raises:
        CellExecutionError: a cell raises.
        Mismatch: a cell writes to stderr.
    """
    notebook = jupytext.read(script, fmt="py:percent")
    # Threads are chosen when the kernel starts; it inherits this environment.
    os.environ.update(ENVIRONMENT)
    os.environ.pop("TRITON_INTERPRET", None)
    NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=CELL_SECONDS,
        record_timing=False,
        resources={"metadata": {"path": str(ROOT)}},
        extra_arguments=["--log-level=ERROR"],
    ).execute()
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for number, cell in enumerate(notebook.cells):
        cell.id = f"{script.stem[:2]}-{number:02d}"
        cell.metadata = nbformat.from_dict({})
        if cell.cell_type == "code":
            cell.outputs = joined(cell.outputs)
            complaints = [output.text for output in cell.outputs if output.get("name") == "stderr"]
            if complaints:
                raise Mismatch(f"cell {number} writes to stderr: {complaints[0].strip()[:400]}")
            cell.outputs = folding.fold(cell.outputs)
    return notebook


def joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """The outputs with neighbouring pieces of one stream joined: where a stream is cut depends on timing."""
    result: list[NotebookNode] = []
    for output in outputs:
        if result and output.output_type == "stream" and result[-1].get("name") == output.name:
            result[-1].text += output.text
        else:
            result.append(output)
    return result


def compare(stored: NotebookNode, fresh: NotebookNode) -> None:
    """Compares a stored notebook with a fresh run.

    Raises:
        Mismatch: they differ by more than the tolerance of this module; says in which cells and how.
    """
    differences = []
    for number, (old, new) in enumerate(zip_longest(stored.cells, fresh.cells)):
        if old is None or new is None or (old.cell_type, old.source) != (new.cell_type, new.source):
            raise Mismatch(f"cell {number} is not what the script says; build the notebook again")
        if new.cell_type != "code":
            continue
        kinds = [kind(output) for output in old.outputs], [kind(output) for output in new.outputs]
        if kinds[0] != kinds[1]:
            raise Mismatch(f"cell {number} is stored with outputs {kinds[0]}, a fresh run gives {kinds[1]}")
        for was, now in zip(old.outputs, new.outputs, strict=True):
            for (_, a), (_, b) in zip(texts(was), texts(now), strict=True):
                difference = text_difference(a, b)
                if difference:
                    differences.append(f"cell {number}: {difference}")
    if differences:
        raise Mismatch("\n".join(dict.fromkeys(differences)))


def kind(output: NotebookNode) -> str:
    """What an output is: its type, and its stream or MIME types."""
    return " ".join([output.output_type, *([output.name] if "name" in output else []), *sorted(output.get("data", {}))])


def texts(output: NotebookNode) -> list[tuple[str, str]]:
    """The texts of an output, by MIME type; pictures left out."""
    if output.output_type == "stream":
        return [(output.name, output.text)]
    return [(mime, PICTURE.sub("", text)) for mime, text in sorted(output.get("data", {}).items()) if mime.startswith("text/")]


def text_difference(old: str, new: str) -> str | None:
    """The first difference between two texts beyond the tolerance on numbers and the width of white space, or None."""
    for a, b in zip_longest(old.splitlines(), new.splitlines(), fillvalue=""):
        words = [" ".join(NUMBER.sub("#", line).split()) for line in (a, b)]
        numbers = zip(NUMBER.finditer(a), NUMBER.finditer(b), strict=False)
        if words[0] != words[1] or not all(close(x[0], y[0], about=a[: x.start()][-1:]) for x, y in numbers):
            return f"stored {a.strip()!r}, a fresh run gives {b.strip()!r}"
    return None


def close(old: str, new: str, about: str = "") -> bool:
    """Whether two printed numbers agree to the tolerance of the mark before them, or to one unit of the last decimal printed."""
    a, b = float(old.replace(",", "")), float(new.replace(",", ""))
    return abs(a - b) <= max(ABOUT_TOLERANCE.get(about, RELATIVE_TOLERANCE) * abs(a), 1.0001 * last_place(old))


def last_place(number: str) -> float:
    """The value of one unit in the last decimal of a printed number; 0 for a whole number, which has to agree by itself."""
    mantissa, _, exponent = number.lower().partition("e")
    _, point, decimals = mantissa.partition(".")
    return 10.0 ** (int(exponent or 0) - len(decimals)) if point and decimals else 0.0


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0], prog="python -m tutorials.build")
    parser.add_argument("names", nargs="*", help="chapters by the beginning of their name, such as 01; all if none is given")
    parser.add_argument("--check", action="store_true", help="compare with the stored notebooks and write nothing")
    arguments = parser.parse_args()
    failed = []
    for script in scripts(arguments.names):
        stored = script.with_suffix(".ipynb")
        started = time.perf_counter()
        try:
            notebook = execute(script)
            if arguments.check:
                if not stored.exists():
                    raise Mismatch("there is no stored notebook")
                compare(nbformat.read(stored, as_version=4), notebook)
            else:
                nbformat.write(notebook, stored)
        except (CellExecutionError, Mismatch) as error:
            failed.append(script.stem)
            print(f"{script.stem}: FAILED\n{error}", flush=True)
        else:
            print(f"{script.stem}: {'agrees' if arguments.check else 'written'}, {time.perf_counter() - started:.0f} s", flush=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
