"""The home page and the five-minute page: their figures are computed here, by `reference` or from the records of the experiments.

The dial on the home page is that of chapter 05: six ordinary features of a language model are made larger, and the weights that read
them smaller, so that the model computes the same. Its perplexities are recorded (`experiments/results/dial.json`); the codes of one
row, at each position, are those of `reference`.
"""

import html
import json
import math
import re
from pathlib import Path
from typing import Any

import edition
import numpy as np
from edition import ENGLISH, Edition
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page
from numpy.typing import NDArray

import reference
from tutorials import times
from tutorials.example import X

RECORD = Path(__file__).resolve().parents[2] / "experiments" / "results" / "dial.json"

#: A decoder of 70 billion parameters: Llama 3 70B, https://arxiv.org/abs/2407.21783, table 3. Two matrices of embeddings stay in 16 bits.
BLOCKS, MODEL, MLP, HEADS, KEY_HEADS, VOCABULARY = 80, 8192, 28_672, 64, 8, 128_000
CARD_BYTES = 80e9

#: The dial's two curves, by the label of the record and by that of the page.
CURVES = {"absmax, by vector": "int8 alone", "LLM.int8(), float weights": "LLM.int8()"}
#: The row whose codes are shown; its third entry is the one that grows.
ROW = X[1]
#: Of the chart, in its own units.
WIDTH, HEIGHT, LEFT, BOTTOM = 560, 290, 40, 30
LOW, HIGH = 17.0, 35.0


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fills in the figures of the two pages."""
    if page.file.src_uri == "index.md":
        dial = positions(json.loads(RECORD.read_text(encoding="utf-8")))
        data = json.dumps(dial).replace("</", "<\\/")
        markdown = markdown.replace("{{ dial }}", dial_html(dial))
        markdown = _fill(markdown, memory(edition.of(config)) | {"minutes": str(minutes(config))})
        return f'{markdown}\n\n<script type="application/json" id="dial-data">{data}</script>\n'
    if page.file.src_uri == "tutorials/five_minutes.md":
        return _fill(markdown, five_minutes())
    return markdown


def _fill(markdown: str, values: dict[str, str]) -> str:
    return re.sub(r"\{\{ (\w+) \}\}", lambda match: values[match[1]], markdown)


def minutes(config: MkDocsConfig) -> int:
    """How long the five-minute page takes, by the rule of the tutorial."""
    page = Path(config.docs_dir) / "tutorials" / "five_minutes.md"
    return times.of_page(_fill(page.read_text(encoding="utf-8"), five_minutes())).reading


def memory(of: Edition = ENGLISH) -> dict[str, str]:
    """What a model of 70 billion parameters takes in 16 bits, and with its linear layers in int8: GB and cards."""
    heads = MODEL * KEY_HEADS // HEADS
    shapes = ((MODEL, MODEL), (heads, MODEL), (heads, MODEL), (MODEL, MODEL), (MLP, MODEL), (MLP, MODEL), (MODEL, MLP))
    linear = BLOCKS * sum(n * k for n, k in shapes)
    scales = 4 * BLOCKS * sum(n for n, _ in shapes)
    embeddings = 2 * VOCABULARY * MODEL
    before = 2 * (linear + embeddings)
    after = linear + scales + 2 * embeddings
    return {
        "parameters": f"{(linear + embeddings) / 1e9:.1f}",
        "before": f"{before / 1e9:.0f}",
        "after": f"{after / 1e9:.0f}",
        "cards_before": of.say(_count(math.ceil(before / CARD_BYTES))),
        "cards_after": of.say(_count(math.ceil(after / CARD_BYTES))),
        "share": f"{linear / (linear + embeddings):.0%}",
    }


def _count(number: int) -> str:
    return ("no", "one", "two", "three")[number] if number < 4 else str(number)


def positions(record: dict[str, Any]) -> dict[str, Any]:
    """What the page shows at each position of the dial."""
    rows = {(row["factor"], row["label"]): row for row in record["rows"]}
    result = []
    for factor in record["settings"]["factors"]:
        largest = rows[factor, next(iter(CURVES))]["largest"]
        row = ROW.copy()
        row[2] = largest
        result.append(
            {
                "factor": factor,
                "largest": f"{largest:.0f}" if largest > 10 else f"{largest:.1f}",
                "perplexity": {name: rows[factor, label]["perplexity"] for label, name in CURVES.items()},
                "row": [f"{entry:.4g}" for entry in row],
                "codes": {"int8 alone": codes(row, None), "LLM.int8()": codes(row, record["settings"]["threshold"])},
            }
        )
    return {"float": record["float_perplexity"], "positions": result}


def codes(row: NDArray[np.float32], threshold: float | None) -> list[str]:
    """The codes of a row, with its outliers marked."""
    x = row[None]
    outliers = reference.outlier_columns(x, threshold)
    coded = reference.absmax_quantize(np.where(outliers, np.float32(0), x), axis=-1).codes[0]
    return ["16 bits" if out else str(code).replace("-", "−") for out, code in zip(outliers, coded, strict=True)]


def place(position: int, count: int, perplexity: float) -> tuple[float, float]:
    """Where a point of a curve lies in the chart; what is larger than the chart lies above it."""
    x = LEFT + 16 + (WIDTH - LEFT - 50) * position / (count - 1)
    shown = min(perplexity, 2 * HIGH)
    return x, (HEIGHT - BOTTOM) - (shown - LOW) / (HIGH - LOW) * (HEIGHT - BOTTOM)


def dial_html(dial: dict[str, Any]) -> str:
    """The chart, the dial and the row of codes, at the last position."""
    points = dial["positions"]
    last = len(points) - 1
    shown = points[last]
    rows = "".join(
        f'<tr data-method="{name}"><th scope="row">{name}</th>'
        + "".join(f"<td{' class=sixteen' if code == '16 bits' else ''}>{code}</td>" for code in shown["codes"][name])
        + "</tr>"
        for name in CURVES.values()
    )
    entries = "".join(f"<td>{html.escape(entry).replace('-', '−')}</td>" for entry in shown["row"])
    return (
        '<figure class="dial" id="dial" markdown="0">'
        f'<p class="what" id="dial-title">Six of 576 features of a language model, <label for="dial-factor">made '
        f'<output id="dial-value" for="dial-factor">{shown["factor"]}</output> times larger</label></p>'
        f'<p class="axis">perplexity: less is better</p>{chart(dial)}'
        f'<input type="range" id="dial-factor" min="0" max="{last}" step="1" value="{last}" aria-valuetext="{shown["factor"]} times">'
        f'<p class="readout" role="status" aria-live="polite"><span class="bad">int8 alone <b id="dial-int8">'
        f'{said(shown["perplexity"]["int8 alone"])}</b></span> <span class="good">LLM.int8() <b id="dial-decomposed">'
        f"{said(shown['perplexity']['LLM.int8()'])}</b></span> <span>no quantization <b>{said(dial['float'])}</b></span></p>"
        '<table class="codes"><caption>The codes of one token\'s row: its third feature is one of the six</caption>'
        f'<tr class="entries"><th scope="row">the row</th>{entries}</tr>{rows}</table></figure>'
    )


def said(perplexity: float) -> str:
    """A perplexity as the page prints it; docs/javascripts/dial.js has the same."""
    return f"{perplexity:,.0f}" if perplexity > 1000 else f"{perplexity:.1f}"


def chart(dial: dict[str, Any]) -> str:
    """Perplexity against the position of the dial, as SVG."""
    points, count = dial["positions"], len(dial["positions"])
    right, floor = WIDTH, HEIGHT - BOTTOM
    curves, marks = [], []
    for name, kind in (("int8 alone", "bad"), ("LLM.int8()", "good")):
        places = [place(i, count, point["perplexity"][name]) for i, point in enumerate(points)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        curves.append(f'<polyline class="{kind}" points="{line}"/>')
        marks += [f'<circle class="{kind}" r="4" cx="{x:.1f}" cy="{y:.1f}"/>' for x, y in places]
    level = place(0, count, dial["float"])[1]
    ticks = "".join(
        f'<text class="tick" x="{LEFT - 8}" y="{place(0, count, value)[1] + 4:.1f}" text-anchor="end">{value}</text>'
        f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{place(0, count, value)[1]:.1f}" y2="{place(0, count, value)[1]:.1f}"/>'
        for value in range(18, int(HIGH), 4)
    )
    factors = "".join(
        f'<text class="tick" x="{place(i, count, LOW)[0]:.1f}" y="{floor + 22}" text-anchor="middle">x {point["factor"]}</text>'
        for i, point in enumerate(points)
    )
    at = place(count - 1, count, LOW)[0]
    spoken = "; ".join(
        f"{point['factor']} times: int8 alone {said(point['perplexity']['int8 alone'])}, LLM.int8() "
        f"{said(point['perplexity']['LLM.int8()'])}"
        for point in points
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Perplexity, less is better, when six features are made larger. '
        f'{spoken}; without quantization {said(dial["float"])}.">'
        f'<clipPath id="dial-clip"><rect x="{LEFT}" y="0" width="{right - LEFT}" height="{floor}"/></clipPath>{ticks}{factors}'
        f'<line class="at" id="dial-at" x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="{floor}"/>'
        f'<line class="float" x1="{LEFT}" x2="{right}" y1="{level:.1f}" y2="{level:.1f}"/>'
        f'<g clip-path="url(#dial-clip)">{"".join(curves)}{"".join(marks)}</g>'
        f'<text class="off" x="{at - 12:.1f}" y="24" text-anchor="end">{said(points[-1]["perplexity"]["int8 alone"])}</text></svg>'
    )


def five_minutes() -> dict[str, str]:
    """The figures of the five-minute page, by `reference` on the 4 x 4 example of the tutorial."""
    calm, loud = X[:1], X[1:2]
    (calm_codes, calm_scale), (loud_codes, loud_scale) = (reference.absmax_quantize(row, axis=-1) for row in (calm, loud))
    outliers = reference.outlier_columns(loud)
    (kept_codes, kept_scale) = reference.absmax_quantize(np.where(outliers, np.float32(0), loud), axis=-1)
    dial = positions(json.loads(RECORD.read_text(encoding="utf-8")))
    last = dial["positions"][-1]
    return {
        "calm": table(calm, calm_codes, calm_scale),
        "loud": table(loud, loud_codes, loud_scale),
        "kept": table(loud, kept_codes, kept_scale, outliers),
        "calm_scale": f"{calm_scale.item():.2f}",
        "loud_scale": f"{loud_scale.item():.2f}",
        "kept_scale": f"{kept_scale.item():.2f}",
        "back": f"{loud_codes[0, 1] * loud_scale.item():.2f}",
        "factor": str(last["factor"]),
        "int8": said(last["perplexity"]["int8 alone"]),
        "decomposed": said(last["perplexity"]["LLM.int8()"]),
        "float": said(dial["float"]),
    }


def table(row: NDArray[np.float32], coded: NDArray[np.int8], scale: NDArray[np.float32], outliers: NDArray[np.bool_] | None = None) -> str:
    """A row, its codes and what these give back, in Markdown."""
    out = np.zeros(row.shape[1], np.bool_) if outliers is None else outliers
    back = coded * scale
    lines = (
        ["the row", *(f"{entry:.4g}" for entry in row[0])],
        ["codes", *("16 bits" if o else str(code) for o, code in zip(out, coded[0], strict=True))],
        ["codes x scale", *(f"{entry:.4g}" for entry in np.where(out, row, back)[0])],
    )
    head, *rest = ("| " + " | ".join(line).replace("-", "−") + " |" for line in lines)
    return "\n".join([head, "| --- |" + " ---: |" * row.shape[1], *rest])
