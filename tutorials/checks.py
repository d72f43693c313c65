"""Checkers of the exercises: they run an answer on many inputs and show the smallest one where it is wrong.

    checks.absmax(my_absmax)

Every checker returns a `Verdict`, whose text says either that the answer is right and on how many inputs, or: the
smallest input found where it is wrong, what came out, what should have, and, where the answer behaves like a known
mistake, which one. A stub that returns NotImplemented gets "not yet". NumPy and `reference` only, so that the checkers
also run in the browser; the kernels' are in `kernel_checks.py`.

Answers are compared with `reference`: integers and scales bit for bit, products within a bound derived where it is used.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import reference
from reference import features
from reference.decomposition import outlier_product

F32 = np.float32
#: The unit roundoff of float32: one rounded operation is off by at most this, relative to its result.
ROUNDOFF = 2.0**-24

#: Rows and columns of the generated inputs: single rows and columns, odd sizes, more columns than rows and the reverse.
SHAPES = ((1, 1), (1, 7), (5, 1), (3, 5), (4, 4), (17, 9), (2, 129))
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Verdict:
    """What a checker found: `passed`, and the `message` for the reader, which is also how it prints."""

    passed: bool
    message: str

    def __repr__(self) -> str:
        return self.message


@dataclass
class Exercise:
    """One exercise: the right answer, inputs from small to large, and the mistakes that are known.

    Attributes:
        right: the function to agree with; its results are named in `outputs`.
        cases: makes the argument tuples, smallest first.
        mistakes: (what to say, a function that makes the mistake).
        shared_axes: groups of (argument, axis) that lose an index together while a counterexample is made smaller.
        compare: fault of one output, as `exact`; the default of every output.
    """

    right: Callable
    outputs: Sequence[str]
    cases: Callable[[], Iterator[tuple]]
    inputs: Sequence[str]
    mistakes: Sequence[tuple[str, Callable]] = ()
    shared_axes: Sequence[Sequence[tuple[int, int]]] = ()
    compare: Callable[..., str | None] = field(default=lambda name, got, want, args: exact(name, got, want))

    def __call__(self, candidate: Callable) -> Verdict:
        """Runs `candidate` on every case and reports on the first that fails, made as small as it gets."""
        name = getattr(candidate, "__name__", "your function")
        cases = list(self.cases())
        if _call(candidate, cases[0]) is NotImplemented:
            return Verdict(False, f"not yet: {name} returns NotImplemented. Write it, then run this cell again.")
        for args in cases:
            if self.fault(candidate, args):
                smallest = self._shrink(candidate, args)
                return Verdict(False, self._report(name, candidate, smallest, self._diagnose(candidate, cases, smallest)))
        return Verdict(True, f"right: {name} agrees with the reference on {len(cases)} inputs, edges included.")

    def fault(self, candidate: Callable, args: tuple) -> str | None:
        """What is wrong with the candidate's answer to `args`, in a line or two, or None."""
        got = _call(candidate, args)
        if isinstance(got, Exception):
            return f"it raised {type(got).__name__}: {got}"
        results = got if isinstance(got, tuple) else (got,)
        if len(results) != len(self.outputs):
            return f"it returned {_count(len(results), 'value')}; expected {len(self.outputs)}: {', '.join(self.outputs)}"
        wanted = _tuple(self.right(*args))
        faults = (self.compare(n, g, w, args) for n, g, w in zip(self.outputs, results, wanted, strict=True))
        return next((fault for fault in faults if fault), None)

    def _diagnose(self, candidate: Callable, cases: list[tuple], smallest: tuple) -> str | None:
        """The known mistake that gives what the candidate gives: on every case; or here, and wherever else it explains most."""
        for hint, mistake in self.mistakes:
            if all(_same(_call(candidate, args), _call(mistake, args)) for args in [smallest, *cases]):
                return f"Hint: {hint}"
        wrong = [args for args in cases if self.fault(candidate, args)]
        here = [(hint, mistake) for hint, mistake in self.mistakes if _same(_call(candidate, smallest), _call(mistake, smallest))]
        if not here:
            return None
        explained = [sum(_same(_call(candidate, args), _call(mistake, args)) for args in wrong) for _, mistake in here]
        return f"Perhaps, among other things: {here[explained.index(max(explained))][0]}"

    def _shrink(self, candidate: Callable, args: tuple) -> tuple:
        """Removes rows and columns for as long as the answer stays wrong."""
        shrunk = True
        while shrunk:
            shrunk = False
            for group in self.shared_axes:
                argument, axis = group[0]
                for index in range(args[argument].shape[axis]):
                    smaller = list(args)
                    for a, ax in group:
                        smaller[a] = np.delete(smaller[a], index, axis=ax)
                    if smaller[argument].size and self.fault(candidate, tuple(smaller)):
                        args, shrunk = tuple(smaller), True
                        break
        return args

    def _report(self, name: str, candidate: Callable, args: tuple, hint: str | None) -> str:
        lines = [f"not right yet. The smallest input found where {name} is wrong:"]
        lines += [f"  {label} = {_show(value)}" for label, value in zip(self.inputs, args, strict=True)]
        lines.append(f"  {self.fault(candidate, args)}")
        if hint:
            lines.append(hint)
        return "\n".join(lines)


def exact(name: str, got: Any, want: np.ndarray) -> str | None:
    """Fault of a result that has to have the dtype, shape and values of `want`, bit for bit; NaN equals NaN."""
    got = np.asarray(got)
    if got.dtype != want.dtype:
        return f"{name} has dtype {got.dtype}; expected {want.dtype}"
    if got.shape != want.shape:
        return f"{name} has shape {got.shape}; expected {want.shape}"
    if not np.array_equal(got, want, equal_nan=got.dtype.kind == "f"):
        return f"{name}: got {_show(got)}; expected {_show(want)}"
    return None


def one_scale(name: str, got: Any, want: np.ndarray, args: tuple) -> str | None:
    """As `exact`; a result of one entry may come as a plain number."""
    if want.size == 1 and np.size(got) == 1 and name in ("scale", "zero_point"):
        got = np.asarray(got).reshape(want.shape)
        got = got.astype(want.dtype) if name == "zero_point" and got.dtype.kind in "iu" else got
    return exact(name, got, want)


def within(name: str, got: Any, want: np.ndarray, bound: np.ndarray) -> str | None:
    """Fault of a float32 result that has to lie within `bound` of `want`, entry by entry."""
    got = np.asarray(got)
    if got.dtype != want.dtype or got.shape != want.shape:
        return exact(name, got, want)
    off = ~(np.abs(got.astype(np.float64) - want) <= bound)
    if off.any():
        return f"{name}: got {_show(got)}; expected {_show(want)}"
    return None


def _call(f: Callable, args: tuple) -> Any:
    """f(*args) on copies, so that an answer that writes into its input is not believed; what it raises is the result."""
    with np.errstate(all="ignore"):
        try:
            return f(*(a.copy() if isinstance(a, np.ndarray) else a for a in args))
        except Exception as error:
            return error


def _tuple(result: Any) -> tuple:
    return tuple(result) if isinstance(result, tuple) else (result,)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Exception) or isinstance(b, Exception):
        return type(a) is type(b)
    a, b = _tuple(a), _tuple(b)
    return len(a) == len(b) and all(_equal(p, q) for p, q in zip(a, b, strict=True))


def _equal(p: Any, q: Any) -> bool:
    """Whether two answers are one and the same: whole numbers exactly, floats up to a few roundings, in whatever order they came."""
    p, q = np.asarray(p), np.asarray(q)
    if p.shape != q.shape and not p.size == q.size == 1:
        return False
    if p.dtype.kind == q.dtype.kind == "f":
        return np.allclose(p.ravel(), q.ravel(), rtol=16 * ROUNDOFF, atol=0, equal_nan=True)
    return np.array_equal(p.ravel(), q.ravel())


def _show(value: Any) -> str:
    if not isinstance(value, np.ndarray):
        return repr(value)
    if value.size > 64:
        return f"an array of shape {value.shape} {value.dtype}"
    if value.dtype.kind == "f":
        digits = 5 if value.size > 4 else 9
        return _nested(value.astype(np.float64).tolist(), digits)
    return str(value.tolist())


def _nested(value: Any, digits: int) -> str:
    return "[" + ", ".join(_nested(v, digits) for v in value) + "]" if isinstance(value, list) else f"{value:.{digits}g}"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _array(*rows: Sequence[float]) -> np.ndarray:
    return np.array(rows, F32)


# ---------------------------------------------------------------------------------------------------- 01 absmax


def _one_tensor() -> Iterator[tuple]:
    """Inputs of a quantizer with one scale: the edges by hand, then random ones of awkward shapes."""
    yield (_array([1.0]),)
    yield (_array([0.0, 0.0]),)  # a zero slice
    yield (_array([2.0**-101]),)  # a zero slice that is not quite zero
    yield (_array([1.0, 0.996]),)  # rint, not truncation
    yield (_array([-1.0, 0.25]),)  # the largest magnitude is negative
    yield (_array([0.14, 0.07]),)  # 63.5 on paper: a tie, where the way 127 / absmax is evaluated shows
    yield (_array([127.0, 0.5, 1.5, -2.5]),)  # exact ties go to even
    yield (_array([0.22, 0.11]),)
    yield (_array([-0.02, 0.01]),)
    yield (_array([-1.5, 253.5]),)  # as zeropoint, the largest code would be 128
    yield (_array([0.06, 0.01]),)
    yield (_array([-0.25, 0.11, 0.06]),)
    yield (_array([1.0, 2.0, 4.0], [8.0, 3.0, 0.5]),)
    yield (_array([200.0, -300.0]),)
    yield (_array([5.0, 7.0]),)  # all positive: zero must stay inside the range
    yield (_array([70000.0, -1.0]),)  # more than float16 holds
    for seed in SEEDS:
        for shape in SHAPES:
            yield (np.random.default_rng(seed).normal(size=shape).astype(F32),)


def _absmax_by(encode: Callable[[np.ndarray, np.ndarray], np.ndarray], largest: Callable = lambda x: np.abs(x).max()) -> Callable:
    def mistaken(x: np.ndarray) -> tuple:
        top = largest(x)
        if top < 2.0**-100:
            return np.zeros(x.shape, np.int8), np.zeros((1,) * x.ndim, F32)
        return encode(x, top).astype(np.int8), np.full((1,) * x.ndim, top / F32(127))

    return mistaken


def _inverse(top: np.ndarray, steps: int = 127) -> np.ndarray:
    return (F32(1) / top) * F32(steps)


def _round_half_away(x: np.ndarray) -> np.ndarray:
    return np.sign(x) * np.floor(np.abs(x) + F32(0.5))


def _absmax_unguarded(x: np.ndarray) -> tuple:
    top = np.abs(x).max()
    return np.rint(x * _inverse(top)).astype(np.int8), np.full((1,) * x.ndim, top / F32(127))


def _absmax_128(x: np.ndarray) -> tuple:
    top = np.abs(x).max()
    if top < 2.0**-100:
        return np.zeros(x.shape, np.int8), np.zeros((1,) * x.ndim, F32)
    return np.clip(np.rint(x * _inverse(top, 128)), -128, 127).astype(np.int8), np.full((1,) * x.ndim, top / F32(128))


ZERO_HINT = (
    "an all-zero tensor (anything below 2**-100) divides by zero here. Give it scale 0 and codes 0, which dequantizes to the zeros it was."
)
NARROW_HINT = "you narrowed x to float16 on the way: it loses half of its digits, and beyond 65504 becomes infinite. Widen, never narrow."

absmax = Exercise(
    right=lambda x: tuple(reference.absmax_quantize(x)),
    inputs=("x",),
    outputs=("codes", "scale"),
    cases=_one_tensor,
    shared_axes=([(0, 0)], [(0, 1)]),
    compare=one_scale,
    mistakes=(
        (
            "truncation. `astype(np.int8)` cuts the fraction off; np.rint first, or the error doubles.",
            _absmax_by(lambda x, t: x * _inverse(t)),
        ),
        (
            "np.floor rounds down always, so every code is low by half a step on average. Use np.rint.",
            _absmax_by(lambda x, t: np.floor(x * _inverse(t))),
        ),
        (
            "you round halves away from zero; np.rint sends a tie to the even code.",
            _absmax_by(lambda x, t: _round_half_away(x * _inverse(t))),
        ),
        (
            "x / scale lands on the other side of a tie. Multiply by inverse = (1 / absmax) * 127, all in float32.",
            _absmax_by(lambda x, t: np.rint(x / (t / F32(127)))),
        ),
        (
            "x * 127 / absmax lands on the other side of a tie. Multiply by inverse = (1 / absmax) * 127, in float32.",
            _absmax_by(lambda x, t: np.rint(x * F32(127) / t)),
        ),
        (
            "127 / absmax is a true division, one rounding; the rule is (1 / absmax) * 127, two. It differs in the last "
            "place, so near ties.",
            _absmax_by(lambda x, t: np.rint(x * (F32(127) / t))),
        ),
        ("you scale to 128. int8 has -128 and no +128: use 127, so that -x always has the negated codes.", _absmax_128),
        (
            "you took the largest value, not the largest magnitude: take np.abs first, or large negative entries wrap around.",
            _absmax_by(lambda x, t: np.rint(x * _inverse(t)), lambda x: x.max()),
        ),
        (ZERO_HINT, _absmax_unguarded),
        (NARROW_HINT, lambda x: tuple(reference.absmax_quantize(x.astype(np.float16)))),
        ("a scale for each row is chapter 03. Here the whole tensor has one.", lambda x: tuple(reference.absmax_quantize(x, axis=-1))),
    ),
)


# ------------------------------------------------------------------------------------------------- 02 zeropoint


def _zeropoint_by(encode: Callable, include_zero: bool = True) -> Callable:
    def mistaken(x: np.ndarray) -> tuple:
        lo, hi = (np.minimum(x.min(), F32(0)), np.maximum(x.max(), F32(0))) if include_zero else (x.min(), x.max())
        extent, ones = hi - lo, (1,) * x.ndim
        if extent < 2.0**-100:
            return np.zeros(x.shape, np.int8), np.zeros(ones, F32), np.zeros(ones, np.int32)
        inverse = _inverse(extent, 255)
        zero = np.clip(np.rint(F32(-128) - lo * inverse), -128, 127)
        codes = encode(x, inverse, zero, extent / F32(255))
        return codes.astype(np.int8), np.full(ones, extent / F32(255)), np.full(ones, zero, np.int32)

    return mistaken


def _clip(codes: np.ndarray) -> np.ndarray:
    return np.clip(codes, -128, 127)


def _zeropoint_unguarded(x: np.ndarray) -> tuple:
    lo, hi = np.minimum(x.min(), F32(0)), np.maximum(x.max(), F32(0))
    inverse, ones = _inverse(hi - lo, 255), (1,) * x.ndim
    zero = np.clip(np.rint(F32(-128) - lo * inverse), -128, 127)
    codes = _clip(np.rint(x * inverse) + zero)
    return codes.astype(np.int8), np.full(ones, (hi - lo) / F32(255)), np.full(ones, zero).astype(np.int32)


zeropoint = Exercise(
    right=lambda x: tuple(reference.zeropoint_quantize(x)),
    inputs=("x",),
    outputs=("codes", "scale", "zero_point"),
    cases=_one_tensor,
    shared_axes=([(0, 0)], [(0, 1)]),
    compare=one_scale,
    mistakes=(
        (
            "truncation. Round x * inverse with np.rint before adding the zero point.",
            _zeropoint_by(lambda x, i, z, s: _clip(np.trunc(x * i) + z)),
        ),
        (
            "you rounded the sum x * inverse + zero_point. Round the product first, then add the (already whole) zero "
            "point: the sum rounds ties the other way.",
            _zeropoint_by(lambda x, i, z, s: _clip(np.rint(x * i + z))),
        ),
        (
            "x / scale lands on the other side of a tie. Multiply by inverse = (1 / (hi - lo)) * 255, all in float32.",
            _zeropoint_by(lambda x, i, z, s: _clip(np.rint(x / s) + z)),
        ),
        (
            "without a clip the largest code can be 128, which wraps around to -128. Clip to [-128, 127] before the cast.",
            _zeropoint_by(lambda x, i, z, s: (np.rint(x * i) + z).astype(np.int32)),
        ),
        (
            "the range has to hold zero, or zero itself gets no code: lo = min(x, 0), hi = max(x, 0).",
            _zeropoint_by(lambda x, i, z, s: _clip(np.rint(x * i) + z), include_zero=False),
        ),
        (
            "you left the zero point out of the codes: they must be shifted by it, or the upper part of the range wraps around.",
            _zeropoint_by(lambda x, i, z, s: _clip(np.rint(x * i))),
        ),
        (ZERO_HINT, _zeropoint_unguarded),
    ),
)


# ------------------------------------------------------------------------------------------------ 03 vector-wise


def _products() -> Iterator[tuple]:
    """X (M, K) and W (N, K): one entry, square (which hides a wrong axis), then every side different."""
    yield _array([1.0]), _array([1.0])
    yield _array([1.0], [10.0]), _array([1.0])
    yield _array([1.0]), _array([1.0], [10.0])
    yield _array([1.0], [10.0]), _array([1.0], [3.0])
    yield _array([1.0, 0.3], [10.0, -2.0]), _array([0.5, 0.2], [3.0, 1.0])
    yield _array([0.0, 0.0], [1.0, -0.4]), _array([0.7, 0.1], [0.0, 0.0])
    for seed in SEEDS:
        for m, n, k in ((1, 3, 5), (4, 2, 3), (2, 4, 7), (5, 1, 9), (3, 8, 64), (6, 5, 130)):
            rng = np.random.default_rng(seed)
            yield (rng.normal(size=(m, k)) * rng.uniform(0.1, 9, size=(m, 1))).astype(F32), rng.normal(size=(n, k)).astype(F32)


def _rescaled(name: str, got: Any, want: np.ndarray, args: tuple) -> str | None:
    # acc -> float32, times one scale, times the other: three roundings on either side, whichever scale comes first.
    return within(name, got, want, 6 * ROUNDOFF * np.abs(want.astype(np.float64)))


def _vectorwise_by(rescale: Callable) -> Callable:
    def mistaken(x: np.ndarray, w: np.ndarray) -> np.ndarray:
        (xq, sx), (wq, sw) = reference.absmax_quantize(x, -1), reference.absmax_quantize(w, -1)
        return rescale(xq, wq, sx, sw).astype(F32)

    return mistaken


def _exact_product(xq: np.ndarray, wq: np.ndarray) -> np.ndarray:
    return xq.astype(np.int32) @ wq.astype(np.int32).T


vectorwise = Exercise(
    right=lambda x, w: reference.quantized_matmul(x, w),
    inputs=("x", "w"),
    outputs=("y",),
    cases=_products,
    shared_axes=([(0, 0)], [(1, 0)], [(0, 1), (1, 1)]),
    compare=_rescaled,
    mistakes=(
        (
            "the product ran in int8 and wrapped around at 128. Widen the codes before you multiply: xq.astype(np.int32) "
            "@ wq.astype(np.int32).T.",
            _vectorwise_by(lambda xq, wq, sx, sw: (xq @ wq.T) * sx * sw.T),
        ),
        (
            "the scales of W belong to its rows, and so to the columns of y: transpose them, scale_w.T.",
            _vectorwise_by(lambda xq, wq, sx, sw: _exact_product(xq, wq) * sx * sw),
        ),
        (
            "the scales of X belong to its rows, and so to the rows of y: no transpose there.",
            _vectorwise_by(lambda xq, wq, sx, sw: _exact_product(xq, wq) * sx.T * sw.T),
        ),
        (
            "the scales of both sides run along the wrong axis: x's down the rows of y, w's along its columns.",
            _vectorwise_by(lambda xq, wq, sx, sw: _exact_product(xq, wq) * sx.T * sw),
        ),
        (
            "that is y transposed: rows are tokens (x), columns are output features (w).",
            _vectorwise_by(lambda xq, wq, sx, sw: (_exact_product(xq, wq) * sx * sw.T).T),
        ),
        (
            "you multiplied by the largest magnitudes. A scale is absmax / 127, on either side.",
            _vectorwise_by(lambda xq, wq, sx, sw: _exact_product(xq, wq) * (sx * 127) * (sw.T * 127)),
        ),
        (
            'one scale for all of w is the granularity "row". Give each row of w its own.',
            lambda x, w: reference.quantized_matmul(x, w, "row"),
        ),
        (
            'one scale each is the granularity "tensor". Give each row of x and each row of w its own.',
            lambda x, w: reference.quantized_matmul(x, w, "tensor"),
        ),
        ("that is the float product: the codes were never used.", lambda x, w: x @ w.T),
    ),
)


# -------------------------------------------------------------------------------------------- 04 outlier features


def _stacks() -> Iterator[tuple]:
    """(layers, positions, features): each of the three limits met exactly, missed by one, and met in the wrong place."""
    base = np.zeros((4, 50, 1), F32)

    def planted(layer_count: int, position_count: int, value: float = 6.0) -> tuple:
        x = base.copy()
        x[:layer_count, :position_count] = value
        return (x,)

    yield planted(1, 3)  # 25 % of the layers, 6 % of the positions: all three limits met exactly
    yield planted(1, 2)  # 4 % of the positions
    yield planted(2, 3, -6.0)
    yield planted(4, 50, 5.99)
    x = base.copy()
    for layer in range(4):
        x[layer, layer] = 7.0  # one position a layer, but another one each time: 8 % of the positions
    yield (x,)
    wide = np.zeros((8, 50, 1), F32)
    wide[0] = 9.0  # every position, but one layer of eight
    yield (wide,)
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        noise = rng.normal(scale=2.2, size=(8, 33, 12)).astype(F32)
        noise[rng.random(8) < 0.5, :, 3] *= 4
        noise[:, :, 7] *= 3
        yield (noise,)


outlier_features = Exercise(
    right=lambda activations: features.outlier_features(activations),
    inputs=("activations",),
    outputs=("mask",),
    cases=_stacks,
    shared_axes=([(0, 2)],),
    mistakes=(
        (
            "the limit is reached at magnitude 6: >=, not >.",
            lambda a: ((np.abs(a) > 6).any(1).mean(0) >= 0.25) & ((np.abs(a) > 6).any(0).mean(0) >= 0.06),
        ),
        (
            "magnitude: an entry of -6 counts as well. Take np.abs.",
            lambda a: ((a >= 6).any(1).mean(0) >= 0.25) & ((a >= 6).any(0).mean(0) >= 0.06),
        ),
        (
            "at least 25 % and at least 6 %: use >= for both shares.",
            lambda a: ((np.abs(a) >= 6).any(1).mean(0) > 0.25) & ((np.abs(a) >= 6).any(0).mean(0) > 0.06),
        ),
        (
            "the layers are missing: the feature has to reach the threshold in at least 25 % of them.",
            lambda a: (np.abs(a) >= 6).any(0).mean(0) >= 0.06,
        ),
        ("the positions are missing: at least 6 % of them have to hold an outlier.", lambda a: (np.abs(a) >= 6).any(1).mean(0) >= 0.25),
        (
            "that is the share of all (layer, position) pairs. Count a position once, whichever layers have the outlier: "
            ".any(axis=0) before the mean.",
            lambda a: ((np.abs(a) >= 6).any(1).mean(0) >= 0.25) & ((np.abs(a) >= 6).mean((0, 1)) >= 0.06),
        ),
    ),
)


# --------------------------------------------------------------------------------------------- 05 decomposition


def _decompositions() -> Iterator[tuple]:
    for x, w in _products():
        yield x, w, 6.0
    yield _array([6.0, 1.0]), _array([1.0, 1.0]), 6.0  # exactly the threshold
    yield _array([-7.0, 0.3]), _array([1.0, 0.5]), 6.0  # a negative outlier
    yield _array([7.0, 0.3]), _array([0.3, 0.5]), 6.0
    yield _array([0.5, 0.3], [7.0, 0.3]), _array([0.3, 0.5]), 6.0  # the column is 16-bit for both rows
    yield _array([1.0, 0.5]), _array([0.3, 0.7]), 0.0
    yield _array([70000.0, 0.5]), _array([0.3, 0.7]), 6.0  # more than float16 holds
    for seed in SEEDS:
        for m, n, k, planted in ((2, 3, 5, 1), (4, 3, 17, 2), (3, 5, 64, 3)):
            rng = np.random.default_rng(seed)
            x = rng.normal(size=(m, k)).astype(F32)
            x[rng.integers(m, size=planted), rng.choice(k, planted, replace=False)] = rng.choice([-20, 8, 31], planted)
            yield x, rng.normal(size=(n, k)).astype(F32), 6.0


def _decomposed(name: str, got: Any, want: np.ndarray, args: tuple) -> str | None:
    # The regular part carries three roundings a side, a sum of |O| products at most |O| a side, and adding the two
    # one more: so 2 (|O| + 4) roundings in all, each at most ROUNDOFF of the magnitudes that were summed.
    x, w, threshold = args
    o = reference.outlier_columns(x, threshold)
    regular = np.abs(reference.quantized_matmul(np.where(o, F32(0), x), w)).astype(np.float64)
    outlier = np.abs(x[:, o]).astype(np.float64) @ np.abs(w[:, o]).astype(np.float64).T
    return within(name, got, want, 2 * (int(o.sum()) + 4) * ROUNDOFF * (regular + outlier))


def _llm_int8_by(split: Callable, keep_regular: bool = True, keep_outliers: bool = True, clear: bool = True) -> Callable:
    def mistaken(x: np.ndarray, w: np.ndarray, threshold: float) -> np.ndarray:
        o = split(x, threshold)
        regular = reference.quantized_matmul(np.where(o, F32(0), x) if clear else x, w)
        return keep_regular * regular + keep_outliers * outlier_product(x, w, o)

    return mistaken


def _entries_only(x: np.ndarray, w: np.ndarray, threshold: float) -> np.ndarray:
    big = np.abs(x) >= threshold
    return reference.quantized_matmul(np.where(big, F32(0), x), w) + np.where(big, x, F32(0)) @ w.T


def _weight_without_outliers(x: np.ndarray, w: np.ndarray, threshold: float) -> np.ndarray:
    o = reference.outlier_columns(x, threshold)
    return reference.quantized_matmul(np.where(o, F32(0), x), np.where(o, F32(0), w)) + outlier_product(x, w, o)


decomposition = Exercise(
    right=lambda x, w, threshold: reference.llm_int8_matmul(x, w, threshold),
    inputs=("x", "w", "threshold"),
    outputs=("y",),
    cases=_decompositions,
    shared_axes=([(0, 0)], [(1, 0)], [(0, 1), (1, 1)]),
    compare=_decomposed,
    mistakes=(
        ("an entry of exactly the threshold is an outlier: >=, not >.", _llm_int8_by(lambda x, t: (np.abs(x) > t).any(0))),
        ("magnitude: -7 is an outlier as well. Take np.abs.", _llm_int8_by(lambda x, t: (x >= t).any(0))),
        ("a column is an outlier if any row reaches the threshold, not if all do.", _llm_int8_by(lambda x, t: (np.abs(x) >= t).all(0))),
        (
            "set the outlier columns of x to zero before you quantize: they still set the scale of their rows, and are counted twice.",
            _llm_int8_by(lambda x, t: (np.abs(x) >= t).any(0), clear=False),
        ),
        (
            "the outlier columns are missing from the result: add x[:, o] @ w[:, o].T.",
            _llm_int8_by(lambda x, t: (np.abs(x) >= t).any(0), keep_outliers=False),
        ),
        ("the regular columns are missing from the result.", _llm_int8_by(lambda x, t: (np.abs(x) >= t).any(0), keep_regular=False)),
        ("you took single entries out. The paper takes whole columns, so that the 16-bit part is a small dense product.", _entries_only),
        ("quantize w over all its columns. It is quantized once, at load time, before any outlier is known.", _weight_without_outliers),
        (NARROW_HINT, lambda x, w, t: reference.llm_int8_matmul(x.astype(np.float16), w, t)),
        ("that is the vector-wise product: nothing was decomposed.", lambda x, w, t: reference.quantized_matmul(x, w)),
    ),
)


# -------------------------------------------------------------------------------------------------- 08 the layer


def _layers() -> Iterator[tuple]:
    for x, w, threshold in _decompositions():
        if threshold == 6.0:
            yield w, x


def _layer_of(load: Callable, infer: Callable) -> Callable:
    def layer(w: np.ndarray, x: np.ndarray) -> Any:
        loaded = load(w)
        return loaded if loaded is NotImplemented else infer(x, *loaded)

    return layer


def _layer_bound(name: str, got: Any, want: np.ndarray, args: tuple) -> str | None:
    w, x = args
    kept = reference.absmax_dequantize(*reference.absmax_quantize(w, axis=-1))
    # As in `_decomposed`; the weight is dequantized, one more rounding a product on either side.
    o = reference.outlier_columns(x)
    regular = np.abs(reference.quantized_matmul(np.where(o, F32(0), x), w)).astype(np.float64)
    outlier = np.abs(x[:, o]).astype(np.float64) @ np.abs(kept[:, o]).astype(np.float64).T
    return within(name, got, want, 2 * (int(o.sum()) + 5) * ROUNDOFF * (regular + outlier))


_layer = Exercise(
    right=lambda w, x: reference.Int8Linear.from_float(w)(x),
    inputs=("weight", "x"),
    outputs=("y",),
    cases=_layers,
    shared_axes=([(1, 0)], [(0, 0)], [(0, 1), (1, 1)]),
    compare=_layer_bound,
    mistakes=(
        (
            "the outlier columns used the float weight, or one quantized again: after loading, only codes and scales are "
            "left. Use codes[:, o] * scale.",
            lambda w, x: reference.llm_int8_matmul(x, w),
        ),
        ("the weight codes of the outlier columns still need their scales.", lambda w, x: _layer_unscaled(w, x)),
        ("no outlier column left the int8 path.", lambda w, x: reference.quantized_matmul(x, w)),
    ),
)


def _layer_unscaled(w: np.ndarray, x: np.ndarray) -> np.ndarray:
    o = reference.outlier_columns(x)
    codes = reference.absmax_quantize(w, -1).codes
    return reference.quantized_matmul(np.where(o, F32(0), x), w) + x[:, o] @ codes[:, o].T.astype(F32)


def layer(phases: tuple[Callable, Callable]) -> Verdict:
    """Checks the two phases: `load(weight) -> codes, scale` and `infer(x, codes, scale) -> y`."""
    load, infer = phases
    sample = np.ones((2, 3), F32)
    loaded = _call(load, (sample,))
    if isinstance(loaded, tuple) and len(loaded) == 2:
        kept = sum(np.asarray(part).nbytes for part in loaded)
        if kept != sample.size + 4 * len(sample):
            return Verdict(False, f"not right yet. load keeps {kept} bytes of a 2 x 3 weight; 6 codes and 2 float32 scales are 14.")
    answer = _layer_of(load, infer)
    answer.__name__ = f"{getattr(load, '__name__', 'load')} followed by {getattr(infer, '__name__', 'infer')}"
    return _layer(answer)


# -------------------------------------------------------------------------------------------------- 09 the bytes


def _layer_bytes(n: int, k: int, outlier_weight: str) -> np.int64:
    """int8 codes, a float32 scale a row, and float16 weights with "float"."""
    return np.int64(n * k + 4 * n + (2 * n * k if outlier_weight == "float" else 0))


def _sizes() -> Iterator[tuple]:
    for n, k in ((1, 1), (2, 3), (576, 1536), (4096, 4096), (11008, 4096)):
        for policy in ("dequantized", "float"):
            yield n, k, policy


layer_bytes = Exercise(
    right=_layer_bytes,
    inputs=("n", "k", "outlier_weight"),
    outputs=("bytes",),
    cases=_sizes,
    compare=lambda name, got, want, args: None if got == want else f"{name}: got {got}; expected {want}",
    mistakes=(
        (
            "the scales are missing: one float32, 4 bytes, for each of the n rows.",
            lambda n, k, p: n * k + (2 * n * k if p == "float" else 0),
        ),
        (
            "a scale belongs to a row of w, an output feature: n of them, not k.",
            lambda n, k, p: n * k + 4 * k + (2 * n * k if p == "float" else 0),
        ),
        (
            'with "float" the codes are still needed for the regular columns: 3 bytes a weight, not 2.',
            lambda n, k, p: 4 * n + (2 if p == "float" else 1) * n * k,
        ),
        ('with "dequantized" nothing but codes and scales is kept; only "float" adds 16-bit weights.', lambda n, k, p: 3 * n * k + 4 * n),
    ),
)
