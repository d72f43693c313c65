"""Runs a kernel, one program (CTA) after the other, all threads of it along one NumPy axis.

Threads that part at a branch become groups, each with a place in the code and a mask; the group furthest behind runs, so groups
meet again where their ways join. A barrier waits for all threads that still run.
Sources: PTX ISA 9.0, 2.2 "Thread Hierarchy", 9.3 "Predicated Execution", 9.5 "Divergence of Threads in Control Constructs", 9.7.12 "Control
Flow Instructions", 9.7.13.1 "bar, barrier", 10 "Special Registers".
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from . import (
    asynchronous,
    atomics,
    exchange,
    floats,
    integers,
    matrix,
    mbarriers,
    moves,
    tensor_copies,
    tensor_memory,
    transfers,
    warpgroup,
)
from .faults import Fault
from .global_memory import GlobalMemory
from .memory import Clocks, Memory, smallest_access
from .parse import Address, Instruction, Kernel, Unsupported
from .registers import LANES, Registers
from .rules import RULES, rule_for
from .values import Array

#: The modules that fill the table of rules.
ROOMS = (
    asynchronous, atomics, exchange, floats, integers, matrix, mbarriers, moves, tensor_copies, tensor_memory, transfers, warpgroup,
)  # fmt: skip
#: Where a program's shared memory begins: below are the bytes that the system reserves (CUDA C++ Programming Guide, compute
#: capability 8.0 and later).
SHARED_BASE = 1024
SPECIAL = ("%tid.x", "%tid.y", "%tid.z", "%ctaid.x", "%ctaid.y", "%ctaid.z", "%nctaid.x", "%nctaid.y", "%nctaid.z", "%ntid.x", "%laneid")
#: A program that branches back this often is taken to wait for what cannot come.
MOST_BRANCHES = 20_000_000
#: Waits in vain, one after the other, after which nothing is taken to come.
MOST_STALLS = 10_000

Guard = tuple[int, bool] | None


class Step(NamedTuple):
    """One instruction made ready.

    what: "run", "branch", "barrier" or "exit". strict, sources: slots that must be defined, and from which undefined values spread to
    the slots `targets`. own: `action` keeps track of them itself.
    """

    what: str
    guard: Guard
    action: Any
    strict: tuple[int, ...] = ()
    sources: tuple[int, ...] = ()
    targets: tuple[int, ...] = ()
    own: bool = False


class Machine(Registers):
    """One kernel, made ready to run.

    parameters: the bytes of the kernel's parameters. shared: bytes of a program's shared memory. seed: of the order of programs, of when
    asynchronous copies arrive, and of what unwritten registers hold. tensor_maps: by the offset of their parameter.

    Raises:
        Unsupported: an instruction that the emulator does not know.
    """

    shared_memory: type[Memory] = Memory

    def __init__(
        self, kernel: Kernel, parameters: bytes, shared: int, memory: GlobalMemory, seed: int = 0, tensor_maps: dict[int, Any] | None = None
    ) -> None:
        self.parameters, self.shared_size, self.memory = parameters, shared, memory
        self.tensor_maps = tensor_maps or {}
        if kernel.threads % LANES:
            raise Unsupported(f"{kernel.threads} threads per program: no multiple of a warp")
        self.random = np.random.default_rng(seed)
        poison = int(self.random.integers(2**62)) if seed else 0
        super().__init__(kernel, poison)
        for name in SPECIAL:
            self.slot(name, np.uint32(0))
        self.slot("global_smem", np.uint32(SHARED_BASE))
        self.granule = smallest_access(kernel, "shared")
        self.reached = np.zeros(len(kernel.code), np.int64)  # by how many warps each instruction was run
        self.steps = [self._build(i) for i in kernel.code]

    # Loading.

    def _build(self, instruction: Instruction) -> Step:
        try:
            guard = None if instruction.guard is None else (self.slots[instruction.guard[0]], instruction.guard[1])
            name = instruction.opcode
            if name in ("bra", "bra.uni"):
                return Step("branch", guard, self.kernel.labels[str(instruction.operands[0])])
            if name in ("bar.sync", "barrier.sync", "barrier.sync.aligned") and len(instruction.operands) == 1:
                return Step("barrier", guard, instruction.operands[0])
            if name in ("ret", "exit"):
                return Step("exit", guard, None)
            found, match = rule_for(name)
            action = found.build(instruction, self, match)
            strict, sources, targets = self._flow(instruction, found.writes, found.strict)
            return Step("run", guard, action, strict, sources, targets, found.own)
        except Unsupported as error:
            where = "" if instruction.place is None else f"{instruction.place}; "
            raise Unsupported(f"kernel {self.kernel.name}, {where}PTX line {instruction.number}: {instruction.text}\n  {error}") from None
        except (KeyError, ValueError, IndexError) as error:
            raise Unsupported(f"kernel {self.kernel.name}, PTX line {instruction.number}: {instruction.text}\n  {error!r}") from None

    def _flow(self, instruction: Instruction, writes: bool, strict: bool) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Slots of an instruction's registers: those that must be defined, other sources, targets."""
        must: set[int] = set()
        sources: set[int] = set()
        targets: set[int] = set()
        for number, operand in enumerate(instruction.operands):
            if isinstance(operand, Address):
                must |= {self.slots[n] for n in (operand.base, *operand.coordinates) if n in self.kernel.registers}
                continue
            names = operand.split("|") if isinstance(operand, str) else list(operand)
            slots = {self.slots[n.lstrip("!")] for n in names if n.lstrip("!") in self.kernel.registers}
            if writes and number == 0:
                targets |= slots
            elif strict:
                must |= slots
            else:
                sources |= slots
        return tuple(sorted(must)), tuple(sorted(sources)), tuple(sorted(targets))

    # Running.

    def run(self, grid: tuple[int, int, int], programs: Iterable[int] | None = None) -> None:
        """Runs all programs of the grid, in an order by the seed, or those whose numbers are given, in that order."""
        count = grid[0] * grid[1] * grid[2]
        with np.errstate(all="ignore"):
            for number in self.random.permutation(count).tolist() if programs is None else programs:
                self._program(number, grid)

    def _program(self, number: int, grid: tuple[int, int, int]) -> None:
        self.regs = list(self.start)
        self.undefined: list[Array | None] = [self.all_undefined] * self.registers + [None] * (len(self.start) - self.registers)
        self.in_flight: set[int] = set()
        position = (number % grid[0], number // grid[0] % grid[1], number // (grid[0] * grid[1]))
        names = ("%ctaid.x", "%ctaid.y", "%ctaid.z", "%nctaid.x", "%nctaid.y", "%nctaid.z")
        for name, value in zip(names, (*position, *grid), strict=True):
            self.regs[self.slots[name]] = np.uint32(value)
        self.regs[self.slots["%tid.x"]] = np.arange(self.threads, dtype=np.uint32)
        self.regs[self.slots["%laneid"]] = np.arange(self.threads, dtype=np.uint32) % np.uint32(LANES)
        self.regs[self.slots["%ntid.x"]] = np.uint32(self.threads)
        self.clocks: Clocks = self.memory.begin(number, self.warps)
        self.shared = self.shared_memory(SHARED_BASE, self.shared_size, self.granule, self.clocks)
        self.copies = asynchronous.Copies(self)
        self.products = warpgroup.Products()
        self.tensor_memory: tensor_memory.TensorMemory | None = None
        self.alive = self.everybody.copy()
        self.groups: list[list[Any]] = []  # of those that do not run now: [place, mask, barrier that it waits at or None, stalled]
        self.mask = self.everybody
        self.branches = self.stalls = 0
        self.stalled = False
        at: int | None = 0
        self.at = 0
        try:
            while at is not None:
                at = self._run_group(at)
            self._finish()
        except Fault as fault:
            self._report(fault, number)
            raise

    def _finish(self) -> None:
        """What a program may not leave behind."""
        if self.tensor_memory is not None:
            raise Fault("pending", "the program ends without giving its tensor memory back (tcgen05.dealloc)")

    def _report(self, fault: Fault, program: int) -> None:
        """Fills in where the fault came from. Memory gives the number of the access, which is that of an active thread."""
        fault.kernel, fault.program, fault.instruction = self.kernel.name, program, self.kernel.code[self.at]
        lanes = self.lanes()
        if fault.thread is None and fault.index is not None and fault.index < len(lanes):
            fault.thread = int(lanes[fault.index])

    def _run_group(self, at: int) -> int | None:
        """Runs from `at` to where groups part, meet or wait; returns where to go on, None at the end."""
        steps = self.steps
        while True:
            if self.groups and (met := [g for g in self.groups if g[0] == at and g[2] is None]):
                self.groups = [g for g in self.groups if g[0] != at or g[2] is not None]
                self._become(np.logical_or.reduce([self.mask, *(g[1] for g in met)]))
            self.at = at
            step = steps[at]
            if step.what == "run":
                taken = True if step.guard is None else self._taken(step.guard)
                if taken is not False:
                    whole = self.mask
                    if taken is not True:
                        self.mask = taken
                    self._execute(at, step)
                    self.mask = whole
                at += 1
                continue
            self.reached[at] += self._active_warps()
            if step.what == "branch":
                taken = True if step.guard is None else self._taken(step.guard)
                self.branches += 1
                if self.branches > MOST_BRANCHES:
                    raise Fault("deadlock", f"{MOST_BRANCHES} branches without an end: a loop waits for what does not come")
                if taken is True:
                    at = step.action
                elif taken is False:
                    at += 1
                else:
                    self.groups.append([step.action, taken, None, False])
                    self._become(self.mask & ~taken)
                    at += 1
                if self.groups:
                    return self._next(at)
            elif step.what == "barrier":
                if step.guard is not None:
                    raise Unsupported("a barrier under a predicate")
                if (self.mask == self.alive).all():
                    self.clocks.barrier(np.unique(self.warp_of[self.mask]))
                    at += 1
                else:
                    self.groups.append([at, self.mask, step.action, False])
                    return self._next(None)
            else:
                leaving = True if step.guard is None else self._taken(step.guard)
                if leaving is False:
                    at += 1
                    continue
                gone = self.mask if leaving is True else leaving
                self.alive = self.alive & ~gone
                if not self.alive.any():
                    return None
                if leaving is True:
                    return self._next(None)
                self._become(self.mask & ~gone)
                at += 1

    def _execute(self, at: int, step: Step) -> None:
        """One instruction, by the active threads."""
        self.reached[at] += self._active_warps()
        undefined = self.undefined
        for slot in step.strict:
            if undefined[slot] is not None:
                self.check_defined([slot])
        if step.own:
            step.action(self)
            return
        tainted = None
        for slot in step.sources:
            if undefined[slot] is not None:
                tainted = self.undefined_in(step.sources)
                break
        step.action(self)
        for slot in step.targets:
            if tainted is not None or undefined[slot] is not None:
                self.mark(slot, None if tainted is None else tainted != 0)

    def stall(self) -> None:
        """The active threads wait in vain: other groups go ahead."""
        self.stalled = True

    def _active_warps(self) -> int:
        return self.warps if self.mask is self.everybody else int(self.mask.reshape(-1, LANES).any(1).sum())

    def _taken(self, guard: tuple[int, bool]) -> Any:
        """True, False, or the mask of those active threads for which the guard holds."""
        slot, negated = guard
        if self.undefined[slot] is not None:
            self.check_defined([slot])
        value = ~self.regs[slot] if negated else self.regs[slot]
        if value.ndim == 0:
            return bool(value)
        if self.mask is not self.everybody:
            value = value & self.mask
            if not value.any():
                return False
            return True if (value == self.mask).all() else value
        return True if value.all() else (value if value.any() else False)

    def _become(self, mask: Array) -> None:
        self.mask = self.everybody if mask.all() else mask

    def _next(self, at: int | None) -> int:
        """The group that is furthest behind becomes the active one; where all wait at a barrier, they go on."""
        if at is not None:
            self.groups.append([at, self.mask, None, self.stalled])
            self.stalls = self.stalls + 1 if self.stalled else 0
            self.stalled = False
            if self.stalls > MOST_STALLS:
                raise Fault("deadlock", "all threads that still run wait for an mbarrier at which nothing arrives")
        ready = [g for g in self.groups if g[2] is None]
        if not ready:
            waiting = np.logical_or.reduce([g[1] for g in self.groups])
            self.mask = waiting
            if len({g[2] for g in self.groups}) > 1 or not (waiting == self.alive).all():
                raise Fault("deadlock", "threads wait at different barriers")
            for group in self.groups:
                if (np.bincount(self.warp_of[group[1]], minlength=self.warps) % LANES).any():
                    self.at = group[0]
                    raise Fault("divergence", "threads of one warp wait at different barriers, or some of them at none")
            self.clocks.barrier(np.unique(self.warp_of[waiting]))
            for group in self.groups:
                group[0], group[2] = group[0] + 1, None
            ready = self.groups
        group = min(ready, key=lambda g: (g[3], g[0]))
        for other in ready:  # whoever waited in vain has let one other group go ahead
            other[3] = False
        self.groups = [g for g in self.groups if g is not group]
        self._become(group[1])
        return group[0]


def supported() -> list[tuple[str, str]]:
    """(pattern, section of the manual) of every form of instruction that is known."""
    return [(r.pattern.pattern, r.section) for r in RULES]
