"""Whether Triton's interpreter runs the kernels, on CPU tensors, instead of its compiler."""

import os


def interpreted() -> bool:
    """Whether TRITON_INTERPRET=1 is set; Triton reads it where a kernel is defined, so it must be set before `fast.kernels` is imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"
