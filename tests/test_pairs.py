"""Every paired function, the reference against both backends of the fast path, as strictly as the contract's table says.

The same computation, said twice: on the reference, rounded once to the output dtype where `fast` does so, and on the side under test.
"""

import pytest
from hypothesis import given, note
from hypothesis import strategies as st

from tests import strategies as some
from tests.comparison import ENGINES, OUTLIER_WEIGHTS, QUANTIZERS, REFERENCE, assert_product, assert_same

pytestmark = pytest.mark.parametrize("side", ENGINES, ids=str)


def assert_all_same(actual, expected):
    assert actual._fields == expected._fields
    for a, e in zip(actual, expected, strict=True):
        assert_same(a, e)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@given(given=some.recipes(finite=False), axis=some.axes)
def test_codes_scales_and_zero_points_are_the_same(side, quantizer, given, axis):
    x = given.tensor()
    actual = getattr(side, f"{quantizer}_quantize")(x, axis)
    assert_all_same(actual, getattr(REFERENCE, f"{quantizer}_quantize")(x, axis))
    assert actual.codes.is_contiguous()


@given(given=some.recipes(finite=False), axis=some.axes, data=st.data())
def test_dequantized_codes_are_the_same(side, given, axis, data):
    codes = data.draw(some.codes(given.shape))
    quantized = REFERENCE.zeropoint_quantize(given.tensor(), axis)
    for name, parameters in ("absmax_dequantize", quantized[1:2]), ("zeropoint_dequantize", quantized[1:]):
        assert_same(getattr(side, name)(codes, *parameters), getattr(REFERENCE, name)(codes, *parameters))


@given(m=some.sizes("M"), n=some.sizes("N"), k=some.sizes("K"), leading=st.sampled_from([(), (2,), (2, 3), (0,)]), data=st.data())
def test_int32_accumulators_are_the_same(side, m, n, k, leading, data):
    a, b = data.draw(some.codes((*leading, m, k))), data.draw(some.codes((n, k)))
    assert_same(side.int8_matmul(a, b), REFERENCE.int8_matmul(a, b))


@given(given=some.recipes(finite=False), threshold=some.thresholds)
def test_outlier_columns_are_the_same(side, given, threshold):
    x = given.tensor()
    assert_same(side.outlier_columns(x, threshold), REFERENCE.outlier_columns(x, threshold))


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@given(given=some.factors(finite=False), granularity=some.granularities)
def test_the_regular_part_is_the_same_rounded_once(side, quantizer, given, granularity):
    x, w, _ = given.tensors()
    assert_same(side.quantized_matmul(x, w, granularity, quantizer), cast(REFERENCE.quantized_matmul(x, w, granularity, quantizer), x))


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@given(given=some.factors(finite=False), threshold=some.thresholds, granularity=some.granularities)
def test_mixed_precision_products_are_within_the_bound(side, quantizer, given, threshold, granularity):
    x, w, _ = given.tensors()
    arguments = x, w, threshold, quantizer, granularity
    assert_product(side.llm_int8_matmul(*arguments), REFERENCE.llm_int8_matmul(*arguments), x, w, REFERENCE.outlier_columns(x, threshold))


@pytest.mark.parametrize("outlier_weight", OUTLIER_WEIGHTS)
@pytest.mark.parametrize("quantizer", QUANTIZERS)
@given(given=some.factors(finite=False), threshold=some.thresholds, granularity=some.granularities)
def test_layers_are_within_the_bound(side, quantizer, outlier_weight, given, threshold, granularity):
    x, w, bias = given.tensors()
    layer, expected = (s.layer(w, bias, threshold, outlier_weight, quantizer, granularity) for s in (side, REFERENCE))
    met = w if outlier_weight == "float" else dequantized(w, quantizer, granularity)
    note(f"outliers {REFERENCE.outlier_columns(x, threshold).nonzero().flatten().tolist()}")
    assert_product(layer(x), expected(x), x, met, REFERENCE.outlier_columns(x, threshold), bias)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@given(given=some.factors(finite=False), outlier_weight=some.outlier_weights, granularity=some.granularities)
def test_layers_store_the_same(side, quantizer, given, outlier_weight, granularity):
    _, w, bias = given.tensors()
    ours = side.stored(w, bias, 6.0, outlier_weight, quantizer, granularity)
    theirs = REFERENCE.stored(w, bias, 6.0, outlier_weight, quantizer, granularity)
    for name in ("weight", "weight_absmax", "weight_scale", "weight_zero_point"):
        assert (ours[name] is None) == (theirs[name] is None)
        if ours[name] is not None:
            assert_same(ours[name], theirs[name])
    for name in ("float_weight", "bias"):
        assert (ours[name] is None) == (theirs[name] is None)
        if ours[name] is not None:
            assert_same(ours[name].float(), theirs[name])


def cast(y, x):
    """The reference's float32 in x's dtype."""
    return y.to(x.dtype)


def dequantized(w, quantizer, granularity):
    quantized = getattr(REFERENCE, f"{quantizer}_quantize")(w, -1 if granularity == "vector" else None)
    return getattr(REFERENCE, f"{quantizer}_dequantize")(*quantized)
