"""From losses to perplexity and its interval."""

import numpy as np
import pytest
import torch

from experiments.lm import losses
from tests.tiny_models import VOCABULARY

pytestmark = pytest.mark.usefixtures("on_the_cpu")


def test_cross_entropy_is_that_of_torch() -> None:
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(0, 20, (50, VOCABULARY)).astype(np.float32), rng.integers(0, VOCABULARY, 50)
    theirs = torch.nn.functional.cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(targets)).item()
    # Each loss is a sum of terms of size 100 at most, rounded to float32 where the largest logit is subtracted.
    assert abs(losses.cross_entropy(logits, targets) - theirs) <= 100 * 2.0**-23


@pytest.mark.parametrize(
    ("probability", "degrees", "published"),
    [(0.975, 1, 12.706), (0.975, 2, 4.303), (0.95, 5, 2.015), (0.975, 10, 2.228), (0.99, 30, 2.457), (0.975, 120, 1.980)],
)
def test_quantiles_of_students_t_are_those_of_the_published_tables(probability: float, degrees: int, published: float) -> None:
    assert round(losses.t_quantile(probability, degrees), 3) == published


def test_an_interval_is_paired_over_the_windows() -> None:
    baseline = np.array([1.0, 5.0, 3.0, 9.0])
    found = losses.difference(baseline + np.array([0.1, 0.3, 0.1, 0.3]), baseline)
    half = 3.182446 * np.std([0.1, 0.3, 0.1, 0.3], ddof=1) / 2  # the quantile for 3 degrees of freedom, from a table
    expected = {"percent": np.expm1(0.2), "low": np.expm1(0.2 - half), "high": np.expm1(0.2 + half)}
    assert {k: round(v, 4) for k, v in found.items()} == {k: round(100 * v, 4) for k, v in expected.items()}
    assert losses.difference(baseline[:1], baseline[:1]) == {"percent": 0, "low": None, "high": None}
