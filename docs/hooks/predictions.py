"""The fields of a prediction, below its prompt, and its result, folded until they are filled in.

Without JavaScript the fields are hidden and the result is simply folded; docs/javascripts/predictions.js does the rest. The fields
come from the outputs of the executed cell (tutorials/predict.py), with the computed answer.
"""

import html
import json
import re
import textwrap
from typing import Any

#: The prompt's box, as notebooks.py makes it.
PROMPT = re.compile(r'!!! question "[^"]*"\n\n(?:    .*\n?|\n)+')


def asked(markdown: str, fields: list[dict[str, Any]], name: str) -> str:
    """Puts the fields into the last prompt of a piece of Markdown.

    Args:
        markdown: the cell above the one that computes the answers.
        fields: what tutorials/predict.py has recorded.
        name: of the cell, unique on the site.

    Raises:
        ValueError: there is no prompt.
    """
    prompts = list(PROMPT.finditer(markdown))
    if not prompts:
        raise ValueError(f"{name} computes the answer of a prediction, but the cell above it has no `> **Predict.**`")
    end = prompts[-1].end()
    return f"{markdown[:end].rstrip()}\n\n{textwrap.indent(form(fields, name), '    ')}\n\n{markdown[end:]}"


def form(fields: list[dict[str, Any]], name: str) -> str:
    """The fields and the button, in HTML on one line."""
    inner = "".join(_field(field, f"{name}-{number}") for number, field in enumerate(fields))
    return (
        f'<form class="prediction" data-name="{name}" aria-label="Your prediction">{inner}<p class="do">'
        '<button class="md-button" type="submit">Compare</button> <span class="advice" role="status" aria-live="polite"></span></p></form>'
    )


def _field(field: dict[str, Any], name: str) -> str:
    label = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(field["label"], quote=False))
    data = html.escape(json.dumps({key: field[key] for key in ("kind", "answer", "shown")}))
    compared = '<output class="compared"></output>'
    if field["kind"] == "choice":
        options = "".join(
            f'<label><input type="radio" name="{name}" value="{html.escape(option)}"> {html.escape(option)}</label> '
            for option in field["options"]
        )
        return f'<fieldset class="field" data-field="{data}"><legend>{label}</legend>{options}{compared}</fieldset>'
    mode = "decimal" if field["kind"] == "number" else "text"
    return (
        f'<div class="field" data-field="{data}"><label for="{name}">{label}</label> '
        f'<input id="{name}" type="text" inputmode="{mode}" autocomplete="off"> {compared}</div>'
    )


def result(markdown: str) -> str:
    """The result, folded."""
    return f'??? prediction "Result"\n\n{textwrap.indent(markdown, "    ")}'
