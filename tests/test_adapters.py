"""Every tuner of PEFT on top of int8 layers: it computes what it does on the float model of the same weights, and merges into codes.

With the threshold 0 a layer is the float32 product with the weight that its codes stand for. So a quantized model with this threshold and
the float model that holds those weights compute the same, up to float32's roundings, and whatever an adapter adds must be the same, too.
"""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import fast
from fast import Int8Linear
from fast.model import dequantize_model
from tests.comparison import U32

TOKENS = torch.arange(3, 15)[None]
TWO = {"target_modules": ["q_proj", "v_proj"]}

#: A configuration of every tuner that adapts linear layers; of LoRA, of each variant. They are to be no identity from the start.
ALL_TUNERS: dict[str, Callable[[], peft.PeftConfig]] = {
    "LORA": lambda: peft.LoraConfig(r=4, init_lora_weights=False, **TWO),
    "LORA, rank-stabilized": lambda: peft.LoraConfig(r=4, use_rslora=True, init_lora_weights=False, **TWO),
    "LORA, with a bias": lambda: peft.LoraConfig(r=4, lora_bias=True, init_lora_weights=False, target_modules=["fc"]),
    "LORA, DoRA": lambda: peft.LoraConfig(r=4, use_dora=True, init_lora_weights=False, **TWO),
    "LORA, PiSSA": lambda: peft.LoraConfig(r=4, init_lora_weights="pissa", **TWO),
    "LORA, OLoRA": lambda: peft.LoraConfig(r=4, init_lora_weights="olora", **TWO),
    "LORA, orthogonal": lambda: peft.LoraConfig(r=4, init_lora_weights="orthogonal", **TWO),
    "LORA, aLoRA": lambda: peft.LoraConfig(r=4, alora_invocation_tokens=[5], init_lora_weights=False, task_type="CAUSAL_LM", **TWO),
    "ADALORA": lambda: peft.AdaLoraConfig(init_r=4, total_step=10, init_lora_weights=False, **TWO),
    "BEFT": lambda: PEFT_TYPE_TO_CONFIG_MAPPING["BEFT"](init_weights=False, target_modules=["v_proj"]),
    "BOFT": lambda: peft.BOFTConfig(boft_block_size=8, init_weights=False, **TWO),
    "C3A": lambda: PEFT_TYPE_TO_CONFIG_MAPPING["C3A"](block_size=16, init_weights=False, **TWO),
    "DEFT": lambda: PEFT_TYPE_TO_CONFIG_MAPPING["DEFT"](r=4, init_weights=False, **TWO),
    "DELORA": lambda: PEFT_TYPE_TO_CONFIG_MAPPING["DELORA"](r=4, init_weights=False, **TWO),
    "FOURIERFT": lambda: peft.FourierFTConfig(n_frequency=20, **TWO),
    "FROD": lambda: PEFT_TYPE_TO_CONFIG_MAPPING["FROD"](init_weights=False, **TWO),
    "GLORA": lambda: PEFT_TYPE_TO_CONFIG_MAPPING["GLORA"](r=4, **TWO),
    "GRALORA": lambda: PEFT_TYPE_TO_CONFIG_MAPPING["GRALORA"](r=4, init_weights=False, **TWO),
    "HIRA": lambda: PEFT_TYPE_TO_CONFIG_MAPPING["HIRA"](r=4, init_weights=False, **TWO),
    "HRA": lambda: peft.HRAConfig(r=4, init_weights=False, **TWO),
    "IA3": lambda: peft.IA3Config(
        target_modules=["q_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], init_ia3_weights=False
    ),
    "LILY": lambda: PEFT_TYPE_TO_CONFIG_MAPPING["LILY"](r=4, init_weights=False, **TWO),
    "LOHA": lambda: peft.LoHaConfig(r=4, init_weights=False, **TWO),
    "LOKR": lambda: peft.LoKrConfig(r=4, init_weights=False, **TWO),
    "MISS": lambda: PEFT_TYPE_TO_CONFIG_MAPPING["MISS"](r=4, init_weights=False, **TWO),
    "MISS, bat": lambda: PEFT_TYPE_TO_CONFIG_MAPPING["MISS"](r=4, init_weights="bat", **TWO),
    "MISS, mini": lambda: PEFT_TYPE_TO_CONFIG_MAPPING["MISS"](r=4, mini_r=4, init_weights="mini", **TWO),
    "OFT": lambda: peft.OFTConfig(oft_block_size=8, init_weights=False, **TWO),
    "OSF": lambda: PEFT_TYPE_TO_CONFIG_MAPPING["OSF"](init_weights=False, **TWO),
    "PEANUT": lambda: PEFT_TYPE_TO_CONFIG_MAPPING["PEANUT"](r=4, init_weights=False, **TWO),
    "PSOFT": lambda: PEFT_TYPE_TO_CONFIG_MAPPING["PSOFT"](r=4, **TWO),
    "PVERA": lambda: PEFT_TYPE_TO_CONFIG_MAPPING["PVERA"](r=4, init_weights=False, **TWO),
    "RANDLORA": lambda: peft.RandLoraConfig(r=4, init_weights=False, **TWO),
    "ROAD": lambda: PEFT_TYPE_TO_CONFIG_MAPPING["ROAD"](group_size=8, init_weights=False, **TWO),
    "SHIRA": lambda: PEFT_TYPE_TO_CONFIG_MAPPING["SHIRA"](r=4, init_weights=False, **TWO),
    "SUPERTUNING": lambda: PEFT_TYPE_TO_CONFIG_MAPPING["SUPERTUNING"](r=4, init_weights=False, **TWO),
    "TINYLORA": lambda: PEFT_TYPE_TO_CONFIG_MAPPING["TINYLORA"](**TWO),
    "UNILORA": lambda: PEFT_TYPE_TO_CONFIG_MAPPING["UNILORA"](r=4, init_weights=False, **TWO),
    "VBLORA": lambda: peft.VBLoRAConfig(vector_length=8, num_vectors=16, topk=2, **TWO),
    "VERA": lambda: peft.VeraConfig(r=4, init_weights=False, **TWO),
    "WAVEFT": lambda: PEFT_TYPE_TO_CONFIG_MAPPING["WAVEFT"](n_frequency=20, init_weights=False, **TWO),
}

#: Tuners that adapt no linear layer: prompts, norms, embeddings, whole blocks; or that need what this suite has not (scikit-learn, tasks).
OTHERS = {
    "ADAMSS", "ADAPTION_PROMPT", "CARTRIDGE", "CPT", "LN_TUNING", "MULTITASK_PROMPT_TUNING", "POLY", "PREFIX_TUNING", "PROMPT_TUNING",
    "P_TUNING", "SHADOW", "TRAINABLE_TOKENS", "XLORA",
}  # fmt: skip

#: What PEFT itself does not merge, and what it cannot take apart again.
UNMERGEABLE = {"LILY": "not supported for Lily", "LORA, aLoRA": "aLoRA"}
KEPT_MERGED = {"OSF"}

#: What multiplies the weight by a matrix or by factors, instead of adding to it.
FACTORS = {"BOFT": 4, "HRA": 4, "IA3": 100, "OFT": 4, "ROAD": 4, "MISS, bat": 4}

#: What PEFT itself refuses, by the name of the layer.
REFUSED = {"GLORA": "Int8Linear.* is not a plain torch.nn.Linear"}

TUNERS = {name: config for name, config in ALL_TUNERS.items() if name not in REFUSED}

pytestmark = [pytest.mark.usefixtures("on_the_cpu"), pytest.mark.filterwarnings("ignore")]  # PEFT's own


def llama(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=4, initializer_range=0.1, **options)).eval()


def int8_model(threshold: float | None = 0.0, **options: Any) -> nn.Module:
    return fast.quantize_model(llama(attention_bias=True), threshold, progress=False, **options)


def float_twin(model: nn.Module) -> nn.Module:
    """The float model of the weights that `model` stands for."""
    return dequantize_model(copy.deepcopy(model))


def adapted(model: nn.Module, tuner: str) -> peft.PeftModel:
    """With an adapter that is no identity, the same for every model."""
    config = ALL_TUNERS[tuner]()
    if config.target_modules == {"fc"}:
        config.target_modules = {"q_proj", "v_proj"}
    torch.manual_seed(1)
    model = peft.get_peft_model(model, config).eval()
    generator = torch.Generator().manual_seed(2)
    for p in model.parameters():
        if p.requires_grad:
            p.data += 0.05 * torch.randn(p.shape, generator=generator)
    return model


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def base_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The linear layers of the base model, whether adapted or not, by their names in it."""
    found = {}
    for name, module in model.named_modules():
        name = name.removeprefix("base_model.model.").removesuffix(".base_layer")
        if isinstance(module, nn.Linear) and name.endswith(("_proj", "lm_head")):
            found[name] = module
    return found


#: float32's roundings through two small blocks, many of them; a wrong weight is off by more than a thousand times this.
ROUNDINGS = 2000 * U32


def test_every_tuner_of_peft_is_in_one_of_the_tables():
    named = {str(kind).rpartition(".")[2] for kind in PEFT_TYPE_TO_CONFIG_MAPPING}
    assert {name.partition(",")[0] for name in ALL_TUNERS} | OTHERS == named


@pytest.mark.parametrize("tuner", TUNERS)
def test_an_adapter_computes_what_it_does_on_the_float_model(tuner):
    model = int8_model()
    twin = float_twin(model)
    before = logits(twin)
    ours, theirs = adapted(model, tuner), adapted(twin, tuner)
    assert relative(logits(theirs), before) > 100 * ROUNDINGS
    assert relative(logits(ours), logits(theirs)) < ROUNDINGS + _requantized(tuner)


def _requantized(tuner: str) -> float:
    """Set up by changing the base weight, which is then quantized anew: half a step of 127 off."""
    return 0.02 if tuner in ("LORA, PiSSA", "LORA, OLoRA", "LORA, orthogonal", "PSOFT") else 0.0


@pytest.mark.parametrize("tuner", REFUSED)
def test_a_tuner_that_takes_float_layers_only_refuses_by_name(tuner):
    model = int8_model()
    before = logits(model)
    with pytest.raises(ValueError, match=REFUSED[tuner]):
        adapted(model, tuner)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("tuner", TUNERS)
def test_an_adapter_learns_what_it_does_on_the_float_model(tuner):
    model = int8_model()
    gradients = []
    for base in (model, float_twin(model)):
        taught = adapted(base, tuner)
        taught(TOKENS, labels=TOKENS).loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in taught.parameters() if p.grad is not None]))
    assert relative(*gradients) < 10 * ROUNDINGS + 5 * _requantized(tuner)


@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("tuner", TUNERS)
def test_merging_quantizes_the_merged_weight(tuner, safe):
    model = int8_model()
    theirs, ours = adapted(float_twin(model), tuner), adapted(model, tuner)
    before = {name: p.clone() for name, p in ours.named_parameters()}
    if tuner in UNMERGEABLE:
        for side in (ours, theirs):
            with pytest.raises(Exception, match=r"(?i)" + UNMERGEABLE[tuner]):
                side.merge_and_unload(safe_merge=safe)
        for name, p in ours.named_parameters():
            assert torch.equal(p, before[name])
        return
    scales = scales_of(ours)
    ours, theirs = ours.merge_and_unload(safe_merge=safe), theirs.merge_and_unload(safe_merge=safe)
    assert_merged(ours, theirs, scales if _requantized(tuner) else {})


def scales_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: layer.weight_scale.clone() for name, layer in base_layers(model).items() if isinstance(layer, Int8Linear)}


def assert_merged(ours: nn.Module, theirs: nn.Module, before: dict[str, Tensor] | None = None) -> None:
    """Each weight is within half a step of the float model's, and those that were not adapted are as they were.

    before: the scales of a model whose weight was quantized anew when its adapter was set up: half a step of these is to be added.
    """
    expected, changed = base_layers(theirs), 0
    for name, layer in base_layers(ours).items():
        if not isinstance(layer, Int8Linear):
            continue
        assert type(layer) is Int8Linear
        w, exact = layer.dequantize().weight, expected[name].weight.detach()
        half = (layer.weight_scale + (before or {}).get(name, 0.0)) / 2 * (1 + 1e-3) + 1e-6
        assert bool(((w - exact).abs() <= half).all()), name
        changed += not torch.allclose(w, exact, atol=1e-6, rtol=0)
        if layer.bias is not None:
            assert torch.allclose(layer.bias, expected[name].bias, atol=1e-5)
    assert changed <= 4
    assert not any(type(m).__module__.startswith("peft") for m in ours.modules())


@pytest.mark.parametrize("tuner", [t for t in TUNERS if t not in UNMERGEABLE and t not in KEPT_MERGED])
def test_unmerging_takes_the_adapter_out_again(tuner):
    ours = adapted(int8_model(), tuner)
    expected = logits(ours)
    weights = {name: layer.dequantize().weight for name, layer in base_layers(ours).items() if isinstance(layer, Int8Linear)}
    ours.merge_adapter()
    assert relative(logits(ours), expected) < 0.1
    scales = scales_of(ours)
    ours.unmerge_adapter()
    assert relative(logits(ours), expected) < 0.1
    for name, layer in base_layers(ours).items():
        if isinstance(layer, Int8Linear):
            # Half a step of each of the two roundings; a rotation brings the first to other entries, IA3 divides it by its factors.
            step = torch.maximum(scales[name], layer.weight_scale) * FACTORS.get(tuner, 1)
            assert bool(((layer.dequantize().weight - weights[name]).abs() <= 1.01 * step).all()), name


@pytest.mark.parametrize(
    "form", [("float", "absmax", "vector"), ("dequantized", "zeropoint", "vector"), ("dequantized", "absmax", "tensor")]
)
@pytest.mark.parametrize("tuner", ["LORA", "LORA, DoRA", "HRA", "IA3"])
def test_other_forms_of_the_layer_merge(tuner, form):
    model = int8_model(outlier_weight=form[0], quantizer=form[1], granularity=form[2])
    theirs, ours = adapted(float_twin(model), tuner), adapted(model, tuner)
    assert relative(logits(ours), logits(theirs)) < ROUNDINGS
    after = ours.merge_and_unload(), theirs.merge_and_unload()
    assert relative(logits(after[0]), logits(after[1])) < 0.03


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tuner", TUNERS)
def test_an_adapter_on_a_model_of_16_bits_computes_as_on_the_float_model(tuner, dtype):
    model = fast.quantize_model(llama(attention_bias=True).to(dtype), 0.0, progress=False)
    try:
        expected = logits(adapted(float_twin(model), tuner))
    except (RuntimeError, NotImplementedError):
        pytest.skip("PEFT does not do this in 16 bits on a CPU")
    assert relative(logits(adapted(model, tuner)).float(), expected.float()) < 0.1


def test_an_adapter_that_is_copied_or_pickled_still_reads_floats(tmp_path):
    model = adapted(int8_model(), "LORA, DoRA")
    expected = logits(model)
    torch.save(model, tmp_path / "model.pt")
    for again in copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(tmp_path / "model.pt", weights_only=False):
        assert torch.equal(logits(again), expected)
        again = again.merge_and_unload()
        assert_merged(again, adapted(float_twin(int8_model()), "LORA, DoRA").merge_and_unload())


def test_who_is_not_peft_reads_codes():
    layer = base_layers(adapted(int8_model(), "LORA"))["model.layers.0.self_attn.q_proj"]
    assert layer.weight.dtype == torch.int8
    assert layer.state_dict()["weight"].dtype == torch.int8
    assert repr(layer).startswith("Int8Linear(")


def test_unloading_gives_the_layers_back():
    model = int8_model()
    expected = logits(model)
    model = adapted(model, "LORA").unload()
    assert {type(m) for m in base_layers(model).values()} == {Int8Linear, nn.Linear}
    assert torch.equal(logits(model), expected)


def test_a_merge_that_fails_changes_nothing():
    model = adapted(int8_model(), "LORA")
    next(p for n, p in model.named_parameters() if "lora_A" in n).data.fill_(float("nan"))
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match="NaN"):
        model.merge_and_unload(safe_merge=True)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) or "lora_A" in name
    assert isinstance(base_layers(model)["model.layers.0.self_attn.q_proj"], Int8Linear)


def test_a_merge_of_several_adapters_quantizes_their_sum():
    model = int8_model()
    sides = []
    for base in (float_twin(model), model):
        side = adapted(base, "LORA")
        torch.manual_seed(5)
        side.add_adapter("other", TUNERS["LORA"]())
        sides.append(side.merge_and_unload(adapter_names=["default", "other"]))
    assert_merged(*sides[::-1])


@pytest.mark.parametrize(
    "tuner", [t for t in TUNERS if t not in ("OSF", "LORA, PiSSA", "LORA, OLoRA", "LORA, orthogonal", "PSOFT", "FROD")]
)
def test_quantizing_a_model_that_carries_adapters_leaves_them_alone(tuner):
    model = adapted(llama(attention_bias=True), tuner)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    expected = logits(model)
    fast.quantize_model(model, progress=False)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trainable
    assert sum(isinstance(m, Int8Linear) for m in base_layers(model).values()) == 14
    assert relative(logits(model), expected) < 0.06


def test_the_parts_of_adapters_are_in_the_summary():
    model = adapted(llama(), "LORA")
    fast.quantize_model(model, progress=False)
    kept = model.quantization_summary.kept
    assert sum(reason == "part of an adapter" for _, reason in kept.values()) == 8
    assert not any(name.endswith("base_layer") for name in kept)


def test_what_peft_trains_beside_adapters_stays_float():
    config = peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_hidden_size=16)
    model = fast.quantize_model(peft.get_peft_model(llama(), config), progress=False)
    assert all(
        isinstance(m, Int8Linear) == n.startswith("base_model.model")
        for n, m in model.named_modules()
        if isinstance(m, nn.Linear) and "lm_head" not in n
    )
    saved = peft.get_peft_model(llama(), peft.LoraConfig(r=4, modules_to_save=["o_proj"], **TWO))
    fast.quantize_model(saved, progress=False)
    for name, p in saved.named_parameters():
        if p.requires_grad:
            assert p.is_floating_point(), name


def test_a_conv1d_with_an_adapter_stays_float():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=4)).eval()
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True))
    expected = logits(model)
    fast.quantize_model(model, progress=False)
    kept = [reason for name, (_, reason) in model.quantization_summary.kept.items() if name.endswith("c_attn.base_layer")]
    assert kept == ["an adapter was made for its layout (K, N); quantize the model first, then add adapters"]
    assert relative(logits(model), expected) < 0.06
