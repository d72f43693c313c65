"""Which layers become int8 and which stay: computed weights, weights that are elsewhere, parents that read them, subclasses."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tf
from accelerate import cpu_offload, disk_offload, dispatch_model, init_empty_weights
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

import fast
from fast import Int8Linear
from fast.selection.float_layers import computes_as_linear
from fast.selection.readers import weight_readers
from tests.comparison import assert_same

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}


pytestmark = pytest.mark.usefixtures("on_the_cpu")


def quantize(model: nn.Module, **options: Any) -> nn.Module:
    return fast.quantize_model(model, progress=False, **options)


def int8(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, Int8Linear)]


def kept(model: nn.Module) -> dict[str, str]:
    return {name: reason for name, (_, reason) in model.quantization_summary.kept.items()}


# Computed weights.


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


COMPUTED: dict[str, tuple[Callable[[nn.Linear], Any], str]] = {
    "pruned": (lambda m: prune.l1_unstructured(m, "weight", 0.5), "weight_orig, weight_mask"),
    "pruned in rows": (lambda m: prune.ln_structured(m, "weight", 0.5, 2, 0), "weight_orig, weight_mask"),
    "a pruned bias": (lambda m: prune.l1_unstructured(m, "bias", 0.5), "bias_orig, bias_mask"),
    "weight_norm": (lambda m: parametrizations.weight_norm(m), "parametrizations.weight"),
    "weight_norm of old": (weight_norm, "weight_g, weight_v"),
    "spectral_norm": (lambda m: parametrizations.spectral_norm(m), "parametrizations.weight"),
    "spectral_norm of old": (spectral_norm, "weight_orig, weight_u, weight_v"),
    "orthogonal": (lambda m: parametrizations.orthogonal(m), "parametrizations.weight"),
    "a parametrization": (lambda m: parametrize.register_parametrization(m, "weight", Doubled()), "parametrizations.weight"),
    "a parametrized bias": (lambda m: parametrize.register_parametrization(m, "bias", Doubled()), "parametrizations.bias"),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("skip", [(), ("0",)], ids=["quantized", "named in skip"])
@pytest.mark.parametrize("how", COMPUTED)
def test_a_computed_weight_stays_and_the_rest_is_quantized(how, skip):
    change, sources = COMPUTED[how]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 8)).eval()
    change(model[0])
    before = {name: tensor.clone() for name, tensor in model[0].state_dict().items()}
    expected = model[:2](torch.ones(3, 16))
    quantize(model, skip=skip)
    assert int8(model) == ["2"]
    assert kept(model) == {"0": "named in skip" if skip else f"its weight is computed from {sources}"}
    assert model[0].state_dict().keys() == before.keys()
    for name, tensor in before.items():
        assert_same(model[0].state_dict()[name], tensor)
    assert_same(model[:2](torch.ones(3, 16)), expected)


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (lambda: torch.eye(4).to_sparse(), "its weight has the layout torch.sparse_coo"),
        (lambda: torch.eye(4, dtype=torch.float64), "its weight is torch.float64"),
        (lambda: torch.eye(4, dtype=torch.complex64), "its weight is torch.complex64"),
        (lambda: torch.eye(4).to(torch.float8_e4m3fn), "its weight is torch.float8_e4m3fn"),
    ],
)
def test_a_weight_of_another_layout_or_dtype_stays(weight, reason):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].weight = nn.Parameter(weight(), requires_grad=False)
    quantize(model)
    assert int8(model) == ["1"]
    assert kept(model) == {"0": reason}


def test_a_weight_that_is_no_parameter_stays():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    for layer, hold in ((model[0], layer_attribute), (model[1], nn.Module.register_buffer)):
        weight = layer.weight.detach()
        del layer.weight
        hold(layer, "weight", weight)
    quantize(model)
    assert int8(model) == ["2"]
    assert kept(model) == dict.fromkeys("01", "its weight is not a parameter")


def layer_attribute(layer: nn.Module, name: str, value: Tensor) -> None:
    setattr(layer, name, value)


def test_a_layer_without_its_weight_yet_stays():
    model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 4))
    quantize(model)
    assert int8(model) == ["1"]


# Weights that are elsewhere.


def llama() -> nn.Module:
    torch.manual_seed(0)
    return tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES, intermediate_size=48, num_attention_heads=4)).eval()


def on_meta(model: nn.Module) -> nn.Module:
    model.model.layers[1].to("meta")
    return model


def emptied(model: nn.Module) -> nn.Module:
    """As ZeRO-3 and FSDP leave the weights of a rank."""
    model.model.layers[0].mlp.up_proj.weight.data = torch.empty(0)
    return model


ELSEWHERE: dict[str, tuple[Callable[..., nn.Module], str]] = {
    "offloaded to the CPU": (
        lambda m, folder: cpu_offload(m, execution_device="cpu"),
        "the weight of model.layers.0.self_attn.q_proj is offloaded",
    ),
    "offloaded to a disk": (lambda m, folder: disk_offload(m, folder, execution_device="cpu"), "q_proj is offloaded"),
    "one block on a disk": (
        lambda m, folder: dispatch_model(
            m,
            {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk"}
            | {"model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"},
            main_device="cpu",
            offload_dir=folder,
        ),
        "the weight of model.layers.1.self_attn.q_proj is offloaded",
    ),
    "a block on meta": (lambda m, folder: on_meta(m), r"model\.layers\.1\.self_attn\.q_proj is on the meta device"),
    "emptied": (lambda m, folder: emptied(m), r"model\.layers\.0\.mlp\.up_proj has shape \(0,\), its layer \(48, 32\)"),
}


@pytest.mark.parametrize("where", ELSEWHERE)
def test_weights_that_are_elsewhere_are_refused_and_nothing_changes(where, tmp_path):
    move, message = ELSEWHERE[where]
    model = move(llama(), tmp_path)
    with pytest.raises(ValueError, match=rf"{message}.*quantize the model before it is offloaded"):
        quantize(model)
    assert int8(model) == []


def test_an_offloaded_model_computes_on_after_it_was_refused(tmp_path):
    model, ids = cpu_offload(llama(), execution_device="cpu"), torch.arange(5)[None]
    with torch.no_grad():
        expected = model(ids).logits
        with pytest.raises(ValueError, match=r"accelerate\.hooks\.remove_hook_from_submodules\(model\) brings the weights back"):
            quantize(model)
        assert_same(model(ids).logits, expected)


def test_a_model_without_any_values_is_quantized_as_a_skeleton():
    with init_empty_weights():
        model = quantize(llama())
    assert len(int8(model)) == 14


# Parents that read the weight.


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj, self.other = nn.Linear(8, 8), nn.Linear(8, 8)


class Multiplies(Reader):
    def forward(self, x: Tensor) -> Tensor:
        return self.other(x @ self.proj.weight.T)


class Functional(Reader):
    def forward(self, x: Tensor) -> Tensor:
        return self.other(nn.functional.linear(x, weight=self.proj.weight, bias=self.proj.bias))


class CastsItsInput(Reader):
    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.proj(x.to(self.proj.weight.dtype)))


class InAnotherMethod(Reader):
    def product(self, x: Tensor) -> Tensor:
        return x @ self.weight_of_it().T

    def weight_of_it(self) -> Tensor:
        return self.proj.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.product(x))


class Inherits(InAnotherMethod):
    pass


class FurtherDown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleList([Reader(), Reader()])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.inner:
            x = layer.other(x @ layer.proj.weight.T) if layer is self.inner[0] else layer.other(x @ self.inner[1].proj.weight.T)
        return x


class FromAList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.other = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.other(x @ self.layers[0].weight.T @ self.layers[-1].weight.T)


@pytest.mark.parametrize("kind", [Multiplies, Functional, CastsItsInput, InAnotherMethod, Inherits, FurtherDown, FromAList])
def test_a_layer_whose_weight_its_parent_reads_stays_and_is_named(kind):
    torch.manual_seed(0)
    model, x = kind(), torch.randn(4, 8)
    expected = model(x)
    quantize(model)
    assert all(name.endswith("other") for name in int8(model))
    assert set(kept(model).values()) == {"its parent reads the weight without calling the layer"}
    assert (model(x) - expected).norm() < 0.05 * expected.norm()


class Harmless(Reader):
    def __init__(self, setting: int = 1) -> None:
        super().__init__()
        self.setting = setting

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.proj.weight.device).reshape(-1, self.proj.weight.shape[1])
        if self.setting > 1 and x.ndim > 0:
            x = x @ self.proj.weight
        if self.proj.weight.dtype != torch.int8:
            x = x.to(self.proj.weight.dtype)
        return self.other(self.proj(x))

    def never_called(self) -> Tensor:
        return self.proj.weight.sum()


@pytest.mark.parametrize(("setting", "expected"), [(1, ["other", "proj"]), (2, ["other"])])
def test_shapes_and_devices_may_be_read_and_conditions_count(setting, expected):
    model, x = Harmless(setting), torch.randn(4, 8)
    y = model(x)
    quantize(model)
    assert sorted(int8(model)) == expected
    assert (model(x) - y).norm() < 0.05 * y.norm()


MODELS: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "Mamba": (lambda: tf.MambaForCausalLM(tf.MambaConfig(**SIZES, state_size=8)), {"x_proj", "dt_proj", "out_proj"}),
    "FalconMamba": (lambda: tf.FalconMambaForCausalLM(tf.FalconMambaConfig(**SIZES, state_size=8)), {"x_proj", "dt_proj", "out_proj"}),
    "RWKV": (
        lambda: tf.RwkvForCausalLM(tf.RwkvConfig(**SIZES, attention_hidden_size=32, intermediate_size=48, rescale_every=1)),
        {"output", "feed_forward.value"},
    ),
    "RWKV without": (
        lambda: tf.RwkvForCausalLM(tf.RwkvConfig(**SIZES, attention_hidden_size=32, intermediate_size=48, rescale_every=0)),
        set(),
    ),
    "WavLM": (
        lambda: tf.WavLMModel(tf.WavLMConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4)),
        {"q_proj", "k_proj", "v_proj", "out_proj"},
    ),
    "Bloom": (lambda: tf.BloomForCausalLM(tf.BloomConfig(vocab_size=64, hidden_size=32, n_layer=1, n_head=4)), set()),
    "Bloom, sliced": (
        lambda: tf.BloomForCausalLM(
            tf.BloomConfig(vocab_size=64, hidden_size=32, n_layer=1, n_head=4, pretraining_tp=2, slow_but_exact=True)
        ),
        {"dense", "dense_4h_to_h"},
    ),
    "Llama": (llama, set()),
}


@pytest.mark.parametrize("name", MODELS)
def test_readers_are_found_in_models_of_transformers(name):
    make, expected = MODELS[name]
    torch.manual_seed(0)
    model = quantize(make())
    reading = [layer for layer, reason in kept(model).items() if reason == "its parent reads the weight without calling the layer"]
    assert {suffix for suffix in expected for layer in reading if layer.endswith(suffix)} == expected
    assert all(layer.endswith(tuple(expected)) for layer in reading) if expected else reading == []
    assert len(int8(model)) > 0


def test_readers_without_a_source_are_none():
    scope: dict[str, Any] = {"nn": nn}
    exec("class Made(nn.Module):\n    def forward(self, x):\n        return x @ self.proj.weight", scope)
    model = scope["Made"]()
    model.proj = nn.Linear(4, 4)
    assert weight_readers(model) == {}


# Subclasses.


class Same(nn.Linear):
    pass


class Written(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        y = input @ self.weight.T
        return y if self.bias is None else y + self.bias


class Checked(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-1] == self.in_features
        return nn.functional.linear(x, self.weight, self.bias)


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / self.in_features**0.5


class WithoutBias(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight)


class OnlyInTraining(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return nn.functional.relu(y) if self.training else y


class Wider(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).double()


class MoreArguments(nn.Linear):
    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return super().forward(x) * scale


class MoreParameters(nn.Linear):
    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.gate = nn.Parameter(torch.zeros(()))


class Called(nn.Linear):
    def __call__(self, x: Tensor) -> Tensor:
        return -super().__call__(x)


@pytest.mark.parametrize("kind", [Same, Written, Checked, nn.modules.linear.NonDynamicallyQuantizableLinear])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_subclass_that_computes_the_same_is_quantized(kind, bias, dtype):
    model = nn.Sequential(kind(6, 4, bias=bias, dtype=dtype))
    expected = nn.Sequential(Int8Linear.from_float(model[0].weight, model[0].bias))
    quantize(model)
    assert int8(model) == ["0"]
    x = torch.ones(2, 6, dtype=dtype)
    assert_same(model(x), expected(x))


@pytest.mark.parametrize("kind", [Scaled, WithoutBias, OnlyInTraining, Wider, MoreArguments, MoreParameters, Called])
def test_a_subclass_that_may_compute_something_else_stays(kind):
    layer = kind(6, 4)
    assert not computes_as_linear(layer)
    state = {name: id(value) for name, value in layer._parameters.items()}
    quantize(nn.Sequential(layer, nn.Linear(4, 4)))
    assert {name: id(value) for name, value in layer._parameters.items()} == state


def test_trying_a_layer_does_not_touch_it():
    layer = Written(6, 4)
    seen = []
    layer.register_forward_hook(lambda *arguments: seen.append(arguments))
    weight, training = layer.weight, layer.training
    assert computes_as_linear(layer)
    assert layer.weight is weight
    assert (layer.in_features, layer.out_features, layer.training, seen) == (6, 4, training, [])


# Nothing to quantize.


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda: nn.Sequential(nn.ReLU()), {}),
        (lambda: nn.Sequential(nn.Linear(4, 4)), {"skip": ("0",)}),
        (lambda: nn.Sequential(Scaled(4, 4)), {}),
        (lambda: nn.Sequential(Int8Linear.from_float(nn.Linear(4, 4))), {}),
        (lambda: nn.Embedding(4, 4), {}),
    ],
)
def test_where_nothing_was_quantized_a_warning_says_so(make, options, caplog):
    with caplog.at_level(logging.INFO, logger="fast"):
        quantize(make(), **options)
    (record,) = [r for r in caplog.records if r.name == "fast.model"]
    assert record.levelname == "WARNING"
    assert "quantize_model found no layer to quantize in" in record.getMessage()


def test_loading_warns_likewise(tmp_path, caplog):
    llama().save_pretrained(tmp_path)
    config = fast.huggingface.Int8Config(skip_modules=["model", "lm_head"])
    with caplog.at_level(logging.INFO, logger="fast"):
        tf.LlamaForCausalLM.from_pretrained(tmp_path, quantization_config=config)
    assert "no layer of LlamaForCausalLM was quantized" in caplog.text
