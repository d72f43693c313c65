"""Checks of the experts' kernels against the reference: of one projection, with the rows of each expert sorted, or of few tokens."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import fast
import reference
from fast import kernels
from fast.experts import quantize_experts
from tests.comparison import array, assert_product, poisoned


class Weights(NamedTuple):
    """The weights of a projection: floats (E, N, K), and what `Int8Experts` make of them; biases (E, N) or None."""

    floats: Tensor
    codes: Tensor
    absmax: Tensor
    bias: Tensor | None

    @property
    def stored(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """What the kernels take."""
        return self.codes, self.absmax, self.bias


def weights(experts: int, n: int, k: int, bias: torch.dtype | None = None, seed: int = 0) -> Weights:
    """Weights with a row of zeros and one that is not finite among them."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(experts, n, k, generator=generator) * (torch.rand(experts, n, 1, generator=generator) + 0.5)
    if n > 2 and k:
        w[0, 1], w[-1, 2, k // 2] = 0.0, torch.inf
    with fast.backend("cpu"):
        # Copies, since the emulator takes what `torch.empty` gave to the CPU's engine for memory that nothing has written.
        stored = [each.clone() for each in quantize_experts(w)]
    return Weights(w, *stored, None if bias is None else torch.randn(experts, n, generator=generator).to(bias))


def rows(count: int, k: int, dtype: torch.dtype, outliers: Sequence[int] = (), seed: int = 1) -> Tensor:
    """Normal rows; each column of `outliers` holds one entry of about 20, in a row of its own as far as there are."""
    x = torch.randn(count, k, generator=torch.Generator().manual_seed(seed)).clamp(-5, 5)
    for place, column in enumerate(outliers):
        x[place * 7 % count, column] = 20.0 + column % 3
    return x.to(dtype)


def check_expert(y: Tensor, x: Tensor, w: Weights, expert: int, threshold: float | None) -> None:
    """Holds the rows of one expert, y (m, N) of x (m, K), against the reference; bit for bit but for the outlier products."""
    bias = None if w.bias is None else w.bias[expert]
    layer = reference.Int8Linear.from_float(array(w.floats[expert]), None if bias is None else array(bias), threshold)
    with np.errstate(all="ignore"):
        expected = torch.from_numpy(layer(array(x)))
        met = torch.from_numpy(reference.absmax_dequantize(layer.weight, layer.weight_scale))
    outliers = torch.from_numpy(reference.outlier_columns(array(x), threshold))
    assert_product(y, expected, x, met, outliers, bias)


def check_sorted(x: Tensor, w: Weights, ends: Sequence[int], threshold: float | None, **options: object) -> None:
    """One projection of rows sorted by expert; every buffer holds NaN before."""
    with poisoned():
        y = kernels.experts_linear(x, *w.stored, torch.tensor(ends), threshold, **options)
    assert y.dtype == x.dtype
    for expert, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        check_expert(y[start:end], x[start:end], w, expert, threshold)
    assert bool((y[ends[-1] :] == 0).all()), "rows of nobody"


def check_decode(x: Tensor, w: Weights, chosen: Tensor, by_pair: bool, threshold: float | None, **options: object) -> None:
    """One projection of few tokens; `x` has a row per token, or one per pair."""
    choices = chosen.shape[1]
    with poisoned():
        y = kernels.experts_decode(x, *w.stored, chosen, by_pair, threshold, **options)
    assert y.shape == (chosen.numel(), w.codes.shape[1])
    of_pair = chosen.reshape(-1)
    for expert in range(len(w.codes)):
        pairs = torch.nonzero(of_pair == expert).view(-1)
        check_expert(y[pairs], x[pairs if by_pair else pairs // choices], w, expert, threshold)
    assert bool((y[(of_pair < 0) | (of_pair >= len(w.codes))] == 0).all()), "pairs of nobody"
