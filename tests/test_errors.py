"""Errors are for people: each names the argument, what it was and what is allowed, in the same words on both sides."""

import re

import numpy as np
import pytest
import torch

import fast
import reference
from fast import cpu
from fast.dispatch import implementation

NAN = float("nan")


class Numpy:
    """Arguments as the reference takes them."""

    package = reference

    @staticmethod
    def of(values, dtype="float32"):
        return np.asarray(values, dtype)


class Torch:
    """The same for `fast`."""

    package = fast

    @staticmethod
    def of(values, dtype="float32"):
        return torch.tensor(values, dtype=getattr(torch, dtype))


BOTH = (Numpy, Torch)
X, W = [[1.0, 2.0, 3.0]], [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
CODES = [[1, 2, 3], [4, 5, 6]]

# name -> (a wrong call, its exception, words of its message: the argument, what it was, what is allowed)
WRONG = {
    "a list": (lambda p, of: p.absmax_quantize([1.0]), TypeError, "x must be", "list"),
    "a number": (lambda p, of: p.zeropoint_quantize(1.0), TypeError, "x must be", "float"),
    "float64": (lambda p, of: p.absmax_quantize(of(X, "float64")), TypeError, "x must have dtype float16, bfloat16 or float32", "float64"),
    "integers": (lambda p, of: p.outlier_columns(of(CODES, "int32")), TypeError, "x must have dtype float16, bfloat16 or float32", "int32"),
    "no axis": (lambda p, of: p.absmax_quantize(of(1.0)), ValueError, "x must have at least 1 dimension", r"\(\)"),
    "no axis, zeropoint": (lambda p, of: p.zeropoint_quantize(of(1.0)), ValueError, "x must have at least 1 dimension", r"\(\)"),
    "no axis, outliers": (lambda p, of: p.outlier_columns(of(1.0)), ValueError, "x must have at least 1 dimension", r"\(\)"),
    "axis 0": (lambda p, of: p.absmax_quantize(of(X), 0), ValueError, "axis must be None .* or -1", "got 0"),
    "axis 1": (lambda p, of: p.zeropoint_quantize(of(X), 1), ValueError, "axis must be None .* or -1", "got 1"),
    "axis True": (lambda p, of: p.absmax_quantize(of(X), True), ValueError, "axis must be None .* or -1", "got True"),
    "axis text": (lambda p, of: p.zeropoint_quantize(of(X), "row"), ValueError, "axis must be None .* or -1", "got 'row'"),
    "codes of floats": (lambda p, of: p.absmax_dequantize(of(W), of([[1.0], [1.0]])), TypeError, "codes must be .*int8", "float32"),
    "codes in a list": (lambda p, of: p.absmax_dequantize(CODES, of([[1.0], [1.0]])), TypeError, "codes must be .*int8", "list"),
    "codes without axis": (
        lambda p, of: p.absmax_dequantize(of(1, "int8"), of(1.0)),
        ValueError,
        "codes must have at least 1 dim",
        r"\(\)",
    ),
    "zeropoint codes": (
        lambda p, of: p.zeropoint_dequantize(of(W), of([[1.0]]), of([[0]], "int32")),
        TypeError,
        "codes must be .*int8",
        "float32",
    ),
    "a scale of the wrong dtype": (
        lambda p, of: p.absmax_dequantize(of(CODES, "int8"), of([[1.0]], "float64")),
        TypeError,
        "scale must be .*float32",
        "float64",
    ),
    "a scale that is a number": (lambda p, of: p.absmax_dequantize(of(CODES, "int8"), 1.0), TypeError, "scale must be .*float32", "float"),
    "a scale along columns": (
        lambda p, of: p.absmax_dequantize(of(CODES, "int8"), of([1.0, 1.0, 1.0])),
        ValueError,
        "scale must have the codes' dim",
        r"\(3,\).*\(2, 3\)",
    ),
    "a scale along columns of a square": (
        lambda p, of: p.absmax_dequantize(of([[1, 2], [3, 4]], "int8"), of([1.0, 1.0])),
        ValueError,
        "scale must have the codes' dim",
        r"\(2,\)",
    ),
    "a scale too long": (
        lambda p, of: p.absmax_dequantize(of(CODES, "int8"), of([[1.0]] * 3)),
        ValueError,
        "scale must have the codes' dim",
        r"\(3, 1\)",
    ),
    "a zero point of int8": (
        lambda p, of: p.zeropoint_dequantize(of(CODES, "int8"), of([[1.0]]), of([[1]], "int8")),
        TypeError,
        "zero_point must be .*int32",
        "int8",
    ),
    "a zero point too long": (
        lambda p, of: p.zeropoint_dequantize(of(CODES, "int8"), of([[1.0]]), of([[1]] * 3, "int32")),
        ValueError,
        "zero_point must have",
        r"\(3, 1\)",
    ),
    "a scale of zeropoint": (
        lambda p, of: p.zeropoint_dequantize(of(CODES, "int8"), of([1.0, 1.0]), of([[1]], "int32")),
        ValueError,
        "scale must have",
        r"\(2,\)",
    ),
    "a of floats": (lambda p, of: p.int8_matmul(of(X), of(CODES, "int8")), TypeError, "a must be .*int8", "float32"),
    "b of floats": (lambda p, of: p.int8_matmul(of(CODES, "int8"), of(W)), TypeError, "b must be .*int8", "float32"),
    "b of one dimension": (
        lambda p, of: p.int8_matmul(of(CODES, "int8"), of([1], "int8")),
        ValueError,
        "b must have 2 dimensions",
        r"\(1,\)",
    ),
    "a and b": (
        lambda p, of: p.int8_matmul(of([[1]], "int8"), of(CODES, "int8")),
        ValueError,
        "a and b must have the same last dimension K",
        r"\(1, 1\).*\(2, 3\)",
    ),
    "x and w": (
        lambda p, of: p.quantized_matmul(of([[1.0]]), of(W)),
        ValueError,
        "x and w must have the same last dimension K",
        r"\(1, 1\).*\(2, 3\)",
    ),
    "w transposed": (
        lambda p, of: p.llm_int8_matmul(of(W), of([[1.0], [2.0], [3.0]])),
        ValueError,
        "x and w must have the same last dimension K",
        r"\(2, 3\).*\(3, 1\)",
    ),
    "w of float64": (lambda p, of: p.quantized_matmul(of(X), of(W, "float64")), TypeError, "w must have dtype", "float64"),
    "w of one dimension": (lambda p, of: p.llm_int8_matmul(of(X), of([1.0, 2.0, 3.0])), ValueError, "w must have 2 dimensions", r"\(3,\)"),
    "w of three": (lambda p, of: p.quantized_matmul(of(X), of([W])), ValueError, "w must have 2 dimensions", r"\(1, 2, 3\)"),
    "granularity": (
        lambda p, of: p.quantized_matmul(of(X), of(W), "column"),
        ValueError,
        "granularity must be one of 'tensor', 'row', 'vector'",
        "'column'",
    ),
    "quantizer": (
        lambda p, of: p.quantized_matmul(of(X), of(W), quantizer="minmax"),
        ValueError,
        "quantizer must be one of 'absmax', 'zeropoint'",
        "'minmax'",
    ),
    "granularity, mixed": (
        lambda p, of: p.llm_int8_matmul(of(X), of(W), granularity=None),
        ValueError,
        "granularity must be one of",
        "None",
    ),
    "quantizer, mixed": (
        lambda p, of: p.llm_int8_matmul(of(X), of(W), quantizer="Absmax"),
        ValueError,
        "quantizer must be one of",
        "'Absmax'",
    ),
    "a negative threshold": (lambda p, of: p.outlier_columns(of(X), -1.0), ValueError, "threshold must be 0 or more, or None", "-1.0"),
    "a threshold of NaN": (lambda p, of: p.outlier_columns(of(X), NAN), ValueError, "threshold must be 0 or more, or None", "nan"),
    "a threshold of text": (lambda p, of: p.outlier_columns(of(X), "6"), TypeError, "threshold must be a number or None", "str"),
    "a threshold of True": (lambda p, of: p.outlier_columns(of(X), True), TypeError, "threshold must be a number or None", "bool"),
    "a threshold, mixed": (lambda p, of: p.llm_int8_matmul(of(X), of(W), -6), ValueError, "threshold must be 0 or more", "-6"),
    "a layer's weight": (lambda p, of: p.Int8Linear.from_float(of(W, "float64")), TypeError, "weight must have dtype", "float64"),
    "a layer's weight of one dimension": (
        lambda p, of: p.Int8Linear.from_float(of([1.0])),
        ValueError,
        "weight must have 2 dim",
        r"\(1,\)",
    ),
    "a layer's bias": (lambda p, of: p.Int8Linear.from_float(of(W), of([1, 2], "int32")), TypeError, "bias must have dtype", "int32"),
    "a layer's bias of 3": (
        lambda p, of: p.Int8Linear.from_float(of(W), of([1.0] * 3)),
        ValueError,
        r"bias must have shape \(2,\)",
        r"\(3,\)",
    ),
    "a layer's bias of two dimensions": (
        lambda p, of: p.Int8Linear.from_float(of(W), of(X)),
        ValueError,
        "bias must have 1 dim",
        r"\(1, 3\)",
    ),
    "a layer's threshold": (lambda p, of: p.Int8Linear.from_float(of(W), None, -1), ValueError, "threshold must be 0 or more", "-1"),
    "a layer's outlier weight": (
        lambda p, of: p.Int8Linear.from_float(of(W), outlier_weight="int8"),
        ValueError,
        "outlier_weight must be one of 'dequantized', 'float'",
        "'int8'",
    ),
    "a layer's quantizer": (lambda p, of: p.Int8Linear.from_float(of(W), quantizer=""), ValueError, "quantizer must be one of", "''"),
    "a layer's granularity": (
        lambda p, of: p.Int8Linear.from_float(of(W), granularity="Row"),
        ValueError,
        "granularity must be one",
        "'Row'",
    ),
    "a layer's x": (lambda p, of: p.Int8Linear.from_float(of(W))(X), TypeError, "x must be", "list"),
    "a layer's x of float64": (lambda p, of: p.Int8Linear.from_float(of(W))(of(X, "float64")), TypeError, "x must have dtype", "float64"),
    "a layer's x without axis": (lambda p, of: p.Int8Linear.from_float(of(W))(of(1.0)), ValueError, "x must have at least 1 dim", r"\(\)"),
    "a layer's K": (
        lambda p, of: p.Int8Linear.from_float(of(W))(of([[1.0]])),
        ValueError,
        "x and weight must have the same last dimension K",
        r"\(1, 1\).*\(2, 3\)",
    ),
}


def failure(side, name):
    call, *_ = WRONG[name]
    with pytest.raises((TypeError, ValueError)) as caught:
        call(side.package, side.of)
    return caught.value


@pytest.mark.parametrize("side", BOTH, ids=lambda side: side.package.__name__)
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_call_is_told_the_argument_what_it_was_and_what_is_allowed(name, side):
    _, exception, allowed, was = WRONG[name]
    error = failure(side, name)
    assert type(error) is exception
    assert re.search(allowed, str(error))
    assert re.search(was, str(error))


def plain(error):
    """The message without what Torch and NumPy name differently, and without the hint how to convert."""
    return re.sub(r"torch\.Tensor|numpy\.ndarray", "array", str(error)).replace("torch.", "").partition("; write")[0]


@pytest.mark.parametrize("name", WRONG)
def test_both_sides_say_the_same(name):
    ours, theirs = (failure(side, name) for side in BOTH)
    assert type(ours) is type(theirs)
    assert plain(ours) == plain(theirs)


def test_every_function_refuses_every_unsupported_dtype():
    for dtype in (torch.float64, torch.int8, torch.int64, torch.bool, torch.complex64):
        for function in (fast.absmax_quantize, fast.zeropoint_quantize, fast.outlier_columns):
            with pytest.raises(TypeError, match=rf"x must have dtype float16, bfloat16 or float32, got {re.escape(str(dtype))}"):
                function(torch.ones(2, 2, dtype=dtype))


def test_a_sparse_tensor_is_refused():
    with pytest.raises(TypeError, match=r"x must be a dense tensor, got layout torch\.sparse_coo"):
        fast.absmax_quantize(torch.ones(2, 2).to_sparse())


def test_two_devices_are_refused():
    x, w = torch.ones(1, 3), torch.ones(2, 3, device="meta")
    layer = fast.Int8Linear.from_float(torch.ones(2, 3))
    calls = {
        "a and b": lambda: fast.int8_matmul(x.to(torch.int8), w.to(torch.int8)),
        "x and weight": lambda: layer(torch.ones(1, 3, device="meta")),
        "codes and scale": lambda: fast.absmax_dequantize(x.to(torch.int8), torch.ones(1, 1, device="meta")),
        "weight and bias": lambda: fast.Int8Linear.from_float(torch.ones(2, 3), torch.ones(2, device="meta")),
    }
    for names, call in calls.items():
        with pytest.raises(ValueError, match=f"{names} must be on the same device, got (cpu|meta) and (cpu|meta)"):
            call()


def test_a_conv1d_of_another_package_is_no_linear_layer():
    class Conv1D(torch.nn.Module):
        weight, bias = torch.ones(3, 2), torch.ones(2)

    with pytest.raises(TypeError, match=r"weight must be a tensor, a torch\.nn\.Linear or a transformers Conv1D, got Conv1D"):
        fast.Int8Linear.from_float(Conv1D())


def test_a_module_brings_its_own_bias():
    with pytest.raises(TypeError, match="bias must be None where weight is a module"):
        fast.Int8Linear.from_float(torch.nn.Linear(3, 2), torch.ones(2))
    with pytest.raises(TypeError, match=r"weight must be a tensor, a torch\.nn\.Linear or a transformers Conv1D, got ReLU"):
        fast.Int8Linear.from_float(torch.nn.ReLU())


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match=r"backend must be one of 'auto', 'triton', 'cpu', .*'portable', got 'cuda'"), fast.backend("cuda"):
        pass


def test_an_error_ends_a_backend():
    with fast.backend("torch"):
        with pytest.raises(RuntimeError), fast.backend("triton"):
            raise RuntimeError
        assert implementation(torch.ones(1)) is cpu


@pytest.mark.parametrize("threshold", [np.float16(6.0), np.float32(6.0), np.int64(6), 6])
@pytest.mark.parametrize("side", BOTH, ids=lambda side: side.package.__name__)
def test_a_threshold_may_be_any_real_number(side, threshold):
    assert side.package.outlier_columns(side.of([[6.0, 5.9]]), threshold).tolist() == [True, False]
