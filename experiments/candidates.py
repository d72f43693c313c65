"""Which configurations are tried besides those of the tables, and which of them a GPU could run: they are compiled, here or elsewhere.

A neighbour of a row differs in one entry: a block, the warps or the parts by a factor of 2, the stages or splits by 1, loads by threads
or by the copy engine, the kernel in Triton's language or in Gluon. Others lie several entries away (FURTHER). What does not compile,
spills registers or needs more shared memory than the architecture has does not fit.
"""

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from fast.kernels import product
from fast.kernels.configurations import Decode, Product, Rows, Scan

#: Compute capability, and bytes of shared memory that one program may have (CUDA C++ Programming Guide, compute capabilities).
TARGETS = {"sm_80": (80, 163 << 10), "sm_89": (89, 99 << 10), "sm_90": (90, 227 << 10), "sm_100": (100, 227 << 10)}
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


class Fit(NamedTuple):
    """What the compiler makes of a candidate; `why_not` is empty where it can be used."""

    registers: int
    spilled: int
    shared: int
    why_not: str


def neighbours(row: Any) -> list[Any]:
    """Configurations that differ from `row` in one entry."""
    found = []
    for name, value in row._asdict().items():
        if name == "tma":
            values: list[Any] = [not value]
        elif name == "gluon":  # the kernel in Gluon loads by the copy engine
            values = [not value] if row.tma else []
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


#: What lies several entries away from the rows of the tables, and for another idea: entries to be changed together.
#: Two programs of 4 warps per multiprocessor, each at work while the other waits for its matrix instructions; half blocks of K, twice as
#: many on their way; the wide tile turned; more warps for the work that X makes in decoding; all of a short K in few blocks.
FURTHER: dict[type, tuple[dict[str, Any], ...]] = {
    Product: (
        {"block_m": 128, "block_n": 128, "block_k": 128, "warps": 4, "stages": 3, "tma": True},
        {"block_m": 128, "block_n": 128, "block_k": 64, "warps": 4, "stages": 4, "tma": False},
        {"block_m": 128, "block_n": 256, "block_k": 64, "warps": 8, "stages": 7, "tma": True},
        {"block_m": 256, "block_n": 128, "block_k": 128, "warps": 8, "stages": 4, "tma": True},
        {"block_m": 256, "block_n": 128, "block_k": 64, "warps": 8, "stages": 4, "tma": False},
        {"block_m": 64, "block_n": 256, "block_k": 128, "warps": 4, "stages": 4, "tma": True},
    ),
    Decode: (
        {"block_n": 64, "block_k": 256, "scan": 8192, "warps": 8, "stages": 4},
        {"block_n": 32, "block_k": 512, "scan": 8192, "warps": 4, "stages": 4},
        {"block_n": 16, "block_k": 256, "scan": 4096, "warps": 4, "stages": 6},
        {"block_n": 16, "block_k": 512, "scan": 4096, "warps": 2, "stages": 4},
    ),
    Scan: ({"block_m": 128, "stages": 2}, {"block_m": 32, "block_k": 128, "stages": 3}),
    Rows: ({"warps": 4, "repeat": 1}, {"warps": 16, "repeat": 8}),
}


def candidates(row: Any) -> list[Any]:
    """`row`, its neighbours, and those of FURTHER that are neither."""
    changed = [row._replace(**entries) for entries in FURTHER.get(type(row), ())]
    return list(dict.fromkeys([row, *neighbours(row), *changed]))


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


def fit(build: Callable[[str], Callable[[Any], Any]], config: Any, arch: str) -> Fit:
    """Compiles a candidate for `arch`. build: from a device to a call that launches the kernel with a configuration."""
    capability, most_shared = TARGETS[arch]
    # The launcher asks which kernel this architecture takes.
    with compiling(capability) as compiled, mock.patch.object(product, "architecture", return_value=arch):
        try:
            build("meta")(config)
        except (RuntimeError, triton.TritonError, ValueError, AssertionError) as error:
            # Triton quotes the kernel first and says what is wrong last.
            return Fit(0, 0, 0, "does not compile: " + (str(error).strip() or type(error).__name__).splitlines()[-1].strip())
    registers, spilled = usage(compiled[-1].asm["cubin"])
    shared = compiled[-1].metadata.shared
    reasons = [f"{shared} bytes of shared memory, {arch} has {most_shared}"] if shared > most_shared else []
    return Fit(registers, spilled, shared, "; ".join(reasons + ([f"spills {spilled} bytes"] if spilled else [])))


def usage(cubin: bytes) -> tuple[int, int]:
    """Registers per thread, and bytes of local memory per thread, which is where registers are spilled to."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([CUOBJDUMP, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text))
    return int(found["REG"]), int(found["STACK"]) + int(found["LOCAL"])


def difference_of(config: Any, row: Any) -> str:
    """In which entry a candidate differs from the present row."""
    return ", ".join(f"{name} {value}" for name, value in config._asdict().items() if value != getattr(row, name)) or "present row"
