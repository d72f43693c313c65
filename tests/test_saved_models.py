"""What is saved is what is loaded: whichever part of a model of transformers was quantized, however, and as whatever class it is read."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import fast
from fast import Int8Linear
from fast.huggingface import METHOD, Int8Config, bitsandbytes_config, save_bitsandbytes
from tests.comparison import assert_same

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
T5 = {"vocab_size": 64, "d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
IDS = torch.arange(3, 13)[None]


pytestmark = pytest.mark.usefixtures("on_the_cpu")


@pytest.fixture(autouse=True, scope="module")
def quiet() -> None:
    tf.utils.logging.disable_progress_bar()


def llama(config: tf.LlamaConfig | None = None) -> tf.LlamaForCausalLM:
    torch.manual_seed(0)
    return tf.LlamaForCausalLM(config or tf.LlamaConfig(**SIZES, initializer_range=0.1)).eval()


def t5(kind: type = tf.T5ForConditionalGeneration, config: type = tf.T5Config) -> tf.PreTrainedModel:
    torch.manual_seed(0)
    return kind(config(**T5)).eval()


def llava() -> tf.PreTrainedModel:
    torch.manual_seed(0)
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 8,
        "patch_size": 4,
    }
    text = tf.LlamaConfig(**SIZES, initializer_range=0.1)
    config = tf.LlavaConfig(vision_config=tf.CLIPVisionConfig(**vision), text_config=text, image_token_index=63)
    return tf.LlavaForConditionalGeneration(config).eval()


def int8(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, Int8Linear)]


def output(model: nn.Module) -> Tensor:
    inputs = {"input_ids": IDS}
    if getattr(model.config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = IDS[:, :5]
    with torch.no_grad():
        return model(**inputs)[0]


def quantize(part: nn.Module, **options: Any) -> nn.Module:
    return fast.quantize_model(part, progress=False, **options)


def assert_same_models(ours: nn.Module, theirs: nn.Module) -> None:
    """The same layers are int8 with the same settings, every tensor has the same bits, and so has the output."""
    assert int8(ours) == int8(theirs) != []
    for name in int8(ours):
        a, b = ours.get_submodule(name), theirs.get_submodule(name)
        assert a.extra_repr() == b.extra_repr()
    a, b = ours.state_dict(), theirs.state_dict()
    assert a.keys() == b.keys()
    for name in a:
        assert_same(a[name], b[name])
    assert_same(output(ours), output(theirs))


# Which part was quantized, and how.


class Wrapper(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inside = model


def exchanged(model: nn.Module) -> None:
    """A layer put in by hand, without `quantize_model`."""
    model.model.layers[1].mlp.up_proj = Int8Linear.from_float(model.model.layers[1].mlp.up_proj, None, None, "float")


def thresholds(model: nn.Module) -> None:
    quantize(model, skip=("lm_head", "layers.1"), threshold=1.0)
    quantize(model, threshold=None)


def set_later(model: nn.Module) -> None:
    quantize(model)
    model.model.layers[0].self_attn.q_proj.threshold = 2.5


def everything_differs(model: nn.Module) -> None:
    attention, mlp = model.model.layers[0].self_attn, model.model.layers[1].mlp
    quantize(attention, quantizer="zeropoint", granularity="tensor")
    quantize(mlp, outlier_weight="float", threshold=torch.tensor(2.0).item())
    quantize(model, granularity="row")


WAYS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], Any]]] = {
    "the whole": (llama, quantize),
    "one block": (llama, lambda m: quantize(m.model.layers[0])),
    "the base model": (llama, lambda m: quantize(m.model)),
    "a list of blocks": (llama, lambda m: quantize(m.model.layers)),
    "the head alone": (llama, lambda m: setattr(m, "lm_head", quantize(m.lm_head))),
    "a wrapper around it": (llama, lambda m: quantize(Wrapper(m))),
    "wrappers in a list": (llama, lambda m: quantize(nn.ModuleList([Wrapper(m)]))),
    "by hand": (llama, exchanged),
    "two thresholds": (llama, thresholds),
    "a threshold set later": (llama, set_later),
    "all settings by layer": (llama, everything_differs),
    "T5": (t5, quantize),
    "T5's encoder": (t5, lambda m: quantize(m.encoder)),
    "a block of T5": (t5, lambda m: quantize(m.decoder.block[1])),
    "T5 without a word about what it keeps": (t5, lambda m: [quantize(layer, skip=()) for layer in m.encoder.block]),
    "mT5": (lambda: t5(tf.MT5ForConditionalGeneration, tf.MT5Config), quantize),
    "UMT5": (lambda: t5(tf.UMT5ForConditionalGeneration, tf.UMT5Config), quantize),
    "LLaVA's language model": (llava, lambda m: quantize(m.model.language_model)),
    "LLaVA's vision model": (llava, lambda m: quantize(m.model.vision_tower, threshold=2.0)),
    "both, by themselves": (llava, lambda m: (quantize(m.model.vision_tower, threshold=2.0), quantize(m.model.language_model))),
    "LLaVA": (llava, quantize),
}


@pytest.mark.parametrize("way", WAYS)
def test_whatever_was_quantized_is_what_is_loaded(way, tmp_path):
    make, change = WAYS[way]
    model = make()
    change(model)
    model.save_pretrained(tmp_path)
    assert_same_models(type(model).from_pretrained(tmp_path), model)


@pytest.mark.parametrize("way", ["the whole", "two thresholds", "all settings by layer", "T5", "LLaVA"])
def test_what_was_loaded_is_saved_again_as_it_is(way, tmp_path):
    make, change = WAYS[way]
    model = make()
    change(model)
    model.save_pretrained(tmp_path / "once")
    again = type(model).from_pretrained(tmp_path / "once")
    again.save_pretrained(tmp_path / "twice")
    assert_same_models(type(model).from_pretrained(tmp_path / "twice"), model)


@pytest.mark.parametrize("inside", ["model", "encoder", "model.language_model", "model.vision_tower"])
def test_a_model_inside_a_quantized_model_can_be_saved_by_itself(inside, tmp_path):
    outer = {"model": llama, "encoder": t5}.get(inside, llava)()
    quantize(outer)
    model = outer.get_submodule(inside)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert int8(again) == int8(model) != []
    for name, tensor in model.state_dict().items():
        assert_same(again.state_dict()[name], tensor)


def test_a_model_built_around_a_quantized_one_later_declares_it(tmp_path):
    inside, outer = tf.LlamaModel(tf.LlamaConfig(**SIZES)), llama(tf.LlamaConfig(**SIZES))
    outer.model = quantize(inside)
    outer.save_pretrained(tmp_path)
    assert_same_models(tf.LlamaForCausalLM.from_pretrained(tmp_path), outer)


@pytest.mark.parametrize("way", ["two thresholds", "all settings by layer"])
@pytest.mark.parametrize("kind", [tf.LlamaModel, tf.LlamaForSequenceClassification])
def test_settings_by_layer_reach_models_of_other_classes(way, kind, tmp_path):
    model = llama()
    WAYS[way][1](model)
    model.save_pretrained(tmp_path)
    again = kind.from_pretrained(tmp_path)
    base = again if kind is tf.LlamaModel else again.model
    for name in int8(model.model):
        assert base.get_submodule(name).extra_repr() == model.model.get_submodule(name).extra_repr()


def test_settings_that_cannot_be_attributed_are_refused():
    config = Int8Config(layers={"a.0.up": {"threshold": 1.0}, "b.0.up": {"threshold": None}, "c": {}})
    assert config.layer_arguments("a.0.up")["threshold"] == 1.0
    assert config.layer_arguments("x.c")["threshold"] == config.layer_arguments("c")["threshold"] == 6.0
    with pytest.raises(ValueError, match=r"does not tell the settings of x\.0\.up: 2 layers of other names may be meant"):
        config.layer_arguments("x.0.up")
    with pytest.raises(TypeError, match=r"layers\['a'\] has no setting bits; there are threshold, outlier_weight"):
        Int8Config(layers={"a": {"bits": 4}})


# Marks and configs.


MARKS = ("is_quantized", "quantization_method", "hf_quantizer")


def marks(model: nn.Module) -> dict[str, Any]:
    inside = {name: m for name, m in model.named_modules() if isinstance(m, tf.PreTrainedModel)}
    found = {name: {mark: getattr(m, mark, None) for mark in MARKS} for name, m in inside.items()}
    for name, each in found.items():
        each["hf_quantizer"] = each["hf_quantizer"] and (type(each["hf_quantizer"]), each["hf_quantizer"].quantization_config.to_dict())
        each["config"] = inside[name].config._is_quantized
    return found


@pytest.mark.parametrize("make", [llama, t5, llava])
def test_both_ways_leave_the_same_marks_and_choose_the_same_layers(make, tmp_path):
    model = make()
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, quantization_config=Int8Config())
    quantized = quantize(type(model).from_pretrained(tmp_path))
    assert_same_models(loaded, quantized)
    assert marks(loaded) == marks(quantized)
    assert all(each[mark] for each in marks(loaded).values() for mark in MARKS)
    assert loaded.config.quantization_config.to_dict() == quantized.config.quantization_config.to_dict()
    assert {n: size for n, (size, _) in loaded.quantization_summary.kept.items()} == {
        n: size for n, (size, _) in quantized.quantization_summary.kept.items()
    }


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (tf.BertForMaskedLM, tf.BertConfig),
        (tf.BertForSequenceClassification, tf.BertConfig),
        (tf.LlamaForSequenceClassification, tf.LlamaConfig),
        (tf.GPTNeoXForCausalLM, tf.GPTNeoXConfig),
        (
            tf.DistilBertForQuestionAnswering,
            lambda **sizes: tf.DistilBertConfig(vocab_size=64, dim=32, hidden_dim=48, n_layers=2, n_heads=4),
        ),
        (tf.ViTForImageClassification, tf.ViTConfig),
        (
            tf.Qwen2MoeForCausalLM,
            lambda **sizes: tf.Qwen2MoeConfig(**sizes, num_key_value_heads=4, num_experts=4, moe_intermediate_size=48),
        ),
        (tf.MambaForCausalLM, lambda **sizes: tf.MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=8)),
        (tf.FalconForCausalLM, tf.FalconConfig),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.parametrize("skip", [None, [], ["layers.0", "layer.0"]], ids=["by default", "nothing", "by name"])
def test_both_ways_choose_the_same_layers(kind, config, skip, tmp_path):
    torch.manual_seed(0)
    kind(config(**SIZES)).save_pretrained(tmp_path)
    patterns = None if skip is None else [rf".*{name}\." for name in skip]
    loaded = kind.from_pretrained(tmp_path, quantization_config=Int8Config(skip_modules=patterns))
    quantized = quantize(kind.from_pretrained(tmp_path), skip=skip)
    assert int8(loaded) == int8(quantized) != []
    reasons = [{n: r.partition(";")[0] for n, (_, r) in m.quantization_summary.kept.items()} for m in (loaded, quantized)]
    assert reasons[0] == reasons[1]


def test_models_that_share_a_config_do_not_declare_each_other(tmp_path):
    config = tf.LlamaConfig(**SIZES)
    model, other = llama(config), llama(config)
    quantize(model)
    assert not hasattr(other.config, "quantization_config")
    assert not getattr(other, "is_quantized", False)
    assert not hasattr(config, "_is_quantized")
    for name, each in (("int8", model), ("float", other)):
        each.save_pretrained(tmp_path / name)
        again = tf.LlamaForCausalLM.from_pretrained(tmp_path / name)
        assert int8(again) == int8(each)
        assert_same(output(again), output(each))


def test_the_modules_of_a_model_go_on_sharing_its_config():
    model = quantize(llama())
    holders = [m.config for m in model.modules() if hasattr(m, "config")]
    assert len(holders) > 2
    assert {id(config) for config in holders} == {id(model.config)}


def test_a_copy_is_marked_as_the_original(tmp_path):
    model = copy.deepcopy(quantize(llama()))
    model.save_pretrained(tmp_path)
    assert_same_models(tf.LlamaForCausalLM.from_pretrained(tmp_path), model)


def test_a_model_that_is_float_again_is_saved_as_one(tmp_path):
    model = quantize(llama())
    for name in int8(model):
        model.set_submodule(name, model.get_submodule(name).dequantize())
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert_same(output(tf.LlamaForCausalLM.from_pretrained(tmp_path)), output(model))


@pytest.mark.parametrize("way", ["the whole", "all settings by layer", "T5", "one block"])
def test_dequantizing_a_model_takes_the_marks_away(way, tmp_path):
    make, change = WAYS[way]
    model = make()
    change(model)
    expected = output(model)
    model.save_pretrained(tmp_path)
    model = model.dequantize()
    assert int8(model) == []
    assert not any(getattr(m, mark, None) for m in model.modules() for mark in MARKS)
    # One step of the codes is 1/127 of the largest weight of a row; activations are not quantized any more.
    assert (output(model) - expected).norm() < 0.1 * expected.norm()
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())


def test_a_model_quantized_by_two_methods_is_not_saved(tmp_path):
    model = quantize(llama())
    model.hf_quantizer = copy.copy(model.hf_quantizer)
    model.hf_quantizer.quantization_config = tf.BitsAndBytesConfig(load_in_8bit=True)
    with pytest.raises(
        ValueError, match=r"quantized with .*bitsandbytes that also holds Int8Linear layers \(model\.layers\.0\.self_attn\.q_proj\)"
    ):
        model.save_pretrained(tmp_path)


# Names, shapes and dtypes of a checkpoint.


class Headed(tf.PreTrainedModel):
    """A float `head` beside the int8 `blocks.0.head`, whose name ends alike."""

    config_class = tf.LlamaConfig

    def __init__(self, config: tf.LlamaConfig) -> None:
        super().__init__(config)
        self.blocks = nn.ModuleList([nn.ModuleDict({"head": nn.Linear(32, 32)}) for _ in range(2)])
        self.head = nn.Linear(32, 8)
        self.post_init()

    def forward(self, input_ids: Tensor) -> tuple[Tensor]:
        x = torch.nn.functional.one_hot(input_ids % 32, 32).float()
        for block in self.blocks:
            x = torch.tanh(block["head"](x))
        return (self.head(x),)


@pytest.mark.parametrize("with_files", [True, False], ids=["from files", "from a state dict"])
def test_a_float_head_and_int8_layers_whose_names_end_alike(with_files, tmp_path):
    torch.manual_seed(0)
    model = Headed(tf.LlamaConfig(**SIZES)).eval()
    quantize(model.blocks)
    model.save_pretrained(tmp_path)
    state = None if with_files else load_file(tmp_path / "model.safetensors")
    config = tf.LlamaConfig.from_pretrained(tmp_path)
    again = Headed.from_pretrained(tmp_path if with_files else None, config=config, state_dict=state)
    assert type(again.head) is nn.Linear
    assert_same_models(again, model)


def tampered(folder: Path, **changes: Callable[[Tensor], Tensor | None]) -> Path:
    state = load_file(folder / "model.safetensors")
    for name, change in changes.items():
        changed = change(state.pop(name))
        state |= {} if changed is None else {name: changed.contiguous()}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder


UP = "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (f"{UP}.weight", lambda t: t[:, :-1]),
        (f"{UP}.weight", lambda t: t[:-1]),
        (f"{UP}.weight_absmax", lambda t: t[:-1]),
        (f"{UP}.weight_absmax", lambda t: t[:1]),
        ("lm_head.weight", lambda t: t[:, :-1]),
        ("model.norm.weight", lambda t: t[:-1]),
        ("model.embed_tokens.weight", lambda t: t[:-1]),
    ],
)
def test_a_tensor_of_another_shape_is_refused(name, change, tmp_path):
    quantize(llama()).save_pretrained(tmp_path)
    tampered(tmp_path, **{name: change})
    with pytest.raises((ValueError, RuntimeError), match="mismatch"):
        tf.LlamaForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["lm_head.weight", f"{UP}.weight", "model.norm.weight"])
def test_a_float_tensor_of_another_shape_is_refused_while_it_is_quantized(name, tmp_path):
    llama().save_pretrained(tmp_path)
    tampered(tmp_path, **{name: lambda t: t[:-1]})
    with pytest.raises((ValueError, RuntimeError), match=r"mismatch|must have shape"):
        tf.LlamaForCausalLM.from_pretrained(tmp_path, quantization_config=Int8Config())


def test_codes_without_a_declaration_are_refused_by_name(tmp_path):
    quantize(llama()).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"holds int8 codes for model\.layers\.0\..*weight, but its config\.json does not say how"):
        tf.LlamaForCausalLM.from_pretrained(tmp_path, quantization_config=Int8Config())
    with pytest.raises(ValueError, match=r"holds int8 codes for model\.layers\.0\..*weight, which goes into a float layer"):
        tf.LlamaForCausalLM.from_pretrained(tmp_path)


def test_codes_for_what_is_no_linear_layer_are_refused_by_name(tmp_path):
    quantize(llama()).save_pretrained(tmp_path)
    tampered(tmp_path, **{"model.norm.weight": lambda t: t.to(torch.int8)})
    with pytest.raises(ValueError, match=r"holds int8 codes for model\.norm, which is a LlamaRMSNorm, not a linear layer"):
        tf.LlamaForCausalLM.from_pretrained(tmp_path)


def test_a_config_that_names_too_many_modules_does_not_make_them_float(tmp_path):
    """As transformers' own rules may: what is int8 in the file is int8 in the model."""
    model = quantize(llama())
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["skip_modules"] = ["lm_head", "q_proj", "model.layers.1"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_same_models(tf.LlamaForCausalLM.from_pretrained(tmp_path), model)


def test_bin_files_are_read_as_safetensors_are(tmp_path):
    model = quantize(llama(), threshold=2.0)
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert_same_models(tf.LlamaForCausalLM.from_pretrained(tmp_path, use_safetensors=False), model)


def test_a_part_in_int8_goes_to_bitsandbytes_and_back(tmp_path):
    model = llama()
    quantize(model.model.layers[0])
    save_bitsandbytes(model, tmp_path)
    again = tf.LlamaForCausalLM.from_pretrained(tmp_path, config=bitsandbytes_config(tmp_path))
    assert_same_models(again, model)
    set_later(model)
    with pytest.raises(ValueError, match="threshold must be the same for all layers for bitsandbytes"):
        save_bitsandbytes(model, tmp_path)


# Heads that a checkpoint does not have; other classes.


HEADS = {
    "Bert, classification": (tf.BertModel, tf.BertForSequenceClassification, "classifier", tf.BertConfig),
    "Bert, tokens": (tf.BertModel, tf.BertForTokenClassification, "classifier", tf.BertConfig),
    "Bert, questions": (tf.BertModel, tf.BertForQuestionAnswering, "qa_outputs", tf.BertConfig),
    "Llama, classification": (tf.LlamaForCausalLM, tf.LlamaForSequenceClassification, "score", tf.LlamaConfig),
    "Llama, tokens": (tf.LlamaForCausalLM, tf.LlamaForTokenClassification, "score", tf.LlamaConfig),
    "Llama, questions": (tf.LlamaModel, tf.LlamaForQuestionAnswering, "qa_outputs", tf.LlamaConfig),
    "Roberta, two layers": (tf.RobertaModel, tf.RobertaForSequenceClassification, "classifier.dense", tf.RobertaConfig),
}


@pytest.mark.parametrize("already", [False, True], ids=["a float checkpoint", "an int8 checkpoint"])
@pytest.mark.parametrize("case", HEADS)
def test_a_head_that_the_checkpoint_does_not_have_is_float_new_and_trainable(case, already, tmp_path):
    base, kind, head, config = HEADS[case]
    torch.manual_seed(0)
    model = base(config(**SIZES))
    model = quantize(model) if already else model
    model.save_pretrained(tmp_path)
    options = {} if already else {"quantization_config": Int8Config()}
    loaded = kind.from_pretrained(tmp_path, num_labels=2, **options)
    layer = loaded.get_submodule(head)
    assert type(layer) is nn.Linear
    assert layer.weight.dtype == torch.float32
    assert 0 < layer.weight.std() < 0.1  # drawn with initializer_range 0.02
    assert not layer.bias.any() if layer.bias is not None else True
    assert all(p.requires_grad for p in layer.parameters())
    assert loaded.quantization_summary.kept[head][1] == "the checkpoint does not hold it"
    assert len(int8(loaded)) >= 12
    loaded(IDS)[0].sum().backward()
    assert layer.weight.grad is not None
    loaded.save_pretrained(tmp_path / "again")
    assert_same_models(kind.from_pretrained(tmp_path / "again"), loaded.eval())


# What else is asked of a model.


def test_scales_are_no_parameters_of_the_model():
    for options in ({}, {"quantizer": "zeropoint"}, {"outlier_weight": "float"}):
        model = llama()
        expected = model.num_parameters()
        without = model.num_parameters(exclude_embeddings=True)
        quantize(model, **options)
        assert model.num_parameters() == expected
        assert model.num_parameters(exclude_embeddings=True) == without
        assert model.num_parameters(only_trainable=True) == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_embeddings_can_be_resized_beside_a_float_head_and_not_beside_an_int8_one():
    model = quantize(llama())
    model.resize_token_embeddings(80)
    assert model.lm_head.weight.shape == (80, 32)
    model = quantize(llama(), skip=())
    model.resize_token_embeddings(64)
    with pytest.raises(TypeError, match=r"lm_head is an Int8Linear, whose codes cannot be resized .*name it in skip"):
        model.resize_token_embeddings(80)


def test_the_name_of_the_method_stays():
    assert METHOD.startswith("llm_int8: `import fast.huggingface`")
