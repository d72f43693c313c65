"""Block shapes, warps and pipeline stages, by architecture and shape: fixed tables, no autotuning at run time.

Nothing here has been timed on a GPU yet: each row follows from the counts beside it and from what the compiler makes of it
(registers, shared memory, spills: `python -m tests.tools.generated_code --table`). `python -m experiments.tune` times the rows and their
neighbours on a machine with a GPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, NamedTuple

import torch
import triton

from ..interpreter import emulated

#: Up to this many rows, X fits in one 16-row matrix-instruction tile, and the whole layer is a single launch.
DECODE_ROWS = 16

#: Up to this many columns, one program of `quantize_rows` holds a row of X in its registers.
HELD_COLUMNS = 16384

#: From this many rows of X on, gathering its outlier columns pays.
GATHER_FROM = 1024

#: So many outlier columns are gathered at a time, and multiplied at a time: as many codes of W fill a sector of 32 bytes.
GATHERED_BLOCK = 32


class Scan(NamedTuple):
    """`scan_columns`: the block of X that a program reads at a time, and into how many splits the rows go."""

    block_m: int
    block_k: int
    splits: int
    warps: int
    stages: int


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
    """`product_kernel`: the tile, the steps of its two loops (block_o: of gathered columns), the rows of tiles in a group.

    tma: load the tiles by tensor descriptors, where pointers and strides allow it.
    gluon: by `hopper_product_kernel` instead, on sm_90, with tma, and where Triton compiles it.
    """

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    tma: bool = False
    block_o: int = GATHERED_BLOCK
    group_m: int = 8
    gluon: bool = False


class Decode(NamedTuple):
    """`decode_kernel`: the fewest rows of its tile, the rows of W of a program, and the columns that it reads at a time.

    scan: the entries of X that its first pass reads at a time.
    """

    tile_m: int
    block_n: int
    block_k: int
    scan: int
    warps: int
    stages: int


class Row(NamedTuple):
    """A row of a table: the largest M and N that it serves (None is no limit), and what it gives them. The first row that fits counts."""

    configuration: Any
    up_to_m: int | None = None
    up_to_n: int | None = None


Table = tuple[Row, ...]

# An int8 matrix instruction does 2 * block_m * block_n operations for block_m + block_n bytes loaded per column of K: the
# larger the tile, the fewer bytes come from the second-level cache; the smaller the tile, the more multiprocessors have one.

# IMMA, 2048 multiply-adds per cycle and multiprocessor (sm_80), half of it and less on sm_89: a 128 x 256 tile needs at most
# 24 bytes per cycle from the second-level cache. Shared memory passes 128 bytes per cycle, and each warp reads the rows of both operands
# that it multiplies: with 64 x 64 of the tile per warp that is 0.7 of the matrix unit's time, with 32 x 64, as where 8 warps share
# 128 x 128, all of it. 3 stages of 24 KB in flight.
# Few rows: W decides, its tile stays wide, X's is not padded to 64. Use narrower tiles while these, too, are no more than the 108
# multiprocessors.
NARROW_AMPERE = Product(block_m=128, block_n=128, block_k=128, warps=8, stages=3)
AMPERE: Table = (
    Row(Product(block_m=32, block_n=128, block_k=128, warps=4, stages=4), up_to_m=32),
    Row(Product(block_m=64, block_n=128, block_k=128, warps=4, stages=4), up_to_m=64),
    Row(NARROW_AMPERE, up_to_m=256, up_to_n=4096),
    Row(NARROW_AMPERE, up_to_m=128, up_to_n=8192),
    Row(Product(block_m=128, block_n=256, block_k=64, warps=8, stages=4)),
)
# IGMMA, 4096 multiply-adds per cycle and multiprocessor: at that rate 128 x 128 needs 64 bytes per cycle, 128 x 256 needs 48, so the
# wide tile, whose accumulators are half of all registers, and 4 stages of 48 KB. The copy engine loads it: with
# per-thread copies the addresses alone would spill. Use narrower tiles while there are fewer wide tiles than the 132 multiprocessors.
NARROW_HOPPER = Product(block_m=128, block_n=128, block_k=128, warps=8, stages=4, tma=True)
HOPPER: Table = (
    Row(Product(block_m=64, block_n=128, block_k=128, warps=4, stages=4, tma=True), up_to_m=64),
    Row(NARROW_HOPPER, up_to_m=512, up_to_n=4096),
    Row(NARROW_HOPPER, up_to_m=256, up_to_n=8192),
    Row(Product(block_m=128, block_n=256, block_k=128, warps=8, stages=4, tma=True)),
)
# Triton 3.7 multiplies int8 by the older IMMA on sm_100, so the tiles are those of sm_80. The wide one would spill with 32 gathered
# columns at a time, and where no columns are gathered.
BLACKWELL: Table = (
    *AMPERE[:2],
    Row(NARROW_AMPERE, up_to_m=GATHER_FROM - 1),
    Row(Product(block_m=128, block_n=256, block_k=64, warps=8, stages=4, block_o=16)),
)
# Matrix cores of 64 lanes; 64 KB of shared memory: 2 buffers of 16 KB.
CDNA3: Table = (
    Row(Product(block_m=64, block_n=128, block_k=64, warps=4, stages=2), up_to_m=64),
    Row(Product(block_m=128, block_n=128, block_k=64, warps=8, stages=2)),
)
# Small, so that small tests have several tiles and ragged edges.
INTERPRETER: Table = (Row(Product(block_m=32, block_n=32, block_k=32, warps=4, stages=2, block_o=16, group_m=2)),)


def before_3_7() -> bool:
    """Whether this is Triton 3.6, which differs in what this file has to know; each place says in what."""
    return tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7)


NVIDIA = ("sm_80", "sm_89", "sm_90", "sm_100")
PRODUCTS = {"interpreter": INTERPRETER, "gfx942": CDNA3, "sm_80": AMPERE, "sm_89": AMPERE, "sm_90": HOPPER, "sm_100": BLACKWELL}

#: For float32 outliers, 64-bit corrections, and operands that no descriptor or 16-byte load can describe: more registers go
#: into addresses and sums, so the tile is the smaller one. They are `product_kernel`'s alone.
GENERAL = {
    "interpreter": INTERPRETER[0].configuration,
    "gfx942": Product(block_m=64, block_n=64, block_k=64, warps=4, stages=2),
} | dict.fromkeys(NVIDIA, Product(block_m=128, block_n=64, block_k=64, warps=8, stages=3))
if before_3_7():
    # Triton 3.6 has Hopper's matrix unit read what threads copied ahead of time without the fence (fence.proxy.async) that makes such
    # copies visible to it; in one stage, blocks pass through registers, and the fence is there.
    GENERAL["sm_90"] = GENERAL["sm_90"]._replace(stages=1)

# The tiles of experts: each thread also holds which expert and which of its rows a tile has, and beside these the tiles of 128 x 256
# spill (sm_80, sm_90) and a program owns 128 columns at most. Few experts have as many rows as would fill a higher tile.
EXPERT_AMPERE: Table = (*AMPERE[:2], Row(NARROW_AMPERE))
EXPERT_PRODUCTS = {"interpreter": INTERPRETER, "gfx942": CDNA3} | dict.fromkeys(NVIDIA, EXPERT_AMPERE)
EXPERT_PRODUCTS["sm_90"] = (HOPPER[0], Row(NARROW_HOPPER))

#: For experts' codes that no descriptor or 16-byte load can describe: of 64 columns of K at a time, each of which has an address per byte,
#: every tile spills on sm_90, and so does the one of 64 x 64 with 32 of them.
EXPERT_UNALIGNED = {"interpreter": INTERPRETER[0].configuration} | dict.fromkeys(
    ("gfx942", *NVIDIA), Product(block_m=64, block_n=32, block_k=32, warps=4, stages=2)
)
if before_3_7():  # as in GENERAL
    EXPERT_UNALIGNED["sm_90"] = EXPERT_UNALIGNED["sm_90"]._replace(stages=1)

# W is read once: the bytes in flight must be bandwidth times latency, about 25 bytes per nanosecond (H100, one multiprocessor) times
# 0.8 microseconds, 20 KB: three or more further blocks of W.
# X is read twice by each program, 4 * M * K bytes to its block_n * K of W, from the second-level cache, and its work is the same for any
# block_n: the more rows X has, the more rows of W a program should own; but, as long as W's time is the longer one, at most so many that
# each of 132 multiprocessors has a program. Where X's work is the longer one (16 rows of 4096 and less), wider blocks cost no time.
# The tile has the rows of X, up to a power of two: a row of padding would be quantized as well.
# block_k and scan / rows are 2 to 8 times the threads of a program, so that each thread has whole columns of the blocks of X, and their
# maxima need no exchange.
DECODE: Table = (
    Row(Decode(tile_m=1, block_n=16, block_k=256, scan=4096, warps=4, stages=6), up_to_m=1, up_to_n=2048),
    Row(Decode(tile_m=1, block_n=32, block_k=256, scan=4096, warps=4, stages=5), up_to_m=1),
    Row(Decode(tile_m=1, block_n=16, block_k=256, scan=4096, warps=2, stages=6), up_to_m=4, up_to_n=2048),
    Row(Decode(tile_m=1, block_n=32, block_k=256, scan=8192, warps=4, stages=5), up_to_m=8, up_to_n=4096),
    Row(Decode(tile_m=1, block_n=64, block_k=256, scan=8192, warps=4, stages=4), up_to_m=16),
)
# 99 KB of shared memory: with a float weight, four stages of the widest row would take 112 KB.
DECODE_ADA: Table = (
    *DECODE[:-1],
    Row(Decode(tile_m=1, block_n=64, block_k=256, scan=8192, warps=4, stages=3), up_to_m=16),
)
# Its matrix instructions have 16 rows, and wider blocks spill.
DECODE_CDNA3: Table = (Row(Decode(tile_m=16, block_n=16, block_k=256, scan=4096, warps=4, stages=2)),)
# The tokens of an expert may lie anywhere among the rows of X, whose addresses are held for each: with 16 of them, 64 rows of W beside
# them spill on sm_90.
EXPERT_DECODE: Table = (*DECODE[:3], Row(DECODE[3].configuration, up_to_m=16))
DECODE_INTERPRETER: Table = (
    Row(Decode(tile_m=1, block_n=32, block_k=32, scan=64, warps=4, stages=2), up_to_m=1),
    Row(Decode(tile_m=16, block_n=32, block_k=32, scan=64, warps=4, stages=2)),
)

DECODES = {"interpreter": DECODE_INTERPRETER, "gfx942": DECODE_CDNA3} | dict.fromkeys(NVIDIA, DECODE) | {"sm_89": DECODE_ADA}
EXPERT_DECODES = DECODES | dict.fromkeys(NVIDIA, EXPERT_DECODE)

#: For a W that no 16-byte load can describe: its addresses, one per byte, take the registers. Triton 3.6 needs more of them.
DECODE_GENERAL = Decode(tile_m=16, block_n=16, block_k=64 if before_3_7() else 128, scan=4096, warps=4, stages=2)


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
    # The assembler of Triton 3.6 (ptxas 12.9) fuses a pair of products with the pair of sums that rounds it, in spite of `.rn` and
    # --fmad=false: some codes would be one off. Instructions on pairs exist from compute capability 10.0 on.
    if capability >= (10, 0) and before_3_7():
        raise RuntimeError(f"the kernels need Triton 3.7 or newer on compute capability 10.0 or newer, got Triton {triton.__version__}")
    known = {(8, 0): "sm_80", (8, 9): "sm_89", (9, 0): "sm_90", (10, 0): "sm_100"}
    # 12.0, the consumer parts, has the 99 KB of shared memory of 8.9.
    return "sm_89" if capability >= (12, 0) else known[max(c for c in known if c <= capability)]


def scan_configuration(arch: str, m: int, k: int) -> Scan:
    """64 columns are a line of 128 bytes (16-bit X), and 64 rows give each thread 4 copies of 16 bytes at once, 8 KB per program.

    So many stages that each multiprocessor has 24 KB on their way: three programs with one further block, or one with three.
    """
    if arch == "interpreter":
        return Scan(block_m=16, block_k=32, splits=3, warps=4, stages=2)
    # As many programs as fill a large GPU four times, but at most 4 splits: `quantize_rows` reads a line of flags for each.
    programs = triton.cdiv(k, 64)
    splits = max(1, min(4, triton.cdiv(512, programs), triton.cdiv(m, 256)))
    stages = 2 if programs * splits >= 3 * 132 else 4
    return Scan(block_m=64, block_k=64, splits=splits, warps=4, stages=stages)


def scan_experts_configuration(arch: str) -> Scan:
    """As `scan_configuration`, of an expert's rows, which are few: 16 of them give each thread one copy of 16 bytes, and four stages 8 KB.

    AMD's programs have twice the threads. The experts are the splits, so each program owns what it stores.
    """
    if arch == "interpreter":
        return Scan(16, 32, 1, 4, 2)
    return Scan(block_m=32 if arch == "gfx942" else 16, block_k=64, splits=1, warps=4, stages=4)


def rows_configuration(arch: str, m: int, k: int) -> Rows:
    """32 entries per thread: 4 loads of 16 bytes at once (16-bit X), and a row of HELD_COLUMNS in the registers of 16 warps.

    Longer rows are read in blocks of 8192, twice. A program quantizes further rows with the outlier mask that it has worked out, as
    long as that leaves about 1024 programs, eight for each of 132 multiprocessors.
    """
    if arch == "interpreter":
        return Rows(rows=4, block_k=32 if k > 64 else 64, repeat=2, warps=4)
    block_k = max(triton.next_power_of_2(k), 16) if k <= HELD_COLUMNS else 8192
    rows = max(1, 4096 // block_k)
    repeat = max(1, min(8, m // (rows * 1024)))
    return Rows(rows=rows, block_k=block_k, repeat=repeat, warps=min(16, max(4, rows * block_k // 1024)))


def all_registers(warps: int) -> dict[str, int]:
    """Launch option that lets one program have the whole register file of a multiprocessor.

    By default NVIDIA's assembler takes fewer registers, to fit one more program, and in some variants of `quantize_rows` spills for
    that. AMD's compiler knows no such option.
    """
    return {} if torch.version.hip else {"maxnreg": min(255, 2048 // warps)}


def gather_configuration(arch: str, m: int, k: int) -> Gather | None:
    """How the outlier columns of X (m, k) and of W are gathered, or None where the product reads them where they are.

    Read in place, an entry of a column costs a sector of 32 bytes in every tile that needs it, m / block_m times for W; gathered, it
    costs one, and afterwards 2 bytes or 1 per tile. With few tiles there is nothing to save, and the gathering takes longer
    than the quantization that would hide it. The buffers hold k / 16 columns, a sixteenth of the bytes of X and of the outlier weight;
    further columns are read in place. 64 rows and 32 columns are 2048 sectors in flight at once.
    """
    if arch == "interpreter":
        return Gather(rows=32, block_o=16, columns=16) if m >= 24 else None
    return Gather(rows=64, block_o=GATHERED_BLOCK, columns=max(32, k // 512 * 32)) if m >= GATHER_FROM else None


def product_configuration(arch: str, m: int, n: int, general: bool) -> Product:
    """The row of the table for a product of (m, K) and (n, K); `general` as in GENERAL."""
    row = GENERAL[arch] if general else first_fit(PRODUCTS[arch], m, n)
    return row._replace(gluon=True) if row.tma and _in_gluon.get() else row


_in_gluon: ContextVar[bool] = ContextVar("in_gluon", default=False)


@contextmanager
def gluon() -> Iterator[None]:
    """Within this context the rows with tma (sm_90) are multiplied by `hopper_product_kernel`, in Gluon. Results keep their bits.

    What has no such row, and everything where Triton does not compile that kernel, `product_kernel` multiplies as it does outside.
    """
    token = _in_gluon.set(True)
    try:
        yield
    finally:
        _in_gluon.reset(token)


def decode_configuration(arch: str, m: int, n: int, general: bool) -> Decode:
    """The row of the table for m rows of X and n of W; `general` as in DECODE_GENERAL."""
    return DECODE_GENERAL if general and arch != "interpreter" else first_fit(DECODES[arch], m, n)


def product_experts_configuration(arch: str, m: int, n: int, unaligned: bool, sixteen_bits: bool) -> Product:
    """The row of the table for experts of (n, K) that have `m` rows of X on average: how many each has, the host does not know."""
    if unaligned:
        return EXPERT_UNALIGNED[arch]
    return first_fit(EXPERT_PRODUCTS[arch], m, n) if sixteen_bits else GENERAL[arch]


def decode_experts_configuration(arch: str, tokens: int, n: int, general: bool) -> Decode:
    """The row of the table for so many tokens and `n` rows of W in all experts that they may choose: these are what programs share."""
    return DECODE_GENERAL if general and arch != "interpreter" else first_fit(EXPERT_DECODES[arch], tokens, n)


def first_fit(table: Table, m: int, n: int) -> Any:
    """The first row of `table` whose limits m and n do not exceed."""
    return next(row.configuration for row in table if (row.up_to_m or m) >= m and (row.up_to_n or n) >= n)
