"""Checkers of the kernel exercises, under TRITON_INTERPRET=1 or on a GPU: as `checks.py`, around a launch.

Every launch writes into buffers filled with a sentinel, with room around the result, and reads from rows that are
longer than K and hold huge numbers beyond it: a forgotten mask, a wrong stride or an entry never written all show.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

import reference

from .checks import F32, ROUNDOFF, SEEDS, Exercise, Verdict, _array, within

SENTINEL_CODE, SENTINEL_SCALE, SENTINEL_INT32 = -99, -99.0, -(2**31) + 99
DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"


def _padded(values: np.ndarray, extra: int, fill: float) -> torch.Tensor:
    """`values` (rows, K) on the device, as a view of rows that are `extra` longer; `fill` there, and in a block beyond the last row."""
    rows, k = values.shape
    flat = np.full(rows * (k + extra) + _power_of_two(k), fill, values.dtype)
    wide = flat[: rows * (k + extra)].reshape(rows, k + extra)
    wide[:, :k] = values
    return torch.from_numpy(flat).to(DEVICE)[: wide.size].view(wide.shape)[:, :k]


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


# -------------------------------------------------------------------------------------------- 06 quantize rows


def _rows() -> Iterator[tuple]:
    yield (_array([1.0]),)
    yield (_array([1.0, 0.996]),)
    yield (_array([-1.0, 0.25]),)
    yield (_array([0.22, 0.11]),)
    yield (_array([0.14, 0.07]),)
    yield (_array([-0.02, 0.01]),)
    yield (_array([0.06, 0.01]),)
    yield (_array([0.0, 0.0]),)
    yield (_array([2.0**-101]),)  # counts as zero; a NaN on the way to int8 may look like a 0, this does not
    yield (_array([1.0, 0.5], [10.0, 0.5]),)
    yield (_array([1.0, 0.3, 0.2]),)  # K is no power of two
    yield (_array([127.0, 0.5, 1.5, -2.5]),)
    for seed in SEEDS:
        for shape in ((4, 4), (3, 5), (2, 33), (5, 64)):
            yield (np.random.default_rng(seed).normal(size=shape).astype(F32),)


def _launch_rows(kernel: Any) -> Callable:
    def run(x: np.ndarray) -> Any:
        m, k = x.shape
        source = _padded(x, 3, 1e30)
        codes = torch.full((m + 1, k), SENTINEL_CODE, dtype=torch.int8, device=DEVICE)
        scale = torch.full((m + 1,), SENTINEL_SCALE, device=DEVICE)
        # Unfused, as the kernels of `fast` are launched: a fused multiply-add would round another way at ties.
        kernel[(m,)](source, codes, scale, k, source.stride(0), BLOCK_K=_power_of_two(k), enable_fp_fusion=False)
        codes, scale = codes.cpu().numpy(), scale.cpu().numpy()
        if (codes[:m] == SENTINEL_CODE).all() and (scale[:m] == SENTINEL_SCALE).all():
            return NotImplemented
        if (codes[m] != SENTINEL_CODE).any() or scale[m] != SENTINEL_SCALE:
            raise IndexError("the kernel wrote past the last row of codes or scale: mask the store with columns < K")
        return codes[:m], scale[:m]

    run.__name__ = getattr(kernel, "__name__", "the kernel")
    return run


def _by_rows(encode: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Callable:
    def mistaken(x: np.ndarray) -> tuple:
        top = np.abs(x).max(axis=1, keepdims=True)
        safe = np.where(top < 2.0**-100, F32(1), top)
        scale = np.where(top < 2.0**-100, F32(0), safe / F32(127))
        return encode(x, safe).astype(np.int8), scale.ravel()

    return mistaken


def _unguarded(x: np.ndarray) -> tuple:
    top = np.abs(x).max(axis=1, keepdims=True)
    codes = np.nan_to_num(np.rint(x * ((F32(1) / top) * F32(127))))
    return codes.astype(np.int8), (top / F32(127)).ravel()


def _signed(x: np.ndarray) -> tuple:
    """What the largest value in place of the largest magnitude gives, with the zeros of the padding among the values."""
    top = np.maximum(x.max(axis=1, keepdims=True), F32(0))
    safe = np.where(top < 2.0**-100, F32(1), top)
    inverse = np.where(top < 2.0**-100, F32(0), (F32(1) / safe) * F32(127))
    return np.rint(x * inverse).astype(np.int8), np.where(top < 2.0**-100, F32(0), safe / F32(127)).ravel()


def _right_rows(x: np.ndarray) -> tuple:
    codes, scale = reference.absmax_quantize(x, axis=-1)
    return codes, scale.ravel()


def _neighbours_read(x: np.ndarray) -> tuple:
    """Rows as the kernel sees them if its load is not masked: the block reads on into the next row of X."""
    m, k = x.shape
    flat = np.append(np.pad(x, ((0, 0), (0, 3)), constant_values=1e30).ravel(), np.full(_power_of_two(k), 1e30, F32))
    block = np.stack([flat[i * (k + 3) : i * (k + 3) + _power_of_two(k)] for i in range(m)])
    codes, scale = _right_rows(block.astype(F32))
    return codes[:, :k], scale


def _packed(x: np.ndarray) -> tuple:
    m, k = x.shape
    flat = np.pad(x, ((0, 0), (0, 3)), constant_values=1e30).ravel()
    return _right_rows(flat[: m * k].reshape(m, k).astype(F32))


_INVERSE = F32(127)
_quantize_rows = Exercise(
    right=_right_rows,
    inputs=("x",),
    outputs=("codes", "scale"),
    cases=_rows,
    shared_axes=([(0, 0)], [(0, 1)]),
    mistakes=(
        (
            "truncation. `.to(tl.int8)` cuts the fraction off. Add and subtract 1.5 * 2**23 first.",
            _by_rows(lambda x, t: x * ((F32(1) / t) * _INVERSE)),
        ),
        (
            "adding 0.5 and cutting off, or rounding halves away from zero: a tie goes to the even code.",
            _by_rows(lambda x, t: np.sign(x) * np.floor(np.abs(x * ((F32(1) / t) * _INVERSE)) + F32(0.5))),
        ),
        ("x / scale lands on the other side of a tie: multiply by (1 / absmax) * 127.", _by_rows(lambda x, t: np.rint(x / (t / _INVERSE)))),
        (
            "x * 127 / absmax lands on the other side of a tie: multiply by (1 / absmax) * 127.",
            _by_rows(lambda x, t: np.rint(x * _INVERSE / t)),
        ),
        ("127 / absmax is one rounding; the rule is (1 / absmax) * 127, two.", _by_rows(lambda x, t: np.rint(x * (_INVERSE / t)))),
        (
            "a row without a magnitude of at least 2**-100 is a zero row: scale 0, codes 0. Without the guard 1 / 0 is infinite.",
            _unguarded,
        ),
        ("tl.max(values) is the largest value; tl.max(tl.abs(values)) the largest magnitude.", _signed),
        (
            "the load reads beyond column K: mask it with columns < K, other=0.0, or the next row takes part in the maximum.",
            _neighbours_read,
        ),
        ("rows of x are `stride` apart, not K: x + row * stride + columns. (codes is packed: row * K.)", _packed),
    ),
)


def quantize_rows(kernel: Any) -> Verdict:
    """Checks a kernel `(x, codes, scale, K, stride, BLOCK_K: tl.constexpr)`, launched with a program a row.

    x: (M, K) float32, rows `stride` apart. codes: (M, K) int8, packed. scale: (M,) float32. BLOCK_K: a power of two, at
    least K.
    """
    return _quantize_rows(_launch_rows(kernel))


# ----------------------------------------------------------------------------------------- 07 the product kernel


def _codes() -> Iterator[tuple]:
    def ones(m: int, n: int, k: int) -> tuple:
        rng = np.random.default_rng(m + n + k)
        return (
            rng.integers(-127, 128, (m, k), np.int8),
            rng.integers(-127, 128, (n, k), np.int8),
            rng.uniform(0.5, 2, m).astype(F32),
            rng.uniform(0.5, 2, n).astype(F32),
        )

    yield np.full((1, 1), 2, np.int8), np.full((1, 1), 3, np.int8), np.ones(1, F32), np.ones(1, F32)
    yield ones(1, 2, 1)
    yield ones(2, 1, 1)
    yield ones(2, 2, 2)
    yield ones(4, 4, 4)
    yield ones(3, 2, 5)
    yield ones(1, 1, 33)  # two blocks of K, the second nearly empty
    yield ones(17, 3, 40)  # two tiles of rows
    yield ones(3, 35, 64)  # three tiles of columns


def _launch_product(kernel: Any) -> Callable:
    def run(a: np.ndarray, b: np.ndarray, scale_a: np.ndarray, scale_b: np.ndarray) -> Any:
        (m, k), n = a.shape, b.shape[0]
        # 77 beyond the last code of each row: a forgotten mask multiplies it in.
        left, right = _padded(a, 31, 77), _padded(b, 31, 77)
        y = torch.full((m + 1, n), SENTINEL_SCALE, device=DEVICE)
        grid = (-(-m // 16), -(-n // 16))
        scales = [torch.from_numpy(s).to(DEVICE) for s in (scale_a, scale_b)]
        kernel[grid](left, right, y, *scales, m, n, k, left.stride(0), right.stride(0), BLOCK=16, BLOCK_K=32)
        y = y.cpu().numpy()
        if (y[:m] == SENTINEL_SCALE).all():
            return NotImplemented
        if (y[m] != SENTINEL_SCALE).any():
            raise IndexError("the kernel wrote past the last row of y: mask the store with rows < M and columns < N")
        return y[:m]

    run.__name__ = getattr(kernel, "__name__", "the kernel")
    return run


def _scaled(product: Callable) -> Callable:
    return lambda a, b, sa, sb: product(a.astype(np.int64), b.astype(np.int64), sa, sb).astype(F32)


def _overrun(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """What the codes give if the last block of K is read without a mask."""
    extra = -a.shape[1] % 32
    wide = [np.pad(c, ((0, 0), (0, extra)), constant_values=77) for c in (a, b)]
    return wide[0] @ wide[1].T


def _last_block(a: np.ndarray) -> int:
    return (a.shape[1] - 1) // 32 * 32


_product = Exercise(
    right=lambda a, b, sa, sb: ((a.astype(np.float64) @ b.T.astype(np.float64)).astype(F32) * sa[:, None]) * sb,
    inputs=("a", "b", "scale_a", "scale_b"),
    outputs=("y",),
    cases=_codes,
    compare=lambda name, got, want, args: within(name, got, want, 6 * ROUNDOFF * np.abs(want.astype(np.float64))),
    mistakes=(
        (
            "the last block of K reads past the row: mask the loads with k + ks < K, other=0.",
            _scaled(lambda a, b, sa, sb: _overrun(a, b) * sa[:, None] * sb),
        ),
        ("the epilogue is missing: multiply by both scales.", _scaled(lambda a, b, sa, sb: a @ b.T)),
        ("scale_b is missing.", _scaled(lambda a, b, sa, sb: (a @ b.T) * sa[:, None])),
        ("scale_a is missing.", _scaled(lambda a, b, sa, sb: (a @ b.T) * sb)),
        (
            "only the first block of K was added: loop over range(0, K, BLOCK_K).",
            _scaled(lambda a, b, sa, sb: (a[:, :32] @ b[:, :32].T) * sa[:, None] * sb),
        ),
        (
            "only the last block of K is left: acc = tl.dot(a, b, acc) adds to it, acc = tl.dot(a, b) replaces it.",
            _scaled(lambda a, b, sa, sb: (a[:, _last_block(a) :] @ b[:, _last_block(a) :].T) * sa[:, None] * sb),
        ),
    ),
)


def product(kernel: Any) -> Verdict:
    """Checks a kernel `(a, b, y, scale_a, scale_b, M, N, K, stride_a, stride_b, BLOCK, BLOCK_K)`, a program a 16 x 16 tile.

    a: (M, K), b: (N, K) int8, rows stride_a and stride_b apart. y: (M, N) float32, packed. scale_a: (M,), scale_b: (N,) float32.
    BLOCK = 16, BLOCK_K = 32. The grid is (tiles of rows, tiles of columns).
    """
    return _product(_launch_product(kernel))
