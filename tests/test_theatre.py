"""The theatre without a browser: its records, their counters against the formulae, and that its Python needs NumPy alone."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mkdocs")

import reference
from tutorials import chapter_kernels, ladder, stage_examples
from tutorials.example import W, X

ROOT = Path(__file__).parents[1]
EXAMPLES = stage_examples.EXAMPLES
sys.path.insert(0, str(ROOT / "docs" / "hooks"))  # as mkdocs does while it loads a hook

import theatre

sys.path.pop(0)
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="pictures are drawn in Node")


def after(record):
    """What the buffers hold in the end, by the record's stores."""
    held = {buffer["name"]: list(buffer["values"]) for buffer in record["buffers"]}
    names = [buffer["name"] for buffer in record["buffers"]]
    for access in (access for step in record["steps"] for access in step.get("accesses", ()) if access["stores"]):
        lanes = [offset for offset, bit in zip(access["offsets"], access["mask"], strict=True) if bit == "1"]
        for offset, value in zip(lanes, access["values"], strict=True):
            held[names[access["buffer"]]][offset] = value
    return {name: np.array([float(value) for value in values]) for name, values in held.items()}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_formula_comes_to_the_bytes_that_were_counted(name):
    record = theatre.records()[name]
    loaded, again, stored = record["steps"][-1]["bytes"]
    assert sum(size for what, _, size in record["formula"] if "stored" in what) == stored
    assert sum(size for what, _, size in record["formula"] if "stored" not in what) == loaded
    assert record["error"] is None
    accesses = [access for step in record["steps"] for access in step.get("accesses", ())]
    assert sum(access["bytes"] for access in accesses) == loaded + stored
    distinct = {
        (access["buffer"], offset): access["bytes"] // access["mask"].count("1")
        for access in accesses
        if not access["stores"]
        for offset, bit in zip(access["offsets"], access["mask"], strict=True)
        if bit == "1"
    }
    assert loaded - again == sum(distinct.values())


def test_the_first_picture_is_the_outlier_loop_of_the_4_x_4():
    record = theatre.records()[theatre.FIRST]
    assert record["source"] == chapter_kernels.every()["llm_int8_product"].text.rstrip("\n").split("\n")
    step = record["steps"][record["opening"]]
    assert "w_o = tl.load" in record["source"][step["line"] - 1]
    (access,) = step["accesses"]
    assert [record["buffers"][access["buffer"]]["name"], access["mask"]] == ["b", "1111" + "0" * 12]
    assert access["offsets"][:4] == [2, 6, 10, 14]  # column 2, the outlier column


def test_the_recorded_launch_of_the_4_x_4_is_the_layer():
    y = after(theatre.records()["outliers"])["y"].reshape(4, 4)
    # Four digits are shown.
    np.testing.assert_allclose(y, reference.Int8Linear.from_float(W)(X), rtol=6e-4)


def test_the_recorded_rows_are_those_of_the_reference():
    held = after(theatre.records()["quantize"])
    right = reference.absmax_quantize(X[:, :3], axis=-1)
    np.testing.assert_array_equal(held["codes"].reshape(4, 3), right.codes)


def test_what_the_page_says_of_the_4_x_4_is_so():
    text = (ROOT / "docs" / "theatre" / "index.md").read_text(encoding="utf-8")
    masked, lanes = map(int, re.search(r"(\d+) of (\d+) lanes of a load are masked", text).groups())
    steps = theatre.records()["outliers"]["steps"]
    blocks = [a for step in steps for a in step.get("accesses", ()) if a["shape"] == [16, 32]]
    assert len(blocks) == 2
    assert {(len(a["mask"]), a["mask"].count("0")) for a in blocks} == {(lanes, masked)}


@needs_node
def test_the_picture_says_in_words_what_it_shows():
    record = theatre.records()[theatre.FIRST]
    (html,) = theatre.drawn((record, record["opening"]))
    assert "Loads 4 entries of b, 4 bytes." in html
    assert 'aria-label="tl.load from b: a block of 16, 4 lanes active, 12 masked"' in html
    assert html.count('class="cell loads seen"') == 4
    assert html.count('aria-current="step"') == 1


@needs_node
def test_no_text_of_a_reader_becomes_html():
    text = '@triton.jit\ndef my_copy(x, y, BLOCK: tl.constexpr):\n    tl.store(y + tl.arange(0, 4), 1.0)  # <b>&"\n'
    record = ladder.attempt("copy", text)["record"]
    (html,) = theatre.drawn((record, 0))
    assert "<b>&" not in html
    assert "&lt;b&gt;&amp;&quot;" in html


def test_the_page_of_the_ladder_has_a_task_for_every_kernel():
    text = (ROOT / "docs" / "theatre" / "write.md").read_text(encoding="utf-8")
    assert [anchor for _, anchor in theatre.HEADING.findall(text)] == list(ladder.RUNGS)
    assert re.findall(r"^\{\{ rung ([\w-]+) \}\}$", text, re.MULTILINE) == list(ladder.RUNGS)


def test_what_the_browser_is_given_runs_on_numpy_alone(tmp_path):
    """The files that the site serves, in a folder of their own, with everything else of this repository out of reach."""
    for path in (*theatre.playground.SOURCES, *theatre.SOURCES):
        target = tmp_path / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    script = f"""
import sys
sys.path = [{str(tmp_path)!r}] + [path for path in sys.path if path not in ("", {str(ROOT)!r})]
for name in ("torch", "triton", "fast"):
    sys.modules[name] = None
from tutorials import ladder
import json
print(json.dumps([ladder.attempt(name, text) for name, text in json.load(sys.stdin).items()]))
print(ladder.__file__)
"""
    answers = json.dumps({name: chapter_kernels.solution(rung.function) for name, rung in ladder.RUNGS.items()})
    done = subprocess.run([sys.executable, "-I", "-c", script], input=answers, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found, file = done.stdout.strip().split("\n")
    assert [one["passed"] for one in json.loads(found)] == [True] * 10
    assert file.startswith(str(tmp_path))
