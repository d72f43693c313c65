"""Buffers around the launch of a reader's kernel, under TRITON_INTERPRET=1 or on a GPU.

Every launch writes into buffers filled with a sentinel, with room around the result, and reads from rows that are
longer than K and hold huge numbers beyond it: a forgotten mask, a wrong stride or an entry never written all show.
"""

import os

import numpy as np
import torch

SENTINEL_CODE, SENTINEL_SCALE = -99, -99.0
DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"


def padded(values: np.ndarray, extra: int, fill: float) -> torch.Tensor:
    """`values` (rows, K) on the device, as a view of rows that are `extra` longer; `fill` there, and in a block beyond the last row."""
    rows, k = values.shape
    flat = np.full(rows * (k + extra) + power_of_two(k), fill, values.dtype)
    wide = flat[: rows * (k + extra)].reshape(rows, k + extra)
    wide[:, :k] = values
    return torch.from_numpy(flat).to(DEVICE)[: wide.size].view(wide.shape)[:, :k]


def power_of_two(n: int) -> int:
    """The smallest one that is at least `n`."""
    return 1 << (n - 1).bit_length()
