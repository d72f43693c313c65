"""Tiny random models, a folder that holds one, and a text: what the tests of the experiments run on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

VOCABULARY, TOKENS = 256, 24


def tiny_llama(seed: int = 0, **changes: Any) -> torch.nn.Module:
    """A random Llama of 3 blocks. One feature is large where attention and MLP read it, as in a real model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.15,
    }
    model = LlamaForCausalLM(LlamaConfig(**(settings | changes))).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.endswith("layernorm.weight"):
            parameter[5] = 12.0
        elif name.endswith("bias"):
            parameter.normal_()
    return model


def windows(count: int = 2, tokens: int = TOKENS, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCABULARY, (count, tokens))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: the tiny model, and a tokenizer that gives each byte a number."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("tiny")
    tiny_llama().save_pretrained(path)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(path)
    return path


def tiny(family: str) -> torch.nn.Module:
    """A random model of another family: LayerNorms with a bias, layers with a bias; GPT-2's store their weight (K, N)."""
    from transformers import AutoConfig, AutoModelForCausalLM

    shapes = {
        "llama": {},
        "opt": {"hidden_size": 48, "ffn_dim": 80, "num_hidden_layers": 2, "num_attention_heads": 4, "word_embed_proj_dim": 48},
        "gpt2": {"n_embd": 48, "n_layer": 2, "n_head": 4},
    }
    if family == "llama":
        return tiny_llama()
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, vocab_size=VOCABULARY, max_position_embeddings=64, **shapes[family])
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("The quick brown fox jumps over the lazy dog. " * 4)
    return path
