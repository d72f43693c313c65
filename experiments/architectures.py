"""Takes small models of many architectures through everything that is done with an int8 model, and records which steps pass.

    python -m experiments.architectures                  all architectures, and docs/architectures.md
    python -m experiments.architectures --only Llama T5  these; the page stays as it is

Each model has random weights and a hidden size of 64: what is tried is whether the parts fit together, not how good the numbers are.
"""

import argparse
import copy
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from torch import Tensor, nn
from tqdm import tqdm

import fast
from fast import Int8Experts, Int8Linear
from fast.huggingface import Int8Config

from . import machine, records
from .command import InputError
from .pages import architectures as page
from .pages import tables

Inputs = dict[str, Tensor]

IDS = torch.arange(3, 15)[None]
DECODER: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 128}
GROUPED: dict[str, Any] = DECODER | {"num_key_value_heads": 2}
EXPERTS: dict[str, Any] = GROUPED | {"moe_intermediate_size": 96, "num_experts": 4, "num_experts_per_tok": 2}
SHARED: dict[str, Any] = EXPERTS | {"shared_expert_intermediate_size": 96, "head_dim": 16, "linear_num_key_heads": 2}
SHARED |= {"linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16}
SHARED |= {"layer_types": ["linear_attention", "full_attention"]}
ENCODER: dict[str, Any] = DECODER | {"max_position_embeddings": 64}
T5: dict[str, Any] = {
    "vocab_size": 128,
    "d_model": 64,
    "d_ff": 96,
    "d_kv": 16,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
BART: dict[str, Any] = {"vocab_size": 128, "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4}
BART |= {
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 0,
}
VISION: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
SPEECH: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 32}
SPEECH |= {
    "conv_dim": (32, 32),
    "conv_stride": (5, 4),
    "conv_kernel": (10, 8),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}

#: Name -> class of the model, what its config takes, and the kind of its inputs.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any], str]] = {
    "Llama": ("LlamaForCausalLM", GROUPED, "text"),
    "Mistral": ("MistralForCausalLM", GROUPED, "text"),
    "Qwen2": ("Qwen2ForCausalLM", GROUPED, "text"),
    "Qwen3": ("Qwen3ForCausalLM", GROUPED | {"head_dim": 16}, "text"),
    "Gemma": ("GemmaForCausalLM", GROUPED | {"head_dim": 16}, "text"),
    "Gemma 2": ("Gemma2ForCausalLM", GROUPED | {"head_dim": 16}, "text"),
    "Gemma 3": ("Gemma3ForCausalLM", GROUPED | {"head_dim": 16}, "text"),
    "Phi": ("PhiForCausalLM", DECODER, "text"),
    "Phi 3": ("Phi3ForCausalLM", GROUPED, "text"),
    "OLMo": ("OlmoForCausalLM", DECODER, "text"),
    "OLMo 2": ("Olmo2ForCausalLM", DECODER, "text"),
    "StableLM": ("StableLmForCausalLM", GROUPED, "text"),
    "Starcoder 2": ("Starcoder2ForCausalLM", GROUPED, "text"),
    "Granite": ("GraniteForCausalLM", GROUPED, "text"),
    "Cohere": ("CohereForCausalLM", GROUPED, "text"),
    "SmolLM 3": ("SmolLM3ForCausalLM", GROUPED, "text"),
    "GLM": ("GlmForCausalLM", GROUPED | {"head_dim": 16}, "text"),
    "GPT-2": ("GPT2LMHeadModel", {"vocab_size": 128, "n_embd": 64, "n_layer": 2, "n_head": 4}, "text"),
    "GPT-Neo": (
        "GPTNeoForCausalLM",
        {"vocab_size": 128, "hidden_size": 64, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
        "text",
    ),
    "GPT-J": ("GPTJForCausalLM", {"vocab_size": 128, "n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8}, "text"),
    "GPT-NeoX": ("GPTNeoXForCausalLM", DECODER, "text"),
    "GPT BigCode": ("GPTBigCodeForCausalLM", {"vocab_size": 128, "n_embd": 64, "n_layer": 2, "n_head": 4}, "text"),
    "OPT": (
        "OPTForCausalLM",
        {"vocab_size": 128, "hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 2, "num_attention_heads": 4},
        "text",
    ),
    "Bloom": ("BloomForCausalLM", {"vocab_size": 128, "hidden_size": 64, "n_layer": 2, "n_head": 4}, "text"),
    "Falcon": ("FalconForCausalLM", DECODER, "text"),
    "MPT": ("MptForCausalLM", {"vocab_size": 128, "d_model": 64, "n_layers": 2, "n_heads": 4}, "text"),
    "Mixtral": ("MixtralForCausalLM", GROUPED | {"num_local_experts": 4}, "text"),
    "Qwen2 MoE": ("Qwen2MoeForCausalLM", EXPERTS | {"shared_expert_intermediate_size": 96}, "text"),
    "Qwen3 MoE": ("Qwen3MoeForCausalLM", EXPERTS | {"head_dim": 16}, "text"),
    "DeepSeek V3": (
        "DeepseekV3ForCausalLM",
        DECODER
        | {"num_key_value_heads": 4, "moe_intermediate_size": 48, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1}
        | {"topk_group": 1, "q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
        | {"first_k_dense_replace": 1},
        "text",
    ),
    "Qwen3-Next": ("Qwen3NextForCausalLM", SHARED, "text"),
    "Qwen3.5 MoE": ("Qwen3_5MoeForCausalLM", SHARED, "text"),
    "OLMoE": ("OlmoeForCausalLM", GROUPED | {"num_experts": 4, "num_experts_per_tok": 2}, "text"),
    "Granite MoE": ("GraniteMoeForCausalLM", GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2}, "text"),
    "gpt-oss": (
        "GptOssForCausalLM",
        GROUPED
        | {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "layer_types": ["sliding_attention", "full_attention"]},
        "text",
    ),
    "Llama 4": (
        "Llama4ForCausalLM",
        GROUPED
        | {"head_dim": 16, "intermediate_size_mlp": 96, "num_local_experts": 4, "num_experts_per_tok": 1, "interleave_moe_layer_step": 1},
        "text",
    ),
    "Gemma 4": (
        "Gemma4ForCausalLM",
        EXPERTS
        | {"enable_moe_block": True, "top_k_experts": 2, "head_dim": 16, "vocab_size_per_layer_input": 128}
        | {"hidden_size_per_layer_input": 16, "layer_types": ["sliding_attention", "full_attention"]},
        "text",
    ),
    "AFMoE": ("AfmoeForCausalLM", EXPERTS | {"num_dense_layers": 1, "head_dim": 16}, "text"),
    "Nemotron-H": (
        "NemotronHForCausalLM",
        GROUPED
        | {"head_dim": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "n_group": 1, "topk_group": 1}
        | {"moe_shared_expert_intermediate_size": 48, "layers_block_type": ["moe", "attention"], "mamba_num_heads": 4}
        | {"mamba_head_dim": 16, "n_groups": 2, "ssm_state_size": 8},
        "text",
    ),
    "JetMoE": (
        "JetMoeForCausalLM",
        {"vocab_size": 128, "hidden_size": 64, "num_hidden_layers": 2, "num_key_value_heads": 2, "kv_channels": 16}
        | {"intermediate_size": 96, "num_local_experts": 4, "num_experts_per_tok": 2},
        "text",
    ),
    "LongCat Flash": (
        "LongcatFlashForCausalLM",
        {"vocab_size": 128, "hidden_size": 64, "num_layers": 2, "num_attention_heads": 4, "ffn_hidden_size": 96, "head_dim": 8}
        | {"expert_ffn_hidden_size": 32, "n_routed_experts": 4, "zero_expert_num": 2, "moe_topk": 2, "q_lora_rank": 32}
        | {"kv_lora_rank": 32, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 16},
        "text",
    ),
    "DBRX": (
        "DbrxForCausalLM",
        {"vocab_size": 128, "d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 64}
        | {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8}}
        | {"ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 64}},
        "text",
    ),
    "Mamba": ("MambaForCausalLM", {"vocab_size": 128, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8}, "text"),
    "FalconMamba": ("FalconMambaForCausalLM", {"vocab_size": 128, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8}, "text"),
    "Mamba 2": (
        "Mamba2ForCausalLM",
        {"vocab_size": 128, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8, "num_heads": 8, "head_dim": 16, "n_groups": 1}
        | {"chunk_size": 16},
        "text",
    ),
    "Jamba": ("JambaForCausalLM", GROUPED | {"num_experts": 2, "mamba_d_state": 8, "attn_layer_period": 2, "attn_layer_offset": 1}, "text"),
    "RWKV": (
        "RwkvForCausalLM",
        {"vocab_size": 128, "hidden_size": 64, "attention_hidden_size": 64, "num_hidden_layers": 2, "rescale_every": 1},
        "text",
    ),
    "BERT": ("BertForMaskedLM", ENCODER, "encoder"),
    "RoBERTa": ("RobertaForSequenceClassification", ENCODER, "encoder"),
    "DistilBERT": ("DistilBertForMaskedLM", {"vocab_size": 128, "dim": 64, "hidden_dim": 96, "n_layers": 2, "n_heads": 4}, "encoder"),
    "ELECTRA": ("ElectraForPreTraining", ENCODER | {"embedding_size": 64}, "encoder"),
    "ALBERT": ("AlbertForMaskedLM", ENCODER | {"embedding_size": 32}, "encoder"),
    "DeBERTa V2": ("DebertaV2ForSequenceClassification", ENCODER, "encoder"),
    "MobileBERT": ("MobileBertForMaskedLM", ENCODER | {"embedding_size": 32, "intra_bottleneck_size": 32}, "encoder"),
    "ModernBERT": ("ModernBertForMaskedLM", ENCODER, "encoder"),
    "T5": ("T5ForConditionalGeneration", T5, "sequence to sequence"),
    "mT5": ("MT5ForConditionalGeneration", T5, "sequence to sequence"),
    "UMT5": ("UMT5ForConditionalGeneration", T5, "sequence to sequence"),
    "BART": ("BartForConditionalGeneration", BART, "sequence to sequence"),
    "Pegasus": ("PegasusForConditionalGeneration", BART, "sequence to sequence"),
    "M2M100": ("M2M100ForConditionalGeneration", BART, "sequence to sequence"),
    "Whisper": (
        "WhisperForConditionalGeneration",
        BART | {"num_mel_bins": 16, "max_source_positions": 20, "max_target_positions": 64},
        "mel",
    ),
    "wav2vec 2.0": ("Wav2Vec2ForCTC", SPEECH, "waveform"),
    "WavLM": ("WavLMForCTC", SPEECH, "waveform"),
    "ViT": ("ViTForImageClassification", VISION, "image"),
    "DINOv2": ("Dinov2ForImageClassification", VISION, "image"),
    "SigLIP": ("SiglipVisionModel", VISION, "image"),
    "CLIP": ("CLIPVisionModelWithProjection", VISION, "image"),
    "LLaVA": ("LlavaForConditionalGeneration", {"image_token_index": 127}, "text"),
}

#: Steps in the order in which they are tried; what follows one that fails is tried on what is there.
STEPS = ("quantize", "forward", "save", "load", "generate", "LoRA", "footprint", "summary")

#: What PEFT takes for the names of single experts' layers.
OF_EXPERTS = ("gate_proj", "up_proj", "down_proj")

#: The relative error of a model's output, beyond which a layer must have been misread. Rounding 8 bits in two layers stays far below.
FAR = 0.25


class StepError(Exception):
    """A step gave something else than it should."""


def made(name: str) -> nn.Module:
    """The float model of this name, with random weights."""
    kind, options, _ = ARCHITECTURES[name]
    model_class = getattr(transformers, kind)
    if name == "LLaVA":
        vision, text = transformers.CLIPVisionConfig(**VISION), transformers.LlamaConfig(**GROUPED)
        options = options | {"vision_config": vision, "text_config": text}
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2} if "vocab_size" in options else {}
    torch.manual_seed(0)
    return model_class(model_class.config_class(**ends | options)).eval()


def inputs_of(name: str) -> Inputs:
    """What its forward pass takes."""
    kind = ARCHITECTURES[name][2]
    generator = torch.Generator().manual_seed(1)
    if kind == "sequence to sequence":
        return {"input_ids": IDS, "decoder_input_ids": IDS[:, :5]}
    if kind == "mel":
        return {"input_features": torch.randn(1, 16, 40, generator=generator), "decoder_input_ids": IDS[:, :5]}
    if kind == "waveform":
        return {"input_values": torch.randn(1, 800, generator=generator)}
    if kind == "image":
        return {"pixel_values": torch.randn(1, 3, 32, 32, generator=generator)}
    return {"input_ids": IDS}


def output(model: nn.Module, inputs: Inputs) -> Tensor:
    """The first output of the forward pass."""
    with torch.no_grad():
        return model(**inputs)[0]


def try_steps(name: str) -> dict[str, Any]:
    """Takes one architecture through the steps.

    Returns:
        Its row: how many layers are int8 and how many stay float, the bytes after over those before, the relative error of the output,
        and for each step "passes", "-" where the architecture has none, "as float" where the float model fails it likewise, or what went
        wrong.
    """
    row: dict[str, Any] = {"architecture": name, "class": ARCHITECTURES[name][0]}
    model, inputs = made(name), inputs_of(name)
    with tempfile.TemporaryDirectory() as folder:
        tried = _Tried(model, copy.deepcopy(model), inputs, Path(folder), row)
        row["steps"] = {step: _outcome(getattr(tried, step.lower()), getattr(tried, f"{step.lower()}_float", None)) for step in STEPS}
    return row


def _outcome(step: Callable[[], str | None], of_float: Callable[[], None] | None) -> str:
    try:
        return step() or "passes"
    except Exception as error:  # whatever it is, it is the result
        wrong = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
    try:
        if of_float is not None:
            of_float()
    except Exception:
        return "as float"
    return wrong


class _Tried:
    """One architecture on its way through the steps, each a method."""

    def __init__(self, model: nn.Module, original: nn.Module, inputs: Inputs, folder: Path, row: dict[str, Any]) -> None:
        self.model, self.original, self.inputs, self.folder, self.row = model, original, inputs, folder, row

    def quantize(self) -> None:
        self.model = fast.quantize_model(self.model, progress=False)
        layers = [module for module in self.model.modules() if isinstance(module, Int8Linear)]
        experts = [module for module in self.model.modules() if isinstance(module, Int8Experts)]
        model: Any = self.model
        kept = [reason for _, reason in model.quantization_summary.kept.values()]
        self.row |= {"int8": len(layers), "experts": len(experts), "float": len(kept)}
        if not layers:
            raise StepError("no layer is int8")

    def forward(self) -> None:
        expected, y = output(self.original, self.inputs), output(self.model, self.inputs)
        self.row["error"] = float((y - expected).norm() / expected.norm())
        if not self.row["error"] < FAR:
            raise StepError(f"the output differs from the float model's by {self.row['error']:.2f}")

    def save(self) -> None:
        self.original.save_pretrained(self.folder / "float")  # type: ignore[operator]
        self.model.save_pretrained(self.folder / "int8")  # type: ignore[operator]

    def load(self) -> None:
        kind: Any = type(self.model)
        for source, options in (("int8", {}), ("float", {"quantization_config": Int8Config()})):
            loaded = kind.from_pretrained(self.folder / source, **options).eval()
            ours, theirs = loaded.state_dict(), self.model.state_dict()
            if ours.keys() != theirs.keys():
                raise StepError(f"from the {source} checkpoint, other tensors: {sorted(ours.keys() ^ theirs.keys())[:2]}")
            different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
            if different or not torch.equal(output(loaded, self.inputs), output(self.model, self.inputs)):
                raise StepError(f"from the {source} checkpoint, other bits: {different[:2] or 'of the output'}")

    def load_float(self) -> None:
        kind: Any = type(self.original)
        loaded = kind.from_pretrained(self.folder / "float").eval()
        if not torch.equal(output(loaded, self.inputs), output(self.original, self.inputs)):
            raise StepError("other bits of the output")

    def generate(self) -> str | None:
        model: Any = self.model
        if not model.can_generate():
            return "-"
        given = {key: value for key, value in self.inputs.items() if not key.startswith("decoder_")}
        tokens = model.generate(**given, max_new_tokens=4, do_sample=False, pad_token_id=0)
        if tokens.ndim != 2:
            raise StepError(f"tokens of shape {tuple(tokens.shape)}")
        return None

    def lora(self) -> None:
        before = {name: value.clone() for name, value in self.model.state_dict().items() if value.dtype == torch.int8}
        after = self._trained(self.model)
        for name, value in before.items():
            if not torch.equal(after[name], value):
                raise StepError(f"{name} has changed")

    def lora_float(self) -> None:
        self._trained(self.original)

    def _trained(self, model: nn.Module) -> dict[str, Tensor]:
        """The weights beside the adapters, by the names of the model, after one step of training."""
        names = sorted({name for name, module in self.model.named_modules() if isinstance(module, Int8Linear)})
        if any(isinstance(module, Int8Experts) for module in self.model.modules()):
            # Of a mixture of experts PEFT takes these names for the experts', also where they are those of a layer beside them.
            names = [name for name in names if name.rpartition(".")[2] not in OF_EXPERTS]
        torch.manual_seed(2)
        adapted = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(r=4, target_modules=names))
        optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
        adapted(**self.inputs)[0].float().pow(2).mean().backward()
        trained = [p for n, p in adapted.named_parameters() if "lora_B" in n and p.grad is not None and bool(p.grad.abs().sum() > 0)]
        optimizer.step()
        if not trained:
            raise StepError("no adapter gets a gradient")
        return {name.removeprefix("base_model.model.").replace(".base_layer", ""): value for name, value in adapted.state_dict().items()}

    def footprint(self) -> None:
        model: Any = self.model
        summary = model.quantization_summary
        self.row["bytes"] = summary.bytes_after / summary.bytes_before
        counted = sum(t.numel() * t.element_size() for t in {id(t): t for t in (*model.parameters(), *model.buffers())}.values())
        if counted != summary.bytes_after or not summary.bytes_after < summary.bytes_before:
            raise StepError(f"{counted} bytes, the summary says {summary.bytes_after} after {summary.bytes_before}")
        if model.num_parameters() != self.original.num_parameters():  # type: ignore[operator]
            raise StepError(f"{model.num_parameters()} parameters")

    def summary(self) -> None:
        model: Any = self.model
        told = {*model.quantization_summary.quantized, *model.quantization_summary.kept}
        linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        if silent := sorted(linear - told):
            raise StepError(f"the summary does not tell of {silent[0]}")
        self.row["reasons"] = sorted({reason.partition(";")[0] for _, reason in model.quantization_summary.kept.values()})


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these architectures")
    parser.add_argument("--out", help="where the record goes; experiments/results/architectures.json")
    options = parser.parse_args(arguments)
    try:
        chosen = options.only or list(ARCHITECTURES)
        if unknown := [name for name in chosen if name not in ARCHITECTURES]:
            raise InputError(f"--only {unknown[0]}: there is no such architecture; there are {', '.join(ARCHITECTURES)}")
        path = None if options.only and not options.out else records.output_path(options.out, "architectures")
    except InputError as error:
        parser.error(str(error))
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with fast.backend("cpu"):
        rows = [try_steps(name) for name in tqdm(chosen, desc="architectures", disable=None)]
    record = machine.heading("architectures", {"steps": list(STEPS)}) | {"rows": rows}
    print(tables.table(*page.table(record)))
    for row in rows:
        for step, outcome in row["steps"].items():
            if outcome not in page.SHOWN:
                print(f"{row['architecture']}, {step}: {outcome}")
    if path is not None:
        records.write(path, record)
        if options.out is None:
            page.write(record)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
