from __future__ import annotations

from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import GroupKFold, StratifiedKFold, TimeSeriesSplit, train_test_split

from raymlp.config.split import ColumnSplit, GroupSplit, HashSplit, RandomSplit, StratifiedSplit, TimeSplit
from raymlp.core.errors import DataError
from raymlp.data.split import OUTSIDE, PURGED, SPLITS, assign, folds, hold_filled, is_lasting, key_hashes

HOUR = 3_600_000_000


def share(codes: np.ndarray, name: str) -> float:
    return float(np.mean(codes == SPLITS.index(name)))


def hours(*values: int) -> np.ndarray:
    """Microseconds of hours after 2013-01-01."""
    start = int(datetime.fromisoformat("2013-01-01T00:00:00+00:00").timestamp() * 1_000_000)
    return np.array(values, np.int64) * HOUR + start


def hashes(names: list[str], seed: int = 0) -> np.ndarray:
    return key_hashes([names], seed=seed)


# ---------------------------------------------------------------------- one split


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


@settings(max_examples=100)
@given(st.lists(st.sampled_from("abcdef"), min_size=30, max_size=200), st.integers(0, 5), st.sampled_from([0.0, 0.15, 0.45]))
def test_a_class_is_in_every_split_as_far_as_its_rows_go(labels: list[str], seed: int, test: float) -> None:
    keys = np.array(labels)
    codes = assign(StratifiedSplit(valid=0.15, test=test, seed=seed), keys)
    wanted = [0, 1, 2] if test else [0, 1]
    for label in set(labels):
        assert set(codes[keys == label]) == set(wanted[: labels.count(label)])


def test_many_small_classes_do_not_move_the_shares() -> None:
    keys = np.repeat(np.arange(200), 10).astype(str)
    codes = assign(StratifiedSplit(valid=0.15, test=0.15), keys)
    assert (share(codes, "valid"), share(codes, "test")) == (0.15, 0.15)


def test_no_group_is_in_two_splits() -> None:
    groups = np.array([f"g{i % 300}" for i in range(6_000)])
    codes = assign(GroupSplit(column="g"), hashes(list(groups)))
    assert all(len(set(codes[groups == group])) == 1 for group in set(groups))
    assert share(codes, "valid") == pytest.approx(0.15, abs=0.06)


def test_hash_shares_are_near_what_was_asked() -> None:
    codes = assign(HashSplit(columns=("id",), valid=0.2, test=0.1), hashes([str(i) for i in range(20_000)]))
    assert share(codes, "valid") == pytest.approx(0.2, abs=0.01)
    assert share(codes, "test") == pytest.approx(0.1, abs=0.01)


def test_a_known_key_has_a_known_hash_so_that_splits_outlive_releases() -> None:
    assert hashes(["g1"]).tolist() == [6922710497085337119]
    assert key_hashes([["a", "ab"], ["bc", "c"]], seed=0)[0] != key_hashes([["a", "ab"], ["bc", "c"]], seed=0)[1]


@settings(max_examples=50)
@given(st.lists(st.text(max_size=4), min_size=1, max_size=40), st.lists(st.text(max_size=4), max_size=40), st.randoms())
def test_a_key_keeps_its_hash_when_rows_come_and_in_any_order(names: list[str], more: list[str], random: Any) -> None:
    before = dict(zip(names, hashes(names), strict=True))
    grown = names + more
    random.shuffle(grown)
    after = dict(zip(grown, hashes(grown), strict=True))
    assert all(after[name] == before[name] for name in names)
    rule = HashSplit(columns=("id",), valid=0.3, test=0.2, folds=3)
    places = dict(zip(grown, folds(rule, hashes(grown), 3), strict=True))
    assert all(places[name] == code for name, code in zip(names, folds(rule, hashes(names), 3), strict=True))


def test_a_column_names_the_split() -> None:
    keys = np.array(["train", "validation", "holdout", "train", "live"])
    assert assign(ColumnSplit(column="s", test=("holdout",)), keys).tolist() == [0, 1, 2, 0, 3]
    with pytest.raises(DataError, match=r"'s' holds 'holdout'; expected one of train, valid, validation, test, live"):
        assign(ColumnSplit(column="s"), keys)
    with pytest.raises(ValueError, match="'x' is named twice"):
        ColumnSplit(column="s", train=("x",), test=("x",))


def test_time_bounds_are_inclusive_below_and_exclusive_above() -> None:
    days = hours(*(24 * day for day in range(10)))
    rule = TimeSplit(column="t", train_start=datetime(2013, 1, 2), valid_start=datetime(2013, 1, 5), valid_end=datetime(2013, 1, 8))
    assert assign(rule, days).tolist() == [-1, 0, 0, 0, 1, 1, 1, 3, 3, 3]


@pytest.mark.parametrize("purge", ["1d", "24h", "1440m", 24, "P1D", timedelta(days=1)])
def test_a_purge_gap_leaves_out_the_rows_before_validation(purge: object) -> None:
    rule = TimeSplit.model_validate({"column": "t", "valid_start": "2013-01-03", "purge": purge})
    codes = assign(rule, hours(0, 23, 24, 25, 47, 48, 60))
    assert codes.tolist() == [0, 0, PURGED, PURGED, PURGED, 1, 1]
    assert TimeSplit.model_validate(rule.model_dump(mode="json")) == rule


def test_a_gap_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 0 or more"):
        TimeSplit(column="t", valid_start=datetime(2013, 1, 3), purge=timedelta(hours=-1))
    with pytest.raises(ValueError, match="leaves no training after train_start"):
        TimeSplit.model_validate({"column": "t", "train_start": "2013-01-01", "valid_start": "2013-01-03", "purge": "2d"})
    with pytest.raises(ValueError, match="purge"):
        TimeSplit.model_validate({"column": "t", "valid_start": "2013-01-03", "purge": "soon"})


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(DataError, match=r"the valid split is empty \(3 rows, rule time\)"):
        hold_filled(TimeSplit(column="t", valid_start=datetime(2020, 1, 1)), {"train": 3, "valid": 0})


@given(keys=st.lists(st.text(max_size=3), max_size=30), more=st.lists(st.text(max_size=3), max_size=30))
def test_a_row_keeps_its_split_when_rows_come_where_the_rule_says_so(keys: list[str], more: list[str]) -> None:
    for rule in (GroupSplit(column="g"), HashSplit(columns=("g",)), HashSplit(columns=("g",), folds=3, fold=1)):
        assert is_lasting(rule)
        assert assign(rule, hashes(keys + more))[: len(keys)].tolist() == (assign(rule, hashes(keys)).tolist() if keys else [])
    moments = TimeSplit(column="t", valid_start=datetime(2020, 1, 1), purge=timedelta(days=1))
    assert is_lasting(moments)
    assert not any(map(is_lasting, (RandomSplit(), StratifiedSplit(), moments.model_copy(update={"folds": 3}))))


# ---------------------------------------------------------------------- folds

RULES = [
    RandomSplit(test=0.2),
    StratifiedSplit(test=0.2),
    GroupSplit(column="g", test=0.2),
    HashSplit(columns=("g",), test=0.2),
]


def keys_for(rule: Any, labels: np.ndarray) -> np.ndarray:
    return hashes([f"{label}{i}" for i, label in enumerate(labels)]) if isinstance(rule, GroupSplit | HashSplit) else labels


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.kind)
@settings(max_examples=20)
@given(st.integers(2, 6), st.integers(0, 3), st.integers(100, 300))
def test_each_row_outside_test_validates_once_and_test_stays_the_same(rule: Any, k: int, seed: int, rows: int) -> None:
    labels = np.random.default_rng(seed).choice(list("abc"), rows)
    keys = keys_for(rule, labels)
    plans = [assign(rule.model_copy(update={"folds": k, "fold": i, "seed": seed}), keys) for i in range(k)]
    test = assign(rule.model_copy(update={"seed": seed}), keys) == 2
    assert all(np.array_equal(codes == 2, test) for codes in plans)
    assert np.array_equal(sum((codes == 1).astype(int) for codes in plans), ~test)
    assert all(set(codes[~test]) == {0, 1} for codes in plans)


def test_stratified_folds_are_those_of_scikit_learn_to_a_row() -> None:
    labels = np.random.default_rng(0).choice(list("abcd"), 1_003, p=[0.6, 0.3, 0.09, 0.01])
    ours = folds(StratifiedSplit(), labels, 5)
    for i, (_, theirs) in enumerate(StratifiedKFold(5, shuffle=True, random_state=0).split(labels, labels)):
        assert abs(np.sum(ours == i) - len(theirs)) <= 1
        for label in "abcd":
            assert abs(np.sum(labels[ours == i] == label) - np.sum(labels[theirs] == label)) <= 1


def test_group_folds_are_disjoint_as_scikit_learns_and_near_its_sizes() -> None:
    groups = np.random.default_rng(0).integers(0, 2_000, 20_000).astype(str)
    ours = folds(GroupSplit(column="g"), hashes(list(groups)), 5)
    for i, (train, valid) in enumerate(GroupKFold(5).split(groups, groups=groups)):
        assert not set(groups[ours == i]) & set(groups[ours != i])
        assert not set(groups[train]) & set(groups[valid])
        assert np.mean(ours == i) == pytest.approx(len(valid) / len(groups), abs=0.03)


def test_time_folds_are_the_expanding_windows_of_scikit_learn() -> None:
    keys = hours(*range(120))
    rule = TimeSplit(column="t", valid_start="2013-01-02T00:00:00", folds=4)  # the first 24 of 120 hours only train
    for i, (train, valid) in enumerate(TimeSeriesSplit(4).split(keys)):
        codes = assign(rule.model_copy(update={"fold": i}), keys)
        assert np.flatnonzero(codes == 0).tolist() == train.tolist()
        assert np.flatnonzero(codes == 1).tolist() == valid.tolist()


def test_time_folds_keep_the_gap_of_scikit_learn() -> None:
    keys = hours(*range(120))
    rule = TimeSplit.model_validate({"column": "t", "valid_start": "2013-01-02", "folds": 4, "purge": "5h"})
    for i, (train, valid) in enumerate(TimeSeriesSplit(4, gap=5).split(keys)):
        codes = assign(rule.model_copy(update={"fold": i}), keys)
        assert np.flatnonzero(codes == 0).tolist() == train.tolist()
        assert np.flatnonzero(codes == 1).tolist() == valid.tolist()
        assert np.sum(codes == PURGED) == 5


@settings(max_examples=60)
@given(st.lists(st.integers(0, 40), min_size=12, max_size=80), st.integers(2, 4))
def test_time_folds_never_train_on_the_future_nor_part_a_moment(offsets: list[int], k: int) -> None:
    keys = hours(*offsets)
    rule = TimeSplit(column="t", valid_start="2013-01-01T08:00:00", valid_end="2013-01-02T10:00:00")
    inside = {hour for hour in offsets if 8 <= hour < 34}
    if len(inside) < k:
        with pytest.raises(DataError, match="different moments"):
            folds(rule, keys, k)
        return
    codes = folds(rule, keys, k)
    assert set(codes[codes != OUTSIDE]) == set(range(k))
    windows = [keys[codes == i] for i in range(k)]
    assert all(earlier.max() < later.min() for earlier, later in pairwise(windows))


def test_a_column_can_number_the_folds() -> None:
    keys = np.array(["0", "1", "2", "test", "0"])
    assert assign(ColumnSplit(column="s", folds=3, fold=2), keys).tolist() == [0, 0, 1, 2, 0]
    with pytest.raises(DataError, match=r"holds '2'; expected a fold from 0 to 1"):
        assign(ColumnSplit(column="s", folds=2), keys)


def test_a_fold_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match=r"fold is 3; expected less than folds \(3\)"):
        RandomSplit(folds=3, fold=3)
    with pytest.raises(ValueError, match="not set"):
        RandomSplit(fold=1)
