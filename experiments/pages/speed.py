"""The pages of `experiments.speed`, made from its record alone: charts, tables, aims."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..shapes import AIMS, BASELINE, PARTS, PEERS, STAGES_AIM, Aim, Shape
from . import style, tables

Row = dict[str, Any]

NAMES = {BASELINE: "bfloat16 `F.linear`", "linear-fp32": "float32 `F.linear`", "bitsandbytes": "bitsandbytes", "int-mm": "`torch._int_mm`"}


def name(row: Row) -> str:
    """A layer as tables call it: M x K x N and its share of outlier columns."""
    return f"{row['m']} x {row['k']} x {row['n']}, {100 * row['fraction']:g} %"


def rows_of(record: Row, part: str) -> list[Row]:
    """The rows of one of `PARTS`; of "detection", those in which every step was measured."""
    return [row for row in record["rows"] if row["part"] == part and (part != "detection" or "shares" in row)]


def labels(rows: Sequence[Row], stage: bool = False) -> dict[str, str]:
    """Names and labels of the contenders in any of the rows, the baseline left out: layers, or stages."""
    return {n: c["label"] for row in rows for n, c in row["contenders"].items() if c["stage"] == stage and n != BASELINE}


def parts_of(record: Row) -> dict[str, list[Row]]:
    """The rows of each part that the record has, in the order of its pictures."""
    found = {part: rows_of(record, part) for part in PARTS}
    return {part: rows for part, rows in found.items() if rows}


def pictures(record: Row) -> Iterator[Any]:
    """A picture for each part that the record has."""
    for part, rows in parts_of(record).items():
        if part == "layers":
            with style.figure(8, 2.2 + 0.34 * len(rows)) as (figure, axes):
                draw_ratios(axes, rows)
                yield figure
        elif part == "crossover":
            lines = sweeps(rows)
            with style.figure(3.4 * len(lines), 4.2, columns=len(lines)) as (figure, axes):
                draw_crossover(axes, lines)
                yield figure
        else:
            with style.figure(max(6, 1.3 + 0.75 * len(rows)), 4.2) as (figure, axes):
                draw_shares(axes, rows)
                yield figure


def draw_ratios(axes: Any, rows: Sequence[Row]) -> None:
    """Times as fast as F.linear, layer by layer, with quartiles; a mark for each contender."""
    for (contender, label), marker in zip(labels(rows).items(), "ovDsP^X*<>hpd", strict=False):
        have = [i for i, row in enumerate(rows) if contender in row["contenders"]]
        ratio = [rows[i]["contenders"][contender]["ratio"] for i in have]
        median, low, high = (np.array([r[key] for r in ratio]) for key in ("median", "low", "high"))
        axes.errorbar(median, have, xerr=[median - low, high - median], linestyle="none", marker=marker, markersize=5, label=label)
    axes.axvline(1, color=style.GREY, linestyle=":")
    axes.set_xscale("log")
    axes.set_xticks(ticks := [0.05, 0.1, 0.2, 0.5, 1, 2, 5], [f"{t:g}" for t in ticks])
    axes.set_xticks([], minor=True)
    axes.set_yticks(range(len(rows)), [name(row) for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("times as fast as F.linear in bfloat16, with quartiles")
    axes.set_title("M x K x N, outlier columns", loc="left")
    axes.figure.legend(loc="outside lower center", ncols=2)


def sweeps(rows: Sequence[Row]) -> list[tuple[str, str, list[Row]]]:
    """The crossover rows as lines: title, the size that varies ("m" or "k"), and the rows in its order.

    The widest layer that comes with several M is swept over M; an M that comes with several widths, over the width.
    """
    found = []
    counts = {k: sum(row["k"] == k for row in rows) for k in sorted({row["k"] for row in rows})}
    wide = max(counts, key=lambda k: (counts[k], k))
    found.append((f"K = N = {wide}", "m", [row for row in rows if row["k"] == wide]))
    for m in sorted({row["m"] for row in rows}):
        own = [row for row in rows if row["m"] == m]
        if len(own) > 1:
            found.append((f"M = {m}", "k", own))
    return [(title, size, sorted(own, key=lambda row: row[size])) for title, size, own in found]


def draw_crossover(axes: Any, lines: Sequence[tuple[str, str, list[Row]]]) -> None:
    """Times as fast as F.linear against M and against K = N, with quartiles; int8 wins above 1."""
    axes = np.atleast_1d(axes)
    for ax, (title, size, rows) in zip(axes, lines, strict=True):
        for contender, label in labels(rows).items():
            have = [row for row in rows if contender in row["contenders"]]
            ratio = [row["contenders"][contender]["ratio"] for row in have]
            sizes = [row[size] for row in have]
            ax.plot(sizes, [r["median"] for r in ratio], marker="o", markersize=4, label=label)
            ax.fill_between(sizes, [r["low"] for r in ratio], [r["high"] for r in ratio], alpha=0.2)
        ax.axhline(1, color=style.GREY, linestyle=":")
        ax.set_xscale("log", base=2)
        ax.set_ylim(bottom=0)
        ax.set_title(title)
        ax.set_xlabel({"m": "M, rows of X", "k": "K = N"}[size])
    axes[0].set_ylabel("times as fast as F.linear in bfloat16")
    axes[0].figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)


def draw_shares(axes: Any, rows: Sequence[Row]) -> None:
    """Where a layer's time goes, stacked, over M and K."""
    bottom = np.zeros(len(rows))
    for step in rows[0]["shares"]:
        # A difference of two times that are nearly equal can fall below zero.
        height = 100 * np.maximum([row["shares"][step]["median"] for row in rows], 0)
        axes.bar(range(len(rows)), height, bottom=bottom, label=step, width=0.7)
        bottom += height
    axes.set_xticks(range(len(rows)), [f"{row['m']}\n{row['k']}" for row in rows])
    axes.set_xlabel("M, and below it K = N")
    axes.set_ylabel("% of the layer's time")
    axes.figure.legend(loc="outside lower center", ncols=4)


def spread(value: dict[str, float], factor: float = 1, form: str = ".2f") -> str:
    """A median with its quartiles in brackets."""
    median, low, high = (f"{value[key] * factor:{form}}" for key in ("median", "low", "high"))
    return f"{median} ({low} to {high})"


def aims(record: Row | None, device: str, meant: Sequence[Aim] = AIMS, stages: tuple[Shape, float] = STAGES_AIM) -> list[list[str]]:
    """What our layer is meant to reach on "cpu" or "cuda", what was measured, whether it is reached: cells of a table."""
    rows: dict[tuple, Row] = {
        (r["m"], r["k"], r["n"], r["fraction"]): r["contenders"] for r in (rows_of(record, "layers") if record else [])
    }
    cells = []
    for aim in (a for a in meant if a.device == device):
        other = rows.get(tuple(aim.shape), {}).get(aim.other)
        text = f"{name(aim.shape._asdict())}: at least {aim.least:g} times as fast as {NAMES[aim.other]}"
        if other is None or other["int8_ratio"] is None:
            cells.append([text, "", "not measured"])
        else:
            cells.append([text, spread(other["int8_ratio"]), "reached" if other["int8_ratio"]["median"] >= aim.least else "missed"])
    if device == "cuda":
        shape, most = stages
        found = rows.get(tuple(shape), {})
        text = f"{name(shape._asdict())}: detection and quantization at most {100 * most:g} % of the layer's time"
        if not {"detect-quantize", "int8"} <= found.keys():
            cells.append([text, "", "not measured"])
        else:
            share = found["detect-quantize"]["seconds"]["median"] / found["int8"]["seconds"]["median"]
            cells.append([text, f"{100 * share:.1f} %", "reached" if share <= most else "missed"])
    return cells


def unmeasured(device: str) -> str:
    """The section of a device, "cpu" or "cuda", of which there is no record."""
    return _joined(
        _title(device),
        f"Not measured. `python -m experiments.speed --device {device}` measures it and writes the record that this page is made from.",
        _aims(None, device),
    )


def _aims(record: Row | None, device: str) -> str:
    """The aims as a table; those that were not measured below it, folded."""
    rows = aims(record, device)
    open_ones, measured = ([row for row in rows if (row[2] == "not measured") is wanted] for wanted in (True, False))
    parts = [tables.markdown(["aim", "measured", ""], measured)] if measured else []
    if open_ones:
        lines = "\n".join(f"    - {text}" for text, _, _ in open_ones)
        parts.append(f'??? note "Not measured: {len(open_ones)} of {len(rows)} aims"\n\n{lines}')
    return "\n\n".join(parts)


def section(record: Row, name: str | None = None) -> str:
    """The record as Markdown: aims, ratios, crossover, the cost of detection; ratios first, quartiles beside them.

    Args:
        name: of the record, by which its pictures are called; by default that of its device.
    """
    device, settings = record["settings"]["device"], record["settings"]
    engine = settings["hardware"].get("engine")
    limits = settings["ceilings"]
    rates = ", ".join(f"{rate / 1e12:.3g} T/s in {unit}" for unit, rate in limits["rates"].items())
    parts = [
        _title(device, engine),
        f"{_provenance(record)}; medians of {settings['rounds']} interleaved rounds, quartiles in brackets. Measured ceilings: "
        f"{limits['bandwidth'] / 1e9:.1f} GB/s in a copy, read plus written; operations, {rates}.",
        _graphs(record),
        _aims(record, device),
    ]
    for number, (part, rows) in enumerate(parts_of(record).items(), 1):
        picture = f"results/{name or f'speed-{device}'}{'' if number == 1 else f'-{number}'}.png"
        parts += {"layers": _layers, "crossover": _crossover, "detection": _detection}[part](rows, picture)
    return _joined(*parts)


def _title(device: str, engine: str | None = None) -> str:
    return f"## Layers on a {'GPU' if device == 'cuda' else 'CPU'}{' with matrix registers' if engine == 'amx_int8' else ''}"


def _joined(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


def _graphs(record: Row) -> str:
    settings = record["settings"]
    if settings["device"] == "cpu":
        return ""
    text = (
        "CUDA graphs are timed, so that the host's launches do not count; bitsandbytes is timed as the host launches it, since it "
        "synchronizes the host with the device and cannot be captured."
    )
    skipped = settings["out_of_memory"]
    return text + (f" Too large for this device's memory: {'; '.join(skipped)}." if skipped else "")


def _provenance(record: Row) -> str:
    hardware = record["settings"]["hardware"]
    if record["settings"]["device"] == "cpu":
        engine = f"; our layers with `{hardware['engine']}`" if "engine" in hardware else ""
        return f"{tables.provenance(record)}; {hardware['instructions']}{engine}"
    where = f"{record['device']['gpu']}, driver {hardware['driver']}, Torch {record['versions']['torch']}"
    return f"{where}; {record['date']}; `{record['command']}`"


def _ratio(row: Row, contender: str) -> str:
    if contender in row["contenders"]:
        return spread(row["contenders"][contender]["ratio"])
    if contender in row.get("wrong", {}):
        return "wrong"
    return "did not run" if contender in row["did_not_run"] else ""


#: So many columns of ratios with their quartiles are as wide as a page.
ABREAST = 7


def _ratio_tables(rows: list[Row], found: dict[str, str]) -> list[str]:
    """The ratios of every contender, ours in the last table; in as many tables as their columns need."""
    names = list(found)
    count = -(-len(names) // ABREAST)
    size = -(-len(names) // count)
    parts = [names[i : i + size] for i in range(0, len(names), size)]
    return [
        tables.markdown(["layer", *(found[c] for c in part)], [[name(row), *(_ratio(row, c) for c in part)] for row in rows])
        for part in parts
    ]


def _layers(rows: list[Row], picture: str) -> list[str]:
    found, stages = labels(rows), labels(rows, stage=True)
    return [
        "### Against 16-bit products",
        f"![Times as fast as F.linear in bfloat16, by layer and implementation]({picture})",
        "Times as fast as `F.linear` in bfloat16 in the same run, by layer: M x K x N, and the share of outlier columns.",
        *_ratio_tables(rows, found),
        _failures(rows),
        *_against_peers(rows),
        "Our layer against its floor, the larger of its bytes over the bandwidth and its operations over their rates:",
        tables.markdown(
            ["layer", "ms", "floor, ms", "time over floor", "of the bandwidth", "of the int8 rate"],
            [[name(row), *_against_floor(row["contenders"]["int8"])] for row in rows if "int8" in row["contenders"]],
        ),
        "Each stage alone, in microseconds, and what it reaches of the bandwidth or of the int8 rate, whichever is more:",
        tables.markdown(["layer", *stages.values()], [[name(row), *(_stage(row["contenders"].get(s)) for s in stages)] for row in rows]),
    ]


def _against_peers(rows: list[Row]) -> list[str]:
    """Ours beside the fastest int8 layer of another library, row by row."""
    names = {name for own in PEERS.values() for name in own}
    cells = []
    for row in rows:
        others = {n: c for n, c in row["contenders"].items() if n in names and c["int8_ratio"] is not None}
        if others:
            best = min(others.values(), key=lambda c: c["seconds"]["median"])
            cells.append([name(row), best["label"], spread(best["int8_ratio"])])
    if not cells:
        return []
    return [
        "How many times as fast as the fastest int8 layer of another library ours is, above 1 where it is faster. Of these libraries "
        "bitsandbytes alone treats outlier columns apart; the others round them with everything else. bitsandbytes and torchao take "
        "and give bfloat16, the others float32, whose conversion is not timed:",
        tables.markdown(["layer", "the fastest other", "ours"], cells),
    ]


def _failures(rows: list[Row]) -> str:
    lines = []
    for key, text in (("did_not_run", "Did not run"), ("wrong", "Wrong, and so not timed,")):
        reasons = Counter(f"`{contender}`: {reason}" for row in rows for contender, reason in row.get(key, {}).items())
        lines += [f"- {text} on {count} of {len(rows)} layers: {reason}" for reason, count in reasons.items()]
    kernels = {row["kernels"]["int-mm"] for row in rows if row.get("kernels", {}).get("int-mm")}
    if kernels:
        lines.append(f"- `torch._int_mm` is the kernel{'s' if len(kernels) > 1 else ''} {', '.join(f'`{k}`' for k in sorted(kernels))}.")
    return "\n".join(lines)


def _against_floor(own: Row) -> list[str]:
    seconds = own["seconds"]
    floor = seconds["median"] / own["over_floor"]
    shares = [f"{100 * own['of_bandwidth']:.0f} %", f"{100 * own['of_rate']['int8']:.0f} %"]
    return [spread(seconds, 1e3, ".3g"), f"{floor * 1e3:.3g}", f"{own['over_floor']:.2f}", *shares]


def _stage(own: Row | None) -> str:
    if own is None:
        return ""
    reached = max(own["of_bandwidth"], *own["of_rate"].values(), 0)
    return f"{spread(own['seconds'], 1e6, ',.4g')}, {100 * reached:.0f} %"


def _crossover(rows: list[Row], picture: str) -> list[str]:
    by_sweep = []
    for title, size, own in sweeps(rows):
        found = labels(own)
        cells = [[f"{size.upper()} = {row[size]}", *(_ratio(row, c) for c in found)] for row in own]
        by_sweep.append(tables.markdown([title, *found.values()], cells))
    return [
        "### Where int8 starts to win",
        f"![Times as fast as F.linear in bfloat16, against M and against K = N]({picture})",
        "Times as fast as `F.linear` in bfloat16; int8 wins above 1.",
        *by_sweep,
    ]


def _detection(rows: list[Row], picture: str) -> list[str]:
    steps = list(rows[0]["shares"])
    cells = [[f"{row['m']} x {row['k']}", *(spread(row["shares"][step], 100, ".1f") for step in steps)] for row in rows]
    return [
        "### What detection costs",
        f"![Share of a layer's time by step, over M and K = N]({picture})",
        "Percent of the layer's time by what each step adds to it, round by round. Detection is what a threshold costs where it finds "
        "nothing: the layer on an X without outlier columns, less the layer with threshold None. The outlier product is what outlier "
        "columns cost beyond that. A step that the layer hides behind another can come out near zero or below.",
        tables.markdown(["M x K, N = K", *steps], cells),
    ]
