"""The CPU path: its routes to the int8 product give the same integers."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fast
from fast import Int8Linear, cpu
from fast.arguments import MAX_K
from fast.cpu import arithmetic, quantization
from fast.cpu import product as cpu_product
from tests import strategies as some
from tests.comparison import CPU, QUANTIZERS, REFERENCE, assert_product, assert_same

#: Those that are exact on this processor; one without VNNI instructions has the last only.
ROUTES = [name for name in cpu_product.ROUTES if cpu_product.is_exact(name)]
routes = pytest.mark.parametrize("route", ROUTES)


@pytest.fixture(autouse=True)
def in_torch_operations():
    with fast.backend("torch"):
        yield


def product(route, a, b):
    """float32 of the int32 product, by a route."""
    with cpu_product.route(route):
        return cpu_product.layer_product(a, b, torch.float32, None)[0]


def layer(n=35, k=70, seed=1, **options):
    return Int8Linear.from_float(some.Recipe((n, k), torch.float32, seed, exponent=-3).tensor(), **options)


def test_every_route_is_exact_where_the_instructions_are():
    limited = "ONEDNN_MAX_CPU_ISA" in os.environ or not cpu_product.has_instructions("vnni")
    assert (["float32"] if limited else list(cpu_product.ROUTES)) == ROUTES


@routes
@given(m=some.sizes("M"), n=some.sizes("N"), k=some.sizes("K"), data=st.data())
def test_every_route_gives_the_accumulators_of_the_reference(route, m, n, k, data):
    a, b = data.draw(some.codes((m, k))), data.draw(some.codes((n, k)))
    expected = REFERENCE.int8_matmul(a, b)
    assert_same(product(route, a, b), expected.float())
    with cpu_product.route(route):
        assert_same(cpu.int8_matmul(a, b), expected)


@routes
@pytest.mark.parametrize("signs", ["equal", "opposite", "alternating"])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 3, MAX_K["zeropoint"]), (3, 65, 66_000), (40, 1, 33_025), (70, 70, 1100)])
def test_the_largest_sums_are_exact_and_rounded_once(route, m, n, k, signs):
    # Sums of the largest codes over so many columns come close to 2**31.
    a = torch.full((m, k), 127, dtype=torch.int8)
    b = torch.full((n, k), -128 if signs == "opposite" else 127, dtype=torch.int8)
    if signs == "alternating":
        a[:, ::2] = b[:, ::2] = -128
    b[0, 0] = 1  # so that sums need rounding
    expected = REFERENCE.int8_matmul(a, b)
    assert int(expected.abs().max()) > 2**24
    assert_same(product(route, a, b), expected.float())
    with cpu_product.route(route):
        assert_same(cpu.int8_matmul(a, b), expected)


@routes
@pytest.mark.parametrize("m", [1, 4])
def test_rows_of_any_stride_give_the_same_product(route, m):
    # The stride of an axis of length 1 is arbitrary, and oneDNN reads it.
    for n, k in (1, 64), (5, 1), (1, 1), (64, 5):
        a, b = (torch.arange(r * k, dtype=torch.int8).reshape(k, r).T for r in (m, n))
        expected = a.int().double() @ b.int().double().T
        assert_same(product(route, a, b), expected.float())
        odd = b.contiguous().as_strided((n, k), (0 if n == 1 else k, 1))
        assert_same(product(route, a, odd), (a.double() @ odd.double().T).float())


@routes
def test_products_over_one_column_are_computed(route):
    # For these torch._int_mm returns memory as it was.
    a, b = torch.arange(-3, 1, dtype=torch.int8)[:, None], torch.arange(-100, 101, 40, dtype=torch.int8)[:, None]
    for _ in range(3):
        assert_same(product(route, a, b), (a.int() * b.int().T).float())


@routes
@given(n=st.sampled_from((0, 1, 5, 1300)), k=st.sampled_from((1, 3, 70)), columns=st.sets(st.integers(0, 69), max_size=5))
def test_columns_come_with_the_product(route, n, k, columns):
    columns = torch.tensor(sorted(c for c in columns if c < k), dtype=torch.int64)
    generator = torch.Generator().manual_seed(n)
    a, b = (torch.randint(-127, 128, (r, k), generator=generator, dtype=torch.int8) for r in (2, n))
    with pytest.MonkeyPatch.context() as patch, cpu_product.route(route):
        patch.setattr(cpu_product, "PIECE", 1)  # several pieces
        for dtype in torch.float32, torch.int32:
            acc, gathered = cpu_product.layer_product(a, b, dtype, columns)
            assert_same(acc, REFERENCE.int8_matmul(a, b).to(dtype))
            assert_same(gathered, b[:, columns])


@routes
@pytest.mark.parametrize("quantizer", QUANTIZERS)
@given(given=some.factors(finite=False), threshold=some.thresholds, granularity=some.granularities)
def test_a_layer_is_within_the_bound_of_the_reference_by_every_route(route, quantizer, given, threshold, granularity):
    x, w, bias = given.tensors()
    options = {"threshold": threshold, "quantizer": quantizer, "granularity": granularity}
    ours = Int8Linear.from_float(w, bias, **options)
    quantized = getattr(REFERENCE, f"{quantizer}_quantize")(w, -1 if granularity == "vector" else None)
    met = getattr(REFERENCE, f"{quantizer}_dequantize")(*quantized)
    expected = REFERENCE.layer(w, bias, **options)(x)
    with cpu_product.route(route):
        for _ in range(2):
            assert_product(ours(x), expected, x, met, REFERENCE.outlier_columns(x, threshold), bias)


@pytest.mark.parametrize("block", [1, 175, 350])  # many blocks; two of the product's 9 rows of 35; two of the input's 9 rows of 70
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_blocks_of_few_rows_are_put_together_in_order(quantizer, block, monkeypatch):
    monkeypatch.setattr(quantization, "BLOCK", block)
    x = some.Recipe((9, 70), torch.float32, seed=2, outliers="some columns").tensor()
    w, bias = (some.Recipe(shape, torch.float32, seed=1, exponent=-3).tensor() for shape in ((35, 70), (35,)))
    for axis in None, -1:
        for actual, expected in zip(*(getattr(side, f"{quantizer}_quantize")(x, axis) for side in (CPU, REFERENCE)), strict=True):
            assert_same(actual, expected)
    y, expected = (side.layer(w, bias, 6.0, "float", quantizer)(x) for side in (CPU, REFERENCE))
    assert_product(y, expected, x, w, REFERENCE.outlier_columns(x), bias)


def test_what_becomes_a_code_is_a_number():
    # C leaves open what NaN is as an int8; on some processors it is the 0 that the contract asks for.
    x = torch.tensor([[1.0, float("nan")], [float("inf"), 2.0], [1.0, 2.0]])
    inverse, _, finite = arithmetic.inverse_and_scale(x.abs().amax(1, keepdim=True), 127.0)
    assert arithmetic.encode(x, inverse, finite).tolist() == [[0.0, 0.0], [0.0, 0.0], [64.0, 127.0]]


@pytest.mark.parametrize("k", [2**15 - 1, 2**15, MAX_K["zeropoint"]])
def test_zeropoint_corrections_of_the_largest_codes_are_exact(k):
    # Codes of -128 to 127 with the zero points at the other end: the corrected sum needs up to 34 bits.
    w = torch.linspace(1, 2, k).repeat(2, 1) * torch.tensor([[1.0], [-1.0]])
    x = torch.full((2, k), 3.0) * torch.tensor([[1.0], [-1.0]])
    assert_same(fast.quantized_matmul(x, w, "vector", "zeropoint"), REFERENCE.quantized_matmul(x, w, "vector", "zeropoint"))


LIMITED = """
import torch
from fast import cpu
from fast.cpu import product as cpu_product
codes = torch.full((9, 64), 127, dtype=torch.int8)
assert (cpu.int8_matmul(codes, codes) == 64 * 127**2).all()
print(cpu_product.chosen_route())
"""


@pytest.mark.parametrize("isa", ["SSE41", "AVX2", "AVX512_CORE"])
def test_without_vnni_no_int8_route_is_taken(isa):
    # There oneDNN's sums saturate, though Torch says that the processor has the instructions.
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": isa, "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-c", LIMITED], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "float32"


def test_a_torch_without_the_operators_takes_the_float32_route(monkeypatch):
    def missing(*_):
        raise RuntimeError("not built with oneDNN")

    monkeypatch.setattr(torch, "_int_mm", missing)
    assert not cpu_product.is_exact("int8")
    monkeypatch.delattr(torch, "_int_mm")
    assert not cpu_product.is_exact("int8")
    assert cpu_product.best_route.__wrapped__() == "float32"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda product: product.clamp(max=2**15 - 1),
        lambda product: product.clamp(min=-(2**15)),
        lambda product: product + (product.shape[1] == 1),
        lambda product: product + (product.shape[1] > 1),
        lambda product: product + torch.eye(*product.shape, dtype=torch.int32)[[-1, *range(len(product) - 1)]],
    ],
    ids=["positive sums", "negative sums", "one row", "many rows", "some entries"],
)
def test_a_product_that_is_wrong_somewhere_is_not_exact(spoil, monkeypatch):
    def product(b, a):
        return b.int() @ a.int()

    monkeypatch.setattr(torch, "_int_mm", product)
    assert cpu_product.is_exact("int8")
    monkeypatch.setattr(torch, "_int_mm", lambda b, a: spoil(product(b, a)))
    assert not cpu_product.is_exact("int8")


def test_the_float32_route_sums_as_many_products_as_are_exact():
    assert cpu_product.EXACT_K * 128**2 <= 2**24 < (cpu_product.EXACT_K + 1) * 128**2


@pytest.mark.parametrize(
    ("instructions", "exact", "best"),
    [
        ({"vnni"}, {"int8"}, "int8"),
        ({"vnni"}, set(), "float32"),
        (set(), {"int8"}, "float32"),
        (set(), set(), "float32"),
    ],
)
@pytest.mark.parametrize("named", [True, False])  # whether this Torch can say anything of instructions that are not there
def test_the_best_route_needs_the_instructions_and_right_sums(instructions, exact, best, named, monkeypatch):
    if named or instructions:
        monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: "vnni" in instructions, raising=False)
    else:
        monkeypatch.delattr(torch.cpu, "_is_vnni_supported", raising=False)
    monkeypatch.setattr(cpu_product, "is_exact", lambda name: name in exact)
    assert cpu_product.best_route.__wrapped__() == best


def test_an_error_ends_a_route():
    with cpu_product.route("int8"):
        with pytest.raises(RuntimeError), cpu_product.route("float32"):
            raise RuntimeError
        assert cpu_product.chosen_route() == "int8"


def test_an_unknown_route_is_refused():
    with pytest.raises(ValueError, match="route must be one of 'int8', 'float32', got 'fp32'"), cpu_product.route("fp32"):
        pass


def test_a_route_holds_for_its_thread_alone():
    with cpu_product.route("float32"), ThreadPoolExecutor(1) as pool:
        assert cpu_product.chosen_route() == "float32"
        assert pool.submit(cpu_product.chosen_route).result() == cpu_product.best_route()
    assert cpu_product.chosen_route() == cpu_product.best_route()


@pytest.fixture
def x():
    return some.Recipe((5, 70), torch.float32, seed=2).tensor()


def test_a_model_of_linear_layers_is_the_same_by_every_route(x):
    model = nn.Sequential(layer(70, 70), nn.ReLU(), layer(3, 70, bias=torch.ones(3)))
    results = []
    for route in ROUTES:
        with cpu_product.route(route):
            results += [model(x) for _ in range(3)]
    for y in results:
        assert_same(y, results[0])
