"""Products of warp groups (wgmma): 128 threads multiply matrices in shared memory while they go on.

Sources: PTX ISA 9.0, 9.7.15.5 "... using wgmma.mma_async instruction" (register fragments, shared memory layout, matrix descriptor format),
9.7.15.7 "Asynchronous wgmma Proxy Operations" (wgmma.fence, commit_group, wait_group), 9.7.15.4 "Async Proxy".
"""

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from .exchange import whole_warps
from .faults import Fault
from .matrix import PER_REGISTER, Fragments, numbers
from .parse import Instruction, Unsupported
from .rules import Run, rule
from .values import Array

if TYPE_CHECKING:
    from .machine import Machine

SECTION = "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions: "
#: Bytes of K that one instruction multiplies, whatever the type.
STEP = 32
#: Swizzle mode of a descriptor (bits 62, 63) -> bytes of its pattern; 0 is none.
PATTERNS = {0: 0, 1: 128, 2: 64, 3: 32}


def swizzled(address: Array, pattern: int) -> Array:
    """Where the 16 bytes at `address` lie in the pattern of 128, 64 or 32 bytes: bits 4 to 6, 5 or 4 are exchanged by those from 7 on."""
    return address ^ ((address >> 7 & (pattern // 16 - 1)) << 4)


def described(descriptor: int, pattern: int, extent: int, mn_major: bool) -> Array:
    """Addresses of the pieces of 16 bytes of an operand of `extent` rows (M or N) and STEP bytes of K per row.

    K-major: (extent, 2). MN-major, for entries of 16 bits: (16 of K, extent / 8). pattern: bytes of the swizzle, 0 for none.
    """
    start, leading, stride = ((descriptor >> at & 0x3FFF) << 4 for at in (0, 16, 32))
    if descriptor >> 49 & 7:
        raise Unsupported("a matrix descriptor with a base offset")
    if pattern == 0 and mn_major:
        raise Unsupported("an MN-major operand without a swizzle")
    row = np.arange(extent)[:, None]
    if pattern == 0:
        return start + row // 8 * stride + row % 8 * 16 + np.arange(2) * leading
    if mn_major:
        k, piece, whole = np.arange(16)[:, None], np.arange(extent // 8), pattern // 16
        return swizzled(start + piece % whole * 16 + piece // whole * leading + k % 8 * pattern + k // 8 * stride, pattern)
    return swizzled(start + row // 8 * stride + row % 8 * pattern + np.arange(2) * 16, pattern)


class Operand:
    """An operand in shared memory as the matrix unit reads it for `warps`.

    entries: (extent, k) float64. undefined: (extent, k) bool or None. granules: of memory that it lies in.
    """

    def __init__(self, m: "Machine", descriptor: int, pattern: int, warps: Array, extent: int, mn_major: bool, kind: str) -> None:
        offsets = m.shared.offsets(described(descriptor, pattern, extent, mn_major).ravel(), 16)
        self.granules = m.shared.granules(offsets, 16)
        for warp in warps:
            m.shared.note_read(self.granules, np.full(len(offsets), warp), engine=True)
        held = m.shared.views[1][offsets[:, None] + np.arange(16)]
        rows = 16 if mn_major else extent
        self.entries = numbers(held.reshape(rows, -1).view(np.uint32), kind)
        self.undefined: Array | None = None
        if m.shared.any_undefined and m.shared.undefined[self.granules].any():
            flags = m.shared.undefined[self.granules].reshape(rows, -1)
            self.undefined = np.repeat(flags, self.entries.shape[1] // flags.shape[1], axis=1)
        if mn_major:
            self.entries = self.entries.T
            self.undefined = None if self.undefined is None else self.undefined.T


class Products:
    """The products on their way: registers get the sums, and shared memory is free again, when they are waited for."""

    def __init__(self) -> None:
        self.sums: dict[int, tuple[Array, Array | None]] = {}  # slot -> values, where they are undefined
        self.open: list[tuple[list[int], list[tuple[Array, int]]]] = []
        self.groups: list[list[tuple[list[int], list[tuple[Array, int]]]]] = []
        self.fenced: list[Any] | None = None  # the registers' values at the last wgmma.fence

    def add(self, m: "Machine", slots: list[int], sums: list[tuple[Array, Array | None]], used: list[tuple[Array, int]]) -> None:
        for slot, total in zip(slots, sums, strict=True):
            self.sums[slot] = total
            m.undefined[slot] = m.all_undefined
            m.in_flight.add(slot)
        for granules, _ in used:
            m.shared.in_use[granules] += 1
        self.open.append((slots, used))

    def commit(self) -> None:
        self.groups.append(self.open)
        self.open = []

    def wait(self, m: "Machine", most: int) -> None:
        while len(self.groups) > most:
            for slots, used in self.groups.pop(0):
                later = {s for group in [*self.groups, self.open] for others, _ in group for s in others}
                for slot in (set(slots) & self.sums.keys()) - later:
                    values, undefined = self.sums.pop(slot)
                    m.regs[slot] = values.view(m.start[slot].dtype)
                    m.undefined[slot] = None if undefined is None else np.where(undefined != 0, np.uint8(255), np.uint8(0))
                    m.in_flight.discard(slot)
                    if self.fenced is not None:
                        self.fenced[slot] = m.regs[slot]  # what the unit itself wrote needs no fence
                for granules, warp in used:
                    m.shared.in_use[granules] -= 1
                    for w in range(warp, warp + 4):  # the product may have read until now
                        m.shared.read[w, granules] = m.clocks.own[w]


def whole_program(m: "Machine") -> None:
    whole_warps(m)
    if m.mask is not m.everybody:
        raise Unsupported("warp groups that part")
    if m.threads % 128:
        raise Fault("divergence", f"a warp group has 128 threads, the program {m.threads}")


@rule(r"wgmma\.fence\.sync\.aligned", SECTION + "wgmma.fence", writes=False)
def fence(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    def run(m: "Machine") -> None:
        whole_program(m)
        m.products.fenced = list(m.regs)

    return run


@rule(r"wgmma\.commit_group\.sync\.aligned", SECTION + "wgmma.commit_group", writes=False)
def commit(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    def run(m: "Machine") -> None:
        whole_program(m)
        m.products.commit()

    return run


@rule(r"wgmma\.wait_group\.sync\.aligned", SECTION + "wgmma.wait_group", writes=False)
def wait(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    most = int(str(i.operands[0]), 0)

    def run(m: "Machine") -> None:
        whole_program(m)
        m.products.wait(m, most)

    return run


@rule(
    r"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k(\d+)\.(?:(s32)\.(s8|u8)\.(s8|u8)|(f32)\.(f16|bf16|tf32)\.\7)(\.satfinite)?",
    SECTION + "wgmma.mma_async", own=True,
)  # fmt: skip
def multiply(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    n, k = int(found[1]), int(found[2])
    result, left_kind, right_kind = (found[3], found[4], found[5]) if found[3] else (found[6], found[7], found[7])
    if k * 4 // PER_REGISTER[left_kind] != STEP or found[8]:
        raise Unsupported(f"shape or modifier of {i.opcode}")
    sums, a, b, scale, *rest = i.operands
    if rest[:2] not in ([], ["1", "1"]):
        raise Unsupported("wgmma with a negated operand")
    turned = [flag == "1" for flag in rest[2:]]
    from_registers = isinstance(a, tuple)
    a_turned, b_turned = (False, *turned) if from_registers and turned else (turned or [False, False])
    readers, slots = [machine.reader(s, result) for s in sums], [machine.slots[s] for s in sums]
    a_slots = [machine.slots[name] for name in a] if from_registers else []
    a_read: Any = [machine.reader(name, "b32") for name in a] if from_registers else machine.reader(a, "b64")
    b_read, scale_read = machine.reader(b, "b64"), machine.reader(scale, "pred")
    must = [machine.place(o, "b64") for o in ([] if from_registers else [a]) + [b]] + [machine.place(scale, "pred")]
    # D's fragment: entry j of a thread (PTX ISA 9.0, 9.7.15.5.1).
    thread, j = np.arange(128), np.arange(n // 2)
    rows = (thread // 32 * 16 + thread % 32 // 4)[:, None] + j % 4 // 2 * 8
    columns = (thread % 4)[:, None] * 2 + j // 4 * 8 + j % 2
    layout = Fragments(PER_REGISTER[left_kind], k)

    def shared_operand(m: "Machine", descriptors: Array, lanes: Array, extent: int, mn_major: bool, kind: str) -> Operand:
        if (descriptors != descriptors[0]).any():
            raise Fault("divergence", "the threads of a warp group have different matrix descriptors")
        descriptor = int(descriptors[0])
        return Operand(m, descriptor, PATTERNS[descriptor >> 62], np.unique(m.warp_of[lanes]), extent, mn_major, kind)

    def held(m: "Machine", slot: int, read: Any) -> tuple[Array, Array | None]:
        """The value that a product adds to, and where it is undefined; of a product on its way the sum to be."""
        return m.products.sums[slot] if slot in m.products.sums else (m.full(read(m.regs)), m.undefined[slot])

    def run(m: "Machine") -> None:
        whole_program(m)
        m.check_defined(must)
        adds = m.full(scale_read(m.regs))
        _check_fence(m, slots if adds.any() else [], a_slots)
        before = [held(m, slot, read) for slot, read in zip(slots, readers, strict=True)]
        totals = [np.zeros(m.threads, np.int32 if result == "s32" else np.float32) for _ in slots]
        flags = np.zeros((len(slots), m.threads), bool)
        used = []
        for group in np.arange(m.threads).reshape(-1, 128):
            if from_registers:
                raw = np.stack([m.full(read(m.regs))[group] for read in a_read], 1).reshape(4, 32, len(a_read))
                left, left_flags = layout.left(numbers(raw, left_kind)).reshape(64, k), None
                m.check_defined(a_slots)
            else:
                one = shared_operand(m, m.full(a_read(m.regs))[group], group, 64, a_turned, left_kind)
                left, left_flags = one.entries, one.undefined
                used.append((one.granules, int(m.warp_of[group[0]])))
            other = shared_operand(m, m.full(b_read(m.regs))[group], group, n, b_turned, right_kind)
            used.append((other.granules, int(m.warp_of[group[0]])))
            product = left @ other.entries.T
            for at in range(len(slots)):
                old = np.where(adds[group], before[at][0][group], 0)
                if result == "s32":
                    totals[at][group] = (product[rows[:, at], columns[:, at]].astype(np.int64) + old).astype(np.int32)
                else:
                    totals[at][group] = product[rows[:, at], columns[:, at]] + old
                if before[at][1] is not None:
                    flags[at][group] = (np.asarray(before[at][1])[group] != 0) & adds[group]
            for entries, by_row in ((left_flags, True), (other.undefined, False)):
                if entries is not None:
                    spread = entries.any(1)
                    flags[:, group] |= (spread[rows] if by_row else spread[columns]).T
        sums = [(total, flag if flag.any() else None) for total, flag in zip(totals, flags, strict=True)]
        m.products.add(m, slots, sums, used)

    return run


def _check_fence(m: "Machine", slots: list[int], a_slots: list[int]) -> None:
    """wgmma.fence orders the registers' other accesses before the product: it comes first, and again after they are written."""
    fenced = m.products.fenced
    if fenced is None:
        raise Fault("fence", "wgmma.mma_async without wgmma.fence before it")
    for slot in [*slots, *a_slots]:
        if slot not in m.in_flight and m.regs[slot] is not fenced[slot]:
            raise Fault("fence", f"register {m.name_of(slot)} was written after the last wgmma.fence")
