"""What `raymlp init` proposes is what `prepare` then finds nothing wrong with: on a planted file, and on real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pytest

from raymlp.config.features import Features
from raymlp.config.loader import load_config
from raymlp.config.problem import Problem
from raymlp.config.runtime import Runtime
from raymlp.config.split import StratifiedSplit
from raymlp.core.errors import ConfigError
from raymlp.data.profile import ColumnProfile, Profile
from raymlp.data.snapshot import load_profile, prepare
from raymlp.data.split import assign
from raymlp.data.suggest import Written, write_experiment
from raymlp.features.plan import FeaturePlan

ABOUT_COLUMNS = {"constant", "id_like", "leakage"}


def initialised(table: pa.Table, target: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Written:
    """`raymlp init` in a folder of its own, which the loader then searches first."""
    monkeypatch.chdir(folder)
    pacsv.write_csv(table, folder / "table.csv")
    return write_experiment(folder / "table.csv", target, name="table", folder=folder / "conf" / "experiment")


def prepared(folder: Path) -> tuple[Path, list[dict[str, Any]]]:
    """A snapshot by the experiment, and what its checks say about columns."""
    config = load_config("table")
    path = prepare(config.problem, config.data, folder / "out").path
    return path, [item for item in json.loads((path / "manifest.json").read_text())["quality"] if item["check"] in ABOUT_COLUMNS]


def planted(rows: int = 2_000) -> pa.Table:
    """Columns on the edge: `rare` has its only other value in validation, `pairs` differs in 94 % of all rows and in more than
    95 % of the training rows, `gaps` tells the answer by being missing, `most` differs in 93 % of the training rows."""
    rng = np.random.default_rng(0)
    y = np.where(rng.random(rows) < 0.4, "yes", "no")
    codes = assign(StratifiedSplit(), y)
    number = np.arange(rows)
    rare = np.full(rows, "a")
    rare[np.flatnonzero(codes == 1)[0]] = "b"
    flips = rng.random(rows) < 0.003
    train = np.flatnonzero(codes == 0)
    most = [f"m{i}" for i in number]
    for i in train[: round(0.07 * len(train))]:
        most[i] = "same"
    return pa.table(
        {
            "x": rng.normal(size=rows),
            "rare": rare,
            "pairs": [f"p{i % round(0.94 * rows)}" for i in rng.permutation(rows)],
            "id": rng.permutation(rows),
            "leak": np.where((y == "yes") ^ flips, "late", "early"),
            "gaps": pa.array(rng.normal(size=rows), mask=(y == "yes") ^ flips),
            "most": most,
            "y": y,
        }
    )


@pytest.mark.ray
def test_prepare_has_nothing_to_say_of_a_planted_files_columns(
    ray_runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = planted()
    assert not Profile().update(table).columns["pairs"].is_id_like(0.95)
    written = initialised(table, "y", tmp_path, monkeypatch)
    config = load_config("table")
    assert config.problem.id_columns == ("pairs", "id")
    assert config.data.drop == ("rare", "leak", "gaps")
    assert config.data.split == StratifiedSplit()
    reasons = dict(remark.split(" left out: ") for remark in written.remarks if " left out: " in remark)
    assert reasons.pop("leak").startswith("leaks the target: alone it scores 0.99")
    assert reasons.pop("gaps").startswith("leaks the target: alone it scores 0.99")
    assert reasons == {
        "rare": "constant",
        "pairs": "id-like, differs in 95% of the training rows",
        "id": "id-like, differs in 100% of the training rows",
    }
    path, found = prepared(tmp_path)
    assert found == []
    assert FeaturePlan.fit(config.features, config.problem, load_profile(path)).inputs == ["x", "most"]


@pytest.mark.ray
def test_prepare_has_nothing_to_say_of_the_columns_of_adult(
    ray_runtime: Runtime, real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pacsv.read_csv(real_data / "adult" / "adult-train.csv", read_options=pacsv.ReadOptions(autogenerate_column_names=True))
    renamed = table.rename_columns([f"c{i}" for i in range(14)] + ["y"])
    number, constant = pa.array(range(table.num_rows)), pa.array(["us"] * table.num_rows)
    initialised(renamed.append_column("number", number).append_column("land", constant), "y", tmp_path, monkeypatch)
    config = load_config("table")
    assert (config.problem.id_columns, config.data.drop) == (("number",), ("land",))
    assert prepared(tmp_path)[1] == []


def test_a_regression_is_judged_by_the_split_that_is_proposed(real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pacsv.read_csv(real_data / "california_housing" / "housing.csv")
    value = table.column("median_house_value").to_numpy()
    noisy = value + np.random.default_rng(0).normal(scale=0.02 * value.std(), size=len(value))
    initialised(table.append_column("noisy", pa.array(noisy)), "median_house_value", tmp_path, monkeypatch)
    config = load_config("table")
    assert (config.problem.id_columns, config.data.drop, config.data.split.kind) == ((), ("noisy",), "random")


@pytest.mark.parametrize(("distinct", "id_like"), [(950, False), (951, True)])
def test_features_and_checks_call_the_same_columns_id_like(distinct: int, id_like: bool) -> None:
    table = pa.table({"name": [f"n{i % distinct}" for i in range(1_000)], "x": range(1_000), "y": ["yes", "no"] * 500})
    profile = Profile().update(table)
    assert profile.columns["name"].is_id_like(0.95) is id_like
    problem = Problem(name="p", task="binary", target="y", positive_class="yes")
    reason = FeaturePlan.fit(Features(), problem, profile).reasons["name"]
    assert reason.startswith("left out: id-like") is id_like


def test_few_values_name_nothing_and_gaps_say_something() -> None:
    def column(values: list[Any]) -> ColumnProfile:
        return Profile().update(pa.table({"x": values})).columns["x"]

    assert [column([f"n{i}" for i in range(rows)]).is_id_like(0.95) for rows in (100, 101)] == [False, True]
    assert [column([0.5 + i for i in range(101)]).is_id_like(0.95), column(list(range(101))).is_id_like(0.95)] == [False, True]
    assert [column(values).is_constant for values in (["a", "a"], ["a", None], ["a", "b"])] == [True, False, False]


@pytest.mark.parametrize(("task", "kind"), [("clustering", "kmeans"), ("anomaly", "isolation_forest")])
def test_without_a_target_the_task_brings_its_model(task: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pacsv.write_csv(planted(), tmp_path / "table.csv")
    written = write_experiment(tmp_path / "table.csv", None, task=task, name="table", folder=tmp_path / "conf" / "experiment")
    config = load_config("table")
    assert (config.problem.task, config.problem.target, config.model.kind, config.data.split.kind) == (task, None, kind, "random")
    assert "pairs" in config.problem.id_columns
    assert written.remarks[0] == f"no target: {task}, learns from the rows alone"


@pytest.mark.parametrize(
    ("target", "task", "words"), [(None, None, "neither a target nor a task"), ("y", "anomaly", "a target and the task")]
)
def test_init_wants_a_target_or_a_task(target: str | None, task: str | None, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        write_experiment(tmp_path / "table.csv", target, task=task, name="table", folder=tmp_path)
