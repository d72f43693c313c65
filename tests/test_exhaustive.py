"""Where the domain is finite, all of it: every 16-bit pattern, every pair of codes, on all three implementations."""

import numpy as np
import pytest
import torch

from fast.weights import absmax_scale
from tests.comparison import ENGINES, QUANTIZERS, REFERENCE, SIDES, assert_same

PATTERNS = {dtype: torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype) for dtype in (torch.float16, torch.bfloat16)}
#: The largest magnitudes, and thus the scales, among which each pattern is quantized: the ends of each dtype's range, a subnormal number,
#: numbers that are no powers of two, one whose reciprocal is subnormal (in bfloat16), and the last zero slice and the first that is none.
EXTREMES = {
    torch.float16: (2.0**-24, 3 * 2.0**-24, 2.0**-14, 0.1, 1.0, 5.99609375, 127.0, 255.0, 1000.5, 65504.0),
    torch.bfloat16: (
        2.0**-101,
        2.0**-100,
        1.5 * 2.0**-100,
        0.1,
        1.0,
        5.96875,
        127.0,
        255.0,
        2.0**126,
        1.75 * 2.0**126,
        2.0**127,
        3.3895314e38,
    ),
}
COLUMNS = 512


@pytest.fixture(autouse=True)
def large_blocks(blocks):
    blocks("rows", lambda k: {"rows": 16, "block_k": 512} if k > 1 else {"rows": 8192, "block_k": 1})
    blocks("scan", {"block_m": 2, "block_k": 8192, "splits": 1})
    blocks("product", {"block_m": 256, "block_n": 256})


def quantize(side, quantizer, x, axis=-1):
    return getattr(side, f"{quantizer}_quantize")(x, axis)


def rows_of(x, extreme):
    """`x` in rows of COLUMNS, the last two columns holding the extreme and its negation (filled up with zeros)."""
    rows = torch.zeros(-(-len(x) // (COLUMNS - 2)), COLUMNS, dtype=x.dtype)
    flat = torch.zeros(rows.shape[0] * (COLUMNS - 2), dtype=x.dtype)
    flat[: len(x)] = x
    rows[:, :-2] = flat.reshape(-1, COLUMNS - 2)
    rows[:, -2], rows[:, -1] = extreme, -extreme
    return rows


@pytest.mark.parametrize("dtype", PATTERNS, ids=str)
def test_the_scale_of_a_kept_absmax_is_that_of_its_slice(dtype):
    x = PATTERNS[dtype].reshape(-1, 1)
    assert_same(absmax_scale(x.float().abs()), REFERENCE.absmax_quantize(x, -1).scale)


@pytest.mark.parametrize("side", ENGINES, ids=str)
@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("dtype", PATTERNS, ids=str)
def test_every_pattern_among_every_scale_has_the_same_code(side, dtype, quantizer, record_property):
    seen = 0
    for extreme in EXTREMES[dtype]:
        patterns = PATTERNS[dtype][PATTERNS[dtype].abs() <= extreme]  # larger ones would set the scale themselves
        x = rows_of(patterns, extreme)
        for actual, expected in zip(quantize(side, quantizer, x), quantize(REFERENCE, quantizer, x), strict=True):
            assert_same(actual, expected)
        seen = max(seen, len(patterns))
    assert seen == sum(PATTERNS[dtype].isfinite())
    record_property("bit patterns", seen)


@pytest.mark.parametrize("side", ENGINES, ids=str)
@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("dtype", PATTERNS, ids=str)
def test_every_pattern_alone_sets_the_same_scale(side, dtype, quantizer, record_property):
    x = PATTERNS[dtype][:, None]
    for actual, expected in zip(quantize(side, quantizer, x), quantize(REFERENCE, quantizer, x), strict=True):
        assert_same(actual, expected)
    record_property("bit patterns", x.numel())


@pytest.mark.parametrize("side", ENGINES, ids=str)
@pytest.mark.parametrize("dtype", PATTERNS, ids=str)
@pytest.mark.parametrize("threshold", [0.0, 2.0**-24, 1.0, 6.0, 65504.0, 65520.0, 3e38])
def test_every_pattern_is_or_is_not_an_outlier_on_both_sides(side, dtype, threshold, record_property):
    x = PATTERNS[dtype][None]
    outliers = side.outlier_columns(x, threshold)
    assert_same(outliers, REFERENCE.outlier_columns(x, threshold))
    assert_same(outliers, x[0].double().abs() >= np.float32(threshold).item())
    record_property("bit patterns", x.numel())


@pytest.mark.parametrize("side", SIDES, ids=str)
def test_every_pair_of_codes_has_its_product(side):
    codes = torch.arange(-128, 128, dtype=torch.int8)[:, None]
    assert_same(side.int8_matmul(codes, codes), torch.outer(*[torch.arange(-128, 128, dtype=torch.int32)] * 2))


@pytest.mark.parametrize("side", SIDES, ids=str)
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_every_code_comes_back_from_its_number(side, quantizer):
    # Scale 1 and zero point 0 or 100: what is dequantized is an integer, and its own code.
    least = -127 if quantizer == "absmax" else -128
    codes = torch.arange(least, 128, dtype=torch.int8)[None]
    parameters = (torch.ones(1, 1),) if quantizer == "absmax" else (torch.ones(1, 1), torch.full((1, 1), 100, dtype=torch.int32))
    back = getattr(side, f"{quantizer}_dequantize")(codes, *parameters)
    assert_same(back, codes.float() - (0 if quantizer == "absmax" else 100))
    assert_same(quantize(side, quantizer, back).codes, codes)
