"""Chooses who computes: the Triton kernels (`fast.kernels`) or the CPU path (`fast.cpu`).

A CUDA tensor goes to the kernels. A CPU tensor goes to the CPU path, with two exceptions, in which the kernels run on CPU tensors: slow,
and exactly what a GPU-less machine needs to check them. Under TRITON_INTERPRET=1 Triton interprets their source; within `emulator.gpu`,
which sets EMULATED_GPU, what the compiler made of them is run.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType

from torch import Tensor

from . import arguments, cpu
from .interpreter import emulated, interpreted

CHOICES = ("auto", "triton", "cpu")
_chosen: ContextVar[str] = ContextVar("backend", default="auto")


@contextmanager
def backend(choice: str) -> Iterator[None]:
    """Within this context, `choice` computes: "triton", "cpu", or "auto" (the default: by device).

    Raises:
        ValueError: an unknown choice.
    """
    token = _chosen.set(arguments.one_of("backend", choice, CHOICES))
    try:
        yield
    finally:
        _chosen.reset(token)


def implementation(x: Tensor) -> ModuleType:
    """Returns the module that computes for `x`.

    Raises:
        RuntimeError: the kernels are asked for where they cannot run.
    """
    on_cpu = interpreted() or emulated() is not None
    choice = _chosen.get()
    if choice == "auto":
        choice = "triton" if x.is_cuda or on_cpu else "cpu"
    if choice == "cpu":
        return cpu
    if not (x.is_cuda or on_cpu):
        raise RuntimeError("Triton kernels need a CUDA tensor, or TRITON_INTERPRET=1 set before Triton is imported")
    try:
        from . import kernels
    except ImportError as error:
        raise RuntimeError(f"a {x.device} tensor needs the package triton, which does not import here: {error}") from error
    return kernels
