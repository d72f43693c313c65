"""A machine that counts what a profiler's counters would: sectors, bank conflicts, instructions by class, matrix work, waits.

The shadow of memory is off: a run counts, and finds no faults, so that large inputs fit.
Sources: CUDA C++ Programming Guide, "Device Memory Accesses" (sectors of 32 bytes), "Shared Memory" (32 banks of 4 bytes).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .global_memory import GlobalMemory
from .machine import Machine, Step
from .memory import Clocks, Memory
from .parse import Address, Instruction
from .registers import LANES
from .values import Array

SECTOR, BANKS, WORD = 32, 32, 4

#: Class of an instruction by the first word of its opcode; those that are not here count as "integer".
CLASSES = {
    "ld": "memory", "st": "memory", "cp": "memory", "atom": "memory", "red": "memory", "ldmatrix": "memory", "stmatrix": "memory",
    "mma": "matrix", "wgmma": "matrix", "tcgen05": "matrix", "shfl": "exchange", "redux": "exchange", "vote": "exchange",
    "elect": "exchange", "bar": "wait", "barrier": "wait", "mbarrier": "wait", "fence": "wait", "membar": "wait", "bra": "branch",
    "ret": "branch", "exit": "branch",
    "mov": "move", "cvta": "move", "cvt": "conversion", "fma": "float", "div": "float", "rcp": "float", "ex2": "float", "lg2": "float",
    "setp": "comparison", "selp": "comparison", "prmt": "integer",
}  # fmt: skip


def class_of(opcode: str) -> str:
    """The class of an instruction: memory, matrix, exchange, wait, branch, move, conversion, comparison, float or integer."""
    name, *modifiers = opcode.split(".")
    if (
        (name in ("wgmma", "tcgen05") and modifiers[0] != "mma_async" and modifiers[0] != "mma")
        or "wait_group" in opcode
        or "commit" in opcode
    ):
        return "wait" if not modifiers[0].startswith(("ld", "st")) else "memory"
    if name in ("add", "sub", "mul", "min", "max", "abs", "neg") and re.search(r"\.(f16|f32|f64|bf16)", opcode):
        return "float"
    return CLASSES.get(name, "integer")


@dataclass(eq=False)
class Access:
    """What the runs of one instruction asked of memory.

    requests: by warps. data: bytes that lanes asked for. sectors, wavefronts: of global and of shared memory, each beside the fewest
    that hold as many different bytes.
    """

    what: str
    requests: int = 0
    data: int = 0
    sectors: int = 0
    fewest_sectors: int = 0
    wavefronts: int = 0
    fewest_wavefronts: int = 0


def sectors(addresses: Array, width: int, warps: Array) -> tuple[int, int]:
    """(sectors touched, fewest that hold as many different bytes) of accesses of `width` bytes, summed over the warps."""
    touched = fewest = 0
    for warp in np.unique(warps):
        mine = np.unique(addresses[warps == warp])
        held = np.unique((mine[:, None] + np.arange(0, width, min(width, SECTOR))) // SECTOR)
        touched += len(held)
        fewest += -(-len(mine) * width // SECTOR)
    return touched, fewest


def wavefronts(offsets: Array, width: int, lanes: Array) -> tuple[int, int]:
    """(wavefronts, fewest without conflicts): lanes go 32 at a time with accesses of up to 4 bytes, 16 with 8, 8 with 16.

    A wavefront takes one word from each bank; lanes that want the same word share it.
    """
    together = {8: 16, 16: 8}.get(width, LANES)
    words = offsets[:, None] // WORD + np.arange(max(1, width // WORD))
    turn = np.broadcast_to((lanes // together)[:, None], words.shape).ravel()
    pairs = np.unique(np.stack([turn, words.ravel()]), axis=1)
    banks, counts = np.unique(np.stack([pairs[0], pairs[1] % BANKS]), axis=1, return_counts=True)
    turns = np.unique(banks[0])
    return sum(int(counts[banks[0] == t].max()) for t in turns), len(turns)


class PlainMemory(Memory):
    """Shared or tensor memory without a shadow."""

    def _nothing(self, *arguments: Any, **options: Any) -> None: ...

    note_read = note_write = expect = arrive = after_writes = free = _nothing


class PlainGlobalMemory(GlobalMemory):
    """Global memory without a shadow; its buffers are still the only memory there is."""

    def _shadow(self) -> None:
        self.initialized = np.ones(1, bool)

    def begin(self, program: int, warps: int) -> Clocks:
        """The clocks of the program."""
        return Clocks(warps)

    def copy_back(self) -> None:
        """Writes the bytes back into the buffers."""
        for place, buffer in zip(self.place, self.buffers, strict=True):
            buffer.data[:] = self.bytes[place : place + len(buffer.data)]
            buffer.initialized[:] = True

    def _nothing(self, *arguments: Any, **options: Any) -> None: ...

    note_read = note_write = publish = subscribe = _nothing


class CountingMachine(Machine):
    """Counts what each instruction asks of memory and of the matrix unit; `reached` counts how many warps ran each.

    accesses: index in the code -> what it asked for. matrix: opcode -> (instructions, multiply-adds, bytes read from shared memory).
    flying: the most bytes of asynchronous copies that were on their way at once, as they are if none arrives before it is waited for.
    """

    shared_memory = PlainMemory

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.accesses: dict[int, Access] = {}
        self.matrix: dict[str, list[int]] = {}
        self.loading = self.flying = 0
        super().__init__(*arguments, **options)

    def _build(self, instruction: Instruction) -> Step:
        at, self.loading = self.loading, self.loading + 1
        step = super()._build(instruction)
        count = self._counter(at, instruction) if step.what == "run" else None
        if count is None:
            return step

        copies = instruction.opcode.startswith("cp.async")

        def counted(m: Machine) -> None:
            count(m)
            step.action(m)
            if copies:
                groups, boxes = m.copies.flying, m.copies.barriers.values()
                self.flying = max(self.flying, sum(data.size for _, _, _, data, _, _ in groups) + sum(barrier.bytes for barrier in boxes))

        return step._replace(action=counted)

    def _address(self, operand: Any) -> Callable[[Machine], Array]:
        assert isinstance(operand, Address)
        slot = self.place(operand.base, "u32")
        return lambda m: m.full(m.regs[slot]).astype(np.int64) + operand.offset

    def _counter(self, at: int, i: Instruction) -> Callable[[Machine], None] | None:
        name, *modifiers = i.opcode.split(".")
        spaces = {m.partition("::")[0] for m in modifiers}
        if name in ("ld", "st") and spaces & {"global", "shared"}:
            return self._threads(at, i, name, "global" if "global" in spaces else "shared", modifiers)
        if name in ("ldmatrix", "stmatrix"):
            return self._matrices(at, i, name)
        if re.match(r"cp\.async\.c[ag]\.", i.opcode):
            return self._copies(at, i)
        if i.opcode.startswith("cp.async.bulk.tensor"):
            return self._boxes(at, i, modifiers[4] == "global")
        if i.opcode.startswith("tcgen05.mma"):
            how = self.reader(i.operands[3], "u32")
            return lambda machine: self._described(i.opcode, int(machine.full(how(machine.regs))[machine.lanes()[0]]))
        if found := re.search(r"(?:mma|wgmma)\..*m(\d+)n(\d+)k(\d+)", i.opcode):
            m, n, k = (int(v) for v in found.groups())
            threads, shape = (128, i.opcode.split("aligned.")[1]) if name == "wgmma" else (32, i.opcode.split("aligned.")[1])
            # wgmma reads 32 bytes of K of each row of A and B from shared memory.
            read = ((0 if isinstance(i.operands[1], tuple) else m * 32) + n * 32) if name == "wgmma" else 0
            return lambda machine: self._multiplied(shape, len(machine.lanes()) // threads, m * n * k, read)
        return None

    def _described(self, opcode: str, bits: int) -> None:
        """A product of tcgen05, whose shape stands in its instruction descriptor; 32 bytes of K, here of 16-bit numbers."""
        rows, columns = (bits >> 24 & 31) * 16, (bits >> 17 & 63) * 8
        self._multiplied(f"{opcode} m{rows}n{columns}k16", 1, rows * columns * 16, (rows + columns) * 32)

    def _multiplied(self, name: str, count: int, pairs: int, read: int) -> None:
        entry = self.matrix.setdefault(name, [0, 0, 0])
        for place, value in enumerate((count, count * pairs, count * read)):
            entry[place] += value

    def _threads(self, at: int, i: Instruction, name: str, space: str, modifiers: list[str]) -> Callable[[Machine], None]:
        vector = next((int(m[1:]) for m in modifiers if m in ("v2", "v4", "v8")), 1)
        width = vector * int(re.sub(r"\D", "", modifiers[-1])) // 8
        address = self._address(i.operands[1] if name == "ld" else i.operands[0])
        access = self.accesses[at] = Access(f"{name}.{space}, {width} bytes")
        note = self._global if space == "global" else self._shared
        return lambda m: note(access, address(m), width, m.lanes())

    def _matrices(self, at: int, i: Instruction, name: str) -> Callable[[Machine], None]:
        rows = 8 * int(re.search(r"\.x([124])", i.opcode)[1])  # type: ignore[index]
        address = self._address(i.operands[1] if name == "ldmatrix" else i.operands[0])
        access = self.accesses[at] = Access(f"{name}, {rows // 8} matrices")

        def count(m: Machine) -> None:
            lanes = m.lanes()
            self._shared(access, address(m), 16, lanes[lanes % LANES < rows])

        return count

    def _copies(self, at: int, i: Instruction) -> Callable[[Machine], None]:
        to, source, width = self._address(i.operands[0]), self._address(i.operands[1]), int(str(i.operands[2]), 0)
        live = self.reader(i.operands[3], "u32") if len(i.operands) > 3 else None
        access = self.accesses[at] = Access(f"cp.async, {width} bytes")

        def count(m: Machine) -> None:
            lanes = m.lanes()
            self._shared(access, to(m), width, lanes)
            access.data -= len(lanes) * width
            access.requests -= len(np.unique(m.warp_of[lanes]))
            self._global(access, source(m), width, lanes if live is None else lanes[m.full(live(m.regs))[lanes] > 0])

        return count

    def _boxes(self, at: int, i: Instruction, stores: bool) -> Callable[[Machine], None]:
        operand = i.operands[0 if stores else 1]
        assert isinstance(operand, Address)
        which, readers = self.reader(operand.base, "u64"), [self.reader(c, "s32") for c in operand.coordinates]
        access = self.accesses[at] = Access(f"tensor {'store' if stores else 'copy'}")

        def count(m: Machine) -> None:
            for lane in m.lanes():
                tensor_map = m.tensor_maps[int(m.full(which(m.regs))[lane])]
                addresses, inside = tensor_map.entries([int(m.full(read(m.regs))[lane]) for read in readers])
                access.requests += 1
                access.data += addresses.size * tensor_map.entry
                access.sectors += len(np.unique(addresses[inside] // SECTOR))
                access.fewest_sectors += -(-int(inside.sum()) * tensor_map.entry // SECTOR)
                access.wavefronts += addresses.size * tensor_map.entry // (BANKS * WORD)
                access.fewest_wavefronts += addresses.size * tensor_map.entry // (BANKS * WORD)

        return count

    def _global(self, access: Access, addresses: Array, width: int, lanes: Array) -> None:
        if len(lanes):
            touched, fewest = sectors(addresses[lanes], width, self.warp_of[lanes])
            access.requests += len(np.unique(self.warp_of[lanes]))
            access.data += len(lanes) * width
            access.sectors += touched
            access.fewest_sectors += fewest

    def _shared(self, access: Access, addresses: Array, width: int, lanes: Array) -> None:
        if len(lanes):
            found, fewest = wavefronts(addresses[lanes], width, lanes)
            access.requests += len(np.unique(self.warp_of[lanes]))
            access.data += len(lanes) * width
            access.wavefronts += found
            access.fewest_wavefronts += fewest
