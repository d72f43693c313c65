"""How fast a layer is: ours, whole and by stages, against float products and other int8 layers, on a CPU or a GPU.

    python -m experiments.speed                                  on the GPU if there is one, else on the CPU
    python -m experiments.speed --device cpu --threads 2
    python -m experiments.speed --aims                           only the layers that the aims of docs/speed.md are about
    python -m experiments.speed --shapes 256x4096x4096 --outliers 0 0.01       M x K x N of your own

Each result is checked first, then timed; one that is wrong is recorded with the reason, and not timed. Each layer is on disk as soon as
it has been measured, and --resume goes on with the others. Before anything is timed, the device's bandwidth and rates are measured, and
the floor of each shape is written down: the time that its bytes and operations take at those.
"""

import argparse
import gc
import subprocess
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from tqdm import tqdm

import fast

from . import command, contenders, machine, records, shapes, timing, truth
from .ceiling import SIZES, ceilings
from .command import InputError, first_line
from .contender import Bind, Contender
from .journal import Journal, Skipped
from .pages import speed as charts
from .pages import tables
from .pages.speed import pictures, section
from .shapes import BASELINE, DETECTION, FRACTION, Job, Shape, grid
from .truth import Truth, WrongResult

__all__ = ["main", "pictures", "section"]


class Layers:
    """Weights, and what the contenders prepared from them, kept as long as the next job has weights of the same shape.

    Args:
        device: "cpu" or "cuda".
        preparing: makes a context to prepare in.
    """

    def __init__(self, device: str, preparing: Callable[[], AbstractContextManager[Any]] = nullcontext) -> None:
        self._device, self._preparing = device, preparing
        self._shape: tuple[int, int] | None = None
        self._kept: dict[Any, Any] = {}

    def weight(self, shape: Shape, seed: int) -> Tensor:
        """The weight (N, K) of this seed."""
        if self._shape != (shape.n, shape.k):
            self._shape, self._kept = (shape.n, shape.k), {}
        if seed not in self._kept:
            self._kept[seed] = truth.draw_weight(shape.n, shape.k, self._device, seed)
        return self._kept[seed]

    def prepared(self, shape: Shape, seed: int, name: str, contender: Contender) -> Bind:
        """The contender, prepared from the weight of this seed."""
        weight = self.weight(shape, seed)
        if (name, seed) not in self._kept:
            with self._preparing():
                self._kept[name, seed] = contender.prepare(weight)
        return self._kept[name, seed]


#: What a contender may raise where the device or the shape is unsuitable.
UNSUITED = (RuntimeError, ValueError, NotImplementedError, AssertionError)


def checked_calls(
    job: Job, found: dict[str, Contender], device: str, count: int, layers: Layers
) -> tuple[dict[str, list[timing.Call]], dict[str, str], dict[str, str]]:
    """The calls of each contender on `count` different inputs, the first of each checked.

    Returns:
        calls by name; of the other libraries' that are not among them, why they did not run; and of the others that are not, what is
        wrong: a result, or that one of ours did not run.

    Raises:
        torch.OutOfMemoryError: the shape is too large for the device.
    """
    inputs = [truth.draw_activations(job.shape, device, seed) for seed in range(count)]
    weight = layers.weight(job.shape, 0)
    truths = {False: Truth(inputs[0].x, weight), True: Truth(inputs[0].clean, weight)}
    calls: dict[str, list[timing.Call]] = {}
    failed: dict[str, str] = {}
    wrong: dict[str, str] = {}
    for name in (name for name in job.names if name in found):
        contender = found[name]
        try:
            own = [layers.prepared(job.shape, seed, name, contender)(i.clean if contender.clean else i.x) for seed, i in enumerate(inputs)]
            result = own[0]()
        except torch.OutOfMemoryError:
            raise
        except UNSUITED as error:
            if device == "cuda":
                torch.cuda.synchronize()  # raises where the device is lost: then this is not the contender's failure alone
            (failed if contender.foreign else wrong)[name] = first_line(error)
            continue
        try:
            contender.check(truths[contender.clean], result)
        except WrongResult as error:
            wrong[name] = first_line(error)
            continue
        calls[name] = own
    return calls, failed, wrong


def measure(
    job: Job, found: dict[str, Contender], device: str, clock: timing.Clock, rounds: int, limits: dict[str, Any], layers: Layers
) -> dict[str, Any]:
    """Checks and times one shape; returns its row of the record, times in seconds.

    Raises:
        WrongResult: the baseline is wrong, so that there is nothing to compare with.
        Skipped: the shape is too large for the device's memory.
    """
    s = job.shape
    count = timing.copies(clock.cache, 2 * (s.n * s.k + s.m * s.k + s.m * s.n))
    try:
        calls, failed, wrong = checked_calls(job, found, device, count, layers)
        samplers = {}
        for name, own in calls.items():
            try:
                samplers[name] = clock.sampler(own, graph=found[name].capturable)
            except UNSUITED as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                (failed if found[name].foreign else wrong)[name] = f"not timed: {first_line(error)}"
    except torch.OutOfMemoryError as error:
        raise Skipped("too large for the device's memory") from error
    if BASELINE not in samplers:
        raise WrongResult(f"{found[BASELINE].label}: {wrong.get(BASELINE, 'did not run')}")
    samples = timing.interleave(samplers, rounds)
    row: dict[str, Any] = {
        "part": job.part, "m": s.m, "k": s.k, "n": s.n, "fraction": s.fraction, "columns": s.columns, "copies": count,
        "contenders": {}, "did_not_run": failed,
    }  # fmt: skip
    if wrong:
        row["wrong"] = wrong
    for name, times in samples.items():
        seconds = timing.spread(times)
        work = found[name].work(s)
        row["contenders"][name] = {
            "label": found[name].label,
            "stage": found[name].stage,
            "seconds": seconds,
            "ratio": timing.ratio(samples[BASELINE], times),
            "int8_ratio": timing.ratio(times, samples["int8"]) if "int8" in samples else None,
            "over_floor": seconds["median"] / work.floor(**limits),
            "of_bandwidth": work.bytes / seconds["median"] / limits["bandwidth"],
            "of_rate": {unit: count / seconds["median"] / limits["rates"][unit] for unit, count in work.operations.items() if count},
        }
    if set(DETECTION) <= set(samples):
        row["shares"] = shares(samples)
    return row


def name_kernels(journal: Journal, jobs: Sequence[Job], found: dict[str, Contender], device: str, layers: Layers) -> None:
    """Adds to the rows of `jobs` which kernel each other library's product launches, as PyTorch's profiler reports it.

    After everything has been timed: once it has run, the profiler may slow down what the host launches.
    """
    rows = {shapes.key_of(row): row for row in journal.record["rows"]}
    for job in jobs:
        row = rows.get(job.key)
        if row is None or "kernels" in row:
            continue
        row["kernels"] = {}
        x = truth.draw_activations(job.shape, device, 0).x
        for name in ("int-mm", BASELINE):
            if name in row["contenders"]:
                row["kernels"][name] = timing.kernel_of(layers.prepared(job.shape, 0, name, found[name])(x), device)
        journal.write()


def shares(samples: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """What each step adds to a layer, as a share of the layer's time, from whole layers: what is fused counts where it is run.

    Detection is what a threshold costs where it finds nothing; the outlier product, what outlier columns cost beyond that.
    """
    quantize, none, clean, whole = (samples[name] for name in ("quantize", "int8-none", "int8-clean", "int8"))
    added = {
        "quantization": quantize,
        "int8 product": [n - q for n, q in zip(none, quantize, strict=True)],
        "detection": [c - n for c, n in zip(clean, none, strict=True)],
        "outlier product": [w - c for w, c in zip(whole, clean, strict=True)],
    }
    return {step: timing.spread([a / w for a, w in zip(own, whole, strict=True)]) for step, own in added.items()}


def describe(device: str, clock: timing.Clock) -> dict[str, Any]:
    """What a reader needs beside the device's name."""
    if device == "cpu":
        return {"instructions": torch.backends.cpu.get_cpu_capability(), "engine": fast.cpu_engine().name, "cache": clock.cache}
    if not torch.cuda.is_available():  # a rehearsal
        return dict.fromkeys(("driver", "cuda", "capability", "multiprocessors", "memory")) | {"cache": clock.cache}
    properties = torch.cuda.get_device_properties()
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        driver = None
    return {
        "driver": driver,
        "cuda": torch.version.cuda,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory": properties.total_memory,
        "cache": clock.cache,
    }


def floors(jobs: Sequence[Job], found: dict[str, Contender], limits: dict[str, Any]) -> str:
    """The table that is written before anything is timed: what our layer and the 16-bit one cannot be faster than."""
    rows = [
        [charts.name(s._asdict()), *(f"{found[name].work(s).floor(**limits) * 1e6:,.1f}" for name in (BASELINE, "int8"))]
        for s in dict.fromkeys(job.shape for job in jobs)
    ]
    return tables.table(["layer", "F.linear, us at least", "int8, us at least"], rows)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line; `argparse` itself refuses unknown choices, with exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m experiments.speed", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU (default 1)")
    parser.add_argument("--rounds", type=int, default=20, help="how often everything is timed in turn (default 20)")
    parser.add_argument("--parts", nargs="+", choices=shapes.PARTS, default=list(shapes.PARTS), help="default: all")
    parser.add_argument("--aims", action="store_true", help="only the layers that the aims are about, the smallest first")
    parser.add_argument("--shapes", nargs="+", type=_shape, metavar="MxKxN", help="layers of your own, instead of all parts")
    parser.add_argument(
        "--outliers", nargs="+", type=_share, metavar="SHARE", help="of the columns, for --shapes (default 0.005, on a GPU 0.001)"
    )
    parser.add_argument("--compile", action="store_true", help="time torchao compiled as well; half a minute for each layer")
    parser.add_argument("--resume", action="store_true", help="go on with the record that is there, and measure what it lacks")
    parser.add_argument("--rehearse", action="store_true", help="what a GPU would do, on tiny layers in Triton's interpreter")
    parser.add_argument("--no-pictures", action="store_true", help="write the record alone")
    parser.add_argument(
        "--out", metavar="FILE.json", help="the record, its pictures beside it (default experiments/results/speed-DEVICE.json)"
    )
    return parser.parse_args(arguments)


def _shape(text: str) -> tuple[int, int, int]:
    sizes = text.lower().split("x")
    if len(sizes) != 3 or not all(size.isascii() and size.isdigit() and int(size) > 0 for size in sizes):
        raise argparse.ArgumentTypeError(f"must be M x K x N, such as 256x4096x4096, got {text}")
    m, k, n = map(int, sizes)
    return m, k, n


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a share of the columns, 0 to 1, got {text}")
    return value


def jobs_of(options: argparse.Namespace, names: Sequence[str]) -> list[Job]:
    """What the command line asks for, in the order in which it is measured."""
    if options.shapes is None and options.outliers is not None:
        raise InputError("--outliers needs --shapes")
    if options.aims:
        return [Job("layers", shape, shapes.layer_names(names)) for shape in shapes.aimed_at(options.device)]
    if options.shapes is None:
        jobs = [job for job in grid(options.device, names) if job.part in options.parts]
    else:
        shares = options.outliers or [FRACTION[options.device]]
        jobs = [Job("layers", Shape(m, k, n, share), shapes.layer_names(names)) for m, k, n in options.shapes for share in shares]
    # Those with weights of one shape after another, since some contenders take seconds to prepare.
    return sorted(jobs, key=lambda job: (job.shape.k, job.shape.n))


def run(journal: Journal, jobs: Sequence[Job], found: dict[str, Contender], clock: timing.Clock, options: argparse.Namespace) -> None:
    """Measures the jobs that the record lacks."""
    device = "cpu" if options.rehearse else options.device
    limits = journal.settings["ceilings"] = journal.settings["ceilings"] or ceilings(
        device, clock, sizes=SIZES["rehearsal" if options.rehearse else device]
    )
    print(floors(jobs, found, limits))
    # Quantizing weights is not what is timed, and takes most of the time in the interpreter.
    layers = Layers(device, (lambda: fast.backend("cpu")) if options.rehearse else nullcontext)
    pending = set(journal.pending([job.key for job in jobs]))
    for job in tqdm([job for job in jobs if job.key in pending], unit="layer", disable=None):
        journal.measure(job.key, lambda job=job: measure(job, found, device, clock, options.rounds, limits, layers))  # type: ignore[misc]
        if job.key in journal.record["skipped"]:
            journal.settings["out_of_memory"].append(charts.name(job.shape._asdict()))
        gc.collect()  # large tensors in cycles with what failed or was compiled
    if options.device == "cuda":
        name_kernels(journal, jobs, found, device, layers)


def computing(options: argparse.Namespace) -> AbstractContextManager[Any]:
    """Within this context the layers run where the options say."""
    stack = ExitStack()
    stack.enter_context(torch.no_grad())
    if options.rehearse:
        stack.enter_context(fast.backend("triton"))
        # Triton's interpreter truncates to bfloat16 where a GPU rounds.
        stack.enter_context(mock.patch.object(truth, "DTYPE", torch.float16))
    elif options.device == "cpu":
        # Under TRITON_INTERPRET the CPU would otherwise be timed interpreting Triton.
        stack.enter_context(fast.backend("cpu"))
    return stack


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    options = parse(arguments)
    options.device = options.device or ("cuda" if torch.cuda.is_available() or options.rehearse else "cpu")
    if options.device == "cuda" and not options.rehearse and not torch.cuda.is_available():
        raise InputError("--device cuda: PyTorch finds no CUDA device here")
    if options.rounds < 2 or options.threads < 1:
        raise InputError(f"--rounds must be 2 or more and --threads 1 or more, got {options.rounds} and {options.threads}")
    out = records.output_path(options.out, f"speed-{options.device}")
    found = contenders.contenders(options.device, options.compile)
    jobs = jobs_of(options, list(found))
    if options.device == "cpu" or options.rehearse:
        torch.set_num_threads(options.threads)
    if options.rehearse:
        jobs = shapes.rehearsed(jobs)

    clock = timing.CpuClock(least=0, cache=1) if options.rehearse else timing.clock_for(options.device)
    settings = {
        "device": options.device,
        "hardware": describe(options.device, clock),
        "rounds": options.rounds,
        "ceilings": None,
        "out_of_memory": [],
        "absent": sorted(set(shapes.PEERS[options.device]) - {"torchao-compiled"} - set(found)),
    }
    journal = Journal(
        out,
        machine.heading("speed", settings),
        shapes.key_of,
        options.resume,
        order=[job.key for job in grid(options.device, list(found))],
        same=("device", "hardware", "rounds", "absent"),
        alive=machine.alive,
    )
    with computing(options):
        run(journal, jobs, found, clock, options)
    record = records.plain(journal.record)
    records.finish(out, record, () if options.no_pictures else pictures(record), [section(record)])
    raise SystemExit(journal.status)


if __name__ == "__main__":
    command.run_command(main)
