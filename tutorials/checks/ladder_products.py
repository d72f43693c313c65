"""The rungs of the ladder that multiply: one tile, the loop over K, the outlier loop. The epilogue is the exercise of its chapter."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import reference

from . import chapter_08_product_kernel as epilogue
from .engine import F32, ROUNDOFF, Exercise, OutOfBounds
from .launching import Launch
from .poisoning import NOTHING_STORED, SENTINEL_CODE, SENTINEL_SCALE

TILE = {"BLOCK": 16, "BLOCK_K": 32}


def _wide(codes: np.ndarray) -> np.ndarray:
    return codes.astype(np.int64)


# ---- 7: one tile --------------------------------------------------------------------------------------------------------------


def prepare_tile(memory: Any, a: np.ndarray, b: np.ndarray) -> Launch:
    """One program for a tile of 16 x 16, all of K in one block; 77 beyond the last code of each row."""
    left, right = memory.rows("a", a, 5, 77, False), memory.rows("b", b, 9, 77, False)
    y = memory.result("y", (16, 16), np.int32, SENTINEL_CODE)
    return Launch((1,), (left, right, y, 37, 41), TILE, (y,))


def _tiles() -> Iterator[tuple]:
    for seed in range(4):
        rng = np.random.default_rng(seed)
        yield rng.integers(-127, 128, (16, 32), np.int8), rng.integers(-127, 128, (16, 32), np.int8)


def _strided(codes: np.ndarray, extra: int, stride: int) -> np.ndarray:
    """The rows that `stride` finds where they are `extra` longer than K."""
    flat = np.pad(codes, ((0, 0), (0, extra)), constant_values=77).ravel()
    return np.stack([flat[i * stride : i * stride + codes.shape[1]] for i in range(len(codes))])


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (_wide(a) @ _wide(b).T).astype(np.int32)


def _stops(what: str) -> Callable:
    def mistaken(*args: np.ndarray) -> np.ndarray:
        raise OutOfBounds(what)

    return mistaken


tile = Exercise(
    right=_product,
    inputs=("a", "b"),
    outputs=("y",),
    cases=_tiles,
    unwritten=NOTHING_STORED,
    mistakes=(
        ("y is transposed: rows of y come from a, its columns from b: tl.dot(left, right.T).", lambda a, b: _product(a, b).T.copy()),
        ("rows of a are stride_a apart, not BLOCK_K.", lambda a, b: _product(_strided(a, 5, 32), b)),
        ("rows of b are stride_b apart, not BLOCK_K.", lambda a, b: _product(a, _strided(b, 9, 32))),
        ("rows of a and b are stride_a and stride_b apart, not BLOCK_K.", lambda a, b: _product(_strided(a, 5, 32), _strided(b, 9, 32))),
        ("rows of b are stride_b apart, not stride_a.", lambda a, b: _product(a, _strided(b, 9, 37))),
        ("y is packed: its rows are BLOCK apart: y + rows[:, None] * BLOCK + columns[None, :].", _stops("stores y")),
    ),
)

# ---- 8: the loop over K -------------------------------------------------------------------------------------------------------


def prepare_k_loop(memory: Any, a: np.ndarray, b: np.ndarray) -> Launch:
    """One program per tile of 16 x 16; 77 beyond the last code of each row."""
    (m, k), n = a.shape, len(b)
    left, right = memory.rows("a", a, 31, 77), memory.rows("b", b, 31, 77)
    y = memory.result("y", (m, n), np.int32, SENTINEL_CODE)
    return Launch((-(-m // 16), -(-n // 16)), (left, right, y, m, n, k, k + 31, k + 31), TILE, (y,))


def _stops_where(what: str, outside: Callable[[int, int], bool]) -> Callable:
    return epilogue.stops_where(what, outside, _product)


k_loop = Exercise(
    right=_product,
    inputs=("a", "b"),
    outputs=("y",),
    cases=lambda: ((a, b) for a, b, *_ in epilogue.coded_cases()),
    shared_axes=([(0, 0)], [(1, 0)], [(0, 1), (1, 1)]),
    unwritten=NOTHING_STORED,
    mistakes=(
        (
            "the last block of K reads past the row: mask the loads with ks < K, other=0.",
            lambda a, b: epilogue.overrun(_wide(a), _wide(b)).astype(np.int32),
        ),
        (
            "only the first block of K was added: loop over range(0, K, BLOCK_K).",
            lambda a, b: _product(a[:, :32], b[:, :32]),
        ),
        (
            "only the last block of K is left: acc = tl.dot(left, right.T, acc) adds to it, acc = tl.dot(left, right.T) replaces it.",
            lambda a, b: _product(a[:, epilogue.last_block(a) :], b[:, epilogue.last_block(a) :]),
        ),
        (
            "the accumulator is int16, which wraps around at 32,768: keep it in int32.",
            lambda a, b: epilogue.blockwise(a, b, np.int16).astype(np.int32),
        ),
        (
            "the accumulator is float32, which is exact only up to 2**24: tl.dot(left, right.T, acc, out_dtype=tl.int32).",
            lambda a, b: epilogue.blockwise(a, b, F32).astype(np.int32),
        ),
        (
            "the store of y writes beyond column N: mask it with columns < N as well as rows < M.",
            _stops_where("stores y", epilogue.ragged_n),
        ),
        ("the store of y writes beyond row M: mask it with rows < M as well as columns < N.", _stops_where("stores y", epilogue.ragged_m)),
        ("the load of a reads beyond row M: mask it with rows < M as well as ks < K.", _stops_where("loads a", epilogue.ragged_m)),
        ("the load of b reads beyond row N: mask it with columns < N as well as ks < K.", _stops_where("loads b", epilogue.ragged_n)),
    ),
)

# ---- 10: the outlier loop -----------------------------------------------------------------------------------------------------


def _parts(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(codes of X with its outlier columns cleared, their scales, numbers of the outlier columns)."""
    outliers = reference.outlier_columns(x)
    codes, scale_x = reference.absmax_quantize(np.where(outliers, F32(0), x), axis=-1)
    return codes, scale_x.ravel(), np.flatnonzero(outliers)


def _listed(columns: np.ndarray, k: int) -> np.ndarray:
    """The outlier list as the kernel gets it: K numbers, of which the first count, and the count behind them."""
    return np.array([*columns, *[0] * (k - len(columns)), len(columns)], np.int32)


def prepare_outliers(memory: Any, x: np.ndarray, b: np.ndarray, scale_b: np.ndarray) -> Launch:
    """One program per tile of 16 x 16; x is packed and ends with its last entry."""
    (m, k), n = x.shape, len(b)
    codes, scale_a, columns = _parts(x)
    left, right = memory.rows("a", codes, 31, 77), memory.rows("b", b, 31, 77)
    y = memory.result("y", (m, n), F32, SENTINEL_SCALE)
    buffers = memory.rows("scale_a", scale_a), memory.rows("scale_b", scale_b), memory.rows("x", x, 0, 0, False)
    rest = memory.rows("outliers", _listed(columns, k)), m, n, k, k + 31, k + 31
    return Launch((-(-m // 16), -(-n // 16)), (left, right, y, *buffers, *rest), TILE, (y,))


def _outlier_cases() -> Iterator[tuple]:
    for m, n, k, planted in (
        (1, 1, 2, (1,)),
        (1, 1, 2, ()),
        (2, 2, 3, (2,)),
        (4, 4, 4, (2,)),
        (3, 5, 7, (1, 4)),
        (17, 19, 40, (3, 33, 39)),
    ):
        rng = np.random.default_rng(m + n + k)
        x = rng.uniform(0.5, 2, (m, k)).astype(F32)
        for column in planted:
            x[rng.integers(m), column] = 20
        yield x, rng.integers(-127, 128, (n, k), np.int8), rng.uniform(0.5, 2, n).astype(F32)


def _y(
    x: np.ndarray, b: np.ndarray, scale_b: np.ndarray, part: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], Any]
) -> np.ndarray:
    """The regular part, and what `part(x, b, columns, scale of x)` adds to it before the scale of b."""
    codes, scale_a, columns = _parts(x)
    regular = (_wide(codes) @ _wide(b).T) * scale_a.astype(np.float64)[:, None]
    return ((regular + part(x.astype(np.float64), _wide(b), columns, scale_a)) * scale_b).astype(F32)


def _of_columns(x: np.ndarray, b: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return x[:, columns] @ b[:, columns].T


def _right(x: np.ndarray, b: np.ndarray, scale_b: np.ndarray) -> np.ndarray:
    return _y(x, b, scale_b, lambda x, b, columns, scale_a: _of_columns(x, b, columns))


def _bound(want: np.ndarray, args: tuple) -> np.ndarray:
    """Roundings of float32, relative to the magnitudes of either part.

    The regular part: the accumulator's conversion, two scales, the sum of the parts. The outlier part: `o` products and as many sums, a
    scale (of the weights before the sum, maybe), the sum of the parts. The right result: one. Second orders fit into one more of each.
    """
    x, b, scale_b = args
    codes, scale_a, columns = _parts(x)
    regular = np.abs((_wide(codes) @ _wide(b).T) * scale_a.astype(np.float64)[:, None] * scale_b)
    part = (np.abs(x[:, columns]).astype(np.float64) @ np.abs(_wide(b)[:, columns]).T) * scale_b
    return ROUNDOFF * (6 * regular + (len(columns) + 6) * part)


def _first_of_list(x: np.ndarray, b: np.ndarray, columns: np.ndarray, scale_a: np.ndarray) -> np.ndarray:
    """The list's first entry taken for the count."""
    listed = _listed(columns, x.shape[1])
    return _of_columns(x, b, listed[: listed[0]])


def _all_of_list(x: np.ndarray, b: np.ndarray, columns: np.ndarray, scale_a: np.ndarray) -> np.ndarray:
    return _of_columns(x, b, _listed(columns, x.shape[1])[:-1])


def _scaled_by_x(x: np.ndarray, b: np.ndarray, columns: np.ndarray, scale_a: np.ndarray) -> np.ndarray:
    return _of_columns(x, b, columns) * scale_a[:, None]


def _mistake(part: Callable) -> Callable:
    return lambda x, b, scale_b: _y(x, b, scale_b, part)


def _unscaled(x: np.ndarray, b: np.ndarray, scale_b: np.ndarray) -> np.ndarray:
    return (_y(x, b, scale_b, lambda *_: 0) + _of_columns(x.astype(np.float64), _wide(b), _parts(x)[2])).astype(F32)


outlier_loop = Exercise(
    right=_right,
    inputs=("x", "b", "scale_b"),
    outputs=("y",),
    cases=_outlier_cases,
    shared_axes=([(0, 0)], [(1, 0), (2, 0)], [(0, 1), (1, 1)]),
    bound=_bound,
    unwritten=NOTHING_STORED,
    mistakes=(
        ("the outlier columns are missing: add x's column times the codes of b, for each of the list.", _mistake(lambda *_: 0)),
        ("the part of the outliers lacks scale_b: b holds codes.", _unscaled),
        ("the part of the outliers is scaled by scale_a as well: x holds values, not codes.", _mistake(_scaled_by_x)),
        (
            "column o is not the o-th outlier column: k = tl.load(outliers + o).",
            _mistake(lambda x, b, c, s: _of_columns(x, b, np.arange(len(c)))),
        ),
        ("the loop runs over the whole list: its length stands behind it, count = tl.load(outliers + K).", _mistake(_all_of_list)),
        ("the count stands behind the list, at outliers + K, not at its beginning.", _mistake(_first_of_list)),
        ("the load of x reads beyond row M: mask it with rows < M.", epilogue.stops_where("loads x", epilogue.ragged_m, _right)),
    ),
)
