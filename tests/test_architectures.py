"""The command that takes small models of many architectures through each step, and its page."""

import json
from typing import Any

import pytest
import torch
from torch import nn

from experiments import architectures, records
from experiments.pages import architectures as page

RECORD = json.loads((records.RESULTS / "architectures.json").read_text())


def test_the_page_is_what_the_record_says():
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.filled(text, RECORD) == text


def test_the_record_has_every_architecture_and_step():
    assert [row["architecture"] for row in RECORD["rows"]] == list(architectures.ARCHITECTURES)
    assert {tuple(row["steps"]) for row in RECORD["rows"]} == {architectures.STEPS}
    assert len(RECORD["rows"]) >= 31


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["Llama", "T5"])
def test_a_row_is_what_the_record_has(name):
    row = json.loads(json.dumps(records.plain(architectures.try_steps(name))))
    (recorded,) = [each for each in RECORD["rows"] if each["architecture"] == name]
    assert set(row["steps"].values()) == {"passes"}
    assert {key: row[key] for key in ("int8", "float", "bytes", "reasons")} == {
        key: recorded[key] for key in ("int8", "float", "bytes", "reasons")
    }


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_step_that_goes_wrong_is_told_and_the_others_go_on(monkeypatch):
    def wrong(model: nn.Module, **options: Any) -> nn.Module:
        quantized = quantize(model, **options)
        with torch.no_grad():
            quantized.model.layers[0].mlp.up_proj.weight_absmax.mul_(100)
        return quantized

    quantize = architectures.fast.quantize_model
    monkeypatch.setattr(architectures.fast, "quantize_model", wrong)
    row = architectures.try_steps("Llama")
    assert row["steps"]["forward"].startswith("StepError: the output differs from the float model's by")
    assert row["steps"]["load"].startswith("StepError: from the float checkpoint, other bits")
    assert row["steps"]["quantize"] == row["steps"]["save"] == row["steps"]["summary"] == "passes"
    shown = page.render(RECORD | {"rows": [row]})
    assert "0 of 1 architectures" in shown
    assert "- Llama, forward: StepError: the output differs" in shown
