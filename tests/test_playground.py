"""What the playground suggests to try, against what the reference computes there (docs/playground/index.md, play.py)."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

PLAYGROUND = Path(__file__).parents[1] / "docs" / "playground"


def _load_play():
    spec = importlib.util.spec_from_file_location("play", PLAYGROUND / "play.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


play = _load_play()
TEXT = (PLAYGROUND / "index.md").read_text(encoding="utf-8").partition("## What to try")[2].partition("## Exercises")[0]


def at(**moved):
    """(error of int8 alone, error of LLM.int8(), outlier columns) with these controls moved from the default."""
    settings = play.DEFAULTS | moved
    result = play.compute(**settings)
    chosen = next(m for m in result["methods"] if (m["quantizer"], m["granularity"]) == (settings["quantizer"], settings["granularity"]))
    return chosen["int8"], chosen["decomposed"], len(result["outliers"])


def suggested(name):
    return at(**play.SUGGESTIONS[name])


def test_the_text_and_the_list_suggest_the_same():
    assert set(re.findall(r'data-try="(\w+)"', TEXT)) == set(play.SUGGESTIONS)
    assert set(re.findall(r"\{\{ (\w+)\.", TEXT)) == set(play.SUGGESTIONS)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("small", "size 2"),
        ("crossing", "size 6"),
        ("large", "size 100"),
        ("tensor", "tensor"),
        ("row", "row"),
        ("vector", "vector"),
        ("zeropoint", "zeropoint"),
        ("low", "threshold 2"),
        ("lowest", "threshold 1"),
        ("high", "threshold 20, size 19"),
    ],
)
def test_a_button_says_what_it_sets(name, label):
    assert f'data-try="{name}">{label}</button>' in TEXT
    sizes = {word: float(number) for word, number in re.findall(r"(size|threshold) (\d+)", label)}
    moved = play.DEFAULTS | play.SUGGESTIONS[name]
    assert moved["outlier"] == sizes.get("size", 60)
    assert moved["threshold"] == sizes.get("threshold", 6)
    assert moved["granularity"] == (label if label in play.GRANULARITIES else "vector")
    assert moved["quantizer"] == (label if label in play.QUANTIZERS else "absmax")


def test_no_number_of_a_result_is_typed():
    assert re.findall(r"\d+(?:\.\d+)? %", TEXT) == []


def test_small_outliers_leave_nothing_to_decompose():
    int8, decomposed, columns = suggested("small")
    assert columns == 0
    assert int8 == decomposed


def test_larger_outliers_raise_the_error_of_int8_alone():
    sizes = [at(outlier=float(size)) for size in range(6, 101)]
    assert {columns for _, _, columns in sizes} == {2}
    assert len({f"{100 * decomposed:.2f}" for _, decomposed, _ in sizes}) == 1
    # From one size to the next the error may fall, as some codes land nearer to their entries: so means over nineteen sizes.
    means = np.mean(np.reshape([int8 for int8, _, _ in sizes], (5, 19)), axis=1)
    assert (np.diff(means) > 0).all()
    assert suggested("crossing")[0] == min(int8 for int8, _, _ in sizes)
    assert at(outlier=5.0)[2] == 0


def test_one_scale_per_row_helps_little_because_every_row_has_an_outlier():
    x, _ = play.operands(60.0)
    assert (np.abs(x) >= 6).any(axis=1).all()
    tensor, row, vector = (suggested(name)[0] for name in ("tensor", "row", "vector"))
    assert 0.9 * tensor < row < tensor
    assert vector < row


def test_zeropoint_gains_less_than_a_factor_of_two():
    x, _ = play.operands(60.0)
    assert (x[:, play.OUTLIERS] < 0).all()
    assert suggested("vector")[0] / 2 < suggested("zeropoint")[0] < suggested("vector")[0]


def test_a_low_threshold_takes_out_many_columns_and_a_lower_one_all():
    _, default, _ = at()
    _, low, of_low = suggested("low")
    _, lowest, of_lowest = suggested("lowest")
    assert 16 < of_low < of_lowest == play.FEATURES
    assert 0 < low < default
    assert f"{100 * lowest:.2f}" == "0.00"


def test_a_threshold_above_the_outliers_finds_none():
    int8, decomposed, columns = suggested("high")
    assert columns == 0
    assert int8 == decomposed
