"""The comparisons themselves: each raises when what it compares is wrong by the least that it has to see."""

import importlib.util

import numpy as np
import pytest
import torch

from fast import cpu
from tests.comparison import CPU, REFERENCE, TRITON, assert_equal, assert_product, assert_same, assert_within, outlier_bound, poisoned
from tests.strategies import LAYOUTS, arrange

NEEDS_TRITON = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="could not import 'triton'")
NAN, INF = float("nan"), float("inf")


def numbers(dtype=torch.float32):
    return torch.tensor([[1.5, -2.0, 0.0], [NAN, INF, 3.0]], dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_result_is_the_same_as_itself(dtype):
    assert_same(numbers(dtype), numbers(dtype))
    assert_equal(numbers(dtype), numbers(dtype))


def test_every_nan_is_the_same():
    other = torch.tensor([0x7FC00000, 0x7F800001, -1], dtype=torch.int32).view(torch.float32)
    assert_same(other, torch.full((3,), NAN))


@pytest.mark.parametrize("index", [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)])
@pytest.mark.parametrize("value", [NAN, INF, -INF, 1.25, 3.0000002])
def test_one_wrong_entry_is_seen(index, value):
    wrong = numbers()
    if torch.equal(wrong[index], torch.tensor(value)) or (wrong[index].isnan() and value != value):
        value = 7.0
    wrong[index] = value
    with pytest.raises(AssertionError, match=rf"1 of 6 entries differ, first \({index[0]}, {index[1]}\)"):
        assert_same(wrong, numbers())
    with pytest.raises(AssertionError, match="1 of 6 entries differ"):
        assert_equal(wrong, numbers())


def test_the_sign_of_zero_counts_except_for_sums():
    with pytest.raises(AssertionError):
        assert_same(-torch.zeros(1), torch.zeros(1))
    assert_equal(-torch.zeros(1), torch.zeros(1))


@pytest.mark.parametrize("wrong", [numbers().double(), numbers().half(), numbers().T, numbers()[:1], numbers()[None]])
def test_another_dtype_or_shape_is_seen(wrong):
    for compare in (assert_same, assert_equal):
        with pytest.raises(AssertionError, match="expected"):
            compare(wrong, numbers())


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.bool, torch.uint8])
def test_one_wrong_integer_is_seen(dtype):
    right = torch.tensor([1, 0, 1]).to(dtype)
    assert_same(right, right.numpy())
    with pytest.raises(AssertionError, match=r"first \(1,\)"):
        assert_same(right, torch.tensor([1, 1, 1]).to(dtype))


def test_a_bound_of_zero_is_equality():
    y = torch.tensor([1.0, -1.0])
    zero = torch.zeros(2, dtype=torch.float64)
    assert_within(y, y, zero)
    with pytest.raises(AssertionError, match="outside"):
        assert_within(torch.nextafter(y, torch.tensor(9.0)), y, zero)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_bound_allows_for_one_rounding_to_the_output_dtype_and_no_more(dtype):
    y = torch.tensor([1.0 / 3])
    bound = torch.tensor([1e-9], dtype=torch.float64)
    cast = y.to(dtype)
    assert_within(cast, y, bound)
    for direction in (0.0, 1.0):
        with pytest.raises(AssertionError, match="outside"):
            assert_within(torch.nextafter(cast, torch.tensor(direction, dtype=dtype)), y, bound)


@pytest.mark.parametrize("actual", [NAN, INF, -INF, 0.0])
@pytest.mark.parametrize("expected", [NAN, INF, -INF, 0.0])
def test_what_is_not_finite_has_to_be_the_same(actual, expected):
    agree = actual == expected or (actual != actual and expected != expected)
    given = torch.tensor([actual]), torch.tensor([expected]), torch.tensor([1.0], dtype=torch.float64)
    if agree:
        assert_within(*given)
    else:
        with pytest.raises(AssertionError):
            assert_within(*given)


def test_an_overflow_of_the_output_dtype_is_no_error():
    y = torch.tensor([65520.0, 65519.0])
    assert_within(torch.tensor([INF, 65504.0]).half(), y, torch.zeros(2, dtype=torch.float64))
    with pytest.raises(AssertionError):
        assert_within(torch.tensor([65504.0, INF]).half(), y, torch.zeros(2, dtype=torch.float64))


def test_a_bound_that_is_no_number_is_refused():
    with pytest.raises(AssertionError, match="NaN in bound"):
        assert_within(torch.ones(1), torch.ones(1), torch.tensor([NAN], dtype=torch.float64))


def test_the_outlier_bound_holds_for_float32_sums_in_opposite_orders_and_is_not_far_away():
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(8, 200, generator=generator), torch.randn(5, 200, generator=generator)
    bound = outlier_bound(x, w, torch.ones(200, dtype=torch.bool))
    forth = sum(x[:, None, k] * w[None, :, k] for k in range(200))
    back = sum(x[:, None, k] * w[None, :, k] for k in reversed(range(200)))
    gap = (forth.double() - back.double()).abs()
    assert bool((gap <= bound).all())
    assert bool((bound < 1e-4 * (x.abs() @ w.T.abs())).all())


def test_a_product_with_one_outlier_column_left_out_is_seen():
    x, w = torch.ones(3, 4), torch.ones(2, 4)
    x[0, 1] = 9.0
    outliers = torch.tensor([False, True, False, False])
    y = REFERENCE.llm_int8_matmul(x, w)
    assert_product(y, y, x, w, outliers)
    with pytest.raises(AssertionError, match="2 of 6"):
        assert_product(y - torch.tensor([[9.0], [0.0], [0.0]]), y, x, w, outliers)


def test_buffers_are_poisoned_and_only_inside_the_context():
    with poisoned():
        assert torch.empty(2, 3).isnan().all()
        assert (torch.empty((2, 3), dtype=torch.int8) == 0x5A).all()
    assert torch.empty.__name__ == "empty"


def test_an_entry_that_no_program_writes_is_seen(monkeypatch):
    class Lazy:
        def __getitem__(self, grid):
            return lambda *arguments, **options: None

    monkeypatch.setattr(pytest.importorskip("fast.kernels.quantization"), "quantize_rows", Lazy())
    x = torch.ones(2, 3)
    with pytest.raises(AssertionError):
        assert_same(TRITON.absmax_quantize(x).codes, REFERENCE.absmax_quantize(x).codes)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_changes_strides_and_no_entry(layout):
    x = torch.arange(12.0).reshape(3, 4)
    arranged = arrange(x, layout)
    np.testing.assert_array_equal(arranged, x[:1].expand(3, 4) if layout == "expanded" else x)
    aligned = arranged.stride() == (4, 1) and arranged.data_ptr() % 16 == 0
    assert aligned == (layout == "contiguous")


def test_a_side_reaches_the_backend_that_it_names(monkeypatch):
    kernels = pytest.importorskip("fast.kernels")
    called = []
    for module in (cpu, kernels):
        monkeypatch.setattr(module, "outlier_columns", lambda x, threshold, name=module.__name__: called.append(name) or x[0] > threshold)
    for side in (REFERENCE, CPU, TRITON):
        side.outlier_columns(torch.ones(1, 1))
    assert called == ["fast.cpu", "fast.kernels"]


@NEEDS_TRITON
def test_the_kernels_round_to_bfloat16_to_nearest_and_ties_to_even():
    # A sum of 16-bit numbers in float32, with ties to even in both directions, cast once: 257 and 259 lie halfway.
    x = torch.tensor([[256.0, 1.0], [256.0, 3.0], [-256.0, -1.0], [256.0, 1.0625]], dtype=torch.bfloat16)
    y = TRITON.llm_int8_matmul(x, torch.ones(1, 2, dtype=torch.bfloat16), 0)
    assert_same(y, torch.tensor([[256.0], [260.0], [-256.0], [258.0]], dtype=torch.bfloat16))


@NEEDS_TRITON
def test_the_kernels_read_every_bfloat16_as_it_is():
    # The 128 smallest are subnormal. Each is an outlier with threshold 0, and meets a 1 and zeros.
    x = torch.arange(256, dtype=torch.int16).view(torch.bfloat16).reshape(16, 16)
    assert_same(TRITON.llm_int8_matmul(x, torch.eye(16), 0), x)
