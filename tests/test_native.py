"""The native engine beyond its results, which the whole suite compares: how it is reached, and shared by threads."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product as combinations
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import fast
from fast import Int8Linear, linear
from fast.cpu import engine, native
from fast.weights import QuantizedWeight
from tests import native_driver
from tests.comparison import DTYPES, NATIVE, OUTLIER_WEIGHTS, QUANTIZERS, assert_same
from tests.strategies import Recipe
from tests.tools.guarded import guarded, guarded_buffers

ROOT = Path(__file__).resolve().parents[1]
HERE = [side.name for side in NATIVE if side.name in engine.available()]

needs_a_compiler = pytest.mark.skipif(not HERE, reason="no C compiler")
engines = pytest.mark.parametrize("name", HERE)

#: Whole registers and not, one row of W and several stripes; few rows of X, which are summed along K, and many.
SHAPES = [(1, 130, 53), (3, 64, 7), (8, 67, 50), (9, 1, 1), (17, 70, 53), (65, 130, 100), (130, 31, 6), (66, 2060, 7)]


pytestmark = pytest.mark.usefixtures("on_the_cpu")


def layer(n=53, k=70, dtype=torch.float32, bias=True, **options):
    w = Recipe((n, k), dtype, 1, exponent=-3).tensor()
    return Int8Linear.from_float(w, Recipe((n,), dtype, 2).tensor() if bias else None, **options)


def activations(m=5, k=70, dtype=torch.float32, outliers="some columns"):
    return Recipe((m, k), dtype, 3, outliers=outliers).tensor()


# The short way.


class Mode(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        return function(*arguments, **(options or {}))


class FunctionMode(TorchFunctionMode):
    def __torch_function__(self, function, types, arguments=(), options=None):
        return function(*arguments, **(options or {}))


class Subclass(torch.Tensor):
    pass


def under(context):
    def call(layer, x):
        with context():
            return layer(x)

    return call


def with_gradient(layer, x):
    return layer(x.clone().requires_grad_()).detach()


def with_gradient_to_the_bias(layer, x):
    layer.bias.requires_grad_()
    try:
        return layer(x).detach()
    finally:
        layer.bias.requires_grad_(False)


def with_a_tangent(layer, x):
    with torch.no_grad(), forward_ad.dual_level():
        return layer(x)


def negated_view(layer, x):
    y = torch.complex(torch.zeros_like(x), -x).conj().imag
    assert y.is_neg()
    return layer(y)


def with_another_weight(layer, x):
    return torch.func.functional_call(layer, {"weight": layer.weight.detach().clone()}, (x,))


LISTENERS = {
    "gradient": with_gradient,
    "gradient to the bias": with_gradient_to_the_bias,
    "forward mode": with_a_tangent,
    "autocast": lambda layer, x: under(lambda: torch.autocast("cpu", torch.bfloat16))(layer, x).float(),
    "dispatch mode": under(Mode),
    "function mode": under(FunctionMode),
    "subclass": lambda layer, x: layer(x.as_subclass(Subclass)).as_subclass(torch.Tensor),
    "negated view": negated_view,
    "functional call": with_another_weight,
    "profiler": under(lambda: torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])),
    "compile": lambda layer, x: torch.compile(layer, backend="eager", fullgraph=True)(x),
    "trace": lambda layer, x: torch.jit.trace(layer, x, check_trace=False)(x),
    "export": lambda layer, x: torch.export.export(layer, (x,)).module()(x),
    "torch's engine": under(lambda: fast.backend("torch")),
}


@pytest.fixture
def operator_calls(monkeypatch):
    """Counts the calls that go through the operator."""
    calls, operator = [], linear.int8_linear

    def counted(*arguments):
        calls.append(1)
        return operator(*arguments)

    monkeypatch.setattr(linear, "int8_linear", counted)
    torch.compiler.reset()
    return calls


@needs_a_compiler
@pytest.mark.filterwarnings("ignore")  # torch.jit's own
@pytest.mark.parametrize("listener", LISTENERS)
def test_whoever_listens_gets_the_operator_and_the_same_bits(listener, operator_calls):
    ours, x = layer(), activations(outliers="none")
    with fast.backend("native"):
        expected = ours(x)
        assert not operator_calls
        y = LISTENERS[listener](ours, x)
    assert operator_calls
    assert_same(y, expected.bfloat16().float() if listener == "autocast" else expected)


@needs_a_compiler
@pytest.mark.parametrize("outlier_weight", OUTLIER_WEIGHTS)
@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("leading", [(), (1,), (9,), (2, 3), (0,), (2, 0)])
def test_the_short_way_gives_the_operators_bits(leading, dtype, quantizer, outlier_weight, operator_calls):
    ours = layer(dtype=dtype, quantizer=quantizer, outlier_weight=outlier_weight)
    x = Recipe((*leading, 70), dtype, 4, outliers="one").tensor()
    with fast.backend("native"):
        y = ours(x)
        with torch.inference_mode():
            assert_same(ours(x), y)
        assert not operator_calls
        with Mode():
            assert_same(ours(x), y)
    assert operator_calls


@needs_a_compiler
def test_what_the_operator_refuses_goes_to_it(operator_calls):
    ours = layer()
    with fast.backend("native"):
        for x, error in ((torch.ones(3, 69), ValueError), (torch.ones(3, 70).double(), TypeError), (torch.tensor(1.0), ValueError)):
            with pytest.raises(error):
                ours(x)
        assert len(operator_calls) == 3
        assert ours(torch.ones(3, 70, device="meta")).is_meta if ours.to("meta") else False


@engines
def test_shapes_that_do_not_fit_are_refused_before_any_memory_is_read(name):
    x, codes = torch.ones(2, 4), torch.ones(3, 4, dtype=torch.int8)
    wrong = [
        (QuantizedWeight(codes, torch.ones(2, 1)), None),
        (QuantizedWeight(codes[:, :3].contiguous(), torch.ones(3, 1)), None),
        (QuantizedWeight(codes, None, torch.ones(3, 1), torch.zeros(1, 1, dtype=torch.int32)), None),
        (QuantizedWeight(codes, torch.ones(3, 1), None, None, torch.ones(2, 4)), None),
        (QuantizedWeight(codes, torch.ones(3, 1)), torch.ones(2)),
    ]
    for weight, bias in wrong:
        with pytest.raises(ValueError, match="do not fit"):
            engine.forced(name).linear(x, weight, bias, 6.0, True)


@needs_a_compiler
def test_every_write_to_a_weight_holds_from_the_next_call_on():
    # Also one that Torch does not count: nothing that follows from the weight is kept.
    ours, other = layer(bias=False), layer(bias=False)
    x = activations()
    with fast.backend("native"):
        before = ours(x)
        ours.weight.data.neg_()
        assert_same(ours(x), -before)
        ours.weight_absmax.data.mul_(2)
        assert_same(ours(x), -2 * before)
        ours.weight.data, ours.weight_absmax.data = other.weight.data, other.weight_absmax.data
        assert_same(ours(x), before)


# Threads.


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def results(name, m, k, n, dtype=torch.bfloat16):
    """Everything that the engine computes of one shape, with more work than one thread does alone."""
    chosen = engine.forced(name)
    x, w = activations(m, k, dtype), Recipe((n, k), dtype, 1).tensor()
    for quantizer, per_row in combinations(QUANTIZERS, (True, False)):
        weight = QuantizedWeight.from_float(w, "vector" if per_row else "tensor", quantizer)
        yield chosen.linear(x, weight, None, 6.0, per_row)
        yield from (t for t in chosen.quantize(x, per_row, quantizer) if t is not None)
    yield chosen.outlier_columns(x, 6.0)
    yield chosen.int8_matmul(weight.codes, weight.codes[:m])


@engines
@pytest.mark.parametrize("pool", ["Torch's", "own"])
@pytest.mark.parametrize(("m", "k", "n"), [(1, 700, 900), (7, 300, 400), (130, 70, 100), (70, 300, 31)])
def test_results_are_the_same_bits_for_any_number_of_threads(name, pool, m, k, n, threads, monkeypatch):
    if pool == "own":
        monkeypatch.setattr(native, "pool", 0)
    threads(1)
    expected = list(results(name, m, k, n))
    for count in (2, 3):
        threads(count)
        for actual, one in zip(results(name, m, k, n), expected, strict=True):
            assert_same(actual, one)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere Torch may have another pool, or none")
def test_torchs_own_pool_is_found():
    assert native.find_pool()


@needs_a_compiler
def test_threads_may_share_a_layer(threads):
    threads(2)
    ours, inputs = layer(900, 300, torch.bfloat16), [activations(m, 300, torch.bfloat16) for m in (1, 5, 130)] * 20

    def call(x):
        with fast.backend("native"):
            return ours(x)

    expected = [call(x) for x in inputs[:3]] * 20
    with ThreadPoolExecutor(4) as pool:
        for y, one in zip(pool.map(call, inputs), expected, strict=True):
            assert_same(y, one)


FORKED = """
import os, torch, fast
torch.set_num_threads(2)
layer, x = fast.Int8Linear.from_float(torch.randn(900, 300)), torch.randn(130, 300)
with fast.backend("native"), torch.no_grad():
    before = layer(x).numpy().tobytes()
    child = os.fork()
    same = layer(x).numpy().tobytes() == before  # not torch.equal, which would wait for the pool's threads
    if child == 0:
        os._exit(0 if same else 1)
    print(same, os.waitpid(child, 0)[1])
"""


@needs_a_compiler
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_process_may_fork_after_a_layer_was_called():
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-c", FORKED], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.returncode) == ("True 0\n", 0), done.stderr


# Memory.


@engines
@pytest.mark.parametrize("at", ["start", "end"])
@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_beside_its_tensors_is_touched(name, at, shape):
    m, k, n = shape
    chosen = engine.forced(name)
    for dtype, quantizer, outlier_weight in combinations(DTYPES, QUANTIZERS, OUTLIER_WEIGHTS):
        x, w, bias = activations(m, k, dtype), Recipe((n, k), dtype, 1, exponent=-3).tensor(), Recipe((n,), dtype, 2).tensor()
        weight = QuantizedWeight.from_float(w, "vector", quantizer, outlier_weight)
        expected = chosen.linear(x, weight, bias, 6.0, True)
        placed = QuantizedWeight(*(None if t is None else guarded(t, at) for t in weight))
        with guarded_buffers(at):
            assert_same(chosen.linear(guarded(x, at), placed, guarded(bias, at), 6.0, True), expected)
            for per_row in (True, False):
                chosen.quantize(guarded(x, at), per_row, quantizer)
            chosen.outlier_columns(guarded(x, at), 6.0)
    with guarded_buffers(at):
        codes = guarded(weight.codes, at)
        assert_same(chosen.int8_matmul(codes, codes), codes.int() @ codes.int().T)


@pytest.mark.skipif(sys.platform != "linux", reason="the driver is a program for Linux")
@engines
def test_sanitizers_find_nothing(name, threads):
    checked, ours = native_driver.sanitized(name), engine.forced(name)
    threads(2)
    for m, k, n in ((1, 130, 53), (8, 67, 50), (17, 70, 53), (70, 300, 60), (0, 5, 3), (5, 0, 3), (3, 5, 0), (2, 70_000, 3)):
        for dtype, quantizer, outlier_weight in combinations(DTYPES, QUANTIZERS, OUTLIER_WEIGHTS):
            x = Recipe(
                (m, k), dtype, 3, outliers="some columns", layout="every other row", spoiled=("nan", "inf") if m > 2 else ()
            ).tensor()
            w, bias = Recipe((n, k), dtype, 1, exponent=-3).tensor(), Recipe((n,), dtype, 2).tensor()
            weight = QuantizedWeight.from_float(w, "vector", quantizer, outlier_weight)
            assert_same(checked.linear(x, weight, bias, 6.0, True), ours.linear(x, weight, bias, 6.0, True))
        assert_same(checked.quantize(x, False, quantizer)[0], ours.quantize(x, False, quantizer)[0])
        assert_same(checked.outlier_columns(x, 6.0), ours.outlier_columns(x, 6.0))
        assert_same(checked.int8_matmul(weight.codes, weight.codes), ours.int8_matmul(weight.codes, weight.codes))


@engines
@pytest.mark.parametrize("m", [1, 8, 9, 70, 130])
def test_sums_over_several_parts_of_k_are_exact(name, m):
    # Many rows take 2048 columns at a time; a few rows as many as a part of the first cache holds.
    a, b = (torch.randint(-128, 128, (rows, 18_001), generator=torch.Generator().manual_seed(rows), dtype=torch.int8) for rows in (m, 100))
    assert_same(engine.forced(name).int8_matmul(a, b), (a.double() @ b.double().T).int())


@engines
@pytest.mark.parametrize("m", [1, 8, 9, 70])
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_products_of_outlier_columns_are_summed_before_the_regular_part_joins_them(name, m, quantizer):
    # Two columns whose products cancel: nothing is left of them, if no small number was added in between.
    x, w = activations(m, outliers="none"), Recipe((53, 70), torch.float32, 1, exponent=-3).tensor()
    w[:, 41] = w[:, 17]
    weight = QuantizedWeight.from_float(w, "vector", quantizer)
    x[:, 17] = x[:, 41] = 0
    regular = engine.forced(name).linear(x, weight, None, None, True)
    x[:, 17], x[:, 41] = 2.0**30, -(2.0**30)
    assert_same(engine.forced(name).linear(x, weight, None, 6.0, True), regular)


@engines
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [4096, 4100])
def test_large_results_are_those_of_small_pieces(name, dtype, n, threads):
    # From 4 MiB on they go past the caches, where their rows begin at a line of the cache.
    chosen, x = engine.forced(name), activations(520, 70, dtype)
    weight, bias = QuantizedWeight.from_float(Recipe((n, 70), dtype, 1, exponent=-3).tensor()), Recipe((n,), dtype, 2).tensor()
    pieces = torch.cat([chosen.linear(rows, weight, bias, None, True) for rows in x.split(100)])
    for count in (1, 2):
        threads(count)
        assert_same(chosen.linear(x, weight, bias, None, True), pieces)


def test_printing_a_model_does_not_tell_of_engines():
    model = nn.Sequential(layer())
    shown = repr(model)
    model(activations())
    assert repr(model) == shown


def test_the_suite_has_a_native_side_wherever_there_is_a_compiler():
    assert bool(NATIVE) == any(shutil.which(name) for name in ("cc", "gcc", "clang"))
