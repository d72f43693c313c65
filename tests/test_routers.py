"""Layers that choose stay float: routers of a mixture of experts and their kin, found in the source of the models."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn

import fast
from fast import Int8Linear
from fast.selection.routers import GATE, ROUTER, routers
from tests.expert_cases import IS_RECENT


@pytest.fixture(autouse=True)
def on_the_cpu() -> Iterator[None]:
    with fast.backend("cpu"):
        yield


SIZES: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = SIZES | {"num_key_value_heads": 2, "intermediate_size": 48, "head_dim": 8}
EXPERTS = GROUPED | {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
LINEAR_ATTENTION = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
SHARED = EXPERTS | LINEAR_ATTENTION | {"shared_expert_intermediate_size": 16, "layer_types": ["linear_attention", "full_attention"]}

#: Class, config, and the ends of the names that have to stay float.
MODELS: dict[str, tuple[str, dict[str, Any], dict[str, str]]] = {
    "Gemma 4": (
        "Gemma4ForCausalLM",
        EXPERTS
        | {"enable_moe_block": True, "top_k_experts": 2, "vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 8}
        | {"layer_types": ["sliding_attention", "full_attention"]},
        {"router.proj": ROUTER},
    ),
    "AFMoE": ("AfmoeForCausalLM", EXPERTS | {"num_dense_layers": 1}, {"mlp.router.gate": ROUTER}),
    "JetMoE": (
        "JetMoeForCausalLM",
        SIZES | {"num_key_value_heads": 2, "kv_channels": 8, "intermediate_size": 48, "num_local_experts": 4, "num_experts_per_tok": 2},
        {"mlp.router.layer": ROUTER, "self_attention.experts.router.layer": ROUTER},
    ),
    "LongCat": (
        "LongcatFlashForCausalLM",
        {"vocab_size": 64, "hidden_size": 32, "num_layers": 1, "num_attention_heads": 4, "ffn_hidden_size": 48, "head_dim": 8}
        | {"expert_ffn_hidden_size": 16, "n_routed_experts": 4, "zero_expert_num": 2, "moe_topk": 2, "q_lora_rank": 16}
        | {"kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8},
        {"mlp.router.classifier": ""},  # its parent reads the weight as well
    ),
    "Qwen2-MoE": ("Qwen2MoeForCausalLM", EXPERTS | {"shared_expert_intermediate_size": 16}, {"mlp.shared_expert_gate": GATE}),
    "Qwen3-Next": ("Qwen3NextForCausalLM", SHARED, {"mlp.shared_expert_gate": GATE}),
    "Qwen3.5-MoE": ("Qwen3_5MoeForCausalLM", SHARED, {"mlp.shared_expert_gate": GATE}),
    "Doge": (
        "DogeForCausalLM",
        GROUPED | {"is_moe": True, "num_experts": 16, "num_experts_per_tok": 2},
        {"mlp.router_gate": ROUTER, "self_attn.dt_proj": ROUTER},
    ),
    "Switch": (
        "SwitchTransformersForConditionalGeneration",
        {"vocab_size": 64, "d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4, "num_experts": 4},
        {"mlp.router.classifier": ROUTER},
    ),
    "Zaya": (
        "ZayaForCausalLM",
        EXPERTS | {"router_hidden_size": 16, "num_experts_per_tok": 1},
        {"gate.down_proj": ROUTER, "fc1": ROUTER, "out_proj": ROUTER},
    ),
    "DBRX": (
        "DbrxForCausalLM",
        {"vocab_size": 64, "d_model": 32, "n_heads": 4, "n_layers": 1, "max_seq_len": 64}
        | {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8}}
        | {"ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32}},
        {"ffn.router.layer": ROUTER},
    ),
    "Mixtral": ("MixtralForCausalLM", GROUPED | {"num_local_experts": 4}, {}),
    "Llama": ("LlamaForCausalLM", GROUPED, {}),
}
if not IS_RECENT:
    del MODELS["Switch"]  # whose router chooses by a maximum there


@pytest.mark.parametrize("name", MODELS)
def test_routers_of_transformers_stay_float_and_the_summary_says_why(name):
    kind, options, expected = MODELS[name]
    with torch.device("meta"):
        model = getattr(tf, kind)(getattr(tf, kind).config_class(**options))
    found = routers(model)
    ends = {end for end in expected if any(layer.endswith(f".{end}") for layer in found)}
    assert ends == set(expected)
    assert all(layer.endswith((*expected, "router_mlp.fc2")) for layer in found) if expected else found == {}
    fast.quantize_model(model, progress=False)
    kept = {layer: reason for layer, (_, reason) in model.quantization_summary.kept.items()}
    assert found.keys() <= kept.keys()
    for layer in found:
        assert not isinstance(model.get_submodule(layer), Int8Linear)
        assert any(layer.endswith(end) and (not reason or kept[layer] == reason) for end, reason in (expected | {"fc2": ROUTER}).items())


# The rule, on models made for it.


class Block(nn.Module):
    """Attributes of the classes below."""

    def __init__(self) -> None:
        super().__init__()
        self.top_k = 2
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)


class Feeds(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x))
        _, chosen = torch.topk(self.c(x).float().softmax(-1), self.top_k)
        return chosen


class ChoosesAndComputes(Block):
    def forward(self, x: Tensor) -> Tensor:
        scores = self.c(self.a(x))
        return self.b(x) * scores.topk(self.top_k, dim=-1).values.sum()


class InAnotherMethod(Block):
    def choose(self, scores: Tensor, k: int) -> Tensor:
        return scores.argmax(dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.c(x)
        return self.b(self.a(x)) * self.choose(scores=scores, k=2).unsqueeze(-1)


class ReadsTheWeight(Block):
    def forward(self, x: Tensor) -> Tensor:
        scores = nn.functional.linear(x, self.c.weight)
        return self.b(self.a(x)) * torch.topk(scores, 2).values.sum()


class SameNameLater(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.c(x)
        chosen = y.topk(2).indices
        y = self.b(self.a(x))
        return y * chosen.sum()


class Nowhere(Block):
    def unused(self, x: Tensor) -> Tensor:
        return self.c(x).topk(2).indices

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x)))


class Holds(nn.Module):
    """A block around a router, with a gate, and one like it without."""

    def __init__(self, router: nn.Module) -> None:
        super().__init__()
        self.router, self.gate, self.up = router, nn.Linear(8, 1), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.gate(x)) * self.up(x) * self.router(x).sum()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Feeds, {"a", "b", "c"}),
        (ChoosesAndComputes, {"c"}),
        (InAnotherMethod, {"c"}),
        (ReadsTheWeight, {"c"}),
        (SameNameLater, {"c"}),
        (Nowhere, set()),
    ],
)
def test_what_feeds_a_choice_is_followed_to_the_nearest_layers_or_to_all(kind, expected):
    assert set(routers(kind())) == expected
    assert set(routers(kind()).values()) <= {ROUTER}


def test_a_gate_with_one_output_stays_float_beside_a_router_only():
    assert routers(Holds(Feeds())) == {f"router.{name}": ROUTER for name in "abc"} | {"gate": GATE}
    assert routers(Holds(nn.Identity())) == {}


def test_routers_stay_float_whatever_skip_says():
    model = fast.quantize_model(nn.Sequential(ChoosesAndComputes()), skip=(), progress=False)
    assert [name for name, module in model.named_modules() if isinstance(module, Int8Linear)] == ["0.a", "0.b"]
    assert model.quantization_summary.kept["0.c"][1] == ROUTER


def test_a_router_in_int8_would_choose_other_experts():
    """Why they stay float: with random weights and a few systematic outliers, more than one token in fifty changes its experts."""
    torch.manual_seed(0)
    x = torch.randn(512, 2048)
    x[:, torch.randperm(2048)[:6]] *= 15
    router = nn.Linear(2048, 128, bias=False)
    with torch.no_grad():
        exact, rounded = (layer(x).topk(8).indices.sort(1).values for layer in (router, Int8Linear.from_float(router)))
    assert (exact != rounded).any(1).float().mean() > 0.02
