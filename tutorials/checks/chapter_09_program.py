"""The exercise of chapter 09: what one program of the product kernel does."""

from collections.abc import Callable, Iterator

import numpy as np

from .engine import SEEDS, Exercise


def _program(
    tile: Callable[[int, int, int, int], tuple[int, int]] | None = None, columns: Callable[[int, int], tuple[int, int]] | None = None
) -> Callable:
    """The four numbers, by another rule for the tile or for the outlier columns."""

    def answer(program: int, tiles_m: int, tiles_n: int, group_m: int, count: int, capacity: int) -> tuple:
        owned = (tile or _grouped)(program, tiles_m, tiles_n, group_m)
        read = (columns or _read)(count, capacity)
        return tuple(np.int64(number) for number in (*owned, *read))

    return answer


def _grouped(program: int, tiles_m: int, tiles_n: int, group_m: int) -> tuple[int, int]:
    in_group = group_m * tiles_n
    first_m = program // in_group * group_m
    rows = min(tiles_m - first_m, group_m)
    return first_m + program % in_group % rows, program % in_group // rows


def _uncut(program: int, tiles_m: int, tiles_n: int, group_m: int) -> tuple[int, int]:
    in_group = group_m * tiles_n
    return program // in_group * group_m + program % in_group % group_m, program % in_group // group_m


def _without_first(program: int, tiles_m: int, tiles_n: int, group_m: int) -> tuple[int, int]:
    tile_m, tile_n = _grouped(program, tiles_m, tiles_n, group_m)
    return tile_m - program // (group_m * tiles_n) * group_m, tile_n


def _read(count: int, capacity: int) -> tuple[int, int]:
    return min(count, capacity), count - min(count, capacity)


def _programs() -> Iterator[tuple]:
    yield 0, 1, 1, 1, 0, 16
    yield 1, 2, 2, 2, 1, 16
    yield 1, 2, 2, 1, 1, 16
    yield 2, 4, 2, 2, 17, 16
    yield 8, 3, 4, 2, 16, 16  # the last group has one row
    yield 41, 9, 5, 8, 3, 0  # nothing was gathered
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        for _ in range(12):
            tiles_m, tiles_n, group_m = (int(rng.integers(1, high)) for high in (20, 9, 10))
            yield int(rng.integers(tiles_m * tiles_n)), tiles_m, tiles_n, group_m, int(rng.integers(60)), 32


program = Exercise(
    right=_program(),
    inputs=("program", "tiles_m", "tiles_n", "group_m", "count", "capacity"),
    outputs=("tile_m", "tile_n", "gathered", "in_place"),
    cases=_programs,
    plain=("tile_m", "tile_n", "gathered", "in_place"),
    mistakes=(
        (
            "the last group may have fewer rows of tiles: min(tiles_m - first_m, group_m). Without it some tiles have no program.",
            _program(_uncut),
        ),
        (
            "that is row by row, as in a grid of two dimensions; the order of stop 1 goes through group_m rows of tiles first.",
            _program(lambda program, tiles_m, tiles_n, group_m: (program // tiles_n, program % tiles_n)),
        ),
        ("you left out first_m, the first row of tiles of the group.", _program(_without_first)),
        (
            "that is column by column over all of Y: there are no groups in it.",
            _program(lambda program, tiles_m, tiles_n, group_m: (program % tiles_m, program // tiles_m)),
        ),
        ("the buffer holds `capacity` columns at most: min(count, capacity).", _program(columns=lambda count, capacity: (count, 0))),
        (
            "the second loop starts at `gathered`: it reads those that did not fit, not all of them.",
            _program(columns=lambda count, capacity: (min(count, capacity), count)),
        ),
        (
            "columns that did not fit in the buffer are read in place; they are not dropped.",
            _program(columns=lambda count, capacity: (min(count, capacity), 0)),
        ),
        (
            "the buffer is filled up first. It is not the case that either all columns are gathered or none.",
            _program(columns=lambda count, capacity: (count, 0) if count <= capacity else (0, count)),
        ),
    ),
)
