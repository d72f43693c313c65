"""How two results are compared: bit for bit, or within a bound that is derived here, once. Every comparison raises.

The currency is the torch tensor, since NumPy has no bfloat16: `SIDES` calls each implementation with tensors and gives back
tensors on the CPU.
"""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

import fast
import reference
from fast.cpu import engine
from fast.cpu.build import BuildError
from tests import native_driver

#: Where the kernels run: natively on a GPU, on CPU tensors in Triton's interpreter or the emulator (tests/conftest.py decides).
ON_CPU = os.environ.get("TRITON_INTERPRET") == "1" or "EMULATE" in os.environ or not torch.cuda.is_available()
DEVICE = torch.device("cpu" if ON_CPU else "cuda")

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
QUANTIZERS = ("absmax", "zeropoint")
GRANULARITIES = ("tensor", "row", "vector")
OUTLIER_WEIGHTS = ("dequantized", "float")
#: By how many rows X has: the kernel for few rows, with one and with several, and the separate ones.
ROUTES = {"single": 1, "decode": 5, "tiled": 37}

#: Unit roundoff of float32, and half its smallest subnormal number: the most that one operation is off by, relatively or absolutely.
U32 = 2.0**-24
ETA32 = 2.0**-150
#: Unit roundoff of a sum of products: a GPU's matrix unit cuts off where an adder rounds (Fasi, Higham, Mikaitis, Pranesh, Numerical
#: behavior of NVIDIA tensor cores, 2021).
SUM_UNIT = 2 * U32 if DEVICE.type == "cuda" else U32
FLOAT32_MAX = float(np.finfo(np.float32).max)

POISON = {torch.bool: True, torch.int8: 0x5A, torch.uint8: 0x5A, torch.int32: 0x5A5A5A5A, torch.int64: 0x5A5A5A5A5A5A5A5A}


@contextmanager
def poisoned(placed: Callable[[Tensor], Tensor] = lambda buffer: buffer) -> Iterator[None]:
    """Within this context `torch.empty` gives buffers of NaN (integers: of a pattern): an entry that no program writes is seen.

    placed: gives a buffer another place in memory.
    """
    empty = torch.empty

    def filled(*shape: Any, **options: Any) -> Tensor:
        buffer = empty(*shape, **options)
        return placed(buffer.fill_(POISON.get(buffer.dtype, float("nan"))))

    with mock.patch.object(torch, "empty", filled):
        yield


def array(x: Tensor) -> np.ndarray:
    """As NumPy, with the same strides; bfloat16 widened to float32, which is exact."""
    return (x.float() if x.dtype == torch.bfloat16 else x).detach().cpu().numpy()


def on_device(x: Tensor, device: torch.device) -> Tensor:
    """`x` on `device` with its strides and offset, which `Tensor.to` keeps only of dense tensors."""
    if x.device == device:
        return x
    storage = x.new_empty(0).set_(x.untyped_storage(), 0, (x.untyped_storage().nbytes() // x.element_size(),), (1,))
    return storage.to(device).as_strided(x.shape, x.stride(), x.storage_offset())


class Side:
    """One implementation: its functions take tensors, on the CPU and of any strides, and return tensors on the CPU.

    `name` is "reference", "cpu" (Torch operations), "triton", or a set of instructions of the CPU's native engine; `backend` is what
    `fast.backend` is told, if that is another name.
    """

    def __init__(self, name: str, backend: str | None = None) -> None:
        self.name, self.backend = name, backend or name
        self.module: ModuleType = reference if name == "reference" else fast

    def __repr__(self) -> str:
        return self.name

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(self.module, name)
        return lambda *arguments, **options: self._call(function, arguments, options)

    def layer(self, *arguments: Any, **options: Any) -> Callable[[Tensor], Tensor]:
        """`Int8Linear.from_float`, as a function of x."""
        layer = self._run(self.module.Int8Linear.from_float, arguments, options)
        return lambda x: self._call(layer, (x,), {})

    def stored(self, *arguments: Any, **options: Any) -> dict[str, Tensor | None]:
        """What the layer keeps of a weight and a bias, by the names of its attributes."""
        layer = self._run(self.module.Int8Linear.from_float, arguments, options)
        names = ("weight", "weight_absmax", "weight_scale", "weight_zero_point", "float_weight", "bias")
        kept = {name: getattr(layer, name) for name in names}
        return {name: None if value is None else self._taken(value) for name, value in kept.items()}

    def _call(self, function: Callable[..., Any], arguments: tuple, options: dict[str, Any]) -> Any:
        result = self._run(function, arguments, options)
        return type(result)(*map(self._taken, result)) if isinstance(result, tuple) else self._taken(result)

    def _run(self, function: Callable[..., Any], arguments: tuple, options: dict[str, Any]) -> Any:
        arguments = tuple(map(self._given, arguments))
        options = {name: self._given(value) for name, value in options.items()}
        if self.name == "reference":
            return function(*arguments, **options)
        # Under the interpreter NumPy does the kernels' arithmetic, and warns of what IEEE arithmetic defines.
        with fast.backend(self.backend), poisoned(), np.errstate(all="ignore" if self.name == "triton" else "warn"):
            return function(*arguments, **options)

    def _given(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if self.name == "reference":
            return array(value)
        return on_device(value, DEVICE if self.name == "triton" else torch.device("cpu"))

    def _taken(self, value: Any) -> Tensor:
        return value.detach().cpu() if isinstance(value, Tensor) else torch.from_numpy(value)


def _runs(name: str) -> bool:
    try:
        engine.forced(name)
    except BuildError:
        return False
    return True


def _emulated() -> Iterator[Side]:
    """ARM's instructions, where there is a compiler for ARM and qemu to run what it makes."""
    arm = native_driver.emulated()
    if arm is not None:
        engine.put(arm)
        yield Side(arm.name)


REFERENCE, CPU, TRITON = Side("reference"), Side("cpu", "torch"), Side("triton")
#: The native engine, by each set of instructions that this machine runs and compiles, the fastest first; none without a compiler.
#: The suite's ARM runs in qemu.
NATIVE = (*(Side(name) for name in engine.available() if _runs(name)), *_emulated())
#: What is held against the reference, and everything.
ENGINES = (CPU, *NATIVE, TRITON)
SIDES = (REFERENCE, *ENGINES)


def assert_same(actual: Tensor, expected: Tensor | np.ndarray) -> None:
    """Equal dtype, shape and bits; any NaN equals any other.

    Raises:
        AssertionError: otherwise; it shows the first entry that differs.
    """
    actual = actual.detach().cpu()
    expected = torch.from_numpy(expected) if isinstance(expected, np.ndarray) else expected.detach().cpu()
    if (actual.dtype, actual.shape) != (expected.dtype, expected.shape):
        raise AssertionError(f"{actual.dtype} {tuple(actual.shape)}, expected {expected.dtype} {tuple(expected.shape)}")
    same = _bits(actual) == _bits(expected)
    if actual.is_floating_point():
        same |= actual.isnan() & expected.isnan()
    _raise_unless(same, actual, expected)


def assert_equal(actual: Tensor, expected: Tensor | np.ndarray) -> None:
    """As `assert_same`, but -0.0 equals 0.0: for sums, to which one side may have added a zero that the other left out."""
    expected = torch.from_numpy(expected) if isinstance(expected, np.ndarray) else expected
    assert_same(actual + 0.0, expected + 0.0)


def _bits(x: Tensor) -> Tensor:
    return x.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]) if x.is_floating_point() else x


def _raise_unless(fine: Tensor, actual: Tensor, expected: Tensor, allowed: str = "") -> None:
    if not bool(fine.all()):
        wrong = (~fine).nonzero()
        first = tuple(wrong[0].tolist())
        a, e = actual[first].item(), expected[first].item()
        raise AssertionError(f"{len(wrong)} of {fine.numel()} entries differ, first {first}: {a!r}, expected {e!r}{allowed}")


def assert_within(actual: Tensor, expected: Tensor, bound: Tensor) -> None:
    """`actual`, of any floating dtype, is what a float32 number no further than `bound` from `expected` may be cast to.

    A cast keeps order, so a number between expected - bound and expected + bound is cast to one between the casts of both: this allows
    for the one rounding to the output dtype, and for an overflow in it, as exactly as can be. Where `expected` is NaN or infinite
    `actual` has to be the same; where `bound` is infinite, float32 may have overflowed on either side and anything goes.

    Args:
        actual: (..., N).
        expected: float32, of the same shape.
        bound: float64, likewise, not NaN.

    Raises:
        AssertionError: otherwise; it shows the first entry that is out of bounds.
    """
    if actual.shape != expected.shape or actual.shape != bound.shape:
        raise AssertionError(f"shapes {tuple(actual.shape)}, expected {tuple(expected.shape)}, bound {tuple(bound.shape)}")
    if expected.dtype != torch.float32 or bound.dtype != torch.float64 or bool(bound.isnan().any()):
        raise AssertionError(f"expected is {expected.dtype}, bound is {bound.dtype}, NaN in bound: {bool(bound.isnan().any())}")
    lowest, highest = (expected.double() - bound).to(actual.dtype), (expected.double() + bound).to(actual.dtype)
    inside = (lowest <= actual) & (actual <= highest)
    special = torch.where(expected.isnan(), actual.isnan(), actual == expected.to(actual.dtype))
    fine = torch.where(bound.isinf(), True, torch.where(expected.isfinite(), inside, special))
    excess = f", outside {lowest[~fine][:1].tolist()} to {highest[~fine][:1].tolist()}"
    _raise_unless(fine, actual, expected, excess)


def outlier_bound(x: Tensor, w: Tensor, outliers: Tensor) -> Tensor:
    """How far two float32 evaluations of X[:, O] @ W[:, O].T may lie apart: (M, N) float64.

    A dot product of n terms in float32, summed in any order, is within gamma(n) * S of the exact one, where S is the sum of the terms'
    magnitudes and gamma(n) = n u / (1 - n u), u = SUM_UNIT (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1). A weight
    taken from codes brings one rounding more: of code * scale before the product, or of the scaling after it; S itself, taken from weights
    that were rounded once, another. So each side is within gamma(n + 2) * S, and both within twice that.

    Below 2**-126 a rounding is off by up to ETA32 instead of u. Each of the n products may be, and each of the n dequantized weights, which
    then meets its x. The kernels multiply by code / 128, and the sum by 128 * scale, which is at most 2.02 times the largest weight of
    the row (zeropoint; absmax: half of it): what a product lost comes back that many times larger.

    Infinite where float32 does not hold the sum of the magnitudes, of the terms or (before the kernels' scaling) of x alone: there a
    partial sum may overflow, in one order and not in another.

    Args:
        x: (M, K).
        w: (N, K), what the outlier columns meet: the float weight, or the codes dequantized.
        outliers: (K,) bool.
    """
    x, w = (t.double().abs().nan_to_num(0, 0, 0) for t in (x, w))
    largest = w.amax(1) if w.numel() else w.new_zeros(len(w))
    x, w = x[:, outliers], w[:, outliers]
    n = x.shape[1]
    size, terms = x.sum(1, keepdim=True), x @ w.T
    gamma = (n + 2) * SUM_UNIT / (1 - (n + 2) * SUM_UNIT)
    lost = ETA32 * ((n + 1) * (1 + 2.02 * largest) + size)
    fits = (terms < FLOAT32_MAX / 2) & (2 * size < FLOAT32_MAX / 2)
    return torch.where(fits, 2 * (gamma * terms + lost), torch.inf)


def output_bound(x: Tensor, w: Tensor, outliers: Tensor, y: Tensor, bias: Tensor | None = None) -> Tensor:
    """How far Y, before its cast, may lie from the reference's `y`: (M, N) float64; 0 where no column is an outlier.

    Both sides add the same regular part R and the same bias b to outlier parts P that are `outlier_bound` D apart. The sum R + P rounds by
    u |R + P| on each side, and that with b by u |y|. As |R + P| <= |y| + |b|, up to u, that is D + 2u (|y| + |b|) + 2u |y|, and D enters
    each sum once more times u: less than (1 + 8u) (D + 4u (|y| + |b|)).

    The tiled kernels add the n products to R instead of to zero. There R is one term more of the sum: on that side another gamma(n) |R|,
    where |R| <= |y| + |b| + S, S as in `outlier_bound`. Where R with the magnitudes of all terms does not fit into float32, anything goes.

    Args:
        x, w, outliers: as in `outlier_bound`.
        y: (M, N) float32, the reference's result.
        bias: (N,), or None.
    """
    if not bool(outliers.any()):
        return torch.zeros(y.shape, dtype=torch.float64)
    apart = outlier_bound(x, w, outliers)
    size = y.double().abs().nan_to_num(0, 0, 0) + (0 if bias is None else bias.double().abs().nan_to_num(0, 0, 0))
    terms = x[:, outliers].double().abs().nan_to_num(0, 0, 0) @ w[:, outliers].double().abs().nan_to_num(0, 0, 0).T
    n = int(outliers.sum())
    apart += n * SUM_UNIT / (1 - n * SUM_UNIT) * (size + terms)
    return torch.where(size + 2 * terms < FLOAT32_MAX, (1 + 8 * U32) * (apart + 4 * U32 * size), torch.inf)


def assert_product(actual: Tensor, y: Tensor, x: Tensor, w: Tensor, outliers: Tensor, bias: Tensor | None = None) -> None:
    """`actual` (..., N) is the reference's `y` up to `output_bound` and the cast to x's dtype; equal where no column is an outlier.

    Raises:
        AssertionError: otherwise.
    """
    if actual.dtype != x.dtype:
        raise AssertionError(f"{actual.dtype}, expected the dtype of x, {x.dtype}")
    m, k, n = math.prod(x.shape[:-1]), x.shape[-1], w.shape[0]
    bound = output_bound(x.reshape(m, k), w, outliers, y.reshape(m, n), bias)
    assert_within(actual, y, bound.reshape(y.shape))
