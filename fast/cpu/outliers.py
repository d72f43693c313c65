"""Outlier columns: found in the dtype of X, by one pass over it."""

import math

import torch
from torch import Tensor


def outlier_columns(x: Tensor, threshold: float) -> Tensor:
    """(K,) bool: which columns of `x` (M, K) hold a magnitude of `threshold` or more."""
    columns = find_outliers(x, threshold)
    return x.new_zeros(x.shape[1], dtype=torch.bool) if columns is None else columns


def find_outliers(x: Tensor, threshold: float) -> Tensor | None:
    """As `outlier_columns`, or None where no column is an outlier."""
    if x.numel() == 0:
        return None
    magnitudes = x.abs()
    largest = (magnitudes.view(-1) if len(x) == 1 else magnitudes.amax(0)).float()  # exact in any dtype, and NaN where there is a NaN
    most = largest.amax().item()
    if most < threshold:
        return None
    columns = largest >= threshold
    if math.isnan(most):  # a NaN is not an outlier, but can hide one
        spoiled = largest.isnan()
        columns[spoiled] = (x[:, spoiled].float().abs() >= threshold).any(0)
    return columns
