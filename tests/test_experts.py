"""Experts in int8: equal to an `Int8Linear` per expert, paired with the reference, and a module among modules."""

import copy
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fast
import reference
from experiments.experts import OneLayerEach
from fast import Int8Experts
from fast.expert_operators import experts_linear
from fast.experts import quantize_experts
from fast.experts_layout import FOREIGN, layout
from fast.guard import Frozen
from tests import strategies as some
from tests.comparison import ENGINES, U32, array, assert_equal, assert_product, assert_same, assert_within
from tests.expert_cases import EXPERTS, FAMILIES, HIDDEN, INNER, Plain, activations, experts_of, routed, with_random_weights

#: What inductor and forward mode load of Torch itself.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning",
    "ignore:`torch.jit.script` is deprecated:DeprecationWarning",
)


@pytest.fixture(autouse=True)
def on_the_cpu() -> Iterator[None]:
    with fast.backend("cpu"):
        yield


def inputs(family: str, tokens: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """What the forward pass of a family takes."""
    if family == "Llama 4":
        return (activations(tokens * EXPERTS, dtype),)
    return activations(tokens, dtype), *routed(tokens, 2, EXPERTS, dtype, empty=1 if tokens == 5 else None)


# Equal to an Int8Linear per expert.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [0, 1, 5, 33])
@pytest.mark.parametrize("family", FAMILIES)
def test_experts_equal_an_int8_layer_each_bit_for_bit(family, tokens, dtype):
    module = experts_of(family, dtype)
    if tokens == 0 and family == "Llama 4":
        return
    expected = OneLayerEach(copy.deepcopy(module))
    given = inputs(family, tokens, dtype) if tokens else (torch.zeros(0, HIDDEN, dtype=dtype), *routed(0, 2, EXPERTS, dtype))
    with torch.no_grad():
        assert_same(Int8Experts.from_float(module)(*given), expected(*given))


@pytest.mark.parametrize("side", [side for side in ENGINES if side.name != "neon_dotprod"], ids=str)
def test_they_are_equal_on_every_engine(side):
    module, given = experts_of("gpt-oss"), inputs("gpt-oss", 5, torch.float32)
    with torch.no_grad(), fast.backend(side.backend), np.errstate(all="ignore"):
        expected = OneLayerEach(copy.deepcopy(module))
        assert_same(Int8Experts.from_float(module)(*given), expected(*given))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_error_is_that_of_rounding(family):
    module = experts_of(family)
    given = inputs(family, 33, torch.float32)
    with torch.no_grad():
        exact = module(*given)
        error = (Int8Experts.from_float(module)(*given) - exact).norm() / exact.norm()
    # Absmax rounds an entry by at most half of 1/127 of its row's largest: for normal rows, whose largest is about 2.5 standard deviations,
    # by 0.6 % of a standard deviation. Four such roundings (input and weight, twice), which a gate may double, stay below 5 %.
    assert 1e-4 < error < 0.05


def test_a_row_for_no_expert_counts_nothing():
    module = Int8Experts.from_float(experts_of("Qwen3-MoE"))
    x, (index, weights) = activations(6, torch.float32), routed(6, 2, EXPERTS, torch.float32)
    index[2, 1], index[4] = EXPERTS, EXPERTS + 3
    with torch.no_grad():
        y = module(x, index, weights.masked_fill(index >= EXPERTS, torch.nan))
    expected = OneLayerEach(experts_of("Qwen3-MoE"))(x, index, weights)
    assert_same(y, expected)
    assert bool((y[4] == 0).all())


def test_a_token_elsewhere_does_not_change_an_experts_result():
    """Outlier columns are those of an expert's own rows: the result is the same wherever the other experts are."""
    module = Int8Experts.from_float(experts_of("Mixtral"))
    x = torch.randn(6, HIDDEN, generator=torch.Generator().manual_seed(0))
    index, weights = torch.tensor([[0]] * 3 + [[1]] * 3), torch.ones(6, 1)
    with torch.no_grad():
        before = module(x, index, weights)
        x[5, 9] = 40.0
        after = module(x, index, weights)
    assert_same(after[:3], before[:3])
    assert not torch.equal(after[3:5], before[3:5])  # its own rows share the outlier column


# Against the reference.


@st.composite
def cases(draw: st.DrawFn, integers: bool) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """Experts with an exact gate, tokens, and their experts. `integers`: weights and rows for which every float32 sum is exact."""
    experts, hidden, inner = draw(st.integers(1, 4)), draw(st.integers(1, 12)), draw(st.integers(1, 8))
    tokens, k = draw(st.integers(0, 7)), draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    module = with_random_weights(Plain(experts, hidden, inner, bias=draw(st.booleans())), draw(st.integers(0, 2**31)))
    if integers:
        for name, parameter in module.named_parameters():
            parameter.data = torch.randint(-3, 4, parameter.shape, generator=generator).float()
            if not name.endswith("bias"):
                parameter.data[..., 0] = 127.0  # a row maximum of 127 makes the scale 1, and codes the weights themselves
        x = torch.randint(-3, 4, (tokens, hidden), generator=generator).float()
        # Nothing meets the 127s, so that all sums stay below 2**24.
        x[:, 0] = 0
        for name, parameter in module.named_parameters():
            if name.startswith("gate_up"):
                parameter.data[:, 0] = 0
    else:
        x = draw(some.recipes((tokens, hidden), finite=False, dtype=torch.float32)).tensor()
    index = torch.randint(0, experts + 2, (tokens, k), generator=generator)
    return module, x, index, torch.randint(-4, 5, (tokens, k), generator=generator).float() / 4


def twin(module: Any, threshold: float | None) -> reference.Int8Experts:
    def gate(y: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            left, right = np.split(y, 2, axis=-1)
            return np.where(np.isnan(left), left, np.maximum(left, np.float32(0))) * right

    biases = [None if getattr(module, f"{name}_bias", None) is None else array(getattr(module, f"{name}_bias")) for name in NAMES]
    return reference.Int8Experts.from_float(*(array(getattr(module, name)) for name in NAMES), gate, *biases, threshold)


NAMES = ("gate_up_proj", "down_proj")


@given(case=cases(integers=True))
def test_where_all_columns_are_outliers_and_sums_are_exact_the_twins_are_equal(case):
    module, x, index, weights = case
    expected = twin(module, 0.0)(array(x), array(index), array(weights))
    with torch.no_grad():
        assert_equal(Int8Experts.from_float(module, 0.0)(x, index, weights), expected)


@given(given=some.factors(finite=False, empty=False), threshold=some.thresholds, experts=st.integers(1, 3), data=st.data())
def test_a_projection_is_within_the_bound_of_each_experts_reference(given, threshold, experts, data):
    x, w, _ = given.tensors()
    x = x.reshape(-1, x.shape[-1])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(x)), min_size=experts, max_size=experts)))
    weights = torch.stack([w.roll(e, 0) for e in range(experts)])
    codes, absmax = quantize_experts(weights)
    y = experts_linear(x, codes, absmax, None, torch.tensor(cuts), threshold)
    for e, (start, end) in enumerate(zip([0, *cuts[:-1]], cuts, strict=True)):
        layer = reference.Int8Linear.from_float(array(weights[e]), None, threshold)
        rows = x[start:end]
        met = torch.from_numpy(reference.absmax_dequantize(layer.weight, layer.weight_scale))
        outliers = torch.from_numpy(reference.outlier_columns(array(rows), threshold))
        assert_product(y[start:end], torch.from_numpy(layer(array(rows))), rows, met, outliers)
    assert bool((y[cuts[-1] :] == 0).all())


@given(case=cases(integers=False))
def test_without_decomposition_the_twins_are_equal_up_to_the_sum_over_k(case):
    module, x, index, weights = case
    experts = twin(module, None)
    expected = torch.from_numpy(experts(array(x), array(index), array(weights)))
    with torch.no_grad():
        y = Int8Experts.from_float(module, None)(x, index, weights)
    assert_within(y, expected, sum_bound(experts, x, index, weights))


def sum_bound(experts: reference.Int8Experts, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """How far two float32 sums of the k terms may lie apart, (T, H) float64: each within gamma(k) of the exact one, as in outlier_bound.

    0 for one term and for two, whose sum has one order. Infinite where a partial sum may overflow.
    """
    k = index.shape[1]
    if k < 3:
        return torch.zeros(x.shape, dtype=torch.float64)
    # Each expert's rows as in the call itself: with all slots in place and the weight of one.
    terms = [torch.from_numpy(experts(array(x), array(index), array(weights * (torch.arange(k) == j)))) for j in range(k)]
    size = torch.stack(terms).double().abs().nan_to_num(0, torch.inf).sum(0)
    bound = 2 * k * U32 / (1 - k * U32) * size + 2 * k * 2.0**-150
    return torch.where(size < torch.finfo(torch.float32).max, bound, torch.inf)


def test_the_twins_store_the_same():
    module = experts_of("Mixtral", torch.bfloat16)
    theirs = twin_of_weights(module)
    ours = Int8Experts.from_float(module)
    for name, layers in (("gate_up_proj", theirs.first), ("down_proj", theirs.second)):
        for e, layer in enumerate(layers):
            assert_same(ours.get_parameter(name)[e], layer.weight)
            assert_same(ours.get_parameter(f"{name}_absmax")[e], layer.weight_absmax)


def twin_of_weights(module: Any) -> reference.Int8Experts:
    return reference.Int8Experts.from_float(array(module.gate_up_proj), array(module.down_proj), lambda y: y)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"first": np.zeros((2, 4), np.float32)}, "first must have 3 dimensions"),
        ({"second": np.zeros((3, 2, 2), np.float32)}, "must hold the same number of experts, got 2 and 3"),
    ],
)
def test_the_reference_refuses_weights_that_do_not_fit(change, message):
    fitting = {"first": np.zeros((2, 4, 2), np.float32), "second": np.zeros((2, 2, 2), np.float32), "apply_gate": lambda y: y[:, :2]}
    with pytest.raises(ValueError, match=message):
        reference.Int8Experts.from_float(**(fitting | change))
    experts = reference.Int8Experts.from_float(**fitting)
    with pytest.raises(ValueError, match="one row per row of hidden_states"):
        experts(np.zeros((3, 2), np.float32), np.zeros((2, 1), np.int64), np.zeros((2, 1), np.float32))


# The operators.


def problem(bias: bool = True) -> tuple[Tensor, ...]:
    """Rows for three experts, of which the second has none, and one row for nobody."""
    torch.manual_seed(0)
    codes, absmax = torch.randint(-127, 128, (3, 5, 8), dtype=torch.int8), torch.rand(3, 5, 1) + 0.5
    x = torch.randn(6, 8)
    x[4, 2] = 11.0
    return x, codes, absmax, torch.randn(3, 5) if bias else None, torch.tensor([2, 2, 5])  # type: ignore[return-value]


@pytest.mark.parametrize("bias", [True, False])
def test_the_operators_pass_opcheck(bias):
    x, codes, absmax, biases, ends = problem(bias)
    x.requires_grad_()
    if biases is not None:
        biases.requires_grad_()
    torch.library.opcheck(torch.ops.llm_int8.experts_linear.default, (x, codes, absmax, biases, ends, 6.0))
    torch.library.opcheck(torch.ops.llm_int8.experts_product.default, (x, codes, absmax, ends, True))
    torch.library.opcheck(torch.ops.llm_int8.experts_product.default, (torch.randn(6, 5, requires_grad=True), codes, absmax, ends, False))


def test_rows_of_nobody_give_zeros_and_get_no_gradient():
    x, codes, absmax, biases, ends = problem()
    y = experts_linear(x.requires_grad_(), codes, absmax, biases, ends, 6.0)
    y.sum().backward()
    assert bool((y[5] == 0).all())
    assert bool((x.grad[5] == 0).all())
    assert bool((x.grad[:5] != 0).any(1).all())


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() & {"Mixtral", "gpt-oss", "Nemotron-H", "Muse Spark"}))
def test_gradients_are_those_of_a_layer_each(family):
    module = experts_of(family)
    expected = OneLayerEach(copy.deepcopy(module))
    ours = Int8Experts.from_float(module)
    x, (index, weights) = activations(9, torch.float32), routed(9, 2, EXPERTS, torch.float32)
    seen = []
    for layer in (ours, expected):
        given = x.clone().requires_grad_(), weights.clone().requires_grad_()
        layer(given[0], index, given[1]).square().sum().backward()
        seen.append([value.grad for value in given])
    # Which of a token's experts adds to its gradient first is not fixed.
    for actual, other in zip(*seen, strict=True):
        torch.testing.assert_close(actual, other, rtol=1e-5, atol=1e-6)


def test_biases_get_the_sums_over_their_rows():
    x, codes, absmax, biases, ends = problem()
    experts_linear(x, codes, absmax, biases.requires_grad_(), ends, 6.0).sum().backward()
    assert_same(biases.grad, torch.tensor([2.0, 0.0, 3.0])[:, None].expand(3, 5))


def test_second_derivatives_are_there():
    x, codes, absmax, _, ends = problem()
    dense = torch.autograd.functional.hessian(lambda x: experts_linear(x, codes, absmax, None, ends, None).square().sum(), x)
    w = (codes * (absmax / 127)).float()
    expected = torch.zeros(6, 8, 6, 8)
    for row, e in ((0, 0), (1, 0), (2, 2), (3, 2), (4, 2)):
        expected[row, :, row] = 2 * w[e].T @ w[e]
    torch.testing.assert_close(dense, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("transform", [torch.func.jacrev, torch.func.jacfwd], ids=["reverse", "forward"])
def test_jacobians_of_torch_func_are_the_weights(transform):
    x, codes, absmax, biases, ends = problem()
    jacobian = transform(lambda x: experts_linear(x, codes, absmax, biases, ends, 6.0))(x)
    w = codes * (absmax / 127)
    for row, e in ((0, 0), (4, 2)):
        torch.testing.assert_close(jacobian[row, :, row], w[e], rtol=1e-6, atol=1e-6)
    assert bool((jacobian[5] == 0).all())


def test_a_tangent_of_a_bias_passes_and_one_of_the_codes_is_refused():
    x, codes, absmax, biases, ends = problem()
    _, tangent = torch.func.jvp(lambda b: experts_linear(x, codes, absmax, b, ends, 6.0), (biases,), (torch.ones_like(biases),))
    assert_same(tangent, torch.tensor([1.0] * 5 + [0.0])[:, None].expand(6, 5))
    with pytest.raises(NotImplementedError, match="weights of Int8Experts are frozen"):
        torch.func.jvp(lambda a: experts_linear(x, codes, a, biases, ends, 6.0), (absmax,), (torch.ones_like(absmax),))


def test_vmap_goes_through_inputs_one_after_the_other():
    x, codes, absmax, biases, ends = problem()
    many = torch.stack([x, 3 * x])
    y = torch.vmap(lambda x: experts_linear(x, codes, absmax, biases, ends, 6.0))(many)
    assert_same(y, torch.stack([experts_linear(one, codes, absmax, biases, ends, 6.0) for one in many]))


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
@pytest.mark.parametrize("family", ["Mixtral", "gpt-oss"])
def test_compiled_without_a_break_they_give_the_same(family, backend):
    module = Int8Experts.from_float(experts_of(family))
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=backend)
    with torch.no_grad():
        for tokens in (5, 9):
            given = inputs(family, tokens, torch.float32)
            # Inductor fuses what is around the operator: the gate, and the sum over k.
            torch.testing.assert_close(
                compiled(*given), module(*given), rtol=1e-5 if backend == "inductor" else 0, atol=1e-5 if backend == "inductor" else 0
            )


def test_exported_they_give_the_same():
    module, given = Int8Experts.from_float(experts_of("Qwen3-MoE")), inputs("Qwen3-MoE", 9, torch.float32)
    tokens = torch.export.Dim("tokens", min=2)
    program = torch.export.export(module, given, dynamic_shapes=({0: tokens}, {0: tokens}, {0: tokens}))
    nodes = [node for node in program.graph.nodes if "experts_linear" in str(node.target)]
    assert len(nodes) == 2
    with torch.no_grad():
        for other in (given, inputs("Qwen3-MoE", 33, torch.float32)):
            assert_same(program.module()(*other), module(*other))


def test_training_compiles_as_well():
    module, given = Int8Experts.from_float(experts_of("Mixtral")), inputs("Mixtral", 5, torch.float32)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    grads = []
    for call in (module, compiled):
        x = given[0].clone().requires_grad_()
        call(x, *given[1:]).square().sum().backward()
        grads.append(x.grad)
    assert_same(*grads)


# A module among modules.


def test_the_bytes_are_one_per_weight_and_four_per_row():
    module = experts_of("Mixtral", torch.bfloat16)
    Int8Experts.from_float(module)
    weights, rows = EXPERTS * 3 * HIDDEN * INNER, EXPERTS * (2 * INNER + HIDDEN)
    assert sum(p.numel() * p.element_size() for p in module.parameters()) == weights + 4 * rows


@pytest.mark.parametrize("cast", [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.double(), lambda m: m.float()])
def test_casting_leaves_codes_and_maxima_as_they_are(cast):
    module = Int8Experts.from_float(experts_of("gpt-oss"))
    before = {name: module.get_parameter(name).clone() for name in module.stored_names()}
    cast(module)
    for name, value in before.items():
        assert_same(module.get_parameter(name), value)
    assert module.gate_up_proj_bias.dtype == module.dequantize().gate_up_proj.dtype == module.float_dtype


def test_the_module_stays_itself():
    module = experts_of("Qwen3-MoE")
    activation, kind, seen = module.act_fn, type(module), []
    handle = module.register_forward_hook(lambda *arguments: seen.append(1))
    assert Int8Experts.from_float(module) is module
    assert isinstance(module, kind)
    assert module.act_fn is activation
    module(*inputs("Qwen3-MoE", 5, torch.float32))
    handle.remove()
    module(*inputs("Qwen3-MoE", 5, torch.float32))
    assert seen == [1]
    assert type(module).__name__ == "Int8Qwen3MoeExperts"
    assert "gate_up_proj=(4, 96, 64), down_proj=(4, 64, 48), threshold=6.0" in repr(module)


@pytest.mark.parametrize("family", FAMILIES)
def test_dequantized_they_are_the_models_own_in_its_own_layout(family):
    original = experts_of(family, torch.bfloat16)
    module = Int8Experts.from_float(copy.deepcopy(original))
    back = module.dequantize()
    assert type(back) is type(original)
    assert {name: (p.shape, p.dtype) for name, p in back.named_parameters()} == {
        n: (p.shape, p.dtype) for n, p in original.named_parameters()
    }
    for name in ("down_proj",):
        step = original.get_parameter(name).float().abs().amax() / 127
        assert (
            back.get_parameter(name).float() - original.get_parameter(name).float()
        ).abs().max() < step  # half a step, and bfloat16's own
    assert vars(back).keys() == vars(original).keys()
    assert isinstance(module, Int8Experts)  # which is left as it is


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
}


@pytest.mark.parametrize("how", COPIES)
def test_copies_give_the_same_and_stay_frozen(how):
    module, given = Int8Experts.from_float(experts_of("gpt-oss")), inputs("gpt-oss", 5, torch.float32)
    other = COPIES[how](module)
    assert type(other) is type(module)
    assert_same(other(*given), module(*given))
    assert isinstance(other.down_proj.requires_grad_, Frozen)


def test_codes_are_frozen_and_biases_are_not():
    module = Int8Experts.from_float(experts_of("gpt-oss"))
    assert {name for name, p in module.named_parameters() if p.requires_grad} == {"gate_up_proj_bias", "down_proj_bias"}
    with pytest.raises(RuntimeError, match="gate_up_proj of Int8GptOssExperts holds int8 codes and stays frozen"):
        module.requires_grad_(True)


def test_a_state_dict_goes_into_another_module():
    module, other = Int8Experts.from_float(experts_of("Mixtral")), Int8Experts.from_float(experts_of("Mixtral", seed=5))
    other.load_state_dict(module.state_dict())
    given = inputs("Mixtral", 5, torch.float32)
    assert_same(other(*given), module(*given))


WRONG: dict[str, tuple[str, Callable[[Tensor], Tensor], str]] = {
    "floats for codes": (
        "down_proj",
        lambda t: t.float(),
        r"down_proj must have dtype torch.int8, .* quantize a float weight with from_float",
    ),
    "a code of -128": ("gate_up_proj", lambda t: torch.full_like(t, -128), "must hold codes of -127 to 127"),
    "maxima in 16 bits": ("down_proj_absmax", lambda t: t.half(), "must have dtype torch.float32"),
    "a negative maximum": ("down_proj_absmax", lambda t: -t, "must not be negative"),
    "another shape": ("down_proj", lambda t: t[:1], "size mismatch"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_state_dict_that_does_not_fit_is_refused(fault):
    name, change, message = WRONG[fault]
    module = Int8Experts.from_float(experts_of("Mixtral"))
    state = module.state_dict()
    state[name] = change(state[name])
    with pytest.raises(RuntimeError, match=message):
        module.load_state_dict(state)


def test_under_autocast_the_projections_have_its_dtype_and_the_result_the_inputs():
    module, given = Int8Experts.from_float(experts_of("Mixtral")), inputs("Mixtral", 5, torch.float32)
    seen = []
    module.act_fn.register_forward_hook(lambda module, x, y: seen.append(x[0].dtype))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert module(*given).dtype == torch.float32
    assert seen == [torch.bfloat16]


def test_on_meta_they_have_shapes_and_no_values():
    module = experts_of("gpt-oss").to("meta")
    y = Int8Experts.from_float(module)(*(t.to("meta") for t in inputs("gpt-oss", 5, torch.float32)))
    assert (y.shape, y.device.type) == ((5, HIDDEN), "meta")
    assert module.down_proj.shape == (EXPERTS, HIDDEN, INNER)


#: A class of transformers under the decorator of its interface for experts, up to the next class.
DECORATED = re.compile(r"^@use_experts_implementation(?:\(.*?\))?\nclass (\w+)\(nn\.Module\):(.*?)(?=^class |\Z)", re.MULTILINE | re.DOTALL)


def test_every_class_of_the_interface_stores_its_experts_in_a_known_way():
    folder = Path(transformers.__file__).parent / "models"
    found = {name: body for file in folder.glob("*/modeling_*.py") for name, body in DECORATED.findall(file.read_text(encoding="utf-8"))}
    assert len(found) > 40
    for name, body in found.items():
        parameters = set(re.findall(r"self\.(\w+) = nn\.Parameter\(", body))
        weights = {parameter for parameter in parameters if not parameter.endswith("_bias")}
        assert weights in ({"gate_up_proj", "down_proj"}, {"up_proj", "down_proj"}), name
        assert parameters - weights <= {f"{weight}_bias" for weight in weights}, name
        assert "self.num_experts =" in body, name


# What is refused.


class Own(nn.Module):
    """Three dimensions, but not by the interface."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj = nn.Parameter(torch.zeros(2, 8, 4)), nn.Parameter(torch.zeros(2, 4, 4))


def patched(module: nn.Module) -> nn.Module:
    module.forward = lambda *arguments: arguments[0]  # type: ignore[method-assign]
    return module


def with_a_gradient_hook(module: nn.Module) -> nn.Module:
    module.down_proj.register_hook(lambda gradient: gradient)
    return module


def with_a_taken_name(module: nn.Module) -> nn.Module:
    module.threshold = 3.0  # type: ignore[assignment]
    return module


REFUSED: dict[str, tuple[Callable[[], nn.Module], type[Exception], str]] = {
    "another module": (Own, TypeError, "must be experts by transformers' interface for them, in float, got Own"),
    "a layer": (lambda: nn.Linear(4, 4), TypeError, "got Linear"),
    "twice": (lambda: Int8Experts.from_float(experts_of("Mixtral")), TypeError, "in float, got Int8MixtralExperts"),
    "patched": (lambda: patched(experts_of("Mixtral")), ValueError, "it has a forward of its own"),
    "a gradient hook": (lambda: with_a_gradient_hook(experts_of("Mixtral")), ValueError, "gradient hooks hang on its down_proj"),
    "float64": (lambda: experts_of("Mixtral").double(), ValueError, "its gate_up_proj is torch.float64"),
    "a name of ours": (
        lambda: with_a_taken_name(experts_of("Mixtral")),
        ValueError,
        "an attribute threshold, which is one of Int8Experts' own",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_become_int8_experts_is_refused_and_left_as_it_is(what):
    make, error, message = REFUSED[what]
    module = make()
    before, kind = {name: id(p) for name, p in module.named_parameters()}, type(module)
    with pytest.raises(error, match=message):
        Int8Experts.from_float(module)
    assert ({name: id(p) for name, p in module.named_parameters()}, type(module)) == (before, kind)


def test_k_beyond_int32_is_refused():
    with torch.device("meta"):
        module = Plain(1, 200_000, 4)
    with pytest.raises(ValueError, match="K must be at most 133144"):
        Int8Experts.from_float(module)


@pytest.mark.parametrize("wrong", [-1.0, float("nan")])
def test_a_wrong_threshold_is_refused_before_anything_changes(wrong):
    module = experts_of("Mixtral")
    with pytest.raises(ValueError, match="threshold"):
        Int8Experts.from_float(module, wrong)
    assert not isinstance(module, Int8Experts)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("target", [{"target_parameters": ["experts.down_proj"]}, {"target_modules": "all-linear"}], ids=str)
def test_adapters_of_experts_are_refused_and_those_of_attention_train(target):
    from tests.test_quantize_model import mixtral

    model = fast.quantize_model(mixtral(), progress=False)
    with pytest.raises(TypeError, match=r"Int8MixtralExperts holds int8 codes, which \w+ of PEFT cannot adapt"):
        peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(r=2, **({"target_modules": ["q_proj"]} | target), task_type="CAUSAL_LM"))
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    adapted(torch.arange(6)[None], labels=torch.arange(6)[None]).loss.backward()
    grads = [p.grad for name, p in adapted.named_parameters() if "lora_B" in name]
    assert grads
    assert all(grad is not None and bool(grad.abs().sum() > 0) for grad in grads)


def test_experts_outside_the_interface_stay_and_the_summary_names_them():
    class OwnExperts(Own):
        def forward(self, x: Tensor) -> Tensor:
            return x @ self.down_proj[0]

    model = fast.quantize_model(nn.Sequential(OwnExperts(), nn.Linear(4, 4)), progress=False)
    assert layout(model[0]) is None
    kept = {name: reason for name, (_, reason) in model.quantization_summary.kept.items()}
    assert kept == dict.fromkeys(("0.gate_up_proj", "0.down_proj"), FOREIGN)
