"""The criterion for outlier features, on features planted by hand: the three limits met exactly, missed by one, met in the wrong place."""

import numpy as np
import pytest

import reference
from reference.features import affected, outlier_features

L, P, K = 8, 50, 5  # 2 layers are 25 %, 3 positions are 6 %


def planted(*entries: tuple[slice | int, slice | int], value: float = 6.0, dtype: type = np.float32) -> np.ndarray:
    """Small noise, and `value` in feature 1 at these (layers, positions)."""
    x = np.random.default_rng(0).uniform(-5.9, 5.9, (L, P, K)).astype(dtype)
    for layers, positions in entries:
        x[layers, positions, 1] = value
    return x


def found(x: np.ndarray, **limits: float) -> list[int]:
    return np.flatnonzero(outlier_features(x, **limits)).tolist()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("value", [6.0, -6.0, 1000.0, np.inf])
def test_a_feature_that_meets_all_three_limits_exactly_is_found(value: float, dtype: type) -> None:
    assert found(planted((slice(0, 2), slice(0, 3)), value=value, dtype=dtype)) == [1]


def test_a_feature_that_misses_one_limit_by_one_is_not_found() -> None:
    assert found(planted((0, slice(None)))) == []  # 1 of 8 layers, at every position
    assert found(planted((slice(None), slice(0, 2)))) == []  # 2 of 50 positions, in every layer
    below = float(np.nextafter(np.float32(6), np.float32(0)))
    assert found(planted((slice(None), slice(None)), value=below)) == []


def test_layers_and_positions_need_not_coincide() -> None:
    # One position in each of three layers, another one each time: 3 layers, 3 positions.
    assert found(planted((0, 0), (1, 1), (2, 2))) == [1]
    # The same position in each: 1 position, however many layers.
    assert found(planted((0, 0), (1, 0), (2, 0))) == []


def test_shares_are_counted_over_layers_and_over_positions() -> None:
    shares = affected(planted((0, 0), (3, 0), (3, 1), (7, slice(10, 20))))
    assert shares.layers.tolist() == [0, 3 / L, 0, 0, 0]
    assert shares.positions.tolist() == [0, 12 / P, 0, 0, 0]


def test_one_layer_alone_has_the_columns_that_outlier_columns_finds() -> None:
    x = planted((2, slice(0, 1)), (2, slice(5, 6)))[2:3]
    assert np.array_equal(outlier_features(x, layers=1, positions=0), reference.outlier_columns(x[0]))


def test_the_order_of_layers_and_of_positions_does_not_matter() -> None:
    x = np.random.default_rng(1).normal(0, 2.4, (L, P, K)).astype(np.float32)
    rng = np.random.default_rng(2)
    shuffled = x[rng.permutation(L)][:, rng.permutation(P)]
    for one, other in zip(affected(x), affected(shuffled), strict=True):
        assert np.array_equal(one, other)
    assert 0 < affected(x).positions.max() < 1


def test_no_threshold_finds_nothing_and_zero_finds_everything() -> None:
    x = planted((slice(None), slice(None)), value=np.inf)
    assert found(x, threshold=None) == []
    assert found(x, threshold=0) == list(range(K))


def test_a_nan_is_not_an_outlier() -> None:
    assert found(planted((slice(None), slice(None)), value=np.nan)) == []


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"activations": np.zeros((2, 3), np.float32)}, ValueError, "activations must have 3 dimensions"),
        ({"activations": np.zeros((2, 3, 4))}, TypeError, "activations must have dtype"),
        ({"activations": np.zeros((0, 3, 4), np.float32)}, ValueError, "at least one layer"),
        ({"activations": np.zeros((2, 0, 4), np.float32)}, ValueError, "at least one layer and one position"),
        ({"threshold": -1.0}, ValueError, "threshold must be 0 or more"),
        ({"layers": 25}, ValueError, "layers must be a share of 0 to 1, got 25"),
        ({"positions": float("nan")}, ValueError, "positions must be a share"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        outlier_features(**({"activations": planted()} | arguments))
