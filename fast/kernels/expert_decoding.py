"""A mixture of experts for the few tokens of decoding: one launch per projection, and nothing is sorted.

    decode_experts      program (columns, pair of token and choice): if no pair before it has the same expert, the rows of all tokens that
                        chose it, as `decode.py` has them

All tokens fit in the one tile of a matrix instruction, so an expert's rows need not be gathered: the others are masked.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import absmax_scale, rounded
from .configurations import Decode, architecture, decode_experts_configuration
from .decode import launch_options, layer_of_rows
from .operands import Matrix, Side, aligned


@triton.jit
def decode_experts(
    x,
    w_side,
    y,
    bias,
    chosen,
    threshold,
    T,
    E,
    N,
    K,
    CHOICES: tl.constexpr,
    WIDTH: tl.constexpr,
    BY_PAIR: tl.constexpr,
    ROWS: tl.constexpr,
    TILE_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SCAN_K: tl.constexpr,
    SCAN_OWN: tl.constexpr,
    BLOCK_OWN: tl.constexpr,
):
    """Program (n, p): columns n * BLOCK_N onwards of Y, for all tokens that chose the expert of pair p, if p is the first pair with it.

    x: Matrix (T, K), or (T * CHOICES, K) where BY_PAIR, of a 16-bit type; T <= ROWS.
    w_side: Side (E * N, K), by absmax. bias: as in `multiply_experts`. threshold: None where no column is an outlier.
    y: (T * CHOICES, N) of X's dtype: 0 for a pair whose expert is none.
    chosen: (T, CHOICES) int64. WIDTH: CHOICES, filled up to a power of two.
    """
    DETECT: tl.constexpr = threshold is not None
    pair = tl.program_id(1)
    expert = tl.load(chosen + pair)
    column_numbers = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_n = column_numbers < N
    if (expert >= 0) & (expert < E):
        live, first_pair = tokens_of(chosen, expert, T, CHOICES, WIDTH, ROWS)
        if tl.min(first_pair, axis=0) == pair:
            tile_live, tile_first = tokens_of(chosen, expert, T, CHOICES, WIDTH, TILE_M)
            tokens = tl.arange(0, ROWS)
            tile_tokens = tl.arange(0, TILE_M)
            rows = tl.where(live, first_pair, 0) if BY_PAIR else tokens
            tile_rows = tl.where(tile_live, tile_first, 0) if BY_PAIR else tile_tokens
            w_numbers = expert * N + tl.minimum(column_numbers, N - 1)
            w_rows = w_side.codes.pointer + w_numbers * K
            w_scale = absmax_scale(tl.load(w_side.absmax + w_numbers))
            x_rows = x.pointer + rows.to(tl.int64)[:, None] * x.stride_row
            tile_x = x.pointer + tile_rows.to(tl.int64)[:, None] * x.stride_row
            result = layer_of_rows(
                x_rows, live, tile_x, tile_live, x.stride_column, w_rows, 1, w_scale, None, None, 0, threshold, K,
                DETECT, True, False, BLOCK_K, SCAN_K, SCAN_OWN, BLOCK_OWN,
            )  # fmt: skip
            if bias is not None:
                result += tl.load(bias + w_numbers).to(tl.float32)[None, :]
            result = rounded(result, y.dtype.element_ty)
            for choice in tl.static_range(CHOICES):  # a token may have the expert more than once
                pairs = tile_tokens * CHOICES + choice
                mine = tl.load(chosen + pairs, mask=tile_tokens < T, other=-1) == expert
                target = y + pairs.to(tl.int64)[:, None] * N + column_numbers[None, :]
                tl.store(target, result, mask=mine[:, None] & in_n[None, :])
    else:
        tl.store(y + pair.to(tl.int64) * N + column_numbers, tl.zeros((BLOCK_N,), y.dtype.element_ty), mask=in_n)


@triton.jit
def tokens_of(chosen, expert, T, CHOICES: tl.constexpr, WIDTH: tl.constexpr, COUNT: tl.constexpr):
    """Of each of COUNT tokens whether it chose the expert, and its first pair that did, a number past all pairs where it did not."""
    tokens = tl.arange(0, COUNT)[:, None]
    choices = tl.arange(0, WIDTH)[None, :]
    pairs = tokens * CHOICES + choices
    it = tl.load(chosen + pairs, mask=(tokens < T) & (choices < CHOICES), other=-1) == expert
    first = tl.min(tl.where(it, pairs, COUNT * WIDTH), axis=1)
    return first < COUNT * WIDTH, first


def experts_decode(
    x: Tensor,
    codes: Tensor,
    absmax: Tensor,
    bias: Tensor | None,
    chosen: Tensor,
    by_pair: bool,
    threshold: float | None,
    config: Decode | None = None,
) -> Tensor:
    """(T * k, N) of x's dtype, a row per pair of token and choice: one projection of all experts, in one launch.

    Args:
        x: (T, K), or (T * k, K) if `by_pair`, of a 16-bit dtype; 0 < T <= DECODE_ROWS.
        codes, absmax, bias, threshold: as in `experts_linear`; K and N are not 0.
        chosen: (T, k) int64, contiguous: the experts of each token.
        by_pair: whether x has a row per pair.
        config: instead of the one that the tables have.
    """
    (t, choices), (e, n, k) = chosen.shape, codes.shape
    w = codes.contiguous().view(e * n, k)
    config = config or decode_experts_configuration(architecture(x.device), t, n * min(e, t * choices), not aligned(w))
    y = torch.empty(t * choices, n, dtype=x.dtype, device=x.device)
    w_side = Side(Matrix.of(w), absmax=absmax, per_row=1)
    with torch.cuda.device_of(x):
        decode_experts[(triton.cdiv(n, config.block_n), t * choices)](
            Matrix.of(x), w_side, y, bias, chosen, threshold, t, e, n, k,
            CHOICES=choices, WIDTH=triton.next_power_of_2(choices), BY_PAIR=by_pair, **launch_options(config, t),
        )  # fmt: skip
    return y
