"""A GPU for Triton that is not there: `with emulator.gpu("sm_90"): kernel[grid](...)` compiles for it and runs the PTX here.

Triton is left to do all that it does for a GPU: it specializes the arguments, compiles, caches, and calls a launcher. Only the last
two parts are replaced: the compiler stops at PTX, and the driver's launcher packs the parameters and runs a `Machine`.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from unittest import mock

import numpy as np

from .global_memory import Buffer, GlobalMemory
from .machine import Machine
from .memory import smallest_access
from .parameters import merged, packed, raw, span, storage_bytes
from .parse import Unsupported, parse

#: Architecture -> compute capability as Triton names it, and bytes of shared memory that a program may have (CUDA C++ Programming
#: Guide, technical specifications by compute capability).
ARCHITECTURES = {
    "sm_80": (80, 163 << 10),
    "sm_86": (86, 99 << 10),
    "sm_89": (89, 99 << 10),
    "sm_90": (90, 227 << 10),
    "sm_100": (100, 227 << 10),
}


@dataclass(eq=False)
class Launch:
    """One launch that was run. reached: of each instruction, by how many warps it was run. machine: as it was left."""

    kernel: str
    grid: tuple[int, int, int]
    seconds: float
    machine: Machine
    ptx: str
    metadata: Any

    @property
    def reached(self) -> np.ndarray:
        return self.machine.reached


@dataclass(eq=False)
class Gpu:
    """What `gpu` gives: the launches, and how they are run.

    change: of the PTX before it is run, for experiments. programs: numbers of those programs of a grid that are run, None for all.
    make: (kernel, parameters, shared bytes, memory, seed, tensor maps) -> machine.
    """

    arch: str
    seed: int = 0
    change: Callable[[str], str] | None = None
    programs: Sequence[int] | None = None
    make: Callable[..., Machine] = Machine
    memory: Callable[..., GlobalMemory] = GlobalMemory
    launches: list[Launch] = field(default_factory=list)
    fresh: dict[int, tuple[Any, np.ndarray]] = field(default_factory=dict)

    def unwritten(self, tensor: Any) -> Any:
        """Declares that nothing has written `tensor` yet, so that a kernel that reads it is at fault; returns it."""
        size = storage_bytes(tensor)
        raw(tensor.data_ptr(), size)[:] = 0xA5
        self.fresh[tensor.data_ptr()] = tensor, np.zeros(size, bool)
        return tensor

    def initialized(self, address: int, size: int) -> np.ndarray:
        """Which bytes of a span something has written."""
        for start, (_, known) in self.fresh.items():
            if start <= address and address + size <= start + len(known):
                return known[address - start : address - start + size]
        return np.ones(size, bool)

    def launch(self, ptx: str, metadata: Any, signature: list[Any], values: list[Any], grid: tuple[int, int, int]) -> None:
        """Runs a compiled kernel. signature: of `values`, tuples flattened."""
        text = ptx if self.change is None else self.change(ptx)
        kernel = parsed(text)
        spans = merged(found for v in values if (found := span(v)) is not None)
        buffers = [Buffer(first, raw(first, last - first), self.initialized(first, last - first)) for first, last in spans]
        memory = self.memory(buffers, smallest_access(kernel, "global"))
        parameters, maps = packed(kernel, signature, values, metadata)
        begin = time.perf_counter()
        machine = self.make(kernel, parameters, metadata.shared, memory, self.seed, maps)
        try:
            machine.run(grid, self.programs)
        finally:
            memory.copy_back()
        self.launches.append(Launch(kernel.name, grid, time.perf_counter() - begin, machine, text, metadata))


parsed = lru_cache(maxsize=64)(parse)


class _Launcher:
    """Stands in for the driver's launcher: calls what Triton calls, and runs the PTX."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self.signature = list(source.signature.values())
        self.metadata = metadata

    def __call__(
        self, x: int, y: int, z: int, stream: Any, function: Any, _metadata: Any, launch_metadata: Any, enter: Any, leave: Any, *values: Any
    ) -> None:
        if enter is not None:
            enter(launch_metadata)
        flat = list(_flattened(self.signature, values))
        _current().launch(function, self.metadata, [kind for kind, _ in flat], [value for _, value in flat], (x, y, z))
        if leave is not None:
            leave(launch_metadata)


def _flattened(signature: Sequence[Any], values: Sequence[Any], in_tuple: bool = False) -> Iterator[tuple[Any, Any]]:
    """(type, value) of each argument, tuples taken apart."""
    for kind, value in zip(signature, values, strict=True):
        if isinstance(kind, tuple):
            yield from _flattened(kind, value, in_tuple=True)
        elif in_tuple and kind.startswith("tensordesc"):
            raise Unsupported("a tensor descriptor in a tuple: Triton's launcher for a GPU makes none of those")
        else:
            yield kind, value


class _Utilities:
    """What Triton asks of a driver about kernels and devices."""

    @staticmethod
    def load_binary(name: str, binary: Any, shared: int, device: Any) -> tuple[Any, str, int, int, int]:
        """(module, function, registers, spills, most threads): the PTX is the function."""
        return object(), binary.decode() if isinstance(binary, bytes) else binary, 0, 0, 1024

    @staticmethod
    def get_device_properties(device: str) -> dict[str, int]:
        """What launchers of persistent kernels look up."""
        return {"max_shared_mem": ARCHITECTURES[device][1], "multiprocessor_count": 4, "warpSize": 32, "max_num_regs": 65536}


class _Driver:
    """Stands in for Triton's CUDA driver while a `gpu` context is open."""

    launcher_cls = _Launcher
    utils = _Utilities()

    def get_current_device(self) -> str:
        """The architecture's name: Triton keeps what it compiled by device."""
        return _current().arch

    def get_device_capability(self, device: str | None = None) -> tuple[int, int]:
        """Compute capability."""
        return divmod(ARCHITECTURES[_current().arch][0], 10)

    def get_current_target(self) -> Any:
        """What to compile for."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", ARCHITECTURES[_current().arch][0], 32)

    def get_current_stream(self, device: Any = None) -> int:
        """The only one."""
        return 0

    def set_current_device(self, device: Any) -> None:
        """There is one device."""

    def get_active_torch_device(self) -> Any:
        """Tensors stay on the CPU."""
        return sys.modules["torch"].device("cpu")

    def get_benchmarker(self) -> Callable[..., Any]:
        """Autotuning takes the first configuration: what is emulated has no speed."""
        return lambda call, quantiles=None, **_: [0.0] * len(quantiles or (0,))

    def get_empty_cache_for_benchmark(self) -> None:
        """Nothing to clear."""

    def clear_cache(self, cache: Any) -> None:
        """Nothing to clear."""


_open: list[Gpu] = []


def _current() -> Gpu:
    return _open[-1]


def _stops_at_ptx() -> Any:
    """Triton's NVIDIA compiler without its last stage, the assembler."""
    from triton.backends import backends

    class Compiler(backends["nvidia"].compiler):  # type: ignore[name-defined,misc]
        def __init__(self, target: Any) -> None:
            super().__init__(target)
            self.binary_ext = "ptx"

        def add_stages(self, stages: dict[str, Any], options: Any, language: Any = None) -> None:
            super().add_stages(stages, options, *([] if language is None else [language]))
            stages.pop("cubin", None)  # gone already where contexts are nested

        def hash(self) -> str:
            return f"ptx-{self.target.arch}"

    return Compiler


@contextmanager
def gpu(
    arch: str,
    seed: int = 0,
    change: Callable[[str], str] | None = None,
    programs: Sequence[int] | None = None,
    allocators: Sequence[tuple[Any, str]] | None = None,
    **machine: Any,
) -> Iterator[Gpu]:
    """Within this context Triton's kernels are compiled for `arch` and run here, on tensors of the CPU, under the sanitizer.

    seed: of the order of programs and of atomic operations, of when asynchronous copies read and arrive, and of what registers hold that
    nothing has written. A correct program gives the same bits for each.
    change: of the PTX before it is run. programs: the numbers of those programs of each grid that are run, in this order; None for all.
    allocators: (object, name of its function) whose results count as unwritten memory; None for those of Torch, if it is imported.
    While the context is open the environment variable EMULATED_GPU names the architecture.

    Raises:
        ValueError: an unknown architecture.
        RuntimeError: Triton's interpreter replaces its compiler.
        Fault: from a launch: the program did what it must not.
        Unsupported: from a launch: the program needs what the emulator does not know.
    """
    if arch not in ARCHITECTURES:
        raise ValueError(f"arch must be one of {', '.join(ARCHITECTURES)}, got {arch!r}")
    import triton

    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET=1 replaces the compiler: unset it, and import Triton's kernels anew")
    from triton.backends import backends
    from triton.runtime import driver

    device = Gpu(arch, seed, change, programs, **machine)
    nvidia = backends["nvidia"]
    with ExitStack() as patches:
        _open.append(device)
        patches.callback(_open.remove, device)
        patches.enter_context(mock.patch.dict(os.environ, {"EMULATED_GPU": arch}))
        patches.enter_context(mock.patch.object(driver, "_active", _Driver()))
        stand_in = type(nvidia)(compiler=_stops_at_ptx(), driver=nvidia.driver)
        patches.enter_context(mock.patch.dict(backends, {"nvidia": stand_in}))
        for owner, name in _torch_allocators() if allocators is None else allocators:
            patches.enter_context(mock.patch.object(owner, name, _unwritten(device, getattr(owner, name))))
        yield device


def _torch_allocators() -> list[tuple[Any, str]]:
    torch = sys.modules.get("torch")
    return [] if torch is None else [(torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")]


def _unwritten(device: Gpu, original: Callable[..., Any]) -> Callable[..., Any]:
    def allocate(*arguments: Any, **options: Any) -> Any:
        tensor = original(*arguments, **options)
        return device.unwritten(tensor) if tensor.device.type == "cpu" and tensor.numel() else tensor

    return allocate
