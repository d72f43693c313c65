"""Predictions: what a reader answers before a result is shown.

A prompt is a block quote, `> **Predict.** ...`. The code cell below it calls one of these functions per answer, with the value
that it has computed:

    predict.number("one step", scale.item(), ".3f")
    predict.choice("where do the curves lie closest?", names, names[gaps.argmin()])
    predict.text("codes of the first row", codes[0])

In a running notebook each call prints the answer. `tutorials.build` folds whatever such a cell shows, and the site puts a field
and a button below the prompt; only then are the guess and the value compared (docs/javascripts/predictions.js).
"""

import html
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from IPython.display import display

#: The output that carries one field, for tutorials/build.py.
MIME = "application/vnd.llm-int8.prediction+json"


def number(label: str, value: float, places: str = "g", unit: str = "", about: str = "") -> None:
    """Asks for a number.

    Args:
        label: what is asked for, in a few words; `code` may be marked.
        value: the computed answer.
        places: how it is printed, as a format specification.
        unit: printed behind it, such as "%".
        about: the mark of a number that is another one on another processor: "~" slightly, "≈" up to a third (tutorials/build.py).
    """
    shown = f"{value:{places}}"
    answer = shown.replace(",", "").rstrip("%")
    _ask({"kind": "number", "label": label, "answer": answer, "shown": f"{about}{shown} {unit}".strip()})


def choice(label: str, options: Sequence[str], answer: str) -> None:
    """Asks for one of several options.

    Args:
        label: the question.
        options: what can be chosen.
        answer: the computed one.

    Raises:
        ValueError: the answer is not among the options.
    """
    if answer not in options:
        raise ValueError(f"the answer to {label!r} must be one of {list(options)}, got {answer!r}")
    _ask({"kind": "choice", "label": label, "options": list(options), "answer": answer, "shown": answer})


def text(label: str, answer: Any) -> None:
    """Asks for a short text, such as a list of codes; spaces, commas and brackets do not count when it is compared.

    Args:
        label: what is asked for.
        answer: the computed answer; an array is written as its entries.
    """
    shown = ", ".join(f"{entry:g}" for entry in np.ravel(answer)) if isinstance(answer, np.ndarray) else str(answer)
    _ask({"kind": "text", "label": label, "answer": shown, "shown": shown})


def explain(sentences: str) -> None:
    """Shows Markdown with the result: why the answer is what it is."""
    display({"text/markdown": sentences, "text/plain": sentences}, raw=True)


def _ask(field: dict[str, Any]) -> None:
    display({MIME: field, "text/markdown": line(field), "text/plain": f"{field['label']}: {field['shown']}"}, raw=True)


def line(field: dict[str, Any]) -> str:
    """A field with its answer, in Markdown."""
    return f"{field['label']}: **{field['shown']}**"


def question(field: dict[str, Any]) -> str:
    """A field without its answer, in HTML."""
    asked = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(field["label"], quote=False))
    options = ", ".join(html.escape(option, quote=False) for option in field.get("options", []))
    return f"{asked} ({options})" if options else asked
