"""Tensors whose neighbours in memory may not be touched: a load or store outside of them ends the process.

Triton's interpreter loads and stores at the addresses that a kernel works out. A mask that is missing, or an index that is one too
large, mostly meets memory that happens to be there, and the result happens to be right. Beside a page without rights it does not.
"""

import ctypes
import mmap
from contextlib import AbstractContextManager
from functools import partial

import numpy as np
import torch
from torch import Tensor

from tests.comparison import poisoned

#: Bytes on either side that nobody may touch: more than a row of what the tests here use.
GUARD = 16 * mmap.PAGESIZE
PROT_NONE = 0


def guarded(x: Tensor, at: str) -> Tensor:
    """A contiguous copy of `x` on the CPU whose first byte (`at` "start") or last byte ("end") borders memory without rights."""
    size = x.numel() * x.element_size()
    if size == 0:
        return x.contiguous()
    inside = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, GUARD + inside + GUARD)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for guard in (start, start + GUARD + inside):
        if ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(GUARD), PROT_NONE):
            raise OSError(ctypes.get_errno(), "mprotect")
    offset = GUARD + (inside - size if at == "end" else 0)
    copy = torch.from_numpy(np.frombuffer(memory, np.int8, size, offset)).view(x.dtype).view(x.shape)
    return copy.copy_(x)


def guarded_buffers(at: str) -> AbstractContextManager[None]:
    """Within this context `torch.empty` gives `guarded` buffers, `poisoned` as well."""
    return poisoned(partial(guarded, at=at))
