"""The executors agree, on odd rows too; and each step gives the value worked out by hand."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymlp.config.features import Features
from raymlp.config.problem import Problem
from raymlp.core.errors import BundleError, ConfigError, DataError
from raymlp.data.contract import Contract
from raymlp.data.contract_row import table_of
from raymlp.data.profile import Profile
from raymlp.features.ids import FIRST, MISSING, UNSEEN
from raymlp.features.plan import FeaturePlan
from raymlp.features.reading import number_reader, numbers

PROBLEM = Problem(name="p", task="binary", target="y")


def training_table(rows: int = 400) -> pa.Table:
    rng = np.random.default_rng(0)
    start = datetime(2013, 1, 1, tzinfo=UTC).timestamp()
    times = [datetime.fromtimestamp(start + float(s), UTC) for s in rng.integers(0, 3e7, rows)]
    return pa.table(
        {
            "x": rng.normal(5, 2, rows),
            "gap": pa.array(rng.exponential(3, rows), mask=rng.random(rows) < 0.2),
            "n": rng.integers(0, 9, rows),
            "k": pa.array(rng.choice(["a", "b", "c"], rows, p=[0.6, 0.3, 0.1]), mask=rng.random(rows) < 0.1),
            "flag": rng.random(rows) < 0.5,
            "t": pa.array(times, pa.timestamp("us", tz="UTC")),
            "same": ["only"] * rows,
            "name": [f"row-{i}" for i in range(rows)],
            "y": rng.choice(["no", "yes"], rows),
        }
    )


TABLE = training_table()
PROFILE = Profile().update(TABLE)
PLANS = {
    scaling: FeaturePlan.fit(
        Features(scaling=scaling, dates={"t": ("month", "day", "weekday", "hour", "minute", "dayofyear", "epoch_days")}), PROBLEM, PROFILE
    )
    for scaling in ("standard", "quantile")
}
CONTRACT = Contract.infer(PROFILE).only(PLANS["standard"].inputs)
OPEN = Contract(
    columns={name: rule.model_copy(update={"nullable": True, "minimum": None, "maximum": None}) for name, rule in CONTRACT.columns.items()}
)

odd_numbers = st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0, 1e-300, 1e300, 5.0])
odd_row = st.fixed_dictionaries(
    {
        "x": odd_numbers,
        "gap": odd_numbers,
        "n": st.none() | st.integers(-(2**63), 2**63 - 1),
        "k": st.none() | st.sampled_from(["a", "b", "c", "d", "", "A"]) | st.text(st.characters(codec="utf-8"), max_size=4),
        "flag": st.none() | st.booleans(),
        "t": st.none() | st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)),
    }
)


@pytest.mark.parametrize("scaling", PLANS)
@settings(max_examples=300)
@given(rows=st.lists(odd_row, min_size=1, max_size=4))
def test_batch_and_single_row_agree_on_odd_rows(scaling: str, rows: list[dict[str, Any]]) -> None:
    plan, run = PLANS[scaling], PLANS[scaling].row_executor()
    batch = plan.transform(table_of(rows, OPEN))
    assert batch["numeric"].dtype == np.float32
    assert batch["categorical"].dtype == np.int64
    assert batch["numeric"].shape == (len(rows), plan.num_numeric)
    for i, row in enumerate(rows):
        alone = run(row)
        assert np.array(alone["numeric"], np.float32) == pytest.approx(batch["numeric"][i], rel=1e-6, abs=1e-6)
        assert alone["categorical"] == batch["categorical"][i].tolist()


def test_a_plan_from_json_gives_equal_tensors() -> None:
    for plan in PLANS.values():
        back = FeaturePlan.from_json(plan.model_dump_json())
        for name, values in plan.transform(TABLE).items():
            assert np.array_equal(values, back.transform(TABLE)[name])
    with pytest.raises(BundleError, match="cannot be read"):
        FeaturePlan.from_json('{"version": 2}')


def test_standard_scaling_gives_mean_zero_and_deviation_one() -> None:
    plan = PLANS["standard"]
    names = [name for step in plan.numbers for name in step.names]
    x = plan.transform(TABLE)["numeric"][:, names.index("x")]
    assert (x.mean(), x.std()) == (pytest.approx(0, abs=1e-5), pytest.approx(1, abs=1e-5))


def test_missing_numbers_are_filled_with_the_median_and_flagged() -> None:
    plan = PLANS["standard"]
    names = [name for step in plan.numbers for name in step.names]
    out = plan.transform(TABLE)["numeric"]
    missing = TABLE.column("gap").is_null().to_numpy()
    assert np.array_equal(out[:, names.index("gap_missing")] == 1.0, missing)
    step = next(step for step in plan.numbers if step.column == "gap")
    known = TABLE.column("gap").drop_null().to_numpy()
    assert step.fill == pytest.approx(float(np.median(known)), rel=0.05)
    assert "x_missing" not in names


def test_quantile_scaling_is_monotone_flat_beyond_and_normal_in_between() -> None:
    plan = PLANS["quantile"]
    scale = next(step for step in plan.numbers if step.column == "x").scaler
    points = np.linspace(-50, 60, 500)
    heights = scale.batch(points)
    assert np.all(np.diff(heights) >= 0)
    assert heights[0] == heights[1]
    assert heights[-1] == heights[-2]
    assert scale.batch(TABLE.column("x").to_numpy()).std() == pytest.approx(1, abs=0.05)


def test_categories_have_slots_for_unseen_and_missing() -> None:
    plan = FeaturePlan.fit(Features(categorical=("k", "n"), numeric=(), dates={}, drop=("flag",), min_count=1), PROBLEM, PROFILE)
    step = next(step for step in plan.categories if step.column == "k")
    assert step.vocabulary == ("a", "b", "c")
    table = pa.table({"k": ["a", "z", None], "n": [100, None, 0]})
    ids = plan.transform(table)["categorical"]
    assert ids[:, 1].tolist() == [FIRST, UNSEEN, MISSING]
    assert ids[:2, 0].tolist() == [UNSEEN, MISSING]


def test_rare_categories_share_the_unseen_slot() -> None:
    plan = FeaturePlan.fit(Features(min_count=80), PROBLEM, PROFILE)
    assert next(step for step in plan.categories if step.column == "k").vocabulary == ("a", "b")
    plan = FeaturePlan.fit(Features(max_categories=1), PROBLEM, PROFILE)
    assert next(step for step in plan.categories if step.column == "k").vocabulary == ("a",)


def test_date_parts_of_a_known_moment() -> None:
    moment = datetime(2013, 7, 4, 23, 5, tzinfo=UTC)
    plan = PLANS["standard"]
    ids = plan.row_executor()({"x": 0.0, "gap": 0.0, "n": 0, "k": "a", "flag": True, "t": moment})["categorical"]
    named = dict(zip([step.name for step in plan.categories], ids, strict=True))
    texts = {step.name: step.vocabulary for step in plan.categories}
    read = {name: texts[name][index - FIRST] for name, index in named.items() if name.startswith("t_")}
    assert read == {"t_month": "7", "t_day": "4", "t_weekday": "3", "t_hour": "23", "t_minute": "5"}


def test_a_moment_just_before_a_midnight_before_1970_is_on_its_own_day() -> None:
    moment = datetime(1969, 1, 1, 23, 59, 59, 1, tzinfo=UTC)
    days = numbers(pa.chunked_array([pa.array([moment, None], pa.timestamp("us", "UTC"))]), "epoch_days")
    assert days[0] == number_reader("epoch_days")(moment) == -365
    assert np.isnan(days[1])


def test_reasons_say_what_is_left_out_and_why() -> None:
    reasons = PLANS["standard"].reasons
    assert reasons["y"] == "left out: the target"
    assert reasons["same"] == "left out: constant in training"
    assert reasons["name"].startswith("left out: id-like")
    assert reasons["x"] == "type float"


def test_columns_known_after_the_answer_ids_and_sensitive_ones_are_no_features() -> None:
    problem = PROBLEM.model_copy(update={"known_after": ("x",), "id_columns": ("n",), "sensitive": ("flag",)})
    inputs = FeaturePlan.fit(Features(), problem, PROFILE).inputs
    assert not {"x", "n", "flag"} & set(inputs)
    assert "flag" in FeaturePlan.fit(Features(categorical=("flag",)), problem, PROFILE).inputs


@pytest.mark.parametrize(
    ("features", "words"),
    [
        (Features(numeric=("xx",)), "features.numeric names 'xx'.*Did you mean 'x'"),
        (Features(numeric=("k",)), "holds text"),
        (Features(categorical=("x",)), "holds float"),
        (Features(dates={"x": ("hour",)}), "holds float values; expected timestamps"),
        (Features(drop=("x", "gap", "n", "k", "flag", "t")), "no column is left"),
    ],
)
def test_a_wrong_feature_setting_is_explained(features: Features, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        FeaturePlan.fit(features, PROBLEM, PROFILE)


@pytest.mark.parametrize(
    ("problem", "values", "error", "words"),
    [
        (PROBLEM, ["no"] * 5, DataError, "has one class"),
        (PROBLEM, [None, None], DataError, "has no value"),
        (PROBLEM, ["a", "b", "c"], ConfigError, "positive_class is not set; expected one of a, b, c"),
        (Problem(name="p", task="binary", target="y", positive_class="yess"), ["yes", "no"], ConfigError, "Did you mean 'yes'"),
        (Problem(name="p", task="binary", target="y", positive_above=9), [1.0, 2.0], DataError, "one side of 9"),
        (Problem(name="p", task="regression", target="y"), ["a", "b"], ConfigError, "regression expects numbers"),
        (Problem(name="p", task="regression", target="y"), [1.0, 1.0], DataError, "constant"),
        (Problem(name="p", task="multiclass", target="z"), ["a", "b"], DataError, "no column 'z'"),
    ],
)
def test_a_target_that_cannot_be_learned_is_refused(problem: Problem, values: list[Any], error: type[Exception], words: str) -> None:
    kind = pa.string() if values[0] is None else None
    profile = Profile().update(pa.table({"y": pa.array(values, kind), "x": list(map(float, range(len(values))))}))
    with pytest.raises(error, match=words):
        FeaturePlan.fit(Features(), problem, profile)


def test_targets_are_read_as_numbers() -> None:
    plan = PLANS["standard"]
    assert plan.target.classes == ("no", "yes")
    assert plan.target.read(pa.chunked_array([["yes", "no", "other"]])).tolist() == [1.0, 0.0, 0.0]
    late = FeaturePlan.fit(Features(), Problem(name="p", task="binary", target="n", positive_above=4), PROFILE).target
    read = late.read(pa.chunked_array([pa.array([5, 4, None])]))
    assert read[:2].tolist() == [1.0, 0.0]
    assert math.isnan(read[2])
    value = FeaturePlan.fit(Features(), Problem(name="p", task="regression", target="x"), PROFILE).target
    assert value.scaled(value.read(TABLE.column("x"))).std() == pytest.approx(1, abs=1e-5)
    many = FeaturePlan.fit(Features(), Problem(name="p", task="multiclass", target="k"), PROFILE).target
    assert many.read(pa.chunked_array([["b", "zzz"]])).tolist() == [1.0, -1.0]
