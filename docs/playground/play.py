"""What the playground computes, with `reference` alone: at build time for the first picture, and then in the browser.

One small product, Y = X @ W.T. Two feature columns of X are outliers of the size that the slider says; the columns of W
that read them are divided by that size, so that Y is the same at every position of the slider. Only the difficulty of
quantizing X and W changes.
"""

import ast
import contextlib
import io
import traceback

import numpy as np

import reference
from reference.vectorwise import AXES

TOKENS, FEATURES, OUTPUTS = 16, 32, 24
OUTLIERS = (5, 21)
GRANULARITIES = ("tensor", "row", "vector")
QUANTIZERS = ("absmax", "zeropoint")
DEFAULTS = {"outlier": 60.0, "threshold": 6.0, "granularity": "vector", "quantizer": "absmax"}
#: What the page suggests to try, by name: the controls to move, starting from the default.
SUGGESTIONS = {
    "small": {"outlier": 2.0},
    "crossing": {"outlier": 6.0},
    "large": {"outlier": 100.0},
    "tensor": {"granularity": "tensor"},
    "row": {"granularity": "row"},
    "vector": {},
    "zeropoint": {"quantizer": "zeropoint"},
    "low": {"threshold": 2.0},
    "lowest": {"threshold": 1.0},
    "high": {"outlier": 19.0, "threshold": 20.0},
}


def operands(outlier):
    """X (TOKENS, FEATURES) and W (OUTPUTS, FEATURES) in float32; the largest magnitude in X's outlier columns is `outlier`."""
    rng = np.random.default_rng(2022)
    # Multiples of 1/64: every platform then draws the same numbers, whatever its mathematics library.
    x = (np.rint(rng.normal(size=(TOKENS, FEATURES)) * 64) / 64).clip(-3, 3).astype(np.float32)
    w = (np.rint(rng.normal(size=(OUTPUTS, FEATURES)) * 64) / 64).astype(np.float32)
    size = np.float32(outlier)
    for column in OUTLIERS:  # of one sign, as the paper finds them
        share = -np.float32(0.5) - np.abs(x[:, column]) / 8
        x[:, column] = share / np.abs(share).max() * size
        w[:, column] /= size
    return x, w


def compute(outlier, threshold, granularity, quantizer):
    """Everything that the page shows for one position of its controls, as plain numbers and lists."""
    x, w = operands(outlier)
    exact = x.astype(np.float64) @ w.T.astype(np.float64)
    methods = [
        {
            "quantizer": q,
            "granularity": g,
            "int8": _error(reference.quantized_matmul(x, w, g, q), exact),
            "decomposed": _error(reference.llm_int8_matmul(x, w, threshold, q, g), exact),
        }
        for q in QUANTIZERS
        for g in GRANULARITIES
    ]
    outliers = reference.outlier_columns(x, threshold)
    none = np.zeros_like(outliers)
    return {
        "settings": {"outlier": outlier, "threshold": threshold, "granularity": granularity, "quantizer": quantizer},
        "x": x.tolist(),
        "outliers": np.flatnonzero(outliers).tolist(),
        "int8": _seen(x, none, granularity, quantizer),
        "decomposed": _seen(x, outliers, granularity, quantizer),
        "methods": methods,
    }


def _seen(x, outliers, granularity, quantizer):
    """X as the product receives it: its codes, and the error of their values; outlier columns keep their values."""
    axis = AXES[granularity][0]
    regular = np.where(outliers, np.float32(0), x)
    if quantizer == "absmax":
        codes, scale = reference.absmax_quantize(regular, axis)
        back = reference.absmax_dequantize(codes, scale)
    else:
        codes, scale, zero_point = reference.zeropoint_quantize(regular, axis)
        back = reference.zeropoint_dequantize(codes, scale, zero_point)
    ordinary = np.delete(codes, OUTLIERS, axis=1)
    return {
        "codes": codes.tolist(),
        "error": np.abs(np.where(outliers, np.float32(0), back - x)).tolist(),
        "distinct": len(np.unique(ordinary)),
    }


def _error(y, exact):
    """Relative error: the norm of the difference over the norm of the exact product."""
    return float(np.linalg.norm(y - exact) / np.linalg.norm(exact))


def run(code):
    """Runs an exercise and returns what it printed, what its last expression gave, and whether its checker passed."""
    printed = io.StringIO()
    passed = None
    with contextlib.redirect_stdout(printed):
        try:
            tree = ast.parse(code, "exercise")
            last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
            from tutorials import checks

            names = {"np": np, "reference": reference, "checks": checks, "__name__": "exercise"}
            exec(compile(tree, "exercise", "exec"), names)
            value = eval(compile(ast.Expression(last.value), "exercise", "eval"), names) if last else None
            if value is not None:
                print(value)
            passed = getattr(value, "passed", None)
        except BaseException as error:  # a reader's code may raise anything, SystemExit too
            print("".join(traceback.format_exception_only(error)).strip())
            passed = False
    return {"text": printed.getvalue().strip(), "passed": passed}
