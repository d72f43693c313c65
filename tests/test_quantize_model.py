"""Whole models through fast.quantize_model: what becomes int8, what stays and why, and that the rest of the model does not notice."""

import copy
import logging
import sys
import weakref
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import fast
from fast import Int8Linear
from fast.selection import Summary, choose_layers
from tests.comparison import DTYPES, REFERENCE, assert_product, assert_same

VOCABULARY = 40


pytestmark = pytest.mark.usefixtures("on_the_cpu")


def llama(**options: Any) -> nn.Module:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=VOCABULARY,
            **options,
        )
    )


def gpt2() -> nn.Module:
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=VOCABULARY, n_positions=64))


def opt() -> nn.Module:
    return transformers.OPTForCausalLM(
        transformers.OPTConfig(
            hidden_size=32,
            ffn_dim=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            vocab_size=VOCABULARY,
            word_embed_proj_dim=32,
            max_position_embeddings=64,
        )
    )


def bert() -> nn.Module:
    return transformers.BertModel(
        transformers.BertConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=VOCABULARY)
    )


#: Model and how many linear layers it has besides its head.
MODELS = {"llama": (llama, 14), "gpt2": (gpt2, 8), "opt": (opt, 12), "bert": (bert, 13)}
TOKENS = torch.tensor([[1, 5, 9, 2, 33, 17], [3, 3, 3, 38, 0, 11]])


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[request.param][0]().eval()
    if request.param != "bert":
        model.config.use_cache = False
    for parameter in model.parameters():  # random models are too tame to have outliers
        parameter.data.mul_(3)
    return model


def output(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(TOKENS)[0]


def linears(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))}


def int8_layers(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, Int8Linear)]


def test_every_linear_layer_but_the_head_becomes_int8(model, request):
    names = [name for name in linears(model) if name != "lm_head"]
    assert fast.quantize_model(model) is model
    assert int8_layers(model) == names
    assert len(names) == MODELS[request.node.callspec.params["model"]][1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_layer_computes_what_the_reference_computes_for_the_models_own_activations(model, dtype):
    model = model.to(dtype)
    expected = {
        name: REFERENCE.layer(module.weight.detach() if isinstance(module, nn.Linear) else module.weight.detach().T, module.bias)
        for name, module in linears(model).items()
    }
    fast.quantize_model(model)
    seen = []

    def check(name: str, layer: Int8Linear, inputs: tuple[Tensor], y: Tensor) -> None:
        x = inputs[0]
        w = fast.absmax_dequantize(layer.weight, layer.weight_absmax / 127)
        assert_product(y, expected[name](x), x, w, fast.outlier_columns(x), layer.bias)
        seen.append((name, bool(fast.outlier_columns(x).any())))

    for name in int8_layers(model):
        layer = model.get_submodule(name)
        layer.register_forward_hook(lambda module, inputs, y, name=name: check(name, module, inputs, y))
    assert output(model).dtype == dtype
    # BERT's pooler reads one position, and every layer was called.
    assert {name for name, _ in seen} == set(int8_layers(model))
    assert len({has_outliers for _, has_outliers in seen}) == 2


@pytest.mark.parametrize(
    "options", [{"quantizer": "zeropoint"}, {"granularity": "tensor"}, {"outlier_weight": "float"}, {"threshold": None}]
)
def test_the_options_reach_every_layer(model, options):
    fast.quantize_model(model, **options)
    for name in int8_layers(model):
        for option, value in options.items():
            assert getattr(model.get_submodule(name), option) == value


def test_unless_told_otherwise_every_layer_has_the_papers_threshold(model):
    fast.quantize_model(model)
    assert {model.get_submodule(name).threshold for name in int8_layers(model)} == {6.0}


def test_a_model_of_transformers_says_in_its_config_what_its_layers_are():
    config = fast.quantize_model(llama(), threshold=5.0).config.quantization_config
    assert (config.threshold, config.skip_modules) == (5.0, ["lm_head"])


@pytest.mark.parametrize("training", [True, False])
def test_a_quantized_model_stays_in_the_mode_it_was_in_and_computes_the_same_in_both(training):
    model = llama().train(training)
    fast.quantize_model(model)
    assert {module.training for module in model.modules()} == {training}
    assert_same(output(model), output(model.train(not training)))


def test_only_the_linear_layers_change(model):
    before = copy.deepcopy(model)
    fast.quantize_model(model)
    replaced = tuple(f"{name}." for name in int8_layers(model))
    ours, theirs = ({n: p for n, p in m.state_dict().items() if not n.startswith(replaced)} for m in (model, before))
    assert list(ours) == list(theirs) != []
    for name in ours:
        assert_same(ours[name], theirs[name])


def test_quantizing_again_changes_nothing(model):
    expected = output(fast.quantize_model(model))
    layers = [model.get_submodule(name) for name in int8_layers(model)]
    fast.quantize_model(model)
    assert all(a is b for a, b in zip([model.get_submodule(name) for name in int8_layers(model)], layers, strict=True))
    assert_same(output(model), expected)
    assert model.quantization_summary.quantized == {}


def test_a_quantized_models_state_dict_loads_into_another_bit_for_bit(model):
    other = fast.quantize_model(copy.deepcopy(model).apply(lambda m: [p.data.zero_() for p in m.parameters(recurse=False)]))
    fast.quantize_model(model)
    other.load_state_dict(model.state_dict())
    assert_same(output(other), output(model))


def test_a_quantized_model_generates():
    torch.manual_seed(0)
    model = fast.quantize_model(llama().eval())
    tokens = model.generate(TOKENS[:, :3], max_new_tokens=5, do_sample=False, pad_token_id=0)
    expected = TOKENS[:, :3]
    for _ in range(5):
        with torch.no_grad():
            expected = torch.cat([expected, model(expected, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    # With and without a cache the columns that hold outliers may differ; these random activations are below the threshold.
    assert_same(tokens, expected)


def test_a_bare_linear_layer_is_replaced_and_returned():
    linear = nn.Linear(8, 4)
    layer = fast.quantize_model(linear)
    assert isinstance(layer, Int8Linear)
    assert layer.quantization_summary.quantized == {"": (8 * 4 * 4 + 4 * 4, 8 * 4 + 4 * 4 + 4 * 4)}


def test_a_float_layer_goes_as_soon_as_its_int8_layer_is_there(monkeypatch):
    model, alive, from_float = nn.Sequential(*(nn.Linear(4, 4) for _ in range(5))), [], Int8Linear.from_float
    layers = [weakref.ref(layer) for layer in model]

    def counting(*arguments: Any) -> Int8Linear:
        alive.append(sum(layer() is not None for layer in layers))
        return from_float(*arguments)

    monkeypatch.setattr(Int8Linear, "from_float", counting)
    fast.quantize_model(model)
    assert alive == [5, 4, 3, 2, 1]


def test_after_a_failure_the_model_works_says_how_far_it_came_and_can_go_on(monkeypatch):
    model, x, from_float = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3))), torch.ones(2, 4), Int8Linear.from_float
    expected = fast.quantize_model(copy.deepcopy(model))(x)

    def failing(module: nn.Module, *arguments: Any) -> Int8Linear:
        if module is model[1]:
            raise MemoryError("no memory")
        return from_float(module, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Int8Linear, "from_float", failing)
        with pytest.raises(MemoryError, match="no memory") as caught:
            fast.quantize_model(model)
    assert caught.value.__notes__ == [
        "quantize_model stopped at 1: 1 of 3 layers are int8, the others still float; the model works as it is, and calling again goes on"
    ]
    assert int8_layers(model) == ["0"]
    assert model(x).shape == (2, 4)
    assert_same(fast.quantize_model(model)(x), expected)


# What stays, and why.


@pytest.mark.parametrize(
    ("skip", "kept"),
    [
        ((), []),
        (("lm_head",), ["lm_head"]),
        (("model.layers.0.mlp.up_proj",), ["model.layers.0.mlp.up_proj"]),
        (("layers.1.self_attn",), [f"model.layers.1.self_attn.{x}_proj" for x in "qkvo"]),
        (("q_proj",), [f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)]),
        (("model",), [f"model.layers.{i}.{name}" for i in (0, 1) for name in ("self_attn", "mlp")]),
        (("proj", "layers.1"), ["model.layers.1."]),  # a part of a name between dots, not of a word
        (["nothing"], []),
    ],
)
def test_skip_takes_names_ends_of_names_and_parts_between_dots(skip, kept):
    model = llama(tie_word_embeddings=False)
    names = list(linears(model))
    fast.quantize_model(model, skip=skip)
    expected = [name for name in names if any(name.startswith(k) for k in kept)]
    assert [name for name in names if name not in int8_layers(model)] == expected
    assert {name: reason for name, (_, reason) in model.quantization_summary.kept.items()} == dict.fromkeys(expected, "named in skip")


@pytest.mark.parametrize(("make", "embedding"), [(gpt2, "transformer.wte"), (opt, "model.decoder.embed_tokens")])
def test_a_weight_that_is_also_an_embedding_stays_and_stays_tied(make, embedding):
    model = make().eval()
    fast.quantize_model(model, skip=())
    assert type(model.lm_head) is nn.Linear
    assert model.lm_head.weight is model.get_submodule(embedding).weight
    assert model.quantization_summary.kept["lm_head"][1] == f"its weight is also {embedding}.weight"


def test_layers_that_share_a_weight_stay_and_a_layer_under_two_names_stays_one():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight
            self.again = self.c

    model = fast.quantize_model(Shared())
    assert type(model.a) is type(model.b) is nn.Linear
    assert model.a.weight is model.b.weight
    assert isinstance(model.c, Int8Linear)
    assert model.again is model.c
    assert list(model.quantization_summary.quantized) == ["c"]
    assert {n: r for n, (_, r) in model.quantization_summary.kept.items()} == {
        "a": "its weight is also b.weight",
        "b": "its weight is also a.weight",
    }


@pytest.mark.parametrize(
    ("device", "kept"), [("meta", {"a": "its weight is also b.weight", "b": "its weight is also a.weight"}), ("cpu", {})]
)
def test_of_weights_without_memory_those_count_as_tied_that_transformers_will_tie(device, kept):
    class Announced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.all_tied_weights_keys = {"b.weight": "a.weight"}
            self.a, self.b, self.c = (nn.Linear(4, 4, device=device) for _ in range(3))

    summary = Summary()
    chosen = choose_layers(Announced(), lambda name: False, summary)
    assert {name: reason for name, (_, reason) in summary.kept.items()} == kept
    assert list(chosen.values()) == [[name] for name in "abc" if name not in kept]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("make", "inside"),
    [
        (lambda: nn.MultiheadAttention(8, 2, batch_first=True), ["attention.out_proj"]),
        (lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), ["self_attn.out_proj", "linear1", "linear2"]),
    ],
)
def test_torchs_own_attention_reads_its_weights_itself_and_so_is_left_alone(make, inside, training):
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = make()
            self.out = nn.Linear(8, 8)

        def attend(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x)[0] if isinstance(self.attention, nn.MultiheadAttention) else self.attention(x)

    torch.manual_seed(0)
    model, x = Model().train(training), torch.randn(2, 3, 8)
    expected = model.attend(x)
    fast.quantize_model(model)
    assert_same(model.attend(x), expected)
    assert isinstance(model.out, Int8Linear)
    reasons = {reason for _, reason in model.quantization_summary.kept.values()}
    assert len(model.quantization_summary.kept) == len(inside)
    assert reasons <= {
        "its parent reads the weight without calling the layer",
        "NonDynamicallyQuantizableLinear is a linear layer of its own kind",
    }


MIXTRAL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}


def mixtral() -> nn.Module:
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**MIXTRAL, num_local_experts=4, vocab_size=VOCABULARY))


def test_experts_in_three_dimensional_parameters_become_int8_and_have_a_line_of_their_own():
    model = fast.quantize_model(mixtral())
    summary, weights, rows = model.quantization_summary, 4 * (48 * 16 + 16 * 24), 4 * (48 + 16)
    assert summary.quantized["model.layers.0.mlp.experts"] == (4 * weights, weights + 4 * rows)
    assert summary.experts == {"model.layers.0.mlp.experts"}
    assert "experts          1         0.0         0.0" in str(summary).splitlines()
    assert f"quantized {len(summary.quantized) - 1:>8} " in str(summary)


def test_experts_named_in_skip_stay():
    model = fast.quantize_model(mixtral(), skip=("experts",))
    assert model.quantization_summary.kept["model.layers.0.mlp.experts"] == (4 * 4 * (48 * 16 + 16 * 24), "named in skip")
    assert not any(isinstance(module, fast.Int8Experts) for module in model.modules())


@pytest.mark.parametrize(("setting", "value"), [("quantizer", "zeropoint"), ("granularity", "tensor"), ("outlier_weight", "float")])
def test_experts_stay_where_they_would_need_settings_that_they_do_not_have(setting, value):
    model = fast.quantize_model(mixtral(), **{setting: value})
    assert model.quantization_summary.kept["model.layers.0.mlp.experts"][1] == f"experts do not take {setting}={value!r}"
    assert isinstance(model.model.layers[0].self_attn.q_proj, Int8Linear)


def test_a_linear_layer_of_its_own_kind_and_a_weight_of_another_dtype_stay():
    class Own(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    model = nn.Sequential(Own(4, 4), nn.Linear(4, 4, dtype=torch.float64), nn.Linear(4, 4), nn.Conv2d(1, 1, 3))
    fast.quantize_model(model)
    assert int8_layers(model) == ["2"]
    assert {n: r for n, (_, r) in model.quantization_summary.kept.items()} == {
        "0": "Own is a linear layer of its own kind",
        "1": "its weight is torch.float64",
    }


# What it says.


def size(model: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in {id(t): t for t in (*model.parameters(), *model.buffers())}.values())


def test_the_summary_counts_the_bytes_that_there_are(model):
    before, layers = size(model), {name: size(module) for name, module in linears(model).items() if name != "lm_head"}
    fast.quantize_model(model)
    summary = model.quantization_summary
    assert summary.bytes_before == before
    assert summary.bytes_after == size(model) < before
    assert summary.quantized == {name: (layers[name], size(model.get_submodule(name))) for name in layers}


def test_the_summary_prints_as_a_table_with_the_reasons_under_it():
    summary = Summary({"a": (4_000_000, 1_000_000), "b": (400_000, 100_000)}, {"head": (2_000_000, "named in skip")}, 7_400_000, 4_100_000)
    assert str(summary).splitlines() == [
        "            layers   MB before    MB after",
        "quantized        2         4.4         1.1",
        "kept             1         2.0         2.0",
        "all else                   1.0         1.0",
        "model                      7.4         4.1",
        "kept head: named in skip",
    ]


def test_a_new_summary_counts_nothing():
    assert Summary() == Summary({}, {}, 0, 0)


def test_it_logs_and_does_not_print(model, caplog, capfd):
    with caplog.at_level(logging.INFO, logger="fast"):
        fast.quantize_model(model)
    assert [(r.name, r.levelname) for r in caplog.records if r.name.startswith("fast")] == [("fast.model", "INFO")]
    assert str(model.quantization_summary) in caplog.text
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("progress", "shown"), [(True, True), (False, False), (None, False)])  # None: stderr is no terminal here
def test_a_progress_bar_counts_the_layers_on_stderr(progress, shown, capfd):
    fast.quantize_model(llama(), progress=progress)
    out, err = capfd.readouterr()
    assert out == ""
    assert ("quantizing" in err and "14/14" in err) if shown else err == ""


def test_without_tqdm_there_is_no_progress_bar_and_asking_for_one_is_an_error(monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "tqdm", None)  # importing it raises ImportError
    for progress in None, False:
        assert isinstance(fast.quantize_model(nn.Linear(4, 4), progress=progress), Int8Linear)
    with pytest.raises(ModuleNotFoundError, match="progress=True needs the package tqdm"):
        fast.quantize_model(nn.Linear(4, 4), progress=True)
    assert capfd.readouterr() == ("", "")


# What it refuses, before it changes anything.


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"skip": "lm_head"}, TypeError, r"skip must be a sequence of names, got the string 'lm_head'; write \('lm_head',\)"),
        ({"threshold": -1.0}, ValueError, "threshold must be 0 or more"),
        ({"quantizer": "nf4"}, ValueError, "quantizer must be one of"),
        ({"granularity": "column"}, ValueError, "granularity must be one of"),
        ({"outlier_weight": "half"}, ValueError, "outlier_weight must be one of"),
    ],
)
def test_a_wrong_argument_is_named_and_the_model_untouched(options, error, message):
    model = llama()
    for refused in model, nn.ReLU():  # also where there is no layer that could refuse it
        with pytest.raises(error, match=message):
            fast.quantize_model(refused, **options)
    assert int8_layers(model) == []


def test_a_layer_too_long_for_int32_is_refused_before_any_is_replaced():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(133_145, 1))
    with pytest.raises(ValueError, match="K must be at most 133144"):
        fast.quantize_model(model)
    assert int8_layers(model) == []


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got Tensor"):
        fast.quantize_model(torch.ones(2, 2))  # type: ignore[arg-type]


def test_a_parameter_of_the_model_itself_goes_by_its_own_name():
    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.Parameter(torch.zeros(2, 3, 4))

    model = fast.quantize_model(Stack())
    assert model.quantization_summary.kept == {"weights": (96, "a 3-dimensional parameter, not a linear layer")}
