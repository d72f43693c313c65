"""What the page "A real model" says and computes, against the recorded activations and the reference."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mkdocs")

import reference
from tutorials import explore

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs" / "hooks"))  # as mkdocs does while it loads a hook

import theatre

sys.path.pop(0)
PAGE = (ROOT / "docs" / "theatre" / "explore.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("factor", [1, 8, 64])
def test_turning_the_dial_leaves_the_product_as_it_was(factor):
    x, w = explore.operands(29, 17, 1)
    turned_x, turned_w = explore.operands(29, 17, factor)
    assert np.array_equal(x.astype(np.float64) @ w.T.astype(np.float64), turned_x.astype(np.float64) @ turned_w.T.astype(np.float64))
    assert (turned_x[:, 17] == factor * x[:, 17]).all()
    assert (np.delete(turned_x, 17, axis=1) == np.delete(x, 17, axis=1)).all()


def test_what_is_shown_is_what_the_reference_gives():
    found = explore.compute(29, 17, 6.0, 8)
    x, w = explore.operands(29, 17, 8)
    exact = x.astype(np.float64) @ w.T.astype(np.float64)
    for error, y in zip(found["errors"], (reference.quantized_matmul(x, w), reference.llm_int8_matmul(x, w)), strict=True):
        assert error == np.linalg.norm(y - exact) / np.linalg.norm(exact)
    assert found["outliers"] == np.flatnonzero(reference.outlier_columns(x)).tolist()
    assert found["alone"] == reference.absmax_quantize(x, axis=-1).codes[:, 17].tolist()
    assert found["kept"] is None
    assert explore.compute(29, 18, 6.0, 1)["kept"] is not None


def test_the_default_makes_the_point():
    alone, decomposed = explore.compute(**explore.DEFAULTS)["errors"]
    assert alone > 3 * decomposed


def test_the_sentences_of_the_page_are_so():
    assert len(explore.compute(29, 17, 6.0, 1)["outliers"]) == 2
    assert explore.compute(29, 17, 20.0, 1)["outliers"] == [507]
    assert explore.compute(29, 17, 6.0, 1)["errors"][1] == explore.compute(29, 17, 6.0, 8)["errors"][1]
    none = explore.compute(12, 371, 6.0, 1)
    assert none["outliers"] == []
    assert none["errors"][0] == none["errors"][1]
    turned = explore.compute(12, 371, 6.0, 64)
    assert turned["outliers"] == [371]
    assert turned["errors"][0] > 10 * turned["errors"][1]
    outliers = [explore.compute(block, 0, 6.0, 1)["outliers"] for block in range(explore.BLOCKS)]
    assert sum(not found for found in outliers) > explore.BLOCKS / 2  # "Most blocks have none."


def test_no_number_of_a_result_is_typed():
    assert re.findall(r"\d+(?:\.\d+)? %", PAGE) == []


def test_every_placeholder_of_the_page_is_filled():
    filled = theatre.real_model(PAGE)
    assert "{{" not in filled.partition('<script type="application/json"')[0]
    assert "column 507 alone reaches it" in " ".join(filled.split())


@pytest.mark.deep
def test_the_file_holds_what_the_model_gives():
    from tutorials import activations

    # Another processor rounds other sums: float32 of a whole model, then float16.
    np.testing.assert_allclose(explore.recorded().astype(np.float32), activations.record().astype(np.float32), rtol=2e-2, atol=2e-2)
