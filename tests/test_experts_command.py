"""The command that measures mixtures of experts, and its page."""

import json

import pytest
import torch
from matplotlib.colors import to_hex

import fast
from experiments import experts, loading_peak, records
from experiments.command import InputError
from experiments.pages import experts as page
from experiments.pages import style

RECORD = json.loads((records.RESULTS / "experts.json").read_text())


def test_the_page_is_what_the_records_say():
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.filled(text, RECORD, records.read("experts-speed")) == text


def test_the_record_has_every_model_and_family_and_all_passed():
    assert [row["model"] for row in RECORD["sizes"]] == list(experts.MODELS)
    assert [row["family"] for row in RECORD["matrix"]] == list(experts.FAMILIES)
    assert all(row["equal"] == row["tried"] > 0 and row["compiled"] and row["exported"] for row in RECORD["matrix"])
    assert all(abs(row["bytes"] - 1) < 0.01 for row in RECORD["matrix"])
    assert [(row["hidden"], row["experts"], row["k"]) for row in RECORD["routers"]] == list(experts.ROUTERS)


def test_loading_takes_the_int8_model_and_what_merges_one_projection():
    row = RECORD["loading"]
    # Three times the codes of a projection (each expert's, stacked, gate with up) and four times one matrix in float32, which is as much
    # again; 16 MB for Python and Torch. As in test_saved_experts.py, where it is measured anew.
    assert row["int8"] < row["streamed"] < row["int8"] + 4 * row["largest"] + 16e6 < row["float"]
    assert row["float_first"] > row["float"]
    sizes = loading_peak.SIZES
    weights = sizes["num_hidden_layers"] * sizes["num_local_experts"] * 3 * sizes["hidden_size"] * sizes["intermediate_size"]
    assert row["largest"] == weights / sizes["num_hidden_layers"] * 2 / 3
    assert weights < row["int8"] < 1.08 * weights  # attention is 6 % of it, row maxima and embeddings the rest


def test_the_picture_and_its_words_are_what_the_outliers_of_each_experts_rows_are():
    with fast.backend("cpu"):
        assert records.plain(experts.route_a_few()) == RECORD["routing"]
    routing, seen = RECORD["routing"], page.counts(RECORD)
    # Token 2 has an outlier in feature 5, token 6 in feature 11.
    assert routing["outliers"] == [[c for t, c in ((2, 5), (6, 11)) if t in rows] for rows in routing["rows"]]
    assert sum(seen["rows"]) == 2 * routing["tokens"]
    assert (seen["entries"], seen["in_16_bits"], seen["of_one_layer"]) == (256, 18, 32)
    assert "expert 1 has 4 rows and no outlier columns" in page.alt(RECORD)
    (figure,) = page.pictures(RECORD)
    left, right = figure.axes
    orange = [patch for patch in right.patches if to_hex(patch.get_facecolor()) == style.ORANGE]
    assert len(left.patches) == 16 + 2  # and two empty ones for the legend
    assert (len(right.patches), len(orange)) == (seen["entries"], seen["in_16_bits"])


def test_with_experts_a_model_halves_and_without_it_hardly_changes():
    for row in RECORD["sizes"]:
        assert row["linear"] > 0.97 * row["before"]
        assert row["after"] < 0.53 * row["before"]


@pytest.mark.parametrize("family", ["gpt-oss", "Llama 4"])
def test_a_row_of_the_matrix_is_what_the_record_has(family):
    with torch.no_grad(), fast.backend("cpu"):
        row = records.plain(experts.try_family(family))
    (recorded,) = [each for each in RECORD["matrix"] if each["family"] == family]
    assert {key: value for key, value in row.items() if key != "error"} == {key: value for key, value in recorded.items() if key != "error"}
    assert row["error"] == pytest.approx(recorded["error"], rel=0.05)  # float32 sums of the exact result differ by processor


def test_a_row_of_sizes_is_what_the_record_has():
    row = records.plain(experts.size_of_model("OLMoE"))
    assert row in RECORD["sizes"]
    config = experts.transformers.OlmoeConfig()
    weights = 3 * config.num_experts * config.hidden_size * config.intermediate_size * config.num_hidden_layers
    assert row["experts"] == records.plain(2.0 * weights) or row["experts"] == 2 * weights


def test_a_layer_that_computes_something_else_is_seen(monkeypatch):
    def wrong(module, threshold=6.0):
        made = from_float(module, threshold)
        made.down_proj_absmax.data *= 1.001
        return made

    from_float = experts.Int8Experts.from_float
    monkeypatch.setattr(experts.Int8Experts, "from_float", staticmethod(wrong))
    with torch.no_grad(), fast.backend("cpu"):
        row = experts.try_family("Mixtral")
    assert row["equal"] < row["tried"]


def test_the_speed_of_a_small_layer_is_measured_and_shown(tmp_path, capsys):
    sizes = ["--hidden", "32", "--inner", "16", "--experts", "4", "--tokens", "1", "3", "--rounds", "2"]
    experts.main(["--speed", *sizes, "--out", str(tmp_path / "speed.json")])
    record = json.loads((tmp_path / "speed.json").read_text())
    assert [row["tokens"] for row in record["rows"]] == [1, 3]
    assert all(set(row["seconds"]) == {"int8", "eager", "grouped_mm"} for row in record["rows"])
    assert "times as fast" in capsys.readouterr().out
    shown = page.render(RECORD, record)
    assert "## Speed on a CPU" in shown
    assert "hidden size 32" in shown
    assert "## Speed on a CPU" not in page.render(RECORD, None)


def test_a_record_of_another_kind_is_refused():
    with pytest.raises(InputError, match=r"--out must end in \.json"):
        experts.main(["--out", "experts.txt"])


def test_only_known_experts_can_be_split_into_layers():
    with pytest.raises(TypeError, match="must be experts that are known, got Linear"):
        experts.OneLayerEach(torch.nn.Linear(2, 2))
