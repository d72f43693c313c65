"""What holds of any input, of the reference and of both backends of the fast path: the laws of docs/contract.md.

That |Y - X W.T| stays below its bound is tested with reference/bounds.py.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tests import strategies as some
from tests.comparison import (
    ETA32,
    QUANTIZERS,
    SIDES,
    U32,
    assert_equal,
    assert_same,
    assert_within,
    outlier_bound,
    output_bound,
)

pytestmark = pytest.mark.parametrize("side", SIDES, ids=str)

STEPS = {"absmax": 127, "zeropoint": 255}


def quantize(side, quantizer, x, axis=-1):
    return getattr(side, f"{quantizer}_quantize")(x, axis)


def dequantize(side, quantizer, quantized):
    return getattr(side, f"{quantizer}_dequantize")(*quantized)


def slices(x, axis):
    """(slices, entries)."""
    return x.reshape(1, -1) if axis is None else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def round_trip_bound(quantizer, x, axis):
    """The most by which a round trip moves an entry: half a step, and what float32's own roundings add. Shape of the scales, float64.

    With u the unit roundoff, e the exact absmax or range, n = 127 or 255 steps, t = x n / e the exact code and s = e / n the exact step:
    the inverse rounds twice, x * inverse once more, so fl(x * inverse) = t (1 + 3u) and the code is within 1/2 + 3 n u of t. A zeropoint
    range is itself rounded, and the code is clipped where a rounded sum of two codes passes the end; the zero point is within 1/2 + 4 n u +
    128 u of its exact value, and so is then the clipped code of t. Dequantizing rounds the scale and the product: 2 n u (zeropoint 3 n u).
    In all 1/2 + n (8 u) + 128 u of s, and a factor 1 + u here and there: 1/2 + 10 n u. The reciprocal of e > 2**126 is subnormal and off by
    up to ETA32 absolutely, e * ETA32 relatively, which moves a code by n times that, and a zero point likewise. Half a subnormal step for
    each product that may be one.
    """
    x = slices(x, axis).double()
    if quantizer == "absmax":
        extent = x.abs().amax(-1, keepdim=True)
    else:
        extent = x.amax(-1, keepdim=True).clamp(min=0) - x.amin(-1, keepdim=True).clamp(max=0)
    n = STEPS[quantizer]
    bound = extent / n * (0.5 + 10 * n * U32 + 2 * n * extent * ETA32) + ETA32
    return torch.where(extent < 2.0**-100, extent, bound)  # a zero slice becomes 0


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@given(given=some.recipes(empty=False), axis=some.axes)
def test_a_round_trip_moves_an_entry_by_at_most_half_a_step(side, quantizer, given, axis):
    x = given.tensor()
    quantized = quantize(side, quantizer, x, axis)
    back = dequantize(side, quantizer, quantized)
    error = slices((back.double() - x.double()).abs(), axis)
    finite = quantized.scale.reshape(-1, 1).isfinite()
    assert bool((~finite | (error <= round_trip_bound(quantizer, x, axis))).all())


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@given(given=some.recipes(finite=False), axis=some.axes)
def test_quantizing_what_was_dequantized_gives_the_codes_again(side, quantizer, given, axis):
    x = given.tensor()
    quantized = quantize(side, quantizer, x, axis)
    again = quantize(side, quantizer, dequantize(side, quantizer, quantized), axis)
    codes, scale = slices(quantized.codes, axis), quantized.scale.reshape(-1, 1)
    # The largest magnitude comes back within two roundings: at the very ends of the range it may have left it.
    inside = ~(scale > 0) | ((scale > 2.0**-99 / 127) & (scale < 2.0**127 / 255))
    if quantizer == "zeropoint" and x.numel():
        # Where both ends lie on a tie, the codes of both may be rounded inwards. Then the slice comes back narrower, and its steps too.
        inside &= ~(scale > 0) | ((codes.amax(-1, keepdim=True) == 127) & (codes.amin(-1, keepdim=True) == -128))
    assert bool((~inside | (slices(again.codes, axis) == codes)).all())


@given(given=some.recipes(), axis=some.axes)
def test_negation_negates_absmax_codes(side, given, axis):
    x = given.tensor()
    (codes, scale), negated = quantize(side, "absmax", x, axis), quantize(side, "absmax", -x, axis)
    assert_same(negated.codes, -codes)
    assert_same(negated.scale, scale)


@given(given=some.factors(), threshold=some.thresholds, granularity=some.granularities)
def test_negation_negates_an_absmax_product(side, given, threshold, granularity):
    x, w, _ = given.tensors()
    y = side.llm_int8_matmul(x, w, threshold, "absmax", granularity)
    assert_equal(side.llm_int8_matmul(-x, w, threshold, "absmax", granularity), -y)
    assert_equal(side.llm_int8_matmul(x, -w, threshold, "absmax", granularity), -y)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@given(given=some.recipes((7, 33), finite=False), seed=st.integers(0, 99), axis=some.axes)
def test_permuting_rows_permutes_their_codes(side, quantizer, given, seed, axis):
    x, order = given.tensor(), permutation(7, seed)
    for value, permuted in zip(quantize(side, quantizer, x, axis), quantize(side, quantizer, x[order], axis), strict=True):
        assert_same(permuted, value if axis is None and value.numel() == 1 else value[order])


@given(given=some.recipes((7, 33), finite=False), seed=st.integers(0, 99), threshold=some.thresholds)
def test_permuting_rows_moves_no_outlier_and_permuting_columns_permutes_them(side, given, seed, threshold):
    x, outliers = given.tensor(), side.outlier_columns(given.tensor(), threshold)
    assert_same(side.outlier_columns(x[permutation(7, seed)], threshold), outliers)
    assert_same(side.outlier_columns(x[:, permutation(33, seed)], threshold), outliers[permutation(33, seed)])


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@given(given=some.factors(finite=False, empty=False), seed=st.integers(0, 99), granularity=some.granularities)
def test_permuting_rows_and_columns_permutes_the_regular_part(side, quantizer, given, seed, granularity):
    x, w, _ = given.tensors()
    rows, columns, ks = permutation(x.shape[-2], seed), permutation(len(w), seed), permutation(x.shape[-1], seed)
    y = side.quantized_matmul(x, w, granularity, quantizer)
    permuted = side.quantized_matmul(x[..., rows, :][..., ks], w[columns][:, ks], granularity, quantizer)
    assert_same(permuted, y[..., rows, :][..., columns])


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@given(given=some.factors(empty=False, dtype=torch.float32), seed=st.integers(0, 99), threshold=some.thresholds)
def test_permuting_rows_permutes_a_mixed_precision_product_but_for_the_order_of_its_sums(side, quantizer, given, seed, threshold):
    x, w, _ = given.tensors()
    rows = permutation(x.shape[-2], seed)
    y = side.llm_int8_matmul(x, w, threshold, quantizer)[..., rows, :]
    flat = x[..., rows, :].reshape(-1, x.shape[-1])
    bound = output_bound(flat, w, side.outlier_columns(x, threshold), y.reshape(len(flat), -1))
    assert_within(side.llm_int8_matmul(x[..., rows, :], w, threshold, quantizer), y, bound.reshape(y.shape))


def permutation(n, seed):
    return torch.from_numpy(np.random.default_rng(seed).permutation(n))


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@given(given=some.recipes(dtype=torch.float32, exponent=0), power=st.integers(-90, 120), axis=some.axes)
def test_scaling_by_a_power_of_two_scales_the_scale_and_no_code(side, quantizer, given, power, axis):
    x = given.tensor()
    quantized, scaled = quantize(side, quantizer, x, axis), quantize(side, quantizer, x * 2.0**power, axis)
    extent = quantized.scale * STEPS[quantizer]
    # Beyond these a slice becomes a zero slice, or its reciprocal subnormal, or its range overflows.
    assume(bool(((extent == 0) | ((extent * 2.0**power > 2.0**-99) & (extent * 2.0**power < 2.0**125))).all()))
    assert_same(scaled.codes, quantized.codes)
    assert_same(scaled.scale, quantized.scale * 2.0**power)
    if quantizer == "zeropoint":
        assert_same(scaled.zero_point, quantized.zero_point)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@given(
    given=some.factors(dtype=torch.float32, exponent=0, pattern="normal"),
    power=st.integers(-20, 20),
    threshold=st.sampled_from((0.0, 3.0, 6.0, None)),
    granularity=some.granularities,
)
def test_scaling_x_and_the_threshold_by_a_power_of_two_scales_the_result_exactly(side, quantizer, given, power, threshold, granularity):
    x, w, _ = given.tensors()
    assume(bool(((w == 0) | ((w.abs() > 2.0**-60) & (w.abs() < 2.0**60))).all()))  # so that nothing underflows or overflows
    y = side.llm_int8_matmul(x, w, threshold, quantizer, granularity)
    moved = None if threshold is None else threshold * 2.0**power
    assert_same(side.llm_int8_matmul(x * 2.0**power, w, moved, quantizer, granularity), y * 2.0**power)


@pytest.mark.parametrize("threshold", [None, float("inf"), 1e39])
@pytest.mark.parametrize("quantizer", QUANTIZERS)
@given(given=some.factors(finite=False), granularity=some.granularities)
def test_without_a_threshold_the_product_is_the_vector_wise_one(side, quantizer, threshold, given, granularity):
    x, w, _ = given.tensors()
    assert_equal(side.llm_int8_matmul(x, w, threshold, quantizer, granularity), side.quantized_matmul(x, w, granularity, quantizer))


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@given(given=some.factors(empty=False), granularity=some.granularities)
def test_threshold_0_is_the_16_bit_product(side, quantizer, given, granularity):
    x, w, _ = given.tensors()
    x = x.reshape(-1, x.shape[-1])
    exact = x.double() @ w.double().T
    # Half of what two float32 sums may differ by, and the rounding of the exact result to float32, in which it is compared.
    bound = outlier_bound(x, w, torch.ones(x.shape[1], dtype=torch.bool)) + U32 * exact.abs() + ETA32
    assume(bool((exact.abs() < 2.0**127).all()))
    assert_within(side.llm_int8_matmul(x, w, 0, quantizer, granularity), exact.float(), bound)


@given(given=some.recipes(finite=False), low=some.thresholds, high=some.thresholds)
def test_raising_the_threshold_never_adds_an_outlier_column(side, given, low, high):
    x = given.tensor()
    low, high = sorted((low, high), key=lambda threshold: float("inf") if threshold is None else threshold)
    assert bool((side.outlier_columns(x, high) <= side.outlier_columns(x, low)).all())


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@given(given=some.factors(finite=False, empty=False), zeros=st.integers(1, 40))
def test_columns_of_zeros_change_nothing(side, quantizer, given, zeros):
    x, w, _ = given.tensors()
    padded = (torch.nn.functional.pad(t, (0, zeros)) for t in (x, w))
    assert_same(side.quantized_matmul(*padded, "vector", quantizer), side.quantized_matmul(x, w, "vector", quantizer))


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@given(given=some.factors(finite=False, empty=False))
def test_a_row_of_the_regular_part_depends_on_its_own_row_of_x_alone(side, quantizer, given):
    x, w, _ = given.tensors()
    x = x.reshape(-1, x.shape[-1])
    y = side.quantized_matmul(x, w, "vector", quantizer)
    assert_same(side.quantized_matmul(x[-1:], w, "vector", quantizer), y[-1:])
    assert_same(side.quantized_matmul(x, w[-1:], "vector", quantizer), y[:, -1:])


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@given(given=some.recipes((2, 3, 4, 33), finite=False), threshold=some.thresholds)
def test_leading_dimensions_are_rows(side, quantizer, given, threshold):
    x, w = given.tensor(), torch.linspace(-1, 1, 5 * 33).reshape(5, 33)
    flat = side.llm_int8_matmul(x.reshape(24, 33), w, threshold, quantizer)
    assert_same(side.llm_int8_matmul(x, w, threshold, quantizer), flat.reshape(2, 3, 4, 5))


@given(given=some.recipes(finite=False), axis=some.axes)
def test_a_quantized_tensor_is_never_written_to(side, given, axis):
    x = given.tensor()
    before = x.clone()
    side.absmax_quantize(x, axis)
    side.zeropoint_quantize(x, axis)
    side.outlier_columns(x, 6.0)
    assert_same(x, before)
