"""The codes of an Int8Linear: frozen, and guarded against parents that take them for a weight."""

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional as F

import fast
from fast import Int8Linear
from fast.guard import CodesTakenForFloatsError, GuardedCodes
from tests.comparison import assert_same

MESSAGE = r"Int8Linear's weight holds codes; name the layer in skip"


pytestmark = pytest.mark.usefixtures("on_the_cpu")


def layer() -> Int8Linear:
    torch.manual_seed(0)
    return Int8Linear.from_float(nn.Linear(3, 4))


class Parent(nn.Module):
    """Reads its child's weight in a way that no source tells: `read` is given from outside."""

    def __init__(self, read: Callable[[Tensor, Tensor], object]) -> None:
        super().__init__()
        self.proj, self.read = layer(), read

    def forward(self, x: Tensor) -> object:
        return self.read(self.proj.weight, x)


def into(x: Tensor, w: Tensor) -> None:
    x[:] = w[:2]


def written(w: Tensor, value: object) -> None:
    w[:] = value


FLOATS: dict[str, Callable[[Tensor, Tensor], object]] = {
    "F.linear": lambda w, x: F.linear(x, w),
    "@": lambda w, x: x @ w.T,
    "matmul of a view": lambda w, x: torch.matmul(x, w.unsqueeze(0)[0].transpose(0, 1)),
    "addmm": lambda w, x: torch.addmm(torch.zeros(2, 4), x, w.t()),
    "einsum": lambda w, x: torch.einsum("mk,nk->mn", x, w),
    "conv": lambda w, x: F.conv1d(x[:, :, None], w[:, :, None]),
    "* a float": lambda w, x: w * 0.5,
    "a float *": lambda w, x: 0.5 * w,
    "* a tensor": lambda w, x: x[0] * w,
    "/": lambda w, x: w / 2,
    "- a tensor": lambda w, x: w - x[0],
    "mean": lambda w, x: w.mean(),
    "norm": lambda w, x: w.norm(),
    "exp": lambda w, x: torch.exp(w),
    "float()": lambda w, x: w.float(),
    "half()": lambda w, x: w.half(),
    "bfloat16()": lambda w, x: w.bfloat16(),
    "double()": lambda w, x: w.double(),
    "to(dtype)": lambda w, x: w.to(x.dtype),
    "to(device, dtype)": lambda w, x: w.to("cpu", torch.float32),
    "to(tensor)": lambda w, x: w.to(x),
    "type": lambda w, x: w.type(torch.float32),
    "type_as": lambda w, x: w.type_as(x),
    "a chunk, cast": lambda w, x: w.chunk(2)[1].float(),
    "slices put together, cast": lambda w, x: torch.cat([w[:2], w[2:]]).float(),
    "a copy, cast": lambda w, x: w.detach().clone().data.contiguous().view(-1).float(),
    "the input cast to it": lambda w, x: x.to(w),
    "copied into floats": lambda w, x: x.copy_(w[:2]),
    "assigned into floats": lambda w, x: into(x, w),
    "div_": lambda w, x: w.data.div_(2),
    "mul_": lambda w, x: w.mul_(2),
    "*=": lambda w, x: w.__imul__(2),
    "clamp_": lambda w, x: w.data.clamp_(-1, 1),
    "add_": lambda w, x: w.add_(x[0]),
    "a float copied in": lambda w, x: w.copy_(torch.ones(4, 3)),
    "floats assigned": lambda w, x: written(w, torch.ones(3)),
    "normal_": lambda w, x: w.normal_(),
}


@pytest.mark.parametrize("way", FLOATS)
def test_a_parent_that_takes_codes_for_floats_gets_an_error_that_says_so(way):
    parent, x = Parent(FLOATS[way]), torch.ones(2, 3)
    before = parent.proj.weight.clone()
    with pytest.raises(CodesTakenForFloatsError, match=MESSAGE):
        parent(x)
    assert_same(parent.proj.weight, before)
    assert_same(x, torch.ones(2, 3))


@pytest.mark.parametrize("way", ["F.linear", "float()", "div_"])
def test_so_does_one_that_reads_by_a_helper_or_in_a_comprehension(way):
    def helper(child: nn.Module, x: Tensor) -> object:
        return [FLOATS[way](each.weight, x) for each in (child,)]

    class Calls(Parent):
        def forward(self, x: Tensor) -> object:
            return helper(self.proj, x)

    with pytest.raises(CodesTakenForFloatsError, match=MESSAGE):
        Calls(FLOATS[way])(torch.ones(2, 3))


@pytest.mark.parametrize("way", ["float()", "div_", "F.linear"])
def test_in_a_model_that_quantize_model_made(way):
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(3, 4)])

        def forward(self, x: Tensor) -> object:
            return [FLOATS[way](child.weight, x) for child in self.layers]

    model = fast.quantize_model(Model())
    with pytest.raises(CodesTakenForFloatsError, match=MESSAGE):
        model(torch.ones(2, 3))


def test_input_cast_to_the_codes_dtype_is_refused_by_the_layer():
    class Casts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = layer()

        def forward(self, x: Tensor) -> Tensor:
            return self.proj(x.to(self.proj.weight.dtype))

    with pytest.raises(TypeError, match=MESSAGE):
        Casts()(torch.ones(2, 3))


ALLOWED: dict[str, tuple[Callable[[Tensor, Tensor], object], object]] = {
    "dtype": (lambda w, x: w.dtype, torch.int8),
    "device": (lambda w, x: w.device.type, "cpu"),
    "shape": (lambda w, x: (w.shape, w.size(0), w.T.shape, w.numel(), w.element_size()), ((4, 3), 4, (3, 4), 12, 1)),
    "a parameter": (lambda w, x: (isinstance(w, nn.Parameter), w.requires_grad, w.is_meta), (True, False, False)),
    "no attribute": (lambda w, x: hasattr(w, "SCB"), False),
    "zeros like it": (lambda w, x: torch.zeros_like(w, dtype=x.dtype).sum().item(), 0.0),
    "new floats": (lambda w, x: w.new_zeros(2, dtype=x.dtype).shape, (2,)),
    "equal": (lambda w, x: torch.equal(w, w.clone()), True),
    "largest": (lambda w, x: int(w.abs().max()), 127),
    "moved": (lambda w, x: w.to("cpu").dtype, torch.int8),
    "repr": (lambda w, x: "int8" in repr(w), True),
}


@pytest.mark.parametrize("way", ALLOWED)
def test_a_parent_may_look_at_codes(way):
    read, expected = ALLOWED[way]
    assert Parent(read)(torch.ones(2, 3)) == expected


def test_what_a_parent_assigns_reaches_the_parameter():
    def assign(w: Tensor, x: Tensor) -> None:
        w.data = torch.full((4, 3), 7, dtype=torch.int8)
        w.tag = "seen"

    parent = Parent(assign)
    parent(torch.ones(2, 3))
    assert_same(parent.proj.weight.data, torch.full((4, 3), 7, dtype=torch.int8))
    assert parent.proj.weight.tag == "seen"


def test_outside_of_modules_the_weight_is_the_parameter_itself():
    child = layer()
    assert child.weight is child.weight is child._parameters["weight"] is next(child.parameters())
    assert type(child.weight) is nn.Parameter
    assert not isinstance(child.weight, GuardedCodes)
    assert_same(child.weight.float() * (child.weight_absmax / 127), fast.absmax_dequantize(child.weight, child.weight_absmax / 127))


def test_functions_that_know_codes_take_guarded_ones():
    class Analyses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = layer()

        def forward(self, x: Tensor) -> Tensor:
            return fast.absmax_dequantize(self.proj.weight, self.proj.weight_absmax / 127)

    model = Analyses()
    assert_same(model(torch.ones(2, 3)), fast.absmax_dequantize(model.proj.weight, model.proj.weight_absmax / 127))


# Frozen.

WAYS = {
    "made": lambda child: child,
    "deepcopy": copy.deepcopy,
    "pickle": lambda child: pickle.loads(pickle.dumps(child)),
    "torch.save": lambda child: torch.load(io.BytesIO(_saved(child)), weights_only=False),
    "half": lambda child: child.half(),
    "meta": lambda child: child.to("meta"),
    "assigned": lambda child: child.load_state_dict(layer().state_dict(), assign=True) and child,
}


def _saved(child: nn.Module) -> bytes:
    file = io.BytesIO()
    torch.save(child, file)
    return file.getvalue()


@pytest.mark.parametrize("way", WAYS)
def test_training_codes_is_refused_and_says_what_to_do(way):
    model = nn.Sequential(WAYS[way](layer()))
    with pytest.raises(
        RuntimeError, match=r"Int8Linear's weight holds int8 codes and stays frozen: only Tensors of floating point.*adapter"
    ):
        model.requires_grad_(True)
    assert not model[0].weight.requires_grad
    model.requires_grad_(False)
    assert model[0].weight.requires_grad_(False) is model[0].weight


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_peft_cannot_train_a_copy_of_an_int8_layer():
    peft = pytest.importorskip("peft")
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    fast.quantize_model(model)
    with pytest.raises(RuntimeError, match=r"name it in skip .* modules_to_save needs"):
        peft.get_peft_model(model, peft.LoraConfig(target_modules=["0"], modules_to_save=["1"]))


def test_the_weight_survives_safetensors_and_a_state_dict_has_plain_tensors():
    child = layer()
    state = load(save(child.state_dict()))
    assert {type(value) for value in child.state_dict().values()} == {Tensor}
    other = Int8Linear(3, 4)
    other.load_state_dict(state)
    assert_same(other(torch.ones(2, 3)), child(torch.ones(2, 3)))


def test_parameters_that_are_saved_as_such_are_loaded():
    file = io.BytesIO()
    torch.save(dict(layer().named_parameters()), file)
    file.seek(0)
    assert_same(torch.load(file)["weight"].data, layer().weight.data)


def test_a_compiled_model_reads_no_guard():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = layer()

        def forward(self, x: Tensor) -> Tensor:
            return self.proj(x.to(self.proj.bias.dtype)) if self.proj.weight.dtype == torch.int8 else x

    model, x = Model(), torch.ones(2, 3)
    assert_same(torch.compile(model, backend="aot_eager", fullgraph=True)(x), model(x))


def test_a_module_without_its_weight_says_so():
    child = layer()
    del child.weight
    assert not hasattr(child, "weight")
    child.weight = torch.ones(1)  # as DataParallel's copies hold it
    assert_same(child.weight, torch.ones(1))
