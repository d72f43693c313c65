"""The native engine's call for all experts of a projection: the bits of a call per expert, and nothing beside its tensors."""

import sys
from collections.abc import Callable, Iterator
from itertools import product as combinations
from typing import Any

import pytest
import torch
from torch import Tensor

import fast
from fast.cpu import engine, native
from fast.expert_operators import experts_linear
from fast.weights import QuantizedWeight
from tests import native_driver
from tests.comparison import DTYPES, NATIVE, assert_same
from tests.strategies import Recipe
from tests.tools.guarded import guarded, guarded_buffers

HERE = [side.name for side in NATIVE if side.name in engine.available()]
engines = pytest.mark.parametrize("name", HERE)

#: How many rows each expert has, and how many have none; up to 8 rows sums run along K, and more lie in registers.
COUNTS = {
    "one row each": ([1, 1, 1, 1, 1], 0),
    "none": ([0, 0, 0], 4),
    "no rows at all": ([0, 0], 0),
    "few and many": ([3, 0, 8, 9, 40, 0, 1], 2),
    "one expert": ([17], 0),
    "the last has none": ([2, 70, 0], 1),
}
#: K and N: whole registers and not.
SIZES = [(64, 50), (70, 17), (300, 100), (1, 1)]

pytestmark = pytest.mark.usefixtures("on_the_cpu")


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def problem(counts: list[int], nobody: int, k: int, n: int, dtype: torch.dtype, bias: bool = True) -> tuple[Any, ...]:
    """x, codes, absmax, bias, ends of some experts; outlier columns that differ by expert, and a NaN in one row."""
    ends = torch.tensor(counts).cumsum(0)
    x = Recipe((int(ends[-1]) + nobody, k), dtype, 3, outliers="some columns", layout="every other row").tensor()
    if len(x) > 2:
        x[2, 0] = torch.nan
        x[1, -1] = -torch.inf
    codes = torch.randint(-127, 128, (len(counts), n, k), dtype=torch.int8, generator=torch.Generator().manual_seed(1))
    absmax = torch.rand(len(counts), n, 1, generator=torch.Generator().manual_seed(2))
    return x, codes, absmax, Recipe((len(counts), n), dtype, 4).tensor() if bias else None, ends


def one_call_each(engine: Any, given: tuple[Any, ...], limit: float | None) -> Tensor:
    x, codes, absmax, bias, ends = given
    y = torch.zeros(len(x), codes.shape[1], dtype=x.dtype)
    start = 0
    for e, end in enumerate(ends.tolist()):
        if end > start:
            y[start:end] = engine.linear(x[start:end], QuantizedWeight(codes[e], absmax[e]), None if bias is None else bias[e], limit, True)
        start = end
    return y


@engines
@pytest.mark.parametrize("limit", [None, 0.0, 6.0], ids=str)
@pytest.mark.parametrize("which", COUNTS)
def test_one_call_gives_the_bits_of_a_call_per_expert(name, which, limit):
    chosen = engine.forced(name)
    for (k, n), dtype, bias in combinations(SIZES, DTYPES, (True, False)):
        given = problem(*COUNTS[which], k, n, dtype, bias)
        assert_same(chosen.experts_linear(*given, limit), one_call_each(chosen, given, limit))


@engines
@pytest.mark.parametrize("pool", ["Torch's", "own"])
@pytest.mark.parametrize("counts", [[3, 8, 1, 2, 60, 8, 30, 1], [130, 1]], ids=["an expert per thread", "threads share an expert"])
def test_the_bits_are_the_same_for_any_number_of_threads(name, pool, counts, threads, monkeypatch):
    if pool == "own":
        monkeypatch.setattr(native, "pool", 0)
    chosen, given = engine.forced(name), problem(counts, 1, 700, 900, torch.bfloat16)
    threads(1)
    expected = chosen.experts_linear(*given, 6.0)
    assert_same(expected, one_call_each(chosen, given, 6.0))
    for count in (2, 3):
        threads(count)
        assert_same(chosen.experts_linear(*given, 6.0), expected)


def test_long_inputs_are_done_in_several_rounds():
    """More codes of X than are held at once: 3 x 130 x 70,000 bytes."""
    chosen, given = engine.forced(HERE[0]), problem([130, 130, 130], 0, 70_000, 2, torch.bfloat16)
    assert_same(chosen.experts_linear(*given, 6.0), one_call_each(chosen, given, 6.0))


@engines
@pytest.mark.parametrize("at", ["start", "end"])
@pytest.mark.parametrize("which", COUNTS)
def test_nothing_beside_its_tensors_is_touched(name, at, which):
    chosen = engine.forced(name)
    for (k, n), dtype in combinations(SIZES, DTYPES):
        given = problem(*COUNTS[which], k, n, dtype)
        expected = chosen.experts_linear(*given, 6.0)
        with guarded_buffers(at):
            assert_same(chosen.experts_linear(*(guarded(t, at) for t in given), 6.0), expected)


@pytest.mark.skipif(sys.platform != "linux", reason="the driver is a program for Linux")
@engines
def test_sanitizers_find_nothing(name, threads):
    checked, ours = native_driver.sanitized(name), engine.forced(name)
    threads(2)
    for (counts, nobody), (k, n), dtype in combinations(COUNTS.values(), [*SIZES, (0, 3), (5, 0)], DTYPES):
        given = problem(counts, nobody, k, n, dtype) if k else empty(counts, nobody, n, dtype)
        for limit in (None, 6.0):
            assert_same(checked.experts_linear(*given, limit), ours.experts_linear(*given, limit))


def empty(counts: list[int], nobody: int, n: int, dtype: torch.dtype) -> tuple[Any, ...]:
    rows, experts = sum(counts) + nobody, len(counts)
    codes, absmax = torch.zeros(experts, n, 0, dtype=torch.int8), torch.ones(experts, n, 1)
    return torch.zeros(rows, 0, dtype=dtype), codes, absmax, torch.ones(experts, n, dtype=dtype), torch.tensor(counts).cumsum(0)


def test_the_operator_makes_one_call_per_projection(monkeypatch):
    chosen, given = engine.forced(HERE[0]), problem([3, 0, 12], 1, 70, 17, torch.float32)
    calls = []
    own = chosen.experts_linear
    monkeypatch.setattr(chosen, "experts_linear", lambda *arguments: calls.append(1) or own(*arguments))
    monkeypatch.setattr(chosen, "linear", lambda *arguments: pytest.fail("a call per expert"))
    with fast.backend(HERE[0]):
        y = experts_linear(*given, 6.0)
    assert calls == [1]
    assert_same(y, own(*given, 6.0))


@pytest.mark.parametrize(("name", "calls"), [("portable", 0), ("avx2", 1)])
def test_where_torch_takes_many_rows_each_expert_has_its_own_engine(name, calls, monkeypatch):
    chosen, seen = engine.forced(HERE[0]), []
    own = chosen.experts_linear
    monkeypatch.setattr(engine, "chosen", lambda: (engine.Engine(name, ""), chosen))
    monkeypatch.setattr(chosen, "experts_linear", lambda *arguments: seen.append(1) or own(*arguments))
    experts_linear(*problem([3, 12], 0, 70, 17, torch.float32), 6.0)
    assert len(seen) == calls


WRONG: dict[str, tuple[Callable[[list[Any]], None], str]] = {
    "ends beyond the rows": (lambda given: given.__setitem__(4, torch.tensor([3, 99])), "ends must ascend from 0 to at most 5 rows"),
    "ends that fall": (lambda given: given.__setitem__(4, torch.tensor([3, 2])), "ends must ascend"),
    "a negative end": (lambda given: given.__setitem__(4, torch.tensor([-1, 2])), "ends must ascend"),
    "another K": (lambda given: given.__setitem__(0, given[0][:, :7]), "do not fit"),
    "another N": (lambda given: given.__setitem__(2, given[2][:, :4]), "do not fit"),
    "a bias of one expert": (lambda given: given.__setitem__(3, given[3][:1]), "do not fit"),
    "an end too few": (lambda given: given.__setitem__(4, given[4][:1]), "do not fit"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_what_does_not_fit_is_refused_before_it_becomes_an_address(fault):
    change, message = WRONG[fault]
    given = list(problem([3, 2], 0, 8, 5, torch.float32))
    change(given)
    with pytest.raises(ValueError, match=message):
        engine.forced(HERE[0]).experts_linear(*given, 6.0)
