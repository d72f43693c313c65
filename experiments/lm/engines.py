"""The two engines: a language model whose linear layers are replaced by those of `fast`, or that runs in NumPy with `reference`."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

import fast
import reference
from fast.transformers_traits import is_conv1d

from ..command import InputError
from . import models, numpy_llama
from .losses import cross_entropy
from .methods import METHODS, Setting


class OutlierShare:
    """Adds up which share of the multiplications of a model's int8 layers is done in 16 bits."""

    def __init__(self) -> None:
        self.outliers = self.all = 0

    def add(self, outliers: Any, n: int) -> None:
        """Counts a product with (N, K) by its outlier columns, a mask (K,); all inputs have the same number of rows."""
        self.outliers += n * int(outliers.sum())
        self.all += n * len(outliers)

    @property
    def value(self) -> float | None:
        """0 to 1; None if nothing was counted."""
        return self.outliers / self.all if self.all else None


def kind(name: str) -> str:
    """Says whether the linear layer `name` belongs to "attention" or to the "mlp"."""
    return "attention" if "attn" in name or "attention" in name else "mlp"


def linear_layers(model: torch.nn.Module, layers: str = "all") -> dict[str, torch.nn.Module]:
    """The linear layers to quantize, by name: all but the output head, or those of one kind.

    Raises:
        InputError: there is none.
    """
    head = model.get_output_embeddings()
    found = {n: m for n, m in model.named_modules() if (isinstance(m, torch.nn.Linear) or is_conv1d(m)) and m is not head}
    chosen = {n: m for n, m in found.items() if layers in ("all", "all-and-head", kind(n))}
    if not chosen:
        raise InputError(f"the model has no linear layer of the kind {layers!r}")
    return chosen


def quantized(model: torch.nn.Module, setting: Setting) -> torch.nn.Module:
    """Returns the model with the setting's layers replaced by `fast.Int8Linear`; the rest of its parameters are shared."""
    method = METHODS[setting.method]
    shared = copy.deepcopy(model, memo={id(p): p for p in model.parameters()})
    if method.quantizer is None:
        return shared
    chosen = linear_layers(model, setting.layers)
    others = tuple(n for n, m in model.named_modules() if (isinstance(m, torch.nn.Linear) or is_conv1d(m)) and n not in chosen)
    made = fast.quantize_model(
        shared,
        threshold=setting.threshold,
        skip=others,
        outlier_weight=setting.outlier_weight,
        quantizer=method.quantizer,
        granularity=method.granularity,
        progress=False,
    )
    if setting.layers == "all-and-head":
        # Made of the weight, which an embedding may share: that stays as it is.
        head = made.get_output_embeddings()
        options = (setting.threshold, setting.outlier_weight, method.quantizer, method.granularity)
        made.set_output_embeddings(fast.Int8Linear.from_float(head.weight, head.bias, *options))
    return made


class RotaryAngles(torch.nn.Module):
    """Cosine and sine of the rotary embedding's angles, in float64."""

    def __init__(self, frequencies: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("frequencies", frequencies.double().repeat(2), persistent=False)

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Both (1, T, d), for positions (1, T)."""
        angle = position_ids[..., None] * self.frequencies
        return angle.cos(), angle.sin()


def widen(model: torch.nn.Module) -> torch.nn.Module:
    """Makes everything between the linear layers of a Llama model float64, in place; see numpy_llama.py for why.

    The layers still read and write float32. Hugging Face's norms and angles compute in float32 whatever they are given, so
    they are replaced.
    """
    inner: Any = model.model
    inner.rotary_emb = RotaryAngles(inner.rotary_emb.inv_freq)
    inner.embed_tokens.register_forward_hook(lambda module, inputs, y: y.double())
    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            norm = torch.nn.RMSNorm(len(module.weight), eps=module.variance_epsilon, dtype=torch.float64, device=module.weight.device)
            norm.weight.data.copy_(module.weight)
            model.set_submodule(name, norm)
        elif isinstance(module, (torch.nn.Linear, fast.Int8Linear)):
            module.register_forward_pre_hook(lambda module, inputs: (inputs[0].float(),))
            module.register_forward_hook(lambda module, inputs, y: y.double())
    return model


def window_losses(model: torch.nn.Module, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean loss of each window (B,), in nats per token, of a causal language model that reads `tokens` (B, T) as one batch."""
    with torch.inference_mode():
        logits = model(torch.from_numpy(tokens).to(models.device_of(model)), use_cache=False).logits
    return np.array([cross_entropy(window[:-1].float().cpu().numpy(), t[1:]) for window, t in zip(logits, tokens, strict=True)])


@contextmanager
def fast_engine(
    model: torch.nn.Module, setting: Setting, share: OutlierShare, wide: bool
) -> Iterator[Callable[[NDArray[np.int64]], NDArray[np.float64]]]:
    """Gives a function from tokens (B, T) to the mean loss of each window (B,), through the model's own code."""
    int8 = quantized(model, setting)
    if wide:
        int8 = widen(int8)
    for layer in int8.modules():
        if isinstance(layer, fast.Int8Linear) and METHODS[setting.method].decomposition:
            layer.register_forward_pre_hook(lambda m, inputs: share.add(fast.outlier_columns(inputs[0], m.threshold), m.out_features))
    yield lambda tokens: window_losses(int8, tokens)


@contextmanager
def reference_engine(
    llama: numpy_llama.Llama, setting: Setting, share: OutlierShare
) -> Iterator[Callable[[NDArray[np.int64]], NDArray[np.float64]]]:
    """Gives a function from tokens (B, T) to the mean loss of each window (B,), through NumPy."""
    method, linears = METHODS[setting.method], llama.linears

    def replaced(layer: numpy_llama.FloatLinear) -> numpy_llama.Linear:
        int8 = reference.Int8Linear.from_float(
            layer.weight, layer.bias, setting.threshold, setting.outlier_weight, method.quantizer or "", method.granularity
        )

        def counted(x: numpy_llama.Array) -> numpy_llama.Array:
            share.add(reference.outlier_columns(x, setting.threshold), len(layer.weight))
            return int8(x)

        return counted if method.decomposition else int8

    def losses(tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.array([cross_entropy(llama.head(h[:-1]), t[1:]) for h, t in zip(llama.hidden(tokens), tokens, strict=True)])

    if method.quantizer is not None:
        everywhere = setting.layers in ("all", "all-and-head")
        chosen = {n for n in linears if n != "lm_head" and (everywhere or setting.layers == kind(n))}
        if setting.layers == "all-and-head":
            chosen.add("lm_head")
        llama.linears = {n: replaced(cast(numpy_llama.FloatLinear, layer)) if n in chosen else layer for n, layer in linears.items()}
    try:
        yield losses
    finally:
        llama.linears = linears
