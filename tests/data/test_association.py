"""How columns move with the target and with each other: against pandas, SciPy and hand-worked cases."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats.contingency import association as scipy_association

from raymlp.config.problem import Problem
from raymlp.core.files import to_json
from raymlp.data.association import Association, Outline, correlation_ratio, cramers_v, merged_associations
from raymlp.data.profile import Profile
from raymlp.data.target import Target

BINARY = Problem(name="p", task="binary", target="y", positive_class="true")


def table_of(rows: int = 3_000, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    a = rng.normal(1e6, 2.0, rows)
    b = 0.5 * a + rng.normal(size=rows)
    kind = rng.choice(["x", "y", "z", None], rows, p=[0.5, 0.3, 0.1, 0.1])
    return pa.table({
        "a": pa.array(a, mask=rng.random(rows) < 0.2),
        "b": pa.array(b, mask=rng.random(rows) < 0.1),
        "few": rng.integers(0, 4, rows),
        "kind": pa.array(kind.tolist(), pa.string()),
        "y": rng.random(rows) < np.where(kind == "x", 0.8, 0.3).astype(float),
    })  # fmt: skip


def outline_of(table: pa.Table, problem: Problem = BINARY) -> Outline:
    profile = Profile().update(table)
    return Outline.of(profile, Target.fit(problem, profile))


def test_correlations_are_those_of_pandas_on_the_rows_that_have_both_values() -> None:
    table = table_of()
    names, r, rows = Association(outline_of(table)).update(table).correlations()
    frame = table.select(names).to_pandas()
    assert names == ["a", "b", "few"]
    assert r == pytest.approx(frame.corr().to_numpy(), abs=1e-9)
    assert rows[0, 1] == (frame.a.notna() & frame.b.notna()).sum()


def test_the_target_by_bin_is_what_a_group_by_gives() -> None:
    table = table_of()
    found = Association(outline_of(table)).update(table)
    frame = table.to_pandas()
    by_kind = frame.groupby(frame.kind.fillna("missing")).y.agg(["mean", "size"])
    answers = {answer.bin if answer.of == "values" else answer.of: answer for answer in found.answers("kind")}
    assert {name: answer.rows for name, answer in answers.items()} == by_kind["size"].to_dict()
    assert {name: answer.mean for name, answer in answers.items()} == pytest.approx(by_kind["mean"].to_dict())
    edges = [-np.inf, *found.outline.edges["a"], np.inf]
    by_a = frame.groupby(pd.cut(frame.a, edges), observed=True).y.mean()
    *known, missing = found.answers("a")
    assert [answer.mean for answer in known] == pytest.approx(by_a.to_list())
    assert (missing.of, missing.rows) == ("missing", int(frame.a.isna().sum()))
    assert [answer.bin for answer in found.answers("few")] == [0.0, 1.0, 2.0, np.inf]


def test_an_interval_is_two_standard_errors_wide() -> None:
    table = pa.table({"kind": ["x"] * 100, "y": [True] * 20 + [False] * 80})
    (answer,) = Association(outline_of(table)).update(table).answers("kind")
    error = np.sqrt(0.2 * 0.8 * 100 / 99 / 100)
    assert (answer.mean, answer.low, answer.high) == pytest.approx((0.2, 0.2 - 1.96 * error, 0.2 + 1.96 * error))


@settings(max_examples=25)
@given(cuts=st.lists(st.integers(0, 400), max_size=4), seed=st.integers(0, 20))
def test_parts_in_any_grouping_give_what_one_pass_gives(cuts: list[int], seed: int) -> None:
    table = table_of(400, seed)
    outline = outline_of(table)
    whole = Association(outline).update(table)
    places = [0, *sorted(cuts), 400]
    parts = [Association(outline).update(table.slice(start, end - start)) for start, end in pairwise(places)]
    again = [Association.from_json(to_json(part.to_dict())) for part in parts]
    found = merged_associations(again)
    assert found.outline == outline
    assert found.pairs == pytest.approx(whole.pairs, abs=1e-9)
    assert all(found.tables[name] == pytest.approx(whole.tables[name], abs=1e-9) for name in whole.tables)


@pytest.mark.parametrize("task", ["regression", "multiclass"])
def test_other_tasks_keep_what_the_page_shows(task: str) -> None:
    rng = np.random.default_rng(3)
    kind = rng.choice(["x", "y"], 2_000)
    answer: Any = np.where(kind == "x", 50.0, 10.0) + rng.normal(size=2_000) if task == "regression" else np.where(kind == "x", "p", "q")
    table = pa.table({"kind": kind, "noise": rng.normal(size=2_000), "y": answer})
    problem = Problem(name="p", task=task, target="y")  # type: ignore[arg-type]
    found = Association(outline_of(table, problem)).update(table)
    x = next(answer for answer in found.answers("kind") if answer.bin == "x")
    assert found.strength("kind") > 0.98
    assert found.strength("noise") < 0.1
    if task == "regression":
        assert x.mean == pytest.approx(float(np.mean(table.column("y").to_numpy()[kind == "x"])))
    else:
        assert x.shares[found.outline.classes.index(0)] == 1.0


def test_the_correlation_ratio_by_hand() -> None:
    answers = np.array([1.0, 2.0, 3.0, 7.0, 8.0, 9.0])
    groups = [answers[:3], answers[3:]]
    sums = np.array([[len(g), g.sum(), (g * g).sum()] for g in groups] + [[0, 0, 0]])
    eta = 54 / 58
    assert correlation_ratio(sums) == pytest.approx(np.sqrt(1 - (1 - eta) * 5 / 4))
    assert np.isnan(correlation_ratio(np.zeros((3, 3))))


def test_cramers_v_is_close_to_scipys_on_many_rows_and_corrected_on_few() -> None:
    table = np.array([[500.0, 100.0, 50.0], [80.0, 700.0, 90.0], [0.0, 0.0, 0.0]])
    assert cramers_v(table) == pytest.approx(scipy_association(table[:2].astype(int)), abs=2e-3)
    assert cramers_v(np.full((5, 4), 2.0)) == 0.0
    assert np.isnan(cramers_v(np.array([[3.0, 4.0]])))


def test_a_column_without_values_or_variation_gets_no_correlation() -> None:
    table = pa.table({"none": pa.nulls(10, pa.float64()), "same": [3.0] * 10, "y": [True, False] * 5})
    found = Association(outline_of(table)).update(table)
    assert found.correlations()[0] == []
    assert found.outline.columns == ["same"]
    assert np.isnan(found.strength("same")) or found.strength("same") == 0
