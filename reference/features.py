"""Emergent outlier features: columns that are large in many layers, at many positions.

    A feature k is an outlier feature if   |A[l, p, k]| >= 6   in at least 25 % of the layers l and at 6 % of the positions p

Dettmers et al. (2022), section 4.1. `outlier_columns` looks at one input and takes whatever reaches the threshold; this criterion
looks at a whole model, and separates the few features that are systematic from entries that are only large once.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import arguments


class Affected(NamedTuple):
    """What `affected` returns: the share of the layers and of the positions in which each feature is large."""

    layers: NDArray[np.float64]
    positions: NDArray[np.float64]


def affected(activations: NDArray, threshold: float | None = 6.0) -> Affected:
    """Says how far each feature's outliers spread over the layers and the positions.

    Args:
        activations: (L, P, K) float16, bfloat16 or float32, one kind of input recorded in each of L layers: P positions of K features.
        threshold: the magnitude from which an entry counts, as in `outlier_columns`.

    Returns:
        layers: (K,) the share of the L layers in which some position of the feature reaches the threshold, 0 to 1.
        positions: (K,) the share of the P positions at which the feature reaches it in some layer, 0 to 1. A position counts once, in
            however many layers.

    Raises:
        TypeError: activations is not an array of one of these dtypes, or threshold is not a number.
        ValueError: activations is not 3-D or has no layer or no position, or threshold is negative or NaN.
    """
    activations = arguments.floats("activations", activations, ndim=3)
    rounded = arguments.threshold(threshold)
    if 0 in activations.shape[:2]:
        raise ValueError(f"activations must have at least one layer and one position, got shape {activations.shape}")
    large = np.zeros(activations.shape, np.bool_) if rounded is None else np.abs(activations) >= rounded
    return Affected(large.any(axis=1).mean(axis=0), large.any(axis=0).mean(axis=0))


def outlier_features(
    activations: NDArray, threshold: float | None = 6.0, layers: float = 0.25, positions: float = 0.06
) -> NDArray[np.bool_]:
    """Says which features are outlier features by the paper's criterion.

    The paper records the inputs of the attention projections and of the first layer of the feed-forward network; kinds of inputs that
    do not share their features (that of `down_proj`, say) are separate calls.

    Args:
        activations: (L, P, K), as in `affected`.
        threshold: as in `outlier_columns`; the paper's is 6.
        layers: the least share of the L layers, 0 to 1.
        positions: the least share of the P positions, 0 to 1.

    Returns:
        (K,) bool.

    Raises:
        TypeError, ValueError: as `affected`; or a share is not between 0 and 1.
    """
    for name, share in (("layers", layers), ("positions", positions)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} must be a share of 0 to 1, got {share}")
    found = affected(activations, threshold)
    return (found.layers >= layers) & (found.positions >= positions)
