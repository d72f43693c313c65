"""How the memory of a checker's launch is filled, so that a wrong kernel shows: with huge numbers around, and results of a sentinel."""

import numpy as np

from tutorials.minitriton import next_power_of_2

#: What the entries of a result are before the launch.
SENTINEL_CODE, SENTINEL_SCALE = -99, -99.0
#: What a stub does, and what to do about it.
NOTHING_STORED = "stores nothing. Write it, then run it again."


def padded(values: np.ndarray, extra: int, fill: float, tail: bool) -> tuple[np.ndarray, int]:
    """(entries as they lie in memory, from one row to the next): rows `extra` longer, `fill` there and in a block behind, if `tail`."""
    rows, columns = values.shape
    stride = columns + extra
    flat = np.full(rows * stride + next_power_of_2(columns), fill, values.dtype)
    flat[: rows * stride].reshape(rows, stride)[:, :columns] = values
    return flat if tail else flat[: (rows - 1) * stride + columns].copy(), stride
