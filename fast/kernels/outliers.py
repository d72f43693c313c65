"""Outlier columns: found by one pass over X, and listed on the device.

    X (M, K)      column blocks ->
    rows   +------+------+------+------+
    split 0|  p   |  p   |  p   |  p   |    program p walks down the rows of its block and keeps the largest magnitudes;
           +------+------+------+------+    then it compares them with the threshold and stores one byte per column into its own line of
    split 1|  p   |  p   |  p   |  p   |
           +------+------+------+------+    flags (splits, K)

A split is a share of the rows: without it, the columns alone would make too few programs to fill a GPU. Each program owns
the bytes that it stores, so there is nothing to clear first, no atomic operation, and the same result on every run.
The mask is the OR of the few lines of flags (`is_outlier`); `compact` turns them into ascending column numbers, and
`gather` lays the columns themselves side by side: in a row-major matrix each entry of a column lies in a memory sector of its own.

Where the granularity is one scale per tensor, the same pass also stores the extremes of each column: the scale must leave out
the outlier columns, and these are known only once every split is done.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import NO_FUSION, larger, magnitude, magnitudes
from .configurations import Scan, architecture, scan_configuration


class Scanned(NamedTuple):
    """What `scan_columns` stores of the columns of X, one line per split of the rows.

    flags: (splits, K) uint8, 1 where a magnitude is an outlier; None to leave it out.
    above, below: (splits, K) int32, largest `magnitudes` of each column; None to leave both out, below None for absmax.
    """

    flags: Any = None
    above: Any = None
    below: Any = None

    @property
    def splits(self) -> int:
        """How many lines there are; 1 where nothing was scanned."""
        line = self.flags if self.above is None else self.above
        return 1 if line is None else line.shape[0]


@triton.jit
def scan_columns(
    x,
    stride_row,
    stride_column,
    flags,
    above,
    below,
    threshold,
    M,
    K,
    rows_per_split,
    ZEROPOINT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Program (i, s): columns i * BLOCK_K onwards, rows s * rows_per_split onwards.

    x: (M, K) float16, bfloat16 or float32, by strides in entries.
    flags, above, below: as in `Scanned`, to be filled. Not as a record: this kernel has few arguments, and each record costs the host time.
    threshold: float32, not negative.
    rows_per_split: rows that one split owns, the last one fewer; no split is empty.
    """
    columns = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    split = tl.program_id(1)
    first = split * rows_per_split
    last = tl.minimum(first + rows_per_split, M)
    line = split.to(tl.int64) * K + columns
    scan_rows(x, stride_row, stride_column, first, last, columns, line, flags, above, below, threshold, K, ZEROPOINT, BLOCK_M, STAGES)


@triton.jit
def scan_rows(
    x,
    stride_row,
    stride_column,
    first,
    last,
    columns,
    line,
    flags,
    above,
    below,
    threshold,
    K,
    ZEROPOINT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Fills `line`, the places of `columns` (BLOCK_K,) in a line of `Scanned`, from the rows first to last - 1, perhaps none."""
    BLOCK_K: tl.constexpr = columns.shape[0]
    inside = columns < K
    lanes = tl.arange(0, BLOCK_M)
    source = x + columns.to(tl.int64)[None, :] * stride_column

    # From below every threshold on: a column of NaN alone stays there.
    largest = magnitude(tl.zeros((BLOCK_M, BLOCK_K), x.dtype.element_ty)) - 1
    up = tl.zeros((BLOCK_M, BLOCK_K), tl.int32)
    down = tl.zeros((BLOCK_M, BLOCK_K), tl.int32)
    # --8<-- [start:walk]
    for row in tl.range(first, last, BLOCK_M, num_stages=STAGES):
        # Past the end the last row is read again: it changes no maximum, and needs no mask.
        rows = tl.minimum(row + lanes, last - 1).to(tl.int64)
        value = tl.load(source + rows[:, None] * stride_row, mask=inside[None, :], other=0.0)
        if flags is not None:
            largest = larger(largest, magnitude(value))  # passes over a NaN, which is not an outlier
        # --8<-- [end:walk]
        if above is not None:
            value_up, value_down = magnitudes(value.to(tl.float32), ZEROPOINT)
            up = tl.maximum(up, value_up)
            if ZEROPOINT:
                down = tl.maximum(down, value_down)

    if flags is not None:
        hit = tl.max(largest.to(tl.float32), axis=0) >= threshold
        tl.store(flags + line, hit.to(tl.uint8), mask=inside)
    if above is not None:
        tl.store(above + line, tl.max(up, axis=0), mask=inside)
        if ZEROPOINT:
            tl.store(below + line, tl.max(down, axis=0), mask=inside)


@triton.jit
def is_outlier(flags, columns, K, SPLITS: tl.constexpr):
    """Whether each of `columns` is an outlier in any split; false beyond K."""
    return _any_split(flags, columns, K, SPLITS) != 0


@triton.jit
def bits_of_regular(flags, columns, K, SPLITS: tl.constexpr, DTYPE: tl.constexpr):
    """Of each of `columns` all bits, or none where it is an outlier, in an integer as wide as DTYPE: an operand of `masked`."""
    # Not by a comparison, out of which the compiler would make a selection for each entry again.
    return _any_split(flags, columns, K, SPLITS).to(tl.int16 if DTYPE.primitive_bitwidth == 16 else tl.int32) - 1


@triton.jit
def _any_split(flags, columns, K, SPLITS: tl.constexpr):
    hit = tl.load(flags + columns, mask=columns < K, other=0)
    for split in tl.static_range(1, SPLITS):
        hit |= tl.load(flags + split * K + columns, mask=columns < K, other=0)
    return hit


@triton.jit
def compact(flags, listed, capacity, K, SPLITS: tl.constexpr, BLOCK_K: tl.constexpr):
    """Stores the numbers of the first `capacity` outlier columns in ascending order at `listed`; returns how many there are in all.

    flags: (SPLITS, K) uint8. listed: int32; entries past the last column stay unwritten.
    """
    found = 0
    for k in range(0, K, BLOCK_K):
        columns = k + tl.arange(0, BLOCK_K)
        hit = is_outlier(flags, columns, K, SPLITS)
        position = found + tl.cumsum(hit.to(tl.int32), axis=0) - 1
        tl.store(listed + position, columns, mask=hit & (position < capacity))
        found += tl.sum(hit.to(tl.int32), axis=0)
    return found


@triton.jit
def gather(
    source,
    target,
    first,
    rows,
    listed,
    capacity,
    flags,
    K,
    SPLITS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """Copies the first `capacity` outlier columns of ROWS rows of `source`, from `first` on, side by side to `target` (rows, capacity).

    What is left of the last block of BLOCK_O columns is filled with zeros; BLOCK_O divides capacity.
    source: Matrix (rows, K).
    listed: (capacity,) int32, a private list: programs of one launch cannot wait for each other.
    flags: (SPLITS, K) uint8.
    """
    count = tl.minimum(compact(flags, listed, capacity, K, SPLITS, BLOCK_K), capacity)
    tl.debug_barrier()  # one thread's entries of the list are read by others
    numbers = first + tl.arange(0, ROWS)
    live = (numbers < rows)[:, None]
    # --8<-- [start:gather]
    from_rows = source.pointer + numbers.to(tl.int64)[:, None] * source.stride_row
    to_rows = target + numbers.to(tl.int64)[:, None] * capacity
    for o in tl.range(0, count, BLOCK_O, num_stages=1):
        places = o + tl.arange(0, BLOCK_O)
        column = tl.load(listed + places, mask=places < count, other=0).to(tl.int64)
        value = tl.load(from_rows + column[None, :] * source.stride_column, mask=live & (places < count)[None, :], other=0)
        tl.store(to_rows + places[None, :], value, mask=live)
    # --8<-- [end:gather]


def scan(x: Tensor, threshold: float | None, extremes: bool, zeropoint: bool, config: Scan | None = None) -> Scanned:
    """Launches `scan_columns` over `x` (M, K), neither of them 0: for flags unless `threshold` is None, for `extremes` if asked."""
    m, k = x.shape
    config = config or scan_configuration(architecture(x.device), m, k)
    rows_per_split = triton.cdiv(m, config.splits)
    splits = triton.cdiv(m, rows_per_split)

    scanned = Scanned(
        None if threshold is None else torch.empty(splits, k, dtype=torch.uint8, device=x.device),
        torch.empty(splits, k, dtype=torch.int32, device=x.device) if extremes else None,
        torch.empty(splits, k, dtype=torch.int32, device=x.device) if extremes and zeropoint else None,
    )
    with torch.cuda.device_of(x):
        scan_columns[(triton.cdiv(k, config.block_k), splits)](
            x,
            *x.stride(),
            *scanned,
            0.0 if threshold is None else threshold,
            m,
            k,
            rows_per_split,
            ZEROPOINT=zeropoint,
            BLOCK_M=config.block_m,
            BLOCK_K=config.block_k,
            STAGES=config.stages,
            num_warps=config.warps,
            num_stages=1,
            **NO_FUSION,
        )
    return scanned


def outlier_columns(x: Tensor, threshold: float) -> Tensor:
    """(K,) bool: which columns of `x` (M, K) hold a magnitude of `threshold` or more."""
    if x.numel() == 0:
        return torch.zeros(x.shape[1], dtype=torch.bool, device=x.device)
    whole = scan_configuration(architecture(x.device), *x.shape)._replace(splits=1)
    return scan(x, threshold, extremes=False, zeropoint=False, config=whole).flags[0].view(torch.bool)
