"""What hangs on a linear layer is there after quantizing it, and does what it did; or the layer stays float, and the summary says why."""

import copy
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fast
from fast import Int8Linear

X = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))


pytestmark = pytest.mark.usefixtures("on_the_cpu")


class Model(nn.Module):
    """One layer with something on it, one without."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(16, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


def quantized(model: nn.Module) -> nn.Module:
    return fast.quantize_model(model, skip=(), progress=False)


#: Each puts a hook on a layer and returns its handle; each multiplies or counts something that is seen from outside.
SEEN: list[str] = []
HOOKS: dict[str, Callable[[nn.Module], Any]] = {
    "forward": lambda m: m.register_forward_hook(lambda module, x, y: SEEN.append(type(module).__name__) or 2 * y),
    "forward, with keywords": lambda m: m.register_forward_hook(lambda module, x, kw, y: SEEN.append("k") or 2 * y, with_kwargs=True),
    "forward, always": lambda m: m.register_forward_hook(lambda module, x, y: SEEN.append("a"), always_call=True),
    "forward, first": lambda m: m.register_forward_hook(lambda module, x, y: SEEN.append("f"), prepend=True),
    "before": lambda m: m.register_forward_pre_hook(lambda module, x: SEEN.append("b") or (2 * x[0],)),
    "before, with keywords": lambda m: m.register_forward_pre_hook(
        lambda module, x, kw: SEEN.append("b") or ((2 * x[0],), kw), with_kwargs=True
    ),
    "backward": lambda m: m.register_full_backward_hook(lambda module, gx, gy: SEEN.append("g") or (3 * gx[0],)),
    "before backward": lambda m: m.register_full_backward_pre_hook(lambda module, gy: SEEN.append("p") or (3 * gy[0],)),
    "state dict": lambda m: m._register_state_dict_hook(lambda module, state, prefix, meta: SEEN.append("s")),
    "state dict, public": lambda m: m.register_state_dict_post_hook(lambda module, state, prefix, meta: SEEN.append("s")),
    "before state dict": lambda m: m.register_state_dict_pre_hook(lambda module, prefix, keep: SEEN.append("t")),
    "before loading": lambda m: m.register_load_state_dict_pre_hook(lambda module, *a: SEEN.append(type(module).__name__)),
    "before loading, private": lambda m: m._register_load_state_dict_pre_hook(lambda *a: SEEN.append("l")),
    "after loading": lambda m: m.register_load_state_dict_post_hook(lambda module, keys: SEEN.append(type(module).__name__)),
}


def run(model: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Calls, differentiates, saves and loads; returns the output and the gradient."""
    x = X.clone().requires_grad_()
    y = model(x)
    y.sum().backward()
    model.load_state_dict(model.state_dict())
    return y.detach(), x.grad


@pytest.mark.parametrize("how", HOOKS)
def test_hooks_do_what_they_did_and_their_handles_remove_them(how):
    model, bare = Model(), quantized(Model())
    handle = HOOKS[how](model.first)
    SEEN.clear()
    run(model)
    calls = [kind.replace("Linear", "Int8Linear") for kind in SEEN]
    assert calls
    expected = HOOKS[how](bare.first)
    y, gradient = run(bare)
    expected.remove()

    model = quantized(model)
    gc.collect()
    assert isinstance(model.first, Int8Linear)
    SEEN.clear()
    ours = run(model)
    assert calls == SEEN
    assert torch.equal(ours[0], y)
    assert torch.equal(ours[1], gradient)
    handle.remove()
    SEEN.clear()
    run(model)
    assert SEEN == []


def test_hooks_go_with_copies_and_are_called_for_them():
    model = Model()
    model.first.register_forward_hook(lambda module, x, y: 2 * y)
    model = quantized(model)
    assert torch.equal(copy.deepcopy(model)(X), model(X))


def _buffer(m: nn.Module) -> None:
    m.register_buffer("mask", torch.ones(3))
    m.register_buffer("counter", torch.zeros(1), persistent=False)


def _parameter(m: nn.Module) -> None:
    m.register_parameter("gain", nn.Parameter(torch.ones(3)))
    m.register_parameter("nothing", None)


ATTACHED: dict[str, Callable[[nn.Module], object]] = {
    "buffers": _buffer,
    "parameters": _parameter,
    "a module": lambda m: m.add_module("norm", nn.LayerNorm(12)),
    "attributes": lambda m: (setattr(m, "layer_idx", 3), setattr(m, "tags", ["a"])),
    "a function": lambda m: setattr(m, "callback", len),
    "evaluation mode": lambda m: m.eval(),
    "on the weight": lambda m: (setattr(m.weight, "mark", 1), setattr(m.bias, "mark", 2)),
}


@pytest.mark.parametrize("what", ATTACHED)
def test_what_is_attached_is_attached_to_the_new_layer(what):
    model = Model()
    bare = set(vars(model.first))
    ATTACHED[what](model.first)
    before = model.first
    model = quantized(model)
    ours = model.first
    assert isinstance(ours, Int8Linear)
    assert ours.training is before.training
    for name in set(vars(before)) - bare:
        assert getattr(ours, name) is getattr(before, name)
    for kind in ("_parameters", "_buffers", "_modules"):
        for name, value in getattr(before, kind).items():
            if name not in ("weight", "bias"):
                assert getattr(ours, kind)[name] is value
    extra = set(before.state_dict()) - {"weight", "bias"}
    assert extra <= set(ours.state_dict())
    assert set(ours.state_dict()) == extra | {"weight", "weight_absmax", "bias"}
    for name in ("weight", "bias"):
        assert vars(ours._parameters[name]).get("mark") == vars(before._parameters[name]).get("mark")
    again = copy.deepcopy(model)
    assert set(vars(again.first)) == set(vars(ours))
    assert torch.equal(again(X), model(X))


def _patched(m: nn.Module) -> None:
    original = m.forward
    m.forward = lambda x: 2 * original(x)  # type: ignore[method-assign]


OBSTACLES: dict[str, tuple[Callable[[nn.Module], object], str]] = {
    "a patched forward": (_patched, "it has a forward of its own"),
    "a patched state_dict": (lambda m: setattr(m, "state_dict", dict), "it has a state_dict of its own"),
    "compiled": (lambda m: m.compile(backend="eager"), "it has a _compiled_call_impl of its own"),
    "gradient hooks on the weight": (lambda m: m.weight.register_hook(lambda g: g), "gradient hooks hang on its weight"),
    "gradient hooks on the bias": (
        lambda m: m.bias.register_post_accumulate_grad_hook(lambda p: None), "gradient hooks hang on its bias"
    ),
    "an attribute of ours": (lambda m: setattr(m, "threshold", 1), "it has an attribute threshold, which is one of Int8Linear's own"),
    "a buffer of ours": (lambda m: m.register_buffer("weight_scale", torch.ones(1)), "it has an attribute weight_scale"),
}  # fmt: skip


@pytest.mark.parametrize("what", OBSTACLES)
def test_what_cannot_be_taken_over_keeps_the_layer_float_by_name(what):
    attach, reason = OBSTACLES[what]
    model = Model()
    attach(model.first)
    expected, first = model.first(X), model.first
    quantized(model)
    assert model.first is first
    assert torch.equal(model.first(X), expected)
    assert isinstance(model.second, Int8Linear)
    assert model.quantization_summary.kept["first"][1].startswith(reason)
    with pytest.raises(ValueError, match=f"this Linear cannot become an Int8Linear: {reason}"):
        Int8Linear.from_float(first)


def test_hooks_of_accelerate_keep_a_layer_float():
    hooks = pytest.importorskip("accelerate.hooks")
    model = Model()
    hooks.add_hook_to_module(model.first, hooks.AlignDevicesHook("cpu"))
    expected = model(X)
    quantized(model)
    assert "accelerate" in model.quantization_summary.kept["first"][1]
    assert bool((model(X) - expected).norm() < 0.05 * expected.norm())


def test_from_float_takes_over_what_hangs_on_a_module():
    linear = nn.Linear(16, 8).eval()
    linear.register_forward_hook(lambda module, x, y: 2 * y)
    linear.tag = "t"  # type: ignore[assignment]
    layer = Int8Linear.from_float(linear)
    assert layer.tag == "t"
    assert not layer.training
    assert torch.equal(layer(X), 2 * Int8Linear.from_float(linear.weight, linear.bias)(X))
