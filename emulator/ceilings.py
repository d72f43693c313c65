"""What named GPUs can do, from what their maker publishes: the ceilings that the profiler's counts are held against.

Read again on 2026-11-26, and what each figure was held against:

- shared, warps, programs, registers: CUDA Programming Guide, section 5.1, tables 30 and 31 (compute capabilities 8.0, 8.9, 9.0, 10.x),
  https://docs.nvidia.com/cuda/cuda-programming-guide/05-appendices/compute-capabilities.html.
- multiprocessors, boost clock, bandwidth, rates: the comment above each GPU names NVIDIA's document; its figures were read in public tables
  that repeat them, since the documents themselves were not at hand.
- clock: the one at which the published rates of the matrix unit hold, rate / (2 * multiprocessors * multiply-adds); a test multiplies.
- lanes for float32 (floats): CUDA C++ Best Practices Guide, "Throughput of Native Arithmetic Instructions". The table was not at hand;
  cores / multiprocessors of the same documents give the same numbers.
- cache: an assumption, what one multiprocessor can take. All together get less: the table at
  https://pmc.ncbi.nlm.nih.gov/articles/PMC10448217/table/t0015 gives 7,219 GB/s (A100) and 8,986 (H100), which is 5,120 bytes per cycle
  of the whole GPU, 47 and 39 for each of its multiprocessors. The floor of `cache` is too low by that where all read at once.
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


#: By name; the first of an architecture is meant where none is named. A GeForce sums 16-bit products in float32 at half rate. Published
#: rates "with sparsity" are twice these.
CEILINGS = {
    ceiling.name: ceiling
    for ceiling in (
        # NVIDIA A100 data sheet (80 GB, SXM) and A100 architecture white paper: 6,912 cores, 1,410 MHz, 624 TOPS, 312 TFLOPS.
        Ceiling("A100 SXM", "sm_80", 108, 1.41, 2039, 624, 312, 2048, 1024, 64, 164 << 10, 64, 32),
        # NVIDIA L4 data sheet: 7,424 cores, 2,040 MHz, 300 GB/s, 485 TOPS and 242 TFLOPS with sparsity.
        Ceiling("L4", "sm_89", 58, 2.04, 300, 242, 121, 1024, 512, 128, 100 << 10, 48, 24),
        # NVIDIA Ada GPU architecture white paper, V2: 16,384 cores, 2,520 MHz, 1,008 GB/s, 660.6 TOPS, 165.2 TFLOPS (sums in float32).
        Ceiling("RTX 4090", "sm_89", 128, 2.52, 1008, 661, 165, 1024, 256, 128, 100 << 10, 48, 24),
        # NVIDIA H100 and H200 data sheets (SXM): 16,896 cores, 3.35 and 4.8 TB/s, 3,958 TOPS and 1,979 TFLOPS with sparsity.
        Ceiling("H100 SXM", "sm_90", 132, 1.83, 3350, 1979, 989, 4096, 2048, 128, 228 << 10, 64, 32),
        Ceiling("H200", "sm_90", 132, 1.83, 4800, 1979, 989, 4096, 2048, 128, 228 << 10, 64, 32),
        # NVIDIA Blackwell data sheet, HGX B200, per GPU: 18,944 cores, 8 TB/s, 4,500 TOPS, 2,250 TFLOPS. Other tables say 7.7 TB/s.
        Ceiling("B200", "sm_100", 148, 1.86, 8000, 4500, 2250, 8192, 4096, 128, 228 << 10, 64, 32),
    )
}


def ceiling_of(arch: str) -> Ceiling | None:
    """The first GPU of an architecture; None where none is listed."""
    return next((ceiling for ceiling in CEILINGS.values() if ceiling.arch == arch), None)
