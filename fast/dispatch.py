"""Chooses who computes: the Triton kernels (`fast.kernels`) or an engine of the CPU (`fast.cpu`).

A CUDA tensor goes to the kernels. A CPU tensor goes to the CPU's engine, which `fast.cpu.engine` chooses, with two exceptions, in which
the kernels run on CPU tensors: slow, and exactly what a GPU-less machine needs to check them. Under TRITON_INTERPRET=1 Triton interprets
their source; within `emulator.gpu`, which sets EMULATED_GPU, what the compiler made of them is run.
"""

from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from .choice import Choice
from .cpu import engine
from .cpu.native import Native
from .interpreter import emulated, interpreted

CHOICES = ("auto", "triton", "cpu", *engine.CHOICES)
_chosen = Choice("backend", CHOICES)


def backend(choice: str) -> AbstractContextManager[None]:
    """Within this context, `choice` computes.

    Args:
        choice: "auto" (the default): by device. "triton": the kernels. "cpu": the CPU's best engine, as `cpu_engine` names it. "torch":
            the CPU's engine of Torch operations. "native": its compiled engine; or that with one set of instructions, "avx512_vnni",
            "avx_vnni", "avx2", "neon_dotprod" or "portable".

    Raises:
        ValueError: an unknown choice.
    """
    return _chosen.within(choice)


def implementation(x: Tensor) -> Any:
    """Returns what computes for `x` (M, K), a module or an object with the functions of `fast.cpu`.

    Raises:
        RuntimeError: the chosen engine cannot run here.
    """
    choice = _chosen.get() or "auto"
    if choice == "auto":
        choice = "triton" if x.is_cuda or _kernels_take_cpu_tensors() else "cpu"
    if choice != "triton":
        return engine.implementation(choice, x.shape[0])
    if not (x.is_cuda or _kernels_take_cpu_tensors()):
        raise RuntimeError("Triton kernels need a CUDA tensor, or TRITON_INTERPRET=1 set before Triton is imported")
    try:
        from . import kernels
    except ImportError as error:
        raise RuntimeError(f"a {x.device} tensor needs the package triton, which does not import here: {error}") from error
    return kernels


def native_engine() -> Native | None:
    """The native engine, where it computes for a CPU tensor of any number of rows; None where something else may."""
    choice = _chosen.get() or "auto"
    if choice in ("auto", "cpu"):
        return None if choice == "auto" and _kernels_take_cpu_tensors() else engine.for_all_rows()
    return None if choice in ("triton", "torch") else engine.implementation(choice, 1)


def _kernels_take_cpu_tensors() -> bool:
    return interpreted() or emulated() is not None
