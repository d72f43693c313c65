"""A model in int8 through `from_pretrained`, beside its float model: bytes, perplexity, and the text both write.

    python -m experiments.generate
    python -m experiments.generate --model FOLDER --new 40 --prompt "Once upon a time"

The float model is saved to a temporary folder first: transformers does not quantize a GGUF file while it loads it. Loaded this way, the
model must be the one that `experiments.perplexity` makes of the float model in memory: if their losses differ, nothing is written.
"""

import argparse
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from fast.huggingface import Int8Config
from fast.selection import size_of

from . import command, machine, records
from .command import InputError
from .lm import engines, losses, models, numpy_llama
from .lm.engines import OutlierShare
from .lm.methods import Setting
from .pages.generate import section

PROMPTS = ("The capital of France is", "Water boils at", "def factorial(n):", "Once upon a time, there was a")
METHOD = "llm-int8-absmax"
POLICY = "dequantized"


class NotTheSameError(Exception):
    """Two ways to the same model gave different ones."""


def load_int8(model: nn.Module, threshold: float | None) -> nn.Module:
    """Saves a float model to a temporary folder and loads it in int8."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        config = Int8Config(threshold, outlier_weight=POLICY)
        int8 = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config)
    return int8.eval().requires_grad_(False)


def sizes(model: nn.Module, int8: nn.Module) -> list[dict[str, Any]]:
    """Bytes by part of the model, in float and in int8."""
    summary: Any = int8.quantization_summary
    before, after = (sum(pair[i] for pair in summary.quantized.values()) for i in (0, 1))
    rest = summary.bytes_after - after
    return [
        {"part": f"{len(summary.quantized)} linear layers", "float": before, "int8": after},
        {"part": "embedding, head, norms", "float": size_of(model) - before, "int8": rest},
        {"part": "the model", "float": size_of(model), "int8": summary.bytes_after},
    ]


def losses_of(model: nn.Module, setting: Setting, windows: Sequence[NDArray[np.int64]]) -> NDArray[np.float64]:
    """Mean loss of each window, one window at a time, by the fast engine of `experiments.perplexity`."""
    wide = numpy_llama.unsupported(model.config) is None
    with engines.fast_engine(model, setting, OutlierShare(), wide) as loss_of:
        return np.concatenate([loss_of(tokens[i : i + 1]) for tokens in windows for i in range(len(tokens))])


def compare(model: nn.Module, int8: nn.Module, threshold: float | None, windows: Sequence[NDArray[np.int64]]) -> dict[str, float]:
    """Perplexities: of the float model, of `int8`, and of what `experiments.perplexity` makes of the float model.

    Raises:
        NotTheSameError: the last two differ in any window, in any bit.
    """
    loaded = losses_of(int8, Setting("float32"), windows)  # nothing is left to quantize
    in_memory = losses_of(model, Setting(METHOD, threshold=threshold, outlier_weight=POLICY), windows)
    if not np.array_equal(loaded, in_memory):
        raise NotTheSameError(f"losses through from_pretrained {loaded.tolist()}, through quantize_model {in_memory.tolist()}")
    names = {"float": losses_of(model, Setting("float32"), windows), "from_pretrained": loaded, "quantize_model": in_memory}
    return {name: losses.perplexity(found) for name, found in names.items()}


def continuation(model: nn.Module, prompt: torch.Tensor, new: int) -> list[int]:
    """The tokens that the model continues a prompt (1, T) with, greedily: at most `new`."""
    greedy = {"max_new_tokens": new, "do_sample": False, "pad_token_id": 0}
    tokens = model.generate(prompt, attention_mask=torch.ones_like(prompt), **greedy)
    return tokens[0, prompt.shape[1] :].tolist()


def equal_first(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens are equal before the first that is not."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def written(model: nn.Module, int8: nn.Module, tokenizer: Any, prompts: Sequence[str], new: int) -> list[dict[str, Any]]:
    """What both models write after each prompt, and how many first tokens are equal."""
    rows = []
    for prompt in prompts:
        ids = torch.tensor([tokenizer(prompt).input_ids])
        ours, theirs = continuation(int8, ids, new), continuation(model, ids, new)
        texts = {"float": tokenizer.decode(theirs), "int8": tokenizer.decode(ours)}
        rows.append({"prompt": prompt, **texts, "tokens": len(theirs), "equal": equal_first(ours, theirs)})
    return rows


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = command.Parser(prog="python -m experiments.generate", description=(__doc__ or "").splitlines()[0])
    models.add_options(parser)
    parser.add_argument("--prompt", nargs="+", default=list(PROMPTS), metavar="TEXT", help="what to continue (default: four short ones)")
    parser.add_argument("--new", type=command.positive, default=24, help="tokens to write after each (default %(default)s)")
    parser.add_argument("--threshold", type=float, default=6.0, help="of the decomposition (default %(default)s)")
    options = parser.parse_args(arguments)
    if not options.threshold >= 0:
        raise InputError(f"--threshold must be 0 or more, got {options.threshold}")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    options = parse(arguments)
    out = records.output_path(options.out, "generate")
    source, windows = models.source_and_windows(options)
    tokenizer = AutoTokenizer.from_pretrained(source.folder, gguf_file=source.gguf_file)
    model = models.load_model(source)
    int8 = load_int8(model, options.threshold)
    about = models.described(source, windows) | {"dtype": "float32", "threshold": options.threshold, "outlier_weight": POLICY}
    record = records.plain(
        machine.heading("generate", about)
        | {
            "bytes": sizes(model, int8),
            "perplexity": compare(model, int8, options.threshold, list(windows.values())),
            "texts": written(model, int8, tokenizer, options.prompt, options.new),
        }
    )
    records.finish(out, record, shown=[section(record)])


if __name__ == "__main__":
    command.run_command(main)
