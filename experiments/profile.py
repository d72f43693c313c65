"""What a profiler's counters would say of the kernels, without a GPU: counted while the emulator runs their PTX.

    python -m experiments.profile                                 every kernel on sm_80 and sm_90
    python -m experiments.profile --arch sm_90 --kernel decode    some of them; --out names another record
    python -m experiments.profile --details                       and each line whose accesses are not the best possible
    python -m experiments.profile --gpu L4 --gpu B200             against the ceilings of these GPUs, on their architectures

Counts are of one program in its steady state. Cycles are what each resource of a multiprocessor needs for one program, were it alone the
bound: floors, no times.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple
from unittest import mock

import torch

import emulator
from emulator import CEILINGS, Ceiling, Profile
from emulator.profiler import LATENCY

from . import command, machine, records
from .command import InputError
from .pages import profile as page
from .pages import tables as text

HALF = torch.float16
#: name -> (M, N, K).
SHAPES = {
    "large": (4096, 8192, 8192),
    "medium": (512, 4096, 4096),
    "decode": (16, 8192, 8192),
    "decode, 8 rows": (8, 4096, 4096),
    "decode, 4 rows": (4, 2048, 2048),
    "decode, one row": (1, 8192, 8192),
}
#: (N, K, experts per token) of Qwen3-30B-A3B's experts, gate and up.
CHOSEN = (1536, 2048, 8)
THRESHOLD = 6.0
#: One column in so many is an outlier column: 0.1 %, as in the paper's larger models.
OUTLIER_EVERY = 1024


class Run(NamedTuple):
    """One launch, of which a program in its steady state was counted.

    hbm_bytes: what such a program moves from and to device memory. programs: how many of the grid's do as much.
    """

    profile: Profile
    hbm_bytes: float
    programs: int


def inputs(m: int, k: int) -> torch.Tensor:
    """X (m, k) with outlier columns; its rows repeat after 64."""
    x = torch.randn(min(m, 64), k, generator=torch.Generator().manual_seed(1)).clamp(-5, 5).to(HALF).repeat(-(-m // 64), 1)[:m].contiguous()
    x[:, torch.linspace(5, k - 7, k // OUTLIER_EVERY).long()] = 20.0
    return x


def codes(rows: int, k: int, seed: int) -> torch.Tensor:
    """Any int8 codes."""
    return torch.randint(-127, 128, (rows, k), dtype=torch.int8, generator=torch.Generator().manual_seed(seed))


def weight(n: int, k: int) -> Any:
    """An absmax weight of any codes."""
    from fast.weights import QuantizedWeight

    return QuantizedWeight(codes(n, k, 2), torch.rand(n, 1) + 0.5)


def scanned(arch: str, shape: str) -> Run:
    """`scan_columns`."""
    from fast.kernels import outliers

    m, _, k = SHAPES[shape]
    with emulator.profiling(arch, programs=[0]) as profiler:
        outliers.scan(inputs(m, k), THRESHOLD, False, False)
    (found,) = profiler.profiles
    return Run(found, 2 * m * k / found.grid, found.grid)


def quantized(arch: str, shape: str) -> Run:
    """`quantize_rows`, a program that quantizes: after those that list and gather."""
    from fast.kernels import configurations, quantization

    m, n, k = SHAPES[shape]
    x, w = inputs(m, k), codes(n, k, 2)
    splits = configurations.scan_configuration(arch, m, k).splits
    flags = (x.abs() >= THRESHOLD).any(0).to(torch.uint8).repeat(splits, 1).contiguous()
    gathering = configurations.gather_configuration(arch, m, k)
    before = 1 + (0 if gathering is None else -(-m // gathering.rows) + -(-n // gathering.rows))
    result = quantization.Scanned(flags)
    with emulator.profiling(arch, programs=[before]) as profiler, mock.patch.object(quantization, "scan", return_value=result):
        quantization.quantize_regular(x, THRESHOLD, outlier_weight=w)
    (found,) = profiler.profiles
    return Run(found, 3 * m * k / (found.grid - before), found.grid - before)


def multiplied(arch: str, shape: str, in_gluon: bool = False) -> Run:
    """`product_kernel`, or the kernel in Gluon, with outlier columns, gathered where the tables say so."""
    from fast.kernels import configurations, gluon, product
    from fast.kernels.operands import Outliers, Quantized

    m, n, k = SHAPES[shape]
    x, w = inputs(m, k), weight(n, k)
    which = torch.nonzero((x.abs() >= THRESHOLD).any(0))[:, 0].to(torch.int32)
    numbers = torch.zeros(k + 1, dtype=torch.int32)
    numbers[: len(which)], numbers[-1] = which, len(which)
    found = Outliers(numbers)
    if gathering := configurations.gather_configuration(arch, m, k):
        sides = torch.zeros(m, gathering.columns, dtype=HALF), torch.zeros(n, gathering.columns, dtype=torch.int8)
        sides[0][:, : len(which)], sides[1][:, : len(which)] = x[:, which.long()], w.codes[:, which.long()]
        found = Outliers(numbers, *sides, gathering.columns)
    with emulator.profiling(arch, programs=[0]) as profiler, gluon() if in_gluon else nullcontext():
        product.quantized_product(x, Quantized(codes(m, k, 3), torch.rand(m, 1), None, None, found), w, torch.zeros(n, dtype=HALF))
    (profile,) = profiler.profiles
    return Run(profile, (m * k + n * k + 2 * m * n) / profile.grid, profile.grid)


def decoded(arch: str, shape: str) -> Run:
    """`decode_kernel`: X comes from device memory once, W as well."""
    from fast.kernels import decode

    m, n, k = SHAPES[shape]
    with emulator.profiling(arch, programs=[0]) as profiler:
        decode.decode_linear(inputs(m, k), weight(n, k), torch.zeros(n, dtype=HALF), THRESHOLD, True)
    (found,) = profiler.profiles
    return Run(found, (n * k + 2 * m * k + 2 * m * n) / found.grid, found.grid)


def decoded_experts(arch: str, tokens: int) -> Run:
    """`decode_experts`, at the sizes of Qwen3-30B-A3B's first projection: of W only what the chosen experts have, and once."""
    from fast.kernels import expert_decoding

    n, k, choices = CHOSEN
    count = min(choices * tokens, 2 * choices)
    which = (torch.arange(tokens)[:, None] + torch.arange(choices)).remainder(count)
    w = codes(count * n, k, 2).view(count, n, k)
    with emulator.profiling(arch, programs=[0]) as profiler:
        expert_decoding.experts_decode(inputs(tokens, k), w, torch.rand(count, n, 1) + 0.5, None, which, False, THRESHOLD)
    (found,) = profiler.profiles
    read = len(which.unique())  # the first pair of an expert has its programs; the others of the grid end at once
    programs = found.grid // (tokens * choices) * read
    return Run(found, (read * n * (k + 4) + 2 * tokens * k + 2 * tokens * choices * n) / programs, programs)


RUNS: dict[str, Callable[[str], Run]] = {
    "scan, large": lambda arch: scanned(arch, "large"),
    "scan, medium": lambda arch: scanned(arch, "medium"),
    "quantize, large": lambda arch: quantized(arch, "large"),
    "quantize, medium": lambda arch: quantized(arch, "medium"),
    "product, large": lambda arch: multiplied(arch, "large"),
    "product, medium": lambda arch: multiplied(arch, "medium"),
    "product in Gluon, large": lambda arch: multiplied(arch, "large", in_gluon=True),
    "decode, 16 rows": lambda arch: decoded(arch, "decode"),
    "decode, 8 rows": lambda arch: decoded(arch, "decode, 8 rows"),
    "decode, 4 rows": lambda arch: decoded(arch, "decode, 4 rows"),
    "decode, one row": lambda arch: decoded(arch, "decode, one row"),
    "experts, 16 tokens": lambda arch: decoded_experts(arch, 16),
    "experts, one token": lambda arch: decoded_experts(arch, 1),
}


#: Kernels that one architecture has alone.
ONLY_ON = {"product in Gluon, large": "sm_90"}

#: GPUs whose ceilings stand on the page.
GPUS = ("A100 SXM", "H100 SXM")


def microseconds(cycles: dict[str, float], programs: int, ceiling: Ceiling) -> float:
    """The least time of a launch: memory serves all programs at its rate, any other resource those of one multiprocessor in turn."""
    in_turn = -(-programs // ceiling.multiprocessors)
    each = [n * (programs / ceiling.multiprocessors if resource == "HBM" else in_turn) for resource, n in cycles.items()]
    return max(each) / ceiling.clock / 1000


def row(name: str, run: Run, ceiling: Ceiling) -> dict[str, Any]:
    """What a record says of one launch; counts per program."""
    profile, hbm_bytes, programs = run
    n = profile.programs
    cycles = profile.cycles(ceiling, hbm_bytes)
    counts = {name: profile.total(name) / n for name in ("sectors", "fewest_sectors", "wavefronts", "fewest_wavefronts")}
    return {
        "name": name, "arch": profile.arch, "gpu": ceiling.name, "kernel": profile.kernel, "grid": profile.grid, "warps": profile.warps,
        "registers": profile.registers, "spilled": profile.spilled, "shared": profile.shared,
        "instructions": {k: v / n for k, v in profile.instructions.most_common()},
        "issued": {k: v / n for k, v in profile.issued.most_common()}, **counts,
        "bytes": {
            "loads": profile.path("ld.global") / n, "stores": profile.path("st.global") / n, "cp.async": profile.path("cp.async") / n,
            "tensor copies": profile.path("tensor copy") / n, "shared": (profile.path("shared") + profile.path("matrices")) / n,
        },
        "waits": profile.waits / n, "matrix_instructions": profile.matrix_instructions / n,
        "multiply_adds": sum(entry[1] for entry in profile.matrix.values()) / n,
        "flights": [{"loop": f.place and str(f.place), "loaded": f.loaded, "flying": f.flying} for f in profile.flights],
        "in_flight": profile.in_flight(ceiling), "in_flight_needed": LATENCY * ceiling.hbm,
        "cycles": cycles, "bound": max(cycles, key=cycles.__getitem__), "resident": profile.resident(ceiling),
        "microseconds": microseconds(cycles, programs, ceiling),
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = command.Parser(prog="python -m experiments.profile", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--arch", action="append", choices=sorted({c.arch for c in CEILINGS.values()}), help="only this one (repeatable)")
    parser.add_argument("--gpu", action="append", choices=CEILINGS, help=f"whose ceilings (repeatable); by default {', '.join(GPUS)}")
    parser.add_argument("--kernel", default="", help="only kernels whose name contains this: scan, quantize, product, decode, experts")
    parser.add_argument("--details", action="store_true", help="also each line of source whose accesses are not the best possible")
    parser.add_argument("--out", help="where the record goes; experiments/results/profile.json by default")
    options = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise InputError("TRITON_INTERPRET=1 replaces the compiler: unset it")
    wanted = [name for name in RUNS if options.kernel in name]
    if not wanted:
        raise InputError(f"--kernel {options.kernel}: no kernel is called so; there are {', '.join(RUNS)}")
    path = records.output_path(options.out, "profile")
    first = [c.name for c in CEILINGS.values() if c == emulator.ceiling_of(c.arch) and c.arch in (options.arch or ())]
    gpus = [CEILINGS[name] for name in options.gpu or first or GPUS]
    if wrong := [c.name for c in gpus if options.arch and c.arch not in options.arch]:
        raise InputError(f"--gpu {', '.join(wrong)}: not of architecture {', '.join(options.arch)}")
    names = [ceiling.name for ceiling in gpus]
    record = machine.heading("profile", {"gpus": names, "kernels": wanted, "threshold": THRESHOLD, "outlier_every": OUTLIER_EVERY})
    rows = []
    for ceiling in gpus:
        for name in [name for name in wanted if ONLY_ON.get(name, ceiling.arch) == ceiling.arch]:
            run = RUNS[name](ceiling.arch)
            rows.append(row(name, run, ceiling))
            if options.details:
                print(run.profile, flush=True)
    earlier = (records.read("profile-earlier") or {"rows": []})["rows"]
    print(page.tables(rows, earlier, text.table))
    for written in records.write(path, record | {"ceilings": {c.name: c._asdict() for c in gpus}, "rows": rows}):
        print(f"wrote {written}")
    if path == records.output_path(None, "profile"):
        page.PAGE.write_text(page.with_tables(page.PAGE.read_text(encoding="utf-8"), records.plain(rows), earlier), encoding="utf-8")
        print(f"wrote {page.PAGE}")


if __name__ == "__main__":
    command.run_command(main)
