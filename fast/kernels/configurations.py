"""Block shapes, warps and pipeline stages, by architecture and shape: fixed tables, no autotuning at run time.

Nothing here has been timed on a GPU yet: each row follows from the counts beside it and from what the compiler makes of it
(registers, shared memory, spills: `python -m tests.generated_code --table`). `python -m experiments.tune` times the rows and their
neighbours on a machine with a GPU.
"""

from functools import cache
from typing import NamedTuple

import torch
import triton

#: Up to here one program holds all rows of X in the one tile (16 rows) of a matrix instruction, and the layer is one launch.
DECODE_ROWS = 16


class Scan(NamedTuple):
    """`scan_columns`: the block of X that a program reads at a time, and into how many splits the rows go."""

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
    """`product_kernel`: the tile, the steps of its two loops, the rows of tiles in a group, parts as in product.py.

    tma: load the tiles by tensor descriptors, where pointers and strides allow it.
    """

    block_m: int
    block_n: int
    block_k: int
    block_o: int
    group_m: int
    parts: int
    warps: int
    stages: int
    tma: bool = False


class Decode(NamedTuple):
    """`decode_kernel`: the padded rows of X, the rows of W of a program, and the columns that it reads at a time."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int


# Product tables: (largest M, largest N, row), the first that fits counts; None is no limit.
# An int8 matrix instruction does 2 * block_m * block_n operations for block_m + block_n bytes loaded a column of K: the
# larger the tile the less the second-level cache is asked for, the smaller the tile the more multiprocessors have one.
Table = tuple[tuple[int | None, int | None, Product], ...]

# IMMA, 2048 multiply-adds a cycle and multiprocessor (sm_80), half of it and less on sm_89: a 128 x 128 tile asks for at most
# 32 bytes a cycle.
# Its outlier accumulators in 4 parts leave no spill; 3 buffers of 32 KB (sm_80) or 2 (sm_89, 99 KB in all) in shared memory.
AMPERE: Table = (
    (32, None, Product(32, 128, 128, 16, 8, 2, 4, 4)),  # few rows: W decides, its tile stays wide, X's is not padded to 64
    (64, None, Product(64, 128, 128, 16, 8, 4, 4, 4)),
    (None, None, Product(128, 128, 128, 16, 8, 4, 8, 4)),
)
ADA: Table = (
    (32, None, Product(32, 128, 128, 16, 8, 2, 4, 4)),
    (64, None, Product(64, 128, 128, 16, 8, 4, 4, 4)),
    (None, None, Product(128, 128, 128, 16, 8, 4, 8, 3)),
)
# IGMMA, 4096 multiply-adds a cycle and multiprocessor: 128 x 128 asks for 64 bytes a cycle, 128 x 256 for 48. The wide tile has all
# registers with its outlier accumulators in 4 parts, and 4 buffers of 48 KB. The copy engine loads it: with
# per-thread copies the addresses alone would spill. Narrow tiles while the wide ones would not give every multiprocessor one.
HOPPER: Table = (
    (64, None, Product(64, 128, 128, 16, 8, 4, 4, 4, tma=True)),
    (1024, 4096, Product(128, 128, 128, 16, 8, 4, 8, 4, tma=True)),
    (256, None, Product(128, 128, 128, 16, 8, 4, 8, 4, tma=True)),
    (None, None, Product(128, 256, 128, 16, 8, 4, 8, 4, tma=True)),
)
# Triton 3.7 multiplies int8 by the older IMMA on sm_100, so the tile is that of sm_80.
BLACKWELL = AMPERE
# Matrix cores of 64 lanes; 64 KB of shared memory: 2 buffers of 16 KB.
CDNA3: Table = (
    (64, None, Product(64, 128, 64, 16, 8, 2, 4, 2)),
    (None, None, Product(128, 128, 64, 16, 8, 2, 8, 2)),
)
# Small, so that small tests have several tiles and ragged edges.
INTERPRETER: Table = ((None, None, Product(32, 32, 32, 16, 2, 2, 4, 2)),)

PRODUCTS = {
    "interpreter": INTERPRETER, "gfx942": CDNA3, "sm_80": AMPERE, "sm_89": ADA, "sm_90": HOPPER, "sm_100": BLACKWELL
}  # fmt: skip

#: For float32 outliers, 64-bit corrections, and operands that no descriptor or 16-byte load can describe: more registers go
#: into addresses and sums, so the tile is the smaller one, finished in more parts.
GENERAL = {
    "interpreter": INTERPRETER[0][2],
    "gfx942": Product(64, 64, 64, 16, 8, 2, 4, 2),
    "sm_80": Product(128, 128, 64, 16, 8, 8, 8, 3),
    "sm_89": Product(128, 128, 64, 16, 8, 8, 8, 3),
    "sm_90": Product(128, 128, 64, 16, 8, 8, 8, 3),
    "sm_100": Product(128, 128, 64, 16, 8, 8, 8, 3),
}

# Decoding reads N * K bytes once. In flight must be bandwidth times latency: about 36 bytes a nanosecond (H200, a
# multiprocessor) times 0.7 microseconds, 25 KB. Four stages of 64 x 128 bytes are 32 KB. Narrower where N is too small to give
# every multiprocessor a block of 64.
DECODES = ((2048, Decode(16, 16, 256, 4, 5)), (8191, Decode(16, 32, 128, 4, 5)), (None, Decode(16, 64, 128, 4, 5)))
DECODE_INTERPRETER = Decode(16, 32, 32, 4, 2)


@cache
def architecture(device: torch.device) -> str:
    """Which tables serve `device`: the newest architecture that is not newer than it; "interpreter" for a CPU."""
    if device.type == "cpu":
        return "interpreter"
    if torch.version.hip:
        return "gfx942"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        raise RuntimeError(f"the kernels need int8 matrix instructions that Triton has from compute capability 8.0 on, got {capability}")
    known = {(8, 0): "sm_80", (8, 9): "sm_89", (9, 0): "sm_90", (10, 0): "sm_100"}
    # 12.0, the consumer parts, has the 99 KB of shared memory of 8.9.
    return "sm_89" if capability >= (12, 0) else known[max(c for c in known if c <= capability)]


def scan_configuration(arch: str, m: int, k: int) -> Scan:
    """64 columns are a line of 128 bytes (16-bit X), and 64 rows give each thread 4 loads of 16 bytes at once."""
    if arch == "interpreter":
        return Scan(16, 32, 3, 4)
    # As many programs as fill a large GPU four times, but at most 4 splits: `quantize_rows` reads a line of flags for each.
    programs = triton.cdiv(k, 64)
    return Scan(64, 64, max(1, min(4, triton.cdiv(512, programs), triton.cdiv(m, 256))), 4)


def rows_configuration(arch: str, k: int) -> Rows:
    """32 entries a thread: 4 loads of 16 bytes at once (16-bit X), and a row of up to 16384 in the registers of 16 warps.

    Longer rows go through in blocks of 8192, twice.
    """
    if arch == "interpreter":
        return Rows(4, 32 if k > 64 else 64, 4)
    block_k = triton.next_power_of_2(k) if k <= 16384 else 8192
    rows = max(1, 4096 // block_k)
    return Rows(rows, max(block_k, 16), min(16, max(4, rows * block_k // 1024)))


def product_configuration(arch: str, m: int, n: int, general: bool) -> Product:
    """The row of the table for a product of (m, K) and (n, K); `general` as in GENERAL."""
    if general:
        return GENERAL[arch]
    return next(row for most_m, most_n, row in PRODUCTS[arch] if (most_m is None or m <= most_m) and (most_n is None or n <= most_n))


def decode_configuration(arch: str, n: int) -> Decode:
    """The row of the table for a weight of n rows."""
    if arch == "interpreter":
        return DECODE_INTERPRETER
    return next(row for most_n, row in DECODES if most_n is None or n <= most_n)
