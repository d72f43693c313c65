"""Folds the outputs of a cell whose result is to be predicted, so that a notebook does not give the answer away.

The one output that replaces them is Markdown with a `<details>` element, which Jupyter and GitHub show closed and the site
(docs/hooks/notebooks.py) turns into a field, a button and the result.
"""

import base64
import html
import re

from nbformat import NotebookNode
from nbformat.v4 import new_output

from tutorials import pictures, predict

#: A printed text that is source code: it starts with the path of its file (tutorials/source.py).
SOURCE = re.compile(r"# \w[\w/]*\.py\n")


def fold(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """The outputs as one, folded, if there is a prediction among them; otherwise as they are.

    Raises:
        ValueError: there is an output that cannot be shown inside of Markdown.
    """
    fields = [output.data[predict.MIME] for output in outputs if predict.MIME in output.get("data", {})]
    if not fields:
        return outputs
    answers = "\n".join(f"- {predict.line(field)}" for field in fields)
    rest = [_markdown(output) for output in outputs if predict.MIME not in output.get("data", {})]
    summary = "; ".join(predict.question(field) for field in fields)
    body = "\n\n".join([answers, *rest])
    text = f"<details>\n<summary>Your guess first: {summary}</summary>\n\n{body}\n\n</details>"
    plain = "\n".join(f"{field['label']}: {field['shown']}" for field in fields)
    return [
        new_output(
            "display_data", data={"text/markdown": text, "text/plain": plain}, metadata={"prediction": [dict(field) for field in fields]}
        )
    ]


def _markdown(output: NotebookNode) -> str:
    """An output inside of Markdown."""
    data = output.get("data", {})
    if pictures.WIDE in data:
        wide, narrow = (base64.b64encode(data[mime].encode()).decode() for mime in (pictures.WIDE, pictures.NARROW))
        return (
            f'<picture><source media="(max-width: {pictures.PHONE})" srcset="data:image/svg+xml;base64,{narrow}">'
            f'<img alt="{html.escape(data["text/plain"])}" src="data:image/svg+xml;base64,{wide}"></picture>'
        )
    if "text/markdown" in data:
        return str(data["text/markdown"])
    text = output.get("text") or data.get("text/plain")
    if text is None:
        raise ValueError(f"an output of type {output.output_type} cannot be folded")
    text = text.strip("\n")
    ticks = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{ticks}{'python' if SOURCE.match(text) else 'text'}\n{text}\n{ticks}"
