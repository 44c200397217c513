"""Missing numbers predicted from others, beside scikit-learn's BayesianRidge and IterativeImputer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer
from sklearn.linear_model import BayesianRidge

from raymlp.config.features import ColumnFeatures, Features
from raymlp.config.problem import Problem
from raymlp.core.errors import ConfigError
from raymlp.data.profile import Profile
from raymlp.features.plan import FeaturePlan
from raymlp.features.regression import bayesian_ridge
from raymlp.features.steps import Number

PROBLEM = Problem(name="p", task="regression", target="y")
RNG = np.random.default_rng(3)


def plan_of(folder: Path, table: pa.Table, problem: Problem = PROBLEM, **features: Any) -> FeaturePlan:
    pq.write_table(table, folder / "part-0.parquet", row_group_size=200)
    rules = Features(**{"impute": "model", "scaling": "none", "missing_indicators": False, **features})
    return FeaturePlan.fit(rules, problem, Profile().update(table), files=[str(folder / "part-0.parquet")])


def correlated(rows: int = 800) -> dict[str, np.ndarray[Any, Any]]:
    a, b = RNG.integers(0, 30, rows) / 2, RNG.integers(0, 40, rows) * 1.5
    c = np.round(3 * a - 0.5 * b + RNG.normal(0, 2, rows), 1)
    return {"a": a, "b": b, "c": np.where(RNG.random(rows) < 0.3, np.nan, c), "y": RNG.normal(size=rows)}


def number(plan: FeaturePlan, name: str) -> Number:
    return next(step for step in plan.numbers if isinstance(step, Number) and step.column == name)


def test_weights_are_those_of_scikit_learn() -> None:
    x = RNG.normal(size=(300, 5)) @ RNG.normal(size=(5, 5))
    y = x @ [1.0, -2.0, 0.0, 0.5, 0.0] + RNG.normal(0, 3, 300)
    x, y = x - x.mean(axis=0), y - y.mean()
    reference = BayesianRidge(tol=1e-10, max_iter=1_000).fit(x, y)
    weights, explained = bayesian_ridge(x.T @ x, x.T @ y, float(y @ y), 300)
    assert weights == pytest.approx(reference.coef_, rel=1e-4, abs=1e-5)
    assert explained == pytest.approx(reference.score(x, y), abs=1e-6)


def test_a_missing_number_is_what_one_round_of_scikit_learns_imputer_gives(tmp_path: Path) -> None:
    columns = correlated()
    table = pa.table({name: pa.array(values, from_pandas=True) for name, values in columns.items()})
    plan = plan_of(tmp_path, table)
    matrix = np.stack([columns[name] for name in "abc"], axis=1)
    low, high = np.nanmin(matrix, axis=0), np.nanmax(matrix, axis=0)
    imputer = IterativeImputer(max_iter=1, initial_strategy="median", min_value=low, max_value=high, tol=0.0, skip_complete=True)
    with pytest.warns(UserWarning, match="Early stopping|converge"):
        expected = imputer.fit_transform(matrix)
    found = plan.transform(table)["numeric"]
    missing = np.isnan(columns["c"])
    assert found[missing, 2] == pytest.approx(expected[missing, 2], abs=0.01)
    assert np.std(found[missing, 2] - np.nanmedian(columns["c"])) > 10
    odd = np.array([[4.0, np.nan, np.nan], [1e9, 0.0, np.nan]])
    given = pa.table({name: pa.array(odd[:, i], pa.float64(), from_pandas=True) for i, name in enumerate("abc")})
    assert plan.transform(given)["numeric"][1, 2] == np.float32(high[2])
    assert plan.transform(given)["numeric"][0, 2] == pytest.approx(imputer.transform(odd)[0, 2], abs=0.05)


def test_a_line_without_noise_is_found_and_the_weights_are_plain_numbers(tmp_path: Path) -> None:
    a = np.arange(100.0)
    table = pa.table({"a": a, "b": pa.array(np.where(a % 4 == 0, np.nan, 7 - 2 * a), from_pandas=True), "y": RNG.normal(size=100)})
    plan = plan_of(tmp_path, table)
    regression = number(plan, "b").regression
    assert regression is not None
    (term,) = regression.terms
    assert (term.column, term.weight) == ("a", pytest.approx(-2, abs=1e-4))
    assert (regression.low, regression.high) == (7 - 2 * 99, 5)
    row = plan.row_executor()
    assert row({"a": 20.0, "b": None})["numeric"] == [20.0, pytest.approx(-33, abs=1e-3)]
    assert row({"a": -50.0, "b": None})["numeric"] == [-50.0, 5.0]
    assert row({"a": None, "b": None})["numeric"][1] == pytest.approx(7 - 2 * 49.5, abs=1e-3)
    assert "explains 100% of the variance of 75 sampled rows" in plan.reasons["b"]


def test_a_number_never_missing_in_training_is_predicted_too(tmp_path: Path) -> None:
    a = np.arange(60.0)
    plan = plan_of(tmp_path, pa.table({"a": a, "b": 3 * a, "y": a % 7}))
    assert "predicted by a regression on 1 numbers" in plan.reasons["a"]
    assert plan.row_executor()({"a": None, "b": 30.0})["numeric"][0] == pytest.approx(10, abs=1e-3)


def test_without_another_number_the_median_stands_in_and_the_plan_says_so(tmp_path: Path) -> None:
    table = pa.table({"a": [1.0, 2.0, 9.0, None] * 20, "k": ["u", "v"] * 40, "y": [1.0, 2.0] * 40})
    plan = plan_of(tmp_path, table)
    assert number(plan, "a").regression is None
    assert "a missing value is the median: the sample has no other number" in plan.reasons["a"]
    assert plan.row_executor()({"a": None, "k": "u"})["numeric"] == [2.0]


def test_one_column_may_be_predicted_while_the_others_are_not(tmp_path: Path) -> None:
    table = pa.table({name: pa.array(values, from_pandas=True) for name, values in correlated().items()})
    plan = plan_of(tmp_path, table, impute="mean", columns={"c": ColumnFeatures(impute="model")})
    assert number(plan, "c").regression is not None
    assert number(plan, "a").regression is None
    assert plan.inputs == ["a", "b", "c"]


def test_of_many_columns_those_that_correlate_most_are_used(tmp_path: Path) -> None:
    noise = {f"n{i:02}": RNG.normal(size=400) for i in range(40)}
    x = RNG.normal(size=400)
    columns = {**noise, "n17": x + RNG.normal(0, 0.1, 400), "x": x, "y": RNG.normal(size=400)}
    plan = plan_of(tmp_path, pa.table(columns))
    regression = number(plan, "x").regression
    assert regression is not None
    used = [term.column for term in regression.terms]
    strength = {name: abs(np.corrcoef(values, x)[0, 1]) for name, values in columns.items() if name not in ("x", "y")}
    assert used == sorted(sorted(strength, key=lambda name: -strength[name])[:25])
    assert max(regression.terms, key=lambda term: abs(term.weight)).column == "n17"


def test_the_sample_is_bounded_and_the_same_every_time(tmp_path: Path) -> None:
    table = pa.table({name: pa.array(values, from_pandas=True) for name, values in correlated().items()})
    plans = [plan_of(tmp_path, table, sample_rows=100) for _ in range(2)]
    assert plans[0] == plans[1]
    assert "of 100 sampled rows" in plans[0].reasons["a"]


def test_a_profile_alone_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"features.impute=model reads the training rows"):
        FeaturePlan.fit(Features(impute="model"), PROBLEM, Profile().update(pa.table(correlated())))


def test_on_california_housing_it_is_nearer_than_the_median(real_data: Path, tmp_path: Path) -> None:
    table = pyarrow.csv.read_csv(real_data / "california_housing" / "housing.csv")
    problem = Problem(name="p", task="regression", target="median_house_value")
    for name, share in (("total_bedrooms", 0.3), ("households", 0.3), ("latitude", 0.6)):
        truth = table.column(name).to_numpy(zero_copy_only=False)
        hidden = (np.arange(table.num_rows) % 5 == 0) & ~np.isnan(truth)
        place = table.column_names.index(name)
        holed = table.set_column(place, name, pa.array(truth, mask=hidden | np.isnan(truth)))
        plan = plan_of(tmp_path, holed, problem)
        found = plan.transform(holed.filter(pa.array(hidden)))["numeric"][:, place]
        from_median = np.abs(np.median(truth[~hidden & ~np.isnan(truth)]) - truth[hidden]).mean()
        assert np.abs(found - truth[hidden]).mean() < share * from_median


odd = st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0, 1e-300, 1e300, -1e300])
PLANS: dict[str, FeaturePlan] = {}


@settings(max_examples=300)
@given(rows=st.lists(st.fixed_dictionaries({"a": odd, "b": odd, "c": odd}), min_size=1, max_size=4))
def test_batch_and_row_agree_to_the_last_bit_on_odd_rows(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> None:
    if not PLANS:
        table = pa.table({name: pa.array(values, from_pandas=True) for name, values in correlated().items()})
        PLANS["plan"] = plan_of(tmp_path_factory.mktemp("odd"), table)
    table = pa.table({name: pa.array([row[name] for row in rows], pa.float64()) for name in "abc"})
    for name in "abc":
        regression = number(PLANS["plan"], name).regression
        assert regression is not None
        assert [regression.one()(row) for row in rows] == regression.batch(table).tolist()
