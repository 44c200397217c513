"""A problem without a target: what it says of itself, and what data, quality checks and profile make of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import csv

from raymlp.config.data import Data
from raymlp.config.features import Features
from raymlp.config.loader import build_config
from raymlp.config.monitor import Monitor
from raymlp.config.problem import Problem
from raymlp.config.quality import Checks
from raymlp.config.sources import CsvSource
from raymlp.config.split import RandomSplit, StratifiedSplit
from raymlp.core.errors import ConfigError
from raymlp.data.association import Association, Outline
from raymlp.data.profile import Profile
from raymlp.data.profile_page import write_page
from raymlp.data.quality import Evidence, sampled
from raymlp.data.snapshot import prepare
from raymlp.data.target import Target
from raymlp.features.plan import FeaturePlan

CLUSTERS = Problem(name="p", task="clustering")
KNOWN = Problem(name="p", task="anomaly", label="odd", positive_class="yes")


def rows(count: int = 600) -> pa.Table:
    rng = np.random.default_rng(0)
    a = rng.normal(size=count)
    odd = pa.array(np.where(rng.random(count) < 0.1, "yes", "no"), mask=rng.random(count) < 0.5)
    return pa.table({"a": a, "b": a + rng.normal(size=count), "kind": rng.choice(["x", "y"], count), "odd": odd})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"task": "binary"}, "target is null with task=binary.*Set target"),
        ({"task": "clustering", "target": "y"}, "target is 'y' with task=clustering.*Set target=null"),
        ({"task": "anomaly", "target": "y"}, "known anomalies goes in label"),
        ({"task": "clustering", "label": "y"}, "label is 'y' with task=clustering"),
        ({"task": "anomaly", "label": "y"}, "Set positive_class or positive_above"),
        ({"task": "clustering", "positive_class": "x"}, "positive_above and positive_class"),
        ({"task": "anomaly", "metric": "auc"}, "needs known anomalies"),
        ({"task": "clustering", "metric": "auc"}, "metric 'auc' is not one of"),
    ],
)
def test_a_target_where_none_belongs_and_none_where_one_does_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Problem(name="p", **settings)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"model": {"kind": "mlp"}}, "model.kind is mlp with problem.task=clustering.*Set model=kmeans"),
        ({"train": {"class_weights": "balanced"}}, "class_weights is balanced with problem.task=clustering"),
        ({"replay": {"drill": True}}, "replay.drill shuffles answers"),
        ({"problem": {"name": "p", "task": "regression", "target": "a"}}, "model.kind is kmeans with problem.task=regression"),
    ],
)
def test_what_a_task_without_target_cannot_have_is_refused_by_the_config(sections: dict[str, Any], words: str) -> None:
    values: dict[str, Any] = {
        "problem": {"name": "p", "task": "clustering"},
        "data": {"source": {"kind": "csv", "path": "none.csv"}, "split": {"kind": "random"}},
        "model": {"kind": "kmeans"},
        "tune": {},
    }
    with pytest.raises(ConfigError, match=words):
        build_config({**values, **sections})


def test_every_row_is_of_use_and_has_no_answer() -> None:
    table = rows()
    target = Target.fit(CLUSTERS, Profile().update(table))
    y, usable = target.answers(table)
    assert target.columns == ()
    assert usable.all()
    assert np.isnan(y).all()


def test_a_label_is_read_and_its_gaps_are_no_reason_to_leave_a_row_out() -> None:
    table = rows()
    target = Target.fit(KNOWN, Profile().update(table))
    y, usable = target.answers(table)
    assert usable.all()
    assert np.isnan(y).sum() == table.column("odd").null_count
    assert np.nansum(y) == table.column("odd").to_pylist().count("yes")
    only_normal = table.set_column(3, "odd", pa.array(["no"] * len(table)))
    assert np.array_equal(Target.fit(KNOWN, Profile().update(only_normal)).answers(only_normal)[0], np.zeros(len(table)))


@pytest.mark.parametrize(("problem", "left_out"), [(CLUSTERS, []), (KNOWN, ["odd"])])
def test_the_plan_takes_every_column_but_the_label(problem: Problem, left_out: list[str]) -> None:
    profile = Profile().update(rows())
    plan = FeaturePlan.fit(Features(), problem, profile)
    assert sorted({*rows().column_names} - {*plan.inputs}) == left_out
    assert FeaturePlan.from_json(plan.model_dump_json()) == plan
    with pytest.raises(ConfigError, match=r"features\.encoding is target with problem\.task"):
        FeaturePlan.fit(Features(encoding="target"), problem, profile, files=["unread"])


def test_pairs_of_columns_are_associated_without_a_target() -> None:
    table = rows()
    found = Association(Outline.of(Profile().update(table), Target(task="clustering"))).update(table)
    names, r, _ = found.correlations()
    assert found.tables == {}
    assert r[names.index("a"), names.index("b")] == pytest.approx(np.corrcoef(table["a"], table["b"])[0, 1])
    assert Association.from_dict(found.to_dict()).outline == found.outline


def test_checks_that_need_a_target_find_nothing_and_outliers_are_still_looked_for(tmp_path: Path) -> None:
    table = rows().append_column("copy", pa.array(rows()["odd"]))
    pq.write_table(table, tmp_path / "part.parquet")
    files = {"train": [str(tmp_path / "part.parquet")], "valid": [str(tmp_path / "part.parquet")]}
    checks = Checks(leakage="warn", label_noise="warn", outliers="warn", max_outlier_share=0.0)
    for problem in (CLUSTERS, KNOWN):
        evidence = Evidence(problem, RandomSplit(), Profile().update(table), table.column_names, files)
        assert [finding.check for finding in sampled(evidence, checks)] == ["outliers"]


@pytest.mark.ray
@pytest.mark.parametrize("problem", [CLUSTERS, KNOWN], ids=["none", "label"])
def test_a_snapshot_keeps_every_row_and_its_page_draws_no_answers(problem: Problem, ray_runtime: object, tmp_path: Path) -> None:
    csv.write_csv(rows(), tmp_path / "rows.csv")
    data = Data(source=CsvSource(path=str(tmp_path / "rows.csv")), split=RandomSplit())
    made = prepare(problem, data, tmp_path / "snapshots")
    assert sum(made.rows.values()) == 600
    page = write_page(made, problem, Monitor(), folder=tmp_path).read_text()
    assert ("association with the target" in page) is (problem.label is not None)
    assert "None" not in page
    with pytest.raises(ConfigError, match=rf"data\.split\.kind is stratified with problem\.task={problem.task}"):
        prepare(problem, data.model_copy(update={"split": StratifiedSplit()}), tmp_path / "snapshots")
    wrong = problem.model_copy(update={"label": "oddd"})
    if problem.label:
        with pytest.raises(ConfigError, match=r"problem\.label names 'oddd'"):
            prepare(wrong, data, tmp_path / "snapshots")
