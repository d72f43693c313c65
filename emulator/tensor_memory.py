"""Blackwell's tensor memory: 128 lanes of up to 512 columns of 32 bits, from which and into which its matrix unit adds.

The unit works on its own: what it writes is there when the mbarrier that it was told to arrive at says so.
Sources: PTX ISA 9.0, 9.7.16 "TensorCore 5th Generation Family Instructions": 9.7.16.1 "Tensor Memory", 9.7.16.4 "Matrix Descriptors",
9.7.16.6 "Memory Consistency Model", 9.7.16.7 (alloc), 9.7.16.8 (ld, st, wait), 9.7.16.10 (mma), 9.7.16.12 (commit).
"""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .exchange import whole_warps
from .faults import Fault
from .mbarriers import found_barrier, one
from .memory import Memory
from .parse import Instruction, Unsupported
from .rules import Run, rule
from .transfers import CLUSTER, addressed, as_list
from .values import Array
from .warpgroup import Operand

if TYPE_CHECKING:
    from .machine import Machine

SECTION = "TensorCore 5th Generation Family Instructions: "
LANES, COLUMNS = 128, 512
#: Bits 7 to 9 and 10 to 12 of an instruction descriptor of kind f16.
KINDS = {0: "f16", 1: "bf16"}
#: Bits 61 to 63 of a shared memory descriptor -> bytes of the swizzle.
PATTERNS = {0: 0, 2: 128, 4: 64, 6: 32}


class TensorMemory:
    """What one program has allocated. columns: how many."""

    def __init__(self, m: "Machine", columns: int) -> None:
        self.columns = columns
        self.words = Memory(0, LANES * COLUMNS * 4, 4, m.clocks)
        self.stored = np.zeros(m.warps, bool)  # by warp: whether it has stores that it has not waited for
        self.loaded: list[tuple[Array, list[int], list[Array]]] = []
        self.products: list[Callable[[Machine], None]] = []

    def places(self, lane: Array, column: Array) -> Array:
        """Byte offsets of words."""
        if (column >= self.columns).any() or (lane >= LANES).any():
            raise Fault("bounds", f"column {column.max()} of {self.columns} allocated, lane {lane.max()} of {LANES}")
        return (lane * COLUMNS + column) * 4


def allocated(m: "Machine") -> TensorMemory:
    if m.tensor_memory is None:
        raise Fault("bounds", "tensor memory is used that was not allocated, or was given back")
    return m.tensor_memory


@rule(rf"tcgen05\.alloc\.cta_group::1\.sync\.aligned\.{CLUSTER}\.b32", SECTION + "tcgen05.alloc", writes=False, strict=True)
def allocate(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    address, columns = addressed(i.operands[0], machine), int(str(i.operands[1]), 0)
    if columns not in (32, 64, 128, 256, 512):
        raise Unsupported(f"{columns} columns: no power of two from 32 to 512")

    def run(m: "Machine") -> None:
        whole_warps(m)
        lanes = m.lanes()
        if len(lanes) != 32:
            raise Fault("divergence", "tensor memory is allocated by one warp")
        if m.tensor_memory is not None:
            raise Unsupported("a second allocation of tensor memory")
        m.tensor_memory = TensorMemory(m, columns)
        m.shared.store(address(m)[lanes[:1]], [np.zeros(1, np.uint32)], 4, m.warp_of[lanes[:1]])

    return run


@rule(r"tcgen05\.relinquish_alloc_permit\.cta_group::1\.sync\.aligned", SECTION + "tcgen05.relinquish_alloc_permit", writes=False)
def relinquish(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    return lambda m: whole_warps(m)


@rule(r"tcgen05\.dealloc\.cta_group::1\.sync\.aligned\.b32", SECTION + "tcgen05.dealloc", writes=False, strict=True)
def free(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    def run(m: "Machine") -> None:
        memory = allocated(m)
        if memory.products or memory.loaded or memory.stored.any() or memory.words.coming.any():
            raise Fault("pending", "tensor memory is given back while it is in use")
        m.tensor_memory = None

    return run


@rule(r"tcgen05\.(ld)\.sync\.aligned\.(32x32b|16x32bx2)\.x\d+\.b32", SECTION + "tcgen05.ld", own=True)
@rule(r"tcgen05\.(st)\.sync\.aligned\.(32x32b|16x32bx2)\.x\d+\.b32", SECTION + "tcgen05.st", writes=False, own=True)
def move(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    loads = found[1] == "ld"
    at, values = (i.operands[1], i.operands[0]) if loads else (i.operands[0], i.operands[-1])
    names = as_list(values)
    address = addressed(at, machine)
    split = 0 if found[2] == "32x32b" else int(str(i.operands[2 if loads else 1]), 0)
    slots = [machine.place(n, "b32") for n in names]
    readers = [machine.reader(n, "b32") for n in names]

    def places(m: "Machine", lanes: Array) -> list[Array]:
        """Of each register, where its words lie."""
        base = address(m)[lanes]
        lane, column, thread, warp = base >> 16, base & 0xFFFF, lanes % 32, m.warp_of[lanes]
        if (lane % 128 // 32 != warp % 4).any():
            raise Fault("bounds", "a warp reaches the 32 lanes of its own quarter of tensor memory only")
        if split:
            lane, column = lane + thread % 16, column + thread // 16 * split
        else:
            lane = lane + thread
        return [allocated(m).places(lane, column + n) for n in range(len(names))]

    def load(m: "Machine") -> None:
        whole_warps(m)
        lanes = m.lanes()
        memory = allocated(m)
        held = [memory.words.load(place, 1, 4, m.warp_of[lanes])[0][0] for place in places(m, lanes)]
        memory.loaded.append((m.mask, slots, held))
        for slot in slots:
            m.undefined[slot] = m.all_undefined
            m.in_flight.add(slot)

    def store(m: "Machine") -> None:
        whole_warps(m)
        m.check_defined(slots)
        lanes = m.lanes()
        memory = allocated(m)
        for place, read in zip(places(m, lanes), readers, strict=True):
            memory.words.store(place, [m.full(read(m.regs))[lanes]], 4, m.warp_of[lanes])
        memory.stored[np.unique(m.warp_of[lanes])] = True

    return load if loads else store


@rule(r"tcgen05\.wait::(ld|st)\.sync\.aligned", SECTION + "tcgen05.wait", writes=False)
def wait(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    def loaded(m: "Machine") -> None:
        memory = allocated(m)
        for mask, slots, held in memory.loaded:
            if not (mask & ~m.mask).any():
                for slot, values in zip(slots, held, strict=True):
                    whole = np.array(m.full(m.regs[slot]))
                    whole[mask] = values
                    m.regs[slot] = whole
                    m.undefined[slot] = None if mask.all() else np.where(mask, np.uint8(0), np.uint8(255))
                    m.in_flight.discard(slot)
        memory.loaded = [entry for entry in memory.loaded if (entry[0] & ~m.mask).any()]

    def stored(m: "Machine") -> None:
        allocated(m).stored[np.unique(m.warp_of[m.mask])] = False

    return loaded if found[1] == "ld" else stored


@rule(r"tcgen05\.fence::(?:before|after)_thread_sync", SECTION + "tcgen05.fence", writes=False)
def fence(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    return lambda m: None


@rule(r"tcgen05\.mma\.cta_group::1\.kind::f16", SECTION + "tcgen05.mma", writes=False, strict=True)
def multiply(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    to, a, b, how, enabled = i.operands
    address = addressed(to, machine)
    if not isinstance(a, str):
        raise Unsupported("tcgen05.mma with A in tensor memory")
    readers = [machine.reader(a, "b64"), machine.reader(b, "b64"), machine.reader(how, "u32"), machine.reader(enabled, "pred")]

    def run(m: "Machine") -> None:
        lane = one(m)
        left, right, bits, adds = (int(m.full(read(m.regs))[lane]) for read in readers)
        rows, columns = (bits >> 24 & 31) * 16, (bits >> 17 & 63) * 8
        # Sums in float32, no sparsity, no negation, no transposed types.
        if (bits >> 4 & 3) != 1 or bits & 0x4F or bits >> 13 & 3 or bits >> 29 or rows not in (64, 128):
            raise Unsupported(f"a product that the instruction descriptor {bits:#x} describes")
        memory, warp = allocated(m), m.warp_of[[lane]]
        if memory.stored.any():
            raise Fault("pending", "a product adds to what is still being stored (tcgen05.wait::st)")
        one_side = Operand(m, left, PATTERNS[left >> 61], warp, rows, bool(bits >> 15 & 1), KINDS[bits >> 7 & 7])
        other = Operand(m, right, PATTERNS[right >> 61], warp, columns, bool(bits >> 16 & 1), KINDS[bits >> 10 & 7])
        if one_side.undefined is not None or other.undefined is not None:
            raise Fault("uninitialized", "a product of entries that nothing has written")
        row = np.arange(rows) if rows == 128 else np.arange(rows) // 16 * 32 + np.arange(rows) % 16
        base = int(address(m)[lane])
        places = memory.places((base >> 16) + row[:, None], (base & 0xFFFF) + np.arange(columns)[None, :])
        granules = memory.words.granules(places.ravel(), 4)
        warps = np.repeat(warp, granules.size)
        # The products of one thread run in its order: what one of them adds to, an earlier one may still write.
        fresh = memory.words.coming[granules] == 0
        if adds and fresh.any():
            memory.words.note_read(granules[fresh], warps[fresh])
        if fresh.all():
            memory.words.note_write(granules, warps, engine=True)
        memory.words.coming[granules] += 1
        used = (one_side.granules, other.granules)
        for which in used:
            m.shared.in_use[which] += 1
        product = one_side.entries @ other.entries.T

        def finish(m: "Machine") -> None:
            memory.words.arrive(granules, warps, engine=True)
            words = memory.words.views[4]
            before: Any = words[places // 4].view(np.float32).astype(np.float64) if adds else 0.0
            words[places // 4] = (product + before).astype(np.float32).view(np.uint32)
            for which in used:
                m.shared.free(which, int(warp[0]))

        memory.products.append(finish)

    return run


@rule(rf"tcgen05\.commit\.cta_group::1\.mbarrier::arrive::one(?:\.{CLUSTER})?\.b64", SECTION + "tcgen05.commit", writes=False, strict=True)
def commit(i: Instruction, machine: "Machine", found: re.Match[str]) -> Run:
    address = addressed(i.operands[0], machine)

    def run(m: "Machine") -> None:
        lane = one(m)
        barrier = found_barrier(m, int(address(m)[lane]), np.array([lane]))
        warp = m.warp_of[[lane]]
        memory = allocated(m)
        products, memory.products = memory.products, []
        sent = m.clocks.released(warp)

        def arrive(m: "Machine") -> None:
            for finish in products:
                finish(m)
            now = sent.copy()
            now[warp] = m.clocks.own[warp]
            m.clocks.own[warp] += 1
            barrier.arrive()
            barrier.merge(now)

        barrier.copies.append(arrive)

    return run
