"""What is timed, and what each result is checked against before it is.

A contender is prepared from W (N, K) in bfloat16, once, as in a model; bound to X (M, K), it gives a call without arguments.
Its result is compared with computations that share nothing with it: a product in float64, the NumPy
reference, and, entry by entry over all of Y, a product in float32.
"""

import logging
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib import util
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

import fast
import reference

from .shapes import Shape
from .timing import Call

THRESHOLD = 6.0
DTYPE = torch.bfloat16

#: Rows of X and of W of the sample that the reference computes.
SAMPLE_ROWS, SAMPLE_COLUMNS = 16, 64
#: Rows of Y that are compared at a time.
BLOCK = 1024

#: From X (M, K) to a call that is timed.
Bind = Callable[[Tensor], Call]


class WrongResult(AssertionError):
    """A contender computed something else than it should have, so its time means nothing."""


class Work(NamedTuple):
    """The least that a contender has to do: bytes to and from memory, and operations by the unit that does them."""

    bytes: int
    operations: dict[str, int]

    def floor(self, bandwidth: float, rates: dict[str, float]) -> float:
        """Seconds below which it cannot be done at `bandwidth` bytes and `rates` operations per second."""
        return max(self.bytes / bandwidth, sum(count / rates[unit] for unit, count in self.operations.items()))


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


def check_quantized(truth: Truth, y: Tensor, decomposed: bool) -> None:
    """Another library's int8 layer, whose arithmetic is its own: as close to the float product as its steps promise."""
    _everywhere(truth, y, y.dtype, truth.steps(decomposed))


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


@dataclass(frozen=True)
class Contender:
    """What is timed under one name.

    Attributes:
        label: for people.
        prepare: from W to a function from X to the call: what a model does once is done here.
        check: raises `WrongResult` if what the call returned is not what `Truth` says.
        work: what it has to do at least, from a shape.
        clean: whether it reads the X without outliers.
        stage: it is a part of our layer, not a layer.
        foreign: it may fail where the device or the shape is unsuitable.
        capturable: its call can be captured into a CUDA graph: it does not make the host wait.
    """

    label: str
    prepare: Callable[[Tensor], Bind]
    check: Callable[[Truth, Any], None]
    work: Callable[[Shape], Work]
    clean: bool = False
    stage: bool = False
    foreign: bool = False
    capturable: bool = True


def contenders(device: str, compile_torchao: bool = False) -> dict[str, Contender]:
    """Everything that can be timed on `device` ("cpu" or "cuda") with what is installed, by name."""
    found = {
        "linear-bf16": Contender("F.linear, bfloat16", linear(torch.bfloat16), check_float, float_work(torch.bfloat16)),
        "linear-fp16": Contender("F.linear, float16", linear(torch.float16), check_float, float_work(torch.float16)),
        "linear-fp32": Contender("F.linear, float32", linear(torch.float32), check_float, float_work(torch.float32)),
        "int-mm": Contender("torch._int_mm, codes to int32", int_mm, check_accumulators, accumulator_work, foreign=True),
    }
    if installed("bitsandbytes"):
        check = partial(check_quantized, decomposed=True)
        found["bitsandbytes"] = Contender("bitsandbytes", bitsandbytes, check, int8_work, foreign=True, capturable=False)
    if installed("torchao"):
        check = partial(check_quantized, decomposed=False)
        found["torchao"] = Contender("torchao, dynamic int8", torchao, check, int8_work, foreign=True)
        if compile_torchao:
            prepare = partial(torchao, compiled=True)
            found["torchao-compiled"] = Contender("torchao, compiled", prepare, check, int8_work, foreign=True)
    for name, label, options, clean in (
        ("int8", "fast.Int8Linear", {}, False),
        ("int8-float", "fast.Int8Linear, float outlier weight", {"outlier_weight": "float"}, False),
        ("int8-none", "fast.Int8Linear, threshold None", {"threshold": None}, False),
        ("int8-clean", "fast.Int8Linear, X without outliers", {}, True),
    ):
        found[name] = Contender(label, int8(**options), partial(check_int8, **options), int8_work, clean=clean)
    if device != "cuda":
        return found | stages()
    found["int8-launched"] = replace(found["int8"], label="fast.Int8Linear, launched by the host", capturable=False)
    return found | kernel_stages()


def installed(package: str) -> bool:
    """Whether a package that we only compare with is there."""
    return util.find_spec(package) is not None


def linear(dtype: torch.dtype) -> Callable[[Tensor], Bind]:
    """A float layer, all of it in `dtype`."""

    def prepare(w: Tensor) -> Bind:
        return partial(_bound, F.linear, w.to(dtype), dtype)

    return prepare


def _bound(product: Callable[[Tensor, Tensor], Any], weight: Tensor, dtype: torch.dtype, x: Tensor) -> Call:
    x = x.to(dtype)
    return lambda: product(x, weight)


def int_mm(w: Tensor) -> Bind:
    """PyTorch's integer product of the codes: neither quantization nor scales."""
    return partial(_product_of_codes, torch._int_mm, fast.absmax_quantize(w, -1).codes.T)


def int8_matmul(w: Tensor) -> Bind:
    """Our integer product of the codes."""
    return partial(_product_of_codes, fast.int8_matmul, fast.absmax_quantize(w, -1).codes)


def _product_of_codes(product: Callable[[Tensor, Tensor], Tensor], weight: Tensor, x: Tensor) -> Call:
    codes = fast.absmax_quantize(x, -1).codes
    return lambda: product(codes, weight)


def _called(layer: Callable[[Tensor], Any], x: Tensor) -> Call:
    return lambda: layer(x)


def bitsandbytes_layer(weight: Tensor, bias: Tensor | None = None) -> torch.nn.Module:
    """bitsandbytes' LLM.int8() layer for a float weight (N, K)."""
    import bitsandbytes as bnb

    layer = bnb.nn.Linear8bitLt(weight.shape[1], weight.shape[0], bias=bias is not None, has_fp16_weights=False, threshold=THRESHOLD)
    layer.weight = bnb.nn.Int8Params(weight.detach().clone(), requires_grad=False, has_fp16_weights=False)
    if bias is not None:
        layer.bias = torch.nn.Parameter(bias.detach().clone(), requires_grad=False)
    # Moving it is what quantizes it.
    return layer.to(weight.device).eval()


def quiet() -> None:
    """Keeps other libraries from saying at every call that they cast bfloat16, and what they say of each other when imported."""
    for name in ("bitsandbytes", "torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


def bitsandbytes(w: Tensor) -> Bind:
    """bitsandbytes' layer."""
    quiet()
    return partial(_called, bitsandbytes_layer(w))


def torchao(w: Tensor, compiled: bool = False) -> Bind:
    """torchao's layer with dynamically quantized activations; compiled is how its documentation runs it."""
    quiet()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        layer = torch.nn.Linear(w.shape[1], w.shape[0], bias=False, dtype=w.dtype, device="meta")
        layer.weight = torch.nn.Parameter(w, requires_grad=False)
        quantize_(layer, Int8DynamicActivationInt8WeightConfig())
    product = torch.compile(F.linear, dynamic=False) if compiled else F.linear
    return partial(_bound, product, layer.weight, w.dtype)


def int8(**options: Any) -> Callable[[Tensor], Bind]:
    """Our layer."""
    return lambda w: partial(_called, fast.Int8Linear.from_float(w, **options))


def _alone(stage: Callable[[Tensor], Any]) -> Callable[[Tensor], Bind]:
    """A stage that W has no part in."""
    return lambda w: partial(_called, stage)


def stages() -> dict[str, Contender]:
    """The parts of our layer that are public functions."""
    codes = partial(check_codes, decomposed=False)
    detect, quantize = partial(fast.outlier_columns, threshold=THRESHOLD), partial(fast.absmax_quantize, axis=-1)
    return {
        "detect": Contender("detection", _alone(detect), check_mask, detect_work, stage=True),
        "quantize": Contender("quantization", _alone(quantize), codes, quantize_work, stage=True),
        "product": Contender("product", int8_matmul, check_accumulators, accumulator_work, stage=True),
    }


def kernel_stages() -> dict[str, Contender]:
    """The launches of our layer, one by one and together, as `fast.kernels.tiled` makes them."""
    from fast.kernels import outliers, product, quantization
    from fast.weights import QuantizedWeight

    def launch(threshold: float | None) -> Callable[[Tensor], Bind]:
        def prepare(w: Tensor) -> Bind:
            weight = QuantizedWeight.from_float(w)

            def bind(x: Tensor) -> Call:
                quantized = quantization.quantize_regular(x, threshold, outlier_weight=weight.codes)
                y = x.new_empty(x.shape[0], w.shape[0])
                return lambda: product.launch_product(quantized, weight, y, x)

            return bind

        return prepare

    def scan(x: Tensor) -> Tensor | None:
        return outliers.scan(x, THRESHOLD, extremes=False, zeropoint=False).flags

    def quantize(threshold: float | None) -> Callable[[Tensor], Bind]:
        """W has a part in it where its outlier columns are gathered."""

        def prepare(w: Tensor) -> Bind:
            w_codes = fast.absmax_quantize(w, -1).codes
            return partial(_called, lambda x: quantization.quantize_regular(x, threshold, outlier_weight=w_codes)[:2])

        return prepare

    unmasked, masked = (partial(check_codes, decomposed=d) for d in (False, True))
    return {
        "detect": Contender("detection", _alone(scan), check_mask, detect_work, stage=True),
        "quantize": Contender("quantization", quantize(None), unmasked, quantize_work, stage=True),
        "detect-quantize": Contender("detection and quantization", quantize(THRESHOLD), masked, quantize_work, stage=True),
        "product": Contender("product", launch(None), partial(check_int8, threshold=None), product_work, stage=True),
        "product-outliers": Contender("product with outlier columns", launch(THRESHOLD), check_int8, product_work, stage=True),
    }


def float_work(dtype: torch.dtype) -> Callable[[Shape], Work]:
    """X and W read, Y written, 2 M N K operations."""

    def work(s: Shape) -> Work:
        return Work(dtype.itemsize * (s.m * s.k + s.n * s.k + s.m * s.n), {str(dtype).removeprefix("torch."): 2 * s.m * s.n * s.k})

    return work


def int8_work(s: Shape) -> Work:
    """16-bit X, codes and scales of W, 16-bit Y; the outlier columns once more in 16 bits."""
    operations = {"int8": 2 * s.m * s.n * s.k, "bfloat16": 2 * s.m * s.n * s.columns}
    return Work(2 * s.m * s.k + s.n * s.k + 4 * s.n + 2 * s.m * s.n, operations)


def accumulator_work(s: Shape) -> Work:
    """Codes of both, int32 sums."""
    return Work(s.m * s.k + s.n * s.k + 4 * s.m * s.n, {"int8": 2 * s.m * s.n * s.k})


def product_work(s: Shape) -> Work:
    """Codes and scales of both, 16-bit Y."""
    return Work(s.m * s.k + s.n * s.k + 4 * (s.m + s.n) + 2 * s.m * s.n, {"int8": 2 * s.m * s.n * s.k})


def detect_work(s: Shape) -> Work:
    """X read, one byte per column written."""
    return Work(2 * s.m * s.k + s.k, {})


def quantize_work(s: Shape) -> Work:
    """X read, codes and scales written."""
    return Work(3 * s.m * s.k + 4 * s.m, {})
