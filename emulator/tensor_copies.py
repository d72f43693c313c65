"""Copies of boxes between tensors in global memory and shared memory, by the copy engine (TMA).

A copy brings its bytes at the last moment that is allowed, when its mbarrier is waited for; the seed decides whether it reads its source at
once or at that moment.
Sources: PTX ISA 9.0, 9.7.9.25.5.2 "cp.async.bulk.tensor", 5.5.7 "Swizzling Modes".
"""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .faults import Fault
from .mbarriers import found_barrier, one
from .parse import Address, Instruction, Unsupported
from .rules import Run, rule
from .tensor_map import TensorMap
from .transfers import CLUSTER, SHARED, addressed
from .values import Array
from .warpgroup import swizzled

if TYPE_CHECKING:
    from .machine import Machine

ASYNC = "Data Movement and Conversion Instructions: "


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
