"""The outlier dial."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import dial, perplexity
from experiments.lm import engines, numpy_llama, recording
from experiments.lm.dial import turn
from experiments.pages import dial as dial_page
from experiments.pages import style
from tests.tiny_models import TOKENS, tiny, tiny_llama, windows

ATTENTION_INPUT, MLP_INPUT = "self_attn.q_proj, k_proj, v_proj", "mlp.gate_proj, up_proj"

pytestmark = pytest.mark.usefixtures("on_the_cpu")


@pytest.mark.parametrize("family", ["opt", "gpt2"])
def test_models_that_numpy_cannot_run_are_quantized_by_the_fast_engine(family: str) -> None:
    model, tokens = tiny(family), windows(2)
    assert numpy_llama.unsupported(model.config) is not None
    by_name = {"fast": lambda setting, share: engines.fast_engine(model, setting, share, wide=False)}
    settings = perplexity.settings_of(["absmax-tensor", "llm-int8-absmax"], thresholds=(1.0,))
    exact, coarse, fine = perplexity.measure(by_name, settings, [tokens], progress=False)
    assert 0 < fine["outlier_share"] < 1
    off = [np.abs(row["losses"] - exact["losses"]).max() for row in (coarse, fine)]
    assert 0 < off[1] < off[0] < 0.5


@pytest.mark.parametrize(("family", "norms"), [("llama", 6), ("opt", 4), ("gpt2", 4)])
def test_turning_the_dial_changes_no_output_of_the_float_model(family: str, norms: int) -> None:
    model, tokens = tiny(family), windows(1)
    read = recording.readers(model, tokens[:, :4])
    assert len(read) == norms
    columns = [3, 5, 40]
    turned = turn(model, read, columns, 64.0)
    ids = torch.from_numpy(tokens)
    assert torch.equal(model(ids).logits, turned(ids).logits)
    plain, large = (recording.record_inputs(m, tokens, progress=False) for m in (model, turned))
    readers = {name for names in read.values() for name in names}
    for name, kind in plain.items():
        factor = np.ones(kind.inputs.shape[2], np.float32)
        if kind.layers[0][0] in readers:
            factor[columns] = 64
        assert np.array_equal(kind.inputs * factor, large[name].inputs), name


def test_turning_leaves_the_given_model_and_shares_what_does_not_change() -> None:
    model = tiny_llama()
    before = {name: p.clone() for name, p in model.named_parameters()}
    turned = turn(model, recording.readers(model, windows(1)), [1], 2.0)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    shared = {name for name, p in turned.named_parameters() if p.data_ptr() == dict(model.named_parameters())[name].data_ptr()}
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in shared} == {"embed_tokens", "o_proj", "down_proj", "norm", "lm_head"}


@pytest.mark.parametrize("factor", [3.0, 0.0, -2.0, float("inf"), float("nan")])
def test_only_a_power_of_two_turns_the_dial(factor: float) -> None:
    with pytest.raises(ValueError, match="must be a power of two"):
        turn(tiny_llama(), {}, [1], factor)


def test_a_turned_model_hurts_absmax_and_not_llm_int8_with_float_weights(folder: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "d.json"
    given = ["--model", str(folder), "--text", str(text), "--tokens", str(TOKENS), "--out", str(out)]
    dial.main([*given, "--factors", "1", "256", "--features", "3"])
    record = json.loads(out.read_text())
    off = {(row["label"], row["factor"]): abs(np.log(row["perplexity"] / record["float_perplexity"])) for row in record["rows"]}
    assert off["absmax, by vector", 256] > 10 * off["absmax, by vector", 1]
    assert off["LLM.int8(), float weights", 256] < off["absmax, by vector", 256] / 10
    assert len(record["settings"]["features"]) == 3
    counts = {row["factor"]: len(row["features"][ATTENTION_INPUT]) for row in record["rows"]}
    assert counts == {1: 1, 256: 4}  # the planted feature, then the turned ones too
    assert [style.png(figure) for figure in dial_page.pictures(record)] == [(tmp_path / "d.png").read_bytes()]
