"""No kernel reads or writes outside of its tensors: they lie beside memory without rights. On a GPU that is compute-sanitizer's work."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from fast import kernels
from fast.kernels import configurations, decode, product, quantization
from fast.weights import QuantizedWeight, absolute_maximum
from tests.comparison import DEVICE, ROUTES, assert_same
from tests.tools.guarded import guarded, guarded_buffers

pytestmark = pytest.mark.skipif(DEVICE.type == "cuda", reason="memory of the host")

ROOT = Path(__file__).resolve().parents[1]
ENDS = ("start", "end")


@pytest.mark.parametrize("at", ENDS)
def test_a_guarded_tensor_is_a_copy(at):
    x = torch.randn(3, 5)
    assert_same(guarded(x, at), x)
    with guarded_buffers(at):
        assert torch.empty(2, 3).isnan().all()
        assert torch.empty(0, 3).shape == (0, 3)


@pytest.mark.parametrize(("at", "entry"), [("start", -1), ("end", 15)])
def test_the_entry_next_to_a_guarded_tensor_ends_the_process(at, entry):
    code = f"""
import ctypes, torch
from tests.tools.guarded import guarded
x = guarded(torch.zeros(3, 5), {at!r})
beside = ctypes.c_float.from_address(x.data_ptr() + 4 * {entry})
print("there", flush=True)
beside.value
print("survived")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode < 0
    assert done.stdout == "there\n"


def normal(shape, dtype=torch.float16, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).clamp(-5, 5).to(dtype)


#: Of X, of the outlier weight (None: its codes); the quantizer.
CASES = {
    "absmax": (torch.float16, None, "absmax"),
    "float weight": (torch.bfloat16, torch.bfloat16, "absmax"),
    "zeropoint": (torch.float16, None, "zeropoint"),
    "float32": (torch.float32, None, "zeropoint"),
}


@pytest.mark.parametrize("at", ENDS)
@pytest.mark.parametrize("m", ROUTES.values(), ids=ROUTES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("threshold", [None, 6.0])
def test_a_layer_touches_its_tensors_only(at, m, case, threshold, monkeypatch):
    x_dtype, w_dtype, quantizer = CASES[case]
    x, w = normal((m, 70), x_dtype, seed=m), normal((41, 70), torch.float32)
    x[m - 1, [0, 33, 69]] = 20.0
    codes, scale, zero_point = kernels.quantize(w, True, quantizer)
    zeros = None if zero_point is None else guarded(zero_point, at)
    floats = None if w_dtype is None else guarded(w.to(w_dtype), at)
    stored = {"kept_scale": guarded(scale, at)} if quantizer == "zeropoint" else {"absmax": guarded(absolute_maximum(w, True), at)}
    weight = QuantizedWeight(guarded(codes, at), zero_point=zeros, float_weight=floats, **stored)
    monkeypatch.setattr(product, "code_sums", lambda codes: guarded(codes.sum(1, dtype=torch.int32), at))
    with guarded_buffers(at):
        y = kernels.linear(guarded(x, at), weight, guarded(normal((41,), x_dtype), at), threshold, True)
    assert y.isfinite().all()


@pytest.mark.parametrize("at", ENDS)
@pytest.mark.parametrize("quantizer", ["absmax", "zeropoint"])
@pytest.mark.parametrize("per_row", [True, False])
@pytest.mark.parametrize("threshold", [None, 6.0])
@pytest.mark.parametrize("shape", [(7, 33), (21, 70)])
def test_quantizing_touches_its_tensors_only(at, quantizer, per_row, threshold, shape):
    x = guarded(normal(shape), at)
    x[0, shape[1] - 1] = 20.0
    with guarded_buffers(at):
        found = quantization.quantize_regular(x, threshold, per_row=per_row, zeropoint=quantizer == "zeropoint", code_sums=True)
    assert_same(found.code_sum, found.codes.sum(1, dtype=torch.int32))


@pytest.mark.parametrize("at", ENDS)
@pytest.mark.parametrize("capacity", [4, 16])
def test_gathering_touches_its_tensors_only(at, capacity, monkeypatch):
    monkeypatch.setattr(quantization, "gather_configuration", lambda *_: configurations.Gather(rows=8, block_o=4, columns=capacity))
    x, w = guarded(normal((21, 70)), at), guarded(torch.ones(13, 70, dtype=torch.int8), at)
    x[20, [0, 1, 33, 34, 68, 69]] = 20.0
    with guarded_buffers(at):
        found = quantization.quantize_regular(x, 6.0, outlier_weight=w).outliers
    assert found.columns[70] == 6


@pytest.mark.parametrize("at", ENDS)
@pytest.mark.parametrize("per_row", [True, False])
def test_decoding_with_one_scale_touches_its_tensors_only(at, per_row):
    codes, scale, _ = kernels.quantize(normal((41, 70)), per_row, "absmax")
    weight = QuantizedWeight(guarded(codes, at), None, guarded(scale, at))
    with guarded_buffers(at):
        y = decode.decode_linear(guarded(normal((3, 70)), at), weight, None, 6.0, per_row)
    assert y.isfinite().all()


@pytest.mark.parametrize("at", ENDS)
@pytest.mark.parametrize("shape", [(5, 7, 33), (33, 65, 32)])
def test_int8_products_touch_their_tensors_only(at, shape):
    m, n, k = shape
    a, b = guarded(torch.ones(m, k, dtype=torch.int8), at), guarded(torch.ones(n, k, dtype=torch.int8), at)
    with guarded_buffers(at):
        assert (kernels.int8_matmul(a, b) == k).all()


@pytest.mark.parametrize("at", ENDS)
def test_looking_for_outliers_touches_its_tensors_only(at):
    x = guarded(normal((37, 33)), at)
    with guarded_buffers(at):
        assert not kernels.outlier_columns(x, 6.0).any()
