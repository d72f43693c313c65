"""The pages of `experiments.dial`: picture, table, section."""

import itertools
from collections.abc import Iterator
from typing import Any

from ..lm.methods import SETTINGS
from . import perplexity, style, tables


def pictures(record: dict[str, Any]) -> Iterator[Any]:
    """Perplexity over the factor, a line for each method."""
    rows = record["rows"]
    with style.figure(8, 3.8) as (figure, axes):
        for label, marker in zip(SETTINGS, "o^svD", strict=True):
            own = [row for row in rows if row["label"] == label]
            axes.plot([row["factor"] for row in own], [row["perplexity"] for row in own], marker + "-", markersize=5, label=label)
        axes.axhline(record["float_perplexity"], color=style.GREY, linestyle=":", linewidth=1.2, label="float32, at any factor")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set(xlabel="factor by which the features are larger", ylabel="perplexity")
        axes.legend(fontsize=9)
        yield figure


def cells(record: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Perplexity by factor (a row) and method (a column), with the features that the criterion finds."""
    head = ["factor", "outlier features", "largest", *SETTINGS, "in 16 bits"]
    lines = []
    for factor in dict.fromkeys(row["factor"] for row in record["rows"]):
        own = {row["label"]: row for row in record["rows"] if row["factor"] == factor}
        first, last = own[next(iter(SETTINGS))], own[list(SETTINGS)[-1]]
        count = len(set(itertools.chain(*first["features"].values())))
        lines.append(
            [
                f"{factor:g}",
                str(count),
                f"{first['largest']:.0f}",
                *(perplexity.shown(own[label]["perplexity"]) for label in SETTINGS),
                f"{100 * last['outlier_share']:.2f} %",
            ]
        )
    return head, lines


def section(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    settings = record["settings"]
    parts = [
        "## The outlier dial",
        f"{tables.text_of(settings)}; {tables.provenance(record)}.",
        f"{len(settings['features'])} features of ordinary size are made larger where attention and MLP read them, and the weight columns "
        "that read them smaller by the same power of two. The float model's losses stay the same, bit for bit (the command checks it); its "
        f"perplexity is {record['float_perplexity']:.2f} at every factor. Outlier features: how many the criterion finds in any kind of "
        "input. In 16 bits: the share of LLM.int8()'s products.",
        "![Perplexity over the factor by which the features are larger, a line for each method](results/dial.png)",
        tables.markdown(*cells(record)),
        "The dial also makes the weights that read a feature small beside the others of their row, so that few codes are left for them: "
        "made from the codes they are coarse, kept in float they are exact. Whether a real model's large features have small weights is "
        "another question.",
    ]
    return "\n\n".join(parts) + "\n"
