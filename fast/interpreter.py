"""Whether the kernels run on CPU tensors: in Triton's interpreter, which reads their source, or compiled, on an emulated GPU."""

import os

# The dictionary inside os.environ, and its form of a name. os.environ itself raises and catches an exception for a name that is not set:
# 0.6 microseconds, and a layer looks for two at every call.
_variables = getattr(os.environ, "_data", os.environ)
_INTERPRET, _EMULATED = (getattr(os.environ, "encodekey", str)(name) for name in ("TRITON_INTERPRET", "EMULATED_GPU"))


def interpreted() -> bool:
    """Whether TRITON_INTERPRET=1 is set; Triton reads it where a kernel is defined, so it must be set before `fast.kernels` is imported."""
    return _INTERPRET in _variables and os.environ["TRITON_INTERPRET"] == "1"


def emulated() -> str | None:
    """The architecture of the emulated GPU whose context (`emulator.gpu`) is open, such as "sm_90"; None for none."""
    return os.environ["EMULATED_GPU"] if _EMULATED in _variables else None
