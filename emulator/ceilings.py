"""What named GPUs can do, from what their maker publishes: the ceilings that the profiler's counts are held against.

Sources: NVIDIA's data sheets and architecture white papers of each GPU (multiprocessors, boost clock, bandwidth, dense rates of the matrix
unit); CUDA C++ Programming Guide, "Compute Capabilities: Technical Specifications" (registers, shared memory, warps and programs per
multiprocessor) and "Arithmetic Instructions: Throughput of Native Arithmetic Instructions" (lanes). The clock is the one at which the
published rates of the matrix unit hold.
"""

from typing import NamedTuple


class Ceiling(NamedTuple):
    """One GPU. Rates are per multiprocessor and cycle.

    clock: GHz. bandwidth: of device memory, GB/s. int8_tops, sixteen_tflops: published, dense, sums in int32 and float32. cache: bytes from
    the second-level cache. int8, sixteen: multiply-adds of the matrix unit on int8 and on 16-bit numbers, by its widest instructions
    (wgmma and tcgen05 where there are such; mma reaches less there). floats: lanes for float32. registers, shared (bytes), warps, programs:
    what a multiprocessor holds at once.
    """

    name: str
    arch: str
    multiprocessors: int
    clock: float
    bandwidth: float
    int8_tops: float
    sixteen_tflops: float
    int8: int
    sixteen: int
    floats: int
    shared: int
    warps: int
    programs: int
    registers: int = 65536
    cache: float = 64

    @property
    def hbm(self) -> float:
        """Bytes from and to device memory, of one multiprocessor's share."""
        return self.bandwidth / self.multiprocessors / self.clock


#: By name; the first of an architecture is meant where none is named. A GeForce sums 16-bit products in float32 at half rate.
CEILINGS = {
    ceiling.name: ceiling
    for ceiling in (
        Ceiling("A100 SXM", "sm_80", 108, 1.41, 2039, 624, 312, 2048, 1024, 64, 164 << 10, 64, 32),
        Ceiling("L4", "sm_89", 58, 2.04, 300, 242, 121, 1024, 512, 128, 100 << 10, 48, 24),
        Ceiling("RTX 4090", "sm_89", 128, 2.52, 1008, 661, 165, 1024, 256, 128, 100 << 10, 48, 24),
        Ceiling("H100 SXM", "sm_90", 132, 1.83, 3350, 1979, 989, 4096, 2048, 128, 228 << 10, 64, 32),
        Ceiling("H200", "sm_90", 132, 1.83, 4800, 1979, 989, 4096, 2048, 128, 228 << 10, 64, 32),
        Ceiling("B200", "sm_100", 148, 1.86, 8000, 4500, 2250, 8192, 4096, 128, 228 << 10, 64, 32),
    )
}


def ceiling_of(arch: str) -> Ceiling | None:
    """The first GPU of an architecture; None where none is listed."""
    return next((ceiling for ceiling in CEILINGS.values() if ceiling.arch == arch), None)
