"""The Triton kernels against the NumPy reference, under Triton's interpreter: the same computation, said twice.

Every buffer that a launcher allocates is poisoned first, so an entry that no program writes is seen. Shapes are small, and the
interpreter's blocks smaller: several programs, ragged edges.
"""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

import fast
import reference
from fast import kernels
from fast.kernels import configurations, decode, operands, outliers, product, quantization
from fast.weights import QuantizedWeight
from tests.comparison import DEVICE, DTYPES, FLOAT32_MAX, GRANULARITIES, QUANTIZERS, ROUTES, array, assert_product, assert_same, poisoned


@pytest.fixture(autouse=True)
def poisoned_buffers() -> Iterator[None]:
    with poisoned():
        yield


def normal(shape: tuple[int, ...], dtype: torch.dtype = torch.float16, seed: int = 0, outliers: tuple[int, ...] = ()) -> torch.Tensor:
    """Standard normal entries, and in each column of `outliers` one entry of about 20."""
    generator = np.random.default_rng([seed, *shape])
    x = generator.standard_normal(shape, dtype=np.float32).clip(-5, 5)
    for column in outliers:
        x[generator.integers(shape[0]), column] = 20 + column % 3
    return torch.from_numpy(x).to(dtype).to(DEVICE)


def assert_quantized_like_reference(x: torch.Tensor, per_row: bool, quantizer: str) -> None:
    axis = -1 if per_row else None
    codes, scale, zero_point = kernels.quantize(x, per_row, quantizer)
    if quantizer == "absmax":
        expected: Any = reference.absmax_quantize(array(x), axis)
    else:
        expected = reference.zeropoint_quantize(array(x), axis)
        assert zero_point is not None
        assert_same(zero_point, expected.zero_point)
    assert_same(codes, expected.codes)
    assert_same(scale, expected.scale)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("per_row", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (5, 33), (7, 64), (6, 100)])  # held in registers up to 64 columns, longer in blocks
def test_codes_scales_and_zero_points_equal_the_reference(shape, dtype, per_row, quantizer):
    assert_quantized_like_reference(normal(shape, dtype), per_row, quantizer)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("per_row", [True, False])
@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_empty_inputs_quantize_to_empty_codes_and_zero_scales(shape, per_row, quantizer):
    assert_quantized_like_reference(normal(shape), per_row, quantizer)


EDGES = {
    "zeros": [0.0, -0.0, 0.0],
    "below a zero slice": [2.0**-101, -(2.0**-110), 1e-45],
    "smallest slice that counts": [2.0**-100, 2.0**-101, 0.0],
    "largest": [FLOAT32_MAX, -1.0, 1.0],
    "range overflows": [FLOAT32_MAX, -FLOAT32_MAX, 1.0],
    "nan": [float("nan"), 1.0, 2.0],
    "negative nan": [-float("nan"), 1.0, 2.0],
    "infinity": [float("inf"), 1.0, 2.0],
    "minus infinity": [-float("inf"), 1.0, 2.0],
    "both infinities": [float("inf"), -float("inf"), 0.0],
    "ties to even": [127.0, 0.5, -1.5],
    "one sign": [-1.0, -2.0, -3.0],
    "the other sign": [1.0, 2.0, 3.0],
}


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # NumPy's, which adds for the interpreter
@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("per_row", [True, False])
@pytest.mark.parametrize("edge", EDGES)
def test_edges_quantize_as_the_contract_says(edge, per_row, quantizer):
    x = normal((3, 40), torch.float32)
    x[1] = 0.0
    x[1, 35:38] = torch.tensor(EDGES[edge])
    assert_quantized_like_reference(x, per_row, quantizer)


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 7, 33), (40, 70, 100), (3, 4, 0), (0, 4, 5), (3, 0, 5)])
@pytest.mark.parametrize("tma", [False, True])
def test_int8_products_are_exact(shape, tma, monkeypatch):
    m, n, k = shape
    if tma:  # blocks by descriptor, which zero what lies outside
        row = configurations.INTERPRETER[0].configuration._replace(tma=True)
        monkeypatch.setattr(product, "product_configuration", lambda *_, **__: row)
    generator = np.random.default_rng(k)
    a, b = (torch.from_numpy(generator.integers(-128, 128, size, dtype=np.int8)) for size in ((m, k), (n, k)))
    width = -k % 16  # rows at multiples of 16 bytes, as a descriptor needs them
    a, b = (torch.nn.functional.pad(t.to(DEVICE), (0, width))[:, :k] for t in (a, b))
    assert_same(kernels.int8_matmul(a, b), reference.int8_matmul(array(a), array(b)))


def test_int8_products_take_any_strides():
    a, b = (torch.randint(-128, 128, shape, dtype=torch.int8, device=DEVICE) for shape in ((50, 35), (40, 100)))
    a, b = a.T, b[:, ::2]
    assert_same(kernels.int8_matmul(a, b), reference.int8_matmul(array(a), array(b)))


def test_the_copy_engine_reads_rows_that_begin_at_multiples_of_16_bytes():
    codes = torch.zeros(4, 64, dtype=torch.int8, device=DEVICE)
    assert operands.aligned(codes)
    assert operands.aligned(codes[1:, 16:48])
    assert not operands.aligned(codes[:, 1:])
    assert not operands.aligned(codes[:, ::2])
    assert not operands.aligned(codes.T)
    assert not operands.aligned(torch.zeros(4, 56, dtype=torch.int8, device=DEVICE))


@pytest.mark.parametrize(
    ("x", "float_weight", "has"),
    [
        (torch.float16, None, True), (torch.bfloat16, None, True), (torch.float32, None, False),
        (torch.float16, torch.float16, True), (torch.bfloat16, torch.bfloat16, True), (torch.float16, torch.bfloat16, False),
        (torch.bfloat16, torch.float32, False), (torch.float32, torch.float32, False), (torch.float32, torch.float16, False),
    ],
)  # fmt: skip
def test_outliers_of_16_bits_have_matrix_instructions(x, float_weight, has):
    weight = None if float_weight is None else torch.zeros(1, 1, dtype=float_weight)
    assert operands.sixteen_bits(torch.zeros(1, 1, dtype=x), weight) == has


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threshold", [0.0, 2.5, 6.0])
@pytest.mark.parametrize("shape", [(1, 1), (70, 45), (0, 4), (4, 0)])
def test_outlier_columns_equal_the_reference(shape, threshold, dtype):
    x = normal(shape, dtype, outliers=(shape[1] - 1,) if min(shape) else ())
    assert_same(kernels.outlier_columns(x, threshold), reference.outlier_columns(array(x), threshold))


@pytest.mark.parametrize("threshold", [0.0, 6.0])
def test_infinity_is_an_outlier_and_nan_is_not(threshold):
    x = torch.tensor([[float("inf"), float("nan"), 6.0, 5.9990234, -6.0, -float("inf"), float("nan")]] * 2 + [[0.0] * 7])
    x[:, 6] = float("nan")  # a column of nothing else
    assert_same(kernels.outlier_columns(x.to(DEVICE), threshold), reference.outlier_columns(array(x), threshold))


class Layer:
    """One layer on both sides, from the same numbers."""

    def __init__(
        self, w: torch.Tensor, bias: torch.Tensor | None, threshold: float | None, outlier_weight: str, quantizer: str, granularity: str
    ):
        self.threshold, self.per_row = threshold, granularity != "tensor"
        self.bias = None if bias is None else bias.cpu()
        self.fast = fast.Int8Linear.from_float(w, bias, threshold, outlier_weight, quantizer, granularity)
        self.reference = reference.Int8Linear.from_float(
            array(w), None if bias is None else array(bias.float()), threshold, outlier_weight, quantizer, granularity
        )
        self.weight = QuantizedWeight.of_layer(self.fast)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return kernels.linear(x, self.weight, self.fast.bias, self.threshold, self.per_row)

    def expected(self, x: torch.Tensor) -> torch.Tensor:
        """The reference's float32 result."""
        return torch.from_numpy(self.reference(array(x)))

    def check(self, x: torch.Tensor) -> None:
        """Equal without decomposition, else within the bound of the outlier part."""
        y = self.expected(x)
        if self.threshold is None:
            assert_same(self(x), y.to(x.dtype))
        else:
            outliers = torch.from_numpy(reference.outlier_columns(array(x), self.threshold))
            assert_product(self(x).cpu(), y, x.cpu(), self.outlier_weight(), outliers, self.bias)

    def outlier_weight(self) -> torch.Tensor:
        if self.reference.float_weight is not None:
            return torch.from_numpy(self.reference.float_weight)
        zero = 0 if self.weight.zero_point is None else self.weight.zero_point
        return ((self.weight.codes - zero) * self.weight.scale).cpu()


@pytest.mark.parametrize("m", ROUTES.values(), ids=ROUTES)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_without_outliers_every_bit_is_the_reference_s(m, granularity, quantizer, dtype):
    layer = Layer(normal((41, 70), dtype), normal((1, 41), dtype)[0], None, "dequantized", quantizer, granularity)
    layer.check(normal((m, 70), dtype, seed=1))


#: Of X, of the outlier weight (None: its codes); the quantizer; K; whether W's rows begin at multiples of 16 bytes; whether the product
#: needs a row of the GENERAL table.
GENERAL = {
    "16 bits": (torch.float16, None, "absmax", 64, True, False),
    "16-bit weight": (torch.bfloat16, torch.bfloat16, "zeropoint", 64, True, False),
    "float32": (torch.float32, None, "absmax", 64, True, True),
    "float32 weight": (torch.float16, torch.float32, "absmax", 64, True, True),
    "unaligned W": (torch.float16, None, "absmax", 64, False, True),
    "unaligned codes": (torch.float16, None, "absmax", 60, True, True),
    "64-bit correction": (torch.float16, None, "zeropoint", product.WIDE_FROM - product.WIDE_FROM % -64, True, True),
    "a long product without correction": (torch.float16, None, "absmax", product.WIDE_FROM - product.WIDE_FROM % -64, True, False),
}


#: For long products: the interpreter pays by the operation.
LONG_BLOCKS = configurations.Product(block_m=16, block_n=16, block_k=4096, warps=4, stages=2, group_m=2)


@pytest.mark.parametrize("case", GENERAL)
def test_operands_outside_the_tuned_tables_use_the_general_configuration(case, monkeypatch):
    x_dtype, w_dtype, quantizer, k, aligned, general = GENERAL[case]
    chosen: list[bool] = []

    def row(*arguments: Any) -> configurations.Product:
        chosen.append(arguments[-1])
        return LONG_BLOCKS

    monkeypatch.setattr(product, "product_configuration", row)
    codes = torch.ones(2, k, dtype=torch.int8, device=DEVICE)
    w = torch.ones(3, k + 64, dtype=torch.int8, device=DEVICE)[:, 0 if aligned else 1 :][:, :k]
    ones, zeros = torch.ones(3, 1, device=DEVICE), torch.zeros(3, 1, dtype=torch.int32, device=DEVICE) if quantizer == "zeropoint" else None
    weight = QuantizedWeight(w, None, ones, zeros, None if w_dtype is None else w.to(w_dtype))
    zero = (None, None) if zeros is None else (zeros[:2], codes.sum(1, dtype=torch.int32))
    y = product.quantized_product(codes.to(x_dtype), operands.Quantized(codes, ones[:2], *zero), weight)
    assert y.dtype == x_dtype
    assert (y.float() == torch.tensor(float(k)).to(x_dtype).float()).all()
    assert chosen == [general]


@pytest.mark.parametrize("m", ROUTES.values(), ids=ROUTES)
def test_results_are_rounded_to_bfloat16_with_ties_to_even(m):
    # All scales are 1 and the sums integers; from 256 on bfloat16 has the even ones only, so that an odd one lies in the middle.
    x = torch.tensor([[127.0, 1.0, 0.0]], dtype=torch.bfloat16, device=DEVICE).repeat(m, 1)
    w = torch.tensor([[2.0, third, 127.0] for third in (1, 3, 5, 7, 9)], dtype=torch.bfloat16, device=DEVICE)  # 255, 257, ..., 263
    layer = Layer(
        torch.cat([w, w * torch.tensor([-1.0, -1.0, 1.0], device=DEVICE).bfloat16()]), None, None, "dequantized", "absmax", "vector"
    )
    even = [255.0, 256.0, 260.0, 260.0, 264.0]
    assert layer(x).tolist() == [[*even, *(-y for y in even)]] * m


@pytest.mark.parametrize("m", ROUTES.values(), ids=ROUTES)
@pytest.mark.parametrize("outlier_weight", ["dequantized", "float"])
@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threshold", [0.0, 6.0])
def test_with_outliers_the_result_is_within_the_bound(m, outlier_weight, quantizer, dtype, threshold):
    layer = Layer(normal((41, 70), dtype), normal((1, 41), dtype)[0], threshold, outlier_weight, quantizer, "vector")
    layer.check(normal((m, 70), dtype, seed=1, outliers=(0, 31, 32, 69)))


def gather_with(monkeypatch: pytest.MonkeyPatch, configuration: configurations.Gather | None) -> None:
    monkeypatch.setattr(quantization, "gather_configuration", lambda *_: configuration)


def with_columns_of_outliers(shape: tuple[int, int], columns: tuple[int, ...]) -> torch.Tensor:
    x = normal(shape, seed=1)
    x[shape[0] - 1, list(columns)] = 20.0
    return x


GATHERED = (0, 1, 7, 30, 31, 32, 68, 69)


@pytest.mark.parametrize("source", ["codes", "floats", "strided codes"])
@pytest.mark.parametrize("capacity", [4, 8, 16])
@pytest.mark.parametrize("columns", [(), (69,), GATHERED[:4], GATHERED[:5], GATHERED], ids=len)
def test_gathered_columns_are_the_first_outlier_columns_of_both_matrices_in_their_order(monkeypatch, source, capacity, columns):
    gather_with(monkeypatch, configurations.Gather(rows=8, block_o=4, columns=capacity))
    x = with_columns_of_outliers((21, 70), columns)
    w = normal((13, 70)) if source == "floats" else torch.randint(-128, 128, (13, 70), dtype=torch.int8, device=DEVICE)
    w = w.T.contiguous().T if source == "strided codes" else w
    found = quantization.quantize_regular(x, 6.0, outlier_weight=w).outliers
    assert found is not None
    assert found.columns[70] == len(columns)
    assert found.columns[: len(columns)].tolist() == list(columns)
    whole = -(-min(len(columns), capacity) // 4) * 4  # blocks of 4, filled up with zeros
    for side, of in ((found.x, x), (found.w, w)):
        assert side is not None
        expected = torch.zeros(of.shape[0], whole, dtype=of.dtype)
        expected[:, : min(len(columns), capacity)] = of[:, list(columns[:capacity])].cpu()
        assert_same(side[:, :whole], expected)


def test_every_program_that_gathers_has_a_list_of_its_own(monkeypatch):
    # One list for several programs would give the same result here, where they run one after the other.
    lists: list[torch.Tensor] = []
    empty = torch.empty

    def noted(*shape: Any, **options: Any) -> torch.Tensor:
        buffer = empty(*shape, **options)
        if buffer.shape == (5, 8):  # 3 programs for 21 rows of X, 2 for 13 of W
            lists.append(buffer)
        return buffer

    gather_with(monkeypatch, configurations.Gather(rows=8, block_o=4, columns=8))
    x, w = with_columns_of_outliers((21, 70), GATHERED), torch.ones(13, 70, dtype=torch.int8, device=DEVICE)
    monkeypatch.setattr(torch, "empty", noted)
    quantization.quantize_regular(x, 6.0, outlier_weight=w)
    (found,) = lists
    assert found.tolist() == [list(GATHERED)] * 5


@pytest.mark.parametrize("outlier_weight", ["dequantized", "float"])
@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gathering_changes_no_bit(monkeypatch, dtype, quantizer, outlier_weight):
    layer = Layer(normal((41, 70), dtype), normal((1, 41), dtype)[0], 6.0, outlier_weight, quantizer, "vector")
    x = with_columns_of_outliers((37, 70), tuple(range(0, 70, 3))).to(dtype)  # 24 columns
    gather_with(monkeypatch, None)
    in_place = layer(x)
    for rows, capacity in ((32, 32), (8, 16)):  # all of them, and some
        gather_with(monkeypatch, configurations.Gather(rows=rows, block_o=capacity, columns=capacity))
        assert_same(layer(x), in_place)


def test_float32_outliers_are_not_gathered(monkeypatch):
    monkeypatch.setattr(quantization, "gather", None)  # no kernel could be built with it
    Layer(normal((33, 70)), None, 6.0, "dequantized", "absmax", "vector").check(normal((37, 70), torch.float32, seed=1, outliers=(3,)))


@pytest.mark.parametrize("m", ROUTES.values(), ids=ROUTES)
@pytest.mark.parametrize("granularity", ["tensor", "row"])
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_an_outlier_sets_no_scale_whatever_the_granularity(m, granularity, quantizer):
    layer = Layer(normal((33, 70)), None, 6.0, "dequantized", quantizer, granularity)
    layer.check(normal((m, 70), seed=1, outliers=(3, 69)))


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_both_routes_give_the_same_bits_without_outliers(quantizer):
    layer = Layer(normal((41, 70)), normal((1, 41))[0], None, "dequantized", quantizer, "vector")
    x = normal((9, 70), seed=1)
    tiled = kernels.tiled(x, layer.weight, layer.fast.bias, None, True)
    assert_same(decode.decode_linear(x, layer.weight, layer.fast.bias, None, True), tiled)


@pytest.mark.parametrize("m", ROUTES.values(), ids=ROUTES)
@pytest.mark.parametrize("k", [1, 31, 33, 65])
def test_an_outlier_in_the_last_ragged_column_is_found(m, k):
    layer = Layer(normal((33, k)), None, 6.0, "dequantized", "absmax", "vector")
    layer.check(normal((m, k), seed=1, outliers=(k - 1,)))


@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0, 4), (3, 4, 0), (40, 4, 0), (1, 1, 1), (17, 1, 5)])
@pytest.mark.parametrize("threshold", [None, 0.0, 6.0])
def test_empty_and_tiny_shapes(shape, threshold):
    m, n, k = shape
    layer = Layer(normal((n, k)), normal((1, n))[0], threshold, "dequantized", "zeropoint", "vector")
    layer.check(normal((m, k), seed=1))


LAYOUTS = {
    "transposed": lambda x: x.T.contiguous().T,
    "every other column": lambda x: x.repeat_interleave(2, dim=1)[:, ::2],
    "unaligned": lambda x: torch.cat([x[:, :3], x], dim=1)[:, 3:],
    "one row expanded": lambda x: x[:1].expand(x.shape[0], -1),
}


@pytest.mark.parametrize("m", ROUTES.values(), ids=ROUTES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides_of_x(m, layout):
    layer = Layer(normal((33, 48)), None, 6.0, "dequantized", "absmax", "vector")
    layer.check(LAYOUTS[layout](normal((m, 48), seed=1, outliers=(1,))))


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # NumPy's, which multiplies for the interpreter
@pytest.mark.parametrize("m", [5, 37])
@pytest.mark.parametrize("outlier_weight", ["dequantized", "float"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_stays_in_its_row_and_column(m, outlier_weight, dtype):
    w = normal((33, 70), dtype)
    w[5, 40] = float("nan")  # column 5 of Y
    x = normal((m, 70), dtype, seed=1, outliers=(2, 69))
    x[0, 7] = float("nan")  # a NaN among the regular columns spoils its row through the scale
    x[1, 69] = float("nan")  # one in an outlier column, through the outlier product
    x[2, 2] = float("inf")
    layer = Layer(w, None, 6.0, outlier_weight, "absmax", "vector")
    actual, expected = layer(x).float().cpu().numpy(), layer.expected(x).to(dtype).float().numpy()
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected))
    np.testing.assert_array_equal(np.isinf(actual), np.isinf(expected))
    assert np.isnan(actual[:2]).all()
    assert np.isnan(actual[:, 5]).all()
    assert np.isfinite(np.delete(actual[3:], 5, axis=1)).all()


@pytest.mark.parametrize("m", ROUTES.values(), ids=ROUTES)
def test_a_large_outlier_times_a_small_weight_does_not_overflow(m):
    w = normal((20, 33), torch.bfloat16) * 2.0**-20
    x = normal((m, 33), torch.bfloat16, seed=1)
    x[m // 2, 32] = 2.0**127
    Layer(w, None, 6.0, "dequantized", "absmax", "vector").check(x)


def test_the_correction_has_64_bits_from_the_first_k_on_that_needs_them():
    assert (product.WIDE_FROM - 1) * 255**2 <= 2**31 - 1 < product.WIDE_FROM * 255**2


@pytest.mark.parametrize("route", ["decode", "tiled"])
def test_the_correction_of_a_long_zeropoint_product_is_exact(route):
    # x in [0, 1] and w in [-1, 0]: zero points -128 and 127, and K * 255 * 255 beyond int32.
    k = product.WIDE_FROM + 1000
    x, w = normal((2, k), torch.float32).abs().half(), -normal((2, k), torch.float32, seed=1).abs().half()
    x[:], w[:] = x.clip(0.9, 1.0), w.clip(-1.0, -0.9)
    layer = Layer(w, None, None, "dequantized", "zeropoint", "vector")
    if route == "tiled":
        rows = configurations.Rows(rows=2, block_k=65536, repeat=1, warps=4)
        quantized = quantization.quantize_regular(x, None, zeropoint=True, code_sums=True, config=rows)
        actual = product.quantized_product(x, quantized, layer.weight, config=LONG_BLOCKS)
    else:
        long = configurations.Decode(tile_m=16, block_n=16, block_k=4096, scan=65536, warps=4, stages=2)
        actual = decode.decode_linear(x, layer.weight, None, None, True, long)
    assert_same(actual, layer.expected(x).to(x.dtype))


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("bad", ["nan", "inf"])
def test_a_single_row_that_is_not_finite_gives_nothing_but_nan_or_infinity(bad):
    x = normal((1, 70), seed=1)
    x[0, 40] = float(bad)
    layer = Layer(normal((33, 70)), None, 6.0, "dequantized", "absmax", "vector")
    layer.check(x)
    assert not layer(x).isfinite().any()


class Counted:
    """A kernel that counts its launches."""

    def __init__(self, kernel: Any, launches: list[str]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: Any) -> Any:
        self.launches.append(self.kernel.__name__)
        return self.kernel[grid]


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_layer_is_three_launches_and_one_for_few_rows(monkeypatch, dtype, quantizer, granularity):
    launches: list[str] = []
    places = ((outliers, "scan_columns"), (quantization, "quantize_rows"), (product, "product_kernel"), (decode, "decode_kernel"))
    for module, name in places:
        monkeypatch.setattr(module, name, Counted(getattr(module, name), launches))

    def launched(m: int, threshold: float | None) -> list[str]:
        layer = Layer(normal((3, 7), dtype), None, threshold, "dequantized", quantizer, granularity)
        launches.clear()
        layer(normal((m, 7), dtype))
        return list(launches)

    assert launched(configurations.DECODE_ROWS + 1, 6.0) == ["scan_columns", "quantize_rows", "product_kernel"]
    scans = ["scan_columns"] if granularity == "tensor" else []  # for the extremes
    assert launched(configurations.DECODE_ROWS + 1, None) == [*scans, "quantize_rows", "product_kernel"]
    assert launched(configurations.DECODE_ROWS, 6.0) == launched(1, None) == ["decode_kernel"]


def far_apart(x: torch.Tensor, stride: tuple[int, int]) -> torch.Tensor:
    """`x` with these strides: memory that nobody touches is not there, so a tensor may reach as far as an address does."""
    reach = sum((n - 1) * s for n, s in zip(x.shape, stride, strict=True)) + 1
    there = torch.from_numpy(np.empty(reach * x.element_size(), np.int8)).view(x.dtype) if x.device.type == "cpu" else x.new_empty(reach)
    return there.as_strided(x.shape, stride).copy_(x)


FAR = {"rows": (2**30 + 1, 1), "columns": (1, 2**31 // 31 + 1)}  # with 3 rows, or 32 columns of one block, more than 2**31 entries apart


#: The emulator copies what a tensor spans.
copied = pytest.mark.skipif("EMULATE" in os.environ, reason="tensors that span more memory than there is")


@copied
@pytest.mark.parametrize("m", [3, 17, 37])
@pytest.mark.parametrize("which", FAR)
def test_offsets_beyond_32_bits(m, which):
    stride = (2**31 // (m - 1) + 1, 1) if which == "rows" else FAR["columns"]
    layer = Layer(normal((3, 33)), None, 6.0, "dequantized", "absmax", "vector")
    layer.weight = layer.weight._replace(codes=far_apart(layer.weight.codes, FAR[which]))
    layer.check(far_apart(normal((m, 33), seed=1, outliers=(32,)), stride))


@copied
@pytest.mark.parametrize("which", FAR)
def test_offsets_beyond_32_bits_in_an_int8_product(which):
    a, b = (torch.randint(-128, 128, (3, 33), dtype=torch.int8) for _ in range(2))
    far = kernels.int8_matmul(far_apart(a.to(DEVICE), FAR[which]), far_apart(b.to(DEVICE), FAR[which]))
    assert_same(far, reference.int8_matmul(array(a), array(b)))
