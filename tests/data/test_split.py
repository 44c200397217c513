from __future__ import annotations

from datetime import datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from raymlp.config.data import GroupSplit, RandomSplit, StratifiedSplit, TimeSplit
from raymlp.core.errors import DataError
from raymlp.data.split import SPLITS, assign


def share(codes: np.ndarray, name: str) -> float:
    return float(np.mean(codes == SPLITS.index(name)))


def test_random_shares_are_exact_and_another_seed_gives_another_split() -> None:
    keys = np.zeros(1_000)
    codes = assign(RandomSplit(valid=0.2, test=0.1), keys)
    assert (share(codes, "train"), share(codes, "valid"), share(codes, "test")) == (0.7, 0.2, 0.1)
    assert np.array_equal(codes, assign(RandomSplit(valid=0.2, test=0.1), keys))
    assert not np.array_equal(codes, assign(RandomSplit(valid=0.2, test=0.1, seed=1), keys))


def test_stratified_keeps_proportions_as_scikit_learn_does() -> None:
    labels = np.array(["a"] * 700 + ["b"] * 250 + ["c"] * 50)
    codes = assign(StratifiedSplit(valid=0.2, test=0.0), labels)
    _, theirs = train_test_split(labels, test_size=0.2, stratify=labels, random_state=0)
    ours = labels[codes == 1]
    for label in "abc":
        assert np.mean(ours == label) == pytest.approx(np.mean(theirs == label), abs=0.005)


def test_stratified_is_shuffled_within_a_class() -> None:
    codes = assign(StratifiedSplit(valid=0.5, test=0.0), np.array(["a"] * 200))
    assert 20 < np.sum(codes[:100] == 1) < 80


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from("abcdef"), min_size=30, max_size=200), st.integers(0, 5))
def test_every_class_with_three_rows_is_in_every_split(labels: list[str], seed: int) -> None:
    keys = np.array(labels)
    codes = assign(StratifiedSplit(valid=0.15, test=0.15, seed=seed), keys)
    for label in set(labels):
        if labels.count(label) >= 3:
            assert set(codes[keys == label]) == {0, 1, 2}


def test_no_group_is_in_two_splits_and_a_group_keeps_its_split_when_rows_come() -> None:
    groups = np.array([f"g{i % 300}" for i in range(6_000)])
    codes = assign(GroupSplit(column="g"), groups)
    homes = {group: set(codes[groups == group]) for group in set(groups)}
    assert all(len(home) == 1 for home in homes.values())
    assert share(codes, "valid") == pytest.approx(0.15, abs=0.06)
    more = np.concatenate([groups, np.array([f"h{i}" for i in range(500)])])
    assert np.array_equal(assign(GroupSplit(column="g"), more)[:6_000], codes)


def test_time_bounds_are_inclusive_below_and_exclusive_above() -> None:
    days = np.array([np.datetime64(f"2013-01-{day:02}") for day in range(1, 11)]).astype("datetime64[us]").astype(np.int64)
    rule = TimeSplit(column="t", train_start=datetime(2013, 1, 2), valid_start=datetime(2013, 1, 5), valid_end=datetime(2013, 1, 8))
    assert assign(rule, days).tolist() == [-1, 0, 0, 0, 1, 1, 1, 3, 3, 3]


def test_an_empty_split_is_refused() -> None:
    days = np.array([0, 1, 2], dtype=np.int64)
    with pytest.raises(DataError, match="valid split is empty"):
        assign(TimeSplit(column="t", valid_start=datetime(2020, 1, 1)), days)
