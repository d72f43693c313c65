"""What the compiled side is held against the reference with: for an architecture each row of each configuration table, and each flag.

Shapes are small and reach everything: more than one tile, ragged edges in M, N and K, outlier columns that make the loop over them run
three times and that fall on every place of a layout. A row is chosen by hand where its shapes would be large: which shapes choose it
is tested elsewhere.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch

import reference
from fast import kernels
from fast.kernels import configurations, decode, operands, product, quantization
from tests.comparison import array, assert_same
from tests.expert_checks import check_decode, check_sorted, weights
from tests.test_kernels import Layer

ARCHITECTURES = ("sm_80", "sm_89", "sm_90", "sm_100")
HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32
#: 23 has no factor in common with a layout, so the columns fall on all places of a block.
MANY = tuple(range(0, 912, 23))

Case = tuple[str, Callable[[], None]]


def normal(shape: tuple[int, int], dtype: torch.dtype, seed: int = 0, outliers: tuple[int, ...] = ()) -> torch.Tensor:
    """Standard normal entries, and in each column of `outliers` one entry of about 20."""
    generator = np.random.default_rng([seed, *shape])
    x = generator.standard_normal(shape, dtype=np.float32).clip(-5, 5)
    for column in outliers:
        x[generator.integers(shape[0]), column] = 20 + column % 3
    return torch.from_numpy(x).to(dtype)


def weight(n: int, k: int, dtype: torch.dtype) -> torch.Tensor:
    """Standard normal entries; one row is zero, whose scale is."""
    w = normal((n, k), dtype)
    w[2] = 0
    return w


def with_special_rows(x: torch.Tensor) -> torch.Tensor:
    """`x` with rows of zeros, with an infinity, with a NaN, of the smallest numbers, and negative ones alone; it has six rows or more."""
    tiny = torch.finfo(x.dtype).smallest_normal
    x[0], x[3], x[4] = 0, tiny, -x[4].abs()
    x[1, -1], x[2, -2] = torch.inf, torch.nan
    return x


def special_layer(m: int, n: int, k: int, dtype: torch.dtype, quantizer: str) -> None:
    made = Layer(weight(n, k, dtype), normal((1, n), dtype)[0], None, "dequantized", quantizer, "vector")
    made.check(with_special_rows(normal((m, k), dtype, seed=1)))


def scan(m: int, k: int, dtype: torch.dtype, outliers: tuple[int, ...]) -> None:
    x = normal((m, k), dtype, outliers=outliers)
    # Each row is the only one with an outlier in some column: no row may be left out.
    for row in range(0, m, -(-m // k)):
        x[row, row % k] = -20.0
    assert_same(kernels.outlier_columns(x, 6.0), reference.outlier_columns(array(x), 6.0))


def quantize(m: int, k: int, dtype: torch.dtype, per_row: bool, quantizer: str, special: bool = False) -> None:
    x = normal((m, k), dtype)
    if special:
        x = with_special_rows(x)
    codes, scale, zero_point = kernels.quantize(x, per_row, quantizer)
    expected = getattr(reference, f"{quantizer}_quantize")(array(x), -1 if per_row else None)
    assert_same(codes, expected.codes)
    assert_same(scale, expected.scale)
    if zero_point is not None:
        assert_same(zero_point, expected.zero_point)


def one_extreme_after_another(m: int, k: int) -> None:
    """One scale for all of X, whose extremes lie in other rows and columns each time: none of either may be left out."""
    for turn in range(4):
        x = normal((m, k), SINGLE)
        x[(17 * turn + 5) % m, (75 * turn + turn) % k], x[(17 * turn + 40) % m, (75 * turn + 37) % k] = 6.0, -7.0
        codes, scale, zero_point = kernels.quantize(x, False, "zeropoint")
        expected = reference.zeropoint_quantize(array(x), None)
        for actual, said in zip((codes, scale, zero_point), expected, strict=True):
            assert_same(actual, said)


def matmul(m: int, n: int, k: int) -> None:
    generator = np.random.default_rng(k)
    a, b = (torch.from_numpy(generator.integers(-128, 128, shape, dtype=np.int8)) for shape in ((m, k), (n, k)))
    assert_same(kernels.int8_matmul(a, b), reference.int8_matmul(array(a), array(b)))


def layer(
    m: int, n: int, k: int, dtype: torch.dtype, threshold: float | None, policy: str, quantizer: str, granularity: str,
    outliers: tuple[int, ...] = (),
) -> None:  # fmt: skip
    made = Layer(weight(n, k, dtype), normal((1, n), dtype)[0], threshold, policy, quantizer, granularity)
    made.check(normal((m, k), dtype, seed=1, outliers=outliers))


def with_row(kind: str, row: Any, call: Callable[[], None]) -> Callable[[], None]:
    """`call` with this row of a table, whatever the shapes. kind: "product", "decode", "rows" or "gather"."""
    module = {"product": product, "decode": decode, "rows": quantization, "gather": quantization}[kind]

    def run() -> None:
        with mock.patch.object(module, f"{kind}_configuration", return_value=row):
            call()

    return run


def small_gather(call: Callable[[], None]) -> Callable[[], None]:
    return with_row("gather", configurations.Gather(64, 32, 32), call)


def wide(call: Callable[[], None]) -> Callable[[], None]:
    """`call` with corrections in 64 bits, which long K need."""

    def run() -> None:
        with ExitStack() as patches:
            for module in (product, decode):
                patches.enter_context(mock.patch.object(module, "WIDE_FROM", 1))
            call()

    return run


class Seen(Layer):
    """A layer that keeps its last result."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.y = super().__call__(x)
        return self.y


def in_gluon(
    row: configurations.Product, m: int, n: int, k: int, dtype: torch.dtype, threshold: float | None, policy: str, quantizer: str,
    granularity: str, outliers: tuple[int, ...] = (), bias: bool = True,
) -> None:  # fmt: skip
    """A layer whose product is computed by the kernel in Gluon: as the reference says, and with the bits of `product_kernel`."""
    made = Seen(weight(n, k, dtype), normal((1, n), dtype)[0] if bias else None, threshold, policy, quantizer, granularity)
    x = normal((m, k), dtype, seed=1, outliers=outliers)
    for config, compute in ((row, made), (row._replace(gluon=True), made.check)):
        plain = None if config == row else made.y
        # A configuration that is handed over is used, or it is an error.
        with mock.patch.object(kernels.layer, "quantized_product", partial(product.quantized_product, config=config)):
            compute(x)
    assert torch.equal(made.y.view(torch.int16), plain.view(torch.int16))


def sums_in_gluon(row: configurations.Product, m: int, n: int, k: int) -> None:
    """Bare sums of products of codes by the kernel in Gluon."""
    generator = np.random.default_rng(k)
    a, b = (torch.from_numpy(generator.integers(-128, 128, shape, dtype=np.int8)) for shape in ((m, k), (n, k)))
    y = torch.empty(m, n, dtype=torch.int32)
    product.launch_product(operands.Quantized(a), operands.Quantized(b), y, config=row._replace(gluon=True))
    assert_same(y, reference.int8_matmul(array(a), array(b)))


def rows_of(table: configurations.Table, general: Any) -> list[Any]:
    """The different rows of a table, and the one beside it."""
    return list(dict.fromkeys([*(row.configuration for row in table), general]))


def product_cases(arch: str) -> Iterator[Case]:
    rows = rows_of(configurations.PRODUCTS[arch], configurations.GENERAL[arch])
    for number, row in enumerate(rows):
        m, n = row.block_m + 6, row.block_n + 22
        name = f"product {number}: {row.block_m}x{row.block_n}x{row.block_k}"
        # Three blocks of K and a rest; 912 is a multiple of 16, as the copy engine needs.
        yield f"{name}, int8", with_row("product", row, partial(matmul, m, n, 912))
        call = partial(layer, m, n, 912, HALF, 6.0, "dequantized", "zeropoint", "vector", MANY)
        yield f"{name}, zeropoint, outliers", with_row("product", row, call)
    tuned = rows[0]
    small = (tuned.block_m + 6, tuned.block_n + 22)
    yield "product, absmax, outliers, bfloat16", lambda: layer(*small, 912, BRAIN, 6.0, "dequantized", "absmax", "vector", MANY)
    yield "product, no outliers", lambda: layer(134, 150, 70, HALF, None, "dequantized", "absmax", "vector")
    yield "product, float weight", lambda: layer(*small, 912, HALF, 6.0, "float", "zeropoint", "vector", MANY)
    yield "product, one scale", lambda: layer(64, 150, 912, HALF, 6.0, "dequantized", "zeropoint", "tensor", MANY)
    yield "product, float32", lambda: layer(70, 150, 320, SINGLE, 6.0, "dequantized", "zeropoint", "vector", tuple(range(0, 320, 7)))
    yield "product, 64-bit correction", wide(lambda: layer(128, 70, 256, HALF, None, "dequantized", "zeropoint", "vector"))
    yield "product, gathered", small_gather(lambda: layer(40, 150, 912, HALF, 6.0, "dequantized", "absmax", "vector", MANY))
    yield "product, gathered floats", small_gather(lambda: layer(40, 150, 912, BRAIN, 6.0, "float", "absmax", "vector", MANY))
    yield "product, unaligned", lambda: matmul(5, 7, 33)
    for quantizer in ("absmax", "zeropoint"):
        yield f"product, special rows, {quantizer}", partial(special_layer, 64, 150, 320, HALF, quantizer)


def gluon_cases(arch: str) -> Iterator[Case]:
    rows = [row for row in dict.fromkeys(row.configuration for row in configurations.PRODUCTS[arch]) if arch == "sm_90" and row.tma]
    for row in rows:
        name = f"gluon: {row.block_m}x{row.block_n}x{row.block_k}"
        m, n = row.block_m + 6, row.block_n + 22
        yield f"{name}, int8", partial(sums_in_gluon, row, m, n, 912)
        yield f"{name}, zeropoint, outliers", partial(in_gluon, row, m, n, 912, HALF, 6.0, "dequantized", "zeropoint", "vector", MANY)
    if not rows:
        return
    wide_row, small_row = rows[-1], rows[0]
    for k in (16, 128, 144, 256, 384, 400, 512):  # one block of K to five: as many as there are stages, fewer, and more
        yield f"gluon, int8, {k} columns", partial(sums_in_gluon, wide_row, 5, 24, k)
    shape = (wide_row.block_m + 6, 150, 912)
    yield "gluon, absmax, bfloat16", partial(in_gluon, wide_row, *shape, BRAIN, 6.0, "dequantized", "absmax", "vector", MANY)
    yield "gluon, no outliers", partial(in_gluon, wide_row, *shape, HALF, None, "dequantized", "absmax", "vector")
    yield "gluon, no outlier columns", partial(in_gluon, wide_row, 40, 70, 272, HALF, 6.0, "dequantized", "absmax", "vector")
    yield "gluon, float weight", partial(in_gluon, wide_row, *shape, BRAIN, 6.0, "float", "zeropoint", "vector", MANY)
    yield "gluon, one scale", partial(in_gluon, wide_row, *shape, HALF, 6.0, "dequantized", "zeropoint", "tensor", MANY)
    yield "gluon, no bias", partial(in_gluon, wide_row, 40, 70, 272, HALF, 6.0, "float", "absmax", "row", (0, 31), bias=False)
    # Wider tiles have no registers for sums of 64 bits; the tables give them to a smaller tile of `product_kernel`.
    call = partial(in_gluon, small_row, 40, 150, 272, HALF, None, "dequantized", "zeropoint", "vector")
    yield "gluon, 64-bit correction", wide(call)
    call = partial(in_gluon, wide_row, *shape, HALF, 6.0, "dequantized", "absmax", "vector", MANY)
    yield "gluon, gathered", small_gather(call)
    call = partial(in_gluon, wide_row, *shape, BRAIN, 6.0, "float", "absmax", "vector", MANY)
    yield "gluon, gathered floats", small_gather(call)


def decode_cases(arch: str) -> Iterator[Case]:
    rows = [*configurations.DECODES[arch], configurations.Row(configurations.DECODE_GENERAL, 16)]
    # As many rows of X as a row of the table serves, or one less: its tile has padding or none.
    served = dict.fromkeys((row.configuration, m) for row in rows for m in {row.up_to_m or 16, max(1, (row.up_to_m or 16) - 1)})
    # In one block of 256 the second half alone has outlier columns, so that the first warp finds none.
    late = tuple(column for column in MANY if not 512 <= column < 640)
    for number, (row, m) in enumerate(served):
        call = partial(layer, m, row.block_n + 9, 912, HALF, 6.0, "dequantized", "zeropoint", "vector", late)
        yield f"decode {number}: {m} rows, {row.block_n}x{row.block_k}", with_row("decode", row, call)
    # Long K, where there is one below: the first pass and the loop over K have more blocks than stages.
    few = tuple(range(0, 320, 7))  # 7 has no factor in common with a layout either
    yield "decode, absmax, bfloat16", lambda: layer(5, 41, 320, BRAIN, 6.0, "dequantized", "absmax", "vector", few)
    yield "decode, one row, absmax", lambda: layer(1, 41, 320, BRAIN, 6.0, "dequantized", "absmax", "vector", few)
    yield "decode, float weight", lambda: layer(5, 41, 320, BRAIN, 6.0, "float", "zeropoint", "vector", few)
    yield "decode, no outliers", lambda: layer(4, 41, 4624, HALF, None, "dequantized", "zeropoint", "vector")
    yield "decode, one row, no outliers", lambda: layer(1, 41, 320, HALF, None, "dequantized", "absmax", "vector")
    yield "decode, one scale", lambda: layer(7, 41, 320, HALF, 6.0, "dequantized", "zeropoint", "tensor", few)
    yield "decode, unaligned", lambda: layer(7, 20, 2201, HALF, 6.0, "dequantized", "absmax", "vector", (*few, 1700, 2000))
    for quantizer in ("absmax", "zeropoint"):
        yield f"decode, special rows, {quantizer}", partial(special_layer, 6, 41, 4112, HALF, quantizer)
    yield "decode, 64-bit correction", wide(lambda: layer(5, 20, 256, HALF, None, "dequantized", "zeropoint", "vector"))


def quantization_cases(arch: str) -> Iterator[Case]:
    yield "scan", lambda: scan(70, 100, HALF, (3, 99))
    yield "scan, float32", lambda: scan(300, 65, SINGLE, (64,))
    for dtype in (HALF, BRAIN, SINGLE):
        yield f"quantize rows, {dtype}".replace("torch.", ""), partial(quantize, 7, 300, dtype, True, "zeropoint")
    for quantizer in ("absmax", "zeropoint"):
        yield f"quantize special rows, {quantizer}", partial(quantize, 7, 300, HALF, True, quantizer, True)
    yield "quantize rows, absmax", lambda: quantize(5, 33, HALF, True, "absmax")
    yield "quantize, one scale, absmax", lambda: quantize(7, 300, HALF, False, "absmax")
    yield "quantize, one scale, zeropoint", lambda: one_extreme_after_another(70, 300)
    long = configurations.Rows(1, 256, 1, 4)
    yield "quantize rows in blocks", with_row("rows", long, lambda: quantize(3, 700, HALF, True, "zeropoint"))
    call = lambda: layer(18, 24, 700, HALF, 6.0, "dequantized", "zeropoint", "vector", tuple(range(0, 700, 13)))  # noqa: E731
    yield "quantize rows in blocks, outliers", with_row("rows", long, call)
    # Several rows of a program, the next one on its way, as where X is long.
    repeated = configurations.Rows(1, 1024, 4, 4)
    call = lambda: layer(17, 24, 1024, HALF, 6.0, "dequantized", "zeropoint", "vector", tuple(range(0, 1024, 97)))  # noqa: E731
    yield "quantize rows, repeated", with_row("rows", repeated, call)


def sorted_experts(
    m: int, k: int, dtype: torch.dtype, outliers: tuple[int, ...], n: int, ends: list[int], threshold: float | None, config: Any = None
) -> None:
    check_sorted(normal((m, k), dtype, seed=1, outliers=outliers), weights(len(ends), n, k, dtype), ends, threshold, config=config)


def few_tokens(
    tokens: int, k: int, dtype: torch.dtype, outliers: tuple[int, ...], n: int, by_pair: bool, threshold: float | None, config: Any = None
) -> None:
    chosen = torch.from_numpy(np.random.default_rng(tokens).permuted(np.tile(np.arange(6), (tokens, 1)), axis=1)[:, :3].copy())
    x = normal((tokens * 3 if by_pair else tokens, k), dtype, seed=1, outliers=outliers)
    check_decode(x, weights(5, n, k, dtype), chosen, by_pair, threshold, config=config)


def expert_cases(arch: str) -> Iterator[Case]:
    few = tuple(range(0, 320, 7))
    for number, row in enumerate(dict.fromkeys(row.configuration for row in configurations.EXPERT_PRODUCTS[arch])):
        name = f"experts {number}: {row.block_m}x{row.block_n}x{row.block_k}"
        # An expert without rows, one with more than a tile, and rows of nobody.
        ends = [7, 7, row.block_m + 12, row.block_m + 17]
        yield name, partial(sorted_experts, row.block_m + 21, 912, HALF, MANY, row.block_n + 22, ends, 6.0, row)
    yield "experts, no outliers, bfloat16", partial(sorted_experts, 41, 320, BRAIN, (), 41, [20, 41], None)
    yield "experts, float32", partial(sorted_experts, 41, 320, SINGLE, few, 41, [20, 20, 37], 6.0)
    yield "experts, unaligned", partial(sorted_experts, 21, 313, HALF, few[:-1], 20, [9, 20], 6.0)
    served = dict.fromkeys((row.configuration, row.up_to_m or 16) for row in configurations.EXPERT_DECODES[arch])
    for number, (row, tokens) in enumerate(served):
        name = f"experts, decode {number}: {tokens} tokens, {row.block_n}x{row.block_k}"
        yield name, partial(few_tokens, tokens, 912, HALF, MANY, row.block_n + 9, False, 6.0, row)
    yield "experts, decode by pair, bfloat16", partial(few_tokens, 5, 320, BRAIN, few, 41, True, 6.0)
    yield "experts, decode, no outliers", partial(few_tokens, 5, 320, HALF, (), 41, False, None)


def cases(arch: str) -> dict[str, Callable[[], None]]:
    """Name -> a call that raises where the kernels differ from the reference."""
    return dict([*quantization_cases(arch), *product_cases(arch), *gluon_cases(arch), *decode_cases(arch), *expert_cases(arch)])
