"""Distributions read from profiles: exact where they can be, close where they cannot."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymlp.data.distribution import Distribution
from raymlp.data.profile import ColumnProfile, Profile


def profile(values: object) -> ColumnProfile:
    return Profile().update(pa.table({"x": values})).columns["x"]


def of(values: object) -> Distribution:
    found = profile(values).distribution()
    assert found is not None
    return found


def test_whole_numbers_are_counted_exactly() -> None:
    found = of([1, 1, 2, 5])
    points = np.array([0.0, 1, 1.5, 2, 5, 9])
    assert found.below(points).tolist() == [0, 0, 0.5, 0.5, 0.75, 1]
    assert found.up_to(points).tolist() == [0, 0.5, 0.5, 0.75, 1, 1]


def test_a_small_sample_of_decimals_is_exact_too() -> None:
    values = np.random.default_rng(0).normal(size=60)
    found = of(values)
    points = np.sort(values)
    assert found.up_to(points) == pytest.approx(np.arange(1, 61) / 60)
    assert found.below(points) == pytest.approx(np.arange(60) / 60)


def test_a_value_that_many_rows_share_keeps_its_step() -> None:
    rng = np.random.default_rng(0)
    values = np.where(rng.random(50_000) < 0.7, 0.0, rng.normal(5, 1, 50_000))
    found = of(values)
    zero = np.array([0.0])
    assert found.below(zero)[0] == pytest.approx(np.mean(values < 0), abs=0.005)
    assert found.up_to(zero)[0] == pytest.approx(np.mean(values <= 0), abs=0.01)


def test_a_constant_and_one_value() -> None:
    for values in ([0.3] * 1_000, [0.3]):
        found = of(values)
        assert (found.below(np.array([0.3]))[0], found.up_to(np.array([0.3]))[0]) == (0, 1)
        assert found.quantiles(np.array([0.0, 0.5, 1.0])).tolist() == [0.3, 0.3, 0.3]


def test_no_values_have_no_distribution() -> None:
    assert profile(pa.nulls(5, pa.float64())).distribution() is None


def test_many_rows_are_within_one_percent() -> None:
    values = np.random.default_rng(1).lognormal(size=200_000)
    points = np.quantile(values, np.linspace(0.001, 0.999, 97))
    assert of(values).up_to(points) == pytest.approx(np.linspace(0.001, 0.999, 97), abs=0.01)


@settings(max_examples=60)
@given(st.lists(st.floats(-100, 100).map(lambda value: round(value, 1)), min_size=1, max_size=300))
def test_shares_rise_from_zero_to_one_and_below_is_never_more(values: list[float]) -> None:
    found = of(values)
    points = np.unique(np.array([*values, -101.0, 101.0]))
    below, up_to = found.below(points), found.up_to(points)
    assert (below <= up_to + 1e-12).all()
    assert (np.diff(below) >= -1e-12).all()
    assert (np.diff(up_to) >= -1e-12).all()
    assert (below[0], up_to[-1]) == (0, 1)
