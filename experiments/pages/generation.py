"""The pages of `experiments.generation`: picture and section."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from . import style, tables
from .speed import spread

BASELINE = "bf16"

KINDS = {"prefill": "prefill", "decode": "decoding"}


def pictures(record: dict[str, Any]) -> Iterator[Any]:
    """The record's one picture: tokens per second of each model, prefill and decoding, with quartiles."""
    rows = record["rows"]
    with style.figure(8, 1 + 0.4 * len(rows), columns=2) as (figure, axes):
        for ax, kind in zip(axes, KINDS, strict=True):
            speed = [row[kind]["tokens_per_second"] for row in rows]
            median, low, high = (np.array([s[key] for s in speed]) for key in ("median", "low", "high"))
            colors = [style.GREY if row["model"] in ("fp32", BASELINE) else style.BLUE for row in rows]
            ax.barh(range(len(rows)), median, xerr=[median - low, high - median], color=colors, ecolor=style.ORANGE, height=0.6)
            ax.set_yticks(range(len(rows)), [row["label"] for row in rows] if kind == "prefill" else [])
            ax.invert_yaxis()
            ax.set_title(KINDS[kind])
            ax.set_xlabel("tokens per second")
        yield figure


def section(record: dict[str, Any]) -> str:
    """The record as Markdown: ratios to bfloat16 first, tokens per second, loss, bytes."""
    settings = record["settings"]
    where = record["device"]["gpu"] + ", host " if settings["device"] == "cuda" else ""
    head = ["model", *(f"{kind}, to bfloat16" for kind in KINDS.values()), *(f"{kind}, tokens/s" for kind in KINDS.values())]
    head += ["MB", "loss", "divergence", "same first tokens"]
    cells = [
        [
            row["label"],
            *(spread(row[kind]["ratio"]) for kind in KINDS),
            *(spread(row[kind]["tokens_per_second"], form=".4g") for kind in KINDS),
            f"{row['bytes'] / 1e6:.0f}",
            *("" if row[key] is None else f"{row[key]:.4f}" for key in ("loss", "divergence")),
            f"{row['first_tokens']} of {settings['new_tokens']}",
        ]
        for row in record["rows"]
    ]
    return (
        "\n\n".join(
            [
                f"## A whole model on a {'GPU' if settings['device'] == 'cuda' else 'CPU'}",
                f"{settings['model']}; {where}{tables.provenance(record)}; medians of {settings['rounds']} interleaved rounds, quartiles "
                "in brackets.",
                f"Prefill: {settings['prompt_tokens']} tokens in one call. Decoding: {settings['new_tokens']} tokens one by one after "
                f"{settings['context_tokens']}, a batch of 1. Loss: mean over the prompt's tokens; divergence: of the predictions from "
                "float32's, Kullback-Leibler; both in nats. Same first tokens: how many agree with those of float32 before the first that "
                "does not.",
                f"![Tokens per second of prefill and decoding, by model](results/{settings['picture']}.png)",
                tables.markdown(head, cells),
                *_parts(record["rows"]),
            ]
        )
        + "\n"
    )


def _parts(rows: list[dict[str, Any]]) -> list[str]:
    """Where a token's time goes, of the models that know."""
    rows = [row for row in rows if "parts" in row]
    if not rows:
        return []
    parts = list(rows[0]["parts"])
    times = [[*row["parts"].values(), sum(row["parts"].values())] for row in rows]
    cells = [[row["label"], *(f"{1e3 * seconds:.2f}" for seconds in own)] for row, own in zip(rows, times, strict=True)]
    return [
        "Where the time of a decoded token goes, in milliseconds. Attention is what its module takes beside its linear layers; the rest is "
        "Python, rotary embeddings, activations, residual sums and the choice of the token:",
        tables.markdown(["model", *parts, "all"], cells),
    ]
