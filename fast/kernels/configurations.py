"""Block shapes, warps and pipeline stages, by architecture and shape: fixed tables, no autotuning at run time.

Nothing here has been timed on a GPU yet: each row follows from the counts beside it and from what the compiler makes of it
(registers, shared memory, spills: `python -m tests.generated_code --table`). `python -m experiments.tune` times the rows and their
neighbours on a machine with a GPU.
"""

from functools import cache
from typing import NamedTuple, TypeVar

import torch
import triton

from ..interpreter import emulated

#: Up to here one program holds all rows of X in the one tile (16 rows) of a matrix instruction, and the layer is one launch.
DECODE_ROWS = 16


Row = TypeVar("Row")


class Scan(NamedTuple):
    """`scan_columns`: the block of X that a program reads at a time, and into how many splits the rows go."""

    block_m: int
    block_k: int
    splits: int
    warps: int


class Rows(NamedTuple):
    """`quantize_rows`: the rows and columns that a program holds at a time, and how often it does so."""

    rows: int
    block_k: int
    repeat: int
    warps: int


class Gather(NamedTuple):
    """The gathering of outlier columns: the rows of X or W of a program, the columns that it copies at a time, and how many at most."""

    rows: int
    block_o: int
    columns: int


class Product(NamedTuple):
    """`product_kernel`: the tile, the steps of its two loops, the rows of tiles in a group.

    tma: load the tiles by tensor descriptors, where pointers and strides allow it.
    """

    block_m: int
    block_n: int
    block_k: int
    block_o: int
    group_m: int
    warps: int
    stages: int
    tma: bool = False


class Decode(NamedTuple):
    """`decode_kernel`: the rows of its tile, the rows of W of a program, and the columns that it reads at a time.

    scan: the entries of X that its first pass reads at a time.
    """

    tile_m: int
    block_n: int
    block_k: int
    scan: int
    warps: int
    stages: int


# Product tables: (largest M, largest N, row), the first that fits counts; None is no limit.
# An int8 matrix instruction does 2 * block_m * block_n operations for block_m + block_n bytes loaded a column of K: the
# larger the tile the less the second-level cache is asked for, the smaller the tile the more multiprocessors have one.
Table = tuple[tuple[int | None, int | None, Product], ...]
Decodes = tuple[tuple[int | None, int | None, Decode], ...]

# IMMA, 2048 multiply-adds a cycle and multiprocessor (sm_80), half of it and less on sm_89: a 128 x 128 tile asks for at most
# 32 bytes a cycle. 3 stages of 32 KB on their way (sm_80), or 2 (sm_89, 99 KB in all).
AMPERE: Table = (
    (32, None, Product(32, 128, 128, 16, 8, 4, 4)),  # few rows: W decides, its tile stays wide, X's is not padded to 64
    (64, None, Product(64, 128, 128, 16, 8, 4, 4)),
    (None, None, Product(128, 128, 128, 16, 8, 8, 4)),
)
ADA: Table = (
    (32, None, Product(32, 128, 128, 16, 8, 4, 4)),
    (64, None, Product(64, 128, 128, 16, 8, 4, 4)),
    (None, None, Product(128, 128, 128, 16, 8, 8, 3)),
)
# IGMMA, 4096 multiply-adds a cycle and multiprocessor: at that rate 128 x 128 asks for 64 bytes a cycle, 128 x 256 for 48, so the
# wide tile, whose accumulators are half of all registers, and 4 stages of 48 KB. The copy engine loads it: with per-thread copies the
# addresses alone would spill. Narrower tiles while the wide ones would not give every one of 132 multiprocessors one.
HOPPER: Table = (
    (64, None, Product(64, 128, 128, 16, 8, 4, 4, tma=True)),
    (512, 4096, Product(128, 128, 128, 16, 8, 8, 4, tma=True)),
    (256, 8192, Product(128, 128, 128, 16, 8, 8, 4, tma=True)),
    (None, None, Product(128, 256, 128, 16, 8, 8, 4, tma=True)),
)
# Triton 3.7 multiplies int8 by the older IMMA on sm_100, so the tile is that of sm_80.
BLACKWELL = AMPERE
# Matrix cores of 64 lanes; 64 KB of shared memory: 2 buffers of 16 KB.
CDNA3: Table = (
    (64, None, Product(64, 128, 64, 16, 8, 4, 2)),
    (None, None, Product(128, 128, 64, 16, 8, 8, 2)),
)
# Small, so that small tests have several tiles and ragged edges.
INTERPRETER: Table = ((None, None, Product(32, 32, 32, 16, 2, 4, 2)),)

PRODUCTS = {
    "interpreter": INTERPRETER, "gfx942": CDNA3, "sm_80": AMPERE, "sm_89": ADA, "sm_90": HOPPER, "sm_100": BLACKWELL
}  # fmt: skip

#: For float32 outliers, 64-bit corrections, and operands that no descriptor or 16-byte load can describe: more registers go
#: into addresses and sums, so the tile is the smaller one.
GENERAL = {
    "interpreter": INTERPRETER[0][2],
    "gfx942": Product(64, 64, 64, 16, 8, 4, 2),
    "sm_80": Product(128, 64, 64, 16, 8, 8, 3),
    "sm_89": Product(128, 64, 64, 16, 8, 8, 3),
    "sm_90": Product(128, 64, 64, 16, 8, 8, 3),
    "sm_100": Product(128, 64, 64, 16, 8, 8, 3),
}

# Decoding: (largest M, largest N, row). W is read once: in flight must be bandwidth times latency, about 25 bytes a nanosecond (H100,
# a multiprocessor) times 0.8 microseconds, 20 KB: three or more stages, of two programs where they are small.
# X is read twice by each program, 4 * M * K bytes to its block_n * K of W, from the second-level cache: the more rows X has, the more
# rows of W a program should own; but at most so many that each of 132 multiprocessors has a program.
# A tile has the 16 rows of a matrix instruction. One row stays one: to quantize 15 rows of padding would take longer than to read W.
DECODE: Decodes = (
    (1, 2048, Decode(1, 16, 256, 4096, 4, 6)),
    (1, None, Decode(1, 32, 256, 4096, 4, 5)),
    (16, 2048, Decode(16, 16, 256, 4096, 4, 6)),
    (16, 4096, Decode(16, 32, 256, 8192, 8, 5)),
    (16, None, Decode(16, 64, 128, 8192, 4, 6)),
)
# Its matrix instructions have no tile of one row, and wider blocks spill.
DECODE_CDNA3: Decodes = ((None, None, Decode(16, 16, 256, 4096, 4, 2)),)
DECODE_INTERPRETER: Decodes = ((1, None, Decode(1, 32, 32, 64, 4, 2)), (None, None, Decode(16, 32, 32, 64, 4, 2)))

DECODES = {
    "interpreter": DECODE_INTERPRETER, "gfx942": DECODE_CDNA3, "sm_80": DECODE, "sm_89": DECODE, "sm_90": DECODE, "sm_100": DECODE
}  # fmt: skip

#: For a W that no 16-byte load can describe: its addresses, one a byte, take the registers.
DECODE_GENERAL = Decode(16, 16, 128, 4096, 4, 2)


def architecture(device: torch.device) -> str:
    """Which tables serve `device`: the newest architecture that is not newer than it; for a CPU the emulated one or "interpreter"."""
    if device.type == "cpu":
        return emulated() or "interpreter"
    return _gpu_architecture(device)


@cache
def _gpu_architecture(device: torch.device) -> str:
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


def rows_configuration(arch: str, m: int, k: int) -> Rows:
    """32 entries a thread: 4 loads of 16 bytes at once (16-bit X), and a row of up to 16384 in the registers of 16 warps.

    Longer rows go through in blocks of 8192, twice. A program goes on to other rows with the outlier mask that it has worked out, as
    long as that leaves about 1024 programs, eight for each of 132 multiprocessors.
    """
    if arch == "interpreter":
        return Rows(4, 32 if k > 64 else 64, 2, 4)
    block_k = max(triton.next_power_of_2(k), 16) if k <= 16384 else 8192
    rows = max(1, 4096 // block_k)
    return Rows(rows, block_k, max(1, min(8, m // (rows * 1024))), min(16, max(4, rows * block_k // 1024)))


def all_registers(warps: int) -> dict[str, int]:
    """Launch option that lets one program have the whole register file of a multiprocessor.

    Left to itself NVIDIA's assembler takes fewer registers, for one more program on it, and in some variants of `quantize_rows` sends
    values through memory for that. AMD's compiler knows no such option.
    """
    return {} if torch.version.hip else {"maxnreg": min(255, 2048 // warps)}


def gather_configuration(arch: str, m: int, k: int) -> Gather | None:
    """How the outlier columns of X (m, k) and of W are gathered, or None where the product reads them where they are.

    Read in place, an entry of a column costs a sector of 32 bytes in every tile that needs it, m / block_m times for W; gathered, it
    costs one, and afterwards 2 bytes or 1 a tile. With few tiles there is nothing to save, and the gathering takes longer
    than the quantizing that it hides behind. The buffers hold k / 16 columns, a sixteenth of the bytes of X and of the outlier weight;
    further columns are read in place. 64 rows and 32 columns are 2048 sectors on their way at once.
    """
    if arch == "interpreter":
        return Gather(32, 16, 16) if m >= 24 else None
    return Gather(64, 32, max(32, k // 512 * 32)) if m >= 1024 else None


def product_configuration(arch: str, m: int, n: int, general: bool) -> Product:
    """The row of the table for a product of (m, K) and (n, K); `general` as in GENERAL."""
    return GENERAL[arch] if general else first_fit(PRODUCTS[arch], m, n)


def decode_configuration(arch: str, m: int, n: int, general: bool) -> Decode:
    """The row of the table for m rows of X and n of W; `general` as in DECODE_GENERAL."""
    return DECODE_GENERAL if general and arch != "interpreter" else first_fit(DECODES[arch], m, n)


def first_fit(table: tuple[tuple[int | None, int | None, Row], ...], m: int, n: int) -> Row:
    """The first row of `table` whose limits m and n do not exceed."""
    return next(row for most_m, most_n, row in table if (most_m is None or m <= most_m) and (most_n is None or n <= most_n))
