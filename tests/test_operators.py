"""The operators as PyTorch sees them: schema, fake implementation and gradient hold together; compiling and exporting change nothing.

`torch.library.opcheck` tries an operator under everything that torch.compile relies on. `fullgraph=True` makes a graph break an error.
"""

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fast
from fast import Int8Linear
from fast.weights import QuantizedWeight
from tests import strategies
from tests.comparison import CPU, DEVICE, DTYPES, GRANULARITIES, OUTLIER_WEIGHTS, QUANTIZERS, TRITON, U32, assert_same, assert_within
from tests.strategies import Recipe, recipes

N, K = 7, 40
OPERATORS = torch.ops.llm_int8
#: eager: the graph as captured. aot_eager: with autograd and fake tensors. inductor: with generated code, which takes a C++ compiler.
COMPILERS = ["eager", "aot_eager", *(["inductor"] if shutil.which("g++") or shutil.which("clang++") else [])]

pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning",  # importing inductor, torch's own
    "ignore:`torch.jit.script` is deprecated:DeprecationWarning",
)


@pytest.fixture(params=[CPU, TRITON], ids=repr)
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    with fast.backend(request.param.name):
        yield DEVICE if request.param is TRITON else torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def made(outlier_weight: str = "dequantized", quantizer: str = "absmax", granularity: str = "vector", bias: bool = True) -> Int8Linear:
    w = Recipe((N, K), torch.float32, seed=1, exponent=-3).tensor()
    b = Recipe((N,), torch.float32, seed=2).tensor() if bias else None
    with fast.backend("cpu"):  # where w is
        return Int8Linear.from_float(w, b, 6.0, outlier_weight, quantizer, granularity)


def activations(rows: int = 5, dtype: torch.dtype = torch.float32, outliers: str = "one", seed: int = 3) -> Tensor:
    return Recipe((rows, K), dtype, seed, outliers=outliers).tensor()


def check(operator: Any, *arguments: Any) -> None:
    assert set(torch.library.opcheck(operator, arguments).values()) == {"SUCCESS"}


def arguments_of(layer: Int8Linear, x: Tensor) -> tuple:
    return (x, *QuantizedWeight.of_layer(layer), layer.bias, layer.threshold, layer.granularity != "tensor")


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("outlier_weight", OUTLIER_WEIGHTS)
def test_the_layers_operator_is_what_it_says(outlier_weight, quantizer, granularity, device):
    layer = made(outlier_weight, quantizer, granularity).to(device)
    for gradient in (False, True):
        layer.bias.requires_grad_(gradient)
        check(OPERATORS.linear.default, *arguments_of(layer, activations().to(device).requires_grad_(gradient)))


@pytest.mark.usefixtures("on_the_cpu")
def test_the_gradient_to_the_input_is_the_same_with_and_without_a_bias():
    gradients = []
    for bias in (True, False):
        x = activations().requires_grad_()
        made(bias=bias)(x).sum().backward()
        assert x.grad is not None
        gradients.append(x.grad)
    assert_same(*gradients)


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize(
    ("dtype", "layout"), [(torch.float32, layout) for layout in strategies.LAYOUTS] + [(dtype, "contiguous") for dtype in DTYPES[:2]]
)
def test_the_operators_take_any_layout_and_dtype(dtype, layout):
    x = strategies.arrange(activations(dtype=dtype), layout)
    layer = made(bias=False)
    check(OPERATORS.linear.default, *arguments_of(layer, x))
    check(OPERATORS.outlier_columns.default, x, 6.0)
    for quantizer in QUANTIZERS:
        check(OPERATORS.quantize.default, x, True, quantizer)
        check(OPERATORS.quantize.default, x, False, quantizer)
    check(OPERATORS.int8_matmul.default, OPERATORS.quantize(x, True, "absmax")[0], layer.weight)


@pytest.mark.parametrize(("m", "k"), [(0, 5), (5, 0), (0, 0), (1, 1)])
def test_the_operators_are_what_they_say_of_empty_inputs(device, m, k):
    x = torch.ones(m, k, device=device)
    w = torch.ones(3, k, dtype=torch.int8, device=device)
    check(OPERATORS.linear.default, x, w, torch.ones(3, 1, device=device), None, None, None, None, 6.0, True)
    check(OPERATORS.quantize.default, x, True, "zeropoint")
    check(OPERATORS.outlier_columns.default, x, None)
    check(OPERATORS.int8_matmul.default, torch.ones(m, k, dtype=torch.int8, device=device), w)


def compiled(function: Callable[..., Any], compiler: str, dynamic: bool = False) -> Callable[..., Any]:
    return torch.compile(function, fullgraph=True, dynamic=dynamic, backend=compiler)


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("form", [("dequantized", "absmax"), ("float", "zeropoint")])
def test_a_compiled_layer_computes_what_the_layer_does(form, compiler, dynamic):
    layer = made(*form)
    fast_layer = compiled(layer, compiler, dynamic)
    for rows, outliers in ((5, "one"), (3, "none"), (5, "all columns"), (1, "one")):
        x = activations(rows, outliers=outliers)
        assert_same(fast_layer(x), layer(x))


def test_a_compiled_layer_launches_the_kernels(device):
    layer, x = made().to(device), activations().to(device)
    assert_same(compiled(layer, "aot_eager")(x), layer(x))


@pytest.mark.usefixtures("on_the_cpu")
def test_a_graph_for_dynamic_shapes_serves_any_rows_and_any_outliers():
    layer, graphs = made(), []
    backend = torch._dynamo.lookup_backend("aot_eager")

    def counting(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return backend(graph, inputs)

    fast_layer = torch.compile(layer, fullgraph=True, dynamic=True, backend=counting)
    fast_layer(activations())
    first = len(graphs)
    for rows in (5, 3, 8, 17):
        for outliers in strategies.OUTLIERS:
            fast_layer(activations(rows, outliers=outliers))
    assert len(graphs) == first > 0


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_compiled_layer_has_the_gradients_of_the_layer(compiler):
    gradients = []
    for compile_it in (lambda layer: layer, lambda layer: compiled(layer, compiler)):
        layer, x = made(), activations().requires_grad_()
        layer.bias.requires_grad_()
        y = compile_it(layer)(x)
        y.backward(outer := Recipe((5, N), torch.float32, seed=4).tensor())
        gradients.append((x.grad, layer.bias.grad))
    (x_ours, bias_ours), (x_theirs, bias_theirs) = gradients
    assert_same(x_ours, x_theirs)
    # A sum of five float32 numbers on both sides, in an order that a compiler may choose.
    assert_within(bias_ours, bias_theirs, 2 * 5 * U32 * outer.double().abs().sum(0))


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("outliers", ["none", "one"])
def test_a_compiled_layer_under_autocast_has_its_dtype(compiler, outliers):
    layer, x = made(), activations(outliers=outliers)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = compiled(layer, compiler)(x)
        assert y.dtype == torch.bfloat16
        assert_same(y, layer(x))


FUNCTIONS: dict[str, Callable[[Tensor], Any]] = {
    "absmax": lambda x: fast.absmax_dequantize(*fast.absmax_quantize(x, -1)),
    "zeropoint": lambda x: fast.zeropoint_dequantize(*fast.zeropoint_quantize(x)),
    "outlier_columns": lambda x: fast.outlier_columns(x, 6.0),
    "int8_matmul": lambda x: fast.int8_matmul(fast.absmax_quantize(x).codes, fast.absmax_quantize(x).codes),
    "quantized_matmul": lambda x: fast.quantized_matmul(x, x, "row", "zeropoint"),
    "llm_int8_matmul": lambda x: fast.llm_int8_matmul(x, x),
}


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_public_function_compiles_without_a_graph_break(name, compiler):
    assert_same(compiled(FUNCTIONS[name], compiler)(activations()), FUNCTIONS[name](activations()))


@pytest.mark.usefixtures("on_the_cpu")
@given(recipe=recipes(finite=False).filter(lambda r: len(r.shape) >= 2), threshold=strategies.thresholds)
def test_the_fake_implementation_foretells_shape_dtype_and_strides(recipe, threshold):
    x = recipe.tensor().flatten(0, -2) if len(recipe.shape) > 2 else recipe.tensor()
    w = torch.ones(3, x.shape[1], dtype=torch.int8)
    calls = [
        lambda x, w, absmax: OPERATORS.linear(x, w, absmax, None, None, None, None, threshold, True),
        lambda x, w, absmax: OPERATORS.quantize(x, True, "absmax"),
        lambda x, w, absmax: OPERATORS.quantize(x, False, "zeropoint"),
        lambda x, w, absmax: OPERATORS.outlier_columns(x, threshold),
        lambda x, w, absmax: OPERATORS.int8_matmul(w, w),
    ]
    for call in calls:
        given_tensors = (x, w, torch.ones(3, 1))
        real, fake = (torch.utils._pytree.tree_leaves(call(*t)) for t in (given_tensors, [t.to("meta") for t in given_tensors]))
        for ours, theirs in zip(real, fake, strict=True):
            assert (ours.shape, ours.dtype, ours.stride()) == (theirs.shape, theirs.dtype, theirs.stride())


class Block(nn.Module):
    """Two layers, a nonlinearity, a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(K, 64), nn.Linear(64, K)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.nn.functional.silu(self.up(x)))


@pytest.mark.usefixtures("on_the_cpu")
def test_an_exported_model_computes_what_the_model_does_for_any_number_of_rows():
    model = fast.quantize_model(Block())
    exported = torch.export.export(model, (activations(),), dynamic_shapes=({0: torch.export.Dim("M")},))
    assert sum(node.target is OPERATORS.linear.default for node in exported.graph.nodes) == 2
    for rows in (1, 5, 9):
        x = activations(rows, outliers="some columns")
        assert_same(exported.module()(x), model(x))


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning")  # Torch 2.11's, of the file that it reads itself
def test_an_exported_model_can_be_saved_and_loaded(tmp_path):
    model = fast.quantize_model(Block())
    torch.export.save(torch.export.export(model, (activations(),)), tmp_path / "model.pt2")
    assert_same(torch.export.load(tmp_path / "model.pt2").module()(activations()), model(activations()))


@pytest.mark.usefixtures("on_the_cpu")
def test_a_language_model_compiles_without_a_graph_break():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, vocab_size=50
    )
    model = fast.quantize_model(transformers.LlamaForCausalLM(config).eval())
    tokens = torch.arange(10)[None]
    with torch.no_grad():
        expected = model(tokens, use_cache=False).logits
        assert_same(compiled(model, "aot_eager")(tokens, use_cache=False).logits, expected)


def test_the_operator_names_the_argument_that_is_missing():
    with pytest.raises(ValueError, match="scale must be given where absmax is None"):
        OPERATORS.linear(torch.ones(1, 2), torch.ones(3, 2, dtype=torch.int8), None, None, None, None, None, 6.0, True)


@given(threshold=st.one_of(st.just(-1.0), st.just(float("nan"))))
def test_the_operator_refuses_a_threshold_that_is_none(threshold):
    with pytest.raises(ValueError, match="threshold must be 0 or more"):
        OPERATORS.outlier_columns(torch.ones(1, 2), threshold)
