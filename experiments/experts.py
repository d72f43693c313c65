"""Mixtures of experts in int8: GB of whole models, small experts of each family put to the test, what routers would do, memory while
loading, and speed.

    python -m experiments.experts            sizes, families, routers and loading, and docs/howto/mixture_of_experts.md
    python -m experiments.experts --speed    times on this CPU, on a quiet machine, at the sizes of Qwen3-30B-A3B

Loading, saving, generating and training are tried by `python -m experiments.architectures`.
"""

import copy
import functools
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from tqdm import tqdm

import fast
from fast import Int8Experts, Int8Linear
from fast.experts_layout import PROJECTIONS, Layout, layout

from . import command, loading_peak, machine, records, timing
from .pages import experts as page

#: Whole models: name -> class of the model; the sizes are those of its config's defaults.
MODELS = {
    "Mixtral 8x7B": "MixtralForCausalLM",
    "Qwen3-MoE": "Qwen3MoeForCausalLM",
    "Qwen3-Next": "Qwen3NextForCausalLM",
    "OLMoE": "OlmoeForCausalLM",
    "gpt-oss": "GptOssForCausalLM",
    "DeepSeek-V3": "DeepseekV3ForCausalLM",
}

HIDDEN, INNER, EXPERTS = 256, 192, 8
_DECODER: dict[str, Any] = {"vocab_size": 64, "hidden_size": HIDDEN, "num_hidden_layers": 1, "num_attention_heads": 4}
_DECODER |= {"num_key_value_heads": 4, "intermediate_size": INNER, "moe_intermediate_size": INNER, "num_experts_per_tok": 2}
#: Families: name -> class of the model, and the options of its config that make it small.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Mixtral": ("MixtralForCausalLM", {"num_local_experts": EXPERTS}),
    "Qwen3-MoE": ("Qwen3MoeForCausalLM", {"num_experts": EXPERTS, "head_dim": 64}),
    "OLMoE": ("OlmoeForCausalLM", {"num_experts": EXPERTS}),
    "gpt-oss": ("GptOssForCausalLM", {"num_local_experts": EXPERTS, "head_dim": 64, "layer_types": ["full_attention"]}),
    "DeepSeek-V3": (
        "DeepseekV3ForCausalLM",
        {"n_routed_experts": EXPERTS, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 0, "q_lora_rank": 32, "kv_lora_rank": 32}
        | {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16},
    ),
    "Llama 4": ("Llama4ForCausalLM", {"num_local_experts": EXPERTS, "head_dim": 64, "interleave_moe_layer_step": 1}),
    "Nemotron-H": (
        "NemotronHForCausalLM",
        {"n_routed_experts": EXPERTS, "layers_block_type": ["moe"], "n_group": 1, "topk_group": 1, "head_dim": 64},
    ),
}
TOKENS = 512

#: Hidden size, experts and chosen ones of a router: Qwen3-MoE's, Mixtral's, Gemma 4's.
ROUTERS = ((2048, 128, 8), (4096, 8, 2), (2816, 128, 8))


class OneLayerEach(nn.Module):
    """What `Int8Experts` has to equal: two `Int8Linear` for each expert, in a loop over experts.

    Args:
        module: experts in float, as fast.experts_layout knows them.
        threshold: as in `Int8Linear.from_float`.
    """

    def __init__(self, module: nn.Module, threshold: float | None = 6.0) -> None:
        super().__init__()
        stored = layout(module)
        if stored is None:
            raise TypeError(f"module must be experts that are known, got {type(module).__name__}")
        self.model: Any = module
        self.stored: Layout = stored
        self.threshold = threshold
        self.first, self.second = (nn.ModuleList(self._layers(name)) for name in (stored.first, "down_proj"))

    def _layers(self, name: str) -> list[Int8Linear]:
        weight, bias = self.model._parameters[name].detach(), self.model._parameters.get(f"{name}_bias")
        weights = weight.transpose(1, 2) if self.stored.transposed else weight
        biases = [None] * len(weights) if bias is None else bias.detach()
        return [Int8Linear.from_float(w.contiguous(), b, self.threshold) for w, b in zip(weights, biases, strict=True)]

    def forward(self, x: Tensor, top_k_index: Tensor | None = None, top_k_weights: Tensor | None = None) -> Tensor:
        """As `Int8Experts`."""
        if top_k_index is None or top_k_weights is None:
            return self._in_blocks(x)
        tokens, k = top_k_index.shape
        rows = [(top_k_index.reshape(-1) == e).nonzero().view(-1) for e in range(len(self.first))]
        each = [(e, own) for e, own in enumerate(rows) if len(own)]
        y = torch.zeros(tokens * k, x.shape[1], dtype=x.dtype)
        if each:
            # The gate takes all rows at once, sorted: Torch computes the end of a tensor in other instructions than the rest of it.
            h = torch.cat([self.first[e](x[own // k]) for e, own in each])
            h = self.model._apply_gate(h) if self.model.has_gate else self.model.act_fn(h)
            parts = h.split([len(own) for _, own in each])
            out = torch.cat([self.second[e](part) for (e, _), part in zip(each, parts, strict=True)])
            out = self.model.post_expert_norm(out) if getattr(self.model, "has_post_expert_norm", False) else out
            y = y.index_put((torch.cat([own for _, own in each]),), out)
        weights = top_k_weights.float().masked_fill(top_k_index >= len(self.first), 0)
        return (y.view(tokens, k, x.shape[1]).float() * weights.unsqueeze(-1)).sum(1).to(x.dtype)

    def _in_blocks(self, x: Tensor) -> Tensor:
        out = []
        for first, second, block in zip(self.first, self.second, x.chunk(len(self.first)), strict=True):
            gate, up = first(block).chunk(2, dim=-1)
            out.append(second(up * self.model.act_fn(gate)))
        return torch.cat(out)


def size_of_model(name: str) -> dict[str, Any]:
    """Bytes of a whole model, from its config alone."""
    kind = getattr(transformers, MODELS[name])
    with torch.device("meta"):
        model = kind(kind.config_class()).to(torch.bfloat16)
    k = model.config.num_experts_per_tok
    fast.quantize_model(model, progress=False)
    summary = model.quantization_summary
    experts = [summary.quantized[each] for each in summary.experts]
    before, after = (sum(sizes[i] for sizes in experts) for i in (0, 1))
    module = model.get_submodule(min(summary.experts))
    return {
        "model": name,
        "experts": before,
        "before": summary.bytes_before,
        "linear": summary.bytes_after + before - after,
        "after": summary.bytes_after,
        "read_before": experts[0][0] * k / len(module.down_proj),
        "read_after": experts[0][1] * k / len(module.down_proj),
    }


def small_experts(family: str) -> nn.Module:
    """The float experts of a small model, with random weights whose rows differ in size."""
    kind = getattr(transformers, FAMILIES[family][0])
    options = {key: value for key, value in _DECODER.items() if family != "gpt-oss" or key != "moe_intermediate_size"}
    with torch.device("meta"):
        model = kind(kind.config_class(**options | FAMILIES[family][1]))
    module = next(each for each in model.modules() if layout(each) is not None).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters(recurse=False):
        nn.init.normal_(parameter, 0, parameter.shape[-1] ** -0.5, generator=generator)
        if name in PROJECTIONS:
            parameter.data *= torch.rand(parameter.shape[:2], generator=generator).unsqueeze(-1) + 0.5
    module.config = getattr(module, "config", model.config)
    module.config._experts_implementation = "eager"
    return module.requires_grad_(False).eval()


def tokens_for(module: nn.Module, tokens: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Input of the experts: rows with systematic outlier features, and the experts of each."""
    generator = torch.Generator().manual_seed(tokens)
    stored = layout(module)
    assert stored is not None
    rows = tokens * EXPERTS if stored.in_blocks else tokens
    x = torch.randn(rows, HIDDEN, generator=generator)
    x[:, [3, 70]] *= 12
    if stored.in_blocks:
        return (x.to(dtype),)
    index = torch.rand(tokens, EXPERTS, generator=generator).topk(2).indices
    return x.to(dtype), index, torch.rand(tokens, 2, generator=generator).to(dtype)


def try_family(family: str) -> dict[str, Any]:
    """Puts the small experts of a family to the test."""
    equal, error = [], 0.0
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for tokens in (1, 5, 33):
            module = small_experts(family).to(dtype)
            given, expected = tokens_for(module, tokens, dtype), OneLayerEach(copy.deepcopy(module))
            exact = copy.deepcopy(module).float()(*(t.float() if t.is_floating_point() else t for t in given))
            y = Int8Experts.from_float(module)(*given)
            equal.append(torch.equal(y, expected(*given)))
            if dtype == torch.float32:
                error = max(error, float((y - exact).norm() / exact.norm()))
    module = small_experts(family)
    weights = {name: module.get_parameter(name).shape for name in PROJECTIONS if hasattr(module, name)}
    stored = layout(module)
    assert stored is not None
    least = sum(shape.numel() + 4 * shape[0] * shape[2 if stored.transposed else 1] for shape in weights.values())
    int8 = Int8Experts.from_float(module)
    held = sum(int8.get_parameter(name).numel() * int8.get_parameter(name).element_size() for name in int8.stored_names())
    given = tokens_for(small_experts(family), 9, torch.float32)
    y = int8(*given)
    torch.compiler.reset()  # the families' modules share code, and Dynamo compiles each piece of code a limited number of times
    compiled = torch.compile(int8, fullgraph=True, dynamic=True, backend="aot_eager")(*given)
    exported = torch.export.export(int8, given).module()(*given)
    return {
        "family": family,
        "equal": sum(equal),
        "tried": len(equal),
        "error": error,
        "bytes": held / least,
        "compiled": torch.equal(compiled, y),
        "exported": torch.equal(exported, y),
    }


def try_router(hidden: int, experts: int, k: int) -> dict[str, Any]:
    """How many tokens get other experts if a router with random weights is int8."""
    torch.manual_seed(0)
    x = torch.randn(TOKENS, hidden)
    x[:, torch.randperm(hidden)[:6]] *= 15
    router = nn.Linear(hidden, experts, bias=False)
    exact, rounded = (layer(x).topk(k).indices.sort(1).values for layer in (router, Int8Linear.from_float(router)))
    return {"hidden": hidden, "experts": experts, "k": k, "changed": float((exact != rounded).any(1).float().mean())}


def route_a_few() -> dict[str, Any]:
    """A few tokens and their experts, and which columns are outliers for each: what the page draws."""
    generator = torch.Generator().manual_seed(1)
    tokens, features, experts, k = 8, 16, 4, 2
    x, router = torch.randn(tokens, features, generator=generator), torch.randn(features, experts, generator=generator)
    x[2, 5], x[6, 11] = 9.0, -7.5
    chosen = (x.clamp(-3, 3) @ router).topk(k).indices.sort(1).values
    rows = [(chosen == e).any(1).nonzero().view(-1) for e in range(experts)]
    outliers = [fast.outlier_columns(x[own], 6.0).nonzero().view(-1).tolist() for own in rows]
    return {"tokens": tokens, "features": features, "rows": [own.tolist() for own in rows], "outliers": outliers}


def time_speed(tokens: Sequence[int], hidden: int, inner: int, experts: int, k: int, rounds: int) -> list[dict[str, Any]]:
    """Times one layer of experts on the CPU in int8, and as transformers computes it in bfloat16."""
    config = transformers.Qwen3MoeConfig(hidden_size=hidden, moe_intermediate_size=inner, num_experts=experts, num_experts_per_tok=k)
    module: Any = transformers.models.qwen3_moe.modeling_qwen3_moe.Qwen3MoeExperts(config).to(torch.bfloat16).requires_grad_(False)
    for parameter in module.parameters():
        parameter.normal_(0, 0.02)
    int8 = Int8Experts.from_float(copy.deepcopy(module))

    def floats(implementation: str) -> Any:
        def call(*given: Tensor) -> Tensor:
            module.config._experts_implementation = implementation
            return module(*given)

        return call

    contenders = {"int8": int8, "eager": floats("eager"), "grouped_mm": floats("grouped_mm")}
    rows = []
    for count in tokens:
        x = torch.randn(count, hidden).to(torch.bfloat16)
        x[:, :6] *= 10
        # Other experts for each call: in a model each layer's weights come from memory.
        calls = [(x, torch.rand(count, experts).topk(k).indices, torch.rand(count, k).to(torch.bfloat16)) for _ in range(4)]
        clock = timing.CpuClock()
        samplers = {name: clock.sampler([functools.partial(call, *given) for given in calls]) for name, call in contenders.items()}
        samples = timing.interleave(samplers, rounds)
        seconds = {name: timing.spread(each) for name, each in samples.items()}
        ratios = {name: timing.ratio(samples[name], samples["int8"]) for name in ("eager", "grouped_mm")}
        rows.append({"tokens": count, "seconds": seconds, "ratios": ratios})
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = command.Parser(prog="python -m experiments.experts", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--speed", action="store_true", help="time one layer on this CPU instead")
    parser.add_argument("--tokens", type=command.positive, nargs="+", default=[1, 16, 128], help="with --speed: 1 16 128")
    parser.add_argument("--hidden", type=command.positive, default=2048, help="with --speed: hidden size, 2048")
    parser.add_argument("--inner", type=command.positive, default=768, help="with --speed: size inside an expert, 768")
    parser.add_argument("--experts", type=command.positive, default=128, help="with --speed: 128, of which 8 are chosen")
    parser.add_argument("--rounds", type=command.positive, default=20, help="with --speed: 20")
    parser.add_argument("--threads", type=command.positive, help="of Torch")
    parser.add_argument("--out", help="where the record goes; experiments/results/experts.json, with --speed experts-speed.json")
    options = parser.parse_args(arguments)
    path = records.output_path(options.out, "experts-speed" if options.speed else "experts")
    if options.threads:
        torch.set_num_threads(options.threads)
    transformers.utils.logging.set_verbosity_error()
    with torch.no_grad(), fast.backend("cpu"):
        if options.speed:
            settings = {"hidden": options.hidden, "inner": options.inner, "experts": options.experts, "k": min(8, options.experts)}
            record = machine.heading("experts", settings) | {"rows": time_speed(options.tokens, **settings, rounds=options.rounds)}
        else:
            record = machine.heading("experts", {"hidden": HIDDEN, "inner": INNER, "tokens": TOKENS})
            record["sizes"] = [size_of_model(name) for name in tqdm(MODELS, desc="sizes", disable=None)]
            record["matrix"] = [try_family(name) for name in tqdm(FAMILIES, desc="families", disable=None)]
            record["routers"] = [try_router(*each) for each in ROUTERS]
            record["loading"] = loading_peak.measure()
            record["routing"] = route_a_few()
    record = records.plain(record)
    records.finish(path, record, page.pictures(record), page.shown(record))
    if options.out is None:
        page.write()


if __name__ == "__main__":
    command.run_command(main)
