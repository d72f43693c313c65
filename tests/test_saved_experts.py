"""Experts in int8 between models and files: quantized as they are read, written merged, read back bit for bit."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import fast
from fast import Int8Experts, Int8Linear
from fast.bitsandbytes_checkpoint import to_bitsandbytes
from fast.huggingface import Int8Config, bitsandbytes_config, save_bitsandbytes
from fast.huggingface.fused_experts import QuantizingMerge, quantizing_merges
from fast.huggingface.parallel_plan import use_int8_styles
from tests.comparison import assert_same
from tests.test_huggingface import PEAK, in_another_process

SIZES: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
SIZES |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "intermediate_size": 48}
EXPERTS = SIZES | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LOCAL = SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2}
TOKENS = torch.arange(3, 15)[None]

#: Class and config, and how its float checkpoint holds the experts: "single" matrices, or "merged" in one tensor.
MODELS: dict[str, tuple[str, dict[str, Any], str]] = {
    "Mixtral": ("MixtralForCausalLM", LOCAL, "single"),
    "Qwen3-MoE": ("Qwen3MoeForCausalLM", EXPERTS | {"head_dim": 8}, "single"),
    "PhiMoE": ("PhimoeForCausalLM", LOCAL, "single"),
    "Nemotron-H": (
        "NemotronHForCausalLM",
        SIZES
        | {"head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 1, "topk_group": 1}
        | {"moe_shared_expert_intermediate_size": 16, "layers_block_type": ["moe", "attention"], "mamba_num_heads": 4}
        | {"mamba_head_dim": 8, "n_groups": 2, "ssm_state_size": 8},
        "single",
    ),
    "Granite MoE": ("GraniteMoeForCausalLM", LOCAL, "merged"),
    "gpt-oss": ("GptOssForCausalLM", LOCAL | {"head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]}, "merged"),
    "Llama 4": (
        "Llama4ForCausalLM",
        LOCAL | {"head_dim": 8, "intermediate_size_mlp": 48, "num_experts_per_tok": 1, "interleave_moe_layer_step": 1},
        "merged",
    ),
}


@pytest.fixture(autouse=True)
def on_the_cpu() -> Iterator[None]:
    with fast.backend("cpu"):
        yield


def made(name: str) -> nn.Module:
    kind, options, _ = MODELS[name]
    torch.manual_seed(0)
    return getattr(tf, kind)(getattr(tf, kind).config_class(**options)).eval()


def experts(model: nn.Module) -> dict[str, Int8Experts]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Int8Experts)}


def tensors_in(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def assert_same_model(actual: nn.Module, expected: nn.Module) -> None:
    ours, theirs = actual.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert_same(tensor, theirs[name])
    assert_same(logits(actual), logits(expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_loaded_in_int8_saved_and_loaded_again_the_bits_are_those_of_quantize_model(name, dtype, tmp_path):
    float_model = made(name)
    float_model.save_pretrained(tmp_path / "float")
    in_file = [key for key in tensors_in(tmp_path / "float") if "experts" in key or "block_sparse_moe.input" in key]
    assert any(".0." in key.partition("experts")[2] for key in in_file) == (MODELS[name][2] == "single")

    loaded = type(float_model).from_pretrained(tmp_path / "float", dtype=dtype, quantization_config=Int8Config()).eval()
    assert len(experts(loaded)) == (1 if name == "Nemotron-H" else 2)
    by_hand = fast.quantize_model(type(float_model).from_pretrained(tmp_path / "float", dtype=dtype).eval(), progress=False)
    assert_same_model(loaded, by_hand)
    ours, theirs = loaded.quantization_summary, by_hand.quantization_summary
    assert (ours.quantized, ours.experts, ours.kept.keys()) == (theirs.quantized, theirs.experts, theirs.kept.keys())
    assert (ours.bytes_before, ours.bytes_after) == (theirs.bytes_before, theirs.bytes_after)

    for model, folder in ((loaded, "loaded"), (by_hand, "by hand")):
        model.save_pretrained(tmp_path / folder)
        again = type(float_model).from_pretrained(tmp_path / folder).eval()
        assert_same_model(again, loaded)
        assert not any(p.requires_grad for n, p in again.named_parameters() if n.endswith(("_proj", "_absmax")) and "experts" in n)
    codes = {key: value for key, value in tensors_in(tmp_path / "loaded").items() if value.dtype == torch.int8 and value.ndim == 3}
    assert len(codes) == 2 * len(experts(loaded))
    assert tensors_in(tmp_path / "loaded").keys() == tensors_in(tmp_path / "by hand").keys()


@pytest.mark.parametrize("name", ["Mixtral", "gpt-oss"])
def test_experts_that_are_skipped_are_saved_and_read_beside_those_in_int8(name, tmp_path):
    float_model = made(name)
    float_model.save_pretrained(tmp_path / "float")
    config = Int8Config(skip_modules=["layers.1.mlp.experts", "lm_head"])
    model = type(float_model).from_pretrained(tmp_path / "float", quantization_config=config).eval()
    assert list(experts(model)) == ["model.layers.0.mlp.experts"]
    assert model.quantization_summary.kept["model.layers.1.mlp.experts"][1] == "named in skip"
    model.save_pretrained(tmp_path / "int8")
    again = type(float_model).from_pretrained(tmp_path / "int8").eval()
    assert_same_model(again, model)
    assert_same(again.model.layers[1].mlp.experts.down_proj, float_model.model.layers[1].mlp.experts.down_proj)
    assert again.quantization_summary.kept["model.layers.1.mlp.experts"][1] == "float in the checkpoint"


def test_thresholds_of_experts_are_saved_by_layer(tmp_path):
    model = fast.quantize_model(made("Mixtral"), progress=False)
    model.model.layers[1].mlp.experts.threshold = 2.5
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert [module.threshold for module in experts(again).values()] == [6.0, 2.5]
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]["layers"]["model.layers.1.mlp.experts"] == {
        "threshold": 2.5
    }


def test_saving_leaves_a_model_as_it_was(tmp_path):
    model = fast.quantize_model(made("Mixtral"), progress=False)
    before = set(vars(model))
    model.save_pretrained(tmp_path / "once")
    assert set(vars(model)) == before
    model.save_pretrained(tmp_path / "twice")
    assert tensors_in(tmp_path / "once").keys() == tensors_in(tmp_path / "twice").keys()


@pytest.mark.parametrize("how", ["loaded", "by hand"])
def test_dequantized_a_model_is_saved_in_the_names_of_single_experts_again(how, tmp_path):
    float_model = made("Mixtral")
    float_model.save_pretrained(tmp_path / "float")
    if how == "loaded":
        model = type(float_model).from_pretrained(tmp_path / "float", quantization_config=Int8Config()).eval()
        model.dequantize()
    else:
        model = fast.dequantize_model(fast.quantize_model(made("Mixtral"), progress=False))
    model.save_pretrained(tmp_path / "back")
    assert tensors_in(tmp_path / "back").keys() == tensors_in(tmp_path / "float").keys()
    assert_same(logits(type(float_model).from_pretrained(tmp_path / "back")), logits(model))


def test_parameters_are_counted_as_those_of_the_float_model():
    model = made("gpt-oss")
    before = model.num_parameters()
    assert fast.quantize_model(model, progress=False).num_parameters() == before


def test_an_int8_model_generates_and_is_sharded_into_files(tmp_path):
    model = fast.quantize_model(made("Qwen3-MoE"), progress=False)
    model.save_pretrained(tmp_path, max_shard_size="20kB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again = type(model).from_pretrained(tmp_path).eval()
    a, b = (m.generate(TOKENS, max_new_tokens=5, do_sample=False) for m in (model, again))
    assert a.shape == (1, 17)
    assert_same(a, b)


@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_an_int8_model_loads_with_a_device_map(place, tmp_path):
    parts = ("model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb", "lm_head")
    device_map = dict.fromkeys(parts, "cpu") | {"model.layers.1": place}
    model = fast.quantize_model(made("Qwen3-MoE"), progress=False)
    model.save_pretrained(tmp_path / "int8")
    again = type(model).from_pretrained(tmp_path / "int8", device_map=device_map, offload_folder=tmp_path / "offloaded").eval()
    assert_same(logits(again), logits(model))


# Files of others.


def test_a_file_of_bitsandbytes_has_float_experts_and_loads(tmp_path):
    model = fast.quantize_model(made("Mixtral"), skip=("experts", "lm_head"), progress=False)
    save_bitsandbytes(model, tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert any(".experts.0." in key for key in file.keys())  # noqa: SIM118, it is no dict
    again = tf.MixtralForCausalLM.from_pretrained(tmp_path, config=bitsandbytes_config(tmp_path)).eval()
    assert not experts(again)
    assert_same(logits(again), logits(model))
    assert again.quantization_summary.kept["model.layers.0.mlp.experts"][1] == "float in the checkpoint"


def test_experts_in_int8_are_refused_by_the_format_of_bitsandbytes(tmp_path):
    model = fast.quantize_model(made("Mixtral"), progress=False)
    with pytest.raises(ValueError, match=r"experts\.\w+_proj are experts in int8, for which bitsandbytes has no format"):
        save_bitsandbytes(model, tmp_path)
    with pytest.raises(ValueError, match="bitsandbytes has no format"):
        to_bitsandbytes(model.state_dict())


def test_a_file_from_before_experts_were_int8_loads_with_float_experts(tmp_path):
    model = fast.quantize_model(made("Mixtral"), skip=("experts", "lm_head"), progress=False)
    model.save_pretrained(tmp_path)
    assert any(".experts.0." in key for key in tensors_in(tmp_path))
    again = type(model).from_pretrained(tmp_path).eval()
    assert_same_model(again, model)


# What is refused.


def test_codes_of_experts_without_a_config_that_says_so_are_refused(tmp_path):
    model = fast.quantize_model(made("gpt-oss"), progress=False)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"the checkpoint holds int8 codes for model\.layers\.0\.\S+, which goes into a float layer"):
        type(model).from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds int8 codes for .*does not say how it was quantized"):
        type(model).from_pretrained(tmp_path, quantization_config=Int8Config())


def test_a_missing_maximum_is_an_error_that_names_it(tmp_path):
    model = fast.quantize_model(made("Mixtral"), progress=False)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    gone = next(name for name in tensors if name.endswith("down_proj_absmax"))
    del tensors[gone]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"holds no model\.layers\.\d\.mlp\.experts\.down_proj_absmax, which a layer in int8 needs"):
        type(model).from_pretrained(tmp_path)


def test_codes_for_experts_of_another_kind_are_an_error(tmp_path):
    model = fast.quantize_model(made("Mixtral"), progress=False)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["num_local_experts"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(RuntimeError, match=r"size mismatch|mismatched"):
        type(model).from_pretrained(tmp_path)


def test_cutting_each_expert_in_int8_is_refused():
    """Whole experts may be spread over processes (test_expert_parallel.py)."""
    model = fast.quantize_model(made("Qwen3-MoE"), progress=False)
    use_int8_styles(model, model.quantization_summary.quantized)
    found = {pattern: style for pattern, style in model.tp_plan.items() if "experts." in pattern}
    assert found
    assert all(style.startswith("int8_") for style in found.values())
    from transformers.distributed.tensor_parallel import ALL_PARALLEL_STYLES

    with pytest.raises(ValueError, match=r"experts in int8 \(down_proj\) are spread over processes as wholes.*name them in skip_modules"):
        ALL_PARALLEL_STYLES[next(iter(found.values()))].shard_param(model.model.layers[0].mlp.experts, "down_proj", None)


# How the weights are read.


def test_single_experts_are_quantized_one_after_the_other(tmp_path, monkeypatch):
    """No merged tensor in float: what is merged is int8 already, or the row maxima."""
    from transformers.core_model_loading import MergeModulelist

    made("Qwen3-MoE").save_pretrained(tmp_path)
    seen, merge = [], MergeModulelist.convert

    def watched(self: Any, tensors: dict[str, list[Tensor]], *arguments: Any, **options: Any) -> Any:
        seen.extend((tensor.dtype, tensor.shape[-1]) for each in tensors.values() for tensor in each)
        return merge(self, tensors, *arguments, **options)

    monkeypatch.setattr(MergeModulelist, "convert", watched)
    tf.Qwen3MoeForCausalLM.from_pretrained(tmp_path, quantization_config=Int8Config())
    assert {dtype for dtype, columns in seen if columns > 1} == {torch.int8}
    assert {dtype for dtype, columns in seen if columns == 1} == {torch.float32}
    assert len(seen) == 2 * 2 * 4 * 3  # codes and maxima of 2 layers of 4 experts with 3 matrices


def test_only_merges_that_keep_rows_are_replaced():
    from transformers.conversion_mapping import get_model_conversion_mapping

    with torch.device("meta"):
        model = made("Qwen3-MoE")
    before = get_model_conversion_mapping(model)
    after = quantizing_merges(before)
    changed = [old for old, new in zip(before, after, strict=True) if old is not new]
    assert {pattern.rpartition(".")[2] for old in changed for pattern in old.target_patterns} == {"gate_up_proj", "down_proj"}
    assert all(isinstance(new, QuantizingMerge) for old, new in zip(before, after, strict=True) if old is not new)


def test_the_peak_of_loading_is_the_int8_model_and_what_merges_one_projection(tmp_path):
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_local_experts": 8, "num_hidden_layers": 8}
    with torch.device("meta"):
        model = tf.MixtralForCausalLM(tf.MixtralConfig(**SIZES | sizes))
    model.to_empty(device="cpu").save_pretrained(tmp_path)
    float_bytes, merged, one = 2 * sum(p.numel() for p in model.parameters()), 8 * 2 * 512 * 1024, 512 * 1024
    result = in_another_process(PEAK.replace("LlamaForCausalLM", "MixtralForCausalLM"), tmp_path, MALLOC_MMAP_THRESHOLD_="65536")
    assert result.returncode == 0, result.stderr
    whole, streamed, int8_bytes = map(int, result.stdout.split())
    # The codes of a projection lie there up to three times: of each expert, stacked, and gate with up. Beside them one expert's float
    # weight and what quantizing it takes, below 4 copies in float32 (test_huggingface.py). 16 MB are for Python and torch.
    assert streamed < int8_bytes + 3 * merged + 4 * 4 * one + 16e6 < float_bytes
    assert whole > float_bytes  # the same instrument, on the way that holds all weights in float


def test_a_layer_of_attention_beside_them_is_an_int8_layer(tmp_path):
    made("Mixtral").save_pretrained(tmp_path)
    model = tf.MixtralForCausalLM.from_pretrained(tmp_path, quantization_config=Int8Config())
    assert isinstance(model.model.layers[0].self_attn.q_proj, Int8Linear)
    assert not isinstance(model.model.layers[0].mlp.gate, Int8Linear)
