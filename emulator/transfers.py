"""Loads and stores by threads.

Sources: PTX ISA 9.0, 9.7.9.8 "ld", 9.7.9.9 "ld.global.nc", 9.7.9.11 "st", 9.7.9.1 "Cache Operators", 6.4.3 "Vectors as Operands".
"""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .parse import Address, Instruction, Unsupported
from .rules import Run, rule
from .values import Array, bits_of, dtype

if TYPE_CHECKING:
    from .machine import Machine

MOVE = "Data Movement and Conversion Instructions: "
#: Hints to caches, which change no result: cache operators, eviction priorities, prefetch sizes, cache policies.
HINTS = r"(?:\.(?:ca|cg|cs|cv|lu|wb|wt))?(?:\.L1::\w+)?(?:\.L2::cache_hint)?(?:\.L2::(?:64|128|256)B)?"
SHARED = r"shared(?:::cta)?"
CLUSTER = r"shared(?:::cta|::cluster)?"


def addressed(address: Any, machine: "Machine") -> Callable[["Machine"], Array]:
    """machine -> one address per thread, int64."""
    if not isinstance(address, Address):
        raise Unsupported(f"{address} is no address")
    slot = machine.place(address.base, "u32")
    offset = address.offset
    return lambda m: m.full(m.regs[slot]).astype(np.int64) + offset


def as_list(operand: Any) -> list[str]:
    return list(operand) if isinstance(operand, tuple) and not isinstance(operand, Address) else [operand]


@rule(r"ld\.param\.([busf](?:8|16|32|64))", MOVE + "ld (.param)")
def parameter(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    to, address = i.operands
    kind = found[1]
    assert isinstance(address, Address)
    at, _ = machine.kernel.parameters[address.base]
    write = machine.writer(to, kind)
    size = np.dtype(dtype(kind)).itemsize
    value = np.frombuffer(machine.parameters, np.uint8)[at + address.offset :][:size].copy().view(dtype(kind))[0]
    return lambda m: write(m, value)


@rule(rf"ld(?:\.weak)?\.(global)(?:\.nc)?{HINTS}(?:\.(v2|v4|v8))?\.([busf](?:8|16|32|64))", MOVE + "ld, ld.global.nc (.global)")
@rule(r"ld\.(?:volatile|relaxed|acquire)(?:\.(?:cta|gpu|sys))?\.(global)(?:\.(v2|v4))?\.([busf](?:8|16|32|64))", MOVE + "ld (strong)")
@rule(rf"ld(?:\.volatile)?\.({SHARED})(?:\.(v2|v4))?\.([busf](?:8|16|32|64))", MOVE + "ld (.shared)", own=True)
def load(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    space, _, kind = found.groups()
    names, address = as_list(i.operands[0]), addressed(i.operands[1], machine)
    writers = [machine.writer(n, kind) for n in names]
    slots = [machine.slots[n] for n in names if n != "_"]
    to = dtype(kind)
    width = np.dtype(to).itemsize
    acquires = "acquire" in i.opcode

    def write_all(m: "Machine", lanes: Array, values: list[Array]) -> None:
        for write, value in zip(writers, values, strict=True):
            whole = np.zeros(m.threads, value.dtype)
            whole[lanes] = value
            write(m, whole.view(to))

    def from_global(m: "Machine") -> None:
        lanes = m.lanes()
        addresses = address(m)[lanes]
        if acquires:
            m.memory.subscribe(addresses)
        write_all(m, lanes, m.memory.load(addresses, len(names), width, m.warp_of[lanes]))

    def from_shared(m: "Machine") -> None:
        lanes = m.lanes()
        values, undefined = m.shared.load(address(m)[lanes], len(names), width, m.warp_of[lanes])
        write_all(m, lanes, values)
        tainted = None
        if undefined is not None and undefined.any():
            tainted = np.zeros(m.threads, bool)
            tainted[lanes] = undefined
        for slot in slots:
            m.mark(slot, tainted)

    return from_global if space == "global" else from_shared


@rule(rf"st(?:\.weak)?\.(global){HINTS}(?:\.(v2|v4|v8))?\.([busf](?:8|16|32|64))", MOVE + "st (.global)", writes=False, strict=True)
@rule(
    r"st\.(?:volatile|relaxed|release)(?:\.(?:cta|gpu|sys))?\.(global)(?:\.(v2|v4))?\.([busf](?:8|16|32|64))",
    MOVE + "st (strong)", writes=False, strict=True,
)  # fmt: skip
@rule(rf"st(?:\.volatile)?\.({SHARED})(?:\.(v2|v4))?\.([busf](?:8|16|32|64))", MOVE + "st (.shared)", writes=False, own=True)
def store(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    space, _, kind = found.groups()
    address, names = addressed(i.operands[0], machine), as_list(i.operands[1])
    bits = f"b{bits_of(kind)}"
    readers = [machine.reader(n, bits) for n in names]
    slots = [machine.place(n, bits) for n in names]
    width = bits_of(kind) // 8
    releases = "release" in i.opcode

    def values(m: "Machine", lanes: Array) -> list[Array]:
        return [m.full(read(m.regs))[lanes] for read in readers]

    def to_global(m: "Machine") -> None:
        lanes = m.lanes()
        addresses = address(m)[lanes]
        m.memory.store(addresses, values(m, lanes), width, m.warp_of[lanes])
        if releases:
            m.memory.publish(addresses, m.warp_of[lanes])

    def to_shared(m: "Machine") -> None:
        lanes = m.lanes()
        undefined = m.undefined_in(slots)
        m.shared.store(address(m)[lanes], values(m, lanes), width, m.warp_of[lanes], None if undefined is None else undefined[lanes] != 0)

    return to_global if space == "global" else to_shared


@rule(r"(?:prefetch\.global\.L[12]|prefetchu\.L1|discard\.global\.L2|applypriority\.\S+)", MOVE + "prefetch", writes=False)
@rule(
    r"griddepcontrol\.(?:wait|launch_dependents)", "Parallel Synchronization and Communication Instructions: griddepcontrol", writes=False
)
@rule(r"nanosleep\.u32", "Miscellaneous Instructions: nanosleep", writes=False)
def nothing(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    """Hints, and waits for other launches, all of which have ended here."""
    return lambda m: None


@rule(r"createpolicy\.fractional\.L2::\w+(?:\.L2::\w+)?\.b64", MOVE + "createpolicy")
def policy(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    write = machine.writer(i.operands[0], "b64")
    return lambda m: write(m, np.uint64(0))
