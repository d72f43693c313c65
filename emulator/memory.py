"""Memory with a shadow: who wrote and who read each granule when, and what is on its way there.

Order is kept by vector clocks. An access by warp v at v's time c lies before what warp w does next if w has since learned of v's
time c through a barrier. Two accesses of which one writes and neither lies before the other are a race, in whatever order this
machine happened to run them. Warps are the finest actors: the lanes of a warp are taken to run in step.
Sources: PTX ISA 9.0, 8.7.1 "Conflict and Data-races", 8.9.5 "Causality Order", 8.6 "Proxies", 5.1.7 "Shared State Space", 6.4.1
"Addresses as Operands" (alignment).
"""

import numpy as np

from .faults import Fault
from .parse import Kernel
from .values import Array

#: What memory holds that nothing has written.
FILLING = 0xA5


class Clocks:
    """own: each warp's time. known[w, v]: the last time of v that lies before what w does next."""

    def __init__(self, warps: int, start: int = 1) -> None:
        self.own = np.full(warps, start, np.int64)
        self.known = np.full((warps, warps), start - 1, np.int64)
        #: How often each warp has made its ordinary writes visible to the copy engine and the matrix unit (fence.proxy.async).
        self.fences = np.zeros(warps, np.int64)

    def released(self, warps: Array) -> Array:
        """What a warp learns that waits for all of `warps`; their time goes on."""
        joined = self.known[warps].max(axis=0)
        joined[warps] = np.maximum(joined[warps], self.own[warps])
        self.own[warps] += 1
        return joined

    def acquired(self, warps: Array, joined: Array) -> None:
        self.known[warps] = np.maximum(self.known[warps], joined)

    def barrier(self, warps: Array) -> None:
        self.acquired(warps, self.released(warps))


def first(wrong: Array) -> int:
    """The number of the first access of which `wrong` (n,) or (n, granules) holds."""
    return int(np.flatnonzero(wrong.reshape(len(wrong), -1).any(1))[0])


class Memory:
    """Shared or tensor memory: `size` bytes from address `base` on. granule: bytes that share one shadow; no access is smaller."""

    def __init__(self, base: int, size: int, granule: int, clocks: Clocks) -> None:
        self.base, self.size, self.granule, self.clocks = base, size, granule, clocks
        whole = -(-size // 16) * 16
        self.bytes = np.full(whole, FILLING, np.uint8)
        self.views = {n: self.bytes.view(f"u{n}") for n in (1, 2, 4, 8)}
        count, warps = whole // granule, len(clocks.own)
        self.initialized = np.zeros(count, bool)
        self.undefined = np.zeros(count, bool)  # holds the value of a register that nothing had written
        self.any_undefined = False
        self.writer = np.zeros(count, np.int16)
        self.written = np.zeros(count, np.int64)  # the writer's time
        self.fenced = np.zeros(count, np.int64)  # the writer's count of fences; -1 where an engine wrote
        self.read = np.zeros((warps, count), np.int64)  # each warp's time of its last read
        self.coming = np.zeros(count, np.int16)  # copies on their way
        self.in_use = np.zeros(count, np.int16)  # matrix products that still read

    def offsets(self, addresses: Array, width: int) -> Array:
        """Offsets of accesses of `width` bytes each, in bounds and aligned."""
        offsets = addresses.astype(np.int64) - self.base
        wrong = (offsets < 0) | (offsets + width > self.size)
        if wrong.any():
            i = first(wrong)
            raise Fault("bounds", f"{width} bytes at offset {offsets[i]} of {self.size} bytes", i, int(addresses[i]))
        wrong = addresses % width != 0
        if wrong.any():
            i = first(wrong)
            raise Fault("alignment", f"an access of {width} bytes at no multiple of {width}", i, int(addresses[i]))
        return offsets

    def granules(self, offsets: Array, width: int) -> Array:
        start = offsets // self.granule
        return start if width <= self.granule else start[:, None] + np.arange(width // self.granule)

    def load(self, addresses: Array, count: int, width: int, warps: Array) -> tuple[list[Array], Array | None]:
        """`count` entries of `width` bytes side by side at each address, one array per entry; which are undefined, None for none."""
        offsets = self.offsets(addresses, count * width)
        granules = self.granules(offsets, count * width)
        self.note_read(granules, warps)
        undefined: Array = self.undefined[granules] if self.any_undefined else None
        if undefined is not None:
            undefined = undefined if undefined.ndim == 1 else undefined.any(1)
        return [self.views[width][offsets // width + i] for i in range(count)], undefined

    def store(self, addresses: Array, values: list[Array], width: int, warps: Array, undefined: Array | None = None) -> None:
        offsets = self.offsets(addresses, len(values) * width)
        granules = self.granules(offsets, len(values) * width)
        self.note_write(granules, warps)
        if undefined is not None or self.any_undefined:
            self.any_undefined = True
            held = np.zeros(len(offsets), bool) if undefined is None else undefined
            self.undefined[granules] = held if granules.ndim == 1 else held[:, None]
        for i, value in enumerate(values):
            place = offsets // width + i
            self.views[width][place] = value
            wrong = self.views[width][place] != value
            if wrong.any():
                i = first(wrong)
                raise Fault("race", "two threads store different values at one address in one instruction", i, int(addresses[i]))

    def note_read(self, granules: Array, warps: Array, engine: bool = False) -> None:
        """Checks and notes a read; granules (n,) or (n, k), warps (n,). engine: by the copy engine or the matrix unit."""
        warps = warps if granules.ndim == 1 else warps[:, None]
        if self.coming[granules].any():
            self._fault("pending", "a read of what an asynchronous operation has yet to bring", self.coming[granules] != 0, granules)
        if not self.initialized[granules].all():
            self._fault("uninitialized", "a read of memory that nothing has written", ~self.initialized[granules], granules)
        self.after_writes(granules, warps, "a read of what another warp wrote, without a barrier between")
        if engine:
            stale = self.fenced[granules] == self.clocks.fences[self.writer[granules]]
            if stale.any():
                what = "the matrix unit or copy engine reads what threads stored without fence.proxy.async since"
                self._fault("fence", what, stale, granules)
        self.read[np.broadcast_to(warps, granules.shape), granules] = self.clocks.own[warps]

    def note_write(self, granules: Array, warps: Array, engine: bool = False) -> None:
        warps = warps if granules.ndim == 1 else warps[:, None]
        if self.coming[granules].any():
            self._fault("pending", "a write to where an asynchronous operation is going to write", self.coming[granules] != 0, granules)
        if self.in_use[granules].any():
            self._fault("pending", "a write to what a matrix product still reads", self.in_use[granules] != 0, granules)
        self.after_writes(granules, warps, "two warps write one address without a barrier between")
        known = self.clocks.known[warps]
        known = np.moveaxis(np.broadcast_to(known, (*granules.shape, known.shape[-1])), -1, 0)
        later = self.read[:, granules] > known
        if later.any():
            mine = np.arange(len(self.clocks.own)).reshape(-1, *(1,) * granules.ndim) == warps
            wrong = (later & ~mine).any(0)
            if wrong.any():
                self._fault("race", "a write to what another warp reads, without a barrier between", wrong, granules)
        self._stamp(granules, warps, engine)

    def after_writes(self, granules: Array, warps: Array, what: str) -> None:
        """The last write of `granules` lies before what `warps` do now."""
        writer = self.writer[granules]
        wrong = (self.written[granules] > self.clocks.known[warps, writer]) & (writer != warps)
        if wrong.any():
            self._fault("race", what, wrong, granules)

    def _fault(self, kind: str, what: str, wrong: Array, granules: Array) -> None:
        raise Fault(kind, what, first(wrong), self.base + int(granules[wrong][0]) * self.granule)

    def _stamp(self, granules: Array, warps: Array, engine: bool) -> None:
        warps = np.broadcast_to(warps, granules.shape)
        self.initialized[granules] = True
        self.writer[granules] = warps
        self.written[granules] = self.clocks.own[warps]
        self.fenced[granules] = -1 if engine else self.clocks.fences[warps]

    def expect(self, granules: Array, warps: Array, engine: bool = False) -> None:
        """An asynchronous operation sets out: from now until `arrive` nothing may touch where it writes."""
        self.note_write(granules, warps, engine)
        self.coming[granules] += 1

    def arrive(self, granules: Array, warps: Array, engine: bool = False) -> None:
        self.coming[granules] -= 1
        self._stamp(granules, warps if granules.ndim == 1 else warps[:, None], engine)
        if self.any_undefined:
            self.undefined[granules] = False

    def free(self, granules: Array, warp: int) -> None:
        """A matrix product has read the granules until now."""
        self.in_use[granules] -= 1
        self.read[warp, granules] = self.clocks.own[warp]


def smallest_access(kernel: Kernel, space: str) -> int:
    """The smallest width of any access to `space` ("shared" or "global") in bytes, at most 16: the size of a shadow's granule."""
    widths = [16]
    for i in kernel.code:
        name, *modifiers = i.opcode.split(".")
        if name in ("ld", "st", "atom", "red") and space in (m.partition("::")[0] for m in modifiers):
            vector = next((int(m[1:]) for m in modifiers if m in ("v2", "v4", "v8")), 1)
            widths.append(vector * int(modifiers[-1].lstrip("bfusx")[:2].rstrip("x")) // 8)
        elif name == "cp" and "bulk" not in modifiers and "async" in modifiers and len(i.operands) >= 3:
            widths.append(int(str(i.operands[2]), 0) if space == "shared" else 4)
        elif name == "mbarrier" and space == "shared":
            widths.append(8)
        elif name == "tcgen05" and "alloc" in modifiers and space == "shared":
            widths.append(4)
    return min(widths)
