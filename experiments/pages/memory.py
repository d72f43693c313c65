"""The pages of `experiments.memory`: picture, tables, section."""

from collections.abc import Iterator
from typing import Any

from . import style, tables

#: The parts in which a model's bytes are counted, and what they are.
PARTS = {
    "weights": "weights of the linear layers: int8 codes, or 16-bit numbers",
    "scales": "one float32 per row of the weights",
    "kept": "16-bit weights kept beside the codes",
    "other": "embeddings, head, norms and biases, in 16 bits",
    "cache": "keys and values of the context, in 16 bits",
    "workspace": "input, codes, scales and output of the widest layer",
}

#: How the linear layers are kept: label -> outlier_weight, None for 16 bits.
POLICIES = {"16 bits": None, "int8, dequantized": "dequantized", "int8, float": "float"}

LARGEST = ("OPT-175B", "BLOOM-176B")


def pictures(record: dict[str, Any]) -> Iterator[Any]:
    """Bytes by part and policy, as a share of the model in 16 bits: one that is here, and the largest of the published ones."""
    shown = [(record["settings"]["model"], {row["policy"]: row["measured"] for row in record["measured"]})]
    shown += [(row["model"], row["parts"]) for row in record["models"] if row["model"] in ("OPT-6.7B", "OPT-175B")]
    with style.figure(9, 0.8 + 0.36 * len(shown) * (len(POLICIES) + 1)) as (figure, axes):
        labels, places, place = [], [], 0.0
        for name, by_policy in shown:
            whole = sum(by_policy["16 bits"].values())
            for policy in POLICIES:
                left = 0.0
                for part, color in zip(PARTS, style.COLORS, strict=True):
                    share = 100 * by_policy[policy][part] / whole
                    axes.barh(place, share, left=left, color=color, height=0.75, label=part if place == 0 else None)
                    left += share
                labels.append(f"{name}, {policy}")
                places.append(place)
                place += 1
            place += 0.7
        axes.set_yticks(places, labels)
        axes.invert_yaxis()
        axes.axvline(100, color=style.GREY, linestyle=":", linewidth=1.2)
        axes.set_xlabel("bytes, in % of the model in 16 bits")
        figure.legend(fontsize=9, loc="outside lower center", ncols=len(PARTS), handlelength=1.2, columnspacing=1.2)
        yield figure


def size(count: float) -> str:
    """Bytes in GB or MB, powers of ten."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def measured_cells(record: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """A table of one model's bytes by part, predicted and measured."""
    head = ["part"]
    for row in record["measured"]:
        head += [f"{row['policy']}, predicted", "measured"]
    lines = [
        [part, *(size(row[side][part]) if row[side][part] else "0" for row in record["measured"] for side in ("predicted", "measured"))]
        for part in PARTS
    ]
    lines.append(["all", *(size(sum(row[side].values())) for row in record["measured"] for side in ("predicted", "measured"))])
    return head, lines


def model_cells(record: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """A table of the published models' bytes, by policy."""
    head = ["model", "parameters", *POLICIES, "kept weights", "cache"]
    return head, [
        [
            row["model"],
            f"{row['parameters'] / 1e9:.2f} billion",
            *(size(sum(row["parts"][policy].values())) for policy in POLICIES),
            size(row["parts"]["int8, float"]["kept"]),
            size(row["parts"]["16 bits"]["cache"]),
        ]
        for row in record["models"]
    ]


def hardware_cells(record: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """A table of the largest model that each hardware holds, beside the paper's."""
    head = ["hardware", *POLICIES, "paper, 16 bits", "paper, int8"]
    return head, [
        [
            row["hardware"],
            *(row["largest"][policy] or "none" for policy in POLICIES),
            " / ".join(row["paper"]["16 bits"]),
            " / ".join(row["paper"]["int8"]),
        ]
        for row in record["hardware"]
    ]


def section(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    settings = record["settings"]
    parts = [
        "## Memory: where the 16-bit weights come from",
        f"{settings['model']}, a sequence of {settings['context']} positions; {tables.provenance(record)}.",
        'The outlier columns need weights in 16 bits. "Dequantized" makes them from the codes when they are needed and keeps nothing; '
        '"float" keeps the whole original weight beside the codes, since which columns are outliers is known only when the input is there.',
        "![Bytes by part, in percent of the model in 16 bits, for 16 bits and for int8 with either source of the outlier columns' "
        "weights](results/memory.png)",
        "\n".join(f"- {part}: {text}" for part, text in PARTS.items()),
        "Predicted from the shape, measured on the model itself. The workspace's prediction is the least that a layer needs; what the "
        "CPU's engine of Torch operations holds beyond it are float32 copies of input and accumulators.",
        tables.markdown(*measured_cells(record)),
        "### Larger models, by calculation",
        f"From published shapes, for one sequence of {settings['context']} positions; nothing here was run.",
        tables.markdown(*model_cells(record)),
        "Shapes: " + "; ".join(f"{row['model']}: {row['source']}" for row in record["models"]) + ".",
        "The largest of these models whose bytes fit into all cards together, beside the paper's table 2. A card's own needs (a CUDA "
        "context, fragments) are not counted, and neither does the paper say what it counts.",
        tables.markdown(*hardware_cells(record)),
        _about_t5(record),
    ]
    return "\n\n".join(parts) + "\n"


def _about_t5(record: dict[str, Any]) -> str:
    parts = next(row["parts"]["int8, dequantized"] for row in record["models"] if row["model"] == "T5-11B")
    return (
        f"T5-11B has 128 heads of 128 entries, and its decoder attends to itself and to the encoder: of its {size(sum(parts.values()))} in "
        f"int8, {size(parts['cache'])} are the cache of {record['settings']['context']} positions."
    )
