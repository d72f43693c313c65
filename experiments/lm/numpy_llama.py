"""A Llama language model in NumPy, for the reference engine: every linear layer is a function that can be replaced.

    x = embedding[tokens]
    for each block:   x += attention(norm(x));   x += mlp(norm(x))
    logits = head(norm(x))

Between the linear layers everything is float64. A last-place difference there would now and then turn a code of the next int8
layer, a turned code moves everything behind it, and after 30 layers two correct implementations differ by 1 % of perplexity: so
both engines hand their layers the same float32 numbers.

RMSNorm: Zhang and Sennrich (2019). Rotary position embedding: Su et al. (2021). Grouped-query attention: Ainslie et al. (2023).
SwiGLU: Shazeer (2020). B windows of T tokens; D is the width of the model, d that of a head.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Wide = NDArray[np.float64]
Linear = Callable[[Array], Array]

#: The linear layers of a block, by the name a checkpoint gives them, in the order in which they run.
ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


@dataclass
class FloatLinear:
    """x @ weight.T + bias; weight (N, K), bias (N,) or None."""

    weight: Array
    bias: Array | None = None

    def __call__(self, x: Array) -> Array:
        """Returns (..., N) for x (..., K)."""
        y = x @ self.weight.T
        return y if self.bias is None else y + self.bias


@dataclass
class Llama:
    """The weights by their checkpoint names, and the few numbers that say how they are used.

    Attributes:
        arrays: embedding (vocabulary, D) and gains (D,).
        linears: "layers.0.self_attn.q_proj" and so on, and "lm_head"; what is put here is what runs.
        blocks, heads, kv_heads: counts; `heads // kv_heads` query heads share a key and value head.
        frequencies: (d / 2,) radians per position, by which the rotary embedding turns each pair of a head's entries.
        eps: what RMSNorm adds to the mean square.
    """

    arrays: dict[str, Array]
    linears: dict[str, Linear]
    blocks: int
    heads: int
    kv_heads: int
    frequencies: Array
    eps: float

    def hidden(self, tokens: NDArray[np.int64]) -> Wide:
        """What the head reads, (B, T, D), of B windows of T tokens (B, T)."""
        x = self.arrays["embed_tokens.weight"][tokens].astype(np.float64)
        rotation = rotary_angles(tokens.shape[-1], self.frequencies)
        for i in range(self.blocks):
            x = x + self.attention(f"layers.{i}.", self.norm(x, f"layers.{i}.input_layernorm"), rotation)
            x = x + self.mlp(f"layers.{i}.", self.norm(x, f"layers.{i}.post_attention_layernorm"))
        return self.norm(x, "norm")

    def head(self, x: Wide) -> Array:
        """The logits (..., vocabulary) of what `hidden` returns."""
        return self.linears["lm_head"](x.astype(np.float32))

    def linear(self, name: str, x: Wide) -> Wide:
        """A linear layer reads and writes float32."""
        return self.linears[name](x.astype(np.float32)).astype(np.float64)

    def norm(self, x: Wide, name: str) -> Wide:
        """RMSNorm: each row divided by its root mean square, each column times a gain."""
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.eps) * self.arrays[f"{name}.weight"]

    def attention(self, block: str, x: Wide, rotation: tuple[Wide, Wide]) -> Wide:
        """Each position looks at itself and the positions before it."""
        q, k, v = (self._heads(self.linear(block + name, x)) for name in ATTENTION[:3])
        q, k = rotate(q, rotation), rotate(k, rotation)
        group = self.heads // self.kv_heads
        k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
        scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
        scores += np.triu(np.full(scores.shape[-2:], -np.inf), k=1)
        mixed = softmax(scores) @ v
        return self.linear(block + ATTENTION[3], mixed.swapaxes(1, 2).reshape(*x.shape[:2], -1))

    def _heads(self, x: Wide) -> Wide:
        """(B, T, heads * d) to (B, heads, T, d)."""
        return x.reshape(*x.shape[:2], -1, 2 * len(self.frequencies)).swapaxes(1, 2)

    def mlp(self, block: str, x: Wide) -> Wide:
        """SwiGLU: one projection, gated by the SiLU of another, projected back."""
        gate, up = (self.linear(block + name, x) for name in MLP[:2])
        return self.linear(block + MLP[2], gate / (1 + np.exp(-gate)) * up)


def rotary_angles(positions: int, frequencies: Array) -> tuple[Wide, Wide]:
    """Cosine and sine (positions, d) of the angles by which the pairs of a head's entries are turned."""
    angle = np.outer(np.arange(positions), np.tile(frequencies.astype(np.float64), 2))
    return np.cos(angle), np.sin(angle)


def rotate(x: Wide, rotation: tuple[Wide, Wide]) -> Wide:
    """Turns each pair (entry i, entry i + d/2) of x (..., T, d) by its position's angle."""
    cosine, sine = rotation
    low, high = np.split(x, 2, axis=-1)
    return x * cosine + np.concatenate([-high, low], axis=-1) * sine


def softmax(x: Wide) -> Wide:
    """exp(x), each row divided by its sum; works in place, since the scores are the largest array of all."""
    np.subtract(x, x.max(axis=-1, keepdims=True), out=x)
    np.exp(x, out=x)
    x /= x.sum(axis=-1, keepdims=True)
    return x


def unsupported(config: Any) -> str | None:
    """Says why `Llama` cannot run a model of this Hugging Face configuration, or None if it can."""
    if config.model_type != "llama":
        return f"its architecture is {config.model_type!r}, not 'llama'"
    kind = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if kind not in ("default", "linear", "llama3"):  # those whose frequencies depend on neither the text's length nor a further factor
        return f"its rotary embedding is of type {kind!r}"
    return None if config.hidden_act == "silu" else f"its activation is {config.hidden_act!r}, not 'silu'"


def from_torch(model: Any) -> Llama:
    """Takes the weights of a transformers LlamaForCausalLM on the CPU; float32 arrays share its memory."""
    config = model.config
    arrays = {name.removeprefix("model."): value.detach().float().numpy() for name, value in model.state_dict().items()}
    names = [f"layers.{i}.{part}" for i in range(config.num_hidden_layers) for part in ATTENTION + MLP] + ["lm_head"]
    return Llama(
        arrays=arrays,
        linears={name: FloatLinear(arrays.pop(f"{name}.weight"), arrays.pop(f"{name}.bias", None)) for name in names},
        blocks=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        frequencies=model.model.rotary_emb.inv_freq.float().numpy(),
        eps=config.rms_norm_eps,
    )
