"""Whether the kernels run on CPU tensors: in Triton's interpreter, which reads their source, or compiled, on an emulated GPU."""

import os


def interpreted() -> bool:
    """Whether TRITON_INTERPRET=1 is set; Triton reads it where a kernel is defined, so it must be set before `fast.kernels` is imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def emulated() -> str | None:
    """The architecture of the emulated GPU whose context (`emulator.gpu`) is open, such as "sm_90"; None for none."""
    return os.environ.get("EMULATED_GPU")
