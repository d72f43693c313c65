"""A GPU to look into: runs the PTX that Triton's compiler made of a kernel, on a CPU, in NumPy, under a sanitizer.

    import emulator
    with emulator.gpu("sm_90"):
        kernel[grid](...)          # tensors of the CPU

Read in this order:

1. `parse.py`            PTX text to a list of instructions
2. `machine.py`          threads, branches, barriers
3. `registers.py`        the registers, and which of them nothing has written
4. `rules.py`, `manual.py`    the table of instructions that are known, and where the manual defines them
5. `values.py`, `integers.py`, `floats.py`, `moves.py`      arithmetic
6. `transfers.py`, `exchange.py`, `atomics.py`      memory and the lanes of a warp
7. `matrix.py`, `warpgroup.py`, `tensor_memory.py`  products: mma, wgmma, tcgen05
8. `asynchronous.py`, `tensor_copies.py`, `tensor_map.py`, `mbarriers.py`      copies on their way, and what counts them
9. `memory.py`, `global_memory.py`, `faults.py`     the sanitizer
10. `launch.py`, `parameters.py`    between Triton and the machine
11. `counters.py`, `sass.py`, `ceilings.py`, `profiler.py`    what a profiler's counters would say
12. `tracing.py`         what each instruction did, for pictures
"""

from .ceilings import CEILINGS, Ceiling, ceiling_of
from .faults import KINDS, Fault
from .launch import ARCHITECTURES, Gpu, Launch, gpu
from .parse import Unsupported
from .profiler import Profile, Profiler, profiling

__all__ = [
    "ARCHITECTURES", "CEILINGS", "KINDS", "Ceiling", "Fault", "Gpu", "Launch", "Profile", "Profiler", "Unsupported", "ceiling_of",
    "gpu", "profiling",
]  # fmt: skip
