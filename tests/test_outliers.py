"""Outlier features of a model: recorded, described, removed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import outliers
from experiments.lm import engines, recording
from experiments.pages import outliers as outliers_page
from experiments.pages import style
from tests.tiny_models import TOKENS, tiny_llama, windows

pytestmark = pytest.mark.usefixtures("on_the_cpu")


ATTENTION_INPUT, MLP_INPUT = "self_attn.q_proj, k_proj, v_proj", "mlp.gate_proj, up_proj"


def test_layers_that_read_the_same_array_are_one_kind() -> None:
    kinds = recording.record_inputs(tiny_llama(), windows(3), progress=False)
    assert {name: kind.inputs.shape for name, kind in kinds.items()} == {
        ATTENTION_INPUT: (3, 3 * TOKENS, 48),
        "self_attn.o_proj": (3, 3 * TOKENS, 48),
        MLP_INPUT: (3, 3 * TOKENS, 48),
        "mlp.down_proj": (3, 3 * TOKENS, 80),
    }
    assert kinds[MLP_INPUT].layers[2] == ["model.layers.2.mlp.gate_proj", "model.layers.2.mlp.up_proj"]


def test_a_recorded_input_is_what_the_layer_reads() -> None:
    model, tokens = tiny_llama(), windows(2)
    recorded = recording.record_inputs(model, tokens, progress=False)[ATTENTION_INPUT].inputs
    layer = model.model.layers[1]
    seen: list[np.ndarray] = []
    layer.self_attn.k_proj.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][0].numpy().copy()))
    for window in tokens:
        model(torch.from_numpy(window[None]))
    assert np.array_equal(recorded[1], np.concatenate(seen))


def test_the_planted_feature_is_found_with_its_layers_sign_and_size() -> None:
    kind = recording.record_inputs(tiny_llama(), windows(2), progress=False)[ATTENTION_INPUT]
    (found,) = outliers.describe(kind, 6.0, 0.25, 0.06)["features"]
    values = kind.inputs[:, :, 5]
    assert found["feature"] == 5
    assert found["in_layers"].tolist() == [0, 1, 2]
    assert found["largest"] == np.abs(values).max()
    assert found["positive"] == (values >= 6).sum() / (np.abs(values) >= 6).sum()


def test_cleared_features_are_read_as_zeros_and_only_within_the_context() -> None:
    model, tokens = tiny_llama(), windows(1)
    kinds = recording.record_inputs(model, tokens, progress=False)
    before = engines.window_losses(model, tokens)
    with outliers.cleared(model, kinds, {ATTENTION_INPUT: [5, 7], MLP_INPUT: [5]}):
        inside = engines.window_losses(model, tokens)
    assert np.array_equal(engines.window_losses(model, tokens), before)
    for block in model.model.layers:  # a gain of zero does the same
        block.input_layernorm.weight[[5, 7]] = 0
        block.post_attention_layernorm.weight[5] = 0
    assert np.array_equal(engines.window_losses(model, tokens), inside)
    assert inside != before


def test_each_attention_layer_is_asked_on_its_own() -> None:
    model, tokens = tiny_llama(), windows(2)
    peaks = outliers.attention_peak(model, tokens, [[], [5], [7]])
    assert peaks.shape == (4, 3)
    assert np.array_equal(peaks[0], peaks[1])  # nothing removed
    assert (np.abs(peaks[2] - peaks[0]) > 10 * np.abs(peaks[3] - peaks[0])).all()  # the large feature matters, another hardly does
    # The last layer alone without the feature: the same answer, so what the layers before it passed on was not touched.
    model.model.layers[2].input_layernorm.weight[5] = 0
    assert outliers.attention_peak(model, tokens, [])[0, 2] == peaks[2, 2]
    assert model.config._attn_implementation == "sdpa"


def test_spans_shorten_runs_of_numbers() -> None:
    assert outliers_page.spans([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    assert outliers_page.spans([]) == ""


def test_the_outliers_command_prints_tables_and_leaves_a_record_and_pictures(
    folder: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "o.json"
    outliers.main(["--model", str(folder), "--text", str(text), "--tokens", str(TOKENS), "--out", str(out), "--seeds", "2"])
    record = json.loads(out.read_text())
    assert record["removals"][0]["removed"] == {ATTENTION_INPUT: [5], MLP_INPUT: [5]}
    assert all(5 not in numbers for one in record["removals"] for numbers in [one["perplexity"]["random"]])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o-2.png", "o.json", "o.png", "text.txt"]
    drawn = [style.png(figure) for figure in outliers_page.pictures(record)]
    assert drawn == [(tmp_path / "o.png").read_bytes(), (tmp_path / "o-2.png").read_bytes()]
    assert "outlier features" in capsys.readouterr().out
