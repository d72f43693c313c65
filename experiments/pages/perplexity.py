"""The pages of `experiments.perplexity`: pictures, table, section."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..lm import losses
from ..lm.methods import METHODS
from . import style, tables


def by_method(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Draws perplexity by method, a marker for each engine."""
    labels = list(dict.fromkeys(row["label"] for row in rows))
    marks = {
        "reference": {"marker": "o", "markersize": 9, "markerfacecolor": "none", "color": style.BLUE},
        "fast": {"marker": "x", "markersize": 6, "color": style.ORANGE},
    }
    for engine in dict.fromkeys(row["engine"] for row in rows):
        own = [row for row in rows if row["engine"] == engine]
        places = [labels.index(row["label"]) for row in own]
        axes.plot([row["perplexity"] for row in own], places, linestyle="none", markeredgewidth=1.8, label=engine, **marks[engine])
    axes.axvline(rows[0]["perplexity"], color=style.GREY, linestyle=":", linewidth=1.2)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlabel("perplexity (lower is better; dotted: float32)")
    axes.legend()


def by_interval(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Draws the difference to float by method, with its interval."""
    rows = [row for row in rows if row["method"] != "float32"]
    for place, row in enumerate(rows):
        color = style.GREEN if METHODS[row["method"]].decomposition else style.ORANGE
        low, high = row["to_float"]["low"], row["to_float"]["high"]
        axes.plot([low, high], [place, place], color=color, linewidth=2.5, solid_capstyle="butt")
        axes.plot(row["to_float"]["percent"], place, "o", color=color, markersize=6)
    axes.axvline(0, color=style.GREY, linestyle=":", linewidth=1.2)
    axes.set_xscale("symlog", linthresh=1)
    axes.xaxis.set_major_formatter("{x:g} %")
    axes.set_yticks(range(len(rows)), [row["label"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("change of perplexity, with 95 % interval (green: decomposed)")


def by_threshold(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Draws, over the threshold, the difference to float (left) and the share of the products in 16 bits (right)."""
    left, right = axes
    for method, marker in zip(dict.fromkeys(row["method"] for row in rows if row["threshold"] is not None), "o^sv", strict=False):
        own = [row for row in rows if row["method"] == method]
        places = range(len(own))
        percent = np.array([[row["to_float"][k] for k in ("percent", "low", "high")] for row in own], float)
        (line,) = left.plot(places, percent[:, 0], marker + "-", markersize=5, label=METHODS[method].label)
        left.fill_between(places, percent[:, 1], percent[:, 2], color=line.get_color(), alpha=0.2, linewidth=0)
        right.plot(places, [100 * row["outlier_share"] for row in own], marker + "-", markersize=5)
        for ax in axes:
            ax.set_xticks(places, ["off" if row["threshold"] is None else f"{row['threshold']:g}" for row in own])
            ax.set_xlabel("threshold")
    left.axhline(0, color=style.GREY, linestyle=":", linewidth=1.2)
    left.set_ylabel("change of perplexity (%)")
    left.legend()
    right.set_ylabel("products in 16 bits (%)")
    right.set_yscale("symlog", linthresh=0.1)
    right.set_ylim(0, 100)
    right.yaxis.set_major_formatter("{x:g}")


def varied(record: dict[str, Any]) -> str:
    """Says what the rows of a record differ in beside the method: "threshold", "layers", "head", "batch", "engine" or none ("method")."""
    decomposed = [row for row in record["rows"] if METHODS[row["method"]].decomposition]
    if len({row["threshold"] for row in decomposed}) > 1:
        return "threshold"
    if any(row["layers"] == "all-and-head" for row in decomposed):
        return "head"
    return next((key for key in ("layers", "batch", "engine") if len({row[key] for row in record["rows"]}) > 1), "method")


def pictures(record: dict[str, Any]) -> Iterator[Any]:
    """The record's one picture, of the kind that shows what was varied."""
    rows = record["rows"]
    count = len({row["label"] for row in rows})
    if varied(record) == "threshold":
        with style.figure(9, 3.4, columns=2) as (figure, axes):
            by_threshold(axes, rows)
            yield figure
        return
    intervals = varied(record) != "engine" and rows[0]["to_float"]["low"] is not None
    with style.figure(8, 1.2 + 0.3 * count) as (figure, axes):
        (by_interval if intervals else by_method)(axes, rows)
        yield figure


TITLES = {
    "engine": "Perplexity by method, both engines",
    "method": "Perplexity by method, with intervals",
    "layers": "By kind of layer",
    "head": "The output head",
    "threshold": "By threshold",
    "batch": "By what else is in the batch",
}

ALT = {
    "engine": "Perplexity by quantization method, a circle for the reference and a cross for the fast engine",
    "method": "Change of perplexity against float32 by quantization method, with 95 % intervals",
    "layers": "Change of perplexity against float32 by quantization method and kind of layer, with 95 % intervals",
    "head": "Change of perplexity against float32 with the output head in float and in int8, with 95 % intervals",
    "threshold": "Left: change of perplexity against float32 over the outlier threshold. Right: share of the products in 16 bits",
    "batch": "Change of perplexity against float32, one window at a time and several in a batch, with 95 % intervals",
}

ABOUT = {
    "engine": "The circle is the NumPy reference, the cross the fast path.",
    "method": "",
    "layers": "Only the attention's linear layers, only the MLP's, or all but the head.",
    "head": "`quantize_model` leaves the output head in float; here it is in int8, too.",
    "threshold": "Columns with a magnitude of the threshold or more are computed in 16 bits. Off: no decomposition. What is lost at a "
    "threshold is the rounding of the columns below it; the less a model's large entries stand out, the more of its loss lies there.",
    "batch": "Windows of a batch share what belongs to a whole input: the scale of a tensor, and the columns in 16 bits. A window's "
    "result then depends on its neighbours, and more columns are outliers for at least one of them.",
}


def section(record: dict[str, Any], name: str = "perplexity") -> str:
    """The record experiments/results/NAME.json as Markdown."""
    kind = varied(record)
    settings = record["settings"]
    head, lines = cells(record["rows"])
    timed = [i for i, title in enumerate(head) if not title.endswith(", s")]
    head, lines = [head[i] for i in timed], [[line[i] for i in timed] for line in lines]
    note = [
        f"Perplexity, its change against float32 with a {100 * settings['confidence']:.0f} % interval ({settings['interval']}), and the "
        "share of the products of the int8 layers that is done in 16 bits. Outlier columns meet the "
        f"{'float weight, as in the paper' if settings['outlier_weight'] == 'float' else 'dequantized weight'}."
    ]
    if record["engines_differ_by"] is not None:
        note.append(f"The two engines' perplexities differ by at most {100 * record['engines_differ_by']:.4f} %.")
    parts = [
        f"## {TITLES[kind]}",
        f"{tables.text_of(settings)}; {tables.provenance(record)}.",
        ABOUT[kind],
        f"![{ALT[kind]}](results/{name}.png)",
        tables.markdown(head, lines),
        " ".join(note),
        "\n".join(f"- {line}" for line in head_alone(record["rows"])),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def head_alone(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What an int8 output head adds to int8 layers: per setting measured with and without it, paired over the same windows."""
    lines = []
    own = ("method", "engine", "threshold", "batch")
    without = {tuple(row[key] for key in own): row for row in rows if row["layers"] == "all"}
    for row in rows:
        other = without.get(tuple(row[key] for key in own))
        if row["layers"] == "all-and-head" and other is not None:
            found = losses.difference(np.array(row["losses"]), np.array(other["losses"]))
            interval = "one window" if found["low"] is None else f"95 % interval {found['low']:+.2f} to {found['high']:+.2f} %"
            label = METHODS[row["method"]].label
            lines.append(f"{label} ({row['engine']}): int8 layers with an int8 head against the same with a float head: ")
            lines[-1] += f"perplexity {found['percent']:+.2f} % ({interval}, {len(row['losses'])} windows)"
    return lines


def cells(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """The table: perplexity and seconds by engine, the difference to float with its interval, the share in 16 bits."""
    engines = list(dict.fromkeys(row["engine"] for row in rows))
    head = [
        "method",
        *(engines if len(engines) > 1 else ["perplexity"]),
        "to float32",
        "95 % interval",
        "in 16 bits",
        *(f"{e}, s" for e in engines),
    ]
    lines = []
    for label in dict.fromkeys(row["label"] for row in rows):
        own = {row["engine"]: row for row in rows if row["label"] == label}
        last = own[engines[-1]]
        to_float, share, is_float = last["to_float"], last["outlier_share"], last["method"] == "float32"
        interval = "" if is_float or to_float["low"] is None else f"{to_float['low']:+.1f} to {to_float['high']:+.1f} %"
        lines.append(
            [
                label,
                *(shown(own[e]["perplexity"]) for e in engines),
                "" if is_float else f"{shown(to_float['percent'], '+.1f')} %",
                interval,
                "" if share is None else f"{100 * share:.2f} %",
                *(f"{own[e]['seconds']:.1f}" for e in engines),
            ]
        )
    return head, lines


def shown(value: float | None, form: str = "#.4g") -> str:
    """A number of a table; a record has None for one that is not finite."""
    return "not finite" if value is None or not np.isfinite(value) else format(value, form)
