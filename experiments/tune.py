"""Times the rows of `fast/kernels/configurations.py` and their neighbours on a GPU, and says which rows would be faster.

    python -m experiments.tune                              this GPU, every row
    python -m experiments.tune --case decode                rows whose name contains "decode"
    python -m experiments.tune --dry-run --arch sm_90       no GPU: which candidates there are, and which fit

A neighbour differs in one entry: a block, the warps or the parts by a factor of 2, the stages or splits by 1, loads by threads or by the
copy engine. Every candidate is compiled first; what does not compile, spills registers or asks for more shared memory than
the architecture has is left out. What remains has to give the result of the present row, and is then timed. To go further, enter the
suggested row into the table and run again; `make test` checks it on every architecture that it serves.
"""

import argparse
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from torch import Tensor
from tqdm import tqdm
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from fast.kernels import configurations, decode, outliers, product, quantization
from fast.kernels.operands import Outliers, Quantized
from fast.weights import QuantizedWeight

from . import models, records, timing
from .models import InputError

#: Compute capability, and bytes of shared memory that one program may have (CUDA C++ Programming Guide, compute capabilities).
TARGETS = {"sm_80": (80, 163 << 10), "sm_89": (89, 99 << 10), "sm_90": (90, 227 << 10), "sm_100": (100, 227 << 10)}
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"

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


class Fit(NamedTuple):
    """What the compiler makes of a candidate; `why_not` is empty where it can be used."""

    registers: int
    spilled: int
    shared: int
    why_not: str


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
    for row, up_to_m, up_to_n in configurations.DECODES[arch]:
        m, n = up_to_m or configurations.DECODE_ROWS, up_to_n or LARGE_N
        found.append(Case(f"decode {m} x {n} x {n}", row, n * n, partial(launch_decode, m=m, n=n)))
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
    return lambda config: outliers.scan(x, 6.0, extremes=False, zeropoint=False, config=config).flags


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


def neighbours(row: Any) -> list[Any]:
    """Configurations that differ from `row` in one entry."""
    found = []
    for name, value in row._asdict().items():
        if name == "tma":
            values: list[Any] = [not value]
        elif name == "tile_m":  # the rows of an instruction, or one
            values = []
        elif name in ("stages", "splits"):
            values = [value - 1, value + 1]
        else:
            values = [value // 2, value * 2]
        found += [row._replace(**{name: v}) for v in values if sensible(name, v)]
    return found


def sensible(name: str, value: int) -> bool:
    """Whether a kernel can have this entry at all: matrix instructions have no smaller operands, a program has 32 warps at most."""
    least = {"block_m": 16, "block_n": 16, "block_k": 32, "block_o": 16, "warps": 1}.get(name, 1)
    most = {"warps": 16, "stages": 8, "splits": 8}.get(name)
    return value >= least and (most is None or value <= most)


class AbsentGpu:
    """A GPU to compile for that need not be here: what Triton asks of a driver before it compiles."""

    def __init__(self, capability: int) -> None:
        target = GPUTarget("cuda", capability, 32)
        self.get_current_target = lambda: target
        # Triton keeps compiled kernels by device; these must not meet those of a GPU that is here.
        self.get_current_device = lambda: str(target)
        self.get_current_stream = lambda device: 0


@contextmanager
def compiling(capability: int) -> Iterator[list[Any]]:
    """Within this context a launch compiles its kernel for a GPU of this capability, appends it to the list, and runs nothing."""
    compiled: list[Any] = []
    run = JITFunction.run

    def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        compiled.append(run(self, *args, grid=grid, warmup=True, **kwargs))

    # Not driver.set_active: what it would have to put back afterwards needs a GPU.
    with mock.patch.object(driver, "_active", AbsentGpu(capability)), mock.patch.object(JITFunction, "run", compile_only):
        yield compiled


def fit(case: Case, config: Any, arch: str) -> Fit:
    """Compiles a candidate for `arch`."""
    capability, most_shared = TARGETS[arch]
    with compiling(capability) as compiled:
        try:
            case.build("meta")(config)
        except (RuntimeError, triton.TritonError, ValueError, AssertionError) as error:
            # Triton quotes the kernel first and says what is wrong last.
            return Fit(0, 0, 0, "does not compile: " + (str(error).strip() or type(error).__name__).splitlines()[-1].strip())
    registers, spilled = usage(compiled[-1].asm["cubin"])
    shared = compiled[-1].metadata.shared
    reasons = [f"{shared} bytes of shared memory, {arch} has {most_shared}"] if shared > most_shared else []
    return Fit(registers, spilled, shared, "; ".join(reasons + ([f"spills {spilled} bytes"] if spilled else [])))


def usage(cubin: bytes) -> tuple[int, int]:
    """Registers a thread, and bytes of local memory a thread, which is where registers are spilled to."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([CUOBJDUMP, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text))
    return int(found["REG"]), int(found["STACK"]) + int(found["LOCAL"])


def same(found: Tensor, expected: Tensor) -> bool:
    """Whether a candidate computes what the present row does: equal codes and flags; floats but for the order of the outlier sum."""
    if not expected.is_floating_point():
        # The splits of a scan are free.
        return bool((found.any(0) == expected.any(0)).all()) if expected.dtype == torch.uint8 else torch.equal(found, expected)
    found, expected, eps = found.float(), expected.float(), torch.finfo(expected.dtype).eps
    return bool(((found - expected).abs() <= eps * expected.abs() + 2.0**-20 * expected.abs().max()).all())


def timed(case: Case, configs: Sequence[Any], clock: timing.Clock, rounds: int) -> dict[Any, list[float]]:
    """Seconds by round of each configuration, the present row among them; a wrong result ends the run."""
    launches = [case.build("cuda") for _ in range(timing.copies(clock.cache, case.bytes))]
    expected = launches[0](case.row)
    for config in configs:
        if not same(launches[0](config), expected):
            raise SystemExit(f"{case.name}: {config} does not compute what {case.row} does")
    samplers = {config: clock.sampler([partial(launch, config) for launch in launches], graph=True) for config in configs}
    return timing.interleave(samplers, rounds)


def facts(found: Fit) -> list[str]:
    """What the compiler says of a candidate, as cells of a table."""
    return [str(found.registers), str(found.shared), found.why_not]


def tune(case: Case, fits: dict[Any, Fit], clock: timing.Clock, rounds: int) -> str:
    """Times the candidates that fit; returns their table, the fastest first, and the row to use."""
    samples = timed(case, [config for config, found in fits.items() if not found.why_not], clock, rounds)
    seconds = {config: timing.spread(own) for config, own in samples.items()}
    order = sorted(seconds, key=lambda config: seconds[config]["median"])
    rows = []
    for config in order:
        ratio, own = timing.ratio(samples[case.row], samples[config]), seconds[config]
        times = [f"{ratio['median']:.3f}", *(f"{own[key] * 1e6:.2f}" for key in ("median", "low", "high"))]
        rows.append([difference_of(config, case.row), *times, *facts(fits[config])[:2]])
    best = order[0]
    # Faster by less than the rounds differ among themselves is not faster.
    better = seconds[best]["high"] < seconds[case.row]["low"]
    verdict = f"suggested: {best}" if better else f"keep: {case.row}"
    head = ["entry", "times as fast", "us, median", "low", "high", "registers", "shared"]
    return records.table(head, rows) + "\n" + verdict


def difference_of(config: Any, row: Any) -> str:
    """In which entry a candidate differs from the present row."""
    return ", ".join(f"{name} {value}" for name, value in config._asdict().items() if value != getattr(row, name)) or "present row"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line; `argparse` itself refuses unknown choices, with exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m experiments.tune", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--case", default="", help="only rows whose name contains this")
    parser.add_argument("--rounds", type=int, default=20, help="how often each candidate is timed in turn (default 20)")
    parser.add_argument("--dry-run", action="store_true", help="compile the candidates and say which fit; needs no GPU")
    parser.add_argument("--arch", choices=TARGETS, help="for --dry-run (default sm_90); otherwise this GPU's")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    options = parse(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise InputError("TRITON_INTERPRET=1 replaces the compiler: unset it")
    if not options.dry_run and not torch.cuda.is_available():
        raise InputError("timing needs a CUDA GPU, and PyTorch finds none here; --dry-run lists the candidates and which of them fit")
    if options.rounds < 2:
        raise InputError(f"--rounds must be 2 or more, got {options.rounds}")
    arch = options.arch or "sm_90" if options.dry_run else configurations.architecture(torch.device("cuda", torch.cuda.current_device()))
    if arch not in TARGETS:
        raise InputError(f"the candidates are compiled and timed on NVIDIA GPUs only, this is {arch}")
    chosen = [case for case in cases(arch) if options.case in case.name]
    if not chosen:
        raise InputError(f"--case {options.case}: no row of that name; there are {', '.join(case.name for case in cases(arch))}")

    for case in chosen:
        fits = {config: fit(case, config, arch) for config in tqdm([case.row, *neighbours(case.row)], desc=case.name, leave=False)}
        print(f"\n{case.name}, {arch}: {case.row}")
        if options.dry_run:
            rows = [[difference_of(config, case.row), *facts(found)] for config, found in fits.items()]
            print(records.table(["entry", "registers", "shared", "does not fit"], rows), flush=True)
        else:
            print(tune(case, fits, timing.clock_for("cuda"), options.rounds), flush=True)


if __name__ == "__main__":
    models.run_command(main)
