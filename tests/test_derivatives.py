"""Derivatives of a layer, by every way that torch has: those of the linear map that it stands for; and its output may be changed in place.

Rounding the activations counts as the identity, so the derivative to the input is the weight: what the codes stand for, or the float
weight that is kept. torch.nn.Linear with that weight is what each result is compared with.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap

import fast
from fast import Int8Linear
from tests.comparison import DTYPES, U32, assert_same, assert_within
from tests.strategies import Recipe

N, K = 7, 40
FORMS = [
    ("dequantized", "absmax", "vector"),
    ("float", "absmax", "row"),
    ("dequantized", "zeropoint", "vector"),
    ("float", "zeropoint", "tensor"),
]

pytestmark = [
    pytest.mark.usefixtures("on_the_cpu"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),  # torch's own, in forward mode
]


def made(form: tuple[str, str, str], seed: int = 1) -> Int8Linear:
    w = Recipe((N, K), torch.float32, seed=seed, exponent=-3).tensor()
    return Int8Linear.from_float(w, Recipe((N,), torch.float32, seed=seed + 1).tensor(), 6.0, *form)


def x_of(*shape: int, seed: int = 3) -> Tensor:
    return Recipe((*shape, K), torch.float32, seed=seed, outliers="one").tensor()


def square(layer: Callable[[Tensor], Tensor], y: Tensor) -> Callable[[Tensor], Tensor]:
    """A function whose gradients do not depend on how the layer rounds, where y is what the layer gives at that place."""
    return lambda x: ((layer(x) - y) ** 2 / 2 + (layer(x) - y)).sum()


def gradients(x: Tensor, layer: Callable, create_graph: bool = False) -> Tensor:
    x = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(square(layer, layer(x).detach())(x), x, create_graph=create_graph)
    return g


def double_backward(layer: Callable, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(square(layer, layer(x).detach())(x), x, create_graph=True)
    (h,) = torch.autograd.grad((g * torch.linspace(-1, 1, K)).sum(), x)
    return h


def dual(layer: Callable, x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        y = layer(forward_ad.make_dual(x, x_of(*x.shape[:-1], seed=5)))
        return forward_ad.unpack_dual(y).tangent


#: Each takes a layer (ours, or torch.nn.Linear with the same weight) and an input (M, K).
WAYS: dict[str, Callable[[Callable, Tensor], Tensor]] = {
    "backward": lambda layer, x: gradients(x, layer),
    "double backward": double_backward,
    "is_grads_batched": lambda layer, x: torch.autograd.grad(
        layer(x := x.clone().requires_grad_()), x, torch.eye(len(x) * N).view(-1, len(x), N), is_grads_batched=True
    )[0],
    "forward_ad": dual,
    "jvp": lambda layer, x: jvp(layer, (x,), (x_of(len(x), seed=5),))[1],
    "vjp": lambda layer, x: vjp(layer, x)[1](torch.ones(len(x), N))[0],
    "grad": lambda layer, x: grad(square(layer, layer(x)))(x),
    "jacfwd": lambda layer, x: jacfwd(layer)(x),
    "jacrev": lambda layer, x: jacrev(layer)(x),
    "hessian": lambda layer, x: hessian(square(layer, layer(x[0])))(x[0]),
    "jacfwd of jacfwd": lambda layer, x: jacfwd(jacfwd(square(layer, layer(x[0]))))(x[0]),
    "jacrev of jacrev": lambda layer, x: jacrev(jacrev(square(layer, layer(x[0]))))(x[0]),
    "forward over reverse": lambda layer, x: jvp(grad(square(layer, layer(x))), (x,), (x_of(len(x), seed=5),))[1],
    "gradients of each row": lambda layer, x: vmap(lambda row: grad(lambda r: layer(r).sum())(row))(x),
    "autograd.functional.jvp": lambda layer, x: torch.autograd.functional.jvp(layer, x, x_of(len(x), seed=5))[1],
    "autograd.functional.jacobian": lambda layer, x: torch.autograd.functional.jacobian(layer, x),
}


def stands_for(layer: Int8Linear) -> nn.Linear:
    """torch.nn.Linear with the weight that the codes stand for."""
    linear = nn.Linear(K, N)
    linear.load_state_dict(layer.dequantize().state_dict())
    return linear.requires_grad_(False)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("way", WAYS)
def test_derivatives_are_those_of_the_linear_map(way, form):
    layer = made(form)
    ours, theirs = (WAYS[way](module, x_of(3)) for module in (layer, stands_for(layer)))
    # At most two float32 products on either side, of length N and K, of numbers below these magnitudes.
    largest = float(layer.dequantize().weight.abs().max())
    bound = 4 * (N + K) * U32 * N * K * max(largest, largest**2) * 100
    assert float(theirs.abs().max()) > bound
    assert_within(ours, theirs, torch.full(ours.shape, bound, dtype=torch.float64))


@pytest.mark.parametrize("form", FORMS)
def test_the_value_is_the_layers_under_every_transform(form):
    layer, x = made(form), x_of(3)
    assert_same(jvp(layer, (x,), (x,))[0], layer(x))
    assert_same(vjp(layer, x)[0], layer(x))
    with forward_ad.dual_level():
        assert_same(forward_ad.unpack_dual(layer(forward_ad.make_dual(x, x))).primal, layer(x))


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("form", FORMS)
def test_vmap_is_one_call_after_the_other(form, dim):
    """Also where one x has an outlier column and the other has not: outliers are those of one call."""
    layer = made(form)
    several = torch.stack([x_of(3), x_of(3, seed=8) / 100, 5 * x_of(3)], dim)
    expected = torch.stack([layer(x) for x in several.unbind(dim)])
    assert_same(vmap(layer, in_dims=dim)(several), expected)
    assert_same(vmap(vmap(layer))(several.movedim(dim, 0)[:, None])[:, 0], expected)


def test_a_tangent_of_the_bias_is_one_of_the_output():
    layer, x = made(FORMS[0]), x_of(3)
    tangent = jvp(lambda b: functional_call(layer, {"bias": b}, (x,)), (layer.bias.detach(),), (torch.arange(7.0),))[1]
    assert_same(tangent, torch.arange(7.0).expand(3, 7))
    both = jvp(lambda b, x: functional_call(layer, {"bias": b}, (x,)), (layer.bias.detach(), x), (torch.arange(7.0), x))[1]
    assert_same(both, nn.functional.linear(x, layer.dequantize().weight) + torch.arange(7.0))


@pytest.mark.parametrize("name", ["weight_absmax", "float_weight"])
def test_a_tangent_of_the_frozen_weight_is_refused(name):
    layer, x = made(FORMS[1]), x_of(3)
    frozen = layer._parameters[name].detach()
    with pytest.raises(NotImplementedError, match="the weight of an Int8Linear is frozen"):
        jvp(lambda w: functional_call(layer, {name: w}, (x,)), (frozen,), (frozen,))


@pytest.mark.parametrize("form", FORMS)
def test_an_ensemble_of_layers_is_one_after_the_other(form):
    layers, x = [made(form, seed) for seed in (1, 11, 21)], x_of(3)
    parameters, buffers = stack_module_state(layers)
    together = vmap(lambda p, b: functional_call(layers[0], (p, b), (x,)))(parameters, buffers)
    assert_same(together, torch.stack([layer(x) for layer in layers]))


def test_transforms_of_a_function_that_is_compiled():
    layer, x = made(FORMS[0]), x_of(3)
    torch.compiler.reset()
    tangent = torch.compile(lambda x: jvp(layer, (x,), (x,))[1], backend="aot_eager")(x)
    assert_within(tangent, stands_for(layer)(x) - layer.bias, torch.full((3, N), 1e-3, dtype=torch.float64))
    torch.compiler.reset()


# Changing the output in place.

IN_PLACE: dict[str, Callable[[Tensor], Any]] = {
    "relu_": torch.relu_,
    "+=": lambda y: y.__iadd__(1),
    "mul_": lambda y: y.mul_(2),
    "clamp_": lambda y: y.clamp_(min=0),
    "copy_": lambda y: y.copy_(2 * y),
    "ReLU(inplace=True)": nn.ReLU(inplace=True),
    "dropout": lambda y: nn.functional.dropout(y, 0.0, inplace=True),
    "an entry": lambda y: y.masked_fill_(torch.ones_like(y, dtype=torch.bool), 3.0),
    "masked_fill_": lambda y: y.masked_fill_(y < 0, 0.0),
    "a view": lambda y: y.view(-1).mul_(2).view(y.shape),
    "unsqueeze_": lambda y: y.unsqueeze_(0),
}


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 1, 3), (), (0,), (2, 0)])
@pytest.mark.parametrize("what", IN_PLACE)
@pytest.mark.parametrize("trained", ["input", "bias", "both", "nothing"])
def test_the_output_can_be_changed_in_place(trained, what, shape):
    layer = made(FORMS[0])
    gradients = []
    for clone in (False, True):
        x = x_of(*shape).requires_grad_(trained in ("input", "both"))
        layer.bias.requires_grad_(trained in ("bias", "both"))
        layer.bias.grad = None
        y = layer(x)
        y = IN_PLACE[what](y.clone() if clone else y)
        if trained != "nothing":
            y.sum().backward()
        gradients.append((y.detach(), x.grad, layer.bias.grad))
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert_same(ours, theirs)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 1, 3), (), (0,), (2, 0)])
@pytest.mark.parametrize("autocast", [False, True])
def test_no_output_is_a_view(autocast, shape, dtype, mode):
    layer = made(FORMS[0])
    x = x_of(*shape).to(dtype)
    with mode(), torch.autocast("cpu", enabled=autocast):
        y = layer(x.requires_grad_() if mode is torch.enable_grad else x)
        assert not y._is_view()
        before = [p.clone() for p in layer.parameters()], x.clone()
        y.fill_(3.0)
    for p, kept in zip((*layer.parameters(), x.detach()), (*before[0], before[1]), strict=True):
        assert_same(p, kept)


def test_a_model_with_an_activation_in_place_trains():
    model = fast.quantize_model(nn.Sequential(nn.Linear(K, 32), nn.ReLU(inplace=True), nn.Linear(32, N)), skip=())
    x = x_of(2, 3).requires_grad_()
    y = model(x)
    y += 1
    y.sum().backward()
    assert x.grad is not None
    assert float(x.grad.abs().sum()) > 0
