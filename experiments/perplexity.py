"""Perplexity of a language model by quantization method, through both engines: the paper's Table 1, on a real model.

    python -m experiments.perplexity                       the demo: SmolLM2, Python's documentation, every method
    python -m experiments.perplexity --passages 6 --windows 6 --engine fast        with narrower intervals
    python -m experiments.perplexity --layers attention mlp all --methods llm-int8-absmax
    python -m experiments.perplexity --thresholds 0.5 1 2 4 6 8 12 off --methods llm-int8-absmax
    python -m experiments.perplexity --batch 1 3 --methods absmax-tensor llm-int8-absmax

`fast` replaces the linear layers of the model itself; `reference` runs the same model in NumPy. Dettmers et al. (2022),
section 3.3, has the table for models of 125M to 13B parameters.
"""

import argparse
import copy
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

import fast
import reference
from fast.transformers_traits import is_conv1d

from . import command, machine, models, numpy_llama, records
from .command import InputError

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
    """What one row of the table runs.

    Attributes:
        method: a key of METHODS.
        layers: the linear layers it replaces, one of LAYERS.
        threshold: of the decomposition; None where there is none.
        outlier_weight: as in `fast.Int8Linear`.
        batch: how many windows go through the model together. They share what belongs to a whole input: the scale of a tensor,
            and the columns in 16 bits.
    """

    method: str
    layers: str = "all"
    threshold: float | None = None
    outlier_weight: str = "float"
    batch: int = 1

    @property
    def label(self) -> str:
        """The row's name, with what differs from the default."""
        parts = [METHODS[self.method].label]
        if self.layers != "all":
            parts.append(f"{self.layers} only")
        if METHODS[self.method].decomposition and self.threshold != 6.0:
            parts.append("threshold " + ("off" if self.threshold is None else f"{self.threshold:g}"))
        if self.batch != 1:
            parts.append(f"batch of {self.batch}")
        return ", ".join(parts)


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
    chosen = {n: m for n, m in found.items() if layers in ("all", kind(n))}
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
    return fast.quantize_model(
        shared,
        threshold=setting.threshold,
        skip=others,
        outlier_weight=setting.outlier_weight,
        quantizer=method.quantizer,
        granularity=method.granularity,
        progress=False,
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
    """Mean loss of each window (B,), in nats a token, of a causal language model that reads `tokens` (B, T) as one batch."""
    with torch.inference_mode():
        logits = model(torch.from_numpy(tokens).to(models.device_of(model)), use_cache=False).logits
    return np.array([cross_entropy(window[:-1].float().cpu().numpy(), t[1:]) for window, t in zip(logits, tokens, strict=True)])


def perplexity(losses: NDArray[np.float64]) -> float:
    """The exponential of the mean loss; windows have the same length, so that each counts alike."""
    return float(np.exp(np.mean(losses)))


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
        chosen = {n for n in linears if n != "lm_head" and setting.layers in ("all", kind(n))}
        llama.linears = {n: replaced(cast(numpy_llama.FloatLinear, layer)) if n in chosen else layer for n, layer in linears.items()}
    try:
        yield losses
    finally:
        llama.linears = linears


def cross_entropy(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> float:
    """Mean over the positions of -log softmax(logits)[target], in nats; logits (T, vocabulary), targets (T,)."""
    top = logits.max(axis=-1)
    total = np.exp(logits - top[:, None]).sum(axis=-1, dtype=np.float64)
    return float(np.mean(np.log(total) + top - logits[np.arange(len(targets)), targets]))


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
    engines: dict[str, Callable[[Setting, OutlierShare], Any]],
    settings: Sequence[Setting],
    passages: Sequence[NDArray[np.int64]],
    progress: bool = True,
    earlier: Sequence[dict[str, Any]] = (),
    finished: Callable[[list[dict[str, Any]]], object] = lambda rows: None,
) -> list[dict[str, Any]]:
    """Runs every setting through every engine, passage by passage, and within a passage `setting.batch` windows at a time.

    Args:
        engines: by name, a function from a setting to a context that gives a loss function.
        settings: the first is the float model, the baseline of the differences.
        passages: tokens (windows, length) of each.
        progress: whether to show a bar on standard error.
        earlier: rows of an earlier run over the same passages, which are not measured again.
        finished: is called with the rows so far after each.

    Returns:
        A row for each setting and engine: its label and settings, perplexity, difference to float, share of 16-bit products, mean
        loss of each window, and seconds (quantizing the weights included).
    """
    rows: list[dict[str, Any]] = []
    baseline: dict[str, NDArray[np.float64]] = {}
    known = {(row["label"], row["engine"]): row for row in earlier}
    total = len(engines) * len(settings) * sum(map(len, passages))
    with tqdm(total=total, unit="window", disable=not progress, leave=False) as bar:
        for setting, (name, engine) in itertools.product(settings, engines.items()):
            row = known.get((setting.label, name))
            if row is not None:
                bar.update(len(row["losses"]))
                baseline.setdefault(name, np.array(row["losses"]))
                rows.append(row)
                continue
            bar.set_description(f"{setting.label} ({name})")
            share, losses = OutlierShare(), []
            start = time.perf_counter()
            with engine(setting, share) as loss_of:
                for tokens in passages:
                    for i in range(0, len(tokens), setting.batch):
                        losses.append(loss_of(tokens[i : i + setting.batch]))
                        bar.update(len(losses[-1]))
            seconds = time.perf_counter() - start
            means = np.concatenate(losses)
            rows.append(
                {
                    "method": setting.method,
                    "label": setting.label,
                    "engine": name,
                    "layers": setting.layers,
                    "threshold": setting.threshold,
                    "batch": setting.batch,
                    "perplexity": perplexity(means),
                    "to_float": difference(means, baseline.setdefault(name, means)),
                    "outlier_share": share.value,
                    "seconds": seconds,
                    "losses": means,
                }
            )
            finished(rows)
    return rows


def settings_of(
    methods: Sequence[str],
    layers: Sequence[str] = ("all",),
    thresholds: Sequence[float | None] = (6.0,),
    outlier_weight: str = "float",
    batches: Sequence[int] = (1,),
) -> list[Setting]:
    """Every combination that makes a difference, the float model first."""
    settings = [Setting("float32")]
    for method in (m for m in METHODS if m in methods and m != "float32"):
        for part, batch in itertools.product(layers, batches):
            for threshold in thresholds if METHODS[method].decomposition else [None]:
                settings.append(Setting(method, part, threshold, outlier_weight, batch))
    return settings


def engine_difference(rows: Sequence[dict[str, Any]]) -> float | None:
    """The largest relative difference between two engines' perplexities of the same setting; None if there is one engine."""
    if len({row["engine"] for row in rows}) < 2:
        return None
    found = [[row["perplexity"] for row in rows if row["label"] == label] for label in {row["label"] for row in rows}]
    return max(max(values) / min(values) - 1 for values in found)


def by_method(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
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


def by_interval(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Draws the difference to float by method, with its interval."""
    rows = [row for row in rows if row["method"] != "float32"]
    for place, row in enumerate(rows):
        color = records.GREEN if METHODS[row["method"]].decomposition else records.ORANGE
        low, high = row["to_float"]["low"], row["to_float"]["high"]
        axes.plot([low, high], [place, place], color=color, linewidth=2.5, solid_capstyle="butt")
        axes.plot(row["to_float"]["percent"], place, "o", color=color, markersize=6)
    axes.axvline(0, color=records.GREY, linestyle=":", linewidth=1.2)
    axes.set_xscale("symlog", linthresh=1)
    axes.xaxis.set_major_formatter("{x:g} %")
    axes.set_yticks(range(len(rows)), [row["label"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("change of perplexity, with 95 % interval (green: decomposed)")


def by_threshold(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Draws, over the threshold, the difference to float (left) and the share of the products in 16 bits (right)."""
    left, right = axes
    for method, marker in zip(dict.fromkeys(row["method"] for row in rows if row["threshold"] is not None), "o^sv", strict=False):
        own = [row for row in rows if row["method"] == method]
        places = range(len(own))
        percent = np.array([[row["to_float"][k] for k in ("percent", "low", "high")] for row in own], float)
        (line,) = left.plot(places, percent[:, 0], marker + "-", markersize=5, label=METHODS[method].label)
        left.fill_between(places, percent[:, 1], percent[:, 2], color=line.get_color(), alpha=0.2, linewidth=0)
        right.plot(places, [100 * row["outlier_share"] for row in own], marker + "-", markersize=5)
        for ax in axes:
            ax.set_xticks(places, ["off" if row["threshold"] is None else f"{row['threshold']:g}" for row in own])
            ax.set_xlabel("threshold")
    left.axhline(0, color=records.GREY, linestyle=":", linewidth=1.2)
    left.set_ylabel("change of perplexity (%)")
    left.legend()
    right.set_ylabel("products in 16 bits (%)")
    right.set_yscale("symlog", linthresh=0.1)
    right.set_ylim(0, 100)
    right.yaxis.set_major_formatter("{x:g}")


def varied(record: dict[str, Any]) -> str:
    """Says what the rows of a record differ in beside the method: "threshold", "layers", "batch", "engine" or nothing ("method")."""
    decomposed = [row for row in record["rows"] if METHODS[row["method"]].decomposition]
    if len({row["threshold"] for row in decomposed}) > 1:
        return "threshold"
    return next((key for key in ("layers", "batch", "engine") if len({row[key] for row in record["rows"]}) > 1), "method")


def pictures(record: dict[str, Any]) -> Iterator[Any]:
    """The record's one picture, of the kind that shows what was varied."""
    rows = record["rows"]
    count = len({row["label"] for row in rows})
    if varied(record) == "threshold":
        with records.figure(9, 3.4, columns=2) as (figure, axes):
            by_threshold(axes, rows)
            yield figure
        return
    intervals = varied(record) != "engine" and rows[0]["to_float"]["low"] is not None
    with records.figure(8, 1.2 + 0.3 * count) as (figure, axes):
        (by_interval if intervals else by_method)(axes, rows)
        yield figure


TITLES = {
    "engine": "Perplexity by method, both engines",
    "method": "Perplexity by method, with intervals",
    "layers": "By kind of layer",
    "threshold": "By threshold",
    "batch": "By what else is in the batch",
}
ALT = {
    "engine": "Perplexity by quantization method, a circle for the reference and a cross for the fast engine",
    "method": "Change of perplexity against float32 by quantization method, with 95 % intervals",
    "layers": "Change of perplexity against float32 by quantization method and kind of layer, with 95 % intervals",
    "threshold": "Left: change of perplexity against float32 over the outlier threshold. Right: share of the products in 16 bits",
    "batch": "Change of perplexity against float32, one window at a time and several in a batch, with 95 % intervals",
}
ABOUT = {
    "engine": "The circle is the NumPy reference, the cross the fast path.",
    "method": "",
    "layers": "Only the attention's linear layers, only the MLP's, or all but the head.",
    "threshold": "Columns with a magnitude of the threshold or more are computed in 16 bits. Off: no decomposition. What is lost at a "
    "threshold is the rounding of the columns below it; the less a model's large entries stand out, the more of its loss lies there.",
    "batch": "Windows of a batch share what belongs to a whole input: the scale of a tensor, and the columns in 16 bits. A window's "
    "result then depends on its neighbours, and more columns are outliers for at least one of them.",
}


def section(record: dict[str, Any], name: str = "perplexity") -> str:
    """The record experiments/results/NAME.json as Markdown."""
    kind = varied(record)
    settings = record["settings"]
    head, lines = cells(record["rows"])
    timed = [i for i, title in enumerate(head) if not title.endswith(", s")]
    head, lines = [head[i] for i in timed], [[line[i] for i in timed] for line in lines]
    note = [
        f"Perplexity, its change against float32 with a {100 * settings['confidence']:.0f} % interval ({settings['interval']}), and the "
        "share of the products of the int8 layers that is done in 16 bits. Outlier columns meet the "
        f"{'float weight, as in the paper' if settings['outlier_weight'] == 'float' else 'dequantized weight'}."
    ]
    if record["engines_differ_by"] is not None:
        note.append(f"The two engines' perplexities differ by at most {100 * record['engines_differ_by']:.4f} %.")
    parts = [
        f"## {TITLES[kind]}",
        f"{records.text_of(settings)}; {records.provenance(record)}.",
        ABOUT[kind],
        f"![{ALT[kind]}](results/{name}.png)",
        records.markdown(head, lines),
        " ".join(note),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def cells(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """The table: perplexity and seconds by engine, the difference to float with its interval, the share in 16 bits."""
    engines = list(dict.fromkeys(row["engine"] for row in rows))
    head = [
        "method",
        *(engines if len(engines) > 1 else ["perplexity"]),
        "to float32",
        "95 % interval",
        "in 16 bits",
        *(f"{e}, s" for e in engines),
    ]
    lines = []
    for label in dict.fromkeys(row["label"] for row in rows):
        own = {row["engine"]: row for row in rows if row["label"] == label}
        last = own[engines[-1]]
        to_float, share, is_float = last["to_float"], last["outlier_share"], last["method"] == "float32"
        interval = "" if is_float or to_float["low"] is None else f"{to_float['low']:+.1f} to {to_float['high']:+.1f} %"
        lines.append(
            [
                label,
                *(shown(own[e]["perplexity"]) for e in engines),
                "" if is_float else f"{shown(to_float['percent'], '+.1f')} %",
                interval,
                "" if share is None else f"{100 * share:.2f} %",
                *(f"{own[e]['seconds']:.1f}" for e in engines),
            ]
        )
    return head, lines


def shown(value: float | None, form: str = "#.4g") -> str:
    """A number of a table; a record has None for one that is not finite."""
    return "not finite" if value is None or not np.isfinite(value) else format(value, form)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = command.Parser(prog="python -m experiments.perplexity", description=(__doc__ or "").splitlines()[0])
    models.add_options(parser)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD", help=", ".join(METHODS))
    parser.add_argument("--engine", choices=(*ENGINES, "both"), default="both", help="whose arithmetic (default both)")
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=["all"], help="linear layers to quantize (default all)")
    parser.add_argument("--thresholds", nargs="+", type=_threshold, default=[6.0], metavar="T", help='numbers or "off" (default 6)')
    parser.add_argument(
        "--batch", nargs="+", type=command.positive, default=[1], metavar="B", help="windows that go through together (default 1)"
    )
    parser.add_argument(
        "--outlier-weight",
        choices=("float", "dequantized"),
        default="float",
        help="what the outlier columns multiply: the float weight, as in the paper (default), or the dequantized codes",
    )
    parser.add_argument("--device", type=models.device, default="cpu", help="where the fast engine runs (default cpu)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the fast engine's model")
    parser.add_argument(
        "--resume", action="store_true", help="write the record after each row, and do not measure again what it holds already"
    )
    options = parser.parse_args(arguments)
    if options.engine != "fast" and (options.dtype != "float32" or options.device != "cpu"):
        raise InputError("--dtype and --device are those of the fast engine: add --engine fast")
    return options


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
    out = records.output_path(options.out, "perplexity")
    source, windows = models.source_and_windows(options)
    model = models.load_model(source, getattr(torch, options.dtype), options.device, options.tokens)

    reason = numpy_llama.unsupported(model.config)
    engines: dict[str, Callable[[Setting, OutlierShare], Any]] = {}
    if options.engine in ("reference", "both"):
        if reason:
            raise InputError(f"the reference engine cannot run {source.name}: {reason}; run it with --engine fast")
        llama = numpy_llama.from_torch(model)
        engines["reference"] = lambda setting, share: reference_engine(llama, setting, share)
    if options.engine in ("fast", "both"):
        wide = options.dtype == "float32" and reason is None
        engines["fast"] = lambda setting, share: fast_engine(model, setting, share, wide)

    settings = settings_of(options.methods, options.layers, options.thresholds, options.outlier_weight, options.batch)
    about = models.described(source, windows) | {
        "dtype": options.dtype,
        "outlier_weight": options.outlier_weight,
        "confidence": CONFIDENCE,
        "interval": "Student's t over the windows, paired with the float model",
    }

    def record_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
        return records.plain(machine.heading("perplexity", about) | {"engines_differ_by": engine_difference(rows), "rows": rows})

    earlier = records.rows_to_resume(out, about) if options.resume else []
    save = (lambda rows: records.write(out, record_of(rows))) if options.resume else (lambda rows: None)
    rows = measure(engines, settings, list(windows.values()), earlier=earlier, finished=save)
    record = record_of(rows)
    written = records.write(out, record, pictures(record))
    print(f"{source.name}, {sum(map(len, windows.values()))} windows of {options.tokens} tokens")
    print(records.table(*cells(rows)))
    if len(engines) == 2:
        print(f"the engines' perplexities differ by at most {100 * record['engines_differ_by']:.4f} %")
    print("wrote", *written, file=sys.stderr)


if __name__ == "__main__":
    command.run_command(main)
