"""The exercise of chapter 11: the bytes of a layer."""

from collections.abc import Iterator

import numpy as np

from .engine import Exercise


def _layer_bytes(n: int, k: int, outlier_weight: str) -> np.int64:
    """int8 codes, one float32 scale per row, and float16 weights with "float"."""
    return np.int64(n * k + 4 * n + (2 * n * k if outlier_weight == "float" else 0))


def _sizes() -> Iterator[tuple]:
    for n, k in ((1, 1), (2, 3), (576, 1536), (4096, 4096), (11008, 4096)):
        for policy in ("dequantized", "float"):
            yield n, k, policy


layer_bytes = Exercise(
    right=_layer_bytes,
    inputs=("n", "k", "outlier_weight"),
    outputs=("bytes",),
    cases=_sizes,
    plain=("bytes",),
    mistakes=(
        (
            "the scales are missing: one float32, 4 bytes, for each of the n rows.",
            lambda n, k, p: n * k + (2 * n * k if p == "float" else 0),
        ),
        (
            "a scale belongs to a row of w, an output feature: n of them, not k.",
            lambda n, k, p: n * k + 4 * k + (2 * n * k if p == "float" else 0),
        ),
        (
            'with "float" the codes are still needed for the regular columns: 3 bytes per weight, not 2.',
            lambda n, k, p: 4 * n + (2 if p == "float" else 1) * n * k,
        ),
        ('with "dequantized" nothing but codes and scales is kept; only "float" adds 16-bit weights.', lambda n, k, p: 3 * n * k + 4 * n),
    ),
)
