"""A layer that has been called computes with the weights that it holds now, however they came there.

Neither a version counter nor an address tells of every write: `p.data.copy_`, a broadcast, a NumPy view and another process leave both
as they were. The law: written to in any way, a layer computes what a fresh layer with the same contents does.
"""

import copy
import ctypes
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import fast
from fast import Int8Linear
from tests.comparison import CPU, DEVICE, GRANULARITIES, OUTLIER_WEIGHTS, QUANTIZERS, TRITON, assert_same
from tests.strategies import Recipe

N, K = 7, 40
FORMS = [(w, q, g) for w in OUTLIER_WEIGHTS for q in QUANTIZERS for g in GRANULARITIES]


def made(form: tuple[str, str, str], factor: float = 1.0, seed: int = 1) -> Int8Linear:
    w = factor * Recipe((N, K), torch.float32, seed=seed, exponent=-3).tensor()
    return Int8Linear.from_float(w, Recipe((N,), torch.float32, seed=seed + 1).tensor(), 6.0, *form)


def activations(rows: int) -> Tensor:
    return Recipe((rows, K), torch.float32, seed=3, outliers="one").tensor()


def pairs(layer: nn.Module, new: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(layer.parameters(), new.parameters(), strict=True)


def _copy_under_no_grad(layer: nn.Module, new: nn.Module) -> None:
    with torch.no_grad():
        for p, q in pairs(layer, new):
            p.copy_(q)


def _data_copy(layer: nn.Module, new: nn.Module) -> None:
    for p, q in pairs(layer, new):
        p.data.copy_(q)


def _data_twice(layer: nn.Module, new: nn.Module) -> None:
    for p, q in pairs(layer, new):
        first = torch.zeros_like(p)
        p.data = first
        layer(activations(1))
        address = first.data_ptr()
        del first
        p.data = q.detach().clone()  # often the address that the first one had
        assert address


def _data_back_and_forth(layer: nn.Module, new: nn.Module) -> None:
    for p, q in pairs(layer, new):
        p.data, old = q.detach().clone(), p.data
        layer(activations(1))
        p.data = old
        layer(activations(1))
        old.copy_(q)


def _foreach(layer: nn.Module, new: nn.Module) -> None:
    torch._foreach_copy_([p.data for p in layer.parameters()], [q.data for q in new.parameters()])


def _numpy(layer: nn.Module, new: nn.Module) -> None:
    for p, q in pairs(layer, new):
        np.copyto(p.detach().numpy(), q.detach().numpy())


def _dlpack(layer: nn.Module, new: nn.Module) -> None:
    for p, q in pairs(layer, new):
        torch.from_dlpack(p.detach()).copy_(q.detach())


def _memory(layer: nn.Module, new: nn.Module) -> None:
    for p, q in pairs(layer, new):
        ctypes.memmove(p.data_ptr(), q.data_ptr(), p.numel() * p.element_size())


def _storage(layer: nn.Module, new: nn.Module) -> None:
    for p, q in pairs(layer, new):
        p.untyped_storage().copy_(q.untyped_storage())


def _detached(layer: nn.Module, new: nn.Module) -> None:
    for p, q in pairs(layer, new):
        p.detach().view(-1)[:] = q.detach().view(-1)


def _set(layer: nn.Module, new: nn.Module) -> None:
    with torch.no_grad():
        for p, q in pairs(layer, new):
            p.set_(q.detach().clone())


def _swapped(layer: nn.Module, new: nn.Module) -> None:
    for p, q in pairs(layer, copy.deepcopy(new)):
        torch.utils.swap_tensors(p, q)


def _inference_mode(layer: nn.Module, new: nn.Module) -> None:
    with torch.inference_mode():
        for p, q in pairs(layer, new):
            p.copy_(q)


def _replaced(layer: nn.Module, new: nn.Module) -> None:
    for name, q in new.named_parameters():
        setattr(layer, name, nn.Parameter(q.detach().clone(), requires_grad=False))


def _broadcast(layer: nn.Module, new: nn.Module) -> None:
    for p, q in pairs(layer, new):
        received = q.detach().clone()
        dist.all_reduce(p.data.zero_())
        dist.broadcast(received, 0)
        dist.all_gather([p.data], received)


WRITES: dict[str, Callable[[nn.Module, nn.Module], object]] = {
    "copy_": _copy_under_no_grad,
    "data.copy_": _data_copy,
    "data twice": _data_twice,
    "data there and back": _data_back_and_forth,
    "_foreach_copy_": _foreach,
    "a NumPy view": _numpy,
    "DLPack": _dlpack,
    "memmove": _memory,
    "the storage": _storage,
    "a detached view": _detached,
    "set_": _set,
    "inference mode": _inference_mode,
    "new parameters": _replaced,
    "load_state_dict": lambda layer, new: layer.load_state_dict(new.state_dict()),
    "load_state_dict, assigned": lambda layer, new: layer.load_state_dict(copy.deepcopy(new.state_dict()), assign=True),
    "collectives": _broadcast,
}


@pytest.fixture(scope="module", autouse=True)
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path_factory.mktemp('group') / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def check(layer: Int8Linear, new: Int8Linear, write: Callable[[nn.Module, nn.Module], object], rows: int, device: torch.device) -> None:
    layer, new, x = layer.to(device), new.to(device), activations(rows).to(device)
    before = layer(x)
    for _ in range(3):  # what is remembered may be so from the first call on, or from a later one
        assert_same(layer(x), before)
    write(layer, new)
    expected = new(x)
    assert not torch.equal(expected, before)
    assert_same(layer(x), expected)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("how", WRITES)
def test_a_called_layer_computes_with_new_weights(how, form, rows):
    with fast.backend("cpu"):
        check(made(form), made(form, 2.0, seed=7), WRITES[how], rows, torch.device("cpu"))


def test_swapping_the_codes_is_refused_and_changes_nothing():
    """Codes are referred to weakly by what keeps them frozen; torch does not swap such tensors."""
    layer, new = made(FORMS[0]), made(FORMS[0], 2.0, seed=7)
    with fast.backend("cpu"):
        before = layer(activations(5))
        with pytest.raises(RuntimeError, match="weakref"):
            _swapped(layer, new)
        assert_same(layer(activations(5)), before)


@pytest.mark.parametrize("rows", [5, 37])
@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("how", ["data.copy_", "data twice", "_foreach_copy_", "collectives"])
def test_the_kernels_compute_with_new_weights(how, quantizer, rows):
    form = ("dequantized", quantizer, "vector")
    with fast.backend("triton"):
        if how == "collectives" and DEVICE.type == "cuda":
            pytest.skip("gloo gathers tensors on the CPU")
        check(made(form), made(form, 2.0, seed=7), WRITES[how], rows, DEVICE)


@pytest.mark.parametrize("side", [CPU, TRITON], ids=repr)
@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("name", ["weight_absmax", "weight", "bias", "weight_scale", "weight_zero_point"])
def test_a_write_to_one_of_the_tensors_is_used(name, quantizer, side):
    """The others stay: what follows from two tensors follows from both as they are."""
    layer, new = made(("dequantized", quantizer, "vector")), made(("dequantized", quantizer, "vector"), 2.0, seed=7)
    if layer._parameters[name] is None:
        return
    x, device = activations(5), DEVICE if side is TRITON else torch.device("cpu")
    with fast.backend(side.name):
        layer.to(device)(x.to(device))
        layer._parameters[name].data.copy_(new._parameters[name])
        assert_same(layer(x.to(device)), copy.deepcopy(layer)(x.to(device)))


def test_a_compiled_layer_computes_with_new_weights():
    form = ("dequantized", "zeropoint", "vector")
    layer, new = made(form), made(form, 2.0, seed=7)
    with fast.backend("cpu"):
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        compiled(activations(5))
        _data_copy(layer, new)
        assert_same(compiled(activations(5)), new(activations(5)))
