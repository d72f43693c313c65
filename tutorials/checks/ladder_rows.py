"""The rungs of the ladder that work on rows: copy, scale, masked copy, row maximum, rounding."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tutorials.minitriton import next_power_of_2

from .engine import F32, SEEDS, Exercise, OutOfBounds
from .launching import Launch
from .poisoning import NOTHING_STORED, SENTINEL_CODE, SENTINEL_SCALE


def _stops(what: str, outside: Callable[..., bool], right: Callable) -> Callable:
    """What a load or store outside of a buffer gives: the launch is stopped wherever `outside(*shape of the first argument)`."""

    def mistaken(*args: np.ndarray) -> Any:
        if outside(*args[0].shape):
            raise OutOfBounds(what)
        return right(*args)

    return mistaken


def _ragged(m: int, k: int) -> bool:
    return k != next_power_of_2(k)


def _normal(*shapes: tuple[int, int]) -> Iterator[tuple]:
    for shape in shapes:
        for seed in SEEDS:
            yield (np.random.default_rng(seed).normal(size=shape).astype(F32),)


# ---- 1: copy ------------------------------------------------------------------------------------------------------------------

BLOCK = 4


def prepare_copy(memory: Any, x: np.ndarray) -> Launch:
    """One program per block of four."""
    y = memory.result("y", x.shape, F32, SENTINEL_SCALE)
    return Launch((x.size // BLOCK,), (memory.rows("x", x), y), {"BLOCK": BLOCK}, (y,))


def _vectors() -> Iterator[tuple]:
    for blocks in (1, 2, 3, 4):
        yield (np.random.default_rng(blocks).normal(size=blocks * BLOCK).astype(F32),)


def _first_block(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x[:BLOCK], np.full(x.size - BLOCK, SENTINEL_SCALE, F32)])


def _overlapping(x: np.ndarray) -> np.ndarray:
    reached = x.size // BLOCK + BLOCK - 1
    return np.concatenate([x[:reached], np.full(x.size - reached, SENTINEL_SCALE, F32)])


copy = Exercise(
    right=lambda x: x,
    inputs=("x",),
    outputs=("y",),
    cases=_vectors,
    unwritten=NOTHING_STORED,
    mistakes=(
        ("every program copies the first block: its own begins at tl.program_id(0) * BLOCK.", _first_block),
        ("program p begins at entry p, not at its block: tl.program_id(0) * BLOCK.", _overlapping),
        ("y holds the offsets, not what lies there: store what tl.load(x + offsets) gives.", lambda x: np.arange(x.size, dtype=F32)),
    ),
)

# ---- 2: scale -----------------------------------------------------------------------------------------------------------------


def prepare_scale(memory: Any, codes: np.ndarray, scale: np.ndarray) -> Launch:
    """One program per row of codes."""
    m, k = codes.shape
    y = memory.result("y", (m, k), F32, SENTINEL_SCALE)
    return Launch((m,), (memory.rows("codes", codes, 0, 0, False), memory.rows("scale", scale), y), {"BLOCK_K": k}, (y,))


def _coded_rows() -> Iterator[tuple]:
    for m, k in ((1, 1), (1, 4), (2, 4), (4, 2), (3, 16), (17, 8)):
        rng = np.random.default_rng(m + k)
        yield rng.integers(1, 128, (m, k), np.int8), (2.0 ** rng.permutation(m).astype(F32) / 8).astype(F32)


def _dequantized(codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return codes.astype(F32) * scale[:, None]


def _scale_by_columns(codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    if codes.shape[1] > len(scale):
        raise OutOfBounds("loads scale")
    return codes.astype(F32) * scale[: codes.shape[1]]


scale = Exercise(
    right=_dequantized,
    inputs=("codes", "scale"),
    outputs=("y",),
    cases=_coded_rows,
    shared_axes=([(0, 0), (1, 0)],),
    unwritten=NOTHING_STORED,
    mistakes=(
        ("the codes are not scaled: multiply by tl.load(scale + row).", lambda codes, scale: codes.astype(F32)),
        ("every row gets the first scale: load scale + row.", lambda codes, scale: codes.astype(F32) * scale[0]),
        ("a row has one scale, not one per column: tl.load(scale + row).", _scale_by_columns),
        ("the scale is the value of one step: multiply by it instead of dividing.", lambda codes, s: codes.astype(F32) / s[:, None]),
    ),
)

# ---- 3: masked copy -----------------------------------------------------------------------------------------------------------


def prepare_masked_copy(memory: Any, x: np.ndarray) -> Launch:
    """One program per row; x ends with its last entry, so that a load beyond it is outside."""
    m, k = x.shape
    y = memory.result("y", (m, k), F32, SENTINEL_SCALE)
    return Launch((m,), (memory.rows("x", x, 3, 1e30, False), y, k, k + 3), {"BLOCK_K": next_power_of_2(k)}, (y,))


def _same(x: np.ndarray) -> np.ndarray:
    return x


def packed(x: np.ndarray) -> np.ndarray:
    """The rows that K instead of the stride finds, where rows are three longer than K and filled up with 1e30."""
    m, k = x.shape
    return np.pad(x, ((0, 0), (0, 3)), constant_values=1e30).ravel()[: m * k].reshape(m, k).astype(F32)


masked_copy = Exercise(
    right=_same,
    inputs=("x",),
    outputs=("y",),
    cases=lambda: _normal((1, 1), (2, 2), (1, 3), (3, 5), (4, 4), (2, 33)),
    shared_axes=([(0, 0)], [(0, 1)]),
    unwritten=NOTHING_STORED,
    mistakes=(
        ("the load reads beyond column K: mask it with columns < K, other=0.0.", _stops("loads x", _ragged, _same)),
        ("the store writes beyond column K: mask it with columns < K.", _stops("stores y", _ragged, _same)),
        ("y is packed: its rows are K apart, not stride: y + row * K + columns.", _stops("stores y", lambda m, k: m > 1, _same)),
        ("rows of x are `stride` apart, not K: x + row * stride + columns.", packed),
    ),
)

# ---- 4: row maximum -----------------------------------------------------------------------------------------------------------


def prepare_row_maximum(memory: Any, x: np.ndarray) -> Launch:
    """One program per row; beyond K lies 1e30, as far as a block reaches."""
    m, k = x.shape
    absmax = memory.result("absmax", (m,), F32, SENTINEL_SCALE)
    return Launch((m,), (memory.rows("x", x, 3, 1e30), absmax, k, k + 3), {"BLOCK_K": next_power_of_2(k)}, (absmax,))


def _absmax(x: np.ndarray) -> np.ndarray:
    return np.abs(x).max(axis=1)


def blocks_of(x: np.ndarray) -> np.ndarray:
    """Rows as an unmasked load reads them: the block continues into what lies behind column K."""
    m, k = x.shape
    width = next_power_of_2(k)
    flat = np.append(np.pad(x, ((0, 0), (0, 3)), constant_values=1e30).ravel(), np.full(width, 1e30, F32))
    return np.stack([flat[i * (k + 3) : i * (k + 3) + width] for i in range(m)]).astype(F32)


def _blocks_masked(x: np.ndarray) -> np.ndarray:
    """Rows as a masked load gives them: zeros behind column K."""
    return np.pad(x, ((0, 0), (0, next_power_of_2(x.shape[1]) - x.shape[1])))


row_maximum = Exercise(
    right=_absmax,
    inputs=("x",),
    outputs=("absmax",),
    cases=lambda: ((np.concatenate([-np.abs(x[:, :1]) - F32(1), x[:, 1:]], axis=1),) for (x,) in _normal((1, 1), (1, 3), (4, 4), (3, 5))),
    shared_axes=([(0, 0)], [(0, 1)]),
    unwritten=NOTHING_STORED,
    mistakes=(
        ("tl.max(values) is the largest value; tl.max(tl.abs(values)) the largest magnitude.", lambda x: _blocks_masked(x).max(axis=1)),
        (
            "the magnitude of the largest value: take the magnitudes first, tl.max(tl.abs(values)).",
            lambda x: np.abs(_blocks_masked(x).max(axis=1)),
        ),
        ("the load reads beyond column K, where 1e30 lies: mask it with columns < K, other=0.0.", lambda x: _absmax(blocks_of(x))),
        ("rows of x are `stride` apart, not K: x + row * stride + columns.", lambda x: _absmax(packed(x))),
        ("that is the sum of the magnitudes: tl.max, not tl.sum.", lambda x: np.abs(x).sum(axis=1, dtype=F32)),
    ),
)

# ---- 5: rounding --------------------------------------------------------------------------------------------------------------


def prepare_rounding(memory: Any, steps: np.ndarray) -> Launch:
    """One program for all."""
    codes = memory.result("codes", steps.shape, np.int8, SENTINEL_CODE)
    # Unfused, as the kernels of `fast` are launched: nothing here could be fused, and a reader's kernel may multiply.
    return Launch((1,), (memory.rows("steps", steps), codes), {"BLOCK": steps.size, "enable_fp_fusion": False}, (codes,))


def _steps() -> Iterator[tuple]:
    for one in (0.75, -0.75, 0.5, 1.5, 2.5, -0.5, -2.5, -0.25, 126.5, -127.0, 127.0):
        yield (np.array([one], F32),)
    for seed in SEEDS:
        yield (np.random.default_rng(seed).uniform(-127, 127, 64).astype(F32),)


def _halves_below_zero(steps: np.ndarray) -> np.ndarray:
    """What 2**23 instead of 1.5 * 2**23 gives: below 2**23 float32 numbers lie half a step apart."""
    return np.trunc((steps + F32(2**23)) - F32(2**23)).astype(np.int8)


rounding = Exercise(
    right=lambda steps: np.rint(steps).astype(np.int8),
    inputs=("steps",),
    outputs=("codes",),
    cases=_steps,
    shared_axes=([(0, 0)],),
    unwritten=NOTHING_STORED,
    mistakes=(
        ("truncation: .to(tl.int8) cuts the fraction off. Add and subtract 1.5 * 2**23 first.", lambda s: np.trunc(s).astype(np.int8)),
        ("2**23 alone works above zero: numbers below 2**23 lie half a step apart. Add 1.5 * 2**23.", _halves_below_zero),
        (
            "adding 0.5 and cutting off is wrong below zero and at ties: a tie goes to the even code.",
            lambda s: np.trunc(s + F32(0.5)).astype(np.int8),
        ),
        (
            "halves are rounded away from zero; a tie goes to the even code. Add and subtract 1.5 * 2**23.",
            lambda s: (np.sign(s) * np.floor(np.abs(s) + F32(0.5))).astype(np.int8),
        ),
    ),
)
