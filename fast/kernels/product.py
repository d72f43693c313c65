"""The product of codes, the outlier product and the epilogue, in one kernel.

One program owns a tile of Y, BLOCK_M x BLOCK_N:

              K ->                          1. int8 loop:    acc += X_codes[tile rows, k] @ W_codes[tile columns, k].T      int32, exact
    rows  [ . . . . . ]                     2. outlier loop: Y = (float32(acc) * x_scale) * w_scale
                                                             Y += X[tile rows, O] @ W[tile columns, O].T                    float32
          X codes, W codes                  3. epilogue:     + bias, cast, stored once

The second loop runs over the list that `compact` left in device memory: the trip count is read from device memory as well, so the
host never synchronizes, and without outliers the loop costs one load of a zero. It reads the columns that `quantize_rows` has
gathered; columns that did not fit in the buffer are read directly from X and W. An outlier weight is a float that the layer keeps, or
its int8 code, widened in registers to X's 16-bit type, in which code / 128 is exact. Without `DECOMPOSE` the loop is compiled out.

The accumulators are converted to float32 in place, and the outlier products are added to them: a tile of 128 x 256 fills half of
the registers, and a second set of sums would not fit beside it.

Neighbouring programs own tiles of GROUP_M rows of tiles, column by column, so that programs that run at the same time read few
distinct tiles of both operands, most of them from the second-level cache.
"""

import warnings
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..weights import QuantizedWeight
from .arithmetic import NO_FUSION, rounded
from .configurations import Product, architecture, product_configuration
from .epilogue import CODE_UNIT, corrected, from_code_units, has_matrix_product, outlier_product, owned_tile, weight_scale, widened
from .operands import Matrix, Quantized, Side, aligned, sixteen_bits

#: From this K on, the corrected zeropoint accumulator can overflow int32: each of K terms is at most 255 * 255.
WIDE_FROM = (2**31 - 1) // 255**2 + 1

#: Outlier columns read in place, at a time: one step of a 16-bit matrix instruction. The addresses of more would spill.
IN_PLACE = tl.constexpr(16)


@triton.jit
def product_kernel(
    x_tiles,
    w_tiles,
    x_side,
    w_side,
    y,
    x,
    float_weight,
    bias,
    outliers,
    M,
    N,
    K,
    DECOMPOSE: tl.constexpr,
    WIDE: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_O: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """One program per tile of Y. Pass None for an absent operand; its code is compiled out.

    x_tiles, w_tiles: tensor descriptors of the codes, with blocks (BLOCK_M, BLOCK_K) and (BLOCK_N, BLOCK_K), by which the copy engine loads
        them; None where the threads do.
    x_side, w_side: Side (M, K) and (N, K).
    y: (M, N), contiguous: int32 to store the bare accumulators (no scale), else X's dtype.
    x: Matrix (M, K), float16, bfloat16 or float32; read in outlier columns only.
    float_weight: Matrix (N, K) of a floating dtype; None takes the outlier weights from the codes.
    bias: (N,) of a floating dtype.
    outliers: Outliers, x and w None where nothing was gathered; None where no column is an outlier.
    DECOMPOSE: outliers is not None, which Triton 3.6 cannot tell of a record with an absent field.
    WIDE: the zeropoint correction needs 64 bits.
    EVEN_K: BLOCK_K divides K, so the int8 loop needs no mask.
    """
    program = tl.program_id(0)
    tile_m, tile_n = owned_tile(program, M, N, BLOCK_M, BLOCK_N, GROUP_M)
    # Load the count now, so that its latency is hidden by the int8 loop.
    count = tl.load(outliers.columns + K) if DECOMPOSE else 0
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    if w_tiles is not None:
        # --8<-- [start:int8-loop]
        # The copy engine fills entries outside of the matrix with zeros.
        for k in range(0, K, BLOCK_K):
            x_block = x_tiles.load([tile_m * BLOCK_M, k])
            w_block = w_tiles.load([tile_n * BLOCK_N, k])
            acc = tl.dot(x_block, w_block.T, acc, out_dtype=tl.int32)
        # --8<-- [end:int8-loop]
    else:
        # Rows past the end repeat the last one: they are computed and not stored, and the loads need no mask.
        rows = tl.minimum(tile_m * BLOCK_M + tl.arange(0, BLOCK_M), M - 1).to(tl.int64)
        columns = tl.minimum(tile_n * BLOCK_N + tl.arange(0, BLOCK_N), N - 1).to(tl.int64)
        ks = tl.arange(0, BLOCK_K)
        x_codes = x_side.codes.pointer + rows[:, None] * x_side.codes.stride_row + ks.to(tl.int64)[None, :] * x_side.codes.stride_column
        w_codes = w_side.codes.pointer + columns[:, None] * w_side.codes.stride_row + ks.to(tl.int64)[None, :] * w_side.codes.stride_column
        acc = add_products(acc, x_codes, w_codes, x_side.codes.stride_column, w_side.codes.stride_column, ks, K, EVEN_K)

    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    in_m = rows < M
    in_n = columns < N
    target = y + rows.to(tl.int64)[:, None] * N + columns[None, :]
    if x_side.scale is None:
        tl.store(target, acc, mask=in_m[:, None] & in_n[None, :])
    else:
        x_scale = tl.load(x_side.scale + rows * x_side.per_row, mask=in_m, other=0.0)
        w_scale = weight_scale(w_side, columns, in_n)
        w_zero_point = None
        if w_side.zero_point is not None:
            w_zero_point = tl.load(w_side.zero_point + columns * w_side.per_row, mask=in_n, other=0)
        if x_side.zero_point is not None:
            x_zero_point = tl.load(x_side.zero_point + rows * x_side.per_row, mask=in_m, other=0)
            x_code_sum = tl.load(x_side.code_sum + rows, mask=in_m, other=0)
            w_code_sum = tl.load(w_side.code_sum + columns, mask=in_n, other=0)
            acc = corrected(acc, x_zero_point[:, None], w_zero_point[None, :], x_code_sum[:, None], w_code_sum[None, :], K, WIDE)  # type: ignore[index]
        if not DECOMPOSE:
            result = (acc.to(tl.float32) * x_scale[:, None]) * w_scale[None, :]
        else:
            x_numbers = tl.minimum(rows, M - 1).to(tl.int64)
            w_numbers = tl.minimum(columns, N - 1).to(tl.int64)
            x_rows = x.pointer + x_numbers * x.stride_row
            # --8<-- [start:outliers-in-place]
            if float_weight is not None:
                outlier_weight = float_weight
                result = (acc.to(tl.float32) * x_scale[:, None]) * w_scale[None, :]
            else:
                outlier_weight = w_side.codes
                # x_scale is 0 or at least 2**-100 / 127: dividing it by a power of two is exact.
                result = acc.to(tl.float32) * (x_scale * (1 / CODE_UNIT))[:, None]
            w_rows = outlier_weight.pointer + w_numbers * outlier_weight.stride_row
            gathered = 0
            if outliers.x is not None:
                gathered = tl.minimum(count, outliers.capacity)
                x_gathered = outliers.x + x_numbers * outliers.capacity
                w_gathered = outliers.w + w_numbers * outliers.capacity
                result = add_outlier_columns(result, x_gathered, 1, w_gathered, 1, w_zero_point, None, 0, gathered, BLOCK_O)
            w_stride = outlier_weight.stride_column
            listed = outliers.columns
            result = add_outlier_columns(result, x_rows, x.stride_column, w_rows, w_stride, w_zero_point, listed, gathered, count, IN_PLACE)
            if float_weight is None:
                result = from_code_units(result, w_scale)
            # --8<-- [end:outliers-in-place]
        if bias is not None:
            result += tl.load(bias + columns, mask=in_n, other=0).to(tl.float32)[None, :]
        tl.store(target, rounded(result, y.dtype.element_ty), mask=in_m[:, None] & in_n[None, :])


@triton.jit
def add_products(acc, x_codes, w_codes, x_stride_column, w_stride_column, ks, K, EVEN_K: tl.constexpr):
    """acc (M, N) + the products of codes.

    x_codes (M, BLOCK_K), w_codes (N, BLOCK_K): pointers to the first block. ks (BLOCK_K,): its columns, 0 onwards.
    """
    BLOCK_K: tl.constexpr = ks.shape[0]
    for k in range(0, K, BLOCK_K):
        if EVEN_K:
            x_block = tl.load(x_codes)
            w_block = tl.load(w_codes)
        else:
            x_block = tl.load(x_codes, mask=(ks < K - k)[None, :], other=0)
            w_block = tl.load(w_codes, mask=(ks < K - k)[None, :], other=0)
        acc = tl.dot(x_block, w_block.T, acc, out_dtype=tl.int32)
        x_codes += BLOCK_K * tl.cast(x_stride_column, tl.int64)
        w_codes += BLOCK_K * tl.cast(w_stride_column, tl.int64)
    return acc


@triton.jit
def add_outlier_columns(result, x_rows, x_stride_column, w_rows, w_stride_column, w_zero_point, listed, first, last, BLOCK_O: tl.constexpr):
    """result (M, N) + X[rows, O] @ W[columns, O].T in float32, O the entries first to last - 1 of `listed`; W's codes as in `widened`.

    x_rows (M,), w_rows (N,): pointers to column 0 of the rows. w_zero_point (N,), or None.
    listed: int32, column numbers; None for gathered columns, which lie in their order and end in a block filled up with zeros.
    """
    if has_matrix_product(x_rows.dtype.element_ty, w_rows.dtype.element_ty):
        for o in tl.range(first, last, BLOCK_O, num_stages=1):
            places = o + tl.arange(0, BLOCK_O)
            if listed is None:
                x_o = tl.load(x_rows[:, None] + places[None, :])
                w_o = tl.load(w_rows[:, None] + places[None, :])
            else:
                live = places < last
                column = tl.load(listed + places, mask=live, other=0).to(tl.int64)[None, :]
                x_o = tl.load(x_rows[:, None] + column * x_stride_column, mask=live[None, :], other=0)
                w_o = tl.load(w_rows[:, None] + column * w_stride_column, mask=live[None, :], other=0)
            result = outlier_product(x_o, w_o, result, w_zero_point)
    else:
        # No matrix instruction has the precision of float32, so this adds one column at a time.
        for o in tl.range(first, last, num_stages=1):
            column = tl.load(listed + o).to(tl.int64)
            x_o = tl.load(x_rows + column * x_stride_column).to(tl.float32)
            w_o = tl.load(w_rows + column * w_stride_column)
            result += x_o[:, None] * widened(w_o, w_zero_point)[None, :]
    return result


def launch_product(
    quantized: Quantized,
    weight: QuantizedWeight | Quantized,
    y: Tensor,
    x: Tensor | None = None,
    float_weight: Tensor | None = None,
    bias: Tensor | None = None,
    config: Product | None = None,
) -> Tensor:
    """Fills `y` (M, N), neither of them 0, from a quantized X (M, K) and W (N, K); the other tensors as in `product_kernel`.

    config: None for that of the tables, of which `product_kernel` also multiplies what the kernel in Gluon cannot.

    Raises:
        RuntimeError: `config` is for the kernel in Gluon, which cannot run here.
    """
    codes, w = quantized.codes, weight.codes
    (m, k), n = codes.shape, w.shape[0]
    wide = quantized.zero_point is not None and k >= WIDE_FROM
    chosen = config
    if chosen is None:
        general = wide or not (aligned(codes) and aligned(w)) or not (x is None or sixteen_bits(x, float_weight))
        chosen = product_configuration(architecture(codes.device), m, n, general)
    x_matrix, float_matrix = (None if matrix is None else Matrix.of(matrix) for matrix in (x, float_weight))
    arguments = (Side.of(quantized), _weight_side(weight), y, x_matrix, float_matrix, bias, quantized.outliers, m, n, k)
    grid = (triton.cdiv(m, chosen.block_m) * triton.cdiv(n, chosen.block_n),)
    options = dict(
        DECOMPOSE=quantized.outliers is not None,
        WIDE=wide,
        BLOCK_M=chosen.block_m,
        BLOCK_N=chosen.block_n,
        BLOCK_K=chosen.block_k,
        BLOCK_O=chosen.block_o,
        GROUP_M=chosen.group_m,
        num_warps=chosen.warps,
        **NO_FUSION,
    )
    with torch.cuda.device_of(codes):
        if chosen.gluon and k > 0:
            problem = _no_gluon_for(codes, w, x, float_weight, chosen) or _launch_in_gluon(codes, w, chosen, grid, arguments, options)
            if not problem:
                return y
            if config is not None:
                raise RuntimeError(f"{config}: {problem}")
        x_tiles = w_tiles = None
        if chosen.tma and k > 0:
            x_tiles = TensorDescriptor.from_tensor(codes, [chosen.block_m, chosen.block_k])
            w_tiles = TensorDescriptor.from_tensor(w, [chosen.block_n, chosen.block_k])
        product_kernel[grid](x_tiles, w_tiles, *arguments, EVEN_K=k % chosen.block_k == 0, num_stages=chosen.stages, **options)
    return y


def _no_gluon_for(codes: Tensor, w: Tensor, x: Tensor | None, float_weight: Tensor | None, config: Product) -> str:
    """Why the kernel in Gluon is not for this product; empty where it is."""
    arch = architecture(codes.device)
    if arch != "sm_90":
        return f"the kernel in Gluon is for sm_90, this is {arch}"
    if not (config.tma and aligned(codes) and aligned(w)):
        return "the kernel in Gluon loads its blocks by the copy engine alone"
    if config.block_m % (16 * config.warps):
        return "a warp of the kernel in Gluon has 16 rows of the tile, or several times 16"
    if x is not None and not sixteen_bits(x, float_weight):
        return "the kernel in Gluon adds outlier products in 16 bits only"
    return ""


#: Kinds of launches of the kernel in Gluon -> why this Triton does not compile it; empty where it does.
gluon_problems: dict[tuple[bool, bool], str] = {}


def _launch_in_gluon(codes: Tensor, w: Tensor, config: Product, grid: tuple[int], arguments: tuple, options: dict[str, Any]) -> str:
    """Launches the kernel in Gluon; returns why it cannot, if so, and then nothing has been launched.

    Gluon is experimental: another version of Triton may lack any part of it. A kind of launch that needs parts of the language which
    others do not, with outliers or without, scaled or not, is therefore compiled before its first launch.
    """
    kind = (options["DECOMPOSE"], arguments[0].scale is None)
    problem = gluon_problems.get(kind)
    if problem:
        return problem
    try:
        from . import hopper

        tiles = [hopper.tiles_of(codes, config.block_m, config.block_k), hopper.tiles_of(w, config.block_n, config.block_k)]
        if problem is None:
            hopper.hopper_product_kernel.warmup(*tiles, *arguments, grid=grid, STAGES=config.stages, **options)
    except Exception as error:  # what is not there shows as an error of any type
        found = f"Triton {triton.__version__} does not compile the kernel in Gluon: {error}"
        warnings.warn(f"{found}\nproduct_kernel multiplies instead", RuntimeWarning, stacklevel=2)
        gluon_problems[kind] = found
        return found
    gluon_problems[kind] = ""
    hopper.hopper_product_kernel[grid](*tiles, *arguments, STAGES=config.stages, **options)
    return ""


def _weight_side(weight: QuantizedWeight | Quantized) -> Side:
    if isinstance(weight, Quantized):
        return Side.of(weight)
    return Side.of_weight(weight, None if weight.zero_point is None else code_sums(weight.codes))


def code_sums(codes: Tensor) -> Tensor:
    """(rows,) int32, the sums of the rows of codes; taken in every call, since W may have been written to since the last."""
    return codes.sum(-1, dtype=torch.int32)


def quantized_product(
    x: Tensor, quantized: Quantized, weight: QuantizedWeight, bias: Tensor | None = None, config: Product | None = None
) -> Tensor:
    """(M, N) of x's dtype, neither of them 0: the product of the quantized x (M, K) and a weight, with outlier columns and bias."""
    y = torch.empty(x.shape[0], weight.codes.shape[0], dtype=x.dtype, device=x.device)
    return launch_product(quantized, weight, y, x, weight.float_weight, bias, config)


def int8_matmul(a: Tensor, b: Tensor) -> Tensor:
    """a (M, K) @ b (N, K).T in int32, exact."""
    y = torch.empty(a.shape[0], b.shape[0], dtype=torch.int32, device=a.device)
    return y if y.numel() == 0 else launch_product(Quantized(a), Quantized(b), y)
