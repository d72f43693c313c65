"""fast.Int8Linear as people use a torch module: made, moved, cast, copied, saved, loaded, trained on top of, and asked the wrong thing.

That its results equal the reference's is in test_pairs.py; here a layer is compared with itself before something was done to it.
"""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import fast
from fast import Int8Linear
from tests.comparison import DTYPES, GRANULARITIES, OUTLIER_WEIGHTS, QUANTIZERS, REFERENCE, U32, assert_same, assert_within
from tests.strategies import Recipe, recipes

N, K = 7, 40
FORMS = [(w, q, g) for w in OUTLIER_WEIGHTS for q in QUANTIZERS for g in GRANULARITIES]


pytestmark = pytest.mark.usefixtures("on_the_cpu")


def weight(dtype: torch.dtype = torch.float32) -> Tensor:
    return Recipe((N, K), dtype, seed=1, exponent=-3).tensor()


def bias(dtype: torch.dtype = torch.float32) -> Tensor:
    return Recipe((N,), dtype, seed=2).tensor()


def activations(dtype: torch.dtype = torch.float32, outliers: str = "some columns", rows: int = 5) -> Tensor:
    return Recipe((rows, K), dtype, seed=3, outliers=outliers).tensor()


def made(
    outlier_weight: str = "dequantized", quantizer: str = "absmax", granularity: str = "vector", dtype: torch.dtype = torch.float32
) -> Int8Linear:
    return Int8Linear.from_float(weight(dtype), bias(dtype), 6.0, outlier_weight, quantizer, granularity)


def assert_same_layer(actual: nn.Module, expected: nn.Module, x: Tensor | None = None) -> None:
    """The same stored tensors, and the same output."""
    ours, theirs = actual.state_dict(), expected.state_dict()
    assert list(ours) == list(theirs)
    for name in ours:
        assert_same(ours[name], theirs[name])
    x = activations() if x is None else x
    assert_same(actual(x), expected(x))


# Making one.


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_linear_a_conv1d_and_their_weight_make_the_same_layer(dtype, has_bias):
    linear = nn.Linear(K, N, bias=has_bias, dtype=dtype)
    conv1d = Conv1D(N, K).to(dtype)
    conv1d.weight.data = linear.weight.data.T.contiguous()
    conv1d.bias.data = linear.bias.data if has_bias else torch.zeros(N, dtype=dtype)
    expected = Int8Linear.from_float(linear.weight, linear.bias)
    assert_same_layer(Int8Linear.from_float(linear), expected, activations(dtype))
    if has_bias:
        assert_same_layer(Int8Linear.from_float(conv1d), expected, activations(dtype))


@pytest.mark.parametrize("form", FORMS)
def test_what_is_stored_is_what_the_reference_stores(form):
    layer, expected = made(*form), REFERENCE.module.Int8Linear.from_float(weight().numpy(), bias().numpy(), 6.0, *form)
    for name in ("weight", "weight_absmax", "weight_scale", "weight_zero_point", "float_weight", "bias"):
        assert (getattr(layer, name) is None) == (getattr(expected, name) is None)
        if getattr(layer, name) is not None:
            assert_same(getattr(layer, name), getattr(expected, name))


@given(recipe=recipes(finite=False).filter(lambda r: len(r.shape) == 2))
def test_a_weight_in_any_layout_makes_the_layer_of_its_contiguous_copy(recipe):
    w = recipe.tensor()
    ours, theirs = (Int8Linear.from_float(w, outlier_weight="float").state_dict() for w in (w, w.contiguous()))
    for name in ours:
        assert_same(ours[name], theirs[name])


def test_the_float_weight_may_go_once_the_layer_is_made():
    w, b = weight(), bias()
    layer = Int8Linear.from_float(w, b)
    before = layer(activations())
    w.fill_(float("nan"))
    assert_same(layer(activations()), before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("outlier_weight", "kept"), [("dequantized", 0), ("float", 1)])
def test_a_layer_takes_one_byte_a_weight_and_four_a_row(outlier_weight, kept, dtype):
    layer = Int8Linear.from_float(weight(dtype), None, outlier_weight=outlier_weight)
    size = sum(t.numel() * t.element_size() for t in (*layer.parameters(), *layer.buffers()))
    assert size == N * K + 4 * N + kept * N * K * dtype.itemsize


def test_calling_a_layer_adds_nothing_to_what_it_stores():
    layer = made()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    layer(activations())
    assert list(layer.state_dict()) == list(before) == ["weight", "weight_absmax", "bias"]
    for name, value in layer.state_dict().items():
        assert_same(value, before[name])


@pytest.mark.parametrize("form", FORMS)
def test_a_layer_on_meta_holds_no_memory_and_becomes_real_by_loading(form):
    layer = made(*form)
    options: Any = dict(zip(("outlier_weight", "quantizer", "granularity"), form, strict=True))
    empty = Int8Linear(K, N, **options, device="meta")
    assert all(p.is_meta for p in empty.parameters())
    assert {n: (p.shape, p.dtype) for n, p in empty.state_dict().items()} == {n: (p.shape, p.dtype) for n, p in layer.state_dict().items()}
    empty.load_state_dict(layer.state_dict(), assign=True)
    assert_same_layer(empty, layer)


def test_a_float_weight_on_meta_makes_a_layer_on_meta():
    layer = Int8Linear.from_float(nn.Linear(K, N, device="meta"))
    assert all(p.is_meta for p in layer.parameters())
    assert layer(torch.empty(2, 3, K, device="meta")).shape == (2, 3, N)


def test_a_fresh_layer_computes_zeros():
    y = Int8Linear(K, N)(activations())
    assert_same(y, torch.zeros(5, N))


def test_to_empty_gives_a_layer_that_can_be_filled():
    empty = Int8Linear(K, N, device="meta").to_empty(device="cpu")
    empty.load_state_dict(made().state_dict())
    assert_same_layer(empty, made())


# Calling it.


@pytest.mark.parametrize("leading", [(), (1,), (3,), (0,), (2, 3), (2, 1, 3), (0, 4)])
def test_leading_dimensions_are_flattened_and_restored(leading):
    layer = made()
    x = Recipe((*leading, K), torch.float32, seed=4, outliers="one").tensor()
    y = layer(x)
    assert y.shape == (*leading, N)
    assert_same(y.reshape(-1, N), layer(x.reshape(-1, K)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
def test_training_computes_what_evaluation_does(form, dtype):
    layer, x = made(*form, dtype=dtype), activations(dtype)
    assert_same(layer.train()(x), layer.eval()(x))


@pytest.mark.parametrize("outliers", ["none", "some columns", "all columns"])
@pytest.mark.parametrize("x_dtype", DTYPES)
@pytest.mark.parametrize("layer_dtype", DTYPES)
def test_the_output_has_the_inputs_dtype_whatever_the_layers(layer_dtype, x_dtype, outliers):
    assert made("float", dtype=layer_dtype)(activations(x_dtype, outliers)).dtype == x_dtype


@pytest.mark.parametrize("outliers", ["none", "some columns", "all columns"])
@pytest.mark.parametrize("x_dtype", DTYPES)
@pytest.mark.parametrize("autocast_dtype", [torch.float16, torch.bfloat16])
def test_under_autocast_the_output_has_its_dtype_whatever_the_data(autocast_dtype, x_dtype, outliers):
    layer, x = made(), activations(x_dtype, outliers)
    with torch.autocast("cpu", dtype=autocast_dtype):
        y = layer(x)
        assert y.dtype == nn.Linear(K, N)(x.float()).dtype == autocast_dtype
    # The arithmetic inside is not autocast's: only the result is cast.
    assert_same(y, layer(x).to(autocast_dtype))


def test_a_layer_that_was_called_computes_with_what_is_loaded_into_it():
    layer, other = made(), Int8Linear.from_float(weight() * 3, bias())
    layer(activations())
    layer.load_state_dict(other.state_dict())
    assert_same_layer(layer, other)


def test_a_write_to_the_absmax_reaches_the_output():
    layer = Int8Linear.from_float(weight(), None)
    before = layer(activations())
    with torch.no_grad():
        layer.weight_absmax.mul_(2)
    assert_same(layer(activations()), 2 * before)


def test_inference_mode_changes_nothing():
    layer, x = made(), activations()
    with torch.inference_mode():
        y = layer(x)
        assert_same(made()(x), y)
    assert_same(layer(x), y)


# Moving and casting it.

CASTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "half": lambda layer: layer.half(),
    "bfloat16": lambda layer: layer.bfloat16(),
    "double": lambda layer: layer.double(),
    "to(float16)": lambda layer: layer.to(torch.float16),
    "to(cpu, bfloat16)": lambda layer: layer.to("cpu", torch.bfloat16),
    "type(float16)": lambda layer: layer.type(torch.float16),
    "as part of a model": lambda layer: nn.Sequential(layer).half()[0],
}


@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("form", FORMS)
def test_casting_leaves_codes_and_scales_alone(form, cast):
    layer, original = made(*form), made(*form)
    layer(activations())
    layer = CASTS[cast](layer)
    for name in ("weight", "weight_absmax", "weight_scale", "weight_zero_point"):
        if getattr(layer, name) is not None:
            assert_same(getattr(layer, name), getattr(original, name))
    assert layer.bias.dtype != torch.float32
    assert layer.float_weight is None or layer.float_weight.dtype == layer.bias.dtype


def test_casting_there_and_back_loses_what_the_bias_loses_and_no_more():
    layer = made().half().float()
    expected = made()
    expected.bias.data = expected.bias.data.half().float()
    assert_same_layer(layer, expected)


def test_moving_to_meta_takes_everything_along():
    layer = made("float", "zeropoint").to("meta")
    assert {p.device.type for p in layer.parameters()} == {"meta"}
    assert layer.weight.dtype == torch.int8


# Copying, pickling, saving and loading it.

COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
    "torch.save": lambda layer: torch.load(saved(layer), weights_only=False),
}


def saved(value: Any) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return file


@pytest.mark.parametrize("name", COPIES)
@pytest.mark.parametrize("form", FORMS)
def test_a_copy_is_the_same_layer(form, name):
    layer = made(*form)
    layer(activations())
    again = COPIES[name](layer)
    assert repr(again) == repr(layer)
    assert_same_layer(again, layer)


def test_a_deep_copy_is_independent():
    layer = made()
    again = copy.deepcopy(layer)
    layer(activations()), again(activations())
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight_absmax.zero_()
    assert_same_layer(again, made())


@pytest.mark.parametrize("assign", [True, False])
@pytest.mark.parametrize("form", FORMS)
@given(seed=st.integers(0, 99), dtype=st.sampled_from(DTYPES))
def test_a_state_dict_round_trips_bit_for_bit(form, assign, seed, dtype):
    layer = Int8Linear.from_float(Recipe((N, K), dtype, seed).tensor(), Recipe((N,), dtype, seed).tensor(), 6.0, *form)
    again = Int8Linear(K, N, True, 6.0, *form, dtype=dtype)
    # weights_only: nothing in the file is unpickled but tensors.
    again.load_state_dict(torch.load(saved(layer.state_dict()), weights_only=True), assign=assign)
    assert not any(p.requires_grad for p in again.parameters())
    assert_same_layer(again, layer)


SPOILED = {
    "a float weight": ("weight", lambda t: t.float(), "weight must have dtype torch.int8, the state dict holds torch.float32; quantize"),
    "a rounded absmax": ("weight_absmax", lambda t: t.half(), "weight_absmax must have dtype torch.float32, .* torch.float16"),
    "a negative absmax": ("weight_absmax", lambda t: -t, "weight_absmax must not be negative"),
    "a code of -128": ("weight", lambda t: torch.full_like(t, -128), "weight must hold codes of -127 to 127"),
    "another shape": ("weight", lambda t: t[:, 1:], "size mismatch for weight"),
    "a row of absmax": ("weight_absmax", lambda t: t.T, "size mismatch for weight_absmax"),
}


@pytest.mark.parametrize("what", SPOILED)
def test_a_state_dict_that_is_not_a_layers_is_refused_and_changes_nothing(what):
    name, spoil, message = SPOILED[what]
    layer = made()
    state = made().state_dict() | {name: spoil(made().state_dict()[name])}
    with pytest.raises(RuntimeError, match=message):
        layer.load_state_dict(state)
    assert_same_layer(layer, made())


@pytest.mark.parametrize("name", ["weight", "weight_absmax", "bias"])
def test_a_state_dict_that_lacks_an_entry_is_refused(name):
    state = made().state_dict()
    del state[name]
    with pytest.raises(RuntimeError, match=rf'Missing key\(s\) in state_dict: "{name}"'):
        made().load_state_dict(state)


# Showing it.


def test_a_layer_shows_its_shape_its_threshold_and_what_is_not_the_default():
    assert repr(made()) == "Int8Linear(in_features=40, out_features=7, bias=True, threshold=6.0)"
    assert repr(Int8Linear(3, 2, False, None, "float", "zeropoint", "row")) == (
        "Int8Linear(in_features=3, out_features=2, bias=False, threshold=None, outlier_weight=float, quantizer=zeropoint, granularity=row)"
    )


def test_an_empty_layer_has_a_bias_and_the_papers_threshold_unless_told_otherwise():
    assert repr(Int8Linear(K, N)) == repr(made())


# Training on top of it.


def dequantized(layer: Int8Linear) -> Tensor:
    if layer.weight_zero_point is None:
        return fast.absmax_dequantize(layer.weight, fast.absmax_quantize(weight(), -1 if len(layer.weight_absmax) > 1 else None).scale)
    return fast.zeropoint_dequantize(layer.weight, layer.weight_scale, layer.weight_zero_point)


@pytest.mark.parametrize("leading", [(5,), (2, 3), ()])
@pytest.mark.parametrize("form", FORMS)
def test_the_gradient_to_the_input_is_that_of_the_weight_the_layer_stands_for(form, leading):
    layer = made(*form)
    x = Recipe((*leading, K), torch.float32, seed=5, outliers="one").tensor().requires_grad_()
    gradient = Recipe((*leading, N), torch.float32, seed=6).tensor()
    layer(x).backward(gradient)
    w = weight() if layer.float_weight is not None else dequantized(layer)
    expected = gradient.double() @ w.double()
    # Two float32 dot products of length N, of the same numbers.
    bound = 2 * N * U32 * (gradient.double().abs() @ w.double().abs())
    assert x.grad is not None
    assert x.grad.shape == x.shape
    assert_within(x.grad, expected.float(), bound + U32 * expected.abs())


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_have_the_dtype_of_what_they_belong_to(dtype):
    layer = made(dtype=torch.float32)
    layer.bias.requires_grad_()
    x = activations(dtype).requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype
    assert_same(layer.bias.grad, torch.full((N,), 5.0))


def test_the_weight_is_frozen():
    layer = made("float", "zeropoint")
    assert not any(p.requires_grad for p in layer.parameters())
    with pytest.raises(RuntimeError, match="only Tensors of floating point"):
        layer.weight.requires_grad_()


def test_no_gradient_is_kept_where_none_is_asked_for():
    assert not made()(activations()).requires_grad


class Classifier(nn.Module):
    """Two layers with a nonlinearity between them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(K, 32)
        self.second = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


def test_lora_learns_on_top_of_a_quantized_model_and_leaves_its_codes_alone():
    model = fast.quantize_model(Classifier())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["first", "second"], init_lora_weights=True))
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert len(trained) == 4
    assert all("lora_" in name for name in trained)

    x, target = activations(rows=32), torch.arange(32) % 4
    assert_same(adapted(x), model(x))  # an adapter starts as nothing
    optimizer = torch.optim.Adam([p for p in adapted.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(adapted(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    for name, value in adapted.unload().state_dict().items():
        assert_same(value, before[name])


# Asking the wrong thing.


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"weight": torch.ones(3)}, ValueError, r"weight must have 2 dimensions, got shape \(3,\)"),
        ({"weight": torch.ones(2, 3, 4)}, ValueError, r"weight must have 2 dimensions, got shape \(2, 3, 4\)"),
        ({"weight": torch.ones(2, 3, dtype=torch.int8)}, TypeError, "weight must have dtype float16, bfloat16 or float32, got torch.int8"),
        ({"weight": torch.ones(2, 3, dtype=torch.float64)}, TypeError, r"got torch.float64; write weight.float\(\)"),
        ({"weight": torch.ones(2, 3).to_sparse()}, TypeError, "weight must be a dense tensor"),
        ({"weight": [[1.0]]}, TypeError, "weight must be a torch.Tensor, got list"),
        ({"weight": nn.Conv2d(1, 1, 1)}, TypeError, "weight must be a tensor, a torch.nn.Linear or a transformers Conv1D, got Conv2d"),
        ({"weight": Int8Linear(2, 2)}, TypeError, "got Int8Linear"),
        ({"weight": nn.Linear(2, 2), "bias": torch.ones(2)}, TypeError, "bias must be None where weight is a module"),
        ({"weight": torch.ones(2, 3), "bias": torch.ones(3)}, ValueError, r"bias must have shape \(2,\), .* got \(3,\)"),
        ({"weight": torch.ones(2, 3), "bias": torch.ones(2, 1)}, ValueError, "bias must have 1 dimension"),
        ({"weight": torch.ones(2, 3), "bias": torch.ones(2, dtype=torch.int32)}, TypeError, "bias must have dtype"),
        ({"weight": torch.ones(2, 3), "bias": torch.ones(2, device="meta")}, ValueError, "weight and bias must be on the same device"),
        ({"threshold": -1}, ValueError, "threshold must be 0 or more"),
        ({"threshold": float("nan")}, ValueError, "threshold must be 0 or more"),
        ({"threshold": "6"}, TypeError, "threshold must be a number or None, got str"),
        ({"outlier_weight": "fp16"}, ValueError, "outlier_weight must be one of 'dequantized', 'float', got 'fp16'"),
        ({"quantizer": "int4"}, ValueError, "quantizer must be one of 'absmax', 'zeropoint', got 'int4'"),
        ({"granularity": "column"}, ValueError, "granularity must be one of 'tensor', 'row', 'vector', got 'column'"),
        ({"weight": torch.ones(1, 133_145)}, ValueError, "K must be at most 133144 for absmax"),
        ({"weight": torch.ones(1, 131_072), "quantizer": "zeropoint"}, ValueError, "K must be at most 131071 for zeropoint"),
    ],
)
def test_a_layer_that_cannot_be_made_says_which_argument_is_wrong(arguments, error, message):
    with pytest.raises(error, match=message):
        Int8Linear.from_float(**{"weight": torch.ones(2, 3)} | arguments)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.ones(2, K + 1), ValueError, r"x and weight must have the same last dimension K, got x \(2, 41\) and weight \(7, 40\)"),
        (torch.ones(()), ValueError, "x must have at least 1 dimension"),
        (torch.ones(2, K, dtype=torch.float64), TypeError, r"got torch.float64; write x.float\(\)"),
        (torch.ones(2, K, dtype=torch.int8), TypeError, "x must have dtype float16, bfloat16 or float32, got torch.int8"),
        (torch.ones(2, K, device="meta"), ValueError, "x and weight must be on the same device, got meta and cpu"),
        ([1.0] * K, TypeError, "x must be a torch.Tensor, got list"),
    ],
)
def test_a_layer_says_what_is_wrong_with_its_input(x, error, message):
    with pytest.raises(error, match=message):
        made()(x)
