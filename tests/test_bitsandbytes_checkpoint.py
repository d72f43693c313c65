"""Checkpoints of bitsandbytes' int8 layer, against bitsandbytes itself on the CPU: read and written, the codes and row maxima bit for bit.

Outputs differ in what bitsandbytes does otherwise, and by no more; the bounds say by how much.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fast
from fast import Int8Linear
from fast.bitsandbytes_checkpoint import to_bitsandbytes
from tests.comparison import U32, assert_same, assert_within
from tests.strategies import Recipe

bitsandbytes = pytest.importorskip("bitsandbytes")

U16 = 2.0**-11  # unit roundoff of float16
ETA16 = 2.0**-25  # half its smallest subnormal number
#: bitsandbytes scales back with this in the place of 1 / 127**2 (csrc/kernels.cu and the CPU path, version 0.50.2).
THEIR_CONSTANT = 6.200124e-05
MISPRINT = abs(THEIR_CONSTANT * 127**2 - 1)

N = 7


pytestmark = pytest.mark.usefixtures("on_the_cpu")


def float16_weight(k: int, seed: int = 1) -> Tensor:
    return Recipe((N, k), torch.float16, seed, exponent=-3).tensor()


def float16_bias() -> Tensor:
    return Recipe((N,), torch.float16, seed=2).tensor()


def theirs(weight: Tensor, bias: Tensor | None, threshold: float = 6.0) -> bitsandbytes.nn.Linear8bitLt:
    """Their layer; moving it to a device quantizes it."""
    n, k = weight.shape
    layer = bitsandbytes.nn.Linear8bitLt(k, n, bias is not None, has_fp16_weights=False, threshold=threshold)
    layer.weight = bitsandbytes.nn.Int8Params(weight.clone(), requires_grad=False, has_fp16_weights=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.clone(), requires_grad=False)
    return layer.to("cpu").eval()


def output(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return layer(x)


@pytest.mark.parametrize("bias", [None, float16_bias()], ids=["no bias", "bias"])
@given(k=st.integers(1, 100), seed=st.integers(0, 2**32 - 1))
def test_both_sides_make_the_same_checkpoint_of_a_weight(bias, k, seed):
    weight = float16_weight(k, seed)
    ours = to_bitsandbytes(Int8Linear.from_float(weight, bias).state_dict())
    expected = theirs(weight, bias).state_dict()
    assert ours.keys() == expected.keys()
    for name in expected:
        assert_same(ours[name], expected[name])


def test_a_checkpoint_of_bitsandbytes_loads_bit_for_bit():
    weight, bias = float16_weight(40), float16_bias()
    layer = Int8Linear(40, N, dtype=torch.float16)
    assert not any(layer.load_state_dict(theirs(weight, bias).state_dict()))  # no key is missing, none is left
    ours = Int8Linear.from_float(weight, bias).state_dict()
    for name, value in layer.state_dict().items():
        assert_same(value, ours[name])


def test_bitsandbytes_loads_a_checkpoint_of_ours_and_computes_what_it_would_from_its_own():
    weight, bias = float16_weight(40), float16_bias()
    layer = theirs(torch.ones_like(weight), torch.ones_like(bias))
    assert not any(layer.load_state_dict(to_bitsandbytes(Int8Linear.from_float(weight, bias).state_dict())))
    x = Recipe((5, 40), torch.float16, seed=3, outliers="some columns").tensor()
    assert_same(output(layer, x), output(theirs(weight, bias), x))


def test_a_model_is_translated_layer_by_layer_and_back():
    model = nn.Sequential(nn.Linear(8, 6), nn.LayerNorm(6), nn.Linear(6, 4, bias=False))
    expected = fast.quantize_model(model).state_dict()
    translated = to_bitsandbytes(expected)
    assert {name for name in translated if "SCB" in name} == {"0.SCB", "2.SCB"}
    model.load_state_dict({name: torch.zeros_like(value) for name, value in expected.items()})
    model.load_state_dict(translated)
    for name, value in model.state_dict().items():
        assert_same(value, expected[name])


# K = 1 is left out: on a CPU with AVX-512 the product of bitsandbytes 0.50.2 is wrong there, by orders of magnitude.
@given(k=st.integers(2, 200), rows=st.integers(1, 9), seed=st.integers(0, 2**32 - 1), with_bias=st.booleans())
def test_without_outliers_the_outputs_agree_up_to_float32_and_one_rounding_to_float16(k, rows, seed, with_bias):
    weight, bias = float16_weight(k, seed), float16_bias() if with_bias else None
    x = Recipe((rows, k), torch.float16, seed).tensor()
    # In float32, from the same codes and maxima: they have the misprint and 5 roundings (of the accumulator, three products and the
    # constant), we have 5 (of the accumulator, two scales and two products), and each one more with the bias. 12 u is more than both.
    ours = output(Int8Linear.from_float(weight, None if bias is None else bias.float()), x.float())
    scaled = ours.double() if bias is None else ours.double() - bias.double()
    bound = (MISPRINT + 12 * U32) * scaled.abs() + 2 * U32 * ours.double().abs() + 2 * U32 * (0 if bias is None else bias.double().abs())
    assert_within(output(theirs(weight, bias), x), ours, bound)


@given(k=st.integers(2, 200), rows=st.integers(1, 9), seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(("one", "some columns")))
def test_with_outliers_the_outputs_agree_within_what_the_other_row_scale_allows(k, rows, seed, kind):
    weight, bias = float16_weight(k, seed), float16_bias()
    x = Recipe((rows, k), torch.float16, seed, outliers=kind).tensor()
    layer = Int8Linear.from_float(weight, bias.float())
    ours = output(layer, x.float())
    bound = outlier_difference(x.double(), layer, ours.double(), bias.double())
    assert_within(output(theirs(weight, bias), x), ours, bound)


def outlier_difference(x: Tensor, layer: Int8Linear, ours: Tensor, bias: Tensor) -> Tensor:
    """How far their output, before its last rounding, may lie from ours: (M, N) float64.

    Both quantize X without the outlier columns O, and an entry of it then is off by at most half a step, so each regular part is within
    sum over k not in O of |w| * step / 2 of the product of the entries themselves. The steps differ: ours is the largest entry outside
    of O, over 127; theirs the largest entry of the row below the threshold, over 127, also in a column of O.
    Their outlier part takes the weights in float16 (two roundings: of the scale's product in float32, and of its cast), multiplies
    and adds |O| terms in float16 at worst: (|O| + 3) u16 of the sum of the magnitudes, plus what subnormal numbers lose. The regular part
    with the bias is rounded to float16 before the outlier part is added.
    """
    outliers = (x.abs() >= 6).any(0)
    w = (layer.weight * layer.weight_absmax / 127).double().abs()
    step_ours = x[:, ~outliers].abs().amax(1, keepdim=True) / 127 if bool((~outliers).any()) else x.new_zeros(len(x), 1)
    step_theirs = x.abs().masked_fill(x.abs() >= 6, 0).amax(1, keepdim=True) / 127
    regular = w[:, ~outliers].sum(1) * (step_ours + step_theirs) / 2
    n = int(outliers.sum())
    terms = x[:, outliers].abs() @ w[:, outliers].T
    outlier = (n + 3) * U16 * terms + ETA16 * (n + x[:, outliers].abs().sum(1, keepdim=True))
    sizes = ours.abs() + terms + bias.abs() + regular  # more than any intermediate result
    return 1.001 * (regular + outlier + U16 * sizes) + (MISPRINT + 16 * U32) * sizes


def test_the_bound_with_outliers_tells_a_lost_outlier_column():
    weight, bias = float16_weight(60), float16_bias()
    x = Recipe((5, 60), torch.float16, seed=3, outliers="one").tensor()
    layer = Int8Linear.from_float(weight, bias.float())
    ours = output(layer, x.float())
    lost = output(layer, x.float().masked_fill((x.abs() >= 6).any(0), 0))
    bound = outlier_difference(x.double(), layer, ours.double(), bias.double())
    assert bool(((lost - ours).abs() > bound).any())


@pytest.mark.parametrize("layout", [torch.tensor(1, dtype=torch.uint8), "col_turing"], ids=str)
def test_codes_in_another_memory_layout_are_refused(layout):
    state = theirs(float16_weight(40), float16_bias()).state_dict() | {"weight_format": layout}
    with pytest.raises(RuntimeError, match=r"weight_format must be 0, row major, it is (1|col_turing); .* save it again"):
        Int8Linear(40, N).load_state_dict(state)


def test_the_layout_may_be_a_name_as_in_older_files():
    state = theirs(float16_weight(40), float16_bias()).state_dict() | {"weight_format": "row"}
    Int8Linear(40, N).load_state_dict(state)


@pytest.mark.parametrize("absmax", [torch.ones(N + 1), torch.ones(N, 1), torch.ones(N).half()], ids=["length", "shape", "dtype"])
def test_row_maxima_that_do_not_belong_to_the_codes_are_refused(absmax):
    state = theirs(float16_weight(40), float16_bias()).state_dict() | {"SCB": absmax}
    with pytest.raises(RuntimeError, match=rf"SCB must be float32 of shape \({N},\), one per row of weight, got"):
        Int8Linear(40, N).load_state_dict(state)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantizer": "zeropoint"}, r"0\.weight_scale has no counterpart in bitsandbytes"),
        ({"outlier_weight": "float"}, r"0\.float_weight has no counterpart in bitsandbytes"),
        ({"granularity": "row"}, r"0\.weight_absmax must be one per row, \(7, 1\), for bitsandbytes, got \(1, 1\)"),
    ],
    ids=str,
)
def test_a_layer_without_counterpart_in_bitsandbytes_is_not_written(settings, message):
    model = nn.Sequential(Int8Linear.from_float(float16_weight(40), **settings))
    with pytest.raises(ValueError, match=message):
        to_bitsandbytes(model.state_dict())
