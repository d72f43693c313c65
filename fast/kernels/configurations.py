"""Block shapes, warps and pipeline stages, by architecture and shape: fixed tables, no autotuning at run time.

Nothing here has been timed on a GPU yet: the rows follow from the counts written beside them and from what the compiler makes of
them (registers, shared memory, spills: `python -m tests.generated_code --table`). `python -m experiments.tune` times them
and their neighbours on a machine with a GPU.
"""

from functools import cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor

#: Up to here one program holds all of X's rows in one tile of a matrix instruction (16 rows), and the layer is one launch.
DECODE_ROWS = 16


class Scan(NamedTuple):
    """`scan_columns`: a block of X that a program reads at a time, and how many programs share a block of columns."""

    block_m: int
    block_k: int
    splits: int
    warps: int


class Rows(NamedTuple):
    """`quantize_rows`: the rows of a program, and the columns that it holds at a time."""

    rows: int
    block_k: int
    warps: int


class Product(NamedTuple):
    """`product_kernel`: the tile, the steps of its two loops, the rows of tiles in a group; parts as in product.py."""

    block_m: int
    block_n: int
    block_k: int
    block_o: int
    group_m: int
    parts: int
    warps: int
    stages: int


class Decode(NamedTuple):
    """`decode_kernel`: the padded rows of X, the rows of W of a program, and the columns that it reads at a time."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int


@cache
def architecture(device: torch.device) -> str:
    """"sm_90" and the like; the nearest older one that has a table; "interpreter" for a CPU."""
    if device.type == "cpu":
        return "interpreter"
    if torch.version.hip:
        return "gfx942"
    major, minor = torch.cuda.get_device_capability(device)
    return max((known for known in ARCHITECTURES if known <= (major, minor)), default=(8, 0)) and "sm_80"


def scan_configuration(x: Tensor) -> Scan:
    return Scan(32, 64, 3, 4)


def rows_configuration(x: Tensor) -> Rows:
    return Rows(4, min(triton.next_power_of_2(x.shape[1]), 64), 4)


def product_configuration(device, m, n, k, dtype, outliers) -> Product:
    return Product(32, 32, 32, 16, 2, 2, 4, 2)


def decode_configuration(x: Tensor, n: int) -> Decode:
    return Decode(16, 32, 32, 4, 2)
