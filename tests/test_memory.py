"""Memory of a model, predicted and measured."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments import memory
from experiments.pages import memory as memory_page
from experiments.pages import style
from tests.tiny_models import tiny_llama

pytestmark = pytest.mark.usefixtures("on_the_cpu")


CONTEXT = 32


def on_meta(family: str, **settings: Any) -> torch.nn.Module:
    """A model of transformers of the given shape, without memory for its parameters."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    config = AutoConfig.for_model(family, **settings)
    with torch.device("meta"):
        return (AutoModelForSeq2SeqLM if family == "t5" else AutoModelForCausalLM).from_config(config)


def opt_settings(layers: int, width: int, heads: int) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "word_embed_proj_dim": width,
        "num_attention_heads": heads,
        "ffn_dim": 4 * width,
        "max_position_embeddings": 2048,
        "vocab_size": 50272,
    }


#: The settings of the checkpoints' own config.json.
SHAPES = {
    "GPT-2 1.5B": ("gpt2", {"n_layer": 48, "n_embd": 1600, "n_head": 25}),
    "GPT-J-6B": ("gptj", {}),
    "OPT-6.7B": ("opt", opt_settings(32, 4096, 32)),
    "OPT-13B": ("opt", opt_settings(40, 5120, 40)),
    "OPT-30B": ("opt", opt_settings(48, 7168, 56)),
    "OPT-66B": ("opt", opt_settings(64, 9216, 72)),
    "OPT-175B": ("opt", opt_settings(96, 12288, 96)),
    "BLOOM-176B": ("bloom", {"n_layer": 70, "hidden_size": 14336, "n_head": 112, "vocab_size": 250880}),
    "T5-11B": ("t5", {"d_model": 1024, "d_kv": 128, "num_heads": 128, "d_ff": 65536, "num_layers": 24, "num_decoder_layers": 24}),
}


@pytest.mark.parametrize("architecture", memory.published(), ids=lambda a: a.name)
def test_a_published_shape_has_the_parameters_of_the_model_that_transformers_makes_of_it(architecture: memory.Architecture) -> None:
    family, settings = SHAPES[architecture.name]
    model = on_meta(family, **settings)
    assert architecture.parameters == sum(p.numel() for p in model.parameters())
    if family in ("opt", "bloom"):
        counted = memory.architecture_of(model, architecture.name)
        for outlier_weight in memory_page.POLICIES.values():
            # BLOOM's query, key and value are one layer: the same weights and rows.
            ours, theirs = (a.parts(outlier_weight, 2048) for a in (architecture, counted))
            assert {k: v for k, v in ours.items() if k != "workspace"} == {k: v for k, v in theirs.items() if k != "workspace"}


def test_the_bytes_of_a_model_are_those_predicted_from_its_shape() -> None:
    for changes in ({}, {"attention_bias": True, "tie_word_embeddings": True, "head_dim": 12}):
        rows = memory.compare(lambda changes=changes: tiny_llama(**changes).bfloat16(), "tiny", CONTEXT)
        assert [row["policy"] for row in rows] == list(memory_page.POLICIES)
        for row in rows:
            predicted, measured = dict(row["predicted"]), dict(row["measured"])
            assert measured.pop("workspace") >= predicted.pop("workspace")
            assert measured == predicted, row["policy"]
        totals = [row["predicted"]["weights"] + row["predicted"]["kept"] for row in rows]
        assert totals == [totals[0], totals[0] // 2, totals[0] * 3 // 2]  # 2, 1 and 3 bytes a weight


def test_the_peak_is_the_most_that_is_held_at_a_time() -> None:
    mega = 2**20

    def run() -> torch.Tensor:
        first = torch.zeros(4 * mega, dtype=torch.int8)
        second = torch.neg(first)
        del first
        third = torch.zeros(mega, dtype=torch.int8)
        del second
        return third

    assert memory.peak_bytes(run) == 8 * mega
    assert memory.peak_bytes(lambda: None) == 0


def test_a_model_fits_as_long_as_its_bytes_do() -> None:
    small, large = (memory.Architecture(str(n), "", (memory.Linear(1, n, n, False),), 0, 0) for n in (1000, 2000))
    sizes = [sum(a.parts(None, 1).values()) for a in (small, large)]
    for room, fits in ((sizes[0] - 1, None), (sizes[0], "1000"), (sizes[1] - 1, "1000"), (sizes[1], "2000")):
        hardware = memory.Hardware("", 2, room / 2 / memory.GIB, (), ())  # type: ignore[arg-type]
        assert memory.largest_that_fits(hardware, None, 1, [small, large]) == fits


def test_the_memory_command_leaves_a_record_and_a_picture(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    memory.main(["--model", str(folder), "--context", str(CONTEXT), "--out", str(tmp_path / "m.json")])
    record = json.loads((tmp_path / "m.json").read_text())
    assert [style.png(figure) for figure in memory_page.pictures(record)] == [(tmp_path / "m.png").read_bytes()]
    assert "OPT-175B" in capsys.readouterr().out
