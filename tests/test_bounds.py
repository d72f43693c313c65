"""Bounds as inequalities: inputs that are made to come close never pass, on both sides, with float64 as the judge.

An entry of X or W comes near the worst case if it lies halfway between two codes while the entries that it meets are large. The
inputs are made of such entries, at a level and with a share that Hypothesis chooses, and `target` makes it look for the largest ratio
of error and bound. The ratios are in the statistics: `pytest tests/test_bounds.py --hypothesis-show-statistics`.
"""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import event, given, target
from hypothesis import strategies as st
from numpy.typing import NDArray

import reference
from reference import bounds
from tests.comparison import CPU, GRANULARITIES, OUTLIER_WEIGHTS, QUANTIZERS, REFERENCE, SIDES, Side

U64 = 2.0**-53


def near_halves(rng: np.random.Generator, shape: tuple[int, int], half_steps: int, share: float, quantizer: str) -> NDArray[np.float32]:
    """Rows that set their own scale with their first entry, and lie just beyond `half_steps` halves of it in a share of the others."""
    most = rng.uniform(1, 2, (shape[0], 1)) * 2.0 ** rng.integers(-8, 8, (shape[0], 1))
    level = min(half_steps / 2 + 2.0**-12, bounds.STEPS[quantizer]) * most / bounds.STEPS[quantizer]
    x = np.where(rng.random(shape) < share, level, rng.uniform(0, 1, shape) * most)
    if shape[1]:
        x[:, 0] = most[:, 0]
    return x.astype(np.float32)


@st.composite
def near_worst(draw: st.DrawFn, quantizer: str, rows: tuple[int, int] = (4, 5)) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """X (M, K) and W (N, K) of `near_halves`."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1), label="seed"))
    k = draw(st.integers(0, 600), label="K")
    most = 2 * bounds.STEPS[quantizer]
    half_steps = st.integers(most - 9, most) | st.integers(0, most)  # near the top is where an error meets the largest factor
    share = st.just(1.0) | st.floats(0, 1)
    x, w = (near_halves(rng, (m, k), draw(half_steps, label="half steps"), draw(share, label="share"), quantizer) for m in rows)
    return x, w * draw(st.sampled_from([1, -1]), label="sign")


def exact(x: NDArray, w: NDArray) -> NDArray[np.float64]:
    return x.astype(np.float64) @ w.astype(np.float64).T


def assert_bounded(y: NDArray, x: NDArray, w: NDArray, bound: NDArray[np.float64], label: str) -> None:
    """|y - x @ w.T| <= bound; float64's own product may be off by K U64 of the sum of the magnitudes."""
    judge = x.shape[-1] * U64 * exact(np.abs(x), np.abs(w))
    ratio = np.abs(y - exact(x, w)) / (bound + judge)
    assert np.all(ratio <= 1), f"{label}: {ratio.max()} times the bound"
    target(float(ratio.max(initial=0)), label=label)


def on(side: Side, function: str, *arrays: NDArray, **options: Any) -> Any:
    """Calls the function of that name on one side, with arrays in and out."""
    found = getattr(side, function)(*map(torch.from_numpy, arrays), **options)
    return [t.numpy() for t in found] if isinstance(found, tuple) else found.numpy()


def layer(side: Side, x: NDArray, w: NDArray, **options: Any) -> NDArray:
    """What an Int8Linear of weight w returns for x."""
    return side.layer(torch.from_numpy(w), **options)(torch.from_numpy(x)).numpy()


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("side", [REFERENCE, CPU], ids=repr)
@pytest.mark.parametrize("axis", [None, -1])
@given(data=st.data())
def test_a_round_trip_moves_no_entry_by_more_than_half_a_step_and_roundings(side, quantizer, axis, data):
    x, _ = data.draw(near_worst(quantizer))
    parts = on(side, f"{quantizer}_quantize", x, axis=axis)
    back = on(side, f"{quantizer}_dequantize", *parts)
    ratio = np.abs(back.astype(np.float64) - x) / bounds.round_trip_bound(parts[1], quantizer)
    assert np.all(ratio <= 1)
    target(float(ratio.max(initial=0)), label="round trip")


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("side", [REFERENCE, CPU], ids=repr)
@given(exponent=st.integers(-149, 126), data=st.data())
def test_the_bound_of_a_round_trip_holds_for_slices_of_any_size(side, quantizer, exponent, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), label="seed"))
    x = (rng.uniform(-1, 1, (1, 64)) * 2.0**exponent).astype(np.float32)
    parts = on(side, f"{quantizer}_quantize", x, axis=-1)
    back = on(side, f"{quantizer}_dequantize", *parts)
    event("zero slice" if parts[1] == 0 else "reciprocal subnormal" if exponent == 126 else "ordinary")
    assert np.all(np.abs(back.astype(np.float64) - x) <= bounds.round_trip_bound(parts[1], quantizer))


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("side", [REFERENCE, CPU], ids=repr)
@given(data=st.data())
def test_a_quantized_product_keeps_its_bound(side, quantizer, granularity, data):
    x, w = data.draw(near_worst(quantizer))
    x_axis, w_axis = reference.vectorwise.AXES[granularity]
    quantize = getattr(reference, f"{quantizer}_quantize")
    bound = bounds.quantized_matmul_bound(quantize(x, x_axis).scale, quantize(w, w_axis).scale, x.shape[1], quantizer)
    y = on(side, "quantized_matmul", x, w, granularity=granularity, quantizer=quantizer)
    assert_bounded(y, x, w, bound, "product")


def plant_outliers(data: st.DataObject, x: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
    """Multiplies some columns by up to 1000; returns a threshold between them and the others."""
    threshold = float(np.abs(x).max(initial=1.0)) * 1.5
    columns = data.draw(st.sets(st.integers(0, x.shape[1] - 1), max_size=7) if x.shape[1] else st.just(set()), label="outliers")
    x = x.copy()
    x[:1, list(columns)] = threshold * data.draw(st.floats(1, 1000), label="size")
    return x, threshold


@pytest.mark.parametrize("outlier_weight", OUTLIER_WEIGHTS)
@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("side", [REFERENCE, CPU], ids=repr)
@given(data=st.data())
def test_llm_int8_keeps_its_bound(side, quantizer, outlier_weight, data):
    x, w = data.draw(near_worst(quantizer))
    x, threshold = plant_outliers(data, x)
    y = layer(side, x, w, threshold=threshold, quantizer=quantizer, outlier_weight=outlier_weight)
    assert_bounded(y, x, w, bounds.llm_int8_matmul_bound(x, w, threshold, quantizer, outlier_weight=outlier_weight), "LLM.int8()")


@pytest.mark.parametrize("threshold", [0.0, 6.0, None])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("side", [REFERENCE, CPU], ids=repr)
@given(seed=st.integers(0, 2**32 - 1))
def test_llm_int8_keeps_its_bound_at_every_granularity_with_a_bias(side, granularity, threshold, seed):
    rng = np.random.default_rng(seed)
    x, w, bias = (rng.standard_t(3, shape).astype(np.float32) for shape in ((3, 2, 65), (7, 65), (7,)))
    options: Any = {"threshold": threshold, "granularity": granularity, "outlier_weight": "dequantized"}
    bound = bounds.llm_int8_matmul_bound(x, w, **options, bias=bias)
    y = layer(side, x, w, bias=torch.from_numpy(bias), **options)
    assert bound.shape == y.shape == (3, 2, 7)
    assert np.all(np.abs(y - (exact(x.reshape(6, 65), w).reshape(3, 2, 7) + bias)) <= bound)


# The worst that there is: all entries just above 126.5 steps (zeropoint: 254.5), where the code is 127, half a step too far. |xw - x'w'| is
# then 127**2 - 126.5**2 = 126.75 steps of the 127 that the bound grants an entry; the entry that sets the scale has no error.


def worst(quantizer: str, rows: int, k: int) -> NDArray[np.float32]:
    x = np.full((rows, k), bounds.STEPS[quantizer] - 0.5 + 2.0**-12, np.float32)
    x[:, 0] = bounds.STEPS[quantizer]
    return x


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("side", SIDES, ids=repr)
def test_the_worst_round_trip_comes_within_a_thousandth_of_its_bound(side, quantizer, record_property):
    x = worst(quantizer, 1, 8)
    parts = on(side, f"{quantizer}_quantize", x, axis=-1)
    ratio = np.abs(on(side, f"{quantizer}_dequantize", *parts) - x).max() / bounds.round_trip_bound(parts[1], quantizer).item()
    record_property("ratio: round trip", float(ratio))
    assert 0.998 <= ratio <= 1


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("side", SIDES, ids=repr)
def test_the_worst_product_comes_within_a_hundredth_of_its_bound(side, quantizer, record_property):
    x, w = worst(quantizer, 2, 1024), -worst(quantizer, 3, 1024)
    quantize = getattr(reference, f"{quantizer}_quantize")
    bound = bounds.quantized_matmul_bound(quantize(x, -1).scale, quantize(w, -1).scale, 1024, quantizer)
    ratio = np.abs(on(side, "quantized_matmul", x, w, quantizer=quantizer) - exact(x, w)) / bound
    record_property("ratio: product", float(ratio.max()))
    assert np.all((ratio >= 0.99) & (ratio <= 1))


@pytest.mark.parametrize("outlier_weight", OUTLIER_WEIGHTS)
@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("side", SIDES, ids=repr)
def test_the_worst_of_llm_int8_comes_within_a_hundredth_of_its_bound(side, quantizer, outlier_weight, record_property):
    x, w = worst(quantizer, 2, 1024), worst(quantizer, 3, 1024)
    x[:, -2:] = 300  # with the dequantized weights, half a step of w each
    options: Any = {"threshold": 300.0, "quantizer": quantizer, "outlier_weight": outlier_weight}
    ratio = np.abs(layer(side, x, w, **options) - exact(x, w)) / bounds.llm_int8_matmul_bound(x, w, **options)
    record_property("ratio: LLM.int8()", float(ratio.max()))
    assert np.all((ratio >= 0.99) & (ratio <= 1))


@given(exponents=st.tuples(st.integers(-60, 60), st.integers(-60, 60)), k=st.integers(1, 133_144))
def test_an_absmax_product_is_off_by_less_than_one_part_in_127_of_the_largest_there_can_be(exponents, k):
    x_scale, w_scale = (np.array([[2.0**e]], np.float32) for e in exponents)
    largest = k * (127.0 * x_scale) * (127.0 * w_scale)
    assert bounds.quantized_matmul_bound(x_scale, w_scale, k) <= largest / 127 * (1 + 2.0**-12) + bounds.UNDERFLOW


@given(seed=st.integers(0, 2**32 - 1), size=st.floats(10, 1e6))
def test_an_outlier_raises_the_bound_of_a_product_and_not_that_of_llm_int8(seed, size):
    rng = np.random.default_rng(seed)
    x, w = (rng.uniform(-1, 1, shape).astype(np.float32) for shape in ((3, 64), (5, 64)))
    with_one = x.copy()
    with_one[:, 7] = size
    without, decomposed = bounds.llm_int8_matmul_bound(x, w), bounds.llm_int8_matmul_bound(with_one, w)
    # One regular column fewer, and no more than roundings of what the outlier itself contributes.
    assert np.all(decomposed <= without + 8 * bounds.U * size)
    whole = bounds.llm_int8_matmul_bound(with_one, w, threshold=None)
    assert np.all(whole >= size * without * (1 - 4 * bounds.U))  # proportional to the scale, which was at most 1 / 127


@given(seed=st.integers(0, 2**32 - 1), regular=st.integers(0, 10), outlier=st.integers(1, 100))
def test_only_regular_columns_pay_and_outliers_add_no_more_than_roundings(seed, regular, outlier):
    rng = np.random.default_rng(seed)
    k = regular + outlier
    x, w = (rng.uniform(-1, 1, shape).astype(np.float32) for shape in ((3, k), (5, k)))
    x[:, regular:] = 10
    x_scale, w_scale = reference.absmax_quantize(x[:, :regular], -1).scale, reference.absmax_quantize(w, -1).scale
    roundings = 3 * (outlier + 2) * bounds.U * np.abs(x).sum(-1, keepdims=True, dtype=np.float64) + k * bounds.UNDERFLOW
    product = bounds.quantized_matmul_bound(x_scale, w_scale, regular)
    assert np.all(bounds.llm_int8_matmul_bound(x, w) <= product + roundings)


# The formulas of docs/bounds.md once more, an entry at a time and in fractions: a wrong constant may leave a bound a bound.

STEPS = {"absmax": 127, "zeropoint": 255}
RHO = {"absmax": Fraction(1, 2**14), "zeropoint": Fraction(1, 2**12)}
U, UNDERFLOW, ZERO_SLICE = Fraction(1, 2**24), Fraction(1, 2**126), Fraction(1, 2**100)
#: The functions round in float64, fewer than 32 times; nothing cancels.
RTOL = 32 * U64


def error_and_most(scale: float, quantizer: str) -> tuple[Fraction, Fraction]:
    """e and L s of a slice."""
    s = Fraction(float(scale))
    return (s * (Fraction(1, 2) + RHO[quantizer]), STEPS[quantizer] * s) if s else (ZERO_SLICE, ZERO_SLICE)


def product_in_fractions(x_scale: float, w_scale: float, k: int, quantizer: str) -> Fraction:
    (ex, mx), (ew, mw) = error_and_most(x_scale, quantizer), error_and_most(w_scale, quantizer)
    return k * (ex * mw + mx * ew + 4 * U * mx * mw) + UNDERFLOW


def llm_int8_in_fractions(x: NDArray, w: NDArray, quantizer: str, granularity: str, outlier_weight: str, bias: NDArray | None) -> NDArray:
    """Columns with an entry of 6 or more are the outliers."""
    quantize = getattr(reference, f"{quantizer}_quantize")
    large = (np.abs(x) >= 6).any(0)
    x_axis, w_axis = {"tensor": (None, None), "row": (-1, None), "vector": (-1, -1)}[granularity]
    x_scale = np.broadcast_to(quantize(np.where(large, np.float32(0), x), x_axis).scale, (len(x), 1))
    w_scale = np.broadcast_to(quantize(w, w_axis).scale, (len(w), 1))
    regular, outliers = int((~large).sum()), int(large.sum())
    gamma = 2 * outliers * U / (1 - 2 * outliers * U)
    bound = np.zeros((len(x), len(w)))
    for m, n in np.ndindex(*bound.shape):
        total = sum((abs(Fraction(float(entry))) for entry in x[m, large]), Fraction())
        (_, mx), (ew, mw) = error_and_most(x_scale[m, 0], quantizer), error_and_most(w_scale[n, 0], quantizer)
        outlier = total * ((ew if outlier_weight == "dequantized" else 0) + gamma * mw) + outliers * UNDERFLOW
        b = 0 if bias is None else abs(Fraction(float(bias[n])))
        sums = (3 * U + gamma) * regular * mx * mw + 3 * U * (total * mw + b)
        bound[m, n] = product_in_fractions(x_scale[m, 0], w_scale[n, 0], regular, quantizer) + outlier + sums
    return bound


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_the_bounds_of_a_slice_are_half_a_step_and_all_steps(quantizer):
    scale = np.array([[0.375], [0.0], [2.0**-108], [3.0]], np.float32)
    expected = np.array([[float(v) for v in error_and_most(s, quantizer)] for s in scale[:, 0]])
    np.testing.assert_array_equal(bounds.round_trip_bound(scale, quantizer), expected[:, :1])
    np.testing.assert_array_equal(bounds.magnitude_bound(scale, quantizer), expected[:, 1:])


@pytest.mark.parametrize("k", [0, 1, 20])
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_the_bound_of_a_product_is_its_formula(quantizer, k):
    x_scale, w_scale = np.array([[0.375], [0.0], [2.0**-60]], np.float32), np.array([[3.0], [2.0**-66]], np.float32)
    expected = [[float(product_in_fractions(x, w, k, quantizer)) for w in w_scale[:, 0]] for x in x_scale[:, 0]]
    np.testing.assert_allclose(bounds.quantized_matmul_bound(x_scale, w_scale, k, quantizer), expected, rtol=RTOL)


@pytest.mark.parametrize("magnitude", [1.0, 2.0**-70, 0.0])  # the last two: down to where underflow counts
@pytest.mark.parametrize("outliers", [0, 1, 3, 9])  # of 9 columns
@pytest.mark.parametrize("outlier_weight", OUTLIER_WEIGHTS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_the_bound_of_llm_int8_is_its_formula(quantizer, granularity, outlier_weight, outliers, magnitude):
    rng = np.random.default_rng(outliers)
    x, w, bias = (rng.uniform(-1, 1, shape).astype(np.float32) for shape in ((3, 9), (5, 9), 5))
    x *= 5.5 * magnitude
    x[0, -1] = -5.5 * magnitude
    x[1, :outliers] = np.arange(6, 6 + outliers) * (-1) ** np.arange(outliers)
    w *= magnitude
    options: Any = {"quantizer": quantizer, "granularity": granularity, "outlier_weight": outlier_weight}
    for b in (None, bias):
        expected = llm_int8_in_fractions(x, w, **options, bias=b)
        np.testing.assert_allclose(bounds.llm_int8_matmul_bound(x, w, **options, bias=b), expected, rtol=RTOL)


def test_a_slice_without_a_scale_has_no_bound_and_a_zero_slice_one_below_any_number_that_counts():
    scale = np.array([[np.nan], [0.0]], np.float32)
    np.testing.assert_array_equal(bounds.round_trip_bound(scale), [[np.nan], [2.0**-100]])
    np.testing.assert_array_equal(bounds.magnitude_bound(scale), [[np.nan], [2.0**-100]])
    assert np.isnan(bounds.quantized_matmul_bound(scale, np.ones((1, 1), np.float32), 3)[0])


def test_a_bound_grows_with_k_and_is_rounding_alone_without_a_column():
    one = np.ones((1, 1), np.float32)
    assert bounds.quantized_matmul_bound(one, one, 0) == bounds.UNDERFLOW
    np.testing.assert_allclose(bounds.quantized_matmul_bound(one, one, 20), 20 * bounds.quantized_matmul_bound(one, one, 1), rtol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quantizer": "min-max"}, "quantizer must be one of"),
        ({"granularity": "column"}, "granularity must be one of"),
        ({"outlier_weight": "int8"}, "outlier_weight must be one of"),
        ({"threshold": -1.0}, "threshold must be 0 or more"),
        ({"w": np.ones((4, 1), np.float32)}, "x and w must have the same last dimension K"),
    ],
)
def test_a_bound_names_the_argument_that_it_cannot_use(arguments, message):
    x, w = np.ones((2, 3), np.float32), np.ones((4, 3), np.float32)
    with pytest.raises(ValueError, match=message):
        bounds.llm_int8_matmul_bound(**({"x": x, "w": w} | arguments))
    if "quantizer" in arguments:
        for function in (bounds.round_trip_bound, bounds.magnitude_bound):
            with pytest.raises(ValueError, match=message):
                function(np.ones((1, 1), np.float32), **arguments)
