"""Generated inputs. Drawn are shape, seed, dtype, magnitude and what is planted; the entries follow from the seed.

Hypothesis is good at finding the awkward shape and the awkward combination, not at drawing thousands of floats (they tend to repeat
one value). What a test gets is a recipe whose repr is one line and reproduces the tensor: `given.tensor()`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.comparison import DTYPES, GRANULARITIES, OUTLIER_WEIGHTS, QUANTIZERS

#: Regular entries are standard normal numbers, cut at this, times the magnitude: with magnitude 1 they stay below the threshold 6.
CUT = 5.0

#: 2**e times CUT from the subnormal numbers of a dtype to just below its largest.
EXPONENTS = {torch.float16: (-26, 13), torch.bfloat16: (-135, 125), torch.float32: (-151, 125)}

PATTERNS = ("normal", "zeros", "positive", "negative", "one entry", "zero rows", "equal")
OUTLIERS = ("none", "one", "last column", "some columns", "all columns", "threshold")
LAYOUTS = ("contiguous", "transposed", "every other column", "every other row", "unaligned", "expanded")
SPOILERS = ("nan", "-nan", "inf", "-inf")


@dataclass(frozen=True)
class Recipe:
    """A tensor, by what it is made of.

    Attributes:
        shape: (..., K).
        exponent: regular entries are of magnitude 2**exponent.
        pattern: of the regular entries, one of PATTERNS.
        outliers: one of OUTLIERS; outliers are 4 to 20 times CUT times the magnitude, "threshold" plants 6 itself in one column,
            the next number below it in another and -6 in a third.
        layout: one of LAYOUTS; "expanded" repeats the first row with stride 0.
        spoiled: SPOILERS that are planted, each anywhere.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    seed: int
    exponent: int = 0
    pattern: str = "normal"
    outliers: str = "none"
    layout: str = "contiguous"
    spoiled: tuple[str, ...] = ()

    def tensor(self) -> Tensor:
        """The tensor, on the CPU."""
        generator = np.random.default_rng(self.seed)
        values = self._regular(generator)
        rows = values.reshape(-1, self.shape[-1]) if values.size else values.reshape(0, self.shape[-1])
        if rows.size:
            self._plant(rows, generator)
        x = torch.from_numpy(values).to(self.dtype)
        if rows.size and self.outliers == "threshold":
            self._plant_threshold(x.view(-1, self.shape[-1]), generator)
        for name in self.spoiled if rows.size else ():
            flat = x.view(-1)
            flat[int(generator.integers(len(flat)))] = float(name)
        return arrange(x, self.layout)

    def _regular(self, generator: np.random.Generator) -> np.ndarray:
        values = generator.standard_normal(self.shape).clip(-CUT, CUT)
        match self.pattern:
            case "zeros":
                values *= 0
            case "positive":
                values = np.abs(values)
            case "negative":
                values = -np.abs(values)
            case "one entry" if values.size:
                values *= np.arange(values.size).reshape(self.shape) == generator.integers(values.size)
            case "zero rows":
                values *= generator.integers(2, size=(*self.shape[:-1], 1))
            case "equal":
                values = np.sign(values)
        return values * 2.0**self.exponent

    def _plant(self, rows: np.ndarray, generator: np.random.Generator) -> None:
        m, k = rows.shape
        columns = {
            "one": [generator.integers(k)],
            "last column": [k - 1],
            "some columns": generator.choice(k, size=min(k, 1 + k // 8), replace=False),
            "all columns": range(k),
        }.get(self.outliers, [])
        largest = torch.finfo(self.dtype).max / 2
        for column in columns:
            size = generator.uniform(4, 20) * CUT * 2.0**self.exponent * generator.choice([-1, 1])
            rows[generator.integers(m), column] = np.clip(size, -largest, largest)

    def _plant_threshold(self, rows: Tensor, generator: np.random.Generator) -> None:
        m, k = rows.shape
        below = torch.nextafter(torch.tensor(6.0, dtype=self.dtype), torch.tensor(0.0, dtype=self.dtype)).item()
        for value in (-6.0, below, 6.0):
            rows[int(generator.integers(m)), int(generator.integers(k))] = value


def arrange(x: Tensor, layout: str) -> Tensor:
    """The same entries in another memory layout ("expanded": the first row for all)."""
    if x.ndim < 2 or x.numel() == 0:
        return x
    match layout:
        case "transposed":
            return x.transpose(-1, -2).contiguous().transpose(-1, -2)
        case "every other column":
            return x.repeat_interleave(2, dim=-1)[..., ::2]
        case "every other row":
            return x.repeat_interleave(2, dim=-2)[..., ::2, :]
        case "unaligned":
            return torch.cat([x[..., :3], x], dim=-1)[..., min(3, x.shape[-1]) :]
        case "expanded":
            return x[..., :1, :].expand(x.shape)
    return x


#: Blocks of the interpreter are 16 to 64 wide (fast/kernels/configurations.py), and decoding kernels take up to 16 rows: these have one
#: block and several, full and ragged ones.
SIZES = {"M": (5, 16, 17, 33), "N": (16, 32, 35), "K": (31, 32, 33, 64, 65, 70, 97)}
#: Mostly small, since the interpreter takes a moment for every block.
SMALL = {"M": 4, "N": 4, "K": 20}


def sizes(dimension: str, empty: bool = True) -> st.SearchStrategy[int]:
    """M, N or K: 0, 1, a few, and what lies at, above and below the edges of blocks."""
    small = st.integers(int(not empty), SMALL[dimension])
    return small | small | st.sampled_from(SIZES[dimension])


@st.composite
def recipes(draw: st.DrawFn, shape: tuple[int, ...] | None = None, finite: bool = True, empty: bool = True, **fixed: Any) -> Recipe:
    """A Recipe of `shape`, or of any up to 4 dimensions. `finite`: nothing is spoiled. `fixed`: attributes that are not drawn."""
    if shape is None:
        k = draw(sizes("K", empty))
        shape = (*draw(st.sampled_from(((), (1,), (2,), (2, 1), (0,) if empty else (3,)))), draw(sizes("M", empty)), k)
        shape = draw(st.sampled_from((shape, shape, shape, (k,))))
    dtype = fixed.pop("dtype", None) or draw(st.sampled_from(DTYPES))
    chosen: dict[str, st.SearchStrategy[Any]] = {
        "seed": st.integers(0, 2**32 - 1),
        "exponent": st.just(0) | st.integers(*EXPONENTS[dtype]),
        "pattern": st.just("normal") | st.sampled_from(PATTERNS),
        "outliers": st.sampled_from(OUTLIERS),
        "layout": st.just("contiguous") | st.sampled_from(LAYOUTS),
        "spoiled": st.just(()) if finite else st.lists(st.sampled_from(SPOILERS), min_size=0, max_size=2).map(tuple),
    }
    return Recipe(shape, dtype, **{name: fixed[name] if name in fixed else draw(strategy) for name, strategy in chosen.items()})


#: Also None and what float32 rounds to infinity, which both turn decomposition off.
thresholds = st.sampled_from((6.0, 0.0, 2.0**-149, 1e-3, 0.5, 6, 20.0, 1e30, 1e39, float("inf"), None))

quantizers = st.sampled_from(QUANTIZERS)
granularities = st.sampled_from(GRANULARITIES)
outlier_weights = st.sampled_from(OUTLIER_WEIGHTS)
axes = st.sampled_from((None, -1))


@dataclass(frozen=True)
class Factors:
    """X (..., M, K), W (N, K) and a bias (N,), which may be None, of one product; W and bias may have a dtype of their own."""

    x: Recipe
    w: Recipe
    bias: Recipe | None

    def tensors(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """X, W, bias, on the CPU."""
        return self.x.tensor(), self.w.tensor(), None if self.bias is None else self.bias.tensor()


@st.composite
def factors(draw: st.DrawFn, finite: bool = True, empty: bool = True, **fixed: Any) -> Factors:
    """Factors that fit each other. `fixed`: attributes of x that are not drawn."""
    n, k = draw(sizes("N", empty)), draw(sizes("K", empty))
    rows = draw(sizes("M", empty).map(lambda m: (m,)) | st.sampled_from(((1, 3), (2, 2), (2, 1, 1), (17, 1))))
    x = draw(recipes((*rows, k), finite, **fixed))
    # Weights of ordinary size, mostly: where both are near the ends of the range, all products overflow or vanish.
    dtype = draw(st.sampled_from((x.dtype, *DTYPES)))
    exponent = draw(st.sampled_from((0, -5)) | st.integers(*EXPONENTS[dtype]))
    w = draw(recipes((n, k), finite, dtype=dtype, exponent=exponent))
    bias = draw(st.none() | recipes((n,), finite, dtype=dtype, exponent=0, layout="contiguous"))
    return Factors(x, w, bias)


@st.composite
def codes(draw: st.DrawFn, shape: tuple[int, ...], least: int = -128) -> Tensor:
    """int8 codes: all of them, or the extremes only, so that accumulators get as large as they can."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if draw(st.booleans()):
        values = generator.integers(least, 128, shape, dtype=np.int8)
    else:
        values = generator.choice(np.array([least, 127], dtype=np.int8), shape)
    return arrange(torch.from_numpy(values), draw(st.just("contiguous") | st.sampled_from(LAYOUTS)))
