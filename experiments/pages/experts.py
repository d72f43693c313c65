"""The tables of docs/howto/mixture_of_experts.md from the records of `experiments.experts`; without Torch."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import records
from . import style, tables

PAGE = Path(__file__).resolve().parents[2] / "docs" / "howto" / "mixture_of_experts.md"
BEGIN, END = "<!-- begin: made by python -m experiments.experts -->", "<!-- end -->"

#: The marks of the picture.
CHOSEN, CODES, KEPT = "the token goes to the expert", "int8 code", "16 bits: an outlier column of this expert"

Cells = tuple[list[str], list[list[str]]]


def sizes(record: dict[str, Any]) -> Cells:
    """GB of whole models: in 16 bits, with linear layers alone in int8, and with experts."""
    head = ["model", "experts", "16 bits, GB", "linear layers in int8", "experts, too", "read per token and layer, 16 bits", "int8"]
    rows = [
        [
            row["model"],
            f"{100 * row['experts'] / row['before']:.0f} %",
            *(f"{row[key] / 1e9:.1f}" for key in ("before", "linear", "after")),
            *(f"{row[key] / 1e6:.1f} MB" for key in ("read_before", "read_after")),
        ]
        for row in record["sizes"]
    ]
    return head, rows


def matrix(record: dict[str, Any]) -> Cells:
    """What small experts of each family were put through."""
    head = ["experts of", "equal to a layer each", "error", "bytes", "compiled", "exported"]
    rows = [
        [
            row["family"],
            f"{row['equal']} of {row['tried']}",
            f"{100 * row['error']:.1f} %",
            f"{row['bytes']:.3f}",
            *("yes" if row[key] else "no" for key in ("compiled", "exported")),
        ]
        for row in record["matrix"]
    ]
    return head, rows


def routers(record: dict[str, Any]) -> Cells:
    """How many tokens would get other experts if the router were int8."""
    head = ["hidden size", "experts", "chosen", "tokens with other experts"]
    return head, [[str(row["hidden"]), str(row["experts"]), str(row["k"]), f"{100 * row['changed']:.1f} %"] for row in record["routers"]]


def loading(record: dict[str, Any]) -> Cells:
    """The most memory while a model is loaded."""
    row = record["loading"]
    head = ["", "MB", "of the float model"]
    names = {
        "float": "the float model",
        "int8": "the int8 model",
        "float_first": "peak, loaded in float and then quantized",
        "streamed": "peak, quantized while it is read",
    }
    return head, [[text, f"{row[key] / 1e6:.1f}", f"{100 * row[key] / row['float']:.0f} %"] for key, text in names.items()]


def speed(record: dict[str, Any]) -> Cells:
    """Times of one layer of experts on a CPU."""
    head = ["tokens", "int8, ms", "eager in bfloat16", "times as fast", "grouped_mm in bfloat16", "times as fast"]
    rows = []
    for row in record["rows"]:
        times = {name: 1e3 * row["seconds"][name]["median"] for name in ("int8", "eager", "grouped_mm")}
        rows.append([str(row["tokens"]), f"{times['int8']:.1f}"])
        for name in ("eager", "grouped_mm"):
            ratio = row["ratios"][name]
            rows[-1] += [f"{times[name]:.1f} ms", f"{ratio['median']:.1f} ({ratio['low']:.1f} to {ratio['high']:.1f})"]
    return head, rows


def counts(record: dict[str, Any]) -> dict[str, Any]:
    """What the picture shows, in numbers."""
    routing = record["routing"]
    rows, outliers = routing["rows"], routing["outliers"]
    in_16_bits = [len(own) * len(columns) for own, columns in zip(rows, outliers, strict=True)]
    every = {column for columns in outliers for column in columns}
    return {
        "rows": [len(own) for own in rows],
        "outliers": [len(columns) for columns in outliers],
        "entries": sum(map(len, rows)) * routing["features"],
        "in_16_bits": sum(in_16_bits),
        "of_one_layer": sum(map(len, rows)) * len(every),
    }


def alt(record: dict[str, Any]) -> str:
    """The picture in words."""
    routing, seen = record["routing"], counts(record)
    each = "; ".join(
        f"expert {e} has {_number(rows, 'row')} and {_number(columns, 'outlier column')}"
        for e, (rows, columns) in enumerate(zip(seen["rows"], seen["outliers"], strict=True))
    )
    return (
        f"Two grids. Left: which experts each of {routing['tokens']} tokens goes to by the float router. Right: the rows of each expert, "
        f"sorted by expert, with their {routing['features']} features: {each}. "
        f"{seen['in_16_bits']} of {seen['entries']} entries stay in 16 bits, the others become int8 codes."
    )


def _number(count: int, what: str) -> str:
    return f"{count or 'no'} {what}{'' if count == 1 else 's'}"


def pictures(record: dict[str, Any]) -> Iterator[Any]:
    """Which experts tokens go to, and what is quantized of each expert's rows."""
    if "routing" not in record:
        return
    routing = record["routing"]
    rows, outliers, experts = routing["rows"], routing["outliers"], len(routing["rows"])
    with style.figure(8.4, 4.2, columns=2) as (figure, (left, right)):
        for e, own in enumerate(rows):
            left.bar(
                [e] * len(own), [0.8] * len(own), bottom=[t - 0.4 for t in own], width=0.8, color=style.GREEN, label=None if e else CHOSEN
            )
        left.set(title="routing: float", xlabel="expert", ylabel="token", xlim=(-0.5, experts - 0.5), ylim=(routing["tokens"] - 0.5, -0.5))
        left.set_xticks(range(experts))
        left.set_yticks(range(routing["tokens"]), [f"x{t}" for t in range(routing["tokens"])])
        for color, label in ((style.BLUE, CODES), (style.ORANGE, KEPT)):  # a narrow page lists the legend of the first panel
            left.bar([0], [0], color=color, label=label)
        names, place = [], 0.0
        for e, own in enumerate(rows):
            for t in own:
                colors = [style.ORANGE if column in outliers[e] else style.BLUE for column in range(routing["features"])]
                right.bar(range(routing["features"]), 0.8, bottom=place - 0.4, width=0.8, color=colors)
                names.append((place, f"expert {e}, x{t}"))
                place += 1
            place += 0.6
        right.set(title="rows of each expert", xlabel="feature", xlim=(-0.5, routing["features"] - 0.5), ylim=(place - 0.9, -0.7))
        right.set_xticks(range(0, routing["features"], 5))
        right.set_yticks([at for at, _ in names], [name for _, name in names], fontsize=8)
        for axes in (left, right):
            axes.grid(False)
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
        yield figure


def render(record: dict[str, Any], timed: dict[str, Any] | None) -> str:
    """The part of the page that the records fill."""
    versions = record["versions"]
    seen = counts(record)
    parts = [
        "## For whom a column is an outlier",
        f"![{alt(record)}](../results/experts.png){{ .figure }}",
        f"{record['routing']['tokens']} tokens of {record['routing']['features']} features, two experts each; two tokens have an outlier "
        f"feature. Only for the experts that these tokens go to does its column stay in 16 bits: {seen['in_16_bits']} of {seen['entries']} "
        f"entries. If the rows were quantized as one layer, they would be {seen['of_one_layer']}.",
        "## In GB",
        "From the configs that transformers has by default for these models, without any weights. The last columns are the weights of "
        "experts that generating one token reads in each layer.",
        _markdown(sizes(record)),
        "## Small experts of each family",
        f"Random weights, hidden size {record['settings']['hidden']}, {record['settings']['inner']} inside, inputs with outlier features. "
        "Error: of the layer's output, relative to float32. Bytes: over one per weight and four per row. Compiled (without a graph break) "
        f"and exported they give the same bits. transformers {versions['transformers']}, Torch {versions['torch']}, on the CPU; "
        f"{record['date']}.",
        _markdown(matrix(record)),
        "## Why routers stay float",
        f"If a router with random weights were int8, on {record['settings']['tokens']} tokens with a few outlier features:",
        _markdown(routers(record)),
        "## Memory while loading",
        "A small Mixtral of 8 layers, 8 experts each, from a file in float32 to bfloat16 and int8. Peaks are what the process takes "
        f"beside its mapped file; one projection's codes are {record['loading']['largest'] / 1e6:.1f} MB, and lie there up to three times "
        "while they are merged.",
        _markdown(loading(record)),
    ]
    if timed is not None:
        device = timed["device"]
        parts += [
            "## Speed on a CPU",
            f"One layer of {timed['settings']['experts']} experts, hidden size {timed['settings']['hidden']}, {timed['settings']['inner']} "
            f"inside, {timed['settings']['k']} experts per token, on {device['cpu']} with {device['threads']} threads, {timed['date']}: "
            "median, and quartiles of the ratios (`python -m experiments.experts --speed`).",
            _markdown(speed(timed)),
        ]
    return "\n" + "\n\n".join(parts) + "\n"


def _markdown(cells: Cells) -> str:
    head, rows = cells
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def filled(text: str, record: dict[str, Any], timed: dict[str, Any] | None) -> str:
    """The page's text with the records between its two markers."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{render(record, timed)}\n{END}{after}"


def write() -> None:
    """Writes the page from the records that there are."""
    record = records.read("experts")
    if record is not None:
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), record, records.read("experts-speed")), encoding="utf-8")


def shown(record: dict[str, Any]) -> list[str]:
    """The tables for a terminal."""
    return (
        [tables.table(*speed(record))] if "rows" in record else [tables.table(*make(record)) for make in (sizes, matrix, routers, loading)]
    )
