"""What follows from a stored tensor: computed once a state, dropped with the tensor, kept where a CUDA graph still reads it."""

import gc
import weakref

import pytest
import torch

from fast import derived
from fast.derived import Derived


class Value:
    """What a derived value may be: anything that can be watched as it goes."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.total = float(tensor.sum())


@pytest.fixture
def capturing(monkeypatch):
    """Turns on and off what says whether a CUDA graph is being captured."""
    state = {"on": False}
    monkeypatch.setattr(derived, "is_capturing", lambda tensor: state["on"])
    return state


def test_a_value_is_derived_once_for_each_state_of_a_tensor():
    calls = []
    total = Derived(lambda t: calls.append(1) or float(t.sum()))
    x = torch.ones(3)
    assert [total(x), total(x)] == [3.0, 3.0]
    assert len(calls) == 1
    x.add_(1)
    assert total(x) == 6.0
    assert len(calls) == 2


def test_a_value_goes_when_its_tensor_goes():
    value_of = Derived(Value)
    x = torch.ones(3)
    value = weakref.ref(value_of(x))
    assert value() is not None
    del x
    gc.collect()
    assert value() is None


def test_a_value_goes_when_its_tensor_is_written_to():
    value_of = Derived(Value)
    x = torch.ones(3)
    value = weakref.ref(value_of(x))
    x.add_(1)
    value_of(x)
    gc.collect()
    assert value() is None


def test_a_graph_takes_the_value_that_is_there_and_no_value_is_kept_that_was_made_for_it(capturing):
    value_of = Derived(Value)
    seen, unseen = torch.ones(3), torch.ones(3)
    before = value_of(seen)
    capturing["on"] = True
    assert value_of(seen) is before
    made = value_of(unseen)
    assert value_of(unseen) is not made
    capturing["on"] = False
    assert value_of(unseen) is not made


def test_what_a_graph_reads_stays_after_later_writes(capturing):
    value_of = Derived(Value)
    x = torch.ones(3)
    value_of(x)
    capturing["on"] = True
    read = weakref.ref(value_of(x))
    capturing["on"] = False
    for _ in range(3):
        x.add_(1)
        value_of(x)
    gc.collect()
    assert read() is not None
    assert value_of(x).total == 12.0
    del x
    gc.collect()
    assert read() is None
