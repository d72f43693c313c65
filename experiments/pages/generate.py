"""The section of `experiments.generate`."""

from typing import Any

from . import tables


def section(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    settings, found = record["settings"], record["perplexity"]
    table = [[row["part"], _mb(row["float"]), _mb(row["int8"]), f"{row['int8'] / row['float']:.2f}"] for row in record["bytes"]]
    sizes = tables.markdown(["", f"{settings['dtype']}, MB", "int8, MB", "ratio"], table)
    quality = (
        f"Perplexity: {found['float']:#.4g} in {settings['dtype']}, {found['from_pretrained']:#.4g} in int8. "
        "The loss of each window has the same bits as that of a model quantized in memory; the command fails if not."
    )
    texts = "\n\n".join(map(_text, record["texts"]))
    return f"""## A model in int8 through `from_pretrained`

{tables.text_of(settings)}; {tables.provenance(record)}.

{sizes}

{quality}

What both write after a prompt, always taking the likeliest token:

{texts}
"""


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f}"


def _text(row: dict[str, Any]) -> str:
    lines = [f"prompt  {row['prompt']!r}", f"float   {row['float']!r}", f"int8    {row['int8']!r}"]
    equal = f"All {row['tokens']}" if row["equal"] == row["tokens"] else f"The first {row['equal']} of {row['tokens']}"
    return "```text\n" + "\n".join(lines) + f"\n```\n\n{equal} tokens are equal."
