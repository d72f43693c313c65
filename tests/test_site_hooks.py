"""What the hooks of the site make of notebooks, code, tables and formulae (docs/hooks/), without building it."""

import importlib
import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module", autouse=True)
def hooks():
    """The hooks import each other by name, as mkdocs lets them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "docs" / "hooks"))
        yield
    for name in ("notebooks", "predictions", "fitting", "figures", "formulae"):
        sys.modules.pop(name, None)


def hook(name):
    return importlib.import_module(name)


FIELDS = [
    {"kind": "number", "label": "one `step` < 1", "answer": "0.244", "shown": "0.244 V"},
    {"kind": "choice", "label": "which?", "options": ['a "b"', "c"], "answer": "c", "shown": "c"},
]


def test_fields_stand_in_the_last_prompt_above_their_cell():
    text = hook("notebooks").prose("Before.\n\n> **Predict.** How\n> wide?\n\nAfter.")
    made = hook("predictions").asked(text, FIELDS, "01-05")
    before, box, after = made.partition('!!! question "Predict"')
    assert before.strip() == "Before."
    assert re.match(r"\n\n    How\n    wide\?\n\n    <form .*</form>\n\nAfter\.", box and after)
    assert '<label for="01-05-0">one <code>step</code> &lt; 1</label>' in made
    assert made.count('type="radio"') == 2
    assert 'value="a &quot;b&quot;"' in made


def test_fields_without_a_prompt_are_an_error():
    with pytest.raises(ValueError, match="01-05 computes the answer of a prediction"):
        hook("predictions").asked("Only a text.", FIELDS, "01-05")


@pytest.mark.parametrize("script", sorted((ROOT / "tutorials").glob("[0-9][0-9]_*.py")), ids=lambda path: path.stem)
def test_the_imports_of_a_chapter_are_folded(script):
    first = re.search(r"^# %%\n(.*?)^# %%", script.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)[1]
    assert "import numpy" in first
    assert hook("notebooks").code(first.strip("\n"), False).startswith('??? code "Imports"')


def highlighted(text, language="python"):
    lines = "".join(f'<span id="__span-0-{n}"><a id="x"></a>{line}\n</span>' for n, line in enumerate(text.split("\n")))
    return f'<div class="language-{language} highlight"><pre><code>{lines}</code></pre></div>'


def laid_out(markup):
    fitting = hook("fitting")
    return fitting.TABLE.sub(fitting.table, fitting.BLOCK.sub(fitting.block, markup))


def test_a_line_of_code_hangs_by_its_own_indentation():
    made = laid_out(highlighted("if x:\n        y = 1"))
    assert re.findall(r"--indent:(\d+)", made) == ["0", "8"]
    assert 'highlight wraps">' in made


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("a     b\n1     2", "columns"),
        ("a sentence that is printed\nand another", "wraps"),
        (f"a     {'b' * 90}\n1     2", "wraps"),
    ],
)
def test_printed_columns_stay_aligned_if_a_page_can_show_them(text, kind):
    assert f'highlight {kind}">' in laid_out(highlighted(text, "text"))


def table(*rows):
    cells = [[f"<{tag}>{cell}</{tag}>" for cell in row] for tag, row in zip(("th", *["td"] * len(rows)), rows, strict=False)]
    lines = ["<tr>" + "".join(row) + "</tr>" for row in cells]
    return f"<table><thead>{lines[0]}</thead><tbody>{''.join(lines[1:])}</tbody></table>"


def test_a_wide_table_names_the_column_of_each_cell():
    made = laid_out(
        table(["layer", "times <em>as</em> fast", "ms"], ["256 x 4096 x 4096", "1.78 (1.77 to 1.80)", "3"], ["1 x 576 x 576", "", ""])
    )
    assert '<table class="cards" role="table">' in made
    assert '<td role="cell" data-head="times as fast">1.78 (1.77 to 1.80)</td>' in made
    assert '<td role="cell" data-head="times as fast" class="empty"></td>' in made


def test_a_narrow_table_stays_a_table():
    narrow = table(["name", "bytes"], ["X", "4"])
    assert laid_out(narrow) == narrow


@pytest.mark.parametrize(
    ("tex", "apart"),
    [
        (r"a = 1, \qquad b = 2 \quad c", ["a = 1, ", " b = 2 ", " c"]),
        (r"a = \text{x \qquad y}", [r"a = \text{x \qquad y}"]),
        (r"\left( a \quad b \right) \quad c", [r"\left( a \quad b \right) ", " c"]),
        (r"\begin{cases} a & \quad b \\ c \end{cases}", [r"\begin{cases} a & \quad b \\ c \end{cases}"]),
    ],
)
def test_formulae_side_by_side_are_told_apart(tex, apart):
    assert hook("formulae").parts(tex) == apart


def test_a_figure_in_a_page_has_names_of_its_own_and_the_colours_of_the_page():
    svg = '<?xml version="1.0"?>\n<svg viewBox="0 0 9 9"><path id="a" style="fill: #4a90d9"/><use href="#a" clip-path="url(#a)"/></svg>'
    made = hook("figures").inline(svg, "one-wide", "wide")
    assert made.startswith('<svg class="wide" aria-hidden="true" viewBox')
    assert made.count("one-wide-a") == 3
    assert "fill: var(--figure-blue)" in made


def test_the_colours_of_figures_are_those_that_the_page_replaces():
    from experiments.pages import style

    assert {style.BLUE, style.ORANGE, style.GREEN, style.RED, style.PURPLE, style.GREY} <= set(hook("figures").COLOURS)
