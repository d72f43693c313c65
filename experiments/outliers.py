"""Emergent outlier features of a language model: where they are, how large, and what the model is without them.

    python -m experiments.outliers                                  SmolLM2, Python's documentation
    python -m experiments.outliers --model owner/model --layers 0   another model; 0: large in any layer

Dettmers et al. (2022), section 4. What the linear layers read is recorded, by kind of input: layers that read the same array (the
query, key and value projections) are one kind, and each kind has its own features. `reference.features` has the criterion.
"""

import argparse
import contextlib
import itertools
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from reference import features

from . import command, machine, models, perplexity, records
from .command import InputError


class Kind(NamedTuple):
    """What the linear layers of one kind read.

    Attributes:
        layers: for each of L layers, in order, the names of the modules that read the same input.
        inputs: (L, P, K) float32, that input at P positions.
    """

    layers: list[list[str]]
    inputs: NDArray[np.float32]


def record_inputs(model: torch.nn.Module, windows: NDArray[np.int64], progress: bool = True) -> dict[str, Kind]:
    """Runs windows (count, T) through the model, one at a time, and returns what its linear layers read, by kind.

    It keeps 4 bytes an entry: L * P * K for each kind, 0.6 GB for SmolLM2 and three windows of 512 tokens.
    """
    linears = perplexity.linear_layers(model)
    found: dict[str, list[NDArray[np.float32]]] = {}
    readers: dict[tuple, list[str]] = {}

    def keep(name: str) -> Callable[[torch.nn.Module, tuple], None]:
        def hook(module: torch.nn.Module, inputs: tuple) -> None:
            x = inputs[0]
            # Arrays that are alive at the same time and start at the same place are one array.
            same = readers.setdefault((x.data_ptr(), x.shape), [])
            alive.append(x)
            same.append(name)
            if same[0] == name:
                found.setdefault(name, []).append(x.detach().float().cpu().numpy().reshape(-1, x.shape[-1]).copy())

        return hook

    with _hooks(linears, keep):
        for window in tqdm(windows, desc="recording", unit="window", disable=not progress, leave=False):
            alive: list[torch.Tensor] = []
            readers.clear()
            with torch.inference_mode():
                model(torch.from_numpy(window[None]).to(models.device_of(model)), use_cache=False)

    kinds: dict[str, tuple[list[list[str]], list[NDArray[np.float32]]]] = {}
    for names in readers.values():
        layers, inputs = kinds.setdefault(_kind(names), ([], []))
        layers.append(names)
        inputs.append(np.concatenate(found.pop(names[0])))
    return {name: Kind(layers, np.stack(inputs)) for name, (layers, inputs) in kinds.items()}


def readers(model: torch.nn.Module, tokens: NDArray[np.int64]) -> dict[str, list[str]]:
    """For each norm whose output linear layers read, the names of these layers.

    Found by running the model on `tokens` (B, T): a layer reads a norm if its input is the very array that the norm gave.

    Raises:
        InputError: no linear layer reads a norm.
    """
    norms = {name: m for name, m in model.named_modules() if "norm" in type(m).__name__.lower() and getattr(m, "weight", None) is not None}
    made: dict[int, str] = {}
    found: dict[str, list[str]] = {}
    alive: list[torch.Tensor] = []

    def note(name: str) -> Any:
        def hook(module: torch.nn.Module, inputs: tuple, y: torch.Tensor) -> None:
            alive.append(y)  # or its memory would be used again
            made[y.data_ptr()] = name

        return hook

    def look(name: str) -> Any:
        def hook(module: torch.nn.Module, inputs: tuple) -> None:
            norm = made.get(inputs[0].data_ptr())
            if norm is not None:
                found.setdefault(norm, []).append(name)

        return hook

    handles = [m.register_forward_hook(note(n)) for n, m in norms.items()]
    handles += [m.register_forward_pre_hook(look(n)) for n, m in perplexity.linear_layers(model).items()]
    try:
        with torch.inference_mode():
            model(torch.from_numpy(tokens).to(models.device_of(model)), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise InputError("no linear layer of the model reads the output of a norm, so there is nothing to turn")
    return found


def _kind(names: Sequence[str]) -> str:
    """The name of a kind: its readers' names without the number of the block, and their common parent once."""
    first, *others = (re.sub(r"^.*\.\d+\.", "", name) for name in names)
    parent = first.rpartition(".")[0] + "."
    return ", ".join([first, *(name.removeprefix(parent) for name in others)])


@contextlib.contextmanager
def _hooks(modules: dict[str, torch.nn.Module], make: Callable[[str], Callable], **options: Any) -> Iterator[None]:
    handles = [module.register_forward_pre_hook(make(name), **options) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def describe(kind: Kind, threshold: float, layers: float, positions: float) -> dict[str, Any]:
    """Counts the large entries of one kind and describes its outlier features by the criterion's limits."""
    size = np.abs(kind.inputs)
    large = size >= threshold
    shares = features.affected(kind.inputs, threshold)
    chosen = np.flatnonzero(features.outlier_features(kind.inputs, threshold, layers, positions))
    columns = large.any(axis=(0, 1))
    return {
        "layers": len(kind.layers),
        "positions": kind.inputs.shape[1],
        "columns": kind.inputs.shape[2],
        "large_entries": int(large.sum()),
        "large_columns": int(columns.sum()),
        "largest": size.max(),
        "largest_by_layer": size.max(axis=(1, 2)),
        "median_by_layer": np.median(size, axis=(1, 2)),
        "affected": {"layers": shares.layers[columns], "positions": shares.positions[columns]},
        "features": [_describe_feature(kind.inputs[:, :, k], large[:, :, k], int(k)) for k in chosen],
    }


def _describe_feature(values: NDArray[np.float32], large: NDArray[np.bool_], number: int) -> dict[str, Any]:
    in_layers = large.any(axis=1)
    size = np.abs(values)
    return {
        "feature": number,
        "layers": in_layers.mean(),
        "positions": large.any(axis=0).mean(),
        "in_layers": np.flatnonzero(in_layers),
        "positive": (values[large] > 0).mean(),
        "median": np.median(size[large]),
        "largest": size.max(),
        "largest_by_layer": size.max(axis=1),
        "positions_by_layer": large.mean(axis=1),
    }


def cleared(model: torch.nn.Module, kinds: dict[str, Kind], chosen: Mapping[str, Sequence[int] | NDArray[np.integer]]) -> Any:
    """Within this context, the layers of each kind read zeros in the place of its chosen features."""
    features_of = {name: list(chosen[kind]) for kind in chosen for names in kinds[kind].layers for name in names}

    def clear(name: str) -> Callable[[torch.nn.Module, tuple], tuple]:
        return lambda module, inputs: (without(inputs[0], features_of[name]), *inputs[1:])

    return _hooks({name: model.get_submodule(name) for name in features_of}, clear)


def without(x: torch.Tensor, columns: Sequence[int] | NDArray[np.integer]) -> torch.Tensor:
    """A copy of x with these columns set to zero."""
    x = x.clone()
    x[..., list(columns)] = 0
    return x


def attention_peak(
    model: torch.nn.Module, windows: NDArray[np.int64], columns: Sequence[Sequence[int] | NDArray[np.integer]]
) -> NDArray[np.float64]:
    """How sure the attention is: the mean of the largest softmax probability of each head and position, for each set of columns.

    Each layer is asked on its own, as in the paper: it reads its input without the columns, and passes on what it would have
    without the question. So an effect is that of this layer's input alone.

    Args:
        model: with attention modules whose class name ends in "Attention", and that return their probabilities.
        windows: (count, T).
        columns: sets of columns of the attention's input.

    Returns:
        (1 + sets, layers): with all columns first.
    """
    attention = {n: m for n, m in model.named_modules() if type(m).__name__.endswith("Attention")}
    peaks: dict[str, list[list[float]]] = {name: [] for name in attention}

    def ask(name: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
            if output[1] is None:
                raise InputError(f"{type(module).__name__} does not return its probabilities")
            found = [_peak(output[1])]
            for one in columns:
                x = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
                changed = {"hidden_states": without(x, one)}
                rest = () if "hidden_states" in kwargs else args[1:]
                # forward(), which calls no hook of this module again
                found.append(_peak(module.forward(*rest, **(kwargs | changed))[1]))
            peaks[name].append(found)

        return hook

    before = model.config._attn_implementation
    model.set_attn_implementation("eager")  # the only one that returns the probabilities
    handles = [module.register_forward_hook(ask(name), with_kwargs=True) for name, module in attention.items()]
    try:
        for window in windows:
            with torch.inference_mode():
                model(torch.from_numpy(window[None]).to(models.device_of(model)), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
        model.set_attn_implementation(before)
    return np.array([np.mean(found, axis=0) for found in peaks.values()]).T


def _peak(probabilities: torch.Tensor) -> float:
    return float(probabilities.max(dim=-1).values.double().mean())


def removal(
    model: torch.nn.Module,
    kinds: dict[str, Kind],
    chosen: Mapping[str, Sequence[int] | NDArray[np.integer]],
    windows: NDArray[np.int64],
    seeds: int,
    progress: bool = True,
) -> dict[str, Any]:
    """What the model is without the chosen features, and without as many random other ones of each kind.

    Returns:
        Perplexity of all, of what is left without the features, and without random ones for each seed; and likewise the attention's
        peak, where the kind that the attention reads has a chosen feature.
    """
    sets = [chosen]
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        others = {kind: np.setdiff1d(np.arange(kinds[kind].inputs.shape[2]), chosen[kind]) for kind in chosen}
        sets.append({kind: np.sort(rng.choice(others[kind], len(chosen[kind]), replace=False)) for kind in chosen})
    read = next((kind for kind in chosen if perplexity.kind(kind) == "attention"), None)

    values = []
    with tqdm(total=len(sets) + 1 + (read is not None), desc="removing", unit="run", disable=not progress, leave=False) as bar:
        for one in ({}, *sets):
            with cleared(model, kinds, one):
                values.append(perplexity.perplexity(np.concatenate([perplexity.window_losses(model, w[None]) for w in windows])))
            bar.update()
        peaks = None
        if read is not None:
            found = attention_peak(model, windows, [one[read] for one in sets]).mean(axis=1)
            peaks = {"all": found[0], "without": found[1], "random": found[2:]}
            bar.update()
    return {
        "removed": {kind: list(map(int, numbers)) for kind, numbers in chosen.items()},
        "perplexity": {"all": values[0], "without": values[1], "random": values[2:]},
        "attention_peak": peaks,
    }


def pictures(record: dict[str, Any]) -> Iterator[Any]:
    """Layers and positions affected, sizes by layer, and what removing them does."""
    kinds = record["kinds"]
    with records.figure(9.5, 3.6, columns=2) as (figure, (left, right)):
        for (name, kind), marker in zip(kinds.items(), "o^svD", strict=False):
            shares = {of: 100 * np.array(values) for of, values in kind["affected"].items()}
            left.plot(
                shares["layers"], shares["positions"], marker, markersize=4, alpha=0.4, markeredgewidth=0, label=name, linestyle="none"
            )
            right.plot(kind["largest_by_layer"], marker + "-", markersize=3, linewidth=1)
        limits = record["settings"]
        left.axvline(100 * limits["layers"], color=records.GREY, linestyle="--", linewidth=1)
        left.axhline(100 * limits["positions"], color=records.GREY, linestyle="--", linewidth=1)
        left.set(xlabel="layers affected (%)", ylabel="positions affected (%)", xlim=(0, 103), yscale="log")
        left.legend(fontsize=9)
        right.axhline(limits["threshold"], color=records.GREY, linestyle="--", linewidth=1)
        right.set(xlabel="layer", ylabel="largest magnitude", yscale="log")
        yield figure
    if not record["removals"]:
        return
    with records.figure(7.6, 0.9 + 0.55 * 2 * len(record["removals"])) as (figure, axes):
        labels: list[str] = []
        for one in record["removals"]:
            found = one["perplexity"]
            axes.barh(len(labels), _percent(found["without"], found["all"]), color=records.RED, height=0.6)
            labels.append(f"without {_count(one)}\n({one['label']})")
            axes.plot([_percent(r, found["all"]) for r in found["random"]], [len(labels)] * len(found["random"]), "o", color=records.BLUE)
            labels.append("without as many random ones")
        axes.set_yticks(range(len(labels)), labels)
        axes.invert_yaxis()
        axes.set_xscale("symlog", linthresh=1)
        axes.xaxis.set_major_formatter("{x:g} %")
        axes.set_xlabel("change of perplexity")
        yield figure


def _percent(value: float, base: float) -> float:
    return 100 * (value / base - 1)


def _count(removal: dict[str, Any]) -> str:
    count = sum(map(len, removal["removed"].values()))
    return f"{count} feature{'' if count == 1 else 's'}"


def kind_cells(record: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """A table of the kinds of inputs."""
    head = ["input of", "columns", "entries >= threshold", "columns with one", "outlier features", "largest"]
    return head, [
        [
            name,
            str(kind["columns"]),
            f"{kind['large_entries']:,}",
            str(kind["large_columns"]),
            str(len(kind["features"])),
            f"{kind['largest']:.0f}",
        ]
        for name, kind in record["kinds"].items()
    ]


def feature_cells(record: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """A table of the outlier features: layers, positions, sign, size."""
    head = ["input of", "feature", "layers", "in layers", "positions", "positive", "median size", "largest"]
    return head, [
        [
            name,
            str(one["feature"]),
            f"{100 * one['layers']:.0f} %",
            spans(one["in_layers"]),
            f"{100 * one['positions']:.0f} %",
            f"{100 * one['positive']:.0f} %",
            f"{one['median']:.1f}",
            f"{one['largest']:.1f}",
        ]
        for name, kind in record["kinds"].items()
        for one in kind["features"]
    ]


def spans(numbers: Sequence[int]) -> str:
    """Writes [0, 1, 2, 5] as "0-2, 5"."""
    parts: list[list[int]] = []
    for n in numbers:
        if parts and n == parts[-1][-1] + 1:
            parts[-1].append(n)
        else:
            parts.append([n])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)


def removal_cells(record: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """A table of what removing features does, against removing as many random ones."""
    head = ["removed", "perplexity", "change", "attention's largest probability"]
    lines = []
    for one in record["removals"]:
        found, peaks = one["perplexity"], one["attention_peak"]
        random = [_percent(r, found["all"]) for r in found["random"]]
        lines.append(["nothing", f"{found['all']:.2f}", "", "" if peaks is None else f"{100 * peaks['all']:.1f} %"])
        lines.append(
            [
                f"{_count(one)}: {one['label']}",
                f"{found['without']:.4g}",
                f"{_percent(found['without'], found['all']):+.3g} %",
                "" if peaks is None else f"{100 * peaks['without']:.1f} %",
            ]
        )
        lines.append(
            [
                f"as many random ones, {len(random)} draws",
                f"{min(found['random']):.2f} to {max(found['random']):.2f}",
                f"{min(random):+.2f} to {max(random):+.2f} %",
                "" if peaks is None else f"{100 * min(peaks['random']):.1f} to {100 * max(peaks['random']):.1f} %",
            ]
        )
    return head, lines


def section(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    settings = record["settings"]
    parts = [
        "## Outlier features",
        f"{records.text_of(settings)}; {records.provenance(record)}.",
        f"An outlier feature has a magnitude of {settings['threshold']:g} or more in at least {100 * settings['layers']:.0f} % of the "
        f"layers and at at least {100 * settings['positions']:.0f} % of the positions. Each kind of input has features of its own.",
        "![Left: for every feature with a large entry, the share of the layers and of the positions in which it is large, with the "
        "criterion's limits as dashed lines. Right: the largest magnitude by layer](results/outliers.png)",
        records.markdown(*kind_cells(record)),
        "The features that meet the criterion:",
        records.markdown(*feature_cells(record)),
    ]
    if record["removals"]:
        parts += [
            "### What removing them does",
            "The features are set to zero where attention and MLP read them; beside it, as many random other features "
            f"({settings['seeds']} draws). \"Large in any layer\" leaves out the criterion's share of the layers. The attention's largest "
            "probability is the mean over heads, positions and layers, each layer asked on its own.",
            "![Change of perplexity without the outlier features, as bars, and without random ones, as dots](results/outliers-2.png)",
            records.markdown(*removal_cells(record)),
        ]
    return "\n\n".join(parts) + "\n"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = command.Parser(prog="python -m experiments.outliers", description=(__doc__ or "").splitlines()[0])
    models.add_options(parser)
    parser.add_argument("--threshold", type=_limit, default=6.0, help="magnitude from which an entry counts (default 6)")
    parser.add_argument("--layers", type=_share, default=0.25, help="least share of the layers (default 0.25)")
    parser.add_argument("--positions", type=_share, default=0.06, help="least share of the positions (default 0.06)")
    parser.add_argument("--seeds", type=command.positive, default=5, help="draws of random features to remove (default 5)")
    return parser.parse_args(arguments)


def _limit(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be more than 0, got {text}")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a share of 0 to 1, got {text}")
    return value


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    options = parse(arguments)
    out = records.output_path(options.out, "outliers")
    source, by_passage = models.source_and_windows(options)
    model = models.load_model(source, tokens=options.tokens)
    windows = np.concatenate(list(by_passage.values()))
    kinds = record_inputs(model, windows)
    limits = {"threshold": options.threshold, "layers": options.layers, "positions": options.positions}
    found = {name: describe(kind, **limits) for name, kind in kinds.items()}

    # Removed are features of what reads the residual stream through a norm, as in the paper.
    normed = set(itertools.chain(*readers(model, windows[:1, :8]).values()))
    removals = []
    for label, layers in (("by the criterion", options.layers), ("large in any layer", 0.0)):
        masks = {name: features.outlier_features(k.inputs, options.threshold, layers, options.positions) for name, k in kinds.items()}
        chosen = {name: np.flatnonzero(mask) for name, mask in masks.items() if mask.any() and kinds[name].layers[0][0] in normed}
        if chosen:
            removals.append({"label": label} | removal(model, kinds, chosen, windows, options.seeds))

    about = models.described(source, by_passage) | limits | {"seeds": options.seeds}
    record = records.plain(machine.heading("outliers", about) | {"kinds": found, "removals": removals})
    written = records.write(out, record, pictures(record))
    for cells in (kind_cells, feature_cells, removal_cells):
        print(records.table(*cells(record)), end="\n\n")
    print("wrote", *written, file=sys.stderr)


if __name__ == "__main__":
    command.run_command(main)
