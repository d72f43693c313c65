"""Others' code on the same inputs: a mistake that `reference` and `fast` share would show here.

bitsandbytes for absmax and for outlier columns, PyTorch's and ONNX's affine quantization for zeropoint, torch._int_mm for the integer
product, float64 for outputs. Where another definition differs from ours, the test says in what, and leaves out nothing else.
"""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests import strategies
from tests.comparison import CPU, DTYPES, GRANULARITIES, QUANTIZERS, REFERENCE, SIDES, U32, assert_equal, assert_same
from tests.strategies import Recipe, recipes

bitsandbytes = pytest.importorskip("bitsandbytes")
int8_vectorwise_quant = bitsandbytes.functional.int8_vectorwise_quant

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),  # bitsandbytes' import
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning"),
]
generated = pytest.mark.parametrize("side", [REFERENCE, CPU], ids=repr)
sides = pytest.mark.parametrize("side", SIDES, ids=repr)

#: bitsandbytes scales back by this; 1 / 127**2 is meant, and some digits are wrong.
BITSANDBYTES_CONSTANT = 6.200124e-05

matrices = recipes(dtype=torch.float16, empty=False).filter(lambda recipe: len(recipe.shape) == 2)


# bitsandbytes: absmax. It narrows all inputs to float16 first, so float16 is what there is to compare.


@generated
@given(recipe=matrices)
def test_absmax_codes_and_scales_are_those_of_bitsandbytes_bit_for_bit(side, recipe):
    x = recipe.tensor()
    codes, absmax, _ = int8_vectorwise_quant(x.contiguous())
    ours = side.absmax_quantize(x, -1)
    assert_same(ours.codes, codes)
    assert_same(ours.scale, absmax[:, None] / 127)


@sides
def test_absmax_codes_are_those_of_bitsandbytes_for_every_finite_float16(side, record_property):
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    x = patterns[patterns.isfinite()].reshape(-1, 64)  # rows that each set their own scale
    record_property("bit patterns", x.numel())
    codes, absmax, _ = int8_vectorwise_quant(x)
    ours = side.absmax_quantize(x, -1)
    assert_same(ours.codes, codes)
    assert_same(ours.scale, absmax[:, None] / 127)


@sides
def test_absmax_codes_are_those_of_bitsandbytes_where_ties_are_near(side):
    # Every float16 from 1 to 2 as the largest of a row, and beside it what float16 has nearest to the ties of all its codes. With
    # 127 / absmax in the place of (1 / absmax) * 127, 342 of these codes change.
    largest = (torch.arange(1024) / 1024 + 1)[:, None]
    x = torch.cat([largest, largest * (torch.arange(127) + 0.5) / 127], dim=1).half()
    assert_same(side.absmax_quantize(x, -1).codes, int8_vectorwise_quant(x)[0])


@generated
@given(recipe=matrices, threshold=st.sampled_from((0.5, 6.0, 20.0)))
def test_outlier_columns_are_those_of_bitsandbytes(side, recipe, threshold):
    x = recipe.tensor()
    columns = int8_vectorwise_quant(x.contiguous(), threshold=threshold)[2]
    found = side.outlier_columns(x, threshold)
    # It gives no list where it finds none.
    assert found.nonzero().flatten().tolist() == ([] if columns is None else columns.tolist())


@generated
@given(seed=st.integers(0, 2**32 - 1), m=st.integers(1, 9), n=st.integers(1, 20), k=st.sampled_from((4, 32, 100)))
def test_a_layer_without_outliers_computes_what_bitsandbytes_computes(side, seed, m, n, k):
    x, w = Recipe((m, k), torch.float16, seed).tensor(), Recipe((n, k), torch.float16, seed + 1).tensor()
    theirs = bitsandbytes.nn.Linear8bitLt(k, n, bias=False, has_fp16_weights=False, threshold=0.0)
    theirs.load_state_dict({"weight": w})
    theirs = theirs.to("cpu").eval()  # in training it leaves the activations in floating point
    expected = theirs(x).detach().double()
    assert_same(side.absmax_quantize(w, -1).codes, theirs.state.CB)
    ours = side.layer(w, None, None)(x).double()
    # Its constant is off by a factor, each side rounds a few times in float32, and once to float16.
    factor = abs(BITSANDBYTES_CONSTANT * 127**2 - 1) + 8 * U32
    bound = factor * ours.abs() + 2 * (2.0**-11 * (1 + factor) * ours.abs() + 2.0**-25)
    assert bool(((ours - expected).abs() <= bound).all())


# Affine quantization: a scale of range / 255 and a zero point. PyTorch and ONNX divide by the rounded scale, we multiply by the rounded
# reciprocal of the range; PyTorch rounds x / scale + zero point, ONNX and we round first. On paper all are the same but for ties; so they
# may differ only where x / scale is within roundings of a tie. How near: the quotient, at most 255, is off by 6 U from ours and 4 U from
# theirs (docs/bounds.md), and adding a zero point of up to 128 rounds once more.
NEAR_A_TIE = (255 * 10 + 383) * U32


def near_a_tie(steps: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.abs(np.abs(steps) % 1 - 0.5) <= NEAR_A_TIE


def onnx_dynamic_quantize_linear(x: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.int32]]:
    """The formulae of ONNX's operator DynamicQuantizeLinear, a row at a time, in float32; its uint8 moved by -128."""
    highest, lowest = np.maximum(x.max(-1, keepdims=True), 0), np.minimum(x.min(-1, keepdims=True), 0)
    scale = (highest - lowest) / np.float32(255)
    zero_point = np.rint(np.clip(-lowest / scale, 0, 255))
    codes = np.clip(np.rint(x / scale) + zero_point, 0, 255)
    return codes.astype(np.int32) - 128, scale, zero_point.astype(np.int32) - 128


#: Not below 2**-100, where a slice counts as zero here and not there.
usable = recipes(empty=False).filter(lambda recipe: len(recipe.shape) == 2 and recipe.exponent > -90)


def assert_onnx(ours: Any, x: NDArray[np.float32]) -> None:
    codes, scale, zero_point = onnx_dynamic_quantize_linear(x)
    assert_same(ours.scale, scale)
    exact_scale = scale.astype(np.float64)
    at_zero = near_a_tie(np.minimum(x.min(-1, keepdims=True), 0) / exact_scale)
    np.testing.assert_array_equal(ours.zero_point.numpy()[~at_zero], zero_point[~at_zero])
    tie = at_zero | near_a_tie(x / exact_scale)
    np.testing.assert_array_equal(ours.codes.numpy()[~tie], codes[~tie])
    assert np.all(np.abs(ours.codes.numpy().astype(int) - codes) <= 1 + at_zero)


@generated
@given(recipe=usable)
def test_zeropoint_is_onnx_dynamic_quantization_but_near_ties(side, recipe):
    x = recipe.tensor()
    wide = x.float().numpy()
    assume(bool(np.all(np.abs(wide).max(-1) > 0)))
    assert_onnx(side.zeropoint_quantize(x, -1), wide)


@sides
def test_zeropoint_is_onnx_dynamic_quantization_for_a_thousand_zero_points(side):
    x = Recipe((1000, 9), torch.float32, seed=7).tensor()
    assert_onnx(side.zeropoint_quantize(x, -1), x.numpy())


@generated
@given(recipe=usable)
def test_zeropoint_is_pytorchs_affine_quantization_but_near_ties(side, recipe):
    x = recipe.tensor().float()
    ours = side.zeropoint_quantize(x)
    assume(bool(x.any()))
    observer = torch.ao.quantization.MinMaxObserver(
        dtype=torch.qint8, qscheme=torch.per_tensor_affine, quant_min=-128, quant_max=127, eps=0
    )
    observer(x)
    scale, zero_point = observer.calculate_qparams()
    assert_same(ours.scale.flatten(), scale)
    at_zero = near_a_tie(np.array(min(x.min().item(), 0.0) / scale.double().item()))
    assert at_zero or ours.zero_point.item() == zero_point.item()
    # With our own zero point, so that every entry can be compared.
    back = torch.fake_quantize_per_tensor_affine(x, scale.item(), ours.zero_point.item(), -128, 127)
    ties = torch.from_numpy(near_a_tie(x.double().numpy() / scale.double().item()))
    expected = side.zeropoint_dequantize(*ours)
    assert_equal(back[~ties], expected[~ties])
    assert bool(((back - expected).abs() <= scale * 1.001).all())


# The integer product.


@sides
@given(data=st.data())
def test_the_integer_product_is_that_of_torch(side, data):
    m, n, k = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20)), data.draw(st.integers(2, 80))
    a, b = data.draw(strategies.codes((m, k))), data.draw(strategies.codes((n, k)))
    assert_same(side.int8_matmul(a, b), torch._int_mm(a.contiguous(), b.contiguous().T))


@sides
@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 5), (4, 5), (17, 33)])
def test_a_single_column_multiplies_exactly(side, m, n):
    # torch._int_mm on a CPU does not: it reads uninitialized memory for K = 1 (Torch 2.13.0).
    a, b = (torch.arange(-128, 128)[:: 256 // size][:size].to(torch.int8)[:, None] for size in (m, n))
    assert_same(side.int8_matmul(a, b), a.int() * b.int().T)


# float64 as the judge of what the codes say: the accumulator exactly, times both scales. Ours rounds it to float32 and each product.


@sides
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_quantized_product_is_what_its_codes_say_in_float64(side, dtype, quantizer, granularity):
    x, w = Recipe((18, 70), dtype, 1, outliers="some columns").tensor(), Recipe((33, 70), dtype, 2, pattern="positive").tensor()
    axes = {"tensor": (None, None), "row": (-1, None), "vector": (-1, -1)}[granularity]
    shifted, scales = [], []
    for t, axis in zip((x, w), axes, strict=True):
        found = getattr(side, f"{quantizer}_quantize")(t, axis)
        shifted.append(found.codes.double() - (found.zero_point if quantizer == "zeropoint" else 0))
        scales.append(found.scale.double())
    exact = (shifted[0] @ shifted[1].T) * scales[0] * scales[1].T
    y = side.quantized_matmul(x.float(), w.float(), granularity, quantizer)
    assert bool(((y.double() - exact).abs() <= ((1 + U32) ** 3 - 1) * exact.abs()).all())
