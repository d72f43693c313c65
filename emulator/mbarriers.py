"""Barriers in memory that count arrivals and bytes (mbarrier), and the fence between threads and the engines that copy and multiply.

The seed decides how often a wait for an mbarrier fails first.
Sources: PTX ISA 9.0, 9.7.13.15 "mbarrier", 9.7.13.4 "membar / fence" (fence.proxy.async), 8.6 "Proxies".
"""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from .faults import Fault
from .parse import Instruction, Unsupported
from .rules import Run, rule
from .transfers import SHARED, addressed
from .values import Array

if TYPE_CHECKING:
    from .machine import Machine

MBARRIER = "Parallel Synchronization and Communication Instructions: mbarrier"


class Barrier:
    """An mbarrier: its phase ends when all arrivals have come and all announced bytes."""

    def __init__(self, count: int) -> None:
        self.count, self.pending, self.phase, self.bytes = count, count, 0, 0
        self.copies: list[Callable[[Machine], None]] = []
        self.failed: int | None = None  # waits of this phase that may still fail
        self.joined: Array | None = None  # what the arrivals of this phase know
        self.past: list[Array | None] = []  # what a wait for each phase learns

    def merge(self, joined: Array) -> None:
        self.joined = joined if self.joined is None else np.maximum(self.joined, joined)

    def arrive(self, count: int = 1) -> None:
        if count > self.pending:
            raise Fault("barrier", f"{count} arrivals at an mbarrier that expects {self.pending} more in this phase")
        self.pending -= count

    def settle(self) -> None:
        """Ends the phase if nothing is missing."""
        if self.pending == 0 and self.bytes == 0:
            self.past.append(self.joined)
            self.phase, self.pending, self.joined, self.failed = self.phase + 1, self.count, None, None


@rule(rf"fence\.proxy\.async(?:\.{SHARED}|\.global)?", "Parallel Synchronization and Communication Instructions: fence.proxy", writes=False)
def proxy_fence(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    def run(m: "Machine") -> None:
        m.clocks.fences[np.unique(m.warp_of[m.mask])] += 1

    return run


def one(m: "Machine") -> int:
    """The one active thread."""
    lanes = m.lanes()
    if len(lanes) != 1:
        raise Unsupported(f"{len(lanes)} threads start an operation of which the emulator knows the form with one")
    return int(lanes[0])


def found_barrier(m: "Machine", place: int, lanes: Array) -> Barrier:
    """The mbarrier at an address, whose initialization lies before its use by the threads `lanes`."""
    found = m.copies.barrier(place)
    warps = np.unique(m.warp_of[lanes])
    granules = m.shared.granules(m.shared.offsets(np.full(len(warps), place), 8), 8)
    m.shared.after_writes(granules, warps if granules.ndim == 1 else warps[:, None], "an mbarrier is used, no barrier after its init")
    return found


@rule(rf"mbarrier\.(init|inval)\.{SHARED}\.b64", MBARRIER + ".init, mbarrier.inval", writes=False, strict=True)
def initialize(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    address = addressed(i.operands[0], machine)
    count = machine.reader(i.operands[1], "u32") if found[1] == "init" else None

    def run(m: "Machine") -> None:
        lane = one(m)
        place = int(address(m)[lane])
        if place in m.copies.barriers:
            if count is not None:
                raise Fault("barrier", "an mbarrier is initialized a second time without mbarrier.inval", 0, place)
            if m.copies.barriers[place].copies:
                raise Fault("barrier", "an mbarrier is invalidated while copies that arrive at it are on their way", 0, place)
            del m.copies.barriers[place]
        elif count is None:
            raise Fault("barrier", "no mbarrier was initialized here", 0, place)
        m.shared.store(np.array([place]), [np.zeros(1, np.uint64)], 8, m.warp_of[[lane]])
        if count is not None:
            m.copies.barriers[place] = Barrier(int(m.full(count(m.regs))[lane]))

    return run


@rule(rf"mbarrier\.arrive(\.expect_tx)?(?:\.release)?(?:\.cta)?\.{SHARED}\.b64", MBARRIER + ".arrive", writes=False, strict=True)
@rule(rf"mbarrier\.(expect_tx)(?:\.relaxed)?(?:\.cta)?\.{SHARED}\.b64", MBARRIER + ".expect_tx", writes=False, strict=True)
def arrive(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    arrives = i.opcode.startswith("mbarrier.arrive")
    operands = list(i.operands)
    if arrives and operands.pop(0) != "_":
        raise Unsupported("mbarrier.arrive that returns a state")
    address = addressed(operands[0], machine)
    amount = machine.reader(operands[1], "u32") if len(operands) > 1 else None

    def run(m: "Machine") -> None:
        for lane in m.lanes().tolist():
            barrier = found_barrier(m, int(address(m)[lane]), np.array([lane]))
            value = 1 if amount is None else int(m.full(amount(m.regs))[lane])
            if found[1]:
                barrier.bytes += value
            if arrives:
                barrier.arrive(1 if found[1] else value)
                barrier.merge(m.clocks.released(np.array([m.warp_of[lane]])))
            barrier.settle()

    return run


@rule(
    rf"mbarrier\.(?:try|test)_wait\.parity(?:\.acquire)?(?:\.cta)?\.{SHARED}\.b64", MBARRIER + ".try_wait, mbarrier.test_wait", strict=True
)
def try_wait(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    address, parity = addressed(i.operands[1], machine), machine.reader(i.operands[2], "u32")
    write = machine.writer(i.operands[0], "pred")

    def run(m: "Machine") -> None:
        lanes = m.lanes()
        places, bits = np.unique(address(m)[lanes]), np.unique(m.full(parity(m.regs))[lanes])
        if len(places) != 1 or len(bits) != 1:
            raise Unsupported("threads that wait for different phases at once")
        barrier, bit = found_barrier(m, int(places[0]), lanes), int(bits[0])
        if barrier.phase % 2 == bit:  # the phase that is waited for has not ended
            # A wait may fail: who does not ask again has not waited.
            if barrier.failed is None:
                barrier.failed = int(m.random.integers(1, 3))
            if barrier.failed:
                barrier.failed -= 1
                write(m, np.bool_(False))
                return
            copies, barrier.copies = barrier.copies, []
            for bring in copies:
                bring(m)
            barrier.settle()
        if barrier.phase % 2 == bit:
            if not m.groups:
                raise Fault("deadlock", "nothing is on its way that could end this phase of the mbarrier", 0, int(places[0]))
            m.stall()
            write(m, np.bool_(False))
            return
        if barrier.past and barrier.past[-1] is not None:
            m.clocks.acquired(np.unique(m.warp_of[lanes]), barrier.past[-1])
        write(m, np.bool_(True))

    return run
