"""Kernels that are none of this project's, for the emulator: a matrix product, a softmax, and both with mistakes."""

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Held(NamedTuple):
    """A record with a tensor descriptor."""

    tiles: Any


@triton.jit
def softmax_rows(x, y, stride_x, stride_y, columns, BLOCK: tl.constexpr):
    """Program p: row p of y (contiguous columns) is the softmax of row p of x."""
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    inside = at < columns
    values = tl.load(x + row * stride_x + at, mask=inside, other=-float("inf"))
    shifted = tl.exp(values - tl.max(values, axis=0))
    tl.store(y + row * stride_y + at, shifted / tl.sum(shifted, axis=0), mask=inside)


@triton.jit
def softmax_without_a_mask(x, y, stride_x, stride_y, columns, BLOCK: tl.constexpr):
    """As `softmax_rows`, but the load forgets its mask."""
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    inside = at < columns
    values = tl.load(x + row * stride_x + at)  # the mistake
    shifted = tl.exp(values - tl.max(values, axis=0))
    tl.store(y + row * stride_y + at, shifted / tl.sum(shifted, axis=0), mask=inside)


@triton.jit
def product_tiles(
    a, b, c, M, N, K, stride_am, stride_ak, stride_bk, stride_bn, stride_cm, stride_cn,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    """Program p: a tile of c (M, N) = a (M, K) @ b (K, N), tiles ordered by groups of GROUP rows of tiles."""
    program = tl.program_id(0)
    tiles_m, tiles_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    group = program // (GROUP * tiles_n)
    rows_of_group = min(tiles_m - group * GROUP, GROUP)
    tile_m = group * GROUP + program % (GROUP * tiles_n) % rows_of_group
    tile_n = program % (GROUP * tiles_n) // rows_of_group
    rows = (tile_m * BLOCK_M + tl.arange(0, BLOCK_M)) % M
    columns = (tile_n * BLOCK_N + tl.arange(0, BLOCK_N)) % N
    ks = tl.arange(0, BLOCK_K)
    a_at = a + rows[:, None] * stride_am + ks[None, :] * stride_ak
    b_at = b + ks[:, None] * stride_bk + columns[None, :] * stride_bn
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, tl.cdiv(K, BLOCK_K)):
        left = tl.load(a_at, mask=ks[None, :] < K - k * BLOCK_K, other=0.0)
        right = tl.load(b_at, mask=ks[:, None] < K - k * BLOCK_K, other=0.0)
        total = tl.dot(left, right, total)
        a_at += BLOCK_K * stride_ak
        b_at += BLOCK_K * stride_bk
    if RELU:
        total = tl.maximum(total, 0.0)
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    target = c + rows[:, None] * stride_cm + columns[None, :] * stride_cn
    tl.store(target, total.to(c.dtype.element_ty), mask=(rows < M)[:, None] & (columns < N)[None, :])


@triton.jit
def sum_by_all(x, total, count, BLOCK: tl.constexpr):
    """total[0] += the sum of x, by all programs at once."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(total, tl.sum(tl.load(x + at, mask=at < count, other=0.0), axis=0))


@triton.jit
def sum_without_atomics(x, total, count, BLOCK: tl.constexpr):
    """As `sum_by_all`, but programs overwrite each other's result."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    part = tl.sum(tl.load(x + at, mask=at < count, other=0.0), axis=0)
    tl.store(total, tl.load(total) + part)  # the mistake


@triton.jit
def copy_column(x, y, stride, BLOCK: tl.constexpr):
    """y = the first column of x, whose rows lie `stride` entries apart."""
    at = tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at * stride))


@triton.jit
def copy_tile(tiles, held, y):
    """y (16, 64) = the first block of a matrix of float16, by a descriptor that is an argument, or the field of one."""
    at = tl.arange(0, 16)[:, None] * 64 + tl.arange(0, 64)[None, :]
    if held is None:
        tl.store(y + at, tiles.load([0, 0]))
    else:
        tl.store(y + at, held.tiles.load([0, 0]))
