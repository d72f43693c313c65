"""Worked by hand: a third opinion, so that a mistake that both sides share would show. All numbers are exact in float32."""

import numpy as np
import pytest
import torch

from tests.comparison import DTYPES, SIDES, assert_same

pytestmark = pytest.mark.parametrize("side", SIDES, ids=str)


def floats(*rows, dtype=torch.float32):
    return torch.tensor(rows, dtype=dtype)


def int8(*rows):
    return torch.tensor(rows, dtype=torch.int8)


def int32(*rows):
    return torch.tensor(rows, dtype=torch.int32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_absmax_codes_at_ties_zeros_and_both_ends(side, dtype):
    # The largest magnitude is 127, so the scale is 1 and x is its own code, rounded; ties go to the even neighbour.
    x = floats([127.0, -127.0, 0.0, -0.0, 0.5, 1.5, 2.5, 3.5, -0.5, -1.5, -2.5, 63.25, 126.5], dtype=dtype)
    codes, scale = side.absmax_quantize(x, -1)
    assert_same(codes, int8([127, -127, 0, 0, 0, 2, 2, 4, 0, -2, -2, 63, 126]))
    assert_same(scale, floats([1.0]))


def test_the_largest_negative_entry_gets_minus_127(side):
    codes, scale = side.absmax_quantize(floats([-254.0, 2.0, 3.0]), -1)
    assert_same(codes, int8([-127, 1, 2]))  # 3 / 2 is a tie
    assert_same(scale, floats([2.0]))


def test_one_scale_a_row_or_one_in_all(side):
    x = floats([127.0, 1.0], [63.5, -1.0])
    per_row, whole = side.absmax_quantize(x, -1), side.absmax_quantize(x)
    assert_same(per_row.codes, int8([127, 1], [127, -2]))
    assert_same(per_row.scale, floats([1.0], [0.5]))
    assert_same(whole.codes, int8([127, 1], [64, -1]))  # 63.5 is a tie
    assert_same(whole.scale, floats([1.0]))


def test_the_reciprocal_decides_a_near_tie(side):
    # 4.5 * 127 / 9 is 63.5 exactly, a tie, and so is 14.5 * 127 / 29: the last place of the inverse decides. Two
    # nearby formulas, x / scale and x * 127 / absmax, give -63 and -64 where the contract gives -64 and -63.
    nine, twenty_nine = floats([9.0, -4.5]), floats([29.0, -14.5])
    assert_same(side.absmax_quantize(nine).codes, int8([127, -64]))
    assert_same(side.absmax_quantize(twenty_nine).codes, int8([127, -63]))
    f = np.float32
    assert np.rint(f(-4.5) / (f(9) / f(127))) == -63
    assert np.rint(f(-14.5) * f(127) / f(29)) == -64


def test_truncation_would_give_other_codes(side):
    x = floats([127.0, 1.75, -1.75])
    assert_same(side.absmax_quantize(x).codes, int8([127, 2, -2]))
    assert x.to(torch.int8).tolist() == [[127, 1, -1]]


def test_absmax_dequantizes_to_code_times_scale(side):
    assert_same(side.absmax_dequantize(int8([-127, 0, 5], [1, 2, 3]), floats([0.5], [4.0])), floats([-63.5, 0.0, 2.5], [4.0, 8.0, 12.0]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeropoint_codes_and_zero_point(side, dtype):
    # hi - lo = 255, so the scale is 1; zero is 55 steps above the lowest code.
    x = floats([-55.0, 0.0, 200.0, 0.5, 1.5, -0.5], dtype=dtype)
    codes, scale, zero_point = side.zeropoint_quantize(x, -1)
    assert_same(zero_point, int32([-73]))
    assert_same(codes, int8([-128, -73, 127, -73, -71, -73]))
    assert_same(scale, floats([1.0]))


def test_zeropoint_includes_zero_where_all_entries_have_one_sign(side):
    codes, scale, zero_point = side.zeropoint_quantize(floats([510.0, 20.0], [-255.0, -10.0]), -1)
    assert_same(zero_point, int32([-128], [127]))
    assert_same(codes, int8([127, -118], [-128, 117]))
    assert_same(scale, floats([2.0], [1.0]))


def test_zeropoint_of_a_whole_tensor(side):
    codes, scale, zero_point = side.zeropoint_quantize(floats([-5.0, 1.0], [250.0, 0.0]))
    assert_same(zero_point, int32([-123]))
    assert_same(codes, int8([-128, -122], [127, -123]))
    assert_same(scale, floats([1.0]))


def test_zeropoint_clips_what_rounds_past_the_end(side):
    # Both ends on a tie: rint(-1.5) = -2 and rint(253.5) = 254 are 256 steps apart, so the upper one is clipped from 128 to 127.
    codes, _, zero_point = side.zeropoint_quantize(floats([-1.5, 253.5]))
    assert_same(zero_point, int32([-126]))
    assert_same(codes, int8([-128, 127]))


def test_zeropoint_clips_what_rounds_past_the_lower_end(side):
    # The next number below -0.5 rounds to -1; beside 128 float32 has no room for it, and -128 + 0.5 is a tie that rounds to -128.
    below = float(np.nextafter(np.float32(-0.5), np.float32(-1)))
    codes, _, zero_point = side.zeropoint_quantize(floats([below, 254.5]))
    assert_same(zero_point, int32([-128]))
    assert_same(codes, int8([-128, 126]))


def test_zeropoint_codes_may_change_when_both_ends_round_inwards(side):
    # rint(-0.5) = 0 and rint(254.5) = 254: the slice comes back 254 steps wide, and 254 steps are then cut into 255.
    quantized = side.zeropoint_quantize(floats([-0.5, 254.5]))
    assert_same(quantized.codes, int8([-128, 126]))
    back = side.zeropoint_dequantize(*quantized)
    assert_same(back, floats([0.0, 254.0]))
    assert_same(side.zeropoint_quantize(back).codes, int8([-128, 127]))


def test_zeropoint_dequantizes_to_the_distance_from_the_zero_point(side):
    back = side.zeropoint_dequantize(int8([-128, 127], [10, 20]), floats([0.5], [2.0]), int32([127], [15]))
    assert_same(back, floats([-127.5, 0.0], [-10.0, 10.0]))


def test_an_integer_product(side):
    a, b = int8([1, -2, 3], [-128, 127, 0]), int8([4, 5, 6], [-128, -128, 127])
    assert_same(side.int8_matmul(a, b), int32([12, 509], [123, 128]))


# X has the row scales 1 and 2, W too, so the codes are
#     X_codes  127  -1    2     W_codes  127    0  1
#                0 127  -64                1 -127  2        -127 / 2 = -63.5 is a tie
# and the accumulators  127 * 127 + 2 = 16131   127 + 127 + 4 = 258
#                       -64                     -127 * 127 - 128 = -16257.
X = floats([127.0, -1.0, 2.0], [0.0, 254.0, -127.0])
W = floats([127.0, 0.0, 1.0], [2.0, -254.0, 4.0])


def test_a_vector_wise_product(side):
    assert_same(side.int8_matmul(side.absmax_quantize(X, -1).codes, side.absmax_quantize(W, -1).codes), int32([16131, 258], [-64, -16257]))
    assert_same(side.quantized_matmul(X, W), floats([16131.0, 516.0], [-128.0, -65028.0]))


def test_scales_along_the_wrong_axis_would_give_another_product(side):
    # The weight's scales multiply columns of Y. Along its rows they would give these, with no error to see where M = N.
    right, wrong = floats([16131.0, 516.0], [-128.0, -65028.0]), floats([16131.0, 258.0], [-256.0, -65028.0])
    accumulators = floats([16131.0, 258.0], [-64.0, -16257.0])
    assert torch.equal(accumulators * floats([1.0], [2.0]) * floats([1.0], [2.0]), wrong)
    assert_same(side.quantized_matmul(X, W), right)
    assert not torch.equal(right, wrong)


def test_a_product_with_one_scale_for_the_weight(side):
    # W's largest magnitude is 254, its scale 2: codes 64, 0, 0 (63.5 and 0.5 are ties) and 1, -127, 2.
    expected = floats([127 * 64 * 2.0, 258 * 2.0], [0.0, -16257 * 4.0])
    assert_same(side.quantized_matmul(X, W, "row"), expected)


def test_a_product_with_one_scale_each(side):
    # X's scale is 2 as well: codes 64, 0, 1 (63.5, -0.5) and 0, 127, -64.
    expected = floats([64 * 64 * 4.0, (64 + 2) * 4.0], [0.0, -16257 * 4.0])
    assert_same(side.quantized_matmul(X, W, "tensor"), expected)


def test_a_zeropoint_product(side):
    # Ranges of 255: scales 1, and the product of whole numbers is exact.
    x, w = floats([-55.0, 200.0], [0.0, 255.0]), floats([-255.0, -1.0], [100.0, -155.0])
    assert_same(side.quantized_matmul(x, w, quantizer="zeropoint"), floats([13825.0, -36500.0], [-255.0, -39525.0]))


def test_an_entry_of_exactly_the_threshold_is_an_outlier(side):
    below = float(torch.nextafter(torch.tensor(6.0), torch.tensor(0.0)))
    x = floats([6.0, below, 0.0, 1.0, 5.0], [0.0, 0.0, -6.0, 1.0, -5.0])
    assert_same(side.outlier_columns(x), torch.tensor([True, False, True, False, False]))
    assert_same(side.outlier_columns(x, 5), torch.tensor([True, True, True, False, True]))


# Threshold 300: column 0 is an outlier, for both rows. What is left has the row scales 1 and 2:
#     X_codes  0 127 -1     W_codes  127  127  0
#              0 127  1                1 -127  2
MIXED = floats([300.0, 127.0, -1.0], [3.0, 254.0, 2.0])
MIXED_W = floats([127.0, 127.0, 0.0], [2.0, -254.0, 4.0])
MIXED_Y = floats([127 * 127 + 300 * 127.0, -16131 * 2 + 300 * 2.0], [127 * 127 * 2 + 3 * 127.0, -16127 * 4 + 3 * 2.0])


def test_a_mixed_precision_product(side):
    assert_same(side.llm_int8_matmul(MIXED, MIXED_W, 300), MIXED_Y)


@pytest.mark.parametrize("outlier_weight", ["dequantized", "float"])
def test_a_layer_adds_its_bias(side, outlier_weight):
    layer = side.layer(MIXED_W, torch.tensor([1.0, -0.5]), 300, outlier_weight)
    assert_same(layer(MIXED), MIXED_Y + torch.tensor([1.0, -0.5]))


def test_the_outlier_weight_is_the_codes_or_the_original(side):
    # The weight's row has the scale 2, so the 1 under the outlier is a tie, and comes back as 0.
    x, w = floats([300.0, 0.0]), floats([1.0, 254.0])
    assert_same(side.layer(w, None, 300, "dequantized")(x), floats([0.0]))
    assert_same(side.layer(w, None, 300, "float")(x), floats([300.0]))


def test_leaving_out_outlier_entries_alone_would_give_another_product(side):
    # The 3 beside the outlier would be quantized in steps of 2: 1.5 is a tie, and comes back as 4.
    entries_only = MIXED_Y + floats([0.0, 0.0], [(4 - 3) * 127.0, (4 - 3) * 2.0])
    assert not torch.equal(side.llm_int8_matmul(MIXED, MIXED_W, 300), entries_only)
    assert_same(side.llm_int8_matmul(floats([0.0, 127.0, -1.0], [3.0, 254.0, 2.0]), MIXED_W, 300)[1:], entries_only[1:])


def test_without_decomposition_an_outlier_takes_the_codes_of_its_row(side):
    # Row 0 then has a scale of 300 / 127, and 127 and -1 become 54 and 0 (53.76 and -0.42).
    assert_same(side.absmax_quantize(MIXED, -1).codes, int8([127, 54, 0], [2, 127, 1]))  # 3 / 2 is a tie
    assert not torch.equal(side.llm_int8_matmul(MIXED, MIXED_W, None), MIXED_Y)
