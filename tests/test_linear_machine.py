"""Whatever is done to an Int8Linear, in whatever order, it stays equal to a layer that was just made.

Hypothesis moves, casts, copies, pickles, saves, loads, calls and differentiates one layer. Beside it stand the plain tensors that a fresh
layer is made from; the only things that a cast may change, bias and float weight, are cast there too.
"""

import copy
import io
import pickle
from typing import Any

import safetensors.torch
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor, nn

import fast
from fast import Int8Linear
from tests import strategies
from tests.comparison import DEVICE, DTYPES, assert_same
from tests.strategies import Recipe

dtypes = st.sampled_from(DTYPES)
seeds = st.integers(0, 2**32 - 1)


class LayerMachine(RuleBasedStateMachine):
    layer: Int8Linear

    @initialize(
        n=st.sampled_from((0, 1, 6)),
        k=st.sampled_from((0, 1, 19, 40)),
        threshold=strategies.thresholds,
        outlier_weight=strategies.outlier_weights,
        quantizer=strategies.quantizers,
        granularity=strategies.granularities,
        dtype=dtypes,
        seed=seeds,
        has_bias=st.booleans(),
    )
    def make(self, n, k, dtype, seed, has_bias, **options: Any) -> None:
        self.options = options
        self.has_bias = has_bias
        self.shape = (n, k)
        self.fill(dtype, seed)
        self.layer = self.fresh()

    def fill(self, dtype: torch.dtype, seed: int) -> None:
        self.weight = Recipe(self.shape, dtype, seed, exponent=-2, outliers="one").tensor()
        self.bias = Recipe(self.shape[:1], dtype, seed + 1).tensor() if self.has_bias else None
        self.float_weight = self.weight

    def fresh(self) -> Int8Linear:
        """A layer just made from the plain tensors, bias and float weight as cast since."""
        layer = Int8Linear.from_float(self.weight, self.bias, **self.options)
        if layer.float_weight is not None:
            layer.float_weight = nn.Parameter(self.float_weight.clone(), requires_grad=False)
        return layer

    def input(self, dtype: torch.dtype, seed: int, outliers: str, rows: int) -> Tensor:
        return Recipe((rows, self.shape[1]), dtype, seed, outliers=outliers).tensor()

    @rule(dtype=dtypes, how=st.sampled_from(("to", "type", "in a model")))
    def cast(self, dtype, how) -> None:
        if how == "in a model":
            nn.Sequential(self.layer).to(dtype)
        else:
            self.layer = getattr(self.layer, how)(dtype)
        self.bias = None if self.bias is None else self.bias.to(dtype)
        self.float_weight = self.float_weight.to(dtype)

    @rule()
    def move_there_and_back(self) -> None:
        self.layer = self.layer.to(DEVICE).cpu()

    @rule(how=st.sampled_from((copy.deepcopy, copy.copy, lambda layer: pickle.loads(pickle.dumps(layer)))))
    def copy_it(self, how) -> None:
        self.layer = how(self.layer)

    @rule(device=st.sampled_from(("cpu", "meta")), form=st.sampled_from(("torch", "safetensors")))
    def save_and_load_into_an_empty_one(self, device, form) -> None:
        state = self.saved_and_read(form)
        dtype = self.float_weight.dtype
        empty = Int8Linear(self.shape[1], self.shape[0], self.has_bias, **self.options, device=device, dtype=dtype)
        empty.load_state_dict(state, assign=device == "meta")
        self.layer = empty

    def saved_and_read(self, form: str) -> dict[str, Tensor]:
        if form == "safetensors":
            return safetensors.torch.load(safetensors.torch.save(self.layer.state_dict()))
        file = io.BytesIO()
        torch.save(self.layer.state_dict(), file)
        file.seek(0)
        return torch.load(file, weights_only=True)

    @rule(seed=seeds, assign=st.booleans())
    def load_another_weight_into_it(self, seed, assign) -> None:
        dtype = self.float_weight.dtype
        self.fill(dtype, seed)
        self.layer.load_state_dict(self.fresh().state_dict(), assign=assign)

    @rule(mode=st.booleans())
    def train(self, mode) -> None:
        self.layer.train(mode)

    @precondition(lambda self: self.has_bias)
    @rule(wanted=st.booleans())
    def ask_for_the_gradient_of_the_bias(self, wanted) -> None:
        assert self.layer.bias is not None
        self.layer.bias.requires_grad_(wanted)

    @rule(dtype=dtypes, seed=seeds, outliers=st.sampled_from(strategies.OUTLIERS), rows=st.sampled_from((0, 1, 5)), inference=st.booleans())
    def call(self, dtype, seed, outliers, rows, inference) -> None:
        x = self.input(dtype, seed, outliers, rows)
        with torch.inference_mode(inference), fast.backend("cpu"):
            y = self.layer(x)
        assert_same(y, self.called(x))

    def called(self, x: Tensor) -> Tensor:
        with fast.backend("cpu"):
            return self.fresh()(x)

    @rule(dtype=dtypes, seed=seeds)
    def differentiate(self, dtype, seed) -> None:
        gradients = []
        for layer in (self.layer, self.fresh()):
            x = self.input(dtype, seed, "one", 3).requires_grad_()
            with fast.backend("cpu"):
                layer(x).sum().backward()
            gradients.append(x.grad)
        assert_same(*gradients)

    @invariant()
    def stores_what_a_fresh_one_stores(self) -> None:
        ours, theirs = self.layer.state_dict(), self.fresh().state_dict()
        assert list(ours) == list(theirs)
        for name in ours:
            assert_same(ours[name], theirs[name])
        assert repr(self.layer) == repr(self.fresh())


LayerMachine.TestCase.settings = settings(stateful_step_count=20)
TestALayerStaysEqualToAFreshOne = LayerMachine.TestCase
