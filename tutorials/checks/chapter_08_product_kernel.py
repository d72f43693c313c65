"""The exercise of chapter 08: a kernel that multiplies codes and scales the result."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .comparing import up_to_float_sums
from .engine import F32, ROUNDOFF, Exercise, OutOfBounds, Verdict
from .launching import Launch, launched
from .poisoning import NOTHING_STORED, SENTINEL_SCALE


def coded_cases() -> Iterator[tuple]:
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
    yield ones(16, 3, 5)  # whole tiles of rows, and of columns
    yield ones(3, 16, 5)
    yield ones(1, 1, 33)  # two blocks of K, the second nearly empty
    yield ones(17, 3, 40)  # two tiles of rows
    yield ones(3, 35, 64)  # three tiles of columns
    yield _beyond_float32()


def _beyond_float32() -> tuple:
    """A sum above 2**24, to which a float32 accumulator adds odd numbers without their last bits; the scales are 1."""
    a, b = np.full((1, 1200), 127, np.int8), np.full((1, 1200), 127, np.int8)
    a[0, 1050::32] = 126
    return a, b, np.ones(1, F32), np.ones(1, F32)


def _bound(want: np.ndarray, args: tuple) -> np.ndarray:
    # acc -> float32, times one scale, times the other, whichever comes first: three roundings on either side. Scales that are
    # powers of two round nothing, and the conversion of acc is the same on both sides.
    exact = all((np.frexp(scale)[0] == 0.5).all() for scale in args[2:])
    return (0 if exact else 6) * ROUNDOFF * np.abs(want.astype(np.float64))


def _float_sums(results: tuple, wanted: tuple, args: tuple) -> bool:
    """Whether y is right but for the roundings of a float32 accumulator."""
    a, b, scale_a, scale_b = (np.abs(arg.astype(np.float64)) for arg in args)
    return up_to_float_sums(results[0], wanted[0], a.shape[1], (a @ b.T) * scale_a[:, None] * scale_b)


def prepare_product(memory: Any, a: np.ndarray, b: np.ndarray, scale_a: np.ndarray, scale_b: np.ndarray) -> Launch:
    """One program per tile; 77 beyond the last code of each row: a forgotten mask multiplies it in."""
    (m, k), n = a.shape, len(b)
    left, right = memory.rows("a", a, 31, 77), memory.rows("b", b, 31, 77)
    scales = [memory.rows(name, values) for name, values in (("scale_a", scale_a), ("scale_b", scale_b))]
    y = memory.result("y", (m, n), np.float32, SENTINEL_SCALE)
    sizes = m, n, k, k + 31, k + 31
    return Launch((-(-m // 16), -(-n // 16)), (left, right, y, *scales, *sizes), {"BLOCK": 16, "BLOCK_K": 32}, (y,))


def _scaled(product: Callable) -> Callable:
    return lambda a, b, sa, sb: product(a.astype(np.int64), b.astype(np.int64), sa, sb).astype(F32)


def overrun(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """What the codes give if the last block of K is read without a mask."""
    extra = -a.shape[1] % 32
    wide = [np.pad(c, ((0, 0), (0, extra)), constant_values=77) for c in (a, b)]
    return wide[0] @ wide[1].T


def last_block(a: np.ndarray) -> int:
    return (a.shape[1] - 1) // 32 * 32


def blockwise(a: np.ndarray, b: np.ndarray, dtype: type) -> np.ndarray:
    """The sums over blocks of 32, added up in `dtype`."""
    acc: np.ndarray = np.zeros((len(a), len(b)), dtype)
    for k in range(0, a.shape[1], 32):
        acc = (acc + (a[:, k : k + 32].astype(np.int64) @ b[:, k : k + 32].T.astype(np.int64)).astype(dtype)).astype(dtype)
    return acc


def _stride_m(a: np.ndarray, b: np.ndarray, scale_a: np.ndarray, scale_b: np.ndarray) -> np.ndarray:
    """Y stored with rows M apart: outside of y, or one row over another."""
    right = _right_product(a, b, scale_a, scale_b)
    m, n = right.shape
    if (m - 1) * m + n > m * n:
        raise OutOfBounds("stores y")
    flat = np.full(m * n, SENTINEL_SCALE, F32)
    for row in range(0, m, 16):
        for column in range(0, n, 16):
            tile = right[row : row + 16, column : column + 16]
            for i, values in enumerate(tile):
                flat[(row + i) * m + column :][: len(values)] = values
    return flat.reshape(m, n)


def ragged_m(m: int, n: int) -> bool:
    return m % 16 != 0


def ragged_n(m: int, n: int) -> bool:
    return n % 16 != 0


def stops_where(what: str, outside: Callable[[int, int], bool], right: Callable | None = None) -> Callable:
    """What a load or store outside of a buffer gives: the launch is stopped wherever `outside(M, N)`."""

    def mistaken(*args: np.ndarray) -> np.ndarray:
        if outside(len(args[0]), len(args[1])):
            raise OutOfBounds(what)
        return (right or _right_product)(*args)

    return mistaken


def _right_product(a: np.ndarray, b: np.ndarray, scale_a: np.ndarray, scale_b: np.ndarray) -> np.ndarray:
    return ((a.astype(np.float64) @ b.T.astype(np.float64)).astype(F32) * scale_a[:, None]) * scale_b


def _swapped(a: np.ndarray, b: np.ndarray, scale_a: np.ndarray, scale_b: np.ndarray) -> np.ndarray:
    """Each scale along the other axis; past its end the load is masked, and gives 0."""
    m, n = len(a), len(b)
    down, along = np.zeros(max(m, n), F32), np.zeros(max(m, n), F32)
    down[:n], along[:m] = scale_b, scale_a
    return (blockwise(a, b, np.int64).astype(F32) * down[:m, None]) * along[:n]


scaled_product = Exercise(
    right=_right_product,
    inputs=("a", "b", "scale_a", "scale_b"),
    outputs=("y",),
    cases=coded_cases,
    unwritten=NOTHING_STORED,
    shared_axes=([(0, 0), (2, 0)], [(1, 0), (3, 0)], [(0, 1), (1, 1)]),
    bound=_bound,
    idea=("equal up to the roundings of float32 sums", _float_sums),
    mistakes=(
        (
            "the last block of K reads past the row: mask the loads with k + ks < K, other=0.",
            _scaled(lambda a, b, sa, sb: overrun(a, b) * sa[:, None] * sb),
        ),
        (
            "the accumulator is float32, which is exact only up to 2**24: keep it in int32, tl.dot(left, right.T, acc, out_dtype=tl.int32) "
            "on int8 blocks, and convert after the loop.",
            lambda a, b, sa, sb: (blockwise(a, b, F32) * sa[:, None]) * sb,
        ),
        (
            "the accumulator is int16, which wraps around at 32,768: keep it in int32.",
            lambda a, b, sa, sb: (blockwise(a, b, np.int16).astype(F32) * sa[:, None]) * sb,
        ),
        ("rows of y are N apart, its number of columns: y + rows[:, None] * N + columns[None, :].", _stride_m),
        (
            "the store of y writes beyond column N: mask it with columns < N as well as rows < M.",
            stops_where("stores y", ragged_n),
        ),
        (
            "the store of y writes beyond row M: mask it with rows < M as well as columns < N.",
            stops_where("stores y", ragged_m),
        ),
        (
            "the load of a reads beyond row M: mask it with rows < M as well as the columns of K.",
            stops_where("loads a", ragged_m),
        ),
        (
            "the load of b reads beyond row N: mask it with columns < N as well as the columns of K.",
            stops_where("loads b", ragged_n),
        ),
        ("the load of scale_a reads beyond row M: mask it with rows < M.", stops_where("loads scale_a", ragged_m)),
        ("the load of scale_b reads beyond row N: mask it with columns < N.", stops_where("loads scale_b", ragged_n)),
        ("scale_a belongs to the rows of y, scale_b to its columns: scale_a[:, None], scale_b[None, :].", _swapped),
        ("the epilogue is missing: multiply by both scales.", _scaled(lambda a, b, sa, sb: a @ b.T)),
        ("scale_b is missing.", _scaled(lambda a, b, sa, sb: (a @ b.T) * sa[:, None])),
        ("scale_a is missing.", _scaled(lambda a, b, sa, sb: (a @ b.T) * sb)),
        (
            "only the first block of K was added: loop over range(0, K, BLOCK_K).",
            _scaled(lambda a, b, sa, sb: (a[:, :32] @ b[:, :32].T) * sa[:, None] * sb),
        ),
        (
            "only the last block of K is left: acc = tl.dot(a, b, acc) adds to it, acc = tl.dot(a, b) replaces it.",
            _scaled(lambda a, b, sa, sb: (a[:, last_block(a) :] @ b[:, last_block(a) :].T) * sa[:, None] * sb),
        ),
    ),
)


def product(kernel: Any) -> Verdict:
    """Checks a kernel `(a, b, y, scale_a, scale_b, M, N, K, stride_a, stride_b, BLOCK, BLOCK_K)`, one program per tile of 16 x 16.

    a: (M, K), b: (N, K) int8, rows stride_a and stride_b apart. y: (M, N) float32, packed. scale_a: (M,), scale_b: (N,) float32.
    BLOCK = 16, BLOCK_K = 32. The grid is (tiles of rows, tiles of columns).
    """
    return scaled_product(launched(kernel, prepare_product))
