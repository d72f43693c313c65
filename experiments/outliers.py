"""Emergent outlier features of a language model: where they are, how large, and what the model is without them.

    python -m experiments.outliers                                  SmolLM2, Python's documentation
    python -m experiments.outliers --model owner/model --layers 0   another model; 0: large in any layer

Dettmers et al. (2022), section 4. What the linear layers read is recorded, by kind of input: layers that read the same array (the
query, key and value projections) are one kind, and each kind has its own features. `reference.features` has the criterion.
"""

import argparse
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from reference import features

from . import command, machine, records
from .command import InputError
from .lm import engines, losses, models
from .lm.recording import Kind, hooked, readers, record_inputs
from .pages import tables
from .pages.outliers import feature_cells, kind_cells, pictures, removal_cells


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
    """Within this context, the layers of each kind read zeros instead of its chosen features."""
    features_of = {name: list(chosen[kind]) for kind in chosen for names in kinds[kind].layers for name in names}

    def clear(name: str) -> Callable[[torch.nn.Module, tuple], tuple]:
        return lambda module, inputs: (without(inputs[0], features_of[name]), *inputs[1:])

    return hooked({name: model.get_submodule(name) for name in features_of}, clear)


def without(x: torch.Tensor, columns: Sequence[int] | NDArray[np.integer]) -> torch.Tensor:
    """A copy of x with these columns set to zero."""
    x = x.clone()
    x[..., list(columns)] = 0
    return x


def attention_peak(
    model: torch.nn.Module, windows: NDArray[np.int64], columns: Sequence[Sequence[int] | NDArray[np.integer]]
) -> NDArray[np.float64]:
    """How sure the attention is: the mean of the largest softmax probability of each head and position, for each set of columns.

    Each layer is changed on its own, as in the paper: it reads its input without the columns, and passes on what it would have
    passed on with them. So an effect is that of this layer's input alone.

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
    read = next((kind for kind in chosen if engines.kind(kind) == "attention"), None)

    values = []
    with tqdm(total=len(sets) + 1 + (read is not None), desc="removing", unit="run", disable=not progress, leave=False) as bar:
        for one in ({}, *sets):
            with cleared(model, kinds, one):
                values.append(losses.perplexity(np.concatenate([engines.window_losses(model, w[None]) for w in windows])))
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
    shown = [tables.table(*cells(record)) for cells in (kind_cells, feature_cells, removal_cells)]
    records.finish(out, record, pictures(record), shown)


if __name__ == "__main__":
    command.run_command(main)
