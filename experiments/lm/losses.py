"""From losses to perplexity, and to how surely one model's is larger than another's."""

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95


def perplexity(losses: NDArray[np.float64]) -> float:
    """The exponential of the mean loss; windows have the same length, so that each counts alike."""
    return float(np.exp(np.mean(losses)))


def cross_entropy(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> float:
    """Mean over the positions of -log softmax(logits)[target], in nats; logits (T, vocabulary), targets (T,)."""
    top = logits.max(axis=-1)
    total = np.exp(logits - top[:, None]).sum(axis=-1, dtype=np.float64)
    return float(np.mean(np.log(total) + top - logits[np.arange(len(targets)), targets]))


def t_quantile(probability: float, degrees: int) -> float:
    """The quantile of Student's t distribution, 1/2 < probability < 1.

    With t = sqrt(degrees) * tan(angle), its density becomes cos(angle)**(degrees - 1): smooth, and on a bounded interval.
    """
    edge = np.linspace(0, np.pi / 2, 200_001)
    middle = (edge[1:] + edge[:-1]) / 2
    mass = np.cumsum(np.cos(middle) ** (degrees - 1))
    angle = np.interp(2 * probability - 1, mass / mass[-1], edge[1:])
    return float(np.sqrt(degrees) * np.tan(angle))


def difference(losses: NDArray[np.float64], baseline: NDArray[np.float64]) -> dict[str, float | None]:
    """How much larger a method's perplexity is than the float model's, in percent, with a 95 % confidence interval.

    The mean losses of the windows are compared pair by pair, with Student's t over the windows; the exponential of a
    difference of mean losses is a ratio of perplexities. A single window has no interval.

    Args:
        losses, baseline: mean loss of each window (windows,).
    """
    paired = losses - baseline
    mean = paired.mean()
    found = {"percent": 100 * np.expm1(mean), "low": None, "high": None}
    if len(paired) > 1:
        half = t_quantile((1 + CONFIDENCE) / 2, len(paired) - 1) * paired.std(ddof=1) / np.sqrt(len(paired))
        found |= {"low": 100 * np.expm1(mean - half), "high": 100 * np.expm1(mean + half)}
    return found
