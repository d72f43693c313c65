"""The CPU path, in Torch operations: any machine, no compiler, no Triton."""

import torch
from torch import Tensor

from .weights import ZERO_SLICE, QuantizedWeight


def quantize(x: Tensor, per_row: bool, quantizer: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes (M, K) int8, scale float32 and, for zeropoint, zero_point int32 of `x` (M, K); scales (M, 1) or (1, 1)."""
    x = x.float()
    slices = x if per_row else x.reshape(1, -1)
    lo, hi = (_reduce(slices, torch.amin), _reduce(slices, torch.amax))
    if quantizer == "absmax":
        extent, steps = torch.maximum(-lo, hi), 127.0
    else:
        extent, steps = hi - lo, 255.0
    finite = extent.isfinite()
    usable = finite & (extent >= ZERO_SLICE)
    safe = torch.where(usable, extent, 1.0)
    inverse = torch.where(usable, safe.reciprocal() * steps, 0.0)
    scale = torch.where(usable, safe / steps, torch.where(finite, 0.0, torch.nan))
    codes = torch.where(usable, (x * inverse).round_(), 0.0)
    if quantizer == "absmax":
        return codes.to(torch.int8), scale, None
    zero_point = torch.where(usable, (-128.0 - lo * inverse).round_().clamp_(-128, 127), 0.0)
    return (codes + zero_point).clamp_(-128, 127).to(torch.int8), scale, zero_point.to(torch.int32)


def _reduce(slices: Tensor, reduction) -> Tensor:
    """Smallest or largest entry of each row, zero included; NaN where the row holds a NaN."""
    padded = slices if slices.shape[1] else slices.new_zeros(slices.shape[0], 1)
    bound = reduction(padded, dim=1, keepdim=True)
    return bound.clamp(max=0.0) if reduction is torch.amin else bound.clamp(min=0.0)


def int8_matmul(a: Tensor, b: Tensor) -> Tensor:
    """a (M, K) @ b (N, K).T in int32, exact."""
    if 0 in (*a.shape, b.shape[0]):
        return a.new_zeros(a.shape[0], b.shape[0], dtype=torch.int32)
    if a.shape[1] == 1:  # _int_mm takes the strides (1, 1) of a single column for another layout, and reads what is not there
        return a.int() * b.int().T
    return torch._int_mm(a.contiguous(), b.contiguous().T)


def outlier_columns(x: Tensor, limit: float) -> Tensor:
    """(K,) bool: which columns of `x` (M, K) hold a magnitude of `limit` or more."""
    return (x.float().abs() >= limit).any(dim=0)


def linear(x: Tensor, weight: QuantizedWeight, bias: Tensor | None, limit: float | None, per_row: bool) -> Tensor:
    """(M, N) of x's dtype: the inference phase of LLM.int8() on `x` (M, K)."""
    outliers = None if limit is None else outlier_columns(x, limit)
    regular = x if outliers is None else x.masked_fill(outliers, 0.0)
    codes, scale, zero_point = quantize(regular, per_row, "absmax" if weight.zero_point is None else "zeropoint")
    acc = int8_matmul(codes, weight.codes)
    if zero_point is not None and weight.zero_point is not None and weight.code_sum is not None:
        zx, zw = zero_point.long(), weight.zero_point.long().T
        acc = acc - zx * weight.code_sum.long() - zw * codes.sum(-1, keepdim=True) + x.shape[1] * zx * zw
    y = (acc.float() * scale) * weight.scale.T
    if outliers is not None and outliers.any():
        y += _outlier_product(x, weight, outliers)
    if bias is not None:
        y += bias.float()
    return y.to(x.dtype)


def _outlier_product(x: Tensor, weight: QuantizedWeight, outliers: Tensor) -> Tensor:
    if weight.float_weight is not None:
        w = weight.float_weight[:, outliers].float()
    else:
        w = weight.codes[:, outliers].float()
        w = (w if weight.zero_point is None else w - weight.zero_point) * weight.scale
    return x[:, outliers].float() @ w.T
