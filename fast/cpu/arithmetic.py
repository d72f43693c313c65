"""The contract's arithmetic on slices in float32, in the order of kernels/arithmetic.py."""

import math

import torch
from torch import Tensor

from ..codes import CODE_MAX, CODE_MIN, ZERO_SLICE


def inverse_and_scale(extent: Tensor, steps: float) -> tuple[Tensor, Tensor, bool]:
    """The factor from values to codes, and the one back, of slices with this `extent`; and whether all extents are finite."""
    if extent.numel() == 0:
        return extent, extent, True
    least, most = (bound.item() for bound in torch.aminmax(extent))
    if least >= ZERO_SLICE and most < math.inf:  # common case: no zero slice, no infinity; a NaN fails both comparisons
        return extent.reciprocal().mul_(steps), extent / steps, True
    finite = extent.isfinite()
    usable = finite & (extent >= ZERO_SLICE)
    inverse = torch.where(usable, extent.reciprocal().mul_(steps), 0.0)
    return inverse, torch.where(usable, extent / steps, torch.where(finite, 0.0, torch.nan)), bool(finite.all())


def zero_points(lo: Tensor, inverse: Tensor) -> Tensor:
    """The code that stands for zero in slices whose smallest value is `lo`, as float32; 0 in slices with an inverse of 0."""
    return (CODE_MIN - lo * inverse).round_().clamp_(CODE_MIN, CODE_MAX).masked_fill_(inverse == 0.0, 0.0)


def encode(slices: Tensor, inverse: Tensor, finite: bool) -> Tensor:
    """rint(x * inverse) as float32; 0 in slices with an inverse of 0, also where they are not finite."""
    codes = torch.mul(slices, inverse).round_()
    return codes if finite else codes.masked_fill_(inverse == 0.0, 0.0)
