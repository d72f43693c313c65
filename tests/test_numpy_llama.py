"""The Llama in NumPy against that of transformers."""

from typing import Any

import numpy as np
import pytest
import torch

from experiments.lm import numpy_llama
from tests.tiny_models import tiny_llama, windows

pytestmark = pytest.mark.usefixtures("on_the_cpu")


LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 6},
        {"num_key_value_heads": 1, "head_dim": 12},
        {"tie_word_embeddings": True},
        {"attention_bias": True, "mlp_bias": True},
        {"rope_parameters": LLAMA3_ROPE},
        {"rms_norm_eps": 0.1},
    ],
    ids=["grouped", "one-head-each", "one-head-for-all-wide", "tied", "biased", "llama3-rope", "large-eps"],
)
def test_the_numpy_forward_pass_is_that_of_transformers(changes: dict[str, Any]) -> None:
    model, tokens = tiny_llama(**changes), windows()
    llama = numpy_llama.from_torch(model)
    ours = llama.head(llama.hidden(tokens))
    theirs = model(torch.from_numpy(tokens)).logits.numpy()
    # Both round in float32 at each of 22 linear layers, a product of length K <= 80 each time by K * 2**-24 of its size at most;
    # transformers rounds between the layers too, as often. A forgotten rotation, mask, gain or bias changes far more.
    assert np.abs(ours - theirs).max() <= 2 * 22 * 80 * 2.0**-24 * np.abs(theirs).max()


def test_a_position_does_not_see_what_follows() -> None:
    llama, tokens = numpy_llama.from_torch(tiny_llama()), windows()
    changed = tokens.copy()
    changed[:, 10:] = windows(seed=1)[:, 10:]
    before, after = llama.hidden(tokens), llama.hidden(changed)
    # Not equal: BLAS may sum the rows of a product of another content in the same order only.
    assert np.allclose(before[:, :10], after[:, :10], rtol=0, atol=1e-12)
    assert np.abs(before[:, 10:] - after[:, 10:]).max() > 0.1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"hidden_act": "gelu"}, "its activation is 'gelu'"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "'dynamic'"),
    ],
)
def test_a_model_that_numpy_cannot_run_is_refused_with_the_reason(changes: dict[str, Any], reason: str) -> None:
    assert reason in (numpy_llama.unsupported(tiny_llama(**changes).config) or "")
    assert numpy_llama.unsupported(tiny_llama().config) is None
