"""Tables as text and as Markdown, and the lines that say where a record comes from."""

from collections.abc import Sequence
from typing import Any


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
