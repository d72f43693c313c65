"""The contract's edges, on the reference and on both backends of the fast path."""

import numpy as np
import pytest
import torch

from tests.comparison import (
    DTYPES,
    FLOAT32_MAX,
    GRANULARITIES,
    QUANTIZERS,
    REFERENCE,
    SIDES,
    assert_product,
    assert_same,
    assert_within,
    output_bound,
)

NAN, INF = float("nan"), float("inf")
SMALLEST = 2.0**-100
JUST_BELOW = float(np.nextafter(np.float32(SMALLEST), np.float32(0)))

pytestmark = pytest.mark.parametrize("side", SIDES, ids=str)


def quantize(side, quantizer, x, axis=-1):
    return getattr(side, f"{quantizer}_quantize")(x, axis)


def normal(*shape, dtype=torch.float32, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).to(dtype)


@pytest.fixture
def large_blocks(blocks):
    """For a long K."""
    blocks("rows", {"rows": 4, "block_k": 8192})
    blocks("scan", {"block_m": 16, "block_k": 8192, "splits": 1})
    blocks("product", {"block_m": 16, "block_n": 16, "block_k": 8192})


# Slices of almost nothing, and of too much


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_a_slice_counts_from_two_to_the_minus_100_on(side, quantizer):
    codes, scale, *zero_point = quantize(side, quantizer, torch.tensor([[SMALLEST, 0.0], [JUST_BELOW, 0.0]]))
    steps = {"absmax": 127, "zeropoint": 255}[quantizer]
    assert_same(scale, torch.tensor([[SMALLEST], [0.0]]) / steps)
    assert codes.tolist() == [[127, 0 if quantizer == "absmax" else -128], [0, 0]]
    assert [z.tolist() for z in zero_point] == ([] if quantizer == "absmax" else [[[-128], [0]]])


def test_a_weight_counts_from_two_to_the_minus_100_on(side):
    layer = side.layer(torch.tensor([[SMALLEST, 0.0], [JUST_BELOW, 0.0]]), None, None)
    assert layer(torch.tensor([[1 / SMALLEST, 0.0]])).tolist() == [[pytest.approx(1, rel=1e-6), 0.0]]


def test_a_zeropoint_slice_counts_by_its_range(side):
    half = SMALLEST / 2
    _, scale, zero_point = side.zeropoint_quantize(torch.tensor([[half, -half], [half, 0.0]]), -1)
    assert_same(scale, torch.tensor([[SMALLEST / 255], [0.0]]))
    assert zero_point.tolist() == [[0], [0]]  # -128 + 127.5, to even


@pytest.mark.parametrize("axis", [None, -1])
@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, -JUST_BELOW])
def test_a_slice_of_next_to_nothing_is_a_zero_slice(side, value, quantizer, axis):
    codes, scale, *zero_point = quantize(side, quantizer, torch.full((2, 3), value), axis)
    assert not codes.any()
    assert_same(scale, torch.zeros(2 if axis else 1, 1))
    assert not any(z.any() for z in zero_point)


@pytest.mark.parametrize("value", [NAN, -NAN, INF, -INF])
@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_spoils_its_own_row(side, dtype, quantizer, value):
    x = normal(5, 35, dtype=dtype)
    before = quantize(side, quantizer, x)
    x[2, 33] = value
    after = quantize(side, quantizer, x)
    others = [0, 1, 3, 4]
    for a, b in zip(after, before, strict=True):
        assert_same(a[others], b[others])
    assert after.scale[2].isnan()
    assert not after.codes[2].any()
    assert quantizer == "absmax" or after.zero_point[2] == 0
    assert getattr(side, f"{quantizer}_dequantize")(*after)[2].isnan().all()


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_what_is_not_finite_spoils_a_tensor_with_one_scale(side, quantizer):
    x = normal(5, 35)
    x[2, 33] = INF
    codes, scale, *_ = quantize(side, quantizer, x, None)
    assert scale.isnan().all()
    assert not codes.any()


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_what_is_not_finite_stays_in_its_row_and_column_of_a_product(side, quantizer, value):
    x, w = normal(5, 35), normal(4, 35, seed=1)
    clean = side.quantized_matmul(x, w, "vector", quantizer)
    x[2, 33] = w[1, 7] = value
    spoiled = side.quantized_matmul(x, w, "vector", quantizer)
    assert spoiled[2].isnan().all()
    assert spoiled[:, 1].isnan().all()
    rows, columns = torch.tensor([[0], [1], [3], [4]]), torch.tensor([0, 2, 3])
    assert_same(spoiled[rows, columns], clean[rows, columns])


def test_an_infinite_outlier_is_infinite_in_its_row_and_nowhere_else(side):
    x, w = normal(3, 35).clip(-5, 5), normal(4, 35, seed=1)
    x[1, 34] = INF
    y = side.llm_int8_matmul(x, w)
    assert_same(y[1], w[:, 34] * INF)
    assert y[[0, 2]].isfinite().all()


def test_a_nan_is_no_outlier_and_spoils_its_row(side):
    x, w = normal(3, 35).clip(-5, 5), normal(4, 35, seed=1)
    x[1, 34] = NAN
    assert not side.outlier_columns(x).any()
    y = side.llm_int8_matmul(x, w)
    assert y[1].isnan().all()
    assert y[[0, 2]].isfinite().all()


def test_a_nan_hides_no_outlier_in_its_column(side):
    below = float(np.nextafter(np.float32(6), np.float32(0)))
    x = torch.tensor([[6.0, below, NAN, NAN, 1.0], [NAN, NAN, -6.0, NAN, 1.0], [1.0, 1.0, NAN, 1.0, 1.0]])
    assert side.outlier_columns(x).tolist() == [True, False, True, False, False]


def test_a_range_past_float32_is_no_number_in_zeropoint_and_one_in_absmax(side):
    x = torch.tensor([[FLOAT32_MAX, -FLOAT32_MAX, 1.0], [FLOAT32_MAX, 0.0, 1.0]])
    codes, scale, zero_point = side.zeropoint_quantize(x, -1)
    assert scale.isnan().flatten().tolist() == [True, False]
    assert codes.tolist() == [[0, 0, 0], [127, -128, -128]]
    assert zero_point.tolist() == [[0], [-128]]
    codes, scale = side.absmax_quantize(x, -1)
    assert codes.tolist() == [[127, -127, 0], [127, 0, 0]]
    assert_same(scale, torch.full((2, 1), FLOAT32_MAX) / 127)


@pytest.mark.parametrize("outlier_weight", ["dequantized", "float"])
def test_weights_as_large_as_bfloat16_holds_meet_outliers(side, outlier_weight):
    # 127 of 127 steps, and an x of 0 beside an outlier: 0 * scale has to stay 0.
    largest = torch.finfo(torch.bfloat16).max
    w = torch.tensor([[largest, 1.0], [2.0, 1.0]], dtype=torch.bfloat16)
    x = torch.tensor([[8.0, 1.0], [0.0, 1.0]], dtype=torch.bfloat16)
    layer, expected = (s.layer(w, None, 6.0, outlier_weight) for s in (side, REFERENCE))
    y = layer(x).float()
    assert y.isinf().tolist() == [[True, False], [False, False]]
    assert_same(y.bfloat16(), expected(x).bfloat16())


def test_weights_of_zeros_give_zeros(side):
    x = normal(5, 35) * 4
    for quantizer in QUANTIZERS:
        assert_same(side.llm_int8_matmul(x, torch.zeros(4, 35), 6.0, quantizer), torch.zeros(5, 4))
        assert_same(side.layer(torch.zeros(4, 35), None, 6.0, quantizer=quantizer)(x), torch.zeros(5, 4))


@pytest.mark.parametrize("threshold", [6.0, None])
def test_bfloat16_beyond_the_largest_float16_is_not_narrowed(side, threshold):
    x = normal(3, 35, dtype=torch.bfloat16)
    x[0, 3], x[1, 34], x[2, 0] = 1e5, -70000.0, 1e34  # beyond 2e36, acc * x_scale would overflow before w_scale makes it smaller
    w = normal(4, 35, dtype=torch.bfloat16, seed=1) / 8
    y, expected = (s.llm_int8_matmul(x, w, threshold) for s in (side, REFERENCE))
    assert y.isfinite().all()
    assert_product(y.to(x.dtype), expected, x, w, REFERENCE.outlier_columns(x, threshold))


# Outlier columns


@pytest.mark.parametrize("m", [3, 20])
@pytest.mark.parametrize("columns", [(), (0,), (32,), (63,), (0, 31, 32, 63), range(64)], ids=str)
@pytest.mark.parametrize("k", [64, 65])
def test_outliers_at_the_edges_of_blocks(side, k, columns, m):
    x, w = normal(m, k, dtype=torch.float16).clip(-5, 5), normal(3, k, dtype=torch.float16, seed=1)
    columns = sorted({*columns, k - 1}) if columns else []
    for i, column in enumerate(columns):
        x[i % m, column] = 60.0
    outliers = side.outlier_columns(x)
    assert outliers.nonzero().flatten().tolist() == columns
    y, expected = (s.llm_int8_matmul(x, w) for s in (side, REFERENCE))
    bound = output_bound(x, w, outliers, expected)
    assert_within(y, expected, bound)


# Shapes


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (2, 0, 3), (0,)])
@pytest.mark.parametrize("axis", [None, -1])
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_empty_tensors_quantize_to_empty_codes_and_zero_scales(side, quantizer, axis, shape):
    codes, scale, *zero_point = quantize(side, quantizer, torch.zeros(shape), axis)
    slices = (1,) * len(shape) if axis is None else (*shape[:-1], 1)
    assert_same(codes, torch.zeros(shape, dtype=torch.int8))
    assert_same(scale, torch.zeros(slices))
    for z in zero_point:
        assert_same(z, torch.zeros(slices, dtype=torch.int32))


@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0, 4), (3, 4, 0), (0, 0, 0), (20, 3, 0)])
@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_empty_products_have_their_shape_and_dtype_and_are_zero(side, dtype, granularity, quantizer, shape):
    m, n, k = shape
    x, w = torch.zeros(m, k, dtype=dtype), torch.zeros(n, k, dtype=dtype)
    expected = torch.zeros(m, n, dtype=torch.float32 if side is REFERENCE else dtype)
    assert_same(side.int8_matmul(x.to(torch.int8), w.to(torch.int8)), torch.zeros(m, n, dtype=torch.int32))
    assert_same(side.quantized_matmul(x, w, granularity, quantizer), expected)
    assert_same(side.outlier_columns(x, 0), torch.full((k,), m > 0))
    for threshold in (None, 0.0, 6.0):
        assert_same(side.llm_int8_matmul(x, w, threshold, quantizer, granularity), expected)
        for outlier_weight in ("dequantized", "float"):
            layer = side.layer(w, torch.ones(n, dtype=dtype), threshold, outlier_weight, quantizer, granularity)
            assert_same(layer(x), expected + 1)


@pytest.mark.parametrize("leading", [(), (1,), (2, 3), (0,), (2, 0)])
def test_leading_dimensions_are_restored(side, leading):
    x, w = normal(*leading, 35), normal(4, 35)
    assert side.quantized_matmul(x, w).shape == (*leading, 4)
    assert side.llm_int8_matmul(x, w).shape == (*leading, 4)
    assert side.layer(w)(x).shape == (*leading, 4)
    assert side.absmax_quantize(x, -1).scale.shape == (*leading, 1)
    assert side.zeropoint_quantize(x).zero_point.shape == (1,) * (len(leading) + 1)


# How long a sum of codes may be


def test_the_longest_integer_product_is_exact_and_a_longer_one_is_refused(side, large_blocks):
    k = (2**31 - 1) // 128**2
    assert k == 131_071
    a = torch.full((1, k + 1), -128, dtype=torch.int8)
    assert_same(side.int8_matmul(a[:, :-1], a[:, :-1]), torch.tensor([[k * 128**2]], dtype=torch.int32))
    with pytest.raises(ValueError, match=r"K must be at most 131071 for zeropoint codes.* got K = 131072"):
        side.int8_matmul(a, a)


@pytest.mark.parametrize(("quantizer", "k"), [("absmax", 133_144), ("zeropoint", 131_071)])
def test_the_longest_quantized_product_is_exact_and_a_longer_one_is_refused(side, quantizer, k, large_blocks):
    # All entries are the largest: every code is 127 (zeropoint: 255 steps above the zero point), so the sum is as large as it gets.
    assert k == (2**31 - 1) // {"absmax": 127, "zeropoint": 128}[quantizer] ** 2
    steps = {"absmax": 127, "zeropoint": 255}[quantizer]
    x = torch.full((1, k + 1), float(steps))
    y = side.quantized_matmul(x[:, :-1], x[:, :-1], "vector", quantizer)
    assert_same(y, torch.tensor([[float(k * steps**2)]]))
    message = rf"K must be at most {k} for {quantizer} codes.* got K = {k + 1}"
    for refused in (side.quantized_matmul, side.llm_int8_matmul):
        with pytest.raises(ValueError, match=message):
            refused(x, x, quantizer=quantizer)
    with pytest.raises(ValueError, match=message):
        side.layer(x, None, quantizer=quantizer)


def test_a_zeropoint_product_past_32_bits_is_exact(side, large_blocks):
    k = 60_000
    x, w = torch.full((2, k), 255.0), torch.full((2, k), -255.0)
    x[1] = 0
    expected = torch.tensor([[-float(k * 255**2)] * 2, [0.0] * 2])
    assert k * 255**2 > 2**31
    assert_same(side.quantized_matmul(x, w, "vector", "zeropoint"), expected)
    assert_same(side.layer(w, None, None, quantizer="zeropoint")(x.expand(2, k)), expected)
