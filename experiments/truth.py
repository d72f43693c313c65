"""What is multiplied, and what each result is checked against before it is timed.

A result is compared with computations that share nothing with it: a product in float64, the NumPy reference, and, entry by entry over all
of Y, a product in float32.
"""

import math
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

import reference

from .shapes import Shape

THRESHOLD = 6.0
DTYPE = torch.bfloat16

#: Rows of X and of W of the sample that the reference computes.
SAMPLE_ROWS, SAMPLE_COLUMNS = 16, 64
#: Rows of Y that are compared at a time.
BLOCK = 1024


class WrongResult(AssertionError):
    """A contender computed something else than it should have, so its time means nothing."""


class Activations(NamedTuple):
    """X (M, K) with outlier columns, and the same with ordinary entries instead."""

    x: Tensor
    clean: Tensor


def draw_weight(n: int, k: int, device: str, seed: int) -> Tensor:
    """A random weight (n, k)."""
    generator = torch.Generator(device).manual_seed(seed)
    return (torch.randn(n, k, generator=generator, device=device) / math.sqrt(k)).to(DTYPE)


def draw_activations(shape: Shape, device: str, seed: int) -> Activations:
    """Random activations; every entry of an outlier column is an outlier, and no other is."""
    generator = torch.Generator(device).manual_seed(seed)
    normal = partial(torch.randn, generator=generator, device=device)
    # Of a billion normal numbers one or two exceed 6.
    clean = normal(shape.m, shape.k).clamp_(-5, 5).to(DTYPE)
    x = clean.clone()
    columns = torch.randperm(shape.k, generator=generator, device=device)[: shape.columns]
    outliers = normal(shape.m, shape.columns)
    x[:, columns] = (outliers.sign() * (10 + 10 * outliers.abs())).where(outliers != 0, 10.0).to(DTYPE)
    return Activations(x, clean)


class Truth:
    """What the results for X and W are checked against.

    Attributes:
        rows, columns: of Y, the sample.
        x, w: those rows of X and W in float32.
        outliers: (K,) bool, the outlier columns of all of X.
    """

    def __init__(self, x: Tensor, w: Tensor) -> None:
        generator = np.random.default_rng(0)
        self.rows = _some(x.shape[0], SAMPLE_ROWS, generator)
        self.columns = _some(w.shape[0], SAMPLE_COLUMNS, generator)
        self.x, self.w = _numpy(x[self.rows]), _numpy(w[self.columns])
        blocks = [reference.outlier_columns(_numpy(block), THRESHOLD) for block in x.split(BLOCK)]
        self.outliers = np.logical_or.reduce(blocks)
        self._x, self._w = x, w

    @cached_property
    def whole(self) -> Tensor:
        """Y (M, N) in float32, by PyTorch."""
        return F.linear(self._x.float(), self._w.float())

    @cached_property
    def norms(self) -> tuple[Tensor, Tensor]:
        """Lengths of the rows of X (M, 1) and of W (1, N)."""
        return self._x.float().norm(dim=1, keepdim=True), self._w.float().norm(dim=1).unsqueeze(0)

    def steps(self, decomposed: bool) -> tuple[Tensor, Tensor]:
        """Quantization steps of the rows of X (M, 1), with or without its outlier columns, and of W (1, N)."""
        x = self._x.masked_fill(torch.from_numpy(self.outliers).to(self._x.device), 0.0) if decomposed else self._x
        return x.float().abs().amax(1, keepdim=True) / 127, self._w.float().abs().amax(1).unsqueeze(0) / 127

    def sample(self, y: Tensor) -> NDArray:
        """The sample of a result (M, N); int32 stays, all else becomes float32."""
        self.require_shape(y)
        chosen = y[self.rows][:, self.columns].cpu()
        return (chosen if chosen.dtype == torch.int32 else chosen.float()).numpy()

    def require_shape(self, y: Tensor) -> None:
        """Raises where a result is not (M, N)."""
        shape = (len(self._x), len(self._w))
        if y.shape != shape:
            raise WrongResult(f"its shape is {tuple(y.shape)}, not {shape}")


def _some(count: int, most: int, generator: np.random.Generator) -> list[int]:
    """First, last and random numbers below `count`, `most` in all or fewer."""
    return sorted({0, count - 1, *generator.permutation(count)[: most - 2].tolist()})


def _numpy(x: Tensor) -> NDArray[np.float32]:
    return x.float().cpu().numpy()


def _require(error: Any, bound: Any, what: str) -> None:
    """Raises where an error exceeds its bound, or is NaN."""
    outside = ~(error <= bound)
    if outside.any():
        where = tuple(int(i[0]) for i in np.nonzero(np.asarray(outside.cpu() if isinstance(outside, Tensor) else outside)))
        raise WrongResult(
            f"{int(outside.sum())} of {math.prod(outside.shape)} entries differ from {what} by more than their bound, "
            f"the first at {where}: by {float(error[where]):.3g}, allowed {float(bound[where]):.3g}"
        )


def _equal(found: Any, expected: NDArray, what: str) -> None:
    if not np.array_equal(np.asarray(found), expected):
        raise WrongResult(f"not equal to {what}")


def _rounding(dtype: torch.dtype) -> float:
    """Unit roundoff of a floating dtype."""
    return torch.finfo(dtype).eps / 2


def _everywhere(truth: Truth, y: Tensor, dtype: torch.dtype, steps: tuple[Tensor, Tensor] | None) -> None:
    """Holds every entry of Y against the float32 product.

    Allowed are what `_float_bound` allows and 8 standard deviations of the quantization error, each rounding being uniform and
    independent, of variance step**2 / 12.
    """
    (x_norm, w_norm), whole = truth.norms, truth.whole
    truth.require_shape(y)
    for i in range(0, len(y), BLOCK):
        part = slice(i, i + BLOCK)
        bound = _float_bound(whole[part], x_norm[part] * w_norm, dtype, truth.x.shape[1])
        if steps is not None:
            bound += 8 * (((steps[0][part] * w_norm) ** 2 + (x_norm[part] * steps[1]) ** 2) / 12).sqrt()
        _require((y[part].float() - whole[part]).abs(), bound, "the float32 product")


def _float_bound(y: Any, lengths: Any, dtype: torch.dtype, k: int) -> Any:
    """What a float product may differ by: some roundings to `dtype`, of the result and of partial sums, and of k float32 sums.

    Partial sums are of the size of |x| |w| / sqrt(k) where signs are random, and so are the errors of k sums.
    """
    return 8 * (_rounding(dtype) + math.sqrt(k) * 2.0**-24) * (abs(y) + lengths / math.sqrt(k))


def check_float(truth: Truth, y: Tensor) -> None:
    """A float product: against float64 on the sample, against float32 everywhere."""
    exact = truth.x.astype(np.float64) @ truth.w.T.astype(np.float64)
    lengths = np.outer(np.linalg.norm(truth.x, axis=1), np.linalg.norm(truth.w, axis=1))
    _require(abs(truth.sample(y) - exact), _float_bound(exact, lengths, y.dtype, truth.x.shape[1]), "the float64 product")
    _everywhere(truth, y, y.dtype, None)


def check_quantized(truth: Truth, y: Tensor, decomposed: bool, per_tensor: bool = False) -> None:
    """Another library's int8 layer, whose arithmetic is its own: as close to the float product as its steps promise.

    Args:
        decomposed: whether it leaves outlier columns out of the range.
        per_tensor: whether X and W have one scale each, asymmetric and of at least 7 bits.
    """
    steps = truth.steps(decomposed)
    if per_tensor:  # a range of both signs is at most twice the largest magnitude: 2 * largest / 127 for 7 bits
        steps = (2 * steps[0].amax().expand_as(steps[0]), steps[1].amax().expand_as(steps[1]))
    _everywhere(truth, y, y.dtype, steps)


def check_int8(truth: Truth, y: Tensor, threshold: float | None = THRESHOLD, outlier_weight: str = "dequantized") -> None:
    """Our layer: on the sample within docs/contract.md's bound of the reference, and everywhere as its steps promise."""
    layer = reference.Int8Linear.from_float(truth.w, None, threshold, outlier_weight)
    # Which columns are outliers is decided by all of X; one more row tells the reference, and changes no other.
    marker = np.where(truth.outliers, np.float32(THRESHOLD), np.float32(0))
    expected = layer(np.vstack([truth.x, marker]))[:-1]
    outliers = truth.outliers if threshold is not None else np.zeros_like(truth.outliers)
    # |w| may be half a step off; a step is at most the largest |w| / 127, and twice |w|'s sum is far above that.
    magnitude = 2 * np.abs(truth.x[:, outliers]) @ np.abs(truth.w[:, outliers]).T
    sums = (outliers.sum() + 4) * 2.0**-23 * (magnitude + abs(expected))
    bound = sums + _rounding(y.dtype) * (abs(expected) + sums) + torch.finfo(y.dtype).tiny
    _require(abs(truth.sample(y) - expected), bound, "the reference")
    _everywhere(truth, y, y.dtype, truth.steps(threshold is not None))


def check_accumulators(truth: Truth, acc: Tensor) -> None:
    """An integer product of the codes of X and W: exact on the sample, and everywhere as the steps promise."""
    codes, weight_codes = (reference.absmax_quantize(a, -1).codes for a in (truth.x, truth.w))
    _equal(truth.sample(acc), reference.int8_matmul(codes, weight_codes), "the reference's accumulators")
    x_steps, w_steps = truth.steps(decomposed=False)
    _everywhere(truth, acc.float() * x_steps * w_steps, torch.float32, (x_steps, w_steps))


def check_codes(truth: Truth, result: Sequence[Tensor], decomposed: bool) -> None:
    """Codes and scales of the sample's rows: equal, bit for bit."""
    regular = np.where(truth.outliers, np.float32(0), truth.x) if decomposed else truth.x
    expected = reference.absmax_quantize(regular, -1)
    for name, found, value in zip(expected._fields, result, expected, strict=False):
        _equal(found[truth.rows].cpu(), np.asarray(value), f"the reference's {name}")


def check_mask(truth: Truth, mask: Tensor) -> None:
    """The outlier columns, all of them; a mask in splits (splits, K) counts where any split does."""
    _equal(mask.bool().reshape(-1, len(truth.outliers)).any(0).cpu(), truth.outliers, "the reference's outlier columns")
