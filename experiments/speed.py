"""How fast a layer is: ours, whole and by stages, against float products and other int8 layers, on a CPU or a GPU.

    python -m experiments.speed                                  on the GPU if there is one, else on the CPU
    python -m experiments.speed --device cpu --threads 2
    python -m experiments.speed --shapes 256x4096x4096 --outliers 0 0.01       M x K x N of your own

Each result is checked first, then timed; a wrong one ends the run. Before anything is timed, the device's bandwidth and rates are
measured, and the floor of each shape is written down: the time that its bytes and operations take at those.
"""

import argparse
import gc
import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

import fast

from . import charts, contenders, models, records, timing
from .charts import pictures, section
from .contenders import BASELINE, Contender, Shape, WrongResult
from .models import InputError

__all__ = ["main", "pictures", "section"]

#: The share of outlier columns where nothing else is said.
FRACTION = {"cpu": 0.005, "cuda": 0.001}

#: (K, N) of layers: SmolLM2-135M; Llama 3.1 of 8, 70 and 405 billion parameters.
SMOLLM2 = ((576, 576), (576, 1536), (1536, 576))
LLAMA = ((4096, 4096), (4096, 14336), (14336, 4096), (8192, 8192), (8192, 28672), (28672, 8192), (16384, 53248), (53248, 16384))
#: Widths of the models in the paper, whose first feed-forward layer is four times as wide: Dettmers et al. (2022), appendix D.
PAPER_WIDTHS = (768, 1024, 1536, 2048, 2560, 4096, 5140, 12288)

CROSSOVER = (BASELINE, "bitsandbytes", "int8", "int8-none")
DETECTION = (BASELINE, "int8", "int8-clean", "int8-none", "detect", "quantize")


class Job(NamedTuple):
    """One row of the record: a shape, what is timed there, and the part of the page that asks for it."""

    part: str
    shape: Shape
    names: Sequence[str]


def grid(device: str, names: Sequence[str]) -> list[Job]:
    """What is measured unless shapes are given; on a CPU a small grid, of minutes."""
    usual = FRACTION[device]
    layers = [name for name in names if name != "int8-clean"]
    if device == "cpu":
        shapes = [Shape(m, 4096, 4096, usual) for m in (1, 16, 256)]
        shapes += [Shape(m, k, n, usual) for k, n in SMOLLM2 for m in (1, 512)]
        rows, widths, sweep_rows, wide = (1, 4, 16, 64, 256, 512), (256, 512, 1024, 2048, 4096), (1, 256), 4096
        detection = [(m, k) for m in (1, 16, 256, 1024) for k in (1024, 4096)]
    else:
        shapes = [Shape(m, d, 4 * d, usual) for d in PAPER_WIDTHS for m in (1, 16, 256, 4096)]
        shapes += [Shape(m, k, n, usual) for k, n in (*SMOLLM2, *LLAMA) for m in (1, 16, 256, 4096)]
        shapes += [Shape(m, 8192, 8192, f) for m in (1, 4096) for f in (0.0, 0.01, 0.05)] + [Shape(16384, 8192, 8192, usual)]
        rows, widths, sweep_rows, wide = tuple(2**i for i in range(15)), (256, 512, 1024, 2048, 4096, 8192, 16384), (1, 256, 4096), 8192
        detection = [(m, k) for m in (1, 16, 256, 4096) for k in (1024, 4096, 8192, 16384)]
    jobs = [Job("layers", shape, layers) for shape in dict.fromkeys(shapes)]
    sweep = [Shape(m, wide, wide, usual) for m in rows] + [Shape(m, k, k, usual) for m in sweep_rows for k in widths]
    jobs += [Job("crossover", shape, CROSSOVER) for shape in dict.fromkeys(sweep)]
    return jobs + [Job("detection", Shape(m, k, k, usual), DETECTION) for m, k in detection]


def ceilings(device: str, clock: timing.Clock, rounds: int = 7) -> dict[str, Any]:
    """What the device can do: bytes a second of a large copy, read plus written; operations a second of large products, by unit."""
    size = max(256 << 20, 8 * clock.cache)
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    moved = _best(clock, lambda: target.copy_(source), rounds)
    side = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device) for _ in range(2))
    calls = {"int8": (side, contenders.int_mm(b)(a))}
    # Where a CPU has no float16 arithmetic, a product of full size takes a second.
    rows = side if device == "cuda" else 512
    for unit in ("bfloat16", "float16", "float32"):
        calls[unit] = rows, contenders.linear(getattr(torch, unit))(b)(a[:rows])
    rates = {unit: 2 * m * side**2 / _best(clock, call, rounds) for unit, (m, call) in calls.items()}
    return {"bandwidth": 2 * size / moved, "rates": rates}


def _best(clock: timing.Clock, call: timing.Call, rounds: int) -> float:
    """The shortest of some samples: a ceiling is what the device can do when nothing disturbs it."""
    sampler = clock.sampler([call])
    return min(sampler() for _ in range(rounds))


class Layers:
    """Weights, and what the contenders prepared from them, kept as long as the next job has weights of the same shape."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._shape: tuple[int, int] | None = None
        self._kept: dict[Any, Any] = {}

    def weight(self, shape: Shape, seed: int) -> Tensor:
        """The weight (N, K) of this seed."""
        if self._shape != (shape.n, shape.k):
            self._shape, self._kept = (shape.n, shape.k), {}
        if seed not in self._kept:
            self._kept[seed] = contenders.draw_weight(shape.n, shape.k, self._device, seed)
        return self._kept[seed]

    def prepared(self, shape: Shape, seed: int, name: str, contender: Contender) -> contenders.Bind:
        """The contender, prepared from the weight of this seed."""
        weight = self.weight(shape, seed)
        if (name, seed) not in self._kept:
            self._kept[name, seed] = contender.prepare(weight)
        return self._kept[name, seed]


def checked_calls(
    job: Job, found: dict[str, Contender], device: str, count: int, layers: Layers
) -> tuple[dict[str, list[timing.Call]], dict[str, str]]:
    """The calls of each contender on `count` different inputs, the first of each checked.

    Returns:
        calls by name, and why those that are not among them did not run.

    Raises:
        WrongResult: a result is wrong.
    """
    inputs = [contenders.draw_activations(job.shape, device, seed) for seed in range(count)]
    weight = layers.weight(job.shape, 0)
    truths = {False: contenders.Truth(inputs[0].x, weight), True: contenders.Truth(inputs[0].clean, weight)}
    calls, failed = {}, {}
    for name in (name for name in job.names if name in found):
        contender = found[name]
        try:
            own = [layers.prepared(job.shape, seed, name, contender)(i.clean if contender.clean else i.x) for seed, i in enumerate(inputs)]
            result = own[0]()
        except (RuntimeError, ValueError, NotImplementedError, AssertionError) as error:
            if not contender.foreign:
                raise
            failed[name] = (str(error) or type(error).__name__).splitlines()[0]
            continue
        try:
            contender.check(truths[contender.clean], result)
        except WrongResult as error:
            raise WrongResult(f"{contender.label}, M = {job.shape.m}, K = {job.shape.k}, N = {job.shape.n}: {error}") from error
        calls[name] = own
    return calls, failed


def measure(
    job: Job, found: dict[str, Contender], device: str, clock: timing.Clock, rounds: int, limits: dict[str, Any], layers: Layers
) -> dict[str, Any]:
    """Checks and times one shape; returns its row of the record, times in seconds."""
    s = job.shape
    count = timing.copies(clock.cache, 2 * (s.n * s.k + s.m * s.k + s.m * s.n))
    calls, failed = checked_calls(job, found, device, count, layers)
    samplers = {name: clock.sampler(own, graph=found[name].capturable) for name, own in calls.items()}
    samples = timing.interleave(samplers, rounds)
    row: dict[str, Any] = {
        "part": job.part, "m": s.m, "k": s.k, "n": s.n, "fraction": s.fraction, "columns": s.columns, "copies": count,
        "contenders": {}, "did_not_run": failed,
    }  # fmt: skip
    for name, own in samples.items():
        seconds = timing.spread(own)
        work = found[name].work(s)
        row["contenders"][name] = {
            "label": found[name].label,
            "stage": found[name].stage,
            "seconds": seconds,
            "ratio": timing.ratio(samples[BASELINE], own),
            "int8_ratio": timing.ratio(own, samples["int8"]),
            "over_floor": seconds["median"] / work.floor(**limits),
            "of_bandwidth": work.bytes / seconds["median"] / limits["bandwidth"],
            "of_rate": {unit: count / seconds["median"] / limits["rates"][unit] for unit, count in work.operations.items() if count},
        }
    if set(DETECTION) <= set(samples):
        row["shares"] = shares(samples)
    return row


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
    """What a reader needs to know of the device beside its name."""
    if device == "cpu":
        return {"instructions": torch.backends.cpu.get_cpu_capability(), "cache": clock.cache}
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
    shapes = dict.fromkeys(job.shape for job in jobs)
    rows = [
        [charts.name(s._asdict()), *(f"{found[name].work(s).floor(**limits) * 1e6:,.1f}" for name in (BASELINE, "int8"))] for s in shapes
    ]
    return records.table(["layer", "F.linear, us at least", "int8, us at least"], rows)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line; `argparse` itself refuses unknown choices, with exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m experiments.speed", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU (default 1)")
    parser.add_argument("--rounds", type=int, default=20, help="how often everything is timed in turn (default 20)")
    parser.add_argument("--parts", nargs="+", choices=charts.PARTS, default=list(charts.PARTS), help="default: all")
    parser.add_argument("--shapes", nargs="+", type=_shape, metavar="MxKxN", help="layers of your own, in place of all parts")
    parser.add_argument(
        "--outliers", nargs="+", type=_share, metavar="SHARE", help="of the columns, for --shapes (default 0.005, on a GPU 0.001)"
    )
    parser.add_argument("--compile", action="store_true", help="time torchao compiled as well; half a minute for each layer")
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
    """What the command line asks for."""
    if options.shapes is None:
        if options.outliers is not None:
            raise InputError("--outliers needs --shapes")
        return [job for job in grid(options.device, names) if job.part in options.parts]
    layers = [name for name in names if name != "int8-clean"]
    shares = options.outliers or [FRACTION[options.device]]
    return [Job("layers", Shape(m, k, n, share), layers) for m, k, n in options.shapes for share in shares]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    options = parse(arguments)
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: PyTorch finds no CUDA device here")
    if options.rounds < 2 or options.threads < 1:
        raise InputError(f"--rounds must be 2 or more and --threads 1 or more, got {options.rounds} and {options.threads}")
    out = records.output_path(options.out, f"speed-{options.device}")
    found = contenders.contenders(options.device, options.compile)
    jobs = jobs_of(options, list(found))
    if options.device == "cpu":
        torch.set_num_threads(options.threads)

    # Under TRITON_INTERPRET the CPU would otherwise be timed interpreting Triton.
    with torch.no_grad(), fast.backend("cpu") if options.device == "cpu" else nullcontext():
        clock = timing.clock_for(options.device)
        limits = ceilings(options.device, clock)
        print(floors(jobs, found, limits))
        layers, rows, skipped = Layers(options.device), {}, []
        # Those with weights of one shape after another, since some contenders take seconds to prepare.
        for job in tqdm(sorted(jobs, key=lambda job: (job.shape.k, job.shape.n)), unit="layer"):
            try:
                rows[job.part, job.shape] = measure(job, found, options.device, clock, options.rounds, limits, layers)
            except WrongResult as error:
                raise SystemExit(f"wrong result, nothing was written: {error}") from error
            except torch.OutOfMemoryError:
                skipped.append(charts.name(job.shape._asdict()))
            gc.collect()  # large tensors in cycles with what failed or was compiled

    settings = {
        "device": options.device,
        "hardware": describe(options.device, clock),
        "rounds": options.rounds,
        "ceilings": limits,
        "out_of_memory": skipped,
        "absent": sorted({"bitsandbytes", "torchao"} - set(found)),
    }
    record = records.heading("speed", settings) | {"rows": [rows[job[:2]] for job in jobs if job[:2] in rows]}
    written = records.write(out, record, pictures(record))
    print(section(json.loads(out.read_text())))
    print("wrote", *written, file=sys.stderr)


if __name__ == "__main__":
    models.run_command(main)
