"""The exercise of chapter 04: which features of a model are outlier features."""

from collections.abc import Iterator

import numpy as np

from reference import features

from .engine import F32, SEEDS, Exercise


def stacks() -> Iterator[tuple]:
    """(layers, positions, features): each of the three limits met exactly, missed by one, and met in the wrong place."""
    base = np.zeros((4, 50, 1), F32)

    def planted(layer_count: int, position_count: int, value: float = 6.0) -> tuple:
        x = base.copy()
        x[:layer_count, :position_count] = value
        return (x,)

    yield planted(1, 3)  # 25 % of the layers, 6 % of the positions: all three limits met exactly
    yield planted(1, 2)  # 4 % of the positions
    yield planted(2, 3, -6.0)
    yield planted(4, 50, 5.99)
    x = base.copy()
    for layer in range(4):
        x[layer, layer] = 7.0  # one position per layer, but another one each time: 8 % of the positions
    yield (x,)
    wide = np.zeros((8, 50, 1), F32)
    wide[0] = 9.0  # every position, but one layer of eight
    yield (wide,)
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        noise = rng.normal(scale=2.2, size=(8, 33, 12)).astype(F32)
        noise[rng.random(8) < 0.5, :, 3] *= 4
        noise[:, :, 7] *= 3
        yield (noise,)


outlier_features = Exercise(
    right=lambda activations: features.outlier_features(activations),
    inputs=("activations",),
    outputs=("mask",),
    cases=stacks,
    shared_axes=([(0, 2)], [(0, 1)], [(0, 0)]),
    mistakes=(
        (
            "the two axes are exchanged: .any(axis=1) over the positions gives the layers, .any(axis=0) over the layers the positions.",
            lambda a: ((np.abs(a) >= 6).any(0).mean(0) >= 0.25) & ((np.abs(a) >= 6).any(1).mean(0) >= 0.06),
        ),
        (
            "a share is a mean, between 0 and 1. A sum counts, and one layer already counts as more than 25 %.",
            lambda a: ((np.abs(a) >= 6).any(1).sum(0) >= 0.25) & ((np.abs(a) >= 6).any(0).sum(0) >= 0.06),
        ),
        (
            "both limits have to be met: & (and), not | (or).",
            lambda a: ((np.abs(a) >= 6).any(1).mean(0) >= 0.25) | ((np.abs(a) >= 6).any(0).mean(0) >= 0.06),
        ),
        (
            "the limit is reached at magnitude 6: >=, not >.",
            lambda a: ((np.abs(a) > 6).any(1).mean(0) >= 0.25) & ((np.abs(a) > 6).any(0).mean(0) >= 0.06),
        ),
        (
            "magnitude: an entry of -6 counts as well. Take np.abs.",
            lambda a: ((a >= 6).any(1).mean(0) >= 0.25) & ((a >= 6).any(0).mean(0) >= 0.06),
        ),
        (
            "at least 25 % and at least 6 %: use >= for both shares.",
            lambda a: ((np.abs(a) >= 6).any(1).mean(0) > 0.25) & ((np.abs(a) >= 6).any(0).mean(0) > 0.06),
        ),
        (
            "the layers are missing: the feature has to reach the threshold in at least 25 % of them.",
            lambda a: (np.abs(a) >= 6).any(0).mean(0) >= 0.06,
        ),
        ("the positions are missing: at least 6 % of them have to hold an outlier.", lambda a: (np.abs(a) >= 6).any(1).mean(0) >= 0.25),
        (
            "that is the share of all (layer, position) pairs. Count a position once, whichever layers have the outlier: "
            ".any(axis=0) before the mean.",
            lambda a: ((np.abs(a) >= 6).any(1).mean(0) >= 0.25) & ((np.abs(a) >= 6).mean((0, 1)) >= 0.06),
        ),
    ),
)
