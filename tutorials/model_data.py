"""Real inputs and weights: what the linear layers of SmolLM2-135M see when it reads English prose.

The model and the text are those of the experiments (`experiments/lm/models.py`); neither needs a download. Loading
them takes a few seconds.
"""

import contextlib
import functools
import io

import numpy as np
import torch
from numpy.typing import NDArray

from experiments.lm import models

#: The layer of the running table: its input has two outlier columns.
LAYER = "model.layers.29.mlp.gate_proj"


@functools.cache
def model() -> torch.nn.Module:
    """The model in float32, in evaluation mode."""
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar would be stored with the notebook
        return models.load_model(models.find_model(None))


@functools.cache
def prose(positions: int = 512) -> torch.Tensor:
    """The first `positions` tokens of the experiments' text, (1, positions)."""
    return torch.from_numpy(models.default_windows(models.load_tokenizer(models.find_model(None)), positions, count=1))


@functools.cache
def layer_inputs(positions: int = 512) -> dict[str, NDArray[np.float32]]:
    """The input (positions, K) of every linear layer, by its name."""
    seen: dict[str, NDArray[np.float32]] = {}

    def keep(name: str):
        def hook(module: torch.nn.Module, arguments: tuple) -> None:
            seen[name] = arguments[0][0].numpy().copy()

        return hook

    hooks = [m.register_forward_pre_hook(keep(n)) for n, m in model().named_modules() if isinstance(m, torch.nn.Linear)]
    with torch.inference_mode():
        model()(prose(positions))
    for handle in hooks:
        handle.remove()
    return seen


def layer(name: str = LAYER, positions: int = 512) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The input X (positions, K) and the weight W (N, K) of one linear layer."""
    return layer_inputs(positions)[name], model().get_submodule(name).weight.detach().numpy()


@functools.cache
def tokenizer():
    """The model's tokenizer, of the transformers library."""
    from transformers import AutoTokenizer

    found = models.find_model(None)
    with contextlib.redirect_stderr(io.StringIO()):
        return AutoTokenizer.from_pretrained(found.folder, gguf_file=found.gguf_file)


def mark(perplexity: float) -> str:
    """How much a perplexity depends on the processor, which rounds sums in its own order: "~" slightly, "≈" if int8 has damaged the model.

    The float model has 20; of a method with 33 on one processor another has given 36.
    """
    return "~" if perplexity <= 25 else "≈"


def about(perplexity: float) -> str:
    """A perplexity as the chapters print it, with its mark; no digits of a ruined model."""
    return f"{mark(perplexity)}{perplexity:.{1 if perplexity < 100 else 0}f}" if perplexity < 1000 else "> 1000"
