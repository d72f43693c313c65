"""Row quantization, one block of rows at a time: scales that leave out the outlier columns, then codes."""

import torch
from torch import Tensor

from ..codes import CODE_MAX, CODE_MIN, CODE_STEPS, INT8_MAX
from .arithmetic import encode, inverse_and_scale, zero_points

#: Entries of a block: 1 MiB in float32.
BLOCK = 2**18


def block_rows(columns: int) -> int:
    """The number of rows in a block."""
    return max(1, BLOCK // max(1, columns))


def quantize(x: Tensor, per_row: bool, quantizer: str, zeroed: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes (M, K) int8, scale float32 and, for zeropoint, zero_point int32 of `x` (M, K); scales (M, 1) or (1, 1).

    The columns `zeroed`, int64, count as zero.
    """
    blocks = x.split(block_rows(x.shape[1])) if per_row else (x,)
    parts = [_quantize(block, per_row, quantizer, zeroed) for block in blocks]
    if len(parts) == 1:
        return parts[0]
    codes, scale, zero_point = zip(*parts, strict=True)
    return torch.cat(codes), torch.cat(scale), None if quantizer == "absmax" else torch.cat(zero_point)


def _quantize(x: Tensor, per_row: bool, quantizer: str, zeroed: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    slices = x if per_row else x.reshape(1, -1)
    if slices.shape[1] == 0:
        scale = x.new_zeros(slices.shape[0], 1, dtype=torch.float32)
        codes = torch.zeros(x.shape, dtype=torch.int8)
        return codes, scale, None if quantizer == "absmax" else scale.int()
    if quantizer == "absmax" and (per_row or zeroed is None):
        return _absmax(slices, x.shape, zeroed)
    x = x.to(torch.float32, copy=True, memory_format=torch.contiguous_format)  # a copy, which everything below overwrites
    if zeroed is not None:
        x.index_fill_(1, zeroed, 0.0)
    slices = x if per_row else x.view(1, -1)
    if quantizer == "absmax":
        return _absmax(slices, x.shape, None)
    lo = slices.amin(1, keepdim=True).clamp_(max=0.0)
    hi = slices.amax(1, keepdim=True).clamp_(min=0.0)
    inverse, scale, finite = inverse_and_scale(hi - lo, CODE_STEPS)
    zero_point = zero_points(lo, inverse)
    codes = encode(slices, inverse, finite).add_(zero_point).clamp_(CODE_MIN, CODE_MAX)
    return codes.to(torch.int8).view(x.shape), scale, zero_point.int()


def _absmax(slices: Tensor, shape: torch.Size, zeroed: Tensor | None) -> tuple[Tensor, Tensor, None]:
    """By as few operations as can be, each of which takes microseconds: magnitudes and maxima are exact in X's own dtype, and the product
    with the float32 inverse widens X on the way."""
    magnitude = slices.abs()
    if zeroed is not None:
        magnitude.index_fill_(1, zeroed, 0.0)
    inverse, scale, finite = inverse_and_scale(magnitude.amax(1, keepdim=True).float(), INT8_MAX)
    codes = encode(slices, inverse, finite)
    if zeroed is not None:
        codes.index_fill_(1, zeroed, 0.0)
    return codes.to(torch.int8, memory_format=torch.contiguous_format).view(shape), scale, None
