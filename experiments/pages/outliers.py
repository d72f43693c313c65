"""The pages of `experiments.outliers`: pictures, tables, section."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from . import style, tables


def pictures(record: dict[str, Any]) -> Iterator[Any]:
    """Layers and positions affected, sizes by layer, and what removing them does."""
    kinds = record["kinds"]
    with style.figure(9.5, 3.6, columns=2) as (figure, (left, right)):
        for (name, kind), marker in zip(kinds.items(), "o^svD", strict=False):
            shares = {of: 100 * np.array(values) for of, values in kind["affected"].items()}
            left.plot(
                shares["layers"], shares["positions"], marker, markersize=4, alpha=0.4, markeredgewidth=0, label=name, linestyle="none"
            )
            right.plot(kind["largest_by_layer"], marker + "-", markersize=3, linewidth=1)
        limits = record["settings"]
        left.axvline(100 * limits["layers"], color=style.GREY, linestyle="--", linewidth=1)
        left.axhline(100 * limits["positions"], color=style.GREY, linestyle="--", linewidth=1)
        left.set(xlabel="layers affected (%)", ylabel="positions affected (%)", xlim=(0, 103), yscale="log")
        left.legend(fontsize=9)
        right.axhline(limits["threshold"], color=style.GREY, linestyle="--", linewidth=1)
        right.set(xlabel="layer", ylabel="largest magnitude", yscale="log")
        yield figure
    if not record["removals"]:
        return
    with style.figure(7.6, 0.9 + 0.55 * 2 * len(record["removals"])) as (figure, axes):
        labels: list[str] = []
        for one in record["removals"]:
            found = one["perplexity"]
            axes.barh(len(labels), _percent(found["without"], found["all"]), color=style.RED, height=0.6)
            labels.append(f"without {_count(one)}\n({one['label']})")
            axes.plot([_percent(r, found["all"]) for r in found["random"]], [len(labels)] * len(found["random"]), "o", color=style.BLUE)
            labels.append("without as many random ones")
        axes.set_yticks(range(len(labels)), labels)
        axes.invert_yaxis()
        axes.set_xscale("symlog", linthresh=1)
        axes.xaxis.set_major_formatter("{x:g} %")
        axes.set_xlabel("change of perplexity")
        yield figure


def _percent(value: float, base: float) -> float:
    return 100 * (value / base - 1)


def _count(removal: dict[str, Any]) -> str:
    count = sum(map(len, removal["removed"].values()))
    return f"{count} feature{'' if count == 1 else 's'}"


def kind_cells(record: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """A table of the kinds of inputs."""
    head = ["input of", "columns", "entries >= threshold", "columns with one", "outlier features", "largest"]
    return head, [
        [
            name,
            str(kind["columns"]),
            f"{kind['large_entries']:,}",
            str(kind["large_columns"]),
            str(len(kind["features"])),
            f"{kind['largest']:.0f}",
        ]
        for name, kind in record["kinds"].items()
    ]


def feature_cells(record: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """A table of the outlier features: layers, positions, sign, size."""
    head = ["input of", "feature", "layers", "in layers", "positions", "positive", "median size", "largest"]
    return head, [
        [
            name,
            str(one["feature"]),
            f"{100 * one['layers']:.0f} %",
            spans(one["in_layers"]),
            f"{100 * one['positions']:.0f} %",
            f"{100 * one['positive']:.0f} %",
            f"{one['median']:.1f}",
            f"{one['largest']:.1f}",
        ]
        for name, kind in record["kinds"].items()
        for one in kind["features"]
    ]


def spans(numbers: Sequence[int]) -> str:
    """Writes [0, 1, 2, 5] as "0-2, 5"."""
    parts: list[list[int]] = []
    for n in numbers:
        if parts and n == parts[-1][-1] + 1:
            parts[-1].append(n)
        else:
            parts.append([n])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)


def removal_cells(record: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """A table of what removing features does, against removing as many random ones."""
    head = ["removed", "perplexity", "change", "attention's largest probability"]
    lines = []
    for one in record["removals"]:
        found, peaks = one["perplexity"], one["attention_peak"]
        random = [_percent(r, found["all"]) for r in found["random"]]
        lines.append(["nothing", f"{found['all']:.2f}", "", "" if peaks is None else f"{100 * peaks['all']:.1f} %"])
        lines.append(
            [
                f"{_count(one)}: {one['label']}",
                f"{found['without']:.4g}",
                f"{_percent(found['without'], found['all']):+.3g} %",
                "" if peaks is None else f"{100 * peaks['without']:.1f} %",
            ]
        )
        lines.append(
            [
                f"as many random ones, {len(random)} draws",
                f"{min(found['random']):.2f} to {max(found['random']):.2f}",
                f"{min(random):+.2f} to {max(random):+.2f} %",
                "" if peaks is None else f"{100 * min(peaks['random']):.1f} to {100 * max(peaks['random']):.1f} %",
            ]
        )
    return head, lines


def section(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    settings = record["settings"]
    parts = [
        "## Outlier features",
        f"{tables.text_of(settings)}; {tables.provenance(record)}.",
        f"An outlier feature has a magnitude of {settings['threshold']:g} or more in at least {100 * settings['layers']:.0f} % of the "
        f"layers and at at least {100 * settings['positions']:.0f} % of the positions. Each kind of input has features of its own.",
        "![Left: for every feature with a large entry, the share of the layers and of the positions in which it is large, with the "
        "criterion's limits as dashed lines. Right: the largest magnitude by layer](results/outliers.png)",
        tables.markdown(*kind_cells(record)),
        "The features that meet the criterion:",
        tables.markdown(*feature_cells(record)),
    ]
    if record["removals"]:
        parts += [
            "### What removing them does",
            "The features are set to zero where attention and MLP read them; beside it, as many random other features "
            f"({settings['seeds']} draws). \"Large in any layer\" leaves out the criterion's share of the layers. The attention's largest "
            "probability is the mean over heads, positions and layers, each layer changed on its own.",
            "![Change of perplexity without the outlier features, as bars, and without random ones, as dots](results/outliers-2.png)",
            tables.markdown(*removal_cells(record)),
        ]
    return "\n\n".join(parts) + "\n"
