"""The notebooks: committed as their scripts say, and compared so that a difference cannot pass (tutorials/build.py).

Executing them is `make notebooks-check`; here is what can be said in seconds.
"""

import copy
import json
import re

import pytest

jupytext, nbformat, _ = map(pytest.importorskip, ("jupytext", "nbformat", "nbclient"))

from nbformat.v4 import new_code_cell, new_notebook, new_output

import reference
from tutorials import build, folding, learn, source

SCRIPTS = build.scripts([])

#: What a reader finds in every chapter.
PARTS = (
    "**Question.**",
    "**You need**",
    "**You leave",
    "## The idea",
    "## The formula",
    "**Predict.**",
    "## The law",
    "## Break it",
    "## The running table",
    "## Exercise",
    "<summary>Solution</summary>",
    "## Three lines to remember",
    "**Read on:**",
)
#: What the site's column shows of a line of code without scrolling.
COLUMNS = 88


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_chapter_has_every_part_in_order(script):
    text = prose(script)
    places = [text.find(part) for part in PARTS]
    assert -1 not in places, PARTS[places.index(-1)]
    marks = [place for part, place in zip(PARTS, places, strict=True) if part != "**Predict.**"]
    assert marks == sorted(marks)
    assert len(re.findall(r"^\d\. ", text[text.index("## Three lines to remember") :], re.MULTILINE)) == 3


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_link_of_a_chapter_leads_to_a_file(script):
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", prose(script)):
        if not target.startswith("http"):
            # a notebook comes from its script; the pages of the docs are checked when the site is built
            path = (script.parent / target).with_suffix(".py") if target.endswith(".ipynb") else script.parent / target
            assert path.exists() or "docs" in path.parts, target


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_page_shows_the_lines_of_a_code_cell_whole(script):
    cells = [cell.source for cell in jupytext.read(script, fmt="py:percent").cells if cell.cell_type == "code"]
    assert [line for cell in cells for line in cell.split("\n") if len(line) > COLUMNS] == []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_page_shows_the_lines_of_what_is_printed_whole(script):
    stored = json.loads(script.with_suffix(".ipynb").read_text(encoding="utf-8"))
    outputs = [output for cell in stored["cells"] for output in cell.get("outputs", [])]
    printed = ["".join(output["text"]) for output in outputs if output["output_type"] == "stream"]
    for output in outputs:  # folded, below a prediction
        printed += re.findall(r"```text\n(.*?)\n```", "".join(output.get("data", {}).get("text/markdown", "")), re.DOTALL)
    lines = [line for text in printed if not folding.SOURCE.match(text) for line in text.split("\n")]  # source code wraps
    assert [line for line in lines if len(line) > COLUMNS] == []


def prose(script):
    """The Markdown of a chapter, on one line a paragraph."""
    cells = [cell.source for cell in jupytext.read(script, fmt="py:percent").cells if cell.cell_type == "markdown"]
    return re.sub(r"(?<![\n.])\n(?![\n#\d>|-])", " ", "\n\n".join(cells))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_committed_notebook_holds_the_cells_of_its_script(script):
    stored = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    source = jupytext.read(script, fmt="py:percent")
    assert [(c.cell_type, c.source) for c in stored.cells] == [(c.cell_type, c.source) for c in source.cells]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_committed_notebook_was_executed_in_order_and_without_error(script):
    stored = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    nbformat.validate(stored)
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error" or output.get("name") == "stderr"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_every_picture_of_a_notebook_has_a_description(script):
    stored = json.loads(script.with_suffix(".ipynb").read_text(encoding="utf-8"))
    outputs = [output for cell in stored["cells"] for output in cell.get("outputs", [])]
    shown = ["".join(output["data"]["text/plain"]) for output in outputs if "image/svg+xml" in output.get("data", {})]
    folded = [alt for o in outputs for alt in re.findall(r'<img alt="([^"]*)"', "".join(o.get("data", {}).get("text/markdown", "")))]
    for alt in shown + folded:
        assert len(alt) > 40
        assert "<Figure" not in alt


@pytest.mark.parametrize(
    ("stored", "fresh"),
    [
        ("scale 0.100", "scale 0.1004"),  # within 1e-3 after rounding is not required: one unit of the last place is
        ("error 12.9%", "error 13.0%"),
        ("error 12345", "error 12350"),
        ("1,000 rows", "1000 rows"),
        ("a   0.5", "a 0.5"),
        ("[-1.  2.5]", "[-1. 2.5]"),
        ("1.25e-07", "1.26e-07"),
        ("perplexity ~20.0", "perplexity ~20.8"),
        ("~1.08e+06", "~1.10e+06"),
        ("perplexity ≈33.4", "perplexity ≈36.1"),
    ],
)
def test_text_that_another_processor_may_print_passes(stored, fresh):
    assert build.text_difference(stored, fresh) is None


@pytest.mark.parametrize(
    ("stored", "fresh"),
    [
        ("scale 0.100", "scale 0.102"),
        ("error 12.9%", "error 13.1%"),
        ("code 5", "code 6"),
        ("code 5", "code -5"),
        ("error 12345", "error 12359"),
        ("perplexity ≈30.0", "perplexity ≈46.0"),
        ("perplexity ~33.4", "perplexity ≈33.4"),
        ("float16", "float32"),
        ("version 2.13.0", "version 2.13.1"),
        ("1.25e-07", "1.25e-06"),
        ("a b", "a c"),
        ("one line", "one line\nanother"),
        ("1 2", "1 2 3"),
        ("0.5", "nan"),
        ("perplexity ~20.0", "perplexity ~22.0"),
        ("perplexity ~20.0", "perplexity 20.0"),
        ("perplexity ~20.0 is 5.00", "perplexity ~20.0 is 5.03"),
    ],
)
def test_any_other_difference_fails(stored, fresh):
    assert build.text_difference(stored, fresh) is not None
    assert build.text_difference(fresh, stored) is not None


def notebook():
    picture = new_output("display_data", data={"image/png": "iVBORw0KGgo=", "text/plain": "a line that rises"})
    return new_notebook(cells=[new_code_cell("print(1.5)", outputs=[new_output("stream", name="stdout", text="1.5\n"), picture])])


def test_a_notebook_agrees_with_itself_and_its_pictures_are_compared_by_kind():
    fresh = notebook()
    fresh.cells[0].outputs[1].data["image/png"] = "AAAA"
    build.compare(notebook(), fresh)


def _source(cell):
    cell.source = "print(1.6)"


def _text(cell):
    cell.outputs[0].text = "1.7\n"


def _description(cell):
    cell.outputs[1].data["text/plain"] = "a line that falls"


def _kind(cell):
    cell.outputs[1].data["image/svg+xml"] = cell.outputs[1].data.pop("image/png")


def _missing(cell):
    cell.outputs.pop()


@pytest.mark.parametrize("change", [_source, _text, _description, _kind, _missing])
def test_a_stale_notebook_fails(change):
    fresh = copy.deepcopy(notebook())
    change(fresh.cells[0])
    with pytest.raises(build.Mismatch):
        build.compare(notebook(), fresh)


def test_a_missing_cell_fails():
    with pytest.raises(build.Mismatch):
        build.compare(notebook(), new_notebook(cells=[]))


def test_a_piece_of_a_stream_that_was_cut_is_joined():
    pieces = [new_output("stream", name="stdout", text=text) for text in ("a", "b")]
    assert [output.text for output in build.joined(pieces)] == ["ab"]


def test_a_line_shown_beside_its_formula_is_the_line_of_the_file():
    assert source.statement(reference.absmax.encode, "codes =") == "codes = np.rint(x * inverse)"


def test_a_line_that_is_no_longer_there_is_noticed():
    with pytest.raises(LookupError, match="encode has no statement that begins with 'kodes ='"):
        source.statement(reference.absmax.encode, "kodes =")


def test_a_part_of_a_kernel_is_shown_from_its_first_line_to_its_last(capsys):
    source.part(reference.absmax.encode, "inverse, scale =", "return")
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "# reference/absmax.py"
    assert shown[1] == "inverse, scale = inverse_and_scale(absmax, INT8_MAX)"
    assert [line.startswith("return") for line in shown] == [False] * 4 + [True]


@pytest.mark.parametrize(("first", "last"), [("kodes =", "return"), ("return", "codes =")])
def test_a_part_that_is_no_longer_there_is_noticed(first, last):
    with pytest.raises(LookupError, match="encode has no line that begins with"):
        source.part(reference.absmax.encode, first, last)


def test_a_reader_works_on_copies_that_nothing_overwrites(tmp_path):
    names = [script.with_suffix(".ipynb").name for script in SCRIPTS]
    assert learn.copy(tmp_path) == (names, [])
    answer = tmp_path / names[0]
    answer.write_text("my answer")
    (tmp_path / names[1]).unlink()
    assert learn.copy(tmp_path) == ([names[1]], [name for name in names if name != names[1]])
    assert answer.read_text() == "my answer"
    assert (tmp_path / names[1]).read_bytes() == SCRIPTS[1].with_suffix(".ipynb").read_bytes()


def test_the_copies_are_out_of_the_reach_of_git_and_of_the_builder():
    assert "/work/" in (learn.FOLDER.parent / ".gitignore").read_text(encoding="utf-8").split("\n")
    assert learn.WORK.parent == learn.FOLDER.parent
    assert not learn.WORK.is_relative_to(build.FOLDER)
