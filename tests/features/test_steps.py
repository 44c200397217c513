"""Every kind of step against a value worked out by hand or by scikit-learn, and both executors against one another."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import preprocessing
from sklearn.impute import SimpleImputer

from raymlp.config.features import ColumnFeatures, Features
from raymlp.config.loader import build_config, load_config
from raymlp.config.problem import Problem
from raymlp.core.errors import ConfigError
from raymlp.data.contract import Contract
from raymlp.data.contract_row import table_of
from raymlp.data.profile import Profile
from raymlp.features.ids import FIRST, MISSING, UNSEEN, Hashed
from raymlp.features.plan import FeaturePlan
from raymlp.features.steps import Lookup, OneHot
from raymlp.features.target import folds_of

PROBLEM = Problem(name="p", task="binary", target="y", positive_class="yes")
ROWS = 900
RNG = np.random.default_rng(0)
TABLE = pa.table(
    {
        "x": RNG.gamma(2.0, 3.0, ROWS),
        "gap": pa.array(RNG.normal(-4, 2, ROWS), mask=RNG.random(ROWS) < 0.2),
        "n": RNG.integers(0, 9, ROWS),
        "k": pa.array(RNG.choice(["a", "b", "c"], ROWS, p=[0.6, 0.3, 0.1]), mask=RNG.random(ROWS) < 0.1),
        "l": RNG.choice(["p", "q"], ROWS),
        "flag": pa.array(RNG.random(ROWS) < 0.5, mask=RNG.random(ROWS) < 0.05),
        "note": pa.array(RNG.choice(["", "ab", "ünï", "a longer one"], ROWS), mask=RNG.random(ROWS) < 0.1),
        "t": pa.array([datetime(2013, 1 + i % 12, 1 + i % 28, i % 24, tzinfo=UTC) for i in range(ROWS)], pa.timestamp("us", tz="UTC")),
        "y": RNG.choice(["no", "yes"], ROWS),
    }
)
PROFILE = Profile().update(TABLE)


def plan_of(**features: Any) -> FeaturePlan:
    return FeaturePlan.fit(Features(**{"min_count": 1, **features}), PROBLEM, PROFILE)


def outputs(plan: FeaturePlan, table: pa.Table = TABLE) -> dict[str, Any]:
    """Each numeric output and each id by its name."""
    tensors = plan.transform(table)
    names = [name for step in plan.numbers for name in step.names]
    numbers = dict(zip(names, tensors["numeric"].T, strict=True))
    return numbers | dict(zip([step.name for step in plan.categories], tensors["categorical"].T, strict=True))


X = TABLE.column("x").to_numpy()[:, None]


# ---------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("scaling", "reference", "close"),
    [
        ("standard", preprocessing.StandardScaler(), 1e-5),
        ("robust", preprocessing.RobustScaler(), 1e-2),
        ("minmax", preprocessing.MinMaxScaler(), 1e-6),
        ("yeo_johnson", preprocessing.PowerTransformer("yeo-johnson"), 2e-2),
        ("quantile", preprocessing.QuantileTransformer(n_quantiles=100, output_distribution="normal"), 0.1),
    ],
)
def test_scaling_is_that_of_scikit_learn(scaling: str, reference: Any, close: float) -> None:
    expected = reference.fit_transform(X)[:, 0]
    middle = (X[:, 0] > np.quantile(X, 0.02)) & (X[:, 0] < np.quantile(X, 0.98))
    assert outputs(plan_of(scaling=scaling))["x"][middle] == pytest.approx(expected[middle], abs=close)


def test_log_scaling_keeps_the_sign_and_is_standardised() -> None:
    gap = TABLE.column("gap").to_numpy(zero_copy_only=False)
    logs = np.sign(gap) * np.log1p(np.abs(gap))
    expected = (logs - np.nanmean(logs)) / np.nanstd(logs)
    known = ~np.isnan(gap)
    assert outputs(plan_of(scaling="log"))["gap"][known] == pytest.approx(expected[known], abs=0.02)


def test_no_scaling_leaves_numbers_as_they_are() -> None:
    assert outputs(plan_of(scaling="none"))["x"] == pytest.approx(X[:, 0], rel=1e-6)


def test_piecewise_encoding_of_a_hand_worked_column() -> None:
    table = pa.table({"x": [0.0, 10.0, 20.0, 30.0, 40.0], "y": ["no", "yes", "no", "yes", "no"]})
    plan = FeaturePlan.fit(Features(scaling="piecewise", bins=2), PROBLEM, Profile().update(table))
    assert plan.numbers[0].names == ("x_0", "x_1")
    odd = plan.transform(pa.table({"x": [-10.0, 0.0, 5.0, 20.0, 30.0, 40.0, 60.0]}))["numeric"]
    assert odd.tolist() == [[-0.5, 0], [0, 0], [0.25, 0], [1, 0], [1, 0.5], [1, 1], [1, 2]]


@pytest.mark.parametrize(("impute", "strategy"), [("mean", "mean"), ("median", "median"), ("most_frequent", "most_frequent")])
def test_missing_numbers_are_filled_as_scikit_learn_does(impute: str, strategy: str) -> None:
    values = np.array([1.0, 1.0, 2.0, 5.0, 9.5, np.nan])
    table = pa.table({"x": pa.array(values, from_pandas=True), "y": ["no", "yes"] * 3})
    plan = FeaturePlan.fit(Features(impute=impute, scaling="none"), PROBLEM, Profile().update(table))
    expected = SimpleImputer(strategy=strategy).fit_transform(values[:, None])[-1, 0]
    assert plan.transform(table)["numeric"][-1].tolist() == [pytest.approx(expected), 1.0]


def test_a_constant_fills_what_is_missing_and_the_indicator_can_be_left_out() -> None:
    plan = plan_of(columns={"gap": {"impute": "constant", "fill": 7.5, "scaling": "none", "missing_indicators": False}})
    found = outputs(plan)
    missing = TABLE.column("gap").is_null().to_numpy()
    assert set(found["gap"][missing]) == {7.5}
    assert "gap_missing" not in found


def test_a_most_frequent_value_that_no_row_shares_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"features.columns.x.impute is most_frequent, and no value comes twice"):
        plan_of(columns={"x": {"impute": "most_frequent"}})


def test_numbers_are_cut_by_quantiles_or_deviations() -> None:
    low, high = np.quantile(X, [0.05, 0.9])
    cut = outputs(plan_of(columns={"x": {"clip": (0.05, 0.9), "scaling": "none"}}))["x"]
    assert (cut.min(), cut.max()) == (pytest.approx(low, abs=0.05), pytest.approx(high, abs=0.05))
    scaled = outputs(plan_of(columns={"x": {"clip": (0.05, 0.9)}}))["x"]
    assert (scaled.mean(), scaled.std()) == (pytest.approx(0, abs=0.01), pytest.approx(1, abs=0.01))
    narrow = outputs(plan_of(columns={"x": {"clip_deviations": 1.0, "scaling": "none"}}))["x"]
    assert (narrow.min(), narrow.max()) == (pytest.approx(X.mean() - X.std(), rel=1e-5), pytest.approx(X.mean() + X.std(), rel=1e-5))


def test_bins_of_equal_shares_become_a_category() -> None:
    plan = plan_of(columns={"x": {"scaling": "bucketise", "bins": 4}})
    ids = outputs(plan)["x_bucket"]
    assert np.bincount(ids, minlength=FIRST + 4)[FIRST:] == pytest.approx([ROWS / 4] * 4, abs=3)
    assert outputs(plan, TABLE.set_column(0, "x", pa.nulls(ROWS, pa.float64())))["x_bucket"].tolist() == [MISSING] * ROWS


def test_auto_straightens_what_is_skewed_and_says_why() -> None:
    rng = np.random.default_rng(1)
    table = pa.table(
        {
            "plain": rng.normal(size=4_000),
            "skewed": rng.exponential(size=4_000) ** 1.5,
            "tailed": rng.standard_t(1.2, size=4_000),
            "many": [f"v{i % 700}" for i in range(4_000)],
            "y": rng.choice(["no", "yes"], 4_000),
        }
    )
    plan = FeaturePlan.fit(
        load_config("flights", ["features=auto"]).features.model_copy(update={"categorical": None, "dates": None}),
        PROBLEM,
        Profile().update(table),
    )
    kinds = {step.columns[0]: step.scaler.kind for step in plan.numbers}
    assert kinds == {"plain": "standard", "skewed": "yeo_johnson", "tailed": "quantile"}
    assert plan.reasons["skewed"].startswith("type float; yeo_johnson scaling: skewness 0.")
    assert plan.reasons["many"] == "type string; hash: 700 distinct values, 256 kept at most"
    assert isinstance(plan.categories[0], Hashed)


# ---------------------------------------------------------------------- categories and dates


def test_one_hot_is_that_of_scikit_learn_with_a_slot_for_missing() -> None:
    plan = plan_of(encoding="onehot", numeric=(), dates={}, drop=("l", "flag", "note"))
    (step,) = plan.numbers
    assert isinstance(step, OneHot)
    assert step.names == ("k=missing", "k=a", "k=b", "k=c")
    texts = np.array(["?" if value is None else value for value in TABLE.column("k").to_pylist()])[:, None]
    expected = preprocessing.OneHotEncoder(categories=[["?", "a", "b", "c"]], sparse_output=False).fit_transform(texts)
    assert np.array_equal(plan.transform(TABLE)["numeric"], expected)
    assert plan.transform(pa.table({"k": ["new"]}))["numeric"].tolist() == [[0, 0, 0, 0]]


def test_frequencies_are_shares_of_the_training_rows_standardised() -> None:
    column = TABLE.column("k").to_pylist()
    shares = np.array([column.count(value) / ROWS for value in column])
    found = outputs(plan_of(columns={"k": {"encoding": "frequency"}}))["k_frequency"]
    assert found == pytest.approx((shares - shares.mean()) / shares.std(), abs=1e-5)


def test_a_cross_tells_pairs_apart_and_not_their_parts() -> None:
    plan = plan_of(crosses=(("k", "l"),), hash_size=1 << 20)
    table = pa.table(
        {
            **{name: TABLE.column(name).slice(0, 5) for name in TABLE.column_names if name not in ("k", "l")},
            "k": ["a", "a", "b", None, "a"],
            "l": ["p", "q", "p", "p", "p"],
        }
    )
    ids = outputs(plan, table)["k_x_l"].tolist()
    assert len(set(ids)) == 4
    assert ids[0] == ids[4]
    with pytest.raises(ConfigError, match=r"features.crosses names 'x', which holds float"):
        plan_of(crosses=(("k", "x"),))
    with pytest.raises(ConfigError, match="two or more different columns"):
        plan_of(crosses=(("k", "k"),))


def test_hashes_are_stable_and_missing_has_its_own_id() -> None:
    plan = plan_of(columns={"k": {"encoding": "hash", "hash_size": 10}})
    found = outputs(plan)["k_hash"]
    assert found[TABLE.column("k").is_null().to_numpy()].tolist() == [MISSING] * TABLE.column("k").null_count
    assert found.max() < 12
    assert Hashed(columns=("k",), buckets=1_000).row()({"k": "a"}) == 345  # b2sum -l 64 of "a"


def test_dates_come_round_on_a_circle() -> None:
    plan = plan_of(dates={"t": ("hour", "epoch_days")}, date_encoding="cyclic")
    moments = pa.array([datetime(2013, 5, 1, hour, tzinfo=UTC) for hour in (0, 6, 23)] + [None], pa.timestamp("us", tz="UTC"))
    table = TABLE.slice(0, 4).set_column(TABLE.schema.get_field_index("t"), "t", moments)
    found = outputs(plan, table)
    assert found["t_hour_sin"] == pytest.approx([0, 1, np.sin(2 * np.pi * 23 / 24), 0], abs=1e-6)
    assert found["t_hour_cos"] == pytest.approx([1, 0, np.cos(2 * np.pi * 23 / 24), 0], abs=1e-6)


def test_the_length_of_a_text_counts_characters() -> None:
    plan = plan_of(text=("note",), columns={"note": {"scaling": "none"}})
    lengths = [3.0 if value is None else len(value) for value in TABLE.column("note").to_pylist()]
    found = outputs(plan)
    known = TABLE.column("note").is_valid().to_numpy()
    assert found["note_length"][known].tolist() == np.array(lengths)[known].tolist()
    assert found["note_length_missing"].tolist() == (~known).astype(float).tolist()


# ---------------------------------------------------------------------- target encoding


def written(folder: Path, table: pa.Table, parts: int = 3) -> list[str]:
    (folder / "train").mkdir()
    size = -(-table.num_rows // parts)
    files = [str(folder / "train" / f"part-{part:05}.parquet") for part in range(parts)]
    for part, file in enumerate(files):
        pq.write_table(table.slice(part * size, size), file)
    return files


def test_target_encoding_is_that_of_scikit_learn_for_rows_that_come_later(tmp_path: Path) -> None:
    files = written(tmp_path, TABLE)
    rules = Features(columns={"k": ColumnFeatures(encoding="target", smoothing=15)}, min_count=1)
    plan = FeaturePlan.fit(rules, PROBLEM, PROFILE, files=files)
    answers = (np.array(TABLE.column("y").to_pylist()) == "yes").astype(float)
    known = TABLE.column("k").is_valid().to_numpy()
    texts = np.array(["?" if value is None else value for value in TABLE.column("k").to_pylist()])[:, None]
    reference = preprocessing.TargetEncoder(smooth=15, target_type="binary").fit(texts, answers)
    expected = reference.transform(texts)[:, 0]
    found = outputs(plan)["k_target"]
    assert np.corrcoef(found, expected)[0, 1] == pytest.approx(1, abs=1e-6)
    assert (found.mean(), found.std()) == (pytest.approx(0, abs=1e-5), pytest.approx(1, abs=1e-5))
    assert known.any()


def test_a_training_row_never_sees_its_own_answer(tmp_path: Path) -> None:
    """Hand-worked: with smoothing 0 the number of a training row is the mean answer of the other folds' rows of its category."""
    files = written(tmp_path, TABLE)
    rules = Features(columns={"k": ColumnFeatures(encoding="target", smoothing=0, folds=3)}, min_count=1)
    plan = FeaturePlan.fit(rules, PROBLEM, PROFILE, files=files)
    step = next(step for step in plan.numbers if isinstance(step, Lookup))
    table = pa.concat_tables([pq.read_table(file) for file in files])
    folds = np.concatenate([folds_of(file, 0, pq.read_metadata(file).num_rows) for file in files]) % 3
    answers = np.array(table.column("y").to_pylist()) == "yes"
    keys = np.array(["?" if value is None else value for value in table.column("k").to_pylist()])
    whole = {key: answers[keys == key].mean() for key in set(keys)}
    centre = np.mean([whole[key] for key in keys])
    spread = np.std([whole[key] for key in keys])
    expected = [(answers[(keys == key) & (folds != fold)].mean() - centre) / spread for key, fold in zip(keys, folds, strict=True)]
    (found,) = step.batch(table, folds)
    assert found == pytest.approx(np.array(expected), abs=1e-5)


def test_the_answer_of_a_row_does_not_move_its_own_number(tmp_path: Path) -> None:
    names = [f"id-{i}" for i in range(300)]
    answers = RNG.choice(["no", "yes"], 300)
    table = pa.table({"name": names, "x": RNG.normal(size=300), "y": answers})
    (tmp_path / "one").mkdir()
    files = written(tmp_path / "one", table, 1)
    rules = Features(categorical=("name",), encoding="target", min_count=1, max_categories=300, smoothing=0.001)
    plan = FeaturePlan.fit(rules, PROBLEM, Profile().update(table), files=files)
    place = [name for step in plan.numbers for name in step.names].index("name_target")
    inside = plan.transform(table, folds=folds_of(files[0], 0, 300))["numeric"][:, place]
    leaking = plan.transform(table)["numeric"][:, place]
    truth = (answers == "yes").astype(float)
    assert np.corrcoef(leaking, truth)[0, 1] > 0.99
    assert abs(np.corrcoef(inside, truth)[0, 1]) < 0.2


def test_several_classes_give_a_number_each_and_the_sealed_plan_keeps_no_folds(tmp_path: Path) -> None:
    problem = Problem(name="p", task="multiclass", target="l2")
    table = TABLE.append_column("l2", pa.array(RNG.choice(["u", "v", "w"], ROWS)))
    rules = Features(columns={"k": ColumnFeatures(encoding="target")}, min_count=1)
    plan = FeaturePlan.fit(rules, problem, Profile().update(table), files=written(tmp_path, table))
    step = next(step for step in plan.numbers if isinstance(step, Lookup))
    assert step.names == ("k_target_u", "k_target_v", "k_target_w")
    assert len(step.out_of_fold) == 5
    sealed = FeaturePlan.from_json(plan.sealed.model_dump_json())
    assert not any(isinstance(step, Lookup) and step.out_of_fold for step in sealed.steps)
    assert np.array_equal(sealed.transform(table)["numeric"], plan.transform(table)["numeric"])


def test_a_profile_alone_cannot_be_target_encoded() -> None:
    with pytest.raises(ConfigError, match="reads the training rows"):
        plan_of(encoding="target")


def test_folds_are_even_and_the_same_in_parts_as_in_one() -> None:
    whole = folds_of("/a/train/part-0.parquet", 0, 60_000)
    parts = np.concatenate([folds_of("/b/train/part-0.parquet", start, 20_000) for start in (0, 20_000, 40_000)])
    assert np.array_equal(whole, parts)
    for folds in (2, 5, 20):
        assert np.bincount(whole % folds) / 60_000 == pytest.approx([1 / folds] * folds, rel=0.05)
    assert not np.array_equal(whole, folds_of("/a/train/part-1.parquet", 0, 60_000))


# ---------------------------------------------------------------------- both executors

SETTINGS: dict[str, dict[str, Any]] = {
    "robust, one-hot, cyclic": {"scaling": "robust", "encoding": "onehot", "date_encoding": "cyclic", "clip": (0.01, 0.99)},
    "log, frequency": {"scaling": "log", "encoding": "frequency", "impute": "mean"},
    "yeo-johnson, hash": {"scaling": "yeo_johnson", "encoding": "hash", "hash_size": 50, "crosses": (("k", "l", "n"),)},
    "piecewise, target": {"scaling": "piecewise", "bins": 5, "encoding": "target", "text": ("note",)},
    "bucketise, minmax": {"scaling": "bucketise", "columns": {"gap": {"scaling": "minmax"}}, "clip_deviations": 2.0},
    "regression for missing numbers": {"impute": "model", "sample_rows": 500, "columns": {"x": {"scaling": "piecewise", "bins": 4}}},
    "auto": {"scaling": "auto", "encoding": "auto", "max_categories": 2},
    "kept missing": {"scaling": "quantile", "clip_deviations": 3.0, "columns": {"x": {"scaling": "piecewise"}, "n": {"impute": "mean"}}},
}
ALL_PARTS = {"t": ("month", "day", "weekday", "hour", "minute", "dayofyear", "epoch_days")}


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FeaturePlan]:
    files = written(tmp_path_factory.mktemp("parity"), TABLE)
    return {
        name: FeaturePlan.fit(
            Features(**{"min_count": 1, "dates": ALL_PARTS, **given}), PROBLEM, PROFILE, files=files, keeps_missing=name == "kept missing"
        )
        for name, given in SETTINGS.items()
    }


odd_numbers = st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0, 1e-300, 1e300, -4.0])
odd_text = st.none() | st.sampled_from(["a", "b", "d", "", "A", "p"]) | st.text(st.characters(codec="utf-8"), max_size=5)
odd_row = st.fixed_dictionaries(
    {
        "x": odd_numbers,
        "gap": odd_numbers,
        "n": st.none() | st.integers(-(2**63), 2**63 - 1) | st.integers(0, 9),
        "k": odd_text,
        "l": odd_text,
        "flag": st.none() | st.booleans(),
        "note": odd_text,
        "t": st.none() | st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)),
    }
)
OPEN = Contract(
    columns={
        name: rule.model_copy(update={"nullable": True, "minimum": None, "maximum": None})
        for name, rule in Contract.infer(PROFILE).columns.items()
        if name != "y"
    }
)


@pytest.mark.parametrize("name", SETTINGS)
@settings(max_examples=150)
@given(rows=st.lists(odd_row, min_size=1, max_size=4))
def test_batch_and_single_row_agree_on_odd_rows(name: str, rows: list[dict[str, Any]], plans: dict[str, FeaturePlan]) -> None:
    plan = plans[name]
    run = plan.row_executor()
    batch = plan.transform(table_of(rows, OPEN))
    assert batch["numeric"].shape == (len(rows), plan.num_numeric)
    for i, row in enumerate(rows):
        alone = run(row)
        assert np.array(alone["numeric"], np.float32) == pytest.approx(batch["numeric"][i], rel=1e-6, abs=1e-6, nan_ok=True)
        assert alone["categorical"] == batch["categorical"][i].tolist()
    assert np.isfinite(batch["numeric"]).all() or name == "kept missing"


@pytest.mark.parametrize("name", SETTINGS)
def test_a_plan_from_json_gives_equal_tensors(name: str, plans: dict[str, FeaturePlan]) -> None:
    back = FeaturePlan.from_json(plans[name].model_dump_json())
    for key, values in plans[name].transform(TABLE).items():
        assert np.array_equal(values, back.transform(TABLE)[key], equal_nan=True)


def test_a_missing_number_stays_missing_where_the_model_takes_it_and_nothing_else_was_asked_for() -> None:
    table = pa.table({"x": [1.0, None, 3.0], "z": [2.0, None, 4.0], "l": ["p", "q", "p"], "y": ["no", "yes", "no"]})
    features = Features(min_count=1, scaling="none", columns={"z": ColumnFeatures(impute="mean")})
    plan = FeaturePlan.fit(features, PROBLEM, Profile().update(table), keeps_missing=True)
    found = outputs(plan, table)
    assert list(found) == ["x", "z", "z_missing", "l"]
    assert found["x"].tolist() == pytest.approx([1, np.nan, 3], nan_ok=True)
    assert found["z"].tolist() == [2, 3, 4]
    for_nets = FeaturePlan.fit(features, PROBLEM, Profile().update(table))
    assert outputs(for_nets, table)["x"].tolist() == [1, 2, 3]


# ---------------------------------------------------------------------- settings


def test_a_rule_of_one_column_leaves_the_others_as_they_are() -> None:
    features = Features(impute="mean", columns={"x": ColumnFeatures(scaling="robust")})
    assert (features.rules("x").scaling, features.rules("x").impute) == ("robust", "mean")
    assert (features.rules("gap").scaling, features.rules("gap").impute) == ("standard", "mean")


def test_rules_of_a_column_survive_a_stored_config() -> None:
    config = load_config("flights", ["features.impute=mean", "features.columns.temp.scaling=robust"])
    back = build_config(config.model_dump(mode="json"))
    assert back.features.rules("temp") == config.features.rules("temp")
    assert back.features.rules("temp").impute == "mean"
    with pytest.raises(ConfigError, match=r"features.columns.temp.scalng is not a setting.*'features.columns.temp.scaling'"):
        load_config("flights", ["features.columns.temp.scalng=robust"])


def test_a_column_that_does_not_exist_is_named() -> None:
    with pytest.raises(ConfigError, match=r"features.columns names 'gapp'.*Did you mean 'gap'"):
        plan_of(columns={"gapp": {"scaling": "robust"}})


def test_a_value_without_a_slot_is_unseen() -> None:
    assert outputs(plan_of(), TABLE.set_column(3, "k", pa.array(["zz"] * ROWS)))["k"].tolist() == [UNSEEN] * ROWS
