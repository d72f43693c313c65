"""Perplexity of a language model by quantization method, through both engines: the paper's Table 1, on a real model.

    python -m experiments.perplexity                       the demo: SmolLM2, Python's documentation, every method
    python -m experiments.perplexity --passages 6 --windows 6 --engine fast        with narrower intervals
    python -m experiments.perplexity --layers attention mlp all --methods llm-int8-absmax
    python -m experiments.perplexity --engine fast --layers all all-and-head --methods llm-int8-absmax
    python -m experiments.perplexity --thresholds 0.5 1 2 4 6 8 12 off --methods llm-int8-absmax
    python -m experiments.perplexity --batch 1 3 --methods absmax-tensor llm-int8-absmax

`fast` replaces the linear layers of the model itself; `reference` runs the same model in NumPy. Dettmers et al. (2022),
section 3.3, has the table for models of 125M to 13B parameters.
"""

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from . import command, machine, records
from .command import InputError
from .lm import models, numpy_llama
from .lm.engines import OutlierShare, fast_engine, reference_engine
from .lm.losses import CONFIDENCE, difference, perplexity
from .lm.methods import ENGINES, LAYERS, METHODS, Setting
from .pages import tables
from .pages.perplexity import cells, head_alone, pictures


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
    shown = [f"{source.name}, {sum(map(len, windows.values()))} windows of {options.tokens} tokens", tables.table(*cells(rows))]
    if len(engines) == 2:
        shown.append(f"the engines' perplexities differ by at most {100 * record['engines_differ_by']:.4f} %")
    shown += head_alone(rows)
    records.finish(out, record, pictures(record), shown)


if __name__ == "__main__":
    command.run_command(main)
