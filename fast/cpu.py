"""The CPU path, in Torch operations: any machine, no compiler, no Triton. `cpu_product.py` has the int8 product.

Around the product everything goes by blocks of rows: what a block needs in float32 stays in a core's cache, and is taken from memory
that the process already has. A buffer of all rows would make the system clear fresh pages at every call: with M = 256,
K = N = 4096 about 1000 of them.
"""

import math

import torch
from torch import Tensor

from .cpu_product import int8_matmul, layer_product
from .weights import ZERO_SLICE, QuantizedWeight

__all__ = ["int8_matmul", "linear", "outlier_columns", "quantize"]

#: Entries of a block: 1 MiB in float32.
BLOCK = 2**18


def _rows(columns: int) -> int:
    """How many rows make a block."""
    return max(1, BLOCK // max(1, columns))


def quantize(x: Tensor, per_row: bool, quantizer: str, zeroed: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes (M, K) int8, scale float32 and, for zeropoint, zero_point int32 of `x` (M, K); scales (M, 1) or (1, 1).

    The columns `zeroed`, int64, count as zero.
    """
    blocks = x.split(_rows(x.shape[1])) if per_row else (x,)
    parts = [_quantize(block, per_row, quantizer, zeroed) for block in blocks]
    if len(parts) == 1:
        return parts[0]
    codes, scale, zero_point = zip(*parts, strict=True)
    return torch.cat(codes), torch.cat(scale), None if quantizer == "absmax" else torch.cat(zero_point)


def _quantize(x: Tensor, per_row: bool, quantizer: str, zeroed: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    x = x.to(torch.float32, copy=True, memory_format=torch.contiguous_format)  # a copy, which everything below overwrites
    if zeroed is not None:
        x.index_fill_(1, zeroed, 0.0)
    slices = x if per_row else x.view(1, -1)
    if slices.shape[1] == 0:
        scale = x.new_zeros(slices.shape[0], 1)
        return x.to(torch.int8), scale, None if quantizer == "absmax" else scale.int()
    if quantizer == "absmax":
        inverse, scale, finite = _inverse_and_scale(slices.abs().amax(1, keepdim=True), 127.0)
        return _codes(slices, inverse, finite).to(torch.int8).view(x.shape), scale, None
    lo = slices.amin(1, keepdim=True).clamp_(max=0.0)
    hi = slices.amax(1, keepdim=True).clamp_(min=0.0)
    inverse, scale, finite = _inverse_and_scale(hi - lo, 255.0)
    zero_point = (-128.0 - lo * inverse).round_().clamp_(-128, 127).masked_fill_(inverse == 0.0, 0.0)
    codes = _codes(slices, inverse, finite).add_(zero_point).clamp_(-128, 127)
    return codes.to(torch.int8).view(x.shape), scale, zero_point.int()


def _inverse_and_scale(extent: Tensor, steps: float) -> tuple[Tensor, Tensor, bool]:
    """What a slice of this extent is multiplied by to give codes, and codes to give it back; and whether all extents are finite."""
    if extent.numel() == 0:
        return extent, extent, True
    least, most = (bound.item() for bound in torch.aminmax(extent))
    if least >= ZERO_SLICE and most < math.inf:  # nothing special, as almost always; not so where there is a NaN
        return extent.reciprocal().mul_(steps), extent / steps, True
    finite = extent.isfinite()
    usable = finite & (extent >= ZERO_SLICE)
    inverse = torch.where(usable, extent.reciprocal().mul_(steps), 0.0)
    return inverse, torch.where(usable, extent / steps, torch.where(finite, 0.0, torch.nan)), bool(finite.all())


def _codes(slices: Tensor, inverse: Tensor, finite: bool) -> Tensor:
    """rint(x * inverse), in place, as float32; 0 in slices with an inverse of 0, also where they are not finite."""
    codes = slices.mul_(inverse).round_()
    return codes if finite else codes.masked_fill_(inverse == 0.0, 0.0)


def outlier_columns(x: Tensor, limit: float) -> Tensor:
    """(K,) bool: which columns of `x` (M, K) hold a magnitude of `limit` or more."""
    columns = _outlier_columns(x, limit)
    return x.new_zeros(x.shape[1], dtype=torch.bool) if columns is None else columns


def _outlier_columns(x: Tensor, limit: float) -> Tensor | None:
    """As `outlier_columns`, or None where there is none."""
    if x.numel() == 0:
        return None
    largest = x.abs().amax(0).float()  # exact in any dtype, and NaN where there is a NaN
    most = largest.amax().item()
    if most < limit:
        return None
    columns = largest >= limit
    if math.isnan(most):  # a NaN is no outlier, but may hide one
        spoiled = largest.isnan()
        columns[spoiled] = (x[:, spoiled].float().abs() >= limit).any(0)
    return columns


def linear(x: Tensor, weight: QuantizedWeight, bias: Tensor | None, limit: float | None, per_row: bool) -> Tensor:
    """(M, N) of x's dtype: the inference phase of LLM.int8() on `x` (M, K)."""
    mask = None if limit is None else _outlier_columns(x, limit)
    outliers = None if mask is None else mask.nonzero().view(-1)
    codes, scale, zero_point = quantize(x, per_row, "absmax" if weight.zero_point is None else "zeropoint", outliers)
    dtype = torch.float32 if zero_point is None else torch.int32
    acc, outlier_codes = layer_product(codes, weight.codes, dtype, outliers if weight.float_weight is None else None)
    if zero_point is not None:
        acc = _zeropoint_correction(acc, codes, zero_point, weight)
    outlier_part = None if outliers is None else (x.index_select(1, outliers).float(), _outlier_weight(weight, outliers, outlier_codes).T)
    scale = scale.expand(len(x), 1)
    bias = None if bias is None else bias.float()

    def finish(rows: slice) -> Tensor:
        y = acc[rows].float().mul_(scale[rows]).mul_(weight.scale.T)
        if outlier_part is not None:
            y += outlier_part[0][rows] @ outlier_part[1]
        if bias is not None:
            y += bias
        return y.to(x.dtype)

    step = _rows(acc.shape[1])
    blocks = [finish(slice(start, start + step)) for start in range(0, max(1, len(x)), step)]
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


def _outlier_weight(weight: QuantizedWeight, outliers: Tensor, codes: Tensor | None) -> Tensor:
    """(N, |O|) float32: the outlier columns' weights, from their `codes` where no float weight is kept."""
    if weight.float_weight is not None:
        return weight.float_weight.index_select(1, outliers).float()
    w = codes.float()  # type: ignore[union-attr]
    return (w if weight.zero_point is None else w.sub_(weight.zero_point)).mul_(weight.scale)


def _zeropoint_correction(acc: Tensor, codes: Tensor, zero_point: Tensor, weight: QuantizedWeight) -> Tensor:
    """The sum of (Xq - zx) (Wq - zw), (M, N), in integers, from the sum of Xq Wq."""
    k = codes.shape[1]
    # Each of the four terms is at most K * 2**14, so int32 holds every partial sum up to here.
    dtype = torch.int32 if k < 2**15 else torch.int64
    zx, zw = zero_point.to(dtype), weight.zero_point.to(dtype).T  # type: ignore[union-attr]
    code_sum = codes.sum(-1, keepdim=True, dtype=dtype)
    acc = acc.to(dtype).addcmul_(zx, k * zw - weight.code_sum.to(dtype))  # type: ignore[union-attr]
    return acc.addcmul_(zw, code_sum, value=-1)
