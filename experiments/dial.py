"""The outlier dial: outlier features as large as one likes, in a model that fits a laptop, and not one changed output in float.

    python -m experiments.dial
    python -m experiments.dial --factors 1 4 16 64 --features 3

A feature is made `factor` times larger where attention and MLP read it, and the weight columns that read it `factor` times smaller:

    sum_k x[k] w[k]  =  sum_{k != c} x[k] w[k]  +  (factor * x[c]) * (w[c] / factor)

With a power of two only exponents move, so every product, every sum and every output is the same number as before. What changes is
how hard the inputs are to quantize, as it does when models grow: Dettmers et al. (2022), section 4.2, see up to seven such features
in all layers from 6.7 billion parameters on.
"""

import argparse
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from reference import features

from . import command, machine, records
from .command import InputError
from .lm import engines, losses, models, recording
from .lm.dial import ordinary_features, turn
from .lm.methods import METHODS, SETTINGS
from .pages import tables
from .pages.dial import cells, pictures


def measure(
    model: torch.nn.Module,
    read: dict[str, list[str]],
    columns: Sequence[int],
    factors: Sequence[float],
    windows: NDArray[np.int64],
    progress: bool = True,
) -> list[dict[str, Any]]:
    """A row for each factor and method: perplexity, difference to float, share of the products in 16 bits; and what the criterion finds.

    Raises:
        RuntimeError: turning the dial changed a loss of the float model.
    """
    rows: list[dict[str, Any]] = []
    baseline = losses_of(model, windows)
    with tqdm(total=len(factors) * len(SETTINGS), desc="turning", unit="run", disable=not progress, leave=False) as bar:
        for factor in factors:
            turned = turn(model, read, columns, factor)
            if not np.array_equal(losses_of(turned, windows), baseline):
                raise RuntimeError(f"the float model changed at factor {factor}; its products are not exact on this device")
            kinds = recording.record_inputs(turned, windows[:1], progress=False)
            found = {name: np.flatnonzero(features.outlier_features(kind.inputs)) for name, kind in kinds.items()}
            for label, setting in SETTINGS.items():
                share = engines.OutlierShare()
                with engines.fast_engine(turned, setting, share, wide=False) as loss_of:
                    means = np.concatenate([loss_of(window[None]) for window in windows])
                rows.append(
                    {
                        "factor": factor,
                        "label": label,
                        "method": setting.method,
                        "outlier_weight": setting.outlier_weight if METHODS[setting.method].decomposition else None,
                        "perplexity": losses.perplexity(means),
                        "to_float": losses.difference(means, baseline),
                        "outlier_share": share.value,
                        "features": found,
                        "largest": max(float(np.abs(kind.inputs[:, :, columns]).max()) for kind in _turned(kinds, read)),
                        "losses": means,
                    }
                )
                bar.update()
    return rows


def losses_of(model: torch.nn.Module, windows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean loss of each window (count,), one at a time."""
    return np.concatenate([engines.window_losses(model, window[None]) for window in windows])


def _turned(kinds: dict[str, recording.Kind], read: dict[str, list[str]]) -> list[recording.Kind]:
    names = set(itertools.chain(*read.values()))
    return [kind for kind in kinds.values() if set(itertools.chain(*kind.layers)) <= names]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = command.Parser(prog="python -m experiments.dial", description=(__doc__ or "").splitlines()[0])
    models.add_options(parser)
    parser.add_argument(
        "--factors", nargs="+", type=_power_of_two, default=[1, 4, 16, 64, 256], help="powers of two (default 1 4 16 64 256)"
    )
    parser.add_argument("--features", type=command.positive, default=6, help="how many features to turn (default 6)")
    return parser.parse_args(arguments)


def _power_of_two(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf or math.frexp(value)[0] != 0.5:
        raise argparse.ArgumentTypeError(f"must be a power of two, got {text}")
    return value


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    options = parse(arguments)
    out = records.output_path(options.out, "dial")
    source, by_passage = models.source_and_windows(options)
    model = models.load_model(source, tokens=options.tokens)
    windows = np.concatenate(list(by_passage.values()))
    read = recording.readers(model, windows[:1, :8])
    kinds = _turned(recording.record_inputs(model, windows[:1]), read)
    if options.features > kinds[0].inputs.shape[2]:
        raise InputError(f"--features {options.features}: the model has {kinds[0].inputs.shape[2]}")
    columns = ordinary_features(kinds, options.features)
    rows = measure(model, read, columns, options.factors, windows)
    about = models.described(source, by_passage) | {"features": columns, "factors": options.factors, "threshold": 6.0}
    float_perplexity = losses.perplexity(losses_of(model, windows))
    record = records.plain(machine.heading("dial", about) | {"float_perplexity": float_perplexity, "rows": rows})
    turned = f"{source.name}, features {', '.join(map(str, columns))}; float32 perplexity {float_perplexity:.2f} at every factor"
    records.finish(out, record, pictures(record), [turned, tables.table(*cells(record))])


if __name__ == "__main__":
    command.run_command(main)
