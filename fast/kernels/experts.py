"""A mixture of experts: the steps of a layer, each in one launch for all experts. How many rows an expert has, the host never reads.

    rows of X, sorted by expert   [ 0 0 0 | 2 2 2 2 2 | 3 | nobody's ]     ends = [3, 3, 8, 9]: where the rows of each expert end

    scan_experts        program (columns, expert): the outlier columns of the expert's own rows
    quantize_experts    programs 0 to E - 1: an expert's list of outlier columns; all others: a row -> scale, codes
    multiply_experts    program = a tile of Y; the expert, its weights and its list follow from `ends`

Few tokens are not sorted, and take one launch (`expert_decoding.py`).
An expert's codes, scales and sums are those of a layer over its rows, bit for bit. The pieces are those of the layer's kernels.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .arithmetic import NO_FUSION, absmax_scale, rounded
from .configurations import (
    Product,
    all_registers,
    architecture,
    product_experts_configuration,
    rows_configuration,
    scan_experts_configuration,
)
from .epilogue import CODE_UNIT, from_code_units
from .operands import Matrix, Outliers, Quantized, aligned, sixteen_bits
from .outliers import Scanned, compact, scan_rows
from .product import IN_PLACE, add_outlier_columns, add_products
from .quantization import SHORT_BLOCK, quantize_blocks


@triton.jit
def rows_of(ends, expert):
    """(first, last): the rows of an expert are first to last - 1."""
    return tl.load(ends + expert - 1, mask=expert > 0, other=0).to(tl.int32), tl.load(ends + expert).to(tl.int32)


@triton.jit
def owned_rows(ends, tile, P, E, GROUPS: tl.constexpr, BLOCK_M: tl.constexpr):
    """(expert, first row, end of the expert's rows) of a tile; E for rows of nobody, more than E where there are no such rows.

    Each program adds up the tiles of all experts anew: E numbers from the second-level cache, instead of one more launch.
    ends: (E,) int64. GROUPS: a power of two above E.
    """
    groups = tl.arange(0, GROUPS)
    end = tl.load(ends + groups, mask=groups < E, other=P).to(tl.int32)
    start = tl.load(ends + groups - 1, mask=(groups > 0) & (groups <= E), other=0).to(tl.int32)
    start = tl.where(groups > E, P, start)
    tiles = (end - start + BLOCK_M - 1) // BLOCK_M
    so_far = tl.cumsum(tiles, axis=0)
    expert = tl.sum((so_far <= tile).to(tl.int32), axis=0)
    mine = groups == expert
    first = tl.sum(tl.where(mine, start + (tile - (so_far - tiles)) * BLOCK_M, 0), axis=0)
    return expert, first, tl.sum(tl.where(mine, end, 0), axis=0)


@triton.jit
def scan_experts(x, flags, ends, threshold, K, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr):
    """Program (i, e): columns i * BLOCK_K onwards of the rows of expert e.

    x: Matrix (P, K) float16, bfloat16 or float32, sorted by expert.
    flags: (E, K) uint8, to be filled: 1 where a magnitude of the expert's rows is an outlier.
    ends: (E,) int64.
    """
    columns = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    expert = tl.program_id(1)
    first, last = rows_of(ends, expert)
    line = expert.to(tl.int64) * K + columns
    scan_rows(
        x.pointer, x.stride_row, x.stride_column, first, last, columns, line, flags, None, None, threshold, K, False, BLOCK_M, STAGES
    )  # fmt: skip


@triton.jit
def quantize_experts(x, quantized, scanned, flags, ends, P, E, K, BLOCK_K: tl.constexpr, HELD: tl.constexpr, GROUPS: tl.constexpr):
    """With flags, E programs make an expert's list of outlier columns each; the others own a row of X each.

    x: Matrix (P, K), sorted by expert.
    quantized: Quantized, to be filled, rows of nobody as well, which the copy engine reads beside others; the columns of its outliers are
        (E, K + 1).
    scanned: Scanned() of nothing; flags: (E, K) uint8, or None.
    """
    row = tl.program_id(0)
    if flags is not None:
        if row < E:
            line = row.to(tl.int64)
            listed = quantized.outliers.columns + line * (K + 1)
            tl.store(listed + K, compact(flags + line * K, listed, K, K, 1, SHORT_BLOCK))
        row -= E
    if row >= 0:
        groups = tl.arange(0, GROUPS)
        end = tl.load(ends + groups, mask=groups < E, other=P).to(tl.int32)
        expert = tl.sum(((groups < E) & (end <= row)).to(tl.int32), axis=0)
        if flags is not None:
            if expert < E:
                quantize_blocks(row, x, quantized, scanned, flags + expert.to(tl.int64) * K, P, K, 1, 1, BLOCK_K, 1, HELD)
            else:
                quantize_blocks(row, x, quantized, scanned, None, P, K, 1, 1, BLOCK_K, 1, HELD)
        else:
            quantize_blocks(row, x, quantized, scanned, None, P, K, 1, 1, BLOCK_K, 1, HELD)


@triton.jit
def multiply_experts(
    x_tiles,
    w_tiles,
    codes,
    scale,
    w,
    absmax,
    y,
    x,
    bias,
    listed,
    ends,
    P,
    E,
    N,
    K,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """One program per tile of Y of one expert; Y is 0 in rows of nobody.

    x_tiles, w_tiles: tensor descriptors of `codes` and `w`, or None where the threads load them.
    codes: (P, K) int8, and scale (P,) float32: the rows of X, sorted by expert.
    w: (E * N, K) int8, and absmax (E * N,) float32. bias: (E * N,) of a floating dtype, or None.
    y: (P, N) of X's dtype. x: Matrix (P, K). listed: (E, K + 1) int32, outlier columns and their count; None where there are none.
    ends: (E,) int64.
    """
    tiles_n = tl.cdiv(N, BLOCK_N)
    tile_n = tl.program_id(0) % tiles_n
    expert, first, end = owned_rows(ends, tl.program_id(0) // tiles_n, P, E, GROUPS, BLOCK_M)
    rows = first + tl.arange(0, BLOCK_M)
    columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    in_n = columns < N
    inside = (rows < end)[:, None] & in_n[None, :]
    target = y + rows.to(tl.int64)[:, None] * N + columns[None, :]
    if expert < E:
        x_numbers = tl.minimum(rows, end - 1).to(tl.int64)
        w_numbers = expert.to(tl.int64) * N + tl.minimum(columns, N - 1)
        count = tl.load(listed + expert.to(tl.int64) * (K + 1) + K) if listed is not None else 0
        ks = tl.arange(0, BLOCK_K)
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
        if w_tiles is not None:
            # Entries of other experts, below and beside the tile, are computed and not stored.
            for k in range(0, K, BLOCK_K):
                x_block = x_tiles.load([first, k])
                w_block = w_tiles.load([expert * N + tile_n * BLOCK_N, k])
                acc = tl.dot(x_block, w_block.T, acc, out_dtype=tl.int32)
        else:
            acc = add_products(
                acc, codes + x_numbers[:, None] * K + ks[None, :], w + w_numbers[:, None] * K + ks[None, :], 1, 1, ks, K, EVEN_K
            )
        x_scale = tl.load(scale + x_numbers)
        w_scale = absmax_scale(tl.load(absmax + w_numbers))
        if listed is None:
            result = (acc.to(tl.float32) * x_scale[:, None]) * w_scale[None, :]
        else:
            # x_scale is 0 or at least 2**-100 / 127: dividing it by a power of two is exact.
            result = acc.to(tl.float32) * (x_scale * (1 / CODE_UNIT))[:, None]
            x_rows = x.pointer + x_numbers * x.stride_row
            own = listed + expert.to(tl.int64) * (K + 1)
            result = add_outlier_columns(result, x_rows, x.stride_column, w + w_numbers * K, 1, None, own, 0, count, IN_PLACE)
            result = from_code_units(result, w_scale)
        if bias is not None:
            result += tl.load(bias + w_numbers).to(tl.float32)[None, :]
        tl.store(target, rounded(result, y.dtype.element_ty), mask=inside)
    elif expert == E:
        tl.store(target, tl.zeros((BLOCK_M, BLOCK_N), y.dtype.element_ty), mask=inside)


def most_tiles(rows: int, experts: int, block_m: int) -> int:
    """No routing makes more tiles, those of nobody's rows among them: known from shapes."""
    groups = min(experts + 1, rows)
    return (rows + groups * (block_m - 1)) // block_m


def experts_linear(
    x: Tensor, codes: Tensor, absmax: Tensor, bias: Tensor | None, ends: Tensor, threshold: float | None, config: Product | None = None
) -> Tensor:
    """(P, N) of x's dtype: one projection of all experts, in three launches, two where `threshold` is None.

    Args:
        x: (P, K), sorted by expert.
        codes: (E, N, K) int8. absmax: (E, N, 1) float32. bias: (E, N) or None.
        ends: (E,) int64, where the rows of each expert end.
        threshold: not negative, or None.
        config: instead of the one that the tables have for as many rows as an expert has on average.
    """
    (p, k), (e, n, _), device = x.shape, codes.shape, x.device
    y = torch.empty(p, n, dtype=x.dtype, device=device)
    if y.numel() == 0:
        return y
    arch = architecture(device)
    w = codes.contiguous().view(e * n, k)
    flags, columns = None, None
    if threshold is not None:
        flags, columns = (torch.empty(e, size, dtype=dtype, device=device) for size, dtype in ((k, torch.uint8), (k + 1, torch.int32)))
    quantized = Quantized(
        torch.empty(p, k, dtype=torch.int8, device=device),
        torch.empty(p, dtype=torch.float32, device=device),
        outliers=None if columns is None else Outliers(columns),
    )
    groups = triton.next_power_of_2(e + 1)
    unaligned, is_sixteen_bits = not (aligned(w) and aligned(quantized.codes)), sixteen_bits(x, None)
    config = config or product_experts_configuration(arch, triton.cdiv(p, max(e, 1)), n, unaligned, is_sixteen_bits)
    with torch.cuda.device_of(x):
        if k:
            _quantize(x, quantized, flags, ends, threshold, e)
        else:
            quantized.scale.zero_()
        x_tiles = w_tiles = None
        if config.tma and not unaligned and is_sixteen_bits and k:
            x_tiles = TensorDescriptor.from_tensor(quantized.codes, [config.block_m, config.block_k])
            w_tiles = TensorDescriptor.from_tensor(w, [config.block_n, config.block_k])
        multiply_experts[(most_tiles(p, e, config.block_m) * triton.cdiv(n, config.block_n),)](
            x_tiles, w_tiles, quantized.codes, quantized.scale, w, absmax, y, Matrix.of(x), bias, columns if k else None, ends, p, e, n, k,
            EVEN_K=k % config.block_k == 0, BLOCK_M=config.block_m, BLOCK_N=config.block_n, BLOCK_K=config.block_k, GROUPS=groups,
            num_warps=config.warps, num_stages=config.stages, **NO_FUSION,
        )  # fmt: skip
    return y


def _quantize(x: Tensor, quantized: Quantized, flags: Tensor | None, ends: Tensor, threshold: float | None, e: int) -> None:
    """Launches detection, where `flags` is to be filled, and quantization; K is not 0."""
    (p, k), arch = x.shape, architecture(x.device)
    if flags is not None:
        config = scan_experts_configuration(arch)
        scan_experts[(triton.cdiv(k, config.block_k), e)](
            Matrix.of(x), flags, ends, threshold, k,
            BLOCK_M=config.block_m, BLOCK_K=config.block_k, STAGES=config.stages, num_warps=config.warps, num_stages=1, **NO_FUSION,
        )  # fmt: skip
    # One row per program: its neighbours may belong to other experts, with other outlier columns.
    block_k = rows_configuration(arch, p, k).block_k
    warps = min(16, max(4, block_k // 1024))
    quantize_experts[(p + (e if flags is not None else 0),)](
        Matrix.of(x), quantized, Scanned(), flags, ends, p, e, k, BLOCK_K=block_k, HELD=k <= block_k,
        GROUPS=triton.next_power_of_2(e + 1), num_warps=warps, num_stages=1, **NO_FUSION, **all_registers(warps),
    )  # fmt: skip
