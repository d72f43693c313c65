"""The way into the tutorial: times that are counted, the map, the home page's figures, the glossary."""

import importlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mkdocs")

import reference
from tutorials import times

ROOT = Path(__file__).parents[1]
HOOKS = ROOT / "docs" / "hooks"


def hook(name):
    """A hook of the site, imported as MkDocs does it: its folder comes first."""
    sys.path.insert(0, str(HOOKS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(HOOKS))


notebooks, tutorial_index, home, bits = map(hook, ("notebooks", "tutorial_index", "home", "bits"))
CHAPTERS = tutorial_index.chapters()

# ---------------------------------------------------------------------------------------------------------------------------------
# Times


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.stem)
def test_a_chapter_takes_no_longer_to_read_than_twenty_minutes(chapter):
    assert chapter.effort.reading <= times.LONGEST, chapter.effort


def test_no_chapter_claims_a_time():
    assert [path.name for path in sorted((ROOT / "tutorials").glob("[0-9][0-9]_*.py")) if "Time:" in path.read_text()] == []


PAGE = """# A title of four

One two three.

!!! question "Predict"

    Four five?

??? prediction "Result"

    ```python
    a = 1
    ```

    ![A described picture](a.svg){ .figure }

??? code "Imports"

    ```python
    import numpy
    ```

```python
a = 1

b = 2
```

| head | head |
| --- | --- |
| cell | cell |

$$ x = 1 $$

[six](somewhere.md)

## Exercise

```python
def stub(): return NotImplemented
```

??? success "Solution"

    ```python
    one
    two
    ```
"""


def test_what_is_folded_is_not_read_and_a_line_is_counted_once():
    effort = times.of_page(PAGE)
    assert effort.lines == 2  # a = 1, twice, and b = 2: not the import, the stub or the solution
    assert (effort.predictions, effort.pictures, effort.solution) == (1, 2, 2)  # a picture and a table


def test_words_are_those_of_the_text():
    fewer = times.of_page(PAGE.replace("One two three.", ""))
    assert times.of_page(PAGE).words - fewer.words == 3
    assert times.of_page(PAGE.replace("A described picture", "A picture that is described at length")).words == times.of_page(PAGE).words


def test_an_exercise_is_not_read_twice():
    told = PAGE.replace("## Exercise\n", "## Exercise\n\nWrite a stub of your own.\n")
    assert times.of_page(told).words == times.of_page(PAGE).words
    after = times.of_page(PAGE + "\n## Three lines to remember\n\nSeven eight nine.\n")
    assert after.words - times.of_page(PAGE).words == 4 + 3


def test_minutes_follow_from_the_rates():
    effort = times.Effort(words=340, lines=24, predictions=4, pictures=3, solution=5)
    assert effort.reading == 2 + 2 + 3 + 2
    assert effort.exercise == 2 + 5


def test_a_chapter_shows_the_time_that_the_map_shows():
    for chapter in CHAPTERS:
        page, _ = notebooks.page(ROOT / "tutorials" / f"{chapter.stem}.ipynb")
        assert f"**{chapter.effort.reading} minutes** to read, **{chapter.effort.exercise}** for the" in page
        assert f"{chapter.effort.reading} min to read, {chapter.effort.exercise} for the exercise" in tutorial_index.map_of(CHAPTERS)


# ---------------------------------------------------------------------------------------------------------------------------------
# The map


def test_the_routes_cover_every_chapter_once():
    assert sorted(number for route in tutorial_index.ROUTES.values() for number in route) == [chapter.number for chapter in CHAPTERS]


def test_a_route_brings_what_a_chapter_needs_before_it():
    for route, numbers in tutorial_index.ROUTES.items():
        for place, number in enumerate(numbers):
            (chapter,) = (chapter for chapter in CHAPTERS if chapter.number == number)
            before = set(numbers[:place]) | (set() if route == "models" else set(tutorial_index.ROUTES["models"]))
            assert set(chapter.needs) <= before, chapter


def test_the_map_reads_the_chapters():
    chapter = next(chapter for chapter in CHAPTERS if chapter.number == "08")
    assert chapter.needs == ("06", "07")
    assert chapter.title.startswith("A product kernel of our own")
    assert chapter.question == "How does one kernel compute all of it, and why should it be one?"
    assert all(chapter.question.endswith("?") for chapter in CHAPTERS)


# ---------------------------------------------------------------------------------------------------------------------------------
# Home


def test_the_memory_of_a_model_is_counted_from_its_shapes(monkeypatch):
    """On the shapes of SmolLM2-135M, whose parameters the records name: 134.5 million, of which 106.2 are in linear layers."""
    for name, value in dict(BLOCKS=30, MODEL=576, MLP=1536, HEADS=9, KEY_HEADS=3, VOCABULARY=49_152).items():
        monkeypatch.setattr(home, name, value)
    linear, table = 106_168_320, 49_152 * 576
    assert home.memory()["parameters"] == f"{(linear + 2 * table) / 1e9:.1f}"
    assert home.memory()["share"] == f"{linear / (linear + 2 * table):.0%}"


def test_the_sentence_of_the_home_page():
    counted = home.memory()
    assert (counted["before"], counted["cards_before"], counted["after"], counted["cards_after"]) == ("141", "two", "73", "one")


def test_the_dial_shows_the_record_and_the_codes_of_the_reference():
    record = json.loads(home.RECORD.read_text(encoding="utf-8"))
    dial = home.positions(record)
    assert [point["factor"] for point in dial["positions"]] == record["settings"]["factors"]
    recorded = {(row["factor"], row["label"]): row["perplexity"] for row in record["rows"]}
    for point in dial["positions"]:
        for label, name in home.CURVES.items():
            assert point["perplexity"][name] == recorded[point["factor"], label]
        row = np.array([[float(entry) for entry in point["row"]]], np.float32)
        codes = reference.absmax_quantize(row, axis=-1).codes[0]
        assert point["codes"]["int8 alone"] == [str(code).replace("-", "−") for code in codes]
        assert (point["codes"]["LLM.int8()"][2] == "16 bits") == (row[0, 2] >= 6)
        if row[0, 2] >= 6:  # the others are coded as if it were not there
            others = reference.absmax_quantize(np.delete(row, 2, axis=1), axis=-1).codes[0]
            shown = [code for code in point["codes"]["LLM.int8()"] if code != "16 bits"]
            assert shown == [str(code).replace("-", "−") for code in others]


def test_the_first_picture_of_the_dial_makes_the_point():
    dial = home.positions(json.loads(home.RECORD.read_text(encoding="utf-8")))
    last = dial["positions"][-1]["perplexity"]
    assert last["int8 alone"] > 100 * dial["float"]
    assert last["LLM.int8()"] < 1.05 * dial["float"]
    markup = home.dial_html(dial)
    assert home.said(last["int8 alone"]) in markup
    assert f'value="{len(dial["positions"]) - 1}"' in markup


def test_the_five_minute_page_takes_five():
    page = (ROOT / "docs" / "tutorials" / "five_minutes.md").read_text(encoding="utf-8")
    filled = re.sub(r"\{\{ (\w+) \}\}", lambda match: home.five_minutes()[match[1]], page)
    assert times.of_page(filled).reading == 5
    assert "in five minutes" in page.partition("\n")[0]


# ---------------------------------------------------------------------------------------------------------------------------------
# Bits


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        (0x3C00, "+ 2<sup>0</sup> x (1 + 0 / 1024) = <b>1</b>"),
        (0x4A5A, "+ 2<sup>3</sup> x (1 + 602 / 1024) = <b>12.703125</b>"),
        (0xC100, "− 2<sup>1</sup> x (1 + 256 / 1024) = <b>−2.5</b>"),
        (0x0001, "+ 2<sup>−14</sup> x (1 / 1024) = <b>5.960464478 x 10<sup>−8</sup></b>"),
        (0x7C00, "exponent 31 is reserved: <b>+infinity</b>"),
        (0x7E00, "exponent 31 is reserved: <b>not a number</b>"),
    ],
)
def test_the_meaning_of_a_float16(pattern, said):
    assert bits.meaning(pattern) == said


def test_what_the_bits_of_an_int8_add_up_to():
    assert bits.counted(0b11000001) == "−128 + 64 + 1 = <b>−63</b>"
    assert bits.counted(0) == "0 = <b>0</b>"


def test_the_chapter_has_the_place_for_the_figure():
    chapter = (ROOT / "tutorials" / "00_bits_and_layers.py").read_text(encoding="utf-8")
    assert f"# {bits.MARKER}\n" in chapter


# ---------------------------------------------------------------------------------------------------------------------------------
# The glossary

#: Words that a reader of the chapters may not know. Every one is used in a chapter, and has its line in the glossary.
TERMS = [
    "absmax",
    "accumulator",
    "activation",
    "asymmetric",
    "attention",
    "batch",
    "bfloat16",
    "block",
    "checkpoint",
    "code",
    "constexpr",
    "decode",
    "dequantization",
    "embedding",
    "epilogue",
    "exponent",
    "feature",
    "float16",
    "float32",
    "fraction",
    "fused",
    "granularity",
    "int8",
    "kernel",
    "key-value",
    "layer",
    "L2",
    "logit",
    "mantissa",
    "mask",
    "MLP",
    "NaN",
    "norm",
    "outlier",
    "perplexity",
    "position",
    "program",
    "projection",
    "register",
    "residual",
    "scale",
    "step",
    "stride",
    "subnormal",
    "symmetric",
    "threshold",
    "tile",
    "token",
    "transformer",
    "Triton",
    "vector-wise",
    "weight",
    "zero",
]


def terms():
    """The first column of the glossary, as one text."""
    rows = re.findall(r"^\| ([^|]+) \|", (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8"), re.MULTILINE)
    return " ".join(rows)


def prose():
    """The Markdown of all chapters."""
    return "\n".join(
        line[2:]
        for path in sorted((ROOT / "tutorials").glob("[0-9][0-9]_*.py"))
        for line in path.read_text().split("\n")
        if line[:2] == "# "
    )


@pytest.mark.parametrize("term", TERMS)
def test_a_term_of_the_chapters_is_in_the_glossary(term):
    assert re.search(rf"\b{re.escape(term)}", terms(), re.IGNORECASE)
    if term != "mantissa":  # the other name of the fraction, for those who look it up
        assert re.search(rf"\b{re.escape(term)}", prose(), re.IGNORECASE), f"no chapter uses {term!r} any more"


def test_every_layer_and_every_type_that_a_chapter_names_is_in_the_glossary():
    named = set(re.findall(r"\b\w+_proj\b|\bb?float\d+\b|\bint8\b", prose()))
    assert len(named) > 8
    assert {name for name in named if name not in terms()} <= {"float64"}


def test_the_glossary_points_its_chinese_readers_to_the_chinese_column():
    page = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    heads = re.findall(r"^\| term \|.*$", page, re.MULTILINE)
    assert heads
    assert all(head.split("|")[2].strip() == "中文" for head in heads)  # the second of three
    assert "中间一栏" in page  # "the column in the middle"


def test_bold_titles_of_the_bibliography_end_on_their_line():
    page = (ROOT / "docs" / "bibliography.md").read_text(encoding="utf-8")
    assert [line for line in page.split("\n") if line.count("**") % 2] == []
