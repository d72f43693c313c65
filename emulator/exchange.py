"""Exchange between the lanes of a warp. Every instruction here needs all lanes that its member mask names.

Sources: PTX ISA 9.0, 9.7.9.6 "shfl.sync", 9.7.13.2 "bar.warp.sync", 9.7.13.9 "vote.sync", 9.7.13.11 "activemask", 9.7.13.12 "redux.sync",
9.7.13.14 "elect.sync".
"""

import re
from typing import TYPE_CHECKING

import numpy as np

from .faults import Fault
from .parse import Instruction, Unsupported
from .rules import Run, rule
from .values import Array

if TYPE_CHECKING:
    from .machine import Machine

MOVE = "Data Movement and Conversion Instructions: "
PARALLEL = "Parallel Synchronization and Communication Instructions: "
LANES = 32
#: The member mask of a whole warp.
ALL = np.uint32(0xFFFFFFFF)
REDUCE = {"add": np.add, "max": np.maximum, "min": np.minimum, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}


def whole_warps(m: "Machine", members: np.generic | Array = ALL) -> None:
    """All lanes of a warp take part, and the member mask names them all."""
    if (np.asarray(members)[() if np.ndim(members) == 0 else m.mask] != ALL).any():
        raise Unsupported("a member mask that does not name the whole warp")
    if m.mask is not m.everybody:
        active = m.mask.reshape(-1, LANES)
        parted = active.any(1) != active.all(1)
        if parted.any():
            warp = int(np.flatnonzero(parted)[0])
            fault = Fault("divergence", f"not all lanes of warp {warp} take part")
            fault.thread = warp * LANES + int(np.flatnonzero(~active[warp])[0])
            raise fault


@rule(r"shfl\.sync\.(bfly|up|down|idx)\.b32", MOVE + "shfl.sync", own=True)
def shuffle(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    how = found[1]
    to, source, by, clamp, members = i.operands
    to, _, predicate = str(to).partition("|")
    read, amount, limit = machine.reader(source, "b32"), machine.reader(by, "u32"), machine.reader(clamp, "u32")
    slot, taken = machine.place(source, "b32"), [machine.place(o, "u32") for o in (by, clamp, members)]
    write = machine.writer(to, "b32")
    write_predicate = machine.writer(predicate, "pred") if predicate else None
    who = machine.reader(members, "u32")

    def run(m: "Machine") -> None:
        m.check_defined(taken)
        whole_warps(m, who(m.regs))
        lane = np.arange(m.threads) % LANES
        b, c = m.full(amount(m.regs)).astype(np.int64) & 31, m.full(limit(m.regs)).astype(np.int64)
        segment = (c >> 8) & 31
        last = (lane & segment) | (c & 31 & ~segment)
        if how == "up":
            partner = lane - b
            fine = partner >= last
        elif how == "down":
            partner = lane + b
            fine = partner <= last
        elif how == "bfly":
            partner = lane ^ b
            fine = partner <= last
        else:
            partner = (lane & segment) | (b & ~segment)
            fine = partner <= last
        from_thread = np.arange(m.threads) - lane + np.where(fine, partner, lane)
        tainted = m.undefined_in([slot])
        write(m, m.full(read(m.regs))[from_thread])
        if to in m.slots:
            m.mark(m.slots[to], None if tainted is None else tainted[from_thread])
        if write_predicate:
            write_predicate(m, fine)
            m.mark(m.slots[predicate], None)

    return run


def by_warp(m: "Machine", value: Array) -> Array:
    """(warps, 32) of one value per thread."""
    return np.ascontiguousarray(m.full(value)).reshape(-1, LANES)


@rule(r"redux\.sync\.(?:(add|min|max)\.([us]32)|(and|or|xor)\.(b32))", PARALLEL + "redux.sync", strict=True)
def reduced(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    name, kind = (g for g in found.groups() if g)
    function = REDUCE[name]
    to, source, members = i.operands
    read, write, who = machine.reader(source, kind), machine.writer(to, kind), machine.reader(members, "u32")

    def run(m: "Machine") -> None:
        whole_warps(m, who(m.regs))
        values = by_warp(m, read(m.regs))
        write(m, np.repeat(function.reduce(values, axis=1, dtype=values.dtype), LANES))

    return run


@rule(r"redux\.sync\.(min|max)(\.abs)?(\.NaN)?\.f32", PARALLEL + "redux.sync (.f32)", strict=True)
def reduced_float(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    function = {"min": np.fmin, "max": np.fmax}[found[1]]
    to, source, members = i.operands
    read, write, who = machine.reader(source, "f32"), machine.writer(to, "f32"), machine.reader(members, "u32")

    def run(m: "Machine") -> None:
        whole_warps(m, who(m.regs))
        values = by_warp(m, read(m.regs))
        values = np.abs(values) if found[2] else values
        extreme = function.reduce(values, axis=1)
        if found[3]:
            extreme = np.where(np.isnan(values).any(1), np.float32(np.nan), extreme)
        write(m, np.repeat(extreme, LANES))

    return run


@rule(r"vote\.sync\.(all|any|uni)\.pred", PARALLEL + "vote.sync", strict=True)
@rule(r"vote\.sync\.(ballot)\.b32", PARALLEL + "vote.sync", strict=True)
def vote(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    how = found[1]
    to, source, members = i.operands
    name = str(source)
    read, who = machine.reader(name.lstrip("!"), "pred"), machine.reader(members, "u32")
    write = machine.writer(to, "b32" if how == "ballot" else "pred")

    def run(m: "Machine") -> None:
        whole_warps(m, who(m.regs))
        values = by_warp(m, read(m.regs))
        values = ~values if name.startswith("!") else values
        if how == "ballot":
            write(m, np.repeat((values * (np.uint32(1) << np.arange(LANES, dtype=np.uint32))).sum(1).astype(np.uint32), LANES))
            return
        every, some = values.all(1), values.any(1)
        write(m, np.repeat({"all": every, "any": some, "uni": every | ~some}[how], LANES))

    return run


@rule(r"activemask\.b32", PARALLEL + "activemask")
def active(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    write = machine.writer(i.operands[0], "b32")

    def run(m: "Machine") -> None:
        values = m.mask.reshape(-1, LANES) * (np.uint32(1) << np.arange(LANES, dtype=np.uint32))
        write(m, np.repeat(values.sum(1).astype(np.uint32), LANES))

    return run


@rule(r"elect\.sync", PARALLEL + "elect.sync (here always the first lane)", own=True)
def elect(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    to, _, predicate = str(i.operands[0]).partition("|")
    write, write_predicate = machine.writer(to, "b32"), machine.writer(predicate, "pred")
    who = machine.reader(i.operands[1], "u32")

    def run(m: "Machine") -> None:
        whole_warps(m, who(m.regs))
        write(m, np.uint32(0))
        write_predicate(m, np.arange(m.threads) % LANES == 0)
        for name in (to, predicate):
            if name in m.slots:
                m.mark(m.slots[name], None)

    return run


@rule(r"bar\.warp\.sync", PARALLEL + "bar.warp.sync (lanes of a warp run in step here)", writes=False, strict=True)
def warp_barrier(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    who = machine.reader(i.operands[0], "u32")
    return lambda m: whole_warps(m, who(m.regs))
