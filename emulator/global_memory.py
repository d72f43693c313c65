"""Global memory: buffers by their addresses, each with bounds of its own. Between the programs of a launch there is no order,
except what atomic operations make.

Sources: PTX ISA 9.0, 5.1.4 "Global State Space", 8.5 "Scope", 8.7.1 "Conflict and Data-races", 8.8 "Release and Acquire Patterns".
"""

from typing import NamedTuple

import numpy as np

from .faults import Fault
from .memory import FILLING, Clocks, first
from .values import Array


class Buffer(NamedTuple):
    """A span of memory. data (n,) uint8: the bytes themselves, written back; initialized (n,) bool: which of them something has written."""

    address: int
    data: Array
    initialized: Array


class GlobalMemory:
    """The buffers of one launch. granule: bytes that share one shadow; no access of the kernel is smaller."""

    def __init__(self, buffers: list[Buffer], granule: int = 1) -> None:
        self.buffers = sorted(buffers, key=lambda b: b.address)
        self.granule = granule
        self.first = np.array([b.address for b in self.buffers], np.int64)
        self.last = np.array([b.address + len(b.data) for b in self.buffers], np.int64)
        self.place = np.zeros(len(self.buffers), np.int64)
        at = 0
        for i, buffer in enumerate(self.buffers):
            at = -(-at // 256) * 256 + buffer.address % 256
            self.place[i] = at
            at += len(buffer.data)
        self.size = -(-at // 16) * 16
        self.bytes = np.full(self.size, FILLING, np.uint8)
        self.views = {n: self.bytes.view(f"u{n}") for n in (1, 2, 4, 8)}
        for place, buffer in zip(self.place, self.buffers, strict=True):
            self.bytes[place : place + len(buffer.data)] = buffer.data
        self.program, self.clocks = -1, Clocks(1)
        self.start = 1
        self._shadow()

    def _shadow(self) -> None:
        count = -(-self.size // self.granule)
        self.initialized = np.zeros(count, bool)
        for place, buffer in zip(self.place, self.buffers, strict=True):
            whole = np.zeros(-(-(place % self.granule + len(buffer.data)) // self.granule) * self.granule, bool)
            whole[place % self.granule :][: len(buffer.data)] = buffer.initialized
            begin = place // self.granule
            self.initialized[begin : begin + len(whole) // self.granule] |= whole.reshape(-1, self.granule).any(1)
        self.writer = np.full(count, -1, np.int32)  # the program that wrote; -1 for none
        self.reader = np.full(count, -1, np.int32)  # likewise; -2 for several
        self.by_atomic = np.zeros(count, bool)
        self.warp = np.zeros(count, np.int16)
        self.time = np.zeros(count, np.int64)
        self.read: Array = None  # (warps, granules): each warp's time of its last read
        self.released: dict[int, dict[int, Array]] = {}  # address -> program -> its warps' times that a release there published
        self.acquired: dict[int, Array] = {}  # program -> its warps' times that lie before what the running program does

    def begin(self, program: int, warps: int) -> Clocks:
        """The clocks of the program that runs next; times go on from one program to the next."""
        self.start = int(self.clocks.own.max()) + 1
        self.program, self.clocks, self.acquired = program, Clocks(warps, self.start), {}
        if self.read is None:
            self.read = np.zeros((warps, len(self.writer)), np.int64)
        return self.clocks

    def copy_back(self) -> None:
        """Writes the bytes, and what is initialized, back into the buffers."""
        for place, buffer in zip(self.place, self.buffers, strict=True):
            buffer.data[:] = self.bytes[place : place + len(buffer.data)]
            spread = np.repeat(self.initialized[place // self.granule : -(-(place + len(buffer.data)) // self.granule)], self.granule)
            buffer.initialized[:] = spread[place % self.granule :][: len(buffer.data)]

    def offsets(self, addresses: Array, width: Array | int) -> Array:
        """Offsets into `bytes`. width: of the accesses in bytes, one number or one per address; 0 touches nothing."""
        addresses = addresses.astype(np.int64)
        if not len(self.buffers):
            raise Fault("bounds", "the launch was given no buffers", 0, int(addresses[0]))
        which = np.maximum(np.searchsorted(self.first, addresses, "right") - 1, 0)
        wrong = ((addresses < self.first[which]) | (addresses + width > self.last[which])) & (np.asarray(width) > 0)
        if wrong.any():
            i = first(wrong)
            address, buffer = int(addresses[i]), int(which[i])
            size = self.last[buffer] - self.first[buffer]
            raise Fault("bounds", f"byte {address - self.first[buffer]} of a buffer of {size} bytes", i, address)
        return self.place[which] + addresses - self.first[which]

    def aligned(self, addresses: Array, width: int) -> None:
        wrong = addresses % width != 0
        if wrong.any():
            i = first(wrong)
            raise Fault("alignment", f"an access of {width} bytes at no multiple of {width}", i, int(addresses[i]))

    def load(self, addresses: Array, count: int, width: int, warps: Array) -> list[Array]:
        """`count` entries of `width` bytes side by side at each address, one array per entry."""
        self.aligned(addresses, count * width)
        offsets = self.offsets(addresses, count * width)
        self.note_read(self._granules(offsets, count * width), warps, addresses)
        return [self.views[width][offsets // width + i] for i in range(count)]

    def store(self, addresses: Array, values: list[Array], width: int, warps: Array) -> None:
        self.aligned(addresses, len(values) * width)
        offsets = self.offsets(addresses, len(values) * width)
        self.note_write(self._granules(offsets, len(values) * width), warps, addresses)
        for i, value in enumerate(values):
            place = offsets // width + i
            self.views[width][place] = value
            wrong = self.views[width][place] != value
            if wrong.any():
                j = first(wrong)
                raise Fault("race", "two threads store different values at one address in one instruction", j, int(addresses[j]))

    def bytes_at(self, addresses: Array, width: int, live: Array, warps: Array) -> Array:
        """(n, width) bytes, of each only as many as `live` says, and zeros after them."""
        offsets = self.offsets(addresses, live)
        place = offsets[:, None] + np.arange(width)
        inside = np.arange(width) < live[:, None]
        touched = live > 0
        if touched.any():
            pieces = place[touched][:, :: self.granule] // self.granule
            within = inside[touched][:, :: self.granule]
            # Pieces past the live bytes stand for the first one again.
            self.note_read(np.where(within, pieces, pieces[:, :1]), warps[touched], addresses[touched])
        return np.where(inside, self.bytes[np.where(inside, place, 0)], 0).astype(np.uint8)

    def atomic(self, addresses: Array, width: int, warps: Array) -> Array:
        """Checks and notes atomic accesses; returns their places in `views[width]`."""
        self.aligned(addresses, width)
        offsets = self.offsets(addresses, width)
        self.note_write(self._granules(offsets, width), warps, addresses, atomic=True)
        return offsets // width

    def publish(self, addresses: Array, warps: Array) -> None:
        """A release: who acquires at these addresses later knows what the warps did and knew."""
        for address, warp in {(int(a), int(w)) for a, w in zip(addresses, warps, strict=True)}:
            times = self.clocks.known[warp].copy()
            times[warp] = self.clocks.own[warp]
            self.released.setdefault(address, {}).update(self.acquired | {self.program: times})

    def subscribe(self, addresses: Array) -> None:
        """An acquire: what was released at these addresses lies before what this program does next."""
        for address in np.unique(addresses).tolist():
            self.acquired |= {p: t for p, t in self.released.get(address, {}).items() if p != self.program}

    def _granules(self, offsets: Array, width: int) -> Array:
        return offsets[:, None] // self.granule + np.arange(max(1, width // self.granule))

    def _ordered(self, programs: Array, warps: Array, times: Array) -> Array:
        """Whether accesses of other programs lie before what this one does next."""
        found = np.zeros(programs.shape, bool)
        for program, known in self.acquired.items():
            theirs = programs == program
            found |= theirs & (times <= known[np.where(theirs, warps, 0)])
        return found

    def note_read(self, granules: Array, warps: Array, addresses: Array) -> None:
        """Checks and notes a read; granules (n, k), warps (n,), addresses (n,) for the report."""
        warps = warps[:, None]
        if not self.initialized[granules].all():
            self._fault("uninitialized", "a read of global memory that nothing has written", ~self.initialized[granules], addresses)
        writer = self.writer[granules]
        if (writer >= 0).any():
            warp, time = self.warp[granules], self.time[granules]
            other = (writer >= 0) & (writer != self.program)
            if other.any() and (other := other & ~self._ordered(writer, warp, time)).any():
                self._fault("race", "a read of what another program writes", other, addresses)
            wrong = (
                (writer == self.program) & (warp != warps) & (time > self.clocks.known[warps, np.minimum(warp, len(self.clocks.own) - 1)])
            )
            if wrong.any():
                self._fault("race", "a read of what another warp wrote, without a barrier between", wrong, addresses)
        reader = self.reader[granules]
        self.reader[granules] = np.where((reader == -1) | (reader == self.program), self.program, -2)
        self.read[np.broadcast_to(warps, granules.shape), granules] = self.clocks.own[warps]

    def note_write(self, granules: Array, warps: Array, addresses: Array, atomic: bool = False) -> None:
        """Checks and notes a write; two atomic operations on one address are no race."""
        warps = warps[:, None]
        writer, reader = self.writer[granules], self.reader[granules]
        warp, time = self.warp[granules], self.time[granules]
        if atomic and not self.initialized[granules].all():
            self._fault(
                "uninitialized", "an atomic operation on global memory that nothing has written", ~self.initialized[granules], addresses
            )
        both_atomic = self.by_atomic[granules] if atomic else np.zeros(granules.shape, bool)
        other = (writer >= 0) & (writer != self.program) & ~both_atomic
        if other.any() and (other := other & ~self._ordered(writer, warp, time)).any():
            self._fault("race", "two programs write one address", other, addresses)
        other = (reader != -1) & (reader != self.program)
        # Who has acquired from the only reader comes after its reads: they lie before its release.
        if other.any() and (other := other & ~np.isin(reader, list(self.acquired))).any():
            self._fault("race", "a write to what another program reads", other, addresses)
        own = (writer == self.program) & (warp != warps) & ~both_atomic
        wrong = own & (time > self.clocks.known[warps, np.minimum(warp, len(self.clocks.own) - 1)])
        if wrong.any():
            self._fault("race", "two warps write one address without a barrier between", wrong, addresses)
        if (reader == self.program).any():
            known = np.moveaxis(np.broadcast_to(self.clocks.known[warps], (*granules.shape, len(self.clocks.own))), -1, 0)
            mine = np.arange(len(self.clocks.own)).reshape(-1, 1, 1) == warps
            wrong = ((self.read[:, granules] > known) & ~mine).any(0)
            if wrong.any():
                self._fault("race", "a write to what another warp reads, without a barrier between", wrong, addresses)
        self.writer[granules] = self.program
        self.warp[granules] = warps
        self.time[granules] = self.clocks.own[warps]
        self.initialized[granules] = True
        self.by_atomic[granules] = atomic

    def _fault(self, kind: str, what: str, wrong: Array, addresses: Array) -> None:
        i = first(wrong)
        offset = int(np.flatnonzero(wrong[i])[0]) * self.granule
        raise Fault(kind, what, i, int(addresses[i]) + offset)
