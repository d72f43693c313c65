"""A profiler without a GPU: what the counters of hardware would say, as far as PTX and the machine code made of it decide it.

    with emulator.profiling("sm_90", programs=[0]) as device:
        kernel[grid](...)
    print(device.profiles[-1])

Of a large grid a few programs are enough: they are alike. Issue slots are those of the machine code (`sass.py`), accesses to memory those
that the emulator ran. What it cannot say: the order of warps, hits in caches, clocks, latencies. A number of cycles is what one
resource alone needs, a floor and no time.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from .ceilings import Ceiling, ceiling_of
from .counters import Access, CountingMachine, PlainGlobalMemory, class_of
from .launch import Gpu, Launch, gpu
from .sass import Flight, agreement, assembled, disassembled, executions, flights, pipe_of

SCHEDULERS, LANES, SHARED_BYTES = 4, 32, 128
#: Lanes of a multiprocessor for integers and logic, for products of integers, and for conversions and special functions: those of
#: compute capability 8.0 (CUDA C++ Best Practices Guide, "Throughput of Native Arithmetic Instructions"; the table was not at hand when
#: this was last checked). Where a newer GPU has more lanes, floors of `alu`, `fma heavy` and `xu` are too high for it.
ALU_LANES, HEAVY_LANES, XU_LANES = 64, 64, 16
#: Cycles that a load from device memory takes: an assumption, of the order that microbenchmarks find on an idle GPU (400 to 600).
LATENCY = 600


@dataclass(eq=False)
class Profile:
    """One launch. Counts are of `programs` programs, of `grid` in all.

    instructions: of PTX by class, issued: of the machine code by pipe; both of warps. flights: loads on their way in the machine code.
    copies: the most bytes of asynchronous copies of one program that were on their way at once. agreement: of `sass.agreement`.
    """

    kernel: str
    arch: str
    grid: int
    programs: int
    warps: int
    registers: int
    spilled: int
    shared: int
    instructions: Counter[str]
    issued: Counter[str]
    flights: list[Flight]
    copies: int
    agreement: dict[str, tuple[float, float, float]]
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
        shared = ceiling.shared // (self.shared + 1024)  # the system takes 1 KB of each program
        return max(1, min(ceiling.registers // max(1, registers), shared, ceiling.warps // self.warps, ceiling.programs))

    def in_flight(self, ceiling: Ceiling) -> float:
        """The most bytes from global memory that are on their way to a multiprocessor at once, all resident programs together.

        By asynchronous copies or by loads into registers, whichever are more. Of a multiprocessor's share of the bandwidth these can draw
        `in_flight / LATENCY / ceiling.hbm` (Little's law).
        """
        at_once = min(self.resident(ceiling), max(1.0, self.grid / ceiling.multiprocessors))
        loads = max((flight.flying for flight in self.flights), default=0) * LANES * self.warps
        return at_once * max(self.copies, loads)

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
            "issue": sum(self.issued.values()) / SCHEDULERS / n,
            "alu": self.issued["alu"] * LANES / ALU_LANES / n,
            "fma": (self.issued["fma"] * LANES / ceiling.floats + self.issued["fma heavy"] * LANES / HEAVY_LANES) / n,
            "xu": self.issued["xu"] * LANES / XU_LANES / n,
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
            "  PTX instructions of warps per program: " + ", ".join(f"{name} {count}" for name, count in per.items()),
            f"  machine instructions of warps per program: {sum(self.issued.values()) / n:,.0f}, by pipe: "
            + ", ".join(f"{name} {count / n:,.0f}" for name, count in self.issued.most_common()),
            f"  per program: sectors {self.total('sectors') / n:,.0f} of {self.total('fewest_sectors') / n:,.0f} at best, wavefronts "
            f"{self.total('wavefronts') / n:,.0f} of {self.total('fewest_wavefronts') / n:,.0f}, matrix instructions "
            f"{self.matrix_instructions / n:,.0f}, waits {self.waits / n:,.0f}",
        ]
        for flight in self.flights:
            where = "outside of loops" if flight.place is None else f"loop at {flight.place}"
            lines.append(f"  {where}: {flight.loaded} bytes loaded per lane, at most {flight.flying} on their way at once")
        if ceiling := ceiling_of(self.arch):
            cycles = self.cycles(ceiling)
            lines += [
                f"  cycles per program on an {ceiling.name}, {self.resident(ceiling)} programs at once: "
                + ", ".join(f"{name} {count:,.0f}" for name, count in cycles.items())
                + f"; bound by {max(cycles, key=cycles.__getitem__)}",
                f"  bytes on their way to a multiprocessor: {self.in_flight(ceiling):,.0f}; its share of device memory at {LATENCY} cycles "
                f"of latency needs {LATENCY * ceiling.hbm:,.0f}",
            ]
        for place, a in self.accesses.items():
            if a.sectors > a.fewest_sectors or a.wavefronts > a.fewest_wavefronts:
                lines.append(
                    f"  {place}: {a.requests} requests, sectors {a.sectors} of {a.fewest_sectors}, "
                    f"wavefronts {a.wavefronts} of {a.fewest_wavefronts}"
                )
        return "\n".join(lines)


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
    fused = bool(getattr(launch.metadata, "enable_fp_fusion", True))
    made, machine_code = assembled(launch.ptx, fused), disassembled(launch.ptx, fused)
    reached = launch.reached.tolist()
    ran = executions(machine_code, machine.kernel, reached)
    issued: Counter[str] = Counter()
    for line, count in zip(machine_code.lines, ran, strict=True):
        issued[pipe_of(line.opcode)] += round(count)
    return Profile(
        launch.kernel, arch, grid, grid if programs is None else programs, machine.warps, made.registers, made.spilled,
        launch.metadata.shared, +instructions, +issued, flights(machine_code, machine.kernel, ran), machine.flying,
        agreement(machine_code, machine.kernel, reached, ran),
        {n: a for n, a in accesses.items() if a.requests}, machine.matrix, waits,
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
