"""What the page "A real model" computes, with `reference` alone: at build time for the first picture, and then in the browser.

`activations.bin` holds, for each block of SmolLM2-135M, the input of its gate projection at 48 positions and 16 rows of the weight that
multiplies it, in float16 (`python -m tutorials.activations` records them).
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np

import reference

FILE = Path(__file__).with_name("activations.bin")
BLOCKS, POSITIONS, FEATURES, OUTPUTS = 30, 48, 576, 16
#: Where the page opens: the layer of the running table, and the column that is an outlier at nearly every position.
DEFAULTS: dict[str, Any] = {"block": 29, "column": 17, "threshold": 6.0, "factor": 1}


@functools.cache
def recorded() -> np.ndarray:
    """(BLOCKS, POSITIONS + OUTPUTS, FEATURES) float16: X, and rows of W below it."""
    return np.fromfile(FILE, np.float16).reshape(BLOCKS, POSITIONS + OUTPUTS, FEATURES)


def operands(block: int, column: int, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """X (POSITIONS, FEATURES) and W (OUTPUTS, FEATURES) in float32, X's column times `factor`, a power of two, and W's divided by it."""
    values = recorded()[block].astype(np.float32)
    x, w = values[:POSITIONS], values[POSITIONS:]
    x[:, column] *= np.float32(factor)
    w[:, column] /= np.float32(factor)
    return x, w


def compute(block: int, column: int, threshold: float, factor: int) -> dict[str, Any]:
    """Everything that the page shows for one position of its controls, as plain numbers and lists."""
    x, w = operands(block, column, factor)
    exact = x.astype(np.float64) @ w.T.astype(np.float64)
    outliers = reference.outlier_columns(x, threshold)
    alone, _ = reference.absmax_quantize(x, axis=-1)
    kept, _ = reference.absmax_quantize(np.where(outliers, np.float32(0), x), axis=-1)
    ordinary = np.flatnonzero(~outliers & (np.arange(FEATURES) != column))
    return {
        "settings": {"block": block, "column": column, "threshold": threshold, "factor": factor},
        "peaks": np.abs(x).max(axis=0).round(4).tolist(),
        "outliers": np.flatnonzero(outliers).tolist(),
        "values": [round(float(value), 3) for value in x[:, column]],
        "alone": alone[:, column].tolist(),
        "kept": None if outliers[column] else kept[:, column].tolist(),
        "distinct": [_distinct(codes[:, ordinary]) for codes in (alone, kept)],
        "errors": [
            _error(reference.quantized_matmul(x, w), exact),
            _error(reference.llm_int8_matmul(x, w, threshold), exact),
        ],
        "share": float(outliers.mean()),
    }


def _distinct(codes: np.ndarray) -> float:
    """How many codes the ordinary entries of one position use, in the mean."""
    return float(np.mean([len(np.unique(row)) for row in codes])) if codes.size else 0.0


def _error(y: np.ndarray, exact: np.ndarray) -> float:
    """Relative error: the norm of the difference over the norm of the exact product."""
    return float(np.linalg.norm(y - exact) / np.linalg.norm(exact))
