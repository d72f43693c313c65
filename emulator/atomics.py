"""Atomic operations and fences.

Sources: PTX ISA 9.0, 9.7.13.4 "membar / fence", 9.7.13.5 "atom", 9.7.13.6 "red", 8.8 "Release and Acquire Patterns".
An atomic operation with .release publishes what its warp did and knew; one with .acquire at that address learns it. Fences of
a scope count as both for the atomic operations beside them only through the instruction's own modifiers, which Triton always writes.
"""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from .parse import Instruction, Unsupported
from .rules import Run, rule
from .transfers import SHARED, addressed, as_list
from .values import PACKED, Array, bits_of, dtype, halves, joined, narrowed, widened

if TYPE_CHECKING:
    from .machine import Machine

PARALLEL = "Parallel Synchronization and Communication Instructions: "
SCOPE = r"(?:\.(?:cta|cluster|gpu|sys))?"
ORDER = rf"{SCOPE}(?:\.(relaxed|acquire|release|acq_rel))?{SCOPE}"
OPERATIONS = r"(add|min|max|and|or|xor|exch|cas|inc|dec)(?:\.noftz)?"
KIND = r"([busf](?:16|32|64)|bf16|f16x2|bf16x2)"

INTEGERS: dict[str, Callable[..., Array]] = {
    "add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
    "exch": lambda old, new: new, "cas": lambda old, compare, new: np.where(old == compare, new, old),
    "inc": lambda old, most: np.where(old >= most, old.dtype.type(0), old + old.dtype.type(1)),
    "dec": lambda old, most: np.where((old == 0) | (old > most), most, old - old.dtype.type(1)),
}  # fmt: skip


def operation(name: str, kind: str) -> Callable[..., Array]:
    """(old bits, operand bits ...) -> new bits."""
    if kind in PACKED:
        part = operation(name, PACKED[kind])
        return lambda old, new: joined(*(part(a, b) for a, b in zip(halves(old, "u16"), halves(new, "u16"), strict=True)))
    if kind in ("f16", "bf16") and name == "add":
        return lambda old, new: narrowed(widened(old, kind) + widened(new, kind), kind)
    if kind in ("f16", "bf16") and name in ("exch", "cas"):
        return INTEGERS[name]
    if kind in ("f16", "bf16") or (kind in ("f32", "f64") and name not in ("add", "exch")):
        raise Unsupported(f"atomic {name} of {kind}")
    to, bits = dtype(kind), dtype(f"b{bits_of(kind)}")
    return lambda *operands: np.asarray(INTEGERS[name](*(o.view(to) for o in operands))).astype(to).view(bits)


@rule(rf"atom{ORDER}\.(global){ORDER}\.{OPERATIONS}\.{KIND}", PARALLEL + "atom", strict=True)
@rule(rf"atom{ORDER}\.({SHARED}){ORDER}\.{OPERATIONS}\.{KIND}", PARALLEL + "atom (.shared)", strict=True)
@rule(rf"red{ORDER}\.(global){ORDER}\.{OPERATIONS}\.{KIND}", PARALLEL + "red", writes=False, strict=True)
def atomic(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    before, space, after, name, kind = found.groups()
    order = before or after or "relaxed"
    operands = list(i.operands)
    to = None if i.opcode.startswith("red") else operands.pop(0)
    address = addressed(operands[0], machine)
    bits = f"b{bits_of(kind)}"
    if len(as_list(operands[1])) > 1:
        raise Unsupported("vectors of atomic operations")
    readers = [machine.reader(o, bits) for o in operands[1:]]
    function, width = operation(name, kind), bits_of(kind) // 8
    write = None if to is None else machine.writer(to, bits)

    def run(m: "Machine") -> None:
        lanes = m.lanes()
        addresses = address(m)[lanes]
        warps = m.warp_of[lanes]
        values = [m.full(read(m.regs))[lanes] for read in readers]
        if space == "global":
            if order in ("acquire", "acq_rel"):
                m.memory.subscribe(addresses)
            places, view = m.memory.atomic(addresses, width, warps), m.memory.views[width]
        else:
            offsets = m.shared.offsets(addresses, width)
            m.shared.note_read(m.shared.granules(offsets, width), warps)
            places, view = offsets // width, m.shared.views[width]
        old = np.zeros(m.threads, view.dtype)
        # Threads come in an order that the seed decides: nothing may depend on it.
        for n in m.random.permutation(len(lanes)):
            held = view[places[n] : places[n] + 1]
            old[lanes[n]] = held[0]
            view[places[n]] = function(held, *(v[n : n + 1] for v in values))[0]
        if space == "global" and order in ("release", "acq_rel"):
            m.memory.publish(addresses, warps)
        if write:
            write(m, old)

    return run


@rule(r"(?:fence(?:\.acq_rel|\.sc)?|membar)\.(?:cta|cluster|gpu|gl|sys)", PARALLEL + "membar, fence", writes=False)
@rule(r"fence\.mbarrier_init\.release\.cluster", PARALLEL + "fence (.mbarrier_init)", writes=False)
def fence(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    return lambda m: None
