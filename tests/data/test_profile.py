from __future__ import annotations

import json
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymlp.core.errors import DataError
from raymlp.data.profile import ColumnProfile, Profile, counted_values, merged, to_float

floats = st.floats(min_value=-1e6, max_value=1e6, allow_nan=False, width=32)


def profile_of(values: list[object], kind: pa.DataType) -> ColumnProfile:
    return Profile().update(pa.table({"x": pa.array(values, kind)})).columns["x"]


def test_moments_of_a_hand_worked_column() -> None:
    column = profile_of([2.0, 4.0, None, 6.0, float("nan")], pa.float64())
    assert (column.rows, column.nulls, column.values) == (5, 2, 3)
    assert (column.mean, column.minimum, column.maximum) == (4.0, 2.0, 6.0)
    assert column.std == pytest.approx(np.sqrt(8 / 3))
    assert column.num_distinct == 3


def test_counts_are_exact_and_ordered_by_frequency_then_value() -> None:
    column = profile_of(["b", "a", "b", None, "c", "a"], pa.string())
    assert list(column.counts().items()) == [("a", 2), ("b", 2), ("c", 1)]
    assert column.nulls == 1


def test_a_column_without_values_has_no_statistics() -> None:
    column = profile_of([None, None], pa.float64())
    assert (column.values, column.std, column.num_distinct) == (0, 0.0, 0)
    assert np.isnan(column.quantile(0.5))


def test_timestamps_are_seconds_in_utc() -> None:
    moment = datetime(2013, 7, 1, 9, 30, tzinfo=UTC)
    column = profile_of([moment], pa.timestamp("us", tz="UTC"))
    assert (column.type, column.mean) == ("timestamp", moment.timestamp())
    assert to_float(pa.chunked_array([pa.array([moment], pa.timestamp("ns", tz="UTC"))]))[0] == moment.timestamp()


@settings(max_examples=60)
@given(st.lists(st.one_of(st.none(), floats), max_size=60), st.integers(0, 60))
def test_merging_parts_gives_the_profile_of_the_whole(values: list[float | None], cut: int) -> None:
    whole = Profile().update(pa.table({"x": pa.array(values, pa.float64())})).columns["x"]
    parts = [Profile().update(pa.table({"x": pa.array(part, pa.float64())})) for part in (values[:cut], values[cut:])]
    both = merged(parts).columns["x"]
    assert (both.rows, both.nulls, both.minimum, both.maximum) == (whole.rows, whole.nulls, whole.minimum, whole.maximum)
    assert both.mean == pytest.approx(whole.mean, rel=1e-9, abs=1e-6)
    assert both.std == pytest.approx(whole.std, rel=1e-6, abs=1e-6)
    assert both.num_distinct == whole.num_distinct


def test_quantiles_of_merged_parts_are_near_those_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    values = rng.lognormal(size=40_000)
    parts = [Profile().update(pa.table({"x": part})) for part in np.array_split(values, 7)]
    column = merged(parts).columns["x"]
    for share in (0.01, 0.25, 0.5, 0.75, 0.99):
        assert np.mean(values < column.quantile(share)) == pytest.approx(share, abs=0.002)
    points = np.quantile(values, [0.1, 0.5, 0.9])
    distribution = column.distribution()
    assert distribution is not None
    assert distribution.up_to(points) == pytest.approx([0.1, 0.5, 0.9], abs=0.002)


@pytest.mark.parametrize("kind", [pa.int64(), pa.float64()])
def test_counts_go_on_where_exact_ones_end(kind: pa.DataType) -> None:
    values = np.random.default_rng(5).integers(0, 5_000, 40_000)
    parts = [Profile().update(pa.table({"x": pa.array(part).cast(kind)})) for part in np.array_split(values, 60)]
    assert parts[0].columns["x"].is_exact
    column = merged(parts).columns["x"]
    assert not column.is_exact
    assert column.num_distinct == pytest.approx(len(np.unique(values)), rel=0.05)
    if kind == pa.int64():
        assert column.counts() == {str(value): int(count) for value, count in zip(*np.unique(values, return_counts=True), strict=True)}


def test_whole_numbers_too_large_for_floats_keep_their_names() -> None:
    names = [2**60 + 1, 2**60 + 2, 2**60 + 2]
    first, second = ({"x": pa.array(part, pa.int64())} for part in ([7, 7], names))
    column = Profile().update(pa.table(first)).update(pa.table(second)).columns["x"]
    assert column.counts() == {str(2**60 + 2): 2, "7": 2, str(2**60 + 1): 1}
    assert column.num_distinct == 3


def test_the_same_rows_give_the_same_bytes() -> None:
    table = pa.table({"x": np.random.default_rng(1).normal(size=30_000)})
    assert Profile().update(table).to_dict() == Profile().update(table).to_dict()


def test_json_gives_the_same_statistics_back() -> None:
    rng = np.random.default_rng(2)
    table = pa.table(
        {"x": rng.normal(size=500), "k": rng.choice(["a", "b"], 500), "flag": rng.random(500) < 0.5, "none": pa.nulls(500, pa.int64())}
    )
    profile = Profile().update(table)
    back = Profile.from_dict(json.loads(json.dumps(profile.to_dict())))
    assert back.rows == 500
    for name, column in profile.columns.items():
        other = back.columns[name]
        assert (other.type, other.rows, other.nulls, other.mean, other.std) == (
            column.type,
            column.rows,
            column.nulls,
            column.mean,
            column.std,
        )
        assert (other.counts(), other.num_distinct) == (column.counts(), column.num_distinct)
        if column.values and column.is_number:
            assert other.quantile(0.3) == column.quantile(0.3)


def test_profiles_of_different_types_do_not_merge() -> None:
    left, right = (Profile().update(pa.table({"x": [value]})) for value in (1.0, "a"))
    with pytest.raises(DataError, match="type string into one of type float"):
        left.merge(right)


def test_nested_columns_are_left_out() -> None:
    assert list(Profile().update(pa.table({"x": [1], "list": [[1, 2]]})).columns) == ["x"]


whole_numbers = st.one_of(st.integers(-50, 50), st.integers(-(2**53), 2**53), st.sampled_from([2**53, -(2**53), 2**53 - 1]))


@given(st.lists(whole_numbers, max_size=40))
def test_whole_numbers_are_counted_without_a_sort_as_with_one(values: list[int]) -> None:
    numbers = np.array(values, np.float64)
    for found, expected in zip(counted_values(numbers, whole=True), np.unique(numbers, return_counts=True), strict=True):
        assert found.tolist() == expected.tolist()


def test_free_text_is_not_taken_for_ids_and_ids_not_for_free_text() -> None:
    reviews = profile_of([f"the plot of film {i} was thin" for i in range(200)], pa.string())
    assert (reviews.is_prose, reviews.is_id_like(0.95)) == (True, False)
    names = profile_of([f"order-{i}" for i in range(200)], pa.string())
    assert (names.is_prose, names.is_id_like(0.95)) == (False, True)
    few = profile_of(["the same five words again", "another of five words too"] * 100, pa.string())
    assert (few.is_prose, few.is_id_like(0.95)) == (False, False)
