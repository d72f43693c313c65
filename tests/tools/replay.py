"""Launches of the emulator, noted so that they can be run again with changed code, without Triton, and from the same bytes.

A case of tests/compiled_cases.py takes most of its time for compiling, for the reference and for its other kernels. A fault needs none of
them: the launch's buffers are put back as they were, the changed instructions are built, and what is left behind is compared with what the
launch left without a fault.
"""

import hashlib
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

import emulator
from emulator.global_memory import Buffer, GlobalMemory
from emulator.machine import Machine, Step
from emulator.memory import smallest_access
from emulator.parse import Kernel
from tests.tools.fault_sites import FaultSite

#: A faulty launch that takes this many times as long as the launch without it, and at least LEAST seconds of the processor's time, is
#: taken not to end.
PATIENCE, LEAST = 30, 5.0
SEED = 0

REMOVED = Step("run", None, lambda machine: None)


@dataclass(eq=False)
class Noted:
    """One launch of a case.

    last: whether the case's result is what this launch leaves behind; else a difference may be in what nobody reads. left: a digest of
    memory after each program. reached: of each instruction, by how many warps it was run.
    """

    case: str
    kernel: Kernel
    parameters: bytes
    shared: int
    maps: dict[int, Any]
    buffers: list[Buffer]
    grid: tuple[int, int, int]
    seconds: float
    reached: np.ndarray
    left: list[bytes]
    last: bool = False
    machine: Machine | None = None

    @property
    def name(self) -> str:
        """The kernel's name."""
        return self.kernel.name

    def _memory(self) -> GlobalMemory:
        buffers = [Buffer(b.address, b.data.copy(), b.initialized.copy()) for b in self.buffers]
        return GlobalMemory(buffers, smallest_access(self.kernel, "global"))

    def run(self, faults: Sequence[FaultSite], note: bool = False) -> str:
        """What stops the launch with these faults in it: a kind of the sanitizer, "difference", "no end", "refused"; "" for nothing."""
        if self.machine is None:
            self.machine = Machine(self.kernel, self.parameters, self.shared, self._memory(), SEED, self.maps)
        m = self.machine
        m.memory, m.random = self._memory(), np.random.default_rng(SEED)
        kept = list(m.steps)
        try:
            put(m, faults)
            with limited(max(LEAST, PATIENCE * self.seconds)):
                return self._programs(m, note)
        except emulator.Fault as fault:
            return fault.kind
        except emulator.Unsupported:
            return "refused"
        except TimeoutError:
            return "no end"
        finally:
            m.steps[:] = kept

    def _programs(self, m: Machine, note: bool) -> str:
        """One program after the other, each compared: most faults show in the first."""
        for number in range(int(np.prod(self.grid))):
            m.run(self.grid, [number])
            now = hashlib.blake2b(m.memory.bytes.data, digest_size=16).digest()
            if note:
                self.left.append(now)
            elif now != self.left[number]:
                return "difference"
        return ""


def put(machine: Machine, faults: Iterable[FaultSite]) -> None:
    """Puts faults into a machine that was made of the kernel they were found in."""
    for fault in faults:
        machine.steps[fault.at] = REMOVED if fault.instead is None else machine._build(fault.instead)


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises TimeoutError within this context once this process has computed for so long, whatever else the machine does."""

    def over(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGVTALRM, over)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def noted(arch: str, case: str, call: Callable[[], None]) -> list[Noted]:
    """The launches of a case, which must pass."""
    import fast
    from tests.comparison import poisoned

    found: list[Noted] = []

    class Noting(Machine):
        """Keeps what a launch is made of, and runs it."""

        def __init__(self, kernel: Kernel, parameters: bytes, shared: int, memory: GlobalMemory, seed: int, maps: dict[int, Any]) -> None:
            super().__init__(kernel, parameters, shared, memory, seed, maps)
            self.given = [Buffer(b.address, b.data.copy(), b.initialized.copy()) for b in memory.buffers]

        def run(self, grid: tuple[int, int, int], programs: Iterable[int] | None = None) -> None:
            begin = time.process_time()
            super().run(grid, programs)
            seconds = time.process_time() - begin
            found.append(
                Noted(case, self.kernel, self.parameters, self.shared_size, self.tensor_maps, self.given, grid, seconds, self.reached, [])
            )

    with emulator.gpu(arch, make=Noting), fast.backend("triton"), poisoned():
        call()
    for launch in found:
        launch.last = launch is found[-1]
    return found


def outcome_of_case(arch: str, call: Callable[[], None], launch: Noted, faults: Sequence[FaultSite]) -> str:
    """What the whole case says with these faults in one of its launches, its result against the reference; as `Noted.run`."""
    import fast
    from tests.comparison import poisoned

    class Faulty(Machine):
        """Has the faults, if it is of that kernel."""

        def __init__(self, kernel: Kernel, *arguments: Any, **options: Any) -> None:
            super().__init__(kernel, *arguments, **options)
            if kernel.name == launch.name and kernel.code == launch.kernel.code:
                put(self, faults)

    try:
        with limited(max(LEAST, PATIENCE * launch.seconds)), emulator.gpu(arch, make=Faulty), fast.backend("triton"), poisoned():
            call()
    except emulator.Fault as fault:
        return fault.kind
    except emulator.Unsupported:
        return "refused"
    except AssertionError:
        return "difference"
    except TimeoutError:
        return "no end"
    return ""
