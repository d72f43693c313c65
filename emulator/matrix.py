"""Matrix instructions of one warp: ldmatrix, stmatrix and mma.sync, whose operands lie spread over the registers of the warp.

Sources: PTX ISA 9.0, 9.7.14.5 "Matrix multiply-accumulate operation using mma instruction" (fragments, mma, ldmatrix, stmatrix).
Products of floating-point numbers are exact here and their sum is rounded once; hardware may cut off several times.
"""

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from .exchange import whole_warps
from .parse import Instruction, Unsupported
from .rules import Run, rule
from .transfers import addressed, as_list
from .values import Array, narrowed

if TYPE_CHECKING:
    from .machine import Machine

WARP = "Warp Level Matrix Multiply-Accumulate Instructions: "
#: Of each lane: the row of its group, and its place in the group.
LANE = np.arange(32)
GROUP, IN_GROUP = LANE // 4, LANE % 4
#: Entries of an operand in one register, by their type.
PER_REGISTER = {"s8": 4, "u8": 4, "f16": 2, "bf16": 2, "tf32": 1}
ELEMENTS = r"(s8|u8|f16|bf16|tf32)"


def numbers(bits: Array, kind: str) -> Array:
    """Registers (..., n) uint32 as their entries (..., n * per register) in float64."""
    bits = np.ascontiguousarray(bits)
    if kind in ("s8", "u8"):
        return bits.view(np.int8 if kind == "s8" else np.uint8).astype(np.float64)
    if kind == "f16":
        return bits.view(np.float16).astype(np.float64)
    if kind == "bf16":
        return (bits.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    # tf32: the unit reads 19 bits of a float32.
    return (bits.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)


@rule(r"ldmatrix\.sync\.aligned\.m8n8\.x([124])(\.trans)?\.shared(?:::cta)?\.b16", WARP + "ldmatrix", own=True)
def load_matrix(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    count, transposed = int(found[1]), bool(found[2])
    names, address = as_list(i.operands[0]), addressed(i.operands[1], machine)
    writers, slots = [machine.writer(n, "b32") for n in names], [machine.slots[n] for n in names]

    def turned(entries: Array) -> Array:
        """(warps, count, 8 rows, 8 entries) as one entry pair per lane: (warps, count, 32, 2)."""
        return np.ascontiguousarray(entries.swapaxes(2, 3) if transposed else entries).reshape(len(entries), count, 32, 2)

    def run(m: "Machine") -> None:
        whole_warps(m)
        lanes = m.lanes().reshape(-1, 32)
        rows = lanes[:, : 8 * count].ravel()
        offsets = m.shared.offsets(address(m)[rows], 16)
        granules = m.shared.granules(offsets, 16)
        m.shared.note_read(granules, m.warp_of[rows])
        entries = m.shared.views[2][(offsets // 2)[:, None] + np.arange(8)].reshape(len(lanes), count, 8, 8)
        pairs = turned(entries).view(np.uint32).reshape(len(lanes), count, 32)
        held = None
        if m.shared.any_undefined:
            flags = m.shared.undefined[granules].reshape(len(rows), -1)
            spread = np.repeat(flags, 8 // flags.shape[1], axis=1) if flags.shape[1] <= 8 else flags.reshape(len(rows), 8, -1).any(2)
            held = turned(spread.reshape(len(lanes), count, 8, 8)).any(3)
        for n, (write, slot) in enumerate(zip(writers, slots, strict=True)):
            whole = np.zeros(m.threads, np.uint32)
            whole[lanes.ravel()] = pairs[:, n].ravel()
            write(m, whole)
            tainted = None
            if held is not None and held[:, n].any():
                tainted = np.zeros(m.threads, bool)
                tainted[lanes.ravel()] = held[:, n].ravel()
            m.mark(slot, tainted)

    return run


@rule(r"stmatrix\.sync\.aligned\.m8n8\.x([124])(\.trans)?\.shared(?:::cta)?\.b16", WARP + "stmatrix", writes=False, own=True)
def store_matrix(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    count, transposed = int(found[1]), bool(found[2])
    names = as_list(i.operands[1])
    address, readers = addressed(i.operands[0], machine), [machine.reader(n, "b32") for n in names]
    slots = [machine.place(n, "b32") for n in names]

    def run(m: "Machine") -> None:
        whole_warps(m)
        lanes = m.lanes().reshape(-1, 32)
        rows = lanes[:, : 8 * count].ravel()
        pairs = np.stack([m.full(read(m.regs))[lanes] for read in readers], 1)  # (warps, matrices, lanes)
        entries = np.ascontiguousarray(pairs).view(np.uint16).reshape(len(lanes), count, 8, 8)
        held = None
        if (tainted := m.undefined_in(slots)) is not None:
            held = np.broadcast_to(tainted[lanes][:, None, :, None], (len(lanes), count, 32, 2)).reshape(len(lanes), count, 8, 8)
        if transposed:
            entries = entries.swapaxes(2, 3)
            held = None if held is None else held.swapaxes(2, 3)
        words = np.ascontiguousarray(entries).view(np.uint64).reshape(len(rows), 2)
        addresses = address(m)[rows]
        m.shared.offsets(addresses, 16)
        row_undefined = None if held is None else held.reshape(len(rows), 8).any(1)
        m.shared.store(addresses, [words[:, 0], words[:, 1]], 8, m.warp_of[rows], row_undefined)

    return run


class Fragments:
    """Where the entries of A (rows, k), B (k, 8) and C (rows, 8) of a warp's 16-row product lie in its registers.

    per: entries in a register. k: columns of A. Each index array is (32 lanes, registers, entries of a register).
    """

    def __init__(self, per: int, k: int) -> None:
        halves = k // (4 * per)  # 1 or 2 registers side by side along k
        column = IN_GROUP[:, None] * per + np.arange(per)
        self.a_row = np.stack([GROUP + 8 * (r % 2) for r in range(2 * halves)], 1)[:, :, None]
        self.a_column = np.stack([column + 4 * per * (r // 2) for r in range(2 * halves)], 1)
        self.b_k = np.stack([column + 4 * per * r for r in range(halves)], 1)
        self.c_row = np.stack([GROUP, GROUP, GROUP + 8, GROUP + 8], 1)
        self.c_column = np.stack([IN_GROUP * 2, IN_GROUP * 2 + 1] * 2, 1)
        self.per, self.k, self.halves = per, k, halves

    def left(self, entries: Array) -> Array:
        """(warps, 32, registers * per) -> A (warps, 16, k)."""
        found = np.empty((len(entries), 16, self.k), entries.dtype)
        found[:, self.a_row, self.a_column] = entries.reshape(len(entries), 32, 2 * self.halves, self.per)
        return found

    def right(self, entries: Array) -> Array:
        """(warps, 32, registers * per) -> B (warps, k, 8)."""
        found = np.empty((len(entries), self.k, 8), entries.dtype)
        found[:, self.b_k, GROUP[:, None, None]] = entries.reshape(len(entries), 32, self.halves, self.per)
        return found


def gathered(m: "Machine", readers: list[Any]) -> Array:
    """(warps, 32, registers) of the registers' values."""
    return np.stack([m.full(read(m.regs)) for read in readers], 1).reshape(-1, 32, len(readers))


def gathered_flags(m: "Machine", slots: list[int]) -> Array:
    """(warps, 32, registers): which are undefined."""
    found = [m.undefined_in([slot]) for slot in slots]
    return np.stack([np.zeros(m.threads, bool) if f is None else f != 0 for f in found], 1).reshape(-1, 32, len(slots))


@rule(rf"mma\.sync\.aligned\.m16n8k(\d+)\.row\.col(\.satfinite)?\.(s32|f32|f16)\.{ELEMENTS}\.{ELEMENTS}\.\3", WARP + "mma", own=True)
def multiply(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    """D = A @ B + C. The sum is exact for integers; float32 and float16 sums are rounded once."""
    k, clamped, result, left_kind, right_kind = int(found[1]), bool(found[2]), found[3], found[4], found[5]
    per = PER_REGISTER[left_kind]
    integer = left_kind in ("s8", "u8")
    if k not in (4 * per, 8 * per) or integer != (result == "s32") or (not integer and left_kind != right_kind):
        raise Unsupported(f"shape or types of {i.opcode}")
    layout = Fragments(per, k)
    kind = {"s32": "s32", "f32": "f32", "f16": "b32"}[result]
    names = [list(as_list(o)) for o in i.operands]
    writers = [machine.writer(n, kind) for n in names[0]]
    a, b = ([machine.reader(n, "b32") for n in names[part]] for part in (1, 2))
    c = [machine.reader(n, kind) for n in names[3]]
    slots = [[machine.place(n, "b32") for n in part] for part in names]

    def spread(m: "Machine") -> list[Array | None]:
        """Of each result register, where it is undefined: a row or a column of the product that met an undefined entry."""
        if all(m.undefined[slot] is None for part in slots[1:] for slot in part):
            return [None] * len(slots[0])
        flags = [np.repeat(gathered_flags(m, part), per, axis=2) for part in slots[1:3]]
        product = layout.left(flags[0]).any(2)[:, :, None] | layout.right(flags[1]).any(1)[:, None, :]
        entries = product[:, layout.c_row, layout.c_column]
        if result == "f16":
            entries = entries.reshape(len(entries), 32, 2, 2).any(3)
        entries = entries | gathered_flags(m, slots[3])
        return [entries[:, :, n].ravel() for n in range(len(slots[0]))]

    def run(m: "Machine") -> None:
        whole_warps(m)
        tainted = spread(m)
        left = layout.left(numbers(gathered(m, a), left_kind))
        right = layout.right(numbers(gathered(m, b), right_kind))
        product = (left @ right)[:, layout.c_row, layout.c_column]
        addend = gathered(m, c)
        if result == "f16":
            product += numbers(addend, "f16").reshape(product.shape)
            found = narrowed(product, "f16").reshape(len(product), 32, 4).view(np.uint32)
        elif integer:
            total = product.astype(np.int64) + addend
            found = (total.clip(-(2**31), 2**31 - 1) if clamped else total).astype(np.int32)
        else:
            found = (product + addend).astype(np.float32)
        for n, (write, slot) in enumerate(zip(writers, slots[0], strict=True)):
            write(m, np.ascontiguousarray(found[:, :, n]).ravel())
            m.mark(slot, tainted[n])

    return run
