"""Copies that go on while the program does (cp.async, tensor copies), and the barriers in memory that count them (mbarrier).

A copy brings its bytes at the last moment that is allowed, when it is waited for. Until then a touch of where it writes is a fault.
The seed decides whether it reads its source at once or at that moment, and how often a wait for an mbarrier fails first.
Sources: PTX ISA 9.0, 9.7.9.25 "Asynchronous copy", 9.7.9.25.5.2 "cp.async.bulk.tensor", 5.5.7 "Swizzling Modes", 9.7.13.15 "mbarrier",
9.7.13.4 "membar / fence" (fence.proxy.async), 8.6 "Proxies".
"""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .faults import Fault
from .parse import Address, Instruction, Unsupported
from .rules import Run, rule
from .tensor_map import TensorMap
from .transfers import SHARED, addressed
from .values import Array
from .warpgroup import swizzled

if TYPE_CHECKING:
    from .machine import Machine

ASYNC = "Data Movement and Conversion Instructions: "
MBARRIER = "Parallel Synchronization and Communication Instructions: mbarrier"
CLUSTER = r"shared(?:::cta|::cluster)?"


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


class Copies:
    """Everything on its way in one program."""

    def __init__(self, machine: "Machine") -> None:
        self.group = np.zeros(machine.threads, np.int64)  # of each thread, the number of its open group
        self.flying: list[tuple[Array, Array, Array, Array, Array, Callable[[Array], Array] | None]] = []
        self.barriers: dict[int, Barrier] = {}
        self.stores: list[list[Callable[[Machine, bool], None]]] = [[]]  # bulk groups, the open one last

    def wait(self, m: "Machine", most: int) -> None:
        """All groups of the active threads but the last `most` have arrived."""
        waiting = m.mask
        left: list[Any] = []
        for lanes, group, offsets, data, granules, again in self.flying:
            done = waiting[lanes] & (group < self.group[lanes] - most)
            if done.any():
                m.shared.arrive(granules[done], m.warp_of[lanes[done]])
                fresh = data[done] if again is None else again(done)
                m.shared.bytes[offsets[done][:, None] + np.arange(data.shape[1])] = fresh
            if not done.all():
                keep = ~done
                later = None if again is None else (lambda which, again=again, keep=keep: again(_among(keep, which)))
                left.append((lanes[keep], group[keep], offsets[keep], data[keep], granules[keep], later))
        self.flying = left

    def barrier(self, address: int) -> Barrier:
        if address not in self.barriers:
            raise Fault("barrier", "no mbarrier was initialized here", None, address)
        return self.barriers[address]


def _among(kept: Array, which: Array) -> Array:
    """Flags of the kept entries as flags of all."""
    found = np.zeros(len(kept), bool)
    found[np.flatnonzero(kept)[which]] = True
    return found


@rule(
    rf"cp\.async\.(?:cg|ca)\.{SHARED}\.global(?:\.L2::cache_hint)?(?:\.L2::(?:64|128|256)B)?", ASYNC + "cp.async", writes=False, strict=True
)
def copy(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    to, source = addressed(i.operands[0], machine), addressed(i.operands[1], machine)
    width = int(str(i.operands[2]), 0)
    if width not in (4, 8, 16) or (".cg" in i.opcode and width != 16):
        raise Fault("operand", f"cp.async of {width} bytes")
    live = machine.reader(i.operands[3], "u32") if len(i.operands) > 3 and "cache_hint" not in i.opcode else None

    def run(m: "Machine") -> None:
        lanes = m.lanes()
        offsets = m.shared.offsets(to(m)[lanes], width)
        addresses, warps = source(m)[lanes], m.warp_of[lanes]
        count = np.full(len(lanes), width) if live is None else m.full(live(m.regs))[lanes].astype(np.int64)
        if (count > width).any():
            raise Fault("operand", f"cp.async of {count.max()} source bytes to {width}")
        m.memory.aligned(np.where(count > 0, addresses, 0), width)
        data = m.memory.bytes_at(addresses, width, count, warps)
        again = None
        if m.random.random() < 0.5:

            def again(which: Array) -> Array:
                return m.memory.bytes_at(addresses[which], width, count[which], warps[which])

        granules = m.shared.granules(offsets, width)
        m.shared.expect(granules, warps)
        m.copies.flying.append((lanes, m.copies.group[lanes].copy(), offsets, data, granules, again))

    return run


@rule(r"cp\.async\.commit_group", ASYNC + "cp.async.commit_group", writes=False)
def commit(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    def run(m: "Machine") -> None:
        m.copies.group[m.mask] += 1

    return run


@rule(r"cp\.async\.wait_(group|all)", ASYNC + "cp.async.wait_group, cp.async.wait_all", writes=False)
def wait(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    most = int(str(i.operands[0]), 0) if found[1] == "group" else -1
    return lambda m: m.copies.wait(m, most)


@rule(rf"fence\.proxy\.async(?:\.{SHARED}|\.global)?", "Parallel Synchronization and Communication Instructions: fence.proxy", writes=False)
def proxy_fence(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    def run(m: "Machine") -> None:
        m.clocks.fences[np.unique(m.warp_of[m.mask])] += 1

    return run


# Barriers in memory.


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


# Tensor copies.


def _box(i: Instruction, operand: Any, machine: "Machine") -> Callable[["Machine", int], tuple[TensorMap, list[int]]]:
    """(machine, thread) -> the tensor map of an operand and the coordinates in it."""
    if not isinstance(operand, Address):
        raise Unsupported("a tensor copy without coordinates")
    which = machine.reader(operand.base, "u64")
    readers = [machine.reader(c, "s32") for c in operand.coordinates]

    def find(m: "Machine", lane: int) -> tuple[TensorMap, list[int]]:
        key = int(m.full(which(m.regs))[lane])
        if key not in m.tensor_maps:
            raise Unsupported("tensor maps that a kernel makes itself (tl.make_tensor_descriptor)")
        return m.tensor_maps[key], [int(m.full(read(m.regs))[lane]) for read in readers]

    return find


def _places(m: "Machine", tensor_map: TensorMap, place: int) -> Array:
    """Offsets in shared memory of the pieces of 16 bytes of a box at `place`, row by row."""
    height, width = tensor_map.shape
    if place % 128:
        raise Fault("alignment", "a tensor copy needs shared memory at a multiple of 128 bytes", 0, place)
    if tensor_map.swizzle and width != tensor_map.swizzle:
        raise Unsupported("a box that is not as wide as its swizzle")
    addresses = (place + np.arange(height)[:, None] * width + np.arange(0, width, 16)).ravel()
    return m.shared.offsets(swizzled(addresses, tensor_map.swizzle) if tensor_map.swizzle else addresses, 16)


@rule(
    rf"cp\.async\.bulk\.tensor\.([1-5])d\.{CLUSTER}\.global(?:\.tile)?\.mbarrier::complete_tx::bytes(?:\.L2::cache_hint)?",
    ASYNC + "cp.async.bulk.tensor (global to shared)", writes=False, strict=True,
)  # fmt: skip
def tensor_copy(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    to, signal = addressed(i.operands[0], machine), addressed(i.operands[2], machine)
    box = _box(i, i.operands[1], machine)

    def run(m: "Machine") -> None:
        lane = one(m)
        tensor_map, start = box(m, lane)
        warp = m.warp_of[[lane]]
        data = tensor_map.read(m.memory, start, warp)
        offsets = _places(m, tensor_map, int(to(m)[lane]))
        granules, warps = m.shared.granules(offsets, 16), np.repeat(warp, len(offsets))
        m.shared.expect(granules, warps, engine=True)
        barrier = found_barrier(m, int(signal(m)[lane]), np.array([lane]))
        sent = m.clocks.released(warp)
        late = m.random.random() < 0.5

        def bring(m: "Machine") -> None:
            m.shared.arrive(granules, warps, engine=True)
            fresh = tensor_map.read(m.memory, start, warp) if late else data
            m.shared.bytes[offsets[:, None] + np.arange(16)] = fresh.reshape(-1, 16)
            barrier.bytes -= data.size
            if barrier.bytes < 0:
                raise Fault("barrier", f"{-barrier.bytes} bytes more arrive than were announced (expect_tx)")
            # What the engine wrote carries the time of the issuing warp, which whoever waits learns.
            now = sent.copy()
            now[warp] = m.clocks.own[warp]
            m.clocks.own[warp] += 1
            barrier.merge(now)

        barrier.copies.append(bring)

    return run


@rule(
    rf"cp\.async\.bulk\.tensor\.([1-5])d\.global\.{SHARED}(?:\.tile)?\.bulk_group(?:\.L2::cache_hint)?",
    ASYNC + "cp.async.bulk.tensor (shared to global)", writes=False, strict=True,
)  # fmt: skip
def tensor_store(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    box, source = _box(i, i.operands[0], machine), addressed(i.operands[1], machine)

    def run(m: "Machine") -> None:
        lane = one(m)
        tensor_map, start = box(m, lane)
        warp = m.warp_of[[lane]]
        offsets = _places(m, tensor_map, int(source(m)[lane]))
        granules = m.shared.granules(offsets, 16)
        m.shared.note_read(granules, np.repeat(warp, len(offsets)), engine=True)
        m.shared.in_use[granules] += 1
        data = m.shared.bytes[offsets[:, None] + np.arange(16)].reshape(tensor_map.shape).copy()
        tensor_map.write(m.memory, start, data, warp)
        m.copies.stores[-1].append(lambda m, _: m.shared.free(granules, int(warp[0])))

    return run


@rule(r"cp\.async\.bulk\.commit_group", ASYNC + "cp.async.bulk.commit_group", writes=False)
def bulk_commit(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    return lambda m: m.copies.stores.append([])


@rule(r"cp\.async\.bulk\.wait_group(\.read)?", ASYNC + "cp.async.bulk.wait_group", writes=False)
def bulk_wait(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    most = int(str(i.operands[0]), 0)

    def run(m: "Machine") -> None:
        while len(m.copies.stores) - 1 > most:
            for done in m.copies.stores.pop(0):
                done(m, bool(found[1]))

    return run
