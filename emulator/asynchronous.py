"""Copies by threads that go on while the program does (cp.async), and all that is on its way in one program.

A copy brings its bytes at the last moment that is allowed, when it is waited for. Until then a touch of where it writes is a fault.
The seed decides whether it reads its source at once or at that moment.
Sources: PTX ISA 9.0, 9.7.9.25 "Asynchronous copy" (cp.async, commit_group, wait_group).
"""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .faults import Fault
from .mbarriers import Barrier
from .parse import Instruction
from .rules import Run, rule
from .transfers import SHARED, addressed
from .values import Array

if TYPE_CHECKING:
    from .machine import Machine

ASYNC = "Data Movement and Conversion Instructions: "


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
