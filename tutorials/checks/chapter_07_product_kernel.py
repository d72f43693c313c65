"""The exercise of chapter 07: a kernel that multiplies codes and scales the result."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from .engine import F32, ROUNDOFF, Exercise, Verdict, within
from .launches import DEVICE, SENTINEL_SCALE, padded


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
        left, right = padded(a, 31, 77), padded(b, 31, 77)
        y = torch.full((m + 1, n), SENTINEL_SCALE, device=DEVICE)
        grid = (-(-m // 16), -(-n // 16))
        scales = [torch.from_numpy(s).to(DEVICE) for s in (scale_a, scale_b)]
        kernel[grid](left, right, y, *scales, m, n, k, left.stride(0), right.stride(0), BLOCK=16, BLOCK_K=32)
        written = y.cpu().numpy()
        if (written[:m] == SENTINEL_SCALE).all():
            return NotImplemented
        if (written[m] != SENTINEL_SCALE).any():
            raise IndexError("the kernel wrote past the last row of y: mask the store with rows < M and columns < N")
        return written[:m]

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


scaled_product = Exercise(
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
    return scaled_product(_launch_product(kernel))
