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
import copy
import itertools
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from fast.transformers_traits import is_conv1d
from reference import features

from . import command, machine, models, outliers, perplexity, records
from .command import InputError
from .perplexity import METHODS, Setting

#: Method and where the outlier columns take their weights from, by label.
SETTINGS = {
    "absmax, by tensor": Setting("absmax-tensor"),
    "absmax, by vector": Setting("absmax-vector"),
    "zeropoint, by vector": Setting("zeropoint-vector"),
    "LLM.int8(), dequantized weights": Setting("llm-int8-absmax", threshold=6.0, outlier_weight="dequantized"),
    "LLM.int8(), float weights": Setting("llm-int8-absmax", threshold=6.0),
}


def turn(model: torch.nn.Module, read: dict[str, list[str]], columns: Sequence[int], factor: float) -> torch.nn.Module:
    """Returns a model that computes the same, whose linear layers read these columns of the norms' outputs `factor` times larger.

    Args:
        model: stays as it is; parameters that do not change are shared.
        read: as `outliers.readers` returns it.
        columns: numbers of features.
        factor: a power of two, so that nothing is rounded.

    Raises:
        ValueError: it is none.
    """
    if not factor > 0 or math.frexp(factor)[0] != 0.5:
        raise ValueError(f"factor must be a power of two, got {factor}")
    columns = list(columns)
    changed = {f"{norm}.{part}" for norm in read for part in ("weight", "bias")}
    changed |= {f"{name}.weight" for names in read.values() for name in names}
    turned = copy.deepcopy(model, memo={id(p): p for n, p in model.named_parameters() if n not in changed})
    for norm, names in read.items():
        for parameter in turned.get_submodule(norm).parameters():
            parameter.data[columns] *= factor
        for name in names:
            reader = turned.get_submodule(name)
            weight = reader.weight.data.T if is_conv1d(reader) else reader.weight.data
            weight[:, columns] /= factor
    return turned


def ordinary_features(kinds: Sequence[outliers.Kind], count: int) -> list[int]:
    """The `count` features of the most ordinary size: nearest to the median of their mean magnitude over layers and positions."""
    size = np.mean([np.abs(kind.inputs).mean(axis=(0, 1)) for kind in kinds], axis=0)
    return sorted(np.argsort(np.abs(size - np.median(size)), kind="stable")[:count].tolist())


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
    baseline = losses(model, windows)
    with tqdm(total=len(factors) * len(SETTINGS), desc="turning", unit="run", disable=not progress, leave=False) as bar:
        for factor in factors:
            turned = turn(model, read, columns, factor)
            if not np.array_equal(losses(turned, windows), baseline):
                raise RuntimeError(f"the float model changed at factor {factor}; its products are not exact on this device")
            kinds = outliers.record_inputs(turned, windows[:1], progress=False)
            found = {name: np.flatnonzero(features.outlier_features(kind.inputs)) for name, kind in kinds.items()}
            for label, setting in SETTINGS.items():
                share = perplexity.OutlierShare()
                with perplexity.fast_engine(turned, setting, share, wide=False) as loss_of:
                    means = np.concatenate([loss_of(window[None]) for window in windows])
                rows.append(
                    {
                        "factor": factor,
                        "label": label,
                        "method": setting.method,
                        "outlier_weight": setting.outlier_weight if METHODS[setting.method].decomposition else None,
                        "perplexity": perplexity.perplexity(means),
                        "to_float": perplexity.difference(means, baseline),
                        "outlier_share": share.value,
                        "features": found,
                        "largest": max(float(np.abs(kind.inputs[:, :, columns]).max()) for kind in _turned(kinds, read)),
                        "losses": means,
                    }
                )
                bar.update()
    return rows


def losses(model: torch.nn.Module, windows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean loss of each window (count,), one at a time."""
    return np.concatenate([perplexity.window_losses(model, window[None]) for window in windows])


def _turned(kinds: dict[str, outliers.Kind], read: dict[str, list[str]]) -> list[outliers.Kind]:
    names = set(itertools.chain(*read.values()))
    return [kind for kind in kinds.values() if set(itertools.chain(*kind.layers)) <= names]


def pictures(record: dict[str, Any]) -> Iterator[Any]:
    """Perplexity over the factor, a line for each method."""
    rows = record["rows"]
    with records.figure(8, 3.8) as (figure, axes):
        for label, marker in zip(SETTINGS, "o^svD", strict=True):
            own = [row for row in rows if row["label"] == label]
            axes.plot([row["factor"] for row in own], [row["perplexity"] for row in own], marker + "-", markersize=5, label=label)
        axes.axhline(record["float_perplexity"], color=records.GREY, linestyle=":", linewidth=1.2, label="float32, at any factor")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set(xlabel="factor by which the features are larger", ylabel="perplexity")
        axes.legend(fontsize=9)
        yield figure


def cells(record: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Perplexity by factor (a row) and method (a column), with the features that the criterion finds."""
    head = ["factor", "outlier features", "largest", *SETTINGS, "in 16 bits"]
    lines = []
    for factor in dict.fromkeys(row["factor"] for row in record["rows"]):
        own = {row["label"]: row for row in record["rows"] if row["factor"] == factor}
        first, last = own[next(iter(SETTINGS))], own[list(SETTINGS)[-1]]
        count = len(set(itertools.chain(*first["features"].values())))
        lines.append(
            [
                f"{factor:g}",
                str(count),
                f"{first['largest']:.0f}",
                *(perplexity.shown(own[label]["perplexity"]) for label in SETTINGS),
                f"{100 * last['outlier_share']:.2f} %",
            ]
        )
    return head, lines


def section(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    settings = record["settings"]
    parts = [
        "## The outlier dial",
        f"{records.text_of(settings)}; {records.provenance(record)}.",
        f"{len(settings['features'])} features of ordinary size are made larger where attention and MLP read them, and the weight columns "
        "that read them smaller by the same power of two. The float model's losses stay the same, bit for bit (the command checks it); its "
        f"perplexity is {record['float_perplexity']:.2f} at every factor. Outlier features: how many the criterion finds in any kind of "
        "input. In 16 bits: the share of LLM.int8()'s products.",
        "![Perplexity over the factor by which the features are larger, a line for each method](results/dial.png)",
        records.markdown(*cells(record)),
        "The dial also makes the weights that read a feature small beside the others of their row, so that few codes are left for them: "
        "made from the codes they are coarse, kept in float they are exact. Whether a real model's large features have small weights is "
        "another question.",
    ]
    return "\n\n".join(parts) + "\n"


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
    read = outliers.readers(model, windows[:1, :8])
    kinds = _turned(outliers.record_inputs(model, windows[:1]), read)
    if options.features > kinds[0].inputs.shape[2]:
        raise InputError(f"--features {options.features}: the model has {kinds[0].inputs.shape[2]}")
    columns = ordinary_features(kinds, options.features)
    rows = measure(model, read, columns, options.factors, windows)
    about = models.described(source, by_passage) | {"features": columns, "factors": options.factors, "threshold": 6.0}
    float_perplexity = perplexity.perplexity(losses(model, windows))
    record = records.plain(machine.heading("dial", about) | {"float_perplexity": float_perplexity, "rows": rows})
    written = records.write(out, record, pictures(record))
    print(f"{source.name}, features {', '.join(map(str, columns))}; float32 perplexity {float_perplexity:.2f} at every factor")
    print(records.table(*cells(record)))
    print("wrote", *written, file=sys.stderr)


if __name__ == "__main__":
    command.run_command(main)
