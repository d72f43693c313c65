"""Predictions: each prompt has fields, each answer is computed, and no notebook shows a result before it is opened."""

import ast
import json
import re

import pytest

jupytext, nbformat, _ = map(pytest.importorskip, ("jupytext", "nbformat", "nbclient"))

import numpy as np
from nbformat.v4 import new_output

from tutorials import build, folding, pictures, predict

SCRIPTS = build.scripts([])
FUNCTIONS = ("number", "choice", "text")
#: Which argument of each is the answer.
ANSWER = {"number": 1, "choice": 2, "text": 1}
#: A prompt in the text of a chapter, but not the word in a sentence.
PROMPT = "> **Predict.**"


def asked(source):
    """The calls in a code cell that ask for something."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    return [call for call in calls if getattr(call.func.value, "id", "") == "predict" and call.func.attr in FUNCTIONS]


def cells(script):
    return jupytext.read(script, fmt="py:percent").cells


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_each_prompt_has_fields_in_the_cell_below_it(script):
    of_chapter = cells(script)
    prompts = [i for i, cell in enumerate(of_chapter) if cell.cell_type == "markdown" and PROMPT in cell.source]
    asking = [i for i, cell in enumerate(of_chapter) if cell.cell_type == "code" and asked(cell.source)]
    assert [i + 1 for i in prompts] == asking
    assert all(of_chapter[i].source.count(PROMPT) == 1 for i in prompts)


def constant(node):
    """Whether an expression can be worked out without what the chapter computes."""
    return not any(isinstance(part, ast.Name) for part in ast.walk(node))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_no_answer_is_typed(script):
    for cell in cells(script):
        for call in asked(cell.source) if cell.cell_type == "code" else []:
            answer = call.args[ANSWER[call.func.attr]]
            assert not constant(answer), ast.unparse(call)


def test_a_typed_answer_would_be_noticed():
    typed, computed = (asked(f"predict.number('one step', {answer})")[0].args[1] for answer in ("31.0 / 127", "scale.item()"))
    assert constant(typed)
    assert not constant(computed)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_notebook_folds_every_result_that_is_to_be_predicted(script):
    stored = json.loads(script.with_suffix(".ipynb").read_text(encoding="utf-8"))["cells"]
    for cell in stored:
        if cell["cell_type"] == "code" and asked("".join(cell["source"])):
            (output,) = cell["outputs"]
            text = "".join(output["data"]["text/markdown"])
            assert text.startswith("<details>\n<summary>")
            assert text.endswith("\n\n</details>")
            summary = text[: text.index("</summary>")]
            for field in output["metadata"]["prediction"]:
                assert field["kind"] == "choice" or f"**{field['shown']}**" not in summary


@pytest.fixture
def displayed(monkeypatch):
    """What a cell displays, as outputs of a notebook."""
    shown = []
    for module in (predict, pictures):
        monkeypatch.setattr(module, "display", lambda data, raw: shown.append(new_output("display_data", data=data)))
    return shown


def test_a_cell_without_a_prediction_stays_as_it_is():
    outputs = [new_output("stream", text="1\n")]
    assert folding.fold(outputs) is outputs


def test_everything_that_a_predicted_cell_shows_is_folded(displayed):
    predict.number("one `step`", 0.24419, ".3f", "V")
    predict.choice("which is closest?", ["row < tensor", "none"], "none")
    predict.text("codes", np.array([5, -13], np.int8))
    predict.explain("Since *half* a step is the most.")
    pictures.show(pictures.matrices([("X", np.eye(2), "{:.3f}", None)]), 'A picture of "X" & Y')
    printed = new_output("stream", text="# reference/absmax.py\ndef f():\n    pass\n")
    (folded,) = folding.fold([*displayed, printed])
    nbformat.validate(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(outputs=[folded])]))

    text = folded.data["text/markdown"]
    summary, _, body = text.partition("</summary>")
    assert "one <code>step</code>; which is closest? (row &lt; tensor, none); codes" in summary
    for piece in ("one `step`: **0.244 V**", "codes: **5, -13**", "Since *half* a step", "```python\n# reference/absmax.py\ndef f():"):
        assert piece in body
        assert piece not in summary
    assert 'alt="A picture of &quot;X&quot; &amp; Y"' in body
    assert len(re.findall("data:image/svg", body)) == 2
    assert [field["kind"] for field in folded.metadata["prediction"]] == ["number", "choice", "text"]
    assert "data:" not in build.texts(folded)[0][1]  # pictures are compared by kind


def test_an_answer_that_cannot_be_chosen_is_refused():
    with pytest.raises(ValueError, match="the answer to 'which\\?' must be one of"):
        predict.choice("which?", ["a", "b"], "c")


def test_an_output_that_cannot_be_folded_is_refused(displayed):
    predict.number("n", 1)
    with pytest.raises(ValueError, match="cannot be folded"):
        folding.fold([*displayed, new_output("error", ename="E", evalue="", traceback=[])])


def test_a_number_keeps_the_digits_that_it_shows(displayed):
    predict.number("share", 0.1234, ".1%")
    predict.number("bytes", 16777216, ",.0f", "B")
    share, size = (output.data[predict.MIME] for output in displayed)
    assert (share["answer"], share["shown"]) == ("12.3", "12.3%")
    assert (size["answer"], size["shown"]) == ("16777216", "16,777,216 B")


def test_a_picture_is_drawn_for_a_page_and_for_a_phone(displayed):
    pictures.show(pictures.matrices([(name, np.full((4, 4), 0.125), "{:.3f}", None) for name in "ABCD"]), "Four matrices")
    steps = [("X", "4 x 4", 64), "read", ("codes", "1536 x 576 codes, 1536 scales", 16), "write", ("Y", "4 x 4", 64)]
    pictures.show(pictures.movement(steps), "Three boxes")
    for output in displayed:
        wide, narrow = (output.data[mime] for mime in (pictures.WIDE, pictures.NARROW))
        (w, h), (w2, h2) = ([float(v) for v in re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups()] for svg in (wide, narrow))
        assert w > w2 == pytest.approx(72 * 3.9, abs=0.1)
        assert h2 > h
        texts = [sorted(re.findall(r">([^<>\n]+)</t", svg)) for svg in (wide, narrow)]
        assert texts[0] == texts[1]
    assert "0.125" in displayed[0].data[pictures.WIDE]  # coordinates are shortened, numbers are not
