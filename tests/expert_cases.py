"""Modules of experts for the tests: those of transformers with small random weights, and one that is made for them."""

import importlib
import importlib.util
from typing import Any

import torch
import transformers as tf
from torch import Tensor, nn
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Experts
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.llama4.modeling_llama4 import Llama4TextExperts
from transformers.models.mixtral.modeling_mixtral import MixtralExperts
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts
from transformers.models.olmoe.modeling_olmoe import OlmoeExperts
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from fast.experts_layout import PROJECTIONS

HIDDEN, INNER, EXPERTS = 64, 48, 4

#: By name: the class of the experts, and a config with these sizes.
FAMILIES: dict[str, tuple[type[nn.Module], Any]] = {
    "Mixtral": (MixtralExperts, tf.MixtralConfig(hidden_size=HIDDEN, intermediate_size=INNER, num_local_experts=EXPERTS)),
    "Qwen3-MoE": (Qwen3MoeExperts, tf.Qwen3MoeConfig(hidden_size=HIDDEN, moe_intermediate_size=INNER, num_experts=EXPERTS)),
    "OLMoE": (OlmoeExperts, tf.OlmoeConfig(hidden_size=HIDDEN, intermediate_size=INNER, num_experts=EXPERTS)),
    "gpt-oss": (GptOssExperts, tf.GptOssConfig(hidden_size=HIDDEN, intermediate_size=INNER, num_local_experts=EXPERTS)),
    "DeepSeek-V3": (
        DeepseekV3Experts,
        tf.DeepseekV3Config(hidden_size=HIDDEN, moe_intermediate_size=INNER, n_routed_experts=EXPERTS, n_group=2, topk_group=1),
    ),
    "Llama 4": (Llama4TextExperts, tf.Llama4TextConfig(hidden_size=HIDDEN, intermediate_size=INNER, num_local_experts=EXPERTS)),
    "Nemotron-H": (NemotronHExperts, tf.NemotronHConfig(hidden_size=HIDDEN, moe_intermediate_size=INNER, n_routed_experts=EXPERTS)),
}
#: transformers 5.17 does not have Muse Spark, and stores Aria's experts in another way.
IS_RECENT = importlib.util.find_spec("transformers.models.muse_spark") is not None
if IS_RECENT:
    muse_spark: Any = importlib.import_module("transformers.models.muse_spark.modeling_muse_spark")
    config = muse_spark.MuseSparkTextConfig(moe_hidden_size=HIDDEN, moe_intermediate_size=INNER, num_local_experts=EXPERTS)
    aria: Any = importlib.import_module("transformers.models.aria.modeling_aria")
    FAMILIES["Aria"] = (
        aria.AriaExperts,
        aria.AriaTextConfig(hidden_size=HIDDEN, intermediate_size=INNER, moe_num_experts=EXPERTS),
    )
    FAMILIES["Muse Spark"] = (muse_spark.MuseSparkExperts, config)


def experts_of(family: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    """The float experts of a family."""
    kind, config = FAMILIES[family]
    config._experts_implementation = "eager"
    return with_random_weights(kind(config), seed).to(dtype).eval()


def with_random_weights(module: nn.Module, seed: int = 0) -> nn.Module:
    """The same module, with normal weights of the size that trained ones have, and rows of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters(recurse=False):
        nn.init.normal_(parameter, 0, parameter.shape[-1] ** -0.5, generator=generator)
        if name in PROJECTIONS:
            parameter.data *= torch.rand(parameter.shape[0], parameter.shape[1], 1, generator=generator) + 0.5
    return module


class Plain(nn.Module):
    """Experts by transformers' interface whose gate is exact in float32: a product with a rectified half."""

    def __init__(self, experts: int, hidden: int, inner: int, bias: bool = False) -> None:
        super().__init__()
        self.num_experts, self.has_gate, self.has_bias, self.is_transposed = experts, True, bias, False
        self.gate_up_proj = nn.Parameter(torch.zeros(experts, 2 * inner, hidden))
        self.down_proj = nn.Parameter(torch.zeros(experts, hidden, inner))
        if bias:
            self.gate_up_proj_bias, self.down_proj_bias = (
                nn.Parameter(torch.zeros(experts, 2 * inner)),
                nn.Parameter(torch.zeros(experts, hidden)),
            )

    def _apply_gate(self, y: Tensor) -> Tensor:
        gate, up = y.chunk(2, dim=-1)
        return gate.relu() * up


def routed(tokens: int, k: int, experts: int, dtype: torch.dtype, seed: int = 1, empty: int | None = None) -> tuple[Tensor, Tensor]:
    """The experts of each token, all different, and their weights; nobody goes to `empty`."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(tokens, experts, generator=generator)
    if empty is not None:
        scores[:, empty] = -1
    return scores.topk(k).indices, torch.rand(tokens, k, generator=generator).to(dtype)


def activations(tokens: int, dtype: torch.dtype, hidden: int = HIDDEN, seed: int = 2) -> Tensor:
    """Rows with a systematic outlier feature, and one in a single row."""
    x = torch.randn(tokens, hidden, generator=torch.Generator().manual_seed(seed))
    x[:, 3] *= 9
    x[0, 7] = 30
    return x.to(dtype)
