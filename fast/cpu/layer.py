"""The inference phase of a layer on a CPU."""

from itertools import repeat

import torch
from torch import Tensor

from ..weights import QuantizedWeight
from .outliers import find_outliers
from .product import corrected, layer_product
from .quantization import block_rows, quantize


def linear(x: Tensor, weight: QuantizedWeight, bias: Tensor | None, threshold: float | None, per_row: bool) -> Tensor:
    """(M, N) of x's dtype: the inference phase of LLM.int8() on `x` (M, K)."""
    mask = None if threshold is None else find_outliers(x, threshold)
    outliers = None if mask is None else mask.nonzero().view(-1)
    codes, scale, zero_point = quantize(x, per_row, "absmax" if weight.zero_point is None else "zeropoint", outliers)
    wanted = outliers if weight.float_weight is None else None
    if weight.zero_point is None:
        acc, outlier_codes = layer_product(codes, weight.codes, torch.float32, wanted)
    else:
        # A row of ones gives the sums of W's rows in the same pass over W; they may be others than at the last call.
        rows = torch.cat([codes, codes.new_ones(1, codes.shape[1])])
        acc, outlier_codes = layer_product(rows, weight.codes, torch.int32, wanted)
        acc = corrected(acc[:-1], codes, zero_point, weight.zero_point, acc[-1])  # type: ignore[arg-type]
    x_outliers: Tensor | None = None
    if outliers is not None:
        x_outliers, w_outliers = x.index_select(1, outliers).float(), _outlier_weight(weight, outliers, outlier_codes).T
    bias, w_scale = None if bias is None else bias.float(), weight.scale.T

    def finish(acc: Tensor, scale: Tensor, x_outliers: Tensor | None) -> Tensor:
        y = torch.mul(acc, scale).mul_(w_scale)  # an int32 is rounded to float32 on the way
        if x_outliers is not None and w_outliers is not None:
            y += x_outliers @ w_outliers
        if bias is not None:
            y += bias
        return y.to(x.dtype)

    step = block_rows(acc.shape[1])
    if len(x) <= step:
        return finish(acc, scale, x_outliers)
    x_blocks = repeat(None) if x_outliers is None else x_outliers.split(step)
    blocks = zip(acc.split(step), scale.expand(len(x), 1).split(step), x_blocks, strict=False)
    return torch.cat([finish(*block) for block in blocks])


def _outlier_weight(weight: QuantizedWeight, outliers: Tensor, codes: Tensor | None) -> Tensor:
    """(N, |O|) float32: the outlier columns' weights, from their `codes` where no float weight is kept."""
    if weight.float_weight is not None:
        return weight.float_weight.index_select(1, outliers).float()
    w = codes.float()  # type: ignore[union-attr]
    return (w if weight.zero_point is None else w.sub_(weight.zero_point)).mul_(weight.scale)
