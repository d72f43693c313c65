"""Times the rows of `fast/kernels/configurations.py` and other candidates on a GPU, and says which rows would be faster.

    python -m experiments.tune                              this GPU, every row
    python -m experiments.tune --case decode                rows whose name contains "decode"
    python -m experiments.tune --aims                       the rows that the layers of the aims of docs/speed.md use
    python -m experiments.tune --dry-run --arch sm_90       no GPU: which candidates there are, and which fit

The candidates are those of `candidates.py`. Every one is compiled first; what does not compile, spills registers or needs more shared
memory than the architecture has is left out. A candidate that does not compute what the present row does is recorded as wrong, and the
others are timed. Each row of the tables is on disk as soon as it has been tuned, and --resume goes on with the others. To
go further, enter the suggested row into the table and run again; `make test` checks it on every architecture that it serves.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from tqdm import tqdm

import fast
from fast.kernels import configurations, decode, outliers, product, quantization
from fast.kernels.operands import Outliers, Quantized
from fast.weights import QuantizedWeight

from . import command, machine, records, shapes, timing
from .candidates import TARGETS, Fit, candidates, difference_of, fit
from .command import InputError, first_line
from .journal import Journal
from .pages import tables

#: M, N and K where a row of the table names no limit.
LARGE_M, LARGE_N = 4096, 8192


class Case(NamedTuple):
    """One row of a table, and what it is timed on.

    Attributes:
        name: for people.
        row: the present configuration.
        bytes: that the kernel reads at least, by which inputs are rotated past the cache.
        build: from a device to a call that launches the kernel with a configuration and returns what it computed; "meta" serves
            to compile.
    """

    name: str
    row: Any
    bytes: int
    build: Callable[[str], Callable[[Any], Tensor]]


def cases(arch: str) -> list[Case]:
    """Every row of the tables of `arch`, at the largest M and N that it serves."""
    found = []
    for row, up_to_m, up_to_n in configurations.PRODUCTS[arch]:
        m, n = up_to_m or LARGE_M, up_to_n or LARGE_N
        gathered = configurations.gather_configuration(arch, m, n)
        build = partial(launch_product, m=m, n=n, dtype=torch.bfloat16, gathered=gathered.columns if gathered else 0)
        found.append(Case(f"product {m} x {n} x {n}", row, n * (m + n), build))
    m, n, row = LARGE_M, LARGE_N, configurations.GENERAL[arch]
    found.append(Case(f"product {m} x {n} x {n}, float32", row, n * (m + n), partial(launch_product, m=m, n=n, dtype=torch.float32)))
    for decode_row, up_to_m, up_to_n in configurations.DECODES[arch]:
        m, n = up_to_m or configurations.DECODE_ROWS, up_to_n or LARGE_N
        found.append(Case(f"decode {m} x {n} x {n}", decode_row, n * n, partial(launch_decode, m=m, n=n)))
    for m, k in ((256, 4096), (LARGE_M, LARGE_N)):
        scan, rows = configurations.scan_configuration(arch, m, k), configurations.rows_configuration(arch, m, k)
        found.append(Case(f"scan {m} x {k}", scan, 2 * m * k, partial(launch_scan, m=m, k=k)))
        found.append(Case(f"rows {m} x {k}", rows, 2 * m * k, partial(launch_rows, m=m, k=k)))
    return found


def launch_product(device: str, m: int, n: int, dtype: torch.dtype, gathered: int = 0) -> Callable[[Any], Tensor]:
    """The product with outlier columns, K = N; `gathered`: for how many of them there is place side by side."""
    x, weight = activations(device, m, n, dtype), quantized_weight(device, n)
    listed = Outliers(filled(device, (n + 1,), torch.int32))
    if gathered:
        listed = listed._replace(x=filled(device, (m, gathered), dtype), w=filled(device, (n, gathered), torch.int8), capacity=gathered)
    if device != "meta":
        columns = torch.arange(0, n, OUTLIER_EVERY, dtype=torch.int32, device=device)
        listed.columns[: len(columns)], listed.columns[-1] = columns, len(columns)
    quantized = Quantized(filled(device, (m, n), torch.int8), filled(device, (m, 1), torch.float32), outliers=listed)
    return lambda config: product.quantized_product(x, quantized, weight, config=config)


def launch_decode(device: str, m: int, n: int) -> Callable[[Any], Tensor]:
    """A whole layer for few rows, K = N."""
    x, weight = activations(device, m, n, torch.bfloat16), quantized_weight(device, n)
    return lambda config: decode.decode_linear(x, weight, None, 6.0, True, config)


def launch_scan(device: str, m: int, k: int) -> Callable[[Any], Tensor]:
    """Outlier columns; the flags of all splits are one result, whatever their number."""
    x = activations(device, m, k, torch.bfloat16)

    def launch(config: Any) -> Tensor:
        flags = outliers.scan(x, 6.0, extremes=False, zeropoint=False, config=config).flags
        assert flags is not None  # with a threshold there are some
        return flags

    return launch


def launch_rows(device: str, m: int, k: int) -> Callable[[Any], Tensor]:
    """Codes of rows, without a threshold."""
    x = activations(device, m, k, torch.bfloat16)
    return lambda config: quantization.quantize_regular(x, None, config=config).codes


#: One column in so many is an outlier column: 0.1 %.
OUTLIER_EVERY = 1024


def activations(device: str, m: int, k: int, dtype: torch.dtype) -> Tensor:
    """Random X (m, k) with outlier columns."""
    x = filled(device, (m, k), dtype)
    x[:, ::OUTLIER_EVERY] = 20.0
    return x


def quantized_weight(device: str, n: int) -> QuantizedWeight:
    """A random weight (n, n)."""
    return QuantizedWeight(filled(device, (n, n), torch.int8), kept_scale=filled(device, (n, 1), torch.float32))


def filled(device: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Random codes, random numbers between -5 and 5, or zeros in int32; without memory on "meta"."""
    if dtype == torch.int8:
        return torch.randint(-127, 128, shape, dtype=dtype, device=device)
    empty = torch.empty(shape, dtype=dtype, device=device)
    return empty.zero_() if dtype == torch.int32 else empty.uniform_(-5, 5)


def same(found: Tensor, expected: Tensor) -> bool:
    """Whether a candidate computes what the present row does: equal codes and flags; floats but for the order of the outlier sum."""
    if not expected.is_floating_point():
        # The splits of a scan are free.
        return bool((found.any(0) == expected.any(0)).all()) if expected.dtype == torch.uint8 else torch.equal(found, expected)
    found, expected, eps = found.float(), expected.float(), torch.finfo(expected.dtype).eps
    return bool(((found - expected).abs() <= eps * expected.abs() + 2.0**-20 * expected.abs().max()).all())


def timed(
    case: Case, configs: Sequence[Any], clock: timing.Clock, rounds: int, device: str = "cuda"
) -> tuple[dict[Any, list[float]], dict[Any, str]]:
    """Seconds by round of each configuration, the present row among them; and what is wrong with those that cannot be timed."""
    launches = [case.build(device) for _ in range(timing.copies(clock.cache, case.bytes))]
    expected = launches[0](case.row)
    samplers, wrong = {}, {}
    for config in configs:
        try:
            if same(launches[0](config), expected):
                samplers[config] = clock.sampler([partial(launch, config) for launch in launches], graph=True)
            elif config == case.row:
                raise RuntimeError(f"two launches of the present row, {case.row}, differ")
            else:
                wrong[config] = f"does not compute what {case.row} does"
        except (RuntimeError, triton.TritonError, ValueError, AssertionError) as error:
            if config == case.row:
                raise
            if device == "cuda":
                torch.cuda.synchronize()  # raises where the device is lost: then no candidate can follow
            wrong[config] = f"does not run: {first_line(error)}"
    return timing.interleave(samplers, rounds), wrong


def facts(found: Fit) -> list[str]:
    """What the compiler says of a candidate, as cells of a table."""
    return [str(found.registers), str(found.shared), found.why_not]


def tune(case: Case, fits: dict[Any, Fit], clock: timing.Clock, rounds: int, device: str = "cuda") -> dict[str, Any]:
    """Times the candidates that fit; returns the record's row: what was found of each, the fastest first, and the row to use."""
    samples, wrong = timed(case, [config for config, found in fits.items() if not found.why_not], clock, rounds, device)
    seconds = {config: timing.spread(own) for config, own in samples.items()}
    order = sorted(seconds, key=lambda config: seconds[config]["median"])
    found = [
        {
            "entry": difference_of(config, case.row),
            "ratio": timing.ratio(samples[case.row], samples[config]),
            "seconds": seconds[config],
            "registers": fits[config].registers,
            "shared": fits[config].shared,
        }
        for config in order
    ]
    best = order[0]
    # Faster by less than the rounds differ among themselves is not faster.
    better = seconds[best]["high"] < seconds[case.row]["low"]
    return {
        "case": case.name,
        "row": str(case.row),
        "candidates": found,
        "left_out": {difference_of(config, case.row): found.why_not for config, found in fits.items() if found.why_not},
        "wrong": {difference_of(config, case.row): reason for config, reason in wrong.items()},
        "suggested": str(best) if better else None,
    }


def table(row: dict[str, Any]) -> str:
    """A row of the record as text: the candidates, what is wrong with others, and the verdict."""
    cells = []
    for one in row["candidates"]:
        times = [f"{one['seconds'][key] * 1e6:.2f}" for key in ("median", "low", "high")]
        cells.append([one["entry"], f"{one['ratio']['median']:.3f}", *times, str(one["registers"]), str(one["shared"])])
    head = ["entry", "times as fast", "us, median", "low", "high", "registers", "shared"]
    lines = [tables.table(head, cells), *(f"wrong: {entry}: {reason}" for entry, reason in row["wrong"].items())]
    return "\n".join([*lines, f"suggested: {row['suggested']}" if row["suggested"] else f"keep: {row['row']}"])


def aimed_at(arch: str) -> list[Case]:
    """The cases of `arch` whose rows the layers of the aims use, in the order of those layers."""
    rows: list[Any] = []
    for m, k, n, _ in shapes.aimed_at("cuda"):
        if m <= configurations.DECODE_ROWS:
            rows.append(configurations.decode_configuration(arch, m, n, general=False))
        else:
            rows.append(configurations.product_configuration(arch, m, n, general=False))
            rows += [configurations.scan_configuration(arch, m, k), configurations.rows_configuration(arch, m, k)]
    # The general row is one that they do not use, even where its entries are the same; of equal rows the largest case counts.
    found = {(case.name.split()[0], case.row): case for case in cases(arch) if case.row in rows and "float32" not in case.name}
    return sorted(found.values(), key=lambda case: rows.index(case.row))


def rehearsed(chosen: Sequence[Case]) -> list[Case]:
    """The same kernels on tiny inputs: one case of each."""
    small = {
        "product": partial(launch_product, m=20, n=32, dtype=torch.bfloat16),
        "decode": partial(launch_decode, m=1, n=32),
        "scan": partial(launch_scan, m=20, k=32),
        "rows": partial(launch_rows, m=20, k=32),
    }
    first = {case.name.split()[0]: case for case in reversed(chosen)}
    return [case._replace(build=small[kind], bytes=1) for kind, case in first.items()]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line; `argparse` itself refuses unknown choices, with exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m experiments.tune", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--case", default="", help="only rows whose name contains this")
    parser.add_argument("--aims", action="store_true", help="only rows that the layers of the aims use")
    parser.add_argument("--rounds", type=int, default=20, help="how often each candidate is timed in turn (default 20)")
    parser.add_argument("--dry-run", action="store_true", help="compile the candidates and say which fit; needs no GPU")
    parser.add_argument("--arch", choices=TARGETS, help="for --dry-run (default sm_90); otherwise this GPU's")
    parser.add_argument("--resume", action="store_true", help="go on with the record that is there, and tune what it lacks")
    parser.add_argument("--rehearse", action="store_true", help="what a GPU would do, on tiny inputs in Triton's interpreter")
    parser.add_argument("--out", metavar="FILE.json", help="the record (default experiments/results/tune-ARCH.json)")
    return parser.parse_args(arguments)


def architecture(options: argparse.Namespace) -> str:
    """The architecture to tune for.

    Raises:
        InputError: the options cannot be used here.
    """
    if options.rounds < 2:
        raise InputError(f"--rounds must be 2 or more, got {options.rounds}")
    if options.rehearse:
        return "interpreter"
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise InputError("TRITON_INTERPRET=1 replaces the compiler: unset it")
    if options.dry_run:
        return options.arch or "sm_90"
    if not torch.cuda.is_available():
        raise InputError("timing needs a CUDA GPU, and PyTorch finds none here; --dry-run lists the candidates and which of them fit")
    arch = configurations.architecture(torch.device("cuda", torch.cuda.current_device()))
    if arch not in TARGETS:
        raise InputError(f"the candidates are compiled and timed on NVIDIA GPUs only, this is {arch}")
    return arch


def fits_of(case: Case, arch: str) -> dict[Any, Fit]:
    """What the compiler makes of the row of a case and of the other candidates; the interpreter takes two of them as they are."""
    if arch == "interpreter":
        return dict.fromkeys(candidates(case.row)[:3], Fit(0, 0, 0, ""))
    return {config: fit(case.build, config, arch) for config in tqdm(candidates(case.row), desc=case.name, leave=False)}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    options = parse(arguments)
    arch = architecture(options)
    everything = aimed_at(arch) if options.aims else cases(arch)
    chosen = [case for case in everything if options.case in case.name]
    if not chosen:
        raise InputError(f"--case {options.case}: no row of that name; there are {', '.join(case.name for case in everything)}")
    if options.dry_run:
        for case in chosen:
            rows = [[difference_of(config, case.row), *facts(found)] for config, found in fits_of(case, arch).items()]
            print(f"\n{case.name}, {arch}: {case.row}")
            print(tables.table(["entry", "registers", "shared", "does not fit"], rows), flush=True)
        return

    out = records.output_path(options.out, f"tune-{arch}")
    heading = machine.heading("tune", {"arch": arch, "rounds": options.rounds})
    journal = Journal(out, heading, lambda row: row["case"], options.resume, same=("arch", "rounds"), alive=machine.alive, patience=900)
    clock, device = timing.clock_for("cuda") if not options.rehearse else timing.CpuClock(least=0, cache=1), "cuda"
    if options.rehearse:
        chosen, device = rehearsed(chosen), "cpu"
    journal.pending([case.name for case in chosen])
    with fast.backend("triton"):
        for case in chosen:
            journal.measure(case.name, lambda case=case: tune(case, fits_of(case, arch), clock, options.rounds, device))  # type: ignore[misc]
    for row in journal.record["rows"]:
        print(f"\n{row['case']}, {arch}: {row['row']}\n{table(row)}")
    print("wrote", out, file=sys.stderr)
    raise SystemExit(journal.status)


if __name__ == "__main__":
    command.run_command(main)
