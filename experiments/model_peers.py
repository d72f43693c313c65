"""The language model in other engines: llama.cpp's Q8_0 and ctranslate2's int8, which have their own attention, norms and loops.

Both are made in a temporary folder from the weights that the other models are made of. None of them treats outlier columns apart.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import peers
from .lm.models import Source

Now = Callable[[], float]


class Engine:
    """A model that is no torch module.

    Attributes:
        bytes: of its weights on disk.
    """

    bytes: int

    def prefill_seconds(self, tokens: Sequence[int], now: Now) -> float:
        """Reads the tokens in one call; returns the seconds per token."""
        raise NotImplementedError

    def decode_seconds(self, tokens: Sequence[int], count: int, now: Now) -> float:
        """Makes `count` tokens after the given ones; returns the mean seconds of those after the first."""
        raise NotImplementedError

    def tokens_after(self, tokens: Sequence[int], count: int) -> list[int]:
        """The next `count` tokens, greedily, also past the end of the text."""
        raise NotImplementedError


class LlamaCpp(Engine):
    """llama.cpp with all weights in Q8_0, the output head's among them."""

    def __init__(self, source: Source, longest: int) -> None:
        import llama_cpp

        if source.gguf_file is None:
            raise ValueError("llama.cpp needs a .gguf file")
        settings = llama_cpp.llama_model_quantize_default_params()
        settings.ftype, settings.allow_requantize, settings.nthread = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, True, torch.get_num_threads()
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "q8_0.gguf"
            original = Path(source.folder) / source.gguf_file
            if llama_cpp.llama_model_quantize(str(original).encode(), str(made).encode(), settings):
                raise RuntimeError("llama_model_quantize failed")
            self.bytes = made.stat().st_size
            threads = torch.get_num_threads()
            options: dict[str, Any] = {"n_threads": threads, "n_threads_batch": threads, "verbose": False, "use_mmap": False}
            self._model = llama_cpp.Llama(str(made), n_ctx=longest, n_batch=longest, n_ubatch=longest, **options)

    def prefill_seconds(self, tokens: Sequence[int], now: Now) -> float:
        """As in `Engine`."""
        self._model.reset()
        start = now()
        self._model.eval(tokens)
        return (now() - start) / len(tokens)

    def decode_seconds(self, tokens: Sequence[int], count: int, now: Now) -> float:
        """As in `Engine`; a token that is read takes as long as one that was chosen."""
        self._model.reset()
        self._model.eval(tokens)
        start = now()
        for token in tokens[: count - 1]:
            self._model.eval([token])
        return (now() - start) / (count - 1)

    def tokens_after(self, tokens: Sequence[int], count: int) -> list[int]:
        """As in `Engine`."""
        self._model.reset()
        made = self._model.generate(tokens, temp=0.0, repeat_penalty=1.0)
        return [next(made) for _ in range(count)]


class CTranslate2(Engine):
    """ctranslate2 with int8 weights, the output head's among them."""

    def __init__(self, model: nn.Module, source: Source) -> None:
        import ctranslate2
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(source.folder, gguf_file=source.gguf_file)
        threads = torch.get_num_threads()
        with tempfile.TemporaryDirectory() as folder:
            whole, made = Path(folder) / "whole", Path(folder) / "int8"
            model.save_pretrained(whole)
            tokenizer.save_pretrained(whole)
            ctranslate2.converters.TransformersConverter(str(whole)).convert(str(made), quantization="int8")
            self.bytes = (made / "model.bin").stat().st_size
            self._model = ctranslate2.Generator(str(made), device="cpu", compute_type="int8", intra_threads=threads, inter_threads=1)
        self._names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))

    def tokens_after(self, tokens: Sequence[int], count: int) -> list[int]:
        """As in `Engine`."""
        prompt = [[self._names[token] for token in tokens]]
        options: dict[str, Any] = {"sampling_topk": 1, "include_prompt_in_result": False}
        return self._model.generate_batch(prompt, max_length=count, min_length=count, **options)[0].sequences_ids[0]

    def prefill_seconds(self, tokens: Sequence[int], now: Now) -> float:
        """As in `Engine`; with it the first token is chosen."""
        start = now()
        self.tokens_after(tokens, 1)
        return (now() - start) / len(tokens)

    def decode_seconds(self, tokens: Sequence[int], count: int, now: Now) -> float:
        """As in `Engine`: what `count` tokens take longer than one."""
        one = self.prefill_seconds(tokens, now) * len(tokens)
        start = now()
        self.tokens_after(tokens, count)
        return (now() - start - one) / (count - 1)


def available(source: Source | None, longest: int) -> dict[str, tuple[str, Callable[[nn.Module], Engine]]]:
    """The engines that are installed: label and how it is made of the float32 model, by name.

    Args:
        source: where that model comes from; None for a model that comes from nowhere.
        longest: the most tokens that it is to hold.
    """
    found: dict[str, tuple[str, Callable[[nn.Module], Engine]]] = {}
    if source is not None and source.gguf_file is not None and peers.installed("llama_cpp"):
        found["llama.cpp"] = ("llama.cpp, Q8_0", lambda model: LlamaCpp(source, longest))
    if source is not None and peers.installed("ctranslate2"):
        found["ctranslate2"] = ("ctranslate2, int8", lambda model: CTranslate2(model, source))
    return found
