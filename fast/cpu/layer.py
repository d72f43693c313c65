"""The inference phase of a layer on a CPU."""

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
    dtype = torch.float32 if zero_point is None else torch.int32
    acc, outlier_codes = layer_product(codes, weight.codes, dtype, outliers if weight.float_weight is None else None)
    if zero_point is not None:
        acc = corrected(acc, codes, zero_point, weight)
    outlier_part = None if outliers is None else (x.index_select(1, outliers).float(), _outlier_weight(weight, outliers, outlier_codes).T)
    scale, weight_scale = scale.expand(len(x), 1), weight.scale.T
    bias = None if bias is None else bias.float()

    def finish(rows: slice) -> Tensor:
        y = acc[rows].float().mul_(scale[rows]).mul_(weight_scale)
        if outlier_part is not None:
            y += outlier_part[0][rows] @ outlier_part[1]
        if bias is not None:
            y += bias
        return y.to(x.dtype)

    step = block_rows(acc.shape[1])
    blocks = [finish(slice(start, start + step)) for start in range(0, max(1, len(x)), step)]
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


def _outlier_weight(weight: QuantizedWeight, outliers: Tensor, codes: Tensor | None) -> Tensor:
    """(N, |O|) float32: the outlier columns' weights, from their `codes` where no float weight is kept."""
    if weight.float_weight is not None:
        return weight.float_weight.index_select(1, outliers).float()
    w = codes.float()  # type: ignore[union-attr]
    return (w if weight.zero_point is None else w.sub_(weight.zero_point)).mul_(weight.scale)
