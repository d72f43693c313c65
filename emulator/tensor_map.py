"""Tensor maps: what the host tells the copy engine about a tensor.

Sources: PTX ISA 9.0, 5.5.3.1 "Bounding Box", 5.5.3.3 "Out of Boundary Access", 5.5.8 "Tensor-map"; CUDA Driver API, cuTensorMapEncodeTiled.
"""

from collections.abc import Sequence

import numpy as np

from .faults import Fault
from .global_memory import GlobalMemory
from .values import Array


class TensorMap:
    """A tensor of `sizes` entries of `entry` bytes, outermost dimension first, that lie `strides` bytes apart, and a box of it.

    swizzle: bytes of the pattern in shared memory, 0 for none. filling: the byte of entries outside; zeros, or a NaN's.
    """

    def __init__(
        self, address: int, sizes: Sequence[int], strides: Sequence[int], entry: int, box: Sequence[int], swizzle: int, filling: int = 0
    ) -> None:
        if address % 16 or any(s % 16 for s in strides[:-1]):
            raise Fault("alignment", "the address and the strides of a tensor map are multiples of 16 bytes", None, address)
        self.address, self.sizes, self.strides, self.entry = address, tuple(sizes), tuple(strides), entry
        self.box, self.swizzle, self.filling = tuple(box), swizzle, filling
        #: Rows of the box in shared memory, and bytes of each.
        self.shape = (int(np.prod(self.box[:-1], dtype=np.int64)), self.box[-1] * entry)

    def entries(self, start: Sequence[int]) -> tuple[Array, Array]:
        """Addresses of the box's entries (rows, entries of a row), and which of them lie inside. start: innermost coordinate first."""
        addresses = np.full((1,) * len(self.box), self.address, np.int64)
        inside = np.ones((1,) * len(self.box), bool)
        for axis, (first, extent, size, stride) in enumerate(zip(reversed(start), self.box, self.sizes, self.strides, strict=True)):
            at = (first + np.arange(extent)).reshape([-1 if a == axis else 1 for a in range(len(self.box))])
            addresses = addresses + at * stride
            inside = inside & (at >= 0) & (at < size)
        shape = (self.shape[0], self.box[-1])
        return addresses.reshape(shape), np.broadcast_to(inside, self.box).reshape(shape)

    def read(self, memory: GlobalMemory, start: Sequence[int], warp: Array) -> Array:
        """The bytes of the box (rows, bytes of a row); `filling` outside of the tensor."""
        addresses, inside = self.entries(start)
        found = np.full((*addresses.shape, self.entry), self.filling, np.uint8)
        if inside.any():
            count = int(inside.sum())
            found[inside] = memory.bytes_at(addresses[inside], self.entry, np.full(count, self.entry), np.repeat(warp, count))
        return found.reshape(self.shape)

    def write(self, memory: GlobalMemory, start: Sequence[int], data: Array, warp: Array) -> None:
        """Writes the box; what lies outside of the tensor is left out."""
        addresses, inside = self.entries(start)
        if inside.any():
            values = np.ascontiguousarray(data).reshape(*addresses.shape, self.entry)[inside]
            words = np.ascontiguousarray(values).view(f"u{self.entry}").ravel()
            memory.store(addresses[inside], [words], self.entry, np.repeat(warp, len(words)))
