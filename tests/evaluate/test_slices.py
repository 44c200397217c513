"""Slices: which groups there are, and what is said of each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raymlp.core.metrics import SHUFFLED
from raymlp.evaluate.slices import MAX_VALUES, MISSING, groups, slices_of


def column(values: object) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values)])


def test_each_value_and_missing_is_a_group_largest_first() -> None:
    found = groups(column(["b", "a", None, "b"]))
    assert [(name, rows.tolist()) for name, rows in found] == [("b", [0, 3]), (MISSING, [2]), ("a", [1])]


def test_few_numbers_are_values_in_order_and_many_are_quarters() -> None:
    assert [name for name, _ in groups(column([10, 9, 10, 2]))] == ["2", "9", "10"]
    quarters = groups(column([float(i) for i in range(100)]))
    assert [len(rows) for _, rows in quarters] == [25, 25, 25, 25]
    assert quarters[0][0] == "0 to 24"


def test_quarters_keep_missing_apart_and_every_row_is_in_one_group() -> None:
    values = [None if i % 10 == 0 else float(min(i, 60)) for i in range(100)]
    found = groups(column(values))
    assert found[0][0] == MISSING
    assert sorted(np.concatenate([rows for _, rows in found]).tolist()) == list(range(100))


def test_only_the_largest_values_are_groups() -> None:
    names = [f"v{i}" for i in range(100) for _ in range(i + 1)]
    found = groups(column(names))
    assert (len(found), found[0][0]) == (MAX_VALUES, "v99")


def test_a_slice_says_rows_rates_and_the_metric_with_its_interval() -> None:
    rng = np.random.default_rng(0)
    sex = np.repeat(["f", "m", "rare"], [400, 500, 10])
    y = np.r_[np.tile([0.0, 1], 200), np.tile([0.0, 0, 0, 1, 1], 100), np.ones(10)]
    p = np.clip(y * 0.4 + 0.3 + rng.normal(0, 0.2, 910), 0, 1)
    table = pa.table({"sex": sex, "kind": np.repeat(["all"], 910)})
    found = slices_of(table, y, p, task="binary", metric="auc", plain=["kind", "sex"], sensitive=["sex"], min_rows=50, samples=50, seed=0)
    assert [(item["column"], item["value"], item["rows"], item["sensitive"]) for item in found] == [
        ("sex", "m", 500, True), ("sex", "f", 400, True), ("kind", "all", 910, False),
    ]  # fmt: skip
    assert found[0]["base_rate"] == pytest.approx(0.4)
    assert found[1]["selection_rate"] == pytest.approx(np.mean(p[:400] >= 0.5))
    assert found[2]["selection_rate"] is None
    assert found[0]["low"] <= found[0]["estimate"] <= found[0]["high"]


def test_a_slice_of_one_class_has_no_metric_and_is_no_error() -> None:
    table = pa.table({"g": ["a"] * 60})
    (found,) = slices_of(
        table, np.ones(60), np.full(60, 0.4), task="binary", metric="auc", plain=["g"], sensitive=[], min_rows=1, samples=10, seed=0
    )
    assert np.isnan(found["estimate"])


def test_made_up_rows_of_anomalies_are_not_counted() -> None:
    y, p = np.r_[np.full(30, np.nan), np.full(30, SHUFFLED)], np.r_[np.zeros(30), np.ones(30)]
    settings: dict[str, Any] = {"task": "anomaly", "metric": "shuffled_auc", "plain": ["g"], "sensitive": [], "samples": 10, "seed": 0}
    (found,) = slices_of(pa.table({"g": ["a"] * 60}), y, p, min_rows=30, **settings)
    assert (found["rows"], found["estimate"]) == (30, 1.0)
    assert slices_of(pa.table({"g": ["a"] * 60}), y, p, min_rows=31, **settings) == ()
