"""The exercise of chapter 10: a layer's two phases, loading and inference."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import reference

from .chapter_05_decomposition import decompositions
from .engine import F32, ROUNDOFF, Exercise, Verdict, call


def _layers() -> Iterator[tuple]:
    for x, w, threshold in decompositions():
        if threshold == 6.0:
            yield w, x


def _layer_of(load: Callable, infer: Callable) -> Callable:
    def layer(w: np.ndarray, x: np.ndarray) -> Any:
        loaded = load(w)
        return loaded if loaded is NotImplemented else infer(x, *loaded)

    return layer


def _layer_bound(want: np.ndarray, args: tuple) -> np.ndarray:
    w, x = args
    kept = reference.absmax_dequantize(*reference.absmax_quantize(w, axis=-1))
    # As in chapter 05; the weight is dequantized, one more rounding per product on either side.
    o = reference.outlier_columns(x)
    regular = np.abs(reference.quantized_matmul(np.where(o, F32(0), x), w)).astype(np.float64)
    outlier = np.abs(x[:, o]).astype(np.float64) @ np.abs(kept[:, o]).astype(np.float64).T
    return 2 * (int(o.sum()) + 5) * ROUNDOFF * (regular + outlier)


whole_layer = Exercise(
    right=lambda w, x: reference.Int8Linear.from_float(w)(x),
    inputs=("weight", "x"),
    outputs=("y",),
    cases=_layers,
    shared_axes=([(1, 0)], [(0, 0)], [(0, 1), (1, 1)]),
    bound=_layer_bound,
    mistakes=(
        (
            "the outlier columns used the float weight, or one quantized again: after loading, only codes and scales are "
            "left. Use codes[:, o] * scale.",
            lambda w, x: reference.llm_int8_matmul(x, w),
        ),
        ("the weight codes of the outlier columns still need their scales.", lambda w, x: _layer_unscaled(w, x)),
        (
            "the outlier columns were multiplied in float16, which rounds float32 inputs. Nothing is narrowed here.",
            lambda w, x: _layer_float16(w, x),
        ),
        ("the outlier columns are missing from the result.", lambda w, x: _layer_without_outliers(w, x)),
        ("no outlier column left the int8 path.", lambda w, x: reference.quantized_matmul(x, w)),
    ),
)


def _layer_unscaled(w: np.ndarray, x: np.ndarray) -> np.ndarray:
    o = reference.outlier_columns(x)
    codes = reference.absmax_quantize(w, -1).codes
    return reference.quantized_matmul(np.where(o, F32(0), x), w) + x[:, o] @ codes[:, o].T.astype(F32)


def _layer_float16(w: np.ndarray, x: np.ndarray) -> np.ndarray:
    o = reference.outlier_columns(x)
    kept = reference.absmax_dequantize(*reference.absmax_quantize(w, -1))
    part = x[:, o].astype(np.float16) @ kept[:, o].astype(np.float16).T
    return _layer_without_outliers(w, x) + part.astype(F32)


def _layer_without_outliers(w: np.ndarray, x: np.ndarray) -> np.ndarray:
    return reference.quantized_matmul(np.where(reference.outlier_columns(x), F32(0), x), w)


def layer(phases: tuple[Callable, Callable]) -> Verdict:
    """Checks the two phases: `load(weight) -> codes, scale` and `infer(x, codes, scale) -> y`."""
    load, infer = phases
    sample = np.ones((2, 3), F32)
    loaded = call(load, (sample,))
    if isinstance(loaded, tuple) and len(loaded) == 2:
        kept = sum(np.asarray(part).nbytes for part in loaded)
        if kept != sample.size + 4 * len(sample):
            return Verdict(False, f"not right yet. load keeps {kept} bytes of a 2 x 3 weight; 6 codes and 2 float32 scales are 14.")
    answer = _layer_of(load, infer)
    answer.__name__ = f"{getattr(load, '__name__', 'load')} followed by {getattr(infer, '__name__', 'infer')}"
    return whole_layer(answer)
