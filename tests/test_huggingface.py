"""fast.huggingface, with the real transformers and accelerate: small models with random weights, saved and loaded in temporary folders."""

import copy
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    BitsAndBytesConfig,
    GgufConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
)
from transformers.distributed import DistributedConfig
from transformers.quantizers.quantizer_gguf import GgufHfQuantizer

import fast
from experiments import generate
from fast import Int8Linear
from fast.huggingface import METHOD, Int8Config, bitsandbytes_config, save_bitsandbytes
from tests.comparison import assert_same
from tests.test_distributed import Processes, both
from tests.tools import pages

__all__ = ["both"]  # the fixture, which pytest finds by its name

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "bos_token_id": 1, "eos_token_id": 2}
MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig(intermediate_size=48, num_key_value_heads=2, **SIZES), 14),
    "llama, tied": (LlamaForCausalLM, LlamaConfig(intermediate_size=48, tie_word_embeddings=True, **SIZES), 14),
    "gpt2": (GPT2LMHeadModel, GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2), 8),
    "opt": (OPTForCausalLM, OPTConfig(ffn_dim=48, word_embed_proj_dim=32, **SIZES), 12),
    "bert": (BertForMaskedLM, BertConfig(intermediate_size=48, **SIZES), 13),
}
CONFIGS = {
    "default": {},
    "paper": {"outlier_weight": "float", "threshold": 3.0},
    "zeropoint": {"quantizer": "zeropoint", "threshold": None},
    "one scale": {"granularity": "tensor", "threshold": float("inf")},
}
TOKENS = torch.arange(3, 13)[None]
#: PEFT asks transformers for an attribute by its old name.
PEFT_LAGS_BEHIND = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
NEEDS_BITSANDBYTES = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="could not import 'bitsandbytes'")
#: For a process of its own: it talks to itself, and its layers are computed by the CPU path.
OWN_LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1"}


pytestmark = pytest.mark.usefixtures("on_the_cpu")


@pytest.fixture(autouse=True, scope="module")
def quiet() -> None:
    transformers.utils.logging.disable_progress_bar()


def fresh(kind: str) -> PreTrainedModel:
    """A model of MODELS, with a config of its own."""
    model_class, config, _ = MODELS[kind]
    return model_class(copy.deepcopy(config))


def saved(kind: str, folder: Path, dtype: torch.dtype = torch.float32, scale: float = 3.0) -> type[PreTrainedModel]:
    """Saves a model of MODELS with random weights, larger than usual so that activations reach the threshold; returns its class."""
    torch.manual_seed(0)
    model = fresh(kind).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    model.save_pretrained(folder)
    return type(model)


def layers_of(model: nn.Module) -> dict[str, Int8Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Int8Linear)}


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def assert_same_model(actual: nn.Module, expected: nn.Module) -> None:
    """The same parameters and buffers, bit for bit, and the same output."""
    ours, theirs = actual.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert_same(ours[name], theirs[name])
    assert_same(logits(actual), logits(expected))


@pytest.mark.parametrize("settings", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("kind", MODELS)
def test_quantizing_while_loading_is_quantizing_a_loaded_model_and_survives_saving(kind, settings, tmp_path):
    model_class = saved(kind, tmp_path / "float")
    loaded = model_class.from_pretrained(tmp_path / "float", quantization_config=Int8Config(**settings))
    assert len(layers_of(loaded)) == MODELS[kind][2]

    kept = tuple(loaded.quantization_summary.kept)
    quantized = fast.quantize_model(model_class.from_pretrained(tmp_path / "float"), skip=kept, **settings)
    assert_same_model(loaded, quantized)
    assert loaded.quantization_summary.quantized == quantized.quantization_summary.quantized
    assert loaded.quantization_summary.bytes_before == quantized.quantization_summary.bytes_before
    assert loaded.quantization_summary.bytes_after == quantized.quantization_summary.bytes_after

    for made, name in ((loaded, "loaded"), (quantized, "quantized")):
        made.save_pretrained(tmp_path / name)
        assert_same_model(model_class.from_pretrained(tmp_path / name), loaded)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_weights_are_quantized_from_the_dtype_the_model_is_loaded_in(dtype, tmp_path):
    model_class = saved("llama", tmp_path)
    loaded = model_class.from_pretrained(tmp_path, quantization_config=Int8Config(outlier_weight="float"), dtype=dtype)
    assert_same_model(loaded, fast.quantize_model(model_class.from_pretrained(tmp_path, dtype=dtype), outlier_weight="float"))
    assert {layer.float_weight.dtype for layer in layers_of(loaded).values()} == {dtype}


def test_a_loaded_model_is_frozen_where_it_is_int8(tmp_path):
    model_class = saved("llama", tmp_path / "float")
    loaded = model_class.from_pretrained(tmp_path / "float", quantization_config=Int8Config())
    loaded.save_pretrained(tmp_path / "int8")
    for model in (loaded, model_class.from_pretrained(tmp_path / "int8")):
        trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert not any(name.startswith(tuple(layers_of(model))) for name in trainable)
        assert "lm_head.weight" in trainable


def test_generate_works_and_no_kind_of_cache_changes_its_tokens(tmp_path):
    saved("gpt2", tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=Int8Config(threshold=6.0, skip_modules=["lm_head"]))
    greedy = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    tokens = model.generate(TOKENS, **greedy)
    assert tokens.shape == (1, 18)
    # Without a cache all rows share their outlier columns, so only with decomposition off are later tokens bound to be the same.
    assert_same(model.generate(TOKENS, cache_implementation="static", **greedy), tokens)
    assert_same(model.generate(TOKENS, use_cache=False, **greedy)[:, :11], tokens[:, :11])


@pytest.mark.parametrize(
    ("skip", "expected"),
    [
        (None, {"lm_head"}),
        ([], set()),
        (["lm_head", "down_proj"], {"lm_head", "model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"}),
        (["model.layers.1", "lm_head", r"model\.layers\.0\.mlp\..*"], None),
    ],
    ids=["by default", "none", "by name", "by pattern"],
)
def test_skipped_modules_stay_float_and_are_in_the_summary(skip, expected, tmp_path):
    model_class = saved("llama", tmp_path / "float")
    model = model_class.from_pretrained(tmp_path / "float", quantization_config=Int8Config(skip_modules=skip))
    if expected is None:
        assert set(layers_of(model)) == {f"model.layers.0.self_attn.{name}_proj" for name in "qkvo"}
    else:
        assert set(model.quantization_summary.kept) == expected
        assert len(layers_of(model)) == 15 - len(expected)
    model.save_pretrained(tmp_path / "int8")
    assert set(layers_of(model_class.from_pretrained(tmp_path / "int8"))) == set(layers_of(model))


def test_a_weight_that_is_also_the_embedding_stays_float_whatever_is_skipped(tmp_path):
    model_class = saved("llama, tied", tmp_path)
    model = model_class.from_pretrained(tmp_path, quantization_config=Int8Config(skip_modules=[]))
    assert model.quantization_summary.kept["lm_head"][1] == "its weight is also model.embed_tokens.weight"
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_the_base_model_loads_from_the_checkpoint_of_a_model_with_a_head(tmp_path):
    model_class = saved("llama", tmp_path / "float")
    model_class.from_pretrained(tmp_path / "float", quantization_config=Int8Config()).save_pretrained(tmp_path / "int8")
    whole, base = model_class.from_pretrained(tmp_path / "int8"), LlamaModel.from_pretrained(tmp_path / "int8")
    with torch.no_grad():
        assert_same(base(TOKENS).last_hidden_state, whole.model(TOKENS).last_hidden_state)


def test_a_checkpoint_in_several_files_loads(tmp_path):
    model_class = saved("llama", tmp_path / "float")
    model = model_class.from_pretrained(tmp_path / "float", quantization_config=Int8Config())
    model.save_pretrained(tmp_path / "int8", max_shard_size="20kB")
    assert len(list((tmp_path / "int8").glob("*.safetensors"))) > 1
    assert_same_model(model_class.from_pretrained(tmp_path / "int8"), model)


def test_one_config_serves_several_models(tmp_path):
    config = Int8Config()
    for kind in ("bert", "llama"):
        model = saved(kind, tmp_path / kind).from_pretrained(tmp_path / kind, quantization_config=config)
        assert len(layers_of(model)) == MODELS[kind][2]
    assert config.skip_modules is None


# What goes wrong.


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"threshold": -1}, ValueError, "threshold must be 0 or more"),
        ({"outlier_weight": "half"}, ValueError, "outlier_weight must be one of 'dequantized', 'float', got 'half'"),
        ({"quantizer": "int8"}, ValueError, "quantizer must be one of"),
        ({"granularity": "column"}, ValueError, "granularity must be one of"),
        ({"checkpoint": "gguf"}, ValueError, "checkpoint must be one of"),
        ({"skip_modules": "lm_head"}, TypeError, r"skip_modules must be a sequence of names, .*; write \['lm_head'\]"),
        ({"llm_int8_threshold": 6.0}, TypeError, "Int8Config has no argument llm_int8_threshold"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_refused_by_name(settings, error, message):
    with pytest.raises(error, match=message):
        Int8Config(**settings)


def test_a_checkpoint_that_lacks_what_a_layer_needs_is_refused(tmp_path):
    model_class = saved("llama", tmp_path / "float")
    model_class.from_pretrained(tmp_path / "float", quantization_config=Int8Config()).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight_absmax"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"the checkpoint holds no model\.layers\.1\.mlp\.up_proj\.weight_absmax"):
        model_class.from_pretrained(tmp_path)


def test_a_weight_of_another_shape_is_refused(tmp_path):
    model_class = saved("llama", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.ones(5, 5)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(RuntimeError):
        model_class.from_pretrained(tmp_path, quantization_config=Int8Config())


@pytest.mark.parametrize("settings", [{"outlier_weight": "float"}, {"quantizer": "zeropoint", "granularity": "tensor"}], ids=str)
def test_int8_parameters_of_other_shapes_are_refused(settings, tmp_path):
    model_class = saved("llama", tmp_path / "float")
    model_class.from_pretrained(tmp_path / "float", quantization_config=Int8Config(**settings)).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    layer = "model.layers.1.mlp.up_proj"
    names = [name for name in tensors if name.startswith(layer)]
    assert len(names) == 3
    for name in names:
        save_file(tensors | {name: torch.cat([tensors[name]] * 2)}, tmp_path / "model.safetensors", {"format": "pt"})
        # Some versions of transformers compare the shapes themselves.
        with pytest.raises((ValueError, RuntimeError), match=rf"size mismatch for {re.escape(name)}|set `ignore_mismatched_sizes`"):
            model_class.from_pretrained(tmp_path)


def test_a_model_that_came_from_gguf_as_floats_can_be_saved_once_it_is_int8(tmp_path):
    model = fresh("llama")
    model.hf_quantizer = GgufHfQuantizer(GgufConfig())  # what from_pretrained leaves behind, and why save_pretrained refuses
    with pytest.raises(ValueError, match=r"quantized with (gguf|QuantizationMethod\.GGUF) and is not serializable"):
        model.save_pretrained(tmp_path)
    fast.quantize_model(model).save_pretrained(tmp_path)
    assert_same_model(LlamaForCausalLM.from_pretrained(tmp_path), model.eval())


def in_another_process(code: str, *arguments: Any, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, env=os.environ | environment, check=False
    )


def test_loading_without_the_import_says_what_to_import(tmp_path):
    model_class = saved("llama", tmp_path / "float")
    model_class.from_pretrained(tmp_path / "float", quantization_config=Int8Config()).save_pretrained(tmp_path / "int8")
    code = "import sys, transformers; transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])"
    result = in_another_process(code, tmp_path / "int8")
    assert f"Unknown quantization type, got {METHOD}" in result.stderr
    assert "`import fast.huggingface`" in METHOD


# Memory.

PEAK = """
import gc, os, resource, sys, threading
import torch, transformers
import fast, fast.huggingface
from fast.huggingface import Int8Config

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))

class Peak(threading.Thread):
    "The most anonymous memory above what there was: mapped files do not count."
    def __enter__(self):
        gc.collect()
        self.done, self.before = threading.Event(), anonymous()
        self.most = self.before
        self.start()
        return self
    def run(self):
        while not self.done.wait(0.0005):
            self.most = max(self.most, anonymous())
    def __exit__(self, *exception):
        self.done.set()
        self.join()

torch.set_num_threads(1)
# The file holds float32: in bfloat16 no weight is just a view of it.
load = lambda **options: transformers.LlamaForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16, **options)
with fast.backend("cpu"):
    with Peak() as streamed:
        model = load(quantization_config=Int8Config())
    with Peak() as whole:
        fast.quantize_model(load())
print(whole.most - whole.before, streamed.most - streamed.before, model.quantization_summary.bytes_after)
"""


def test_the_peak_of_loading_is_the_int8_model_and_what_quantizes_one_layer(tmp_path):
    config = LlamaConfig(**SIZES | {"hidden_size": 1024, "num_hidden_layers": 10}, intermediate_size=2048)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.to_empty(device="cpu").save_pretrained(tmp_path)
    float_bytes, largest = 2 * sum(p.numel() for p in model.parameters()), 4 * 1024 * 2048
    result = in_another_process(PEAK, tmp_path, MALLOC_MMAP_THRESHOLD_="65536")
    assert result.returncode == 0, result.stderr
    whole, streamed, int8_bytes = map(int, result.stdout.split())
    # Quantizing takes the weight in float32, a scaled copy, a rounded one and the codes: below 4 copies. 16 MB are for Python and torch.
    assert streamed < int8_bytes + 4 * largest + 16e6 < float_bytes
    assert whole > float_bytes  # the same instrument, on the way that holds all weights in float


# Adapters, devices and offloading.


@PEFT_LAGS_BEHIND
def test_lora_trains_on_top_and_leaves_the_int8_model_as_it_was(tmp_path):
    model = saved("llama", tmp_path).from_pretrained(tmp_path, quantization_config=Int8Config())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(5):
        loss = adapted(TOKENS, labels=TOKENS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    after = {name.replace(".base_layer", ""): value for name, value in adapted.base_model.model.state_dict().items()}
    for name, value in before.items():
        assert_same(after[name], value)


@PEFT_LAGS_BEHIND
def test_a_lora_is_merged_into_the_weight_and_quantized_again(tmp_path):
    model = saved("llama", tmp_path).from_pretrained(tmp_path, quantization_config=Int8Config())
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    tuner = adapted.base_model.model.model.layers[0].self_attn.q_proj
    sum_of_both = tuner.base_layer.dequantized_weight(torch.float32) + tuner.get_delta_weight("default")
    merged = adapted.merge_and_unload().model.layers[0].self_attn.q_proj
    assert type(merged) is Int8Linear
    assert_same(merged.weight, Int8Linear.from_float(sum_of_both).weight)


def test_disk_is_refused_while_quantizing(tmp_path):
    model_class = saved("llama", tmp_path)
    with pytest.raises(ValueError, match='device_map must not hold "disk" while a model is quantized; quantize it once without'):
        model_class.from_pretrained(
            tmp_path, quantization_config=Int8Config(), device_map={"model": "cpu", "lm_head": "disk"}, offload_folder=tmp_path / "o"
        )


@pytest.fixture
def int8_folder(tmp_path: Path) -> Path:
    model = saved("llama", tmp_path / "float").from_pretrained(tmp_path / "float", quantization_config=Int8Config())
    model.save_pretrained(tmp_path / "int8")
    return tmp_path / "int8"


@pytest.mark.parametrize(
    "device_map",
    [
        "auto",
        {"": "cpu"},
        {"model.embed_tokens": "cpu", "model.layers": "disk", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"},
    ],
    ids=["auto", "cpu", "layers on disk"],
)
def test_a_device_map_changes_nothing(device_map, int8_folder, tmp_path):
    mapped = LlamaForCausalLM.from_pretrained(int8_folder, device_map=device_map, offload_folder=tmp_path / "offload")
    assert_same(logits(mapped), logits(LlamaForCausalLM.from_pretrained(int8_folder)))


def test_devices_are_filled_by_the_size_in_int8(tmp_path):
    model_class = saved("llama", tmp_path)
    config = Int8Config(skip_modules=[])
    summary = model_class.from_pretrained(tmp_path, quantization_config=config).quantization_summary
    room = {"cpu": (summary.bytes_before + summary.bytes_after) // 2}
    # What does not fit would go to the disk, which is refused while quantizing.
    model = model_class.from_pretrained(tmp_path, quantization_config=config, device_map="auto", max_memory=room)
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


def test_offloading_with_accelerate_changes_nothing(int8_folder, tmp_path):
    expected = logits(LlamaForCausalLM.from_pretrained(int8_folder))
    offloaded = accelerate.cpu_offload(LlamaForCausalLM.from_pretrained(int8_folder), execution_device="cpu")
    assert layers_of(offloaded)["model.layers.0.self_attn.q_proj"].weight.is_meta  # it is elsewhere until it is called
    for _ in range(2):  # the second time accelerate reads what it put back after the first
        assert_same(logits(offloaded), expected)
    on_disk = accelerate.disk_offload(LlamaForCausalLM.from_pretrained(int8_folder), tmp_path / "offload", execution_device="cpu")
    for _ in range(2):
        assert_same(logits(on_disk), expected)


def test_accelerate_loads_the_checkpoint_by_itself(int8_folder):
    with accelerate.init_empty_weights():
        model = fast.quantize_model(fresh("llama"))
    model = accelerate.load_checkpoint_and_dispatch(model, str(int8_folder / "model.safetensors"), device_map={"": "cpu"})
    assert_same(logits(model), logits(LlamaForCausalLM.from_pretrained(int8_folder)))


def tensor_parallel(folder: Path, **options: Any) -> tuple[Tensor, set[str]]:
    model = LlamaForCausalLM.from_pretrained(folder, distributed_config=DistributedConfig(tp_size=2), **options)
    return model(TOKENS).logits, {type(module).__name__ for module in layers_of(model).values()}


@pytest.mark.parametrize("granularity", ["vector", "tensor"])
@pytest.mark.parametrize("quantizer", ["absmax", "zeropoint"])
def test_tensor_parallelism_of_transformers_has_the_logits_of_one_process(both: Processes, quantizer, granularity, tmp_path):
    model_class = saved("llama", tmp_path / "float")
    config = Int8Config(None, quantizer=quantizer, granularity=granularity)
    model = model_class.from_pretrained(tmp_path / "float", quantization_config=config)
    model.save_pretrained(tmp_path / "int8")
    for actual, kinds in both(tensor_parallel, tmp_path / "int8"):
        assert kinds == {"ColumnParallelInt8Linear", "RowParallelInt8Linear"}
        assert_same(actual, logits(model))


def test_a_model_is_not_quantized_while_it_is_sharded(both: Processes, tmp_path):
    saved("llama", tmp_path)
    with pytest.raises(RuntimeError, match="a model cannot be quantized while it is sharded; quantize it once without"):
        both(tensor_parallel_while_quantizing, tmp_path)


def tensor_parallel_while_quantizing(folder: Path) -> None:
    tensor_parallel(folder, quantization_config=Int8Config())


# bitsandbytes, as transformers saves it.


@NEEDS_BITSANDBYTES
@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
def test_a_checkpoint_that_bitsandbytes_saved_loads_and_is_written_again_bit_for_bit(kind, tmp_path):
    model_class = saved(kind, tmp_path / "float", torch.float16, scale=1.0)
    theirs = model_class.from_pretrained(tmp_path / "float", quantization_config=BitsAndBytesConfig(load_in_8bit=True), dtype=torch.float16)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = model_class.from_pretrained(tmp_path / "theirs", config=bitsandbytes_config(tmp_path / "theirs"))
    quantized = fast.quantize_model(model_class.from_pretrained(tmp_path / "float", dtype=torch.float16))
    assert_same_model(ours, quantized)

    expected = load_file(tmp_path / "theirs" / "model.safetensors")
    for model, name in ((ours, "ours"), (quantized, "quantized")):
        save_bitsandbytes(model, tmp_path / name)
        written = load_file(tmp_path / name / "model.safetensors")
        assert written.keys() == expected.keys()
        for key in expected:
            assert_same(written[key], expected[key])
        assert_same(logits(model_class.from_pretrained(tmp_path / name)), logits(theirs))  # bitsandbytes again

    ours.save_pretrained(tmp_path / "own")
    assert_same_model(model_class.from_pretrained(tmp_path / "own"), ours)


@NEEDS_BITSANDBYTES
@pytest.mark.parametrize(("theirs", "ours"), [(6.0, 6.0), (0.0, None), (3.5, 3.5)])
def test_their_threshold_zero_is_our_none(theirs, ours, tmp_path):
    model_class = saved("llama", tmp_path, torch.float16)
    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=theirs)
    model_class.from_pretrained(tmp_path, quantization_config=config, dtype=torch.float16).save_pretrained(tmp_path / "theirs")
    model = model_class.from_pretrained(tmp_path / "theirs", config=bitsandbytes_config(tmp_path / "theirs"))
    assert {layer.threshold for layer in layers_of(model).values()} == {ours}
    save_bitsandbytes(model, tmp_path / "again")
    saved_config = json.loads((tmp_path / "again" / "config.json").read_text())["quantization_config"]
    assert (saved_config["llm_int8_threshold"], saved_config["quant_method"]) == (theirs, "bitsandbytes")


def test_a_threshold_of_zero_has_no_counterpart_in_bitsandbytes(tmp_path):
    model = fast.quantize_model(fresh("llama"), threshold=0)
    with pytest.raises(ValueError, match="threshold must not be 0 for bitsandbytes, where 0 turns decomposition off"):
        save_bitsandbytes(model, tmp_path)


def test_a_checkpoint_that_is_not_of_bitsandbytes_is_refused(tmp_path):
    saved("llama", tmp_path)
    with pytest.raises(ValueError, match=r"must be a checkpoint that bitsandbytes saved in 8 bits, its quantization_config is \{\}"):
        bitsandbytes_config(tmp_path)


def test_a_bitsandbytes_layer_in_another_memory_layout_is_refused(tmp_path):
    save_bitsandbytes(fast.quantize_model(fresh("llama")), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight_format"] += 1
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj\.weight_format must be 0, row major, it is 1"):
        LlamaForCausalLM.from_pretrained(tmp_path, config=bitsandbytes_config(tmp_path))


# The experiment.


def test_the_experiment_finds_the_loaded_model_to_be_the_one_quantized_in_memory(tmp_path):
    model = saved("llama, tied", tmp_path).from_pretrained(tmp_path).requires_grad_(False)
    int8 = generate.load_int8(model, 3.0)
    assert len(layers_of(int8)) == 14
    windows = [np.arange(60).reshape(3, 20)]
    found = generate.compare(model, int8, 3.0, windows)
    assert found["from_pretrained"] == found["quantize_model"] != found["float"]
    with pytest.raises(generate.NotTheSameError, match=r"through from_pretrained .* through quantize_model"):
        generate.compare(model, int8, None, windows)

    rows = generate.sizes(model, int8)
    assert [sum(row[kind] for row in rows[:2]) for kind in ("float", "int8")] == [rows[2]["float"], rows[2]["int8"]]
    assert rows[2]["float"] == 4 * sum(p.numel() for p in model.parameters()) + model.model.rotary_emb.inv_freq.numel() * 4 * 2


@pytest.mark.parametrize(
    ("a", "b", "equal"), [([1, 2, 3], [1, 2, 4], 2), ([1, 2], [1, 2, 3], 2), ([], [1], 0), ([2], [1], 0), ([1], [1], 1)]
)
def test_equal_first_tokens_are_counted_up_to_the_first_that_differs(a, b, equal):
    assert generate.equal_first(a, b) == equal


# The pages.


@PEFT_LAGS_BEHIND
@pytest.mark.parametrize("page", [pytest.param(p, marks=NEEDS_BITSANDBYTES) if p == "bitsandbytes" else p for p in pages.PAGES])
def test_a_page_prints_what_it_shows(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert pages.printed(page) == pages.read(page)


def test_the_program_of_the_page_on_several_devices_writes_what_one_process_writes(tmp_path):
    model = saved("llama", tmp_path / "float").from_pretrained(tmp_path / "float", quantization_config=Int8Config(threshold=None))
    model.save_pretrained(tmp_path / "int8")
    expected = model.generate(TOKENS, max_new_tokens=5, do_sample=False)[0, 10:].tolist()
    script = pages.FOLDER / "tensor_parallel.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script, tmp_path / "int8"]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | OWN_LOOPBACK, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["RowParallelInt8Linear holds (32, 24) of (32, 48)", f"generated {expected}"]
