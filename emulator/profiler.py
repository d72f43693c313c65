"""A profiler without a GPU: what the counters of hardware would say, as far as PTX decides it.

    with emulator.profiling("sm_90", programs=[0]) as device:
        kernel[grid](...)
    print(device.profiles[-1])

Of a large grid a few programs are enough: they are alike. What it cannot say: the order of warps, hits in caches, clocks, latencies,
and what ptxas makes of the instructions: one of PTX is now none, now one, now several of the machine's. A number of cycles is what one
resource alone needs, a floor and no time.
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .counters import Access, CountingMachine, PlainGlobalMemory, class_of
from .launch import Gpu, Launch, gpu


class Ceiling(NamedTuple):
    """What one GPU can do per multiprocessor and cycle.

    clock: GHz. hbm, cache: bytes per cycle from device memory and from the second-level cache. int8, sixteen: multiply-adds per cycle on
    int8 and on 16-bit numbers. registers, shared, warps: of a multiprocessor, shared memory in bytes.
    """

    name: str
    multiprocessors: int
    clock: float
    hbm: float
    cache: float
    int8: int
    sixteen: int
    registers: int
    shared: int
    warps: int


#: NVIDIA's data sheets of the A100 SXM 80 GB (2,039 GB/s, 624 TOP/s int8) and the H100 SXM (3,350 GB/s, 1,979 TOP/s int8), dense, at
#: boost clock; 64 bytes per cycle and multiprocessor from the second-level cache.
CEILINGS = {
    "sm_80": Ceiling("A100 SXM", 108, 1.41, 2039 / 108 / 1.41, 64, 2048, 1024, 65536, 164 << 10, 64),
    "sm_90": Ceiling("H100 SXM", 132, 1.755, 3350 / 132 / 1.755, 64, 4096, 2048, 65536, 228 << 10, 64),
}
SCHEDULERS, SHARED_BYTES = 4, 128


@dataclass(eq=False)
class Profile:
    """One launch. Counts are of `programs` programs, of `grid` in all."""

    kernel: str
    arch: str
    grid: int
    programs: int
    warps: int
    registers: int
    spilled: int
    shared: int
    instructions: Counter[str]
    accesses: dict[str, Access]
    matrix: dict[str, list[int]]
    waits: int

    def total(self, what: str) -> int:
        """A count of `Access` over all accesses."""
        return sum(getattr(a, what) for a in self.accesses.values())

    def path(self, word: str) -> int:
        """Bytes that went by accesses whose name contains `word`."""
        return sum(a.data for a in self.accesses.values() if word in a.what)

    @property
    def matrix_instructions(self) -> int:
        """Instructions of the matrix unit, of warps or of warp groups."""
        return sum(entry[0] for entry in self.matrix.values())

    def resident(self, ceiling: Ceiling) -> int:
        """Programs that a multiprocessor holds at once; registers go by blocks of 8 per thread (CUDA occupancy calculator)."""
        registers = -(-self.registers // 8) * 8 * 32 * self.warps
        return max(1, min(ceiling.registers // max(1, registers), ceiling.shared // (self.shared + 1024), ceiling.warps // self.warps, 32))

    def cycles(self, ceiling: Ceiling, hbm_bytes: float | None = None) -> dict[str, float]:
        """Cycles that each resource of a multiprocessor needs for one program, were it alone the bound.

        hbm_bytes: what one program moves from and to device memory, where others read the same; None takes each sector as moved.
        """
        pairs = {True: 0, False: 0}
        for name, (_, count, _) in self.matrix.items():
            pairs["s8" in name or "u8" in name] += count
        read = sum(entry[2] for entry in self.matrix.values())
        sector_bytes = 32 * self.total("sectors")
        n = self.programs
        return {
            "issue": sum(self.instructions.values()) / SCHEDULERS / n,
            "shared memory": (self.total("wavefronts") + read / SHARED_BYTES) / n,
            "matrix": (pairs[True] / ceiling.int8 + pairs[False] / ceiling.sixteen) / n,
            "cache": sector_bytes / ceiling.cache / n,
            "HBM": (sector_bytes / n if hbm_bytes is None else hbm_bytes) / ceiling.hbm,
        }

    def __str__(self) -> str:
        n = self.programs
        per = {name: f"{count / n:,.0f}" for name, count in self.instructions.most_common()}
        lines = [
            f"{self.kernel} on {self.arch}: {n} of {self.grid} programs, {self.warps} warps, {self.registers} registers, "
            f"{self.spilled} bytes spilled, {self.shared:,} bytes of shared memory",
            "  warp instructions per program: " + ", ".join(f"{name} {count}" for name, count in per.items()),
            f"  per program: sectors {self.total('sectors') / n:,.0f} of {self.total('fewest_sectors') / n:,.0f} at best, wavefronts "
            f"{self.total('wavefronts') / n:,.0f} of {self.total('fewest_wavefronts') / n:,.0f}, matrix instructions "
            f"{self.matrix_instructions / n:,.0f}, waits {self.waits / n:,.0f}",
        ]
        if self.arch in CEILINGS:
            ceiling = CEILINGS[self.arch]
            cycles = self.cycles(ceiling)
            lines.append(
                f"  cycles per program on an {ceiling.name}, {self.resident(ceiling)} programs at once: "
                + ", ".join(f"{name} {count:,.0f}" for name, count in cycles.items())
                + f"; bound by {max(cycles, key=cycles.__getitem__)}"
            )
        for place, a in self.accesses.items():
            if a.sectors > a.fewest_sectors or a.wavefronts > a.fewest_wavefronts:
                lines.append(
                    f"  {place}: {a.requests} requests, sectors {a.sectors} of {a.fewest_sectors}, "
                    f"wavefronts {a.wavefronts} of {a.fewest_wavefronts}"
                )
        return "\n".join(lines)


@cache
def assembled(ptx: str) -> tuple[int, int]:
    """(registers per thread, bytes spilled) that ptxas of the Triton wheel says of a module."""
    import triton

    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    target = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)[1]  # type: ignore[index]
    tool = folder / "ptxas-blackwell" if target.startswith("sm_1") and (folder / "ptxas-blackwell").exists() else folder / "ptxas"
    with tempfile.TemporaryDirectory() as made:
        file = Path(made) / "kernel.ptx"
        file.write_text(ptx)
        command: list[str | Path] = [tool, "-v", "--fmad=false", f"--gpu-name={target}", file, "-o", Path(made) / "kernel.cubin"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    return int(re.search(r"Used (\d+) registers", said)[1]), sum(map(int, spills.groups())) if spills else 0  # type: ignore[index]


def profile_of(launch: Launch, arch: str, programs: int | None) -> Profile:
    """The profile of a launch that a `CountingMachine` ran."""
    machine = launch.machine
    assert isinstance(machine, CountingMachine)
    code = machine.kernel.code
    instructions: Counter[str] = Counter()
    waits = 0
    for i, count in zip(code, launch.reached.tolist(), strict=True):
        instructions[class_of(i.opcode)] += count
        waits += count if re.match(r"bar\.sync|barrier|mbarrier\.\w+_wait|cp\.async\.wait|wgmma\.wait|tcgen05\.wait", i.opcode) else 0
    accesses: dict[str, Access] = {}
    for at, access in machine.accesses.items():
        name = f"{code[at].place or f'PTX line {code[at].number}'}, {access.what}"
        held = accesses.setdefault(name, Access(access.what))
        for field in ("requests", "data", "sectors", "fewest_sectors", "wavefronts", "fewest_wavefronts"):
            setattr(held, field, getattr(held, field) + getattr(access, field))
    grid = int(np.prod(launch.grid))
    registers, spilled = assembled(launch.ptx)
    return Profile(
        launch.kernel, arch, grid, grid if programs is None else programs, machine.warps, registers, spilled, launch.metadata.shared,
        +instructions, {n: a for n, a in accesses.items() if a.requests}, machine.matrix, waits,
    )  # fmt: skip


class Profiler:
    """What `profiling` gives: the launches, and their profiles."""

    def __init__(self, device: Gpu) -> None:
        self.device = device

    @property
    def profiles(self) -> list[Profile]:
        """One per launch."""
        programs = self.device.programs
        return [profile_of(launch, self.device.arch, None if programs is None else len(programs)) for launch in self.device.launches]


@contextmanager
def profiling(arch: str, programs: Sequence[int] | None = None) -> Iterator[Profiler]:
    """Within this context Triton's kernels are compiled for `arch` and run here, counted, without the sanitizer.

    programs: the numbers of those programs of each grid that are run; None for all. What the others would have written is not there.
    """
    with gpu(arch, programs=programs, allocators=(), make=CountingMachine, memory=PlainGlobalMemory) as device:
        yield Profiler(device)
