"""docs/results.md and docs/speed.md, from the records alone."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from .. import records
from ..records import Read, Record
from . import dial, experts, generate, generation, memory, outliers, perplexity, speed, verification
from .claims import claims, order

PAGES = Path(__file__).parents[2] / "docs"

EDIT = "<!-- Made by `make results` from experiments/results/*.json. What is written here by hand is lost. -->"


class Part(NamedTuple):
    """One record's place on a page: its name, the heading while it is absent, the command that makes it, its section."""

    name: str
    title: str
    command: str
    section: Callable[[Record], str]


def _of(name: str) -> Callable[[Record], str]:
    return lambda record: perplexity.section(record, name)


_PASSAGES = "python -m experiments.perplexity --engine fast --passages 6 --tokens 256"

_OUT = "--out experiments/results"

RESULTS = (
    Part("perplexity", "Perplexity by method, both engines", "python -m experiments.perplexity", _of("perplexity")),
    Part(
        "perplexity-intervals",
        "Perplexity by method, with intervals",
        f"{_PASSAGES} --windows 4 {_OUT}/perplexity-intervals.json",
        _of("perplexity-intervals"),
    ),
    Part(
        "perplexity-layers",
        "By kind of layer",
        f"{_PASSAGES} --windows 2 --methods absmax-tensor absmax-vector llm-int8-absmax --layers attention mlp all "
        f"{_OUT}/perplexity-layers.json",
        _of("perplexity-layers"),
    ),
    Part(
        "perplexity-head",
        "The output head",
        f"{_PASSAGES} --windows 4 --methods llm-int8-absmax --outlier-weight dequantized --layers all all-and-head "
        f"{_OUT}/perplexity-head.json",
        _of("perplexity-head"),
    ),
    Part(
        "perplexity-thresholds",
        "By threshold",
        f"{_PASSAGES} --windows 2 --methods llm-int8-absmax --thresholds 0.5 1 2 3 4 6 8 12 off {_OUT}/perplexity-thresholds.json",
        _of("perplexity-thresholds"),
    ),
    Part(
        "perplexity-batch",
        "By what else is in the batch",
        f"{_PASSAGES} --windows 4 --methods absmax-tensor absmax-vector llm-int8-absmax --batch 1 4 {_OUT}/perplexity-batch.json",
        _of("perplexity-batch"),
    ),
    Part("outliers", "Outlier features", "python -m experiments.outliers", outliers.section),
    Part("dial", "The outlier dial", "python -m experiments.dial --passages 3 --windows 1 --tokens 256", dial.section),
    Part("generate", "A model in int8 through `from_pretrained`", "python -m experiments.generate", generate.section),
    Part("memory", "Memory: where the 16-bit weights come from", "python -m experiments.memory", memory.section),
)

SPEED = (
    Part("speed-cpu", "Layers on a CPU", "python -m experiments.speed --device cpu", speed.section),
    Part(
        "speed-amx",
        "Layers on a CPU with matrix registers",
        f"python -m experiments.speed --device cpu --aims {_OUT}/speed-amx.json",
        lambda record: speed.section(record, "speed-amx"),
    ),
    Part("speed-cuda", "Layers on a GPU", "python -m experiments.speed --device cuda", speed.section),
    Part("generation", "A whole model on a CPU", "python -m experiments.generation --device cpu", generation.section),
    Part("generation-cuda", "A whole model on a GPU", "python -m experiments.generation --device cuda", generation.section),
)

#: Modules whose pictures can be drawn from a record, by the name of the record.
PICTURES = {part.name: perplexity.pictures for part in RESULTS if part.name.startswith("perplexity")} | {
    "outliers": outliers.pictures,
    "dial": dial.pictures,
    "memory": memory.pictures,
    "experts": experts.pictures,
    "speed-cpu": speed.pictures,
    "speed-amx": speed.pictures,
    "speed-cuda": speed.pictures,
    "generation": generation.pictures,
    "generation-cuda": generation.pictures,
}

#: All that the site draws: these, and that of the page of `experiments.verification`.
DRAWN = PICTURES | {"verification": lambda record: [verification.picture(record["errors"])]}

#: What most readers ask: the question, the record whose chart answers it, and where the chart stands.
QUESTIONS = (
    ("Where do the 16-bit weights come from?", "memory", "#memory-where-the-16-bit-weights-come-from"),
    ("What does detection cost?", "speed-cpu", "speed.md#what-detection-costs"),
    ("Where does int8 start to win?", "speed-cpu", "speed.md#where-int8-starts-to-win"),
    ("What changes with the rest of the batch?", "perplexity-batch", "#by-what-else-is-in-the-batch"),
)


def questions(read: Read) -> str:
    """A section: where each question has its chart."""
    commands = {one.name: one.command for one in (*RESULTS, *SPEED)}
    lines = [
        f"- {text} " + (f"[The chart]({link})." if read(name) else f"Not measured; `{commands[name]}` measures it.")
        for text, name, link in QUESTIONS
    ]
    return "## What readers ask\n\n" + "\n".join(lines) + "\n"


def part(one: Part, read: Read) -> str:
    """A part's section, or that it has not been measured and how it is."""
    record = read(one.name)
    if record is None:
        return f"## {one.title}\n\nNot measured. `{one.command}` measures it.\n"
    return f"{one.section(record)}\n[The record](results/{one.name}.json).\n"


def results_page(read: Read) -> str:
    """docs/results.md."""
    intervals = read("perplexity-intervals")
    return "\n".join(
        [
            f"{EDIT}\n\n# Results\n",
            "Each section says on what it was measured, when, and by which command; `make results` makes this page from the records in "
            "`experiments/results/`. Speed has [a page of its own](speed.md).\n",
            claims(read),
            questions(read),
            *([order(intervals)] if intervals else []),
            *(part(one, read) for one in RESULTS),
        ]
    )


def speed_page(read: Read) -> str:
    """docs/speed.md."""
    sections = []
    for one in SPEED:
        device = one.name.removeprefix("speed-")
        sections.append(speed.unmeasured(device) if read(one.name) is None and device in ("cpu", "cuda") else part(one, read))
    return "\n".join(
        [
            f"{EDIT}\n\n# Speed\n",
            "Ratios first: they depend less on the machine than milliseconds do. [Measure on your GPU](howto/measure_on_your_gpu.md) says "
            "how to add a device; `make results` makes this page from the records in `experiments/results/`.\n",
            *sections,
        ]
    )


def pages(read: Read = records.read) -> dict[Path, str]:
    """The pages by their paths, from the records that `read` gives."""
    return {PAGES / "results.md": results_page(read), PAGES / "speed.md": speed_page(read)}
