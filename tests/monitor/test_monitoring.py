"""A window of the prediction log beside the bundle: joins, findings, and the two reports."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raymlp.config.features import Features
from raymlp.config.model import Mlp
from raymlp.config.monitor import Monitor
from raymlp.config.problem import Problem
from raymlp.core.records import Task
from raymlp.data.contract import Contract
from raymlp.data.profile import Profile
from raymlp.features.plan import FeaturePlan
from raymlp.model.bundle import Bundle, save_bundle
from raymlp.model.calibration import Calibration
from raymlp.model.nets import NetShape, build_net
from raymlp.model.scorer import NetScorer
from raymlp.monitor.monitoring import monitor

START = datetime(2013, 9, 1, tzinfo=UTC)
ROWS = 1_200


def training(task: Task, rows: int = 3_000) -> pa.Table:
    rng = np.random.default_rng(0)
    answers: dict[Task, Any] = {
        "binary": rng.normal(0, 20, rows),
        "multiclass": rng.choice(["a", "b", "c"], rows),
        "regression": rng.normal(5, 2, rows),
    }
    return pa.table({"age": rng.normal(40, 10, rows), "kind": rng.choice(["x", "y"], rows), "answer": answers[task]})


def bundle_of(task: Task) -> Bundle:
    table = training(task)
    problem = Problem(name="planted", task=task, target="answer", positive_above=15 if task == "binary" else None)
    profile = Profile().update(table)
    plan = FeaturePlan.fit(Features(), problem, profile)
    shape = NetShape.of(Mlp(hidden=(4,)), plan)
    rng = np.random.default_rng(1)
    scores: Any = {"binary": rng.random(2_000), "regression": rng.normal(5, 2, 2_000), "multiclass": rng.choice(["a", "b", "c"], 2_000)}[
        task
    ]
    metrics: dict[Task, dict[str, float]] = {"binary": {"auc": 0.7}, "multiclass": {"accuracy": 0.6}, "regression": {"rmse": 1.0}}
    contract = Contract.infer(profile).only(plan.inputs)
    predictions = Profile().update(pa.table({"prediction": scores}))
    return Bundle(
        name="planted", run_id="run-7", scorer=NetScorer(shape, build_net(shape).state_dict()), plan=plan, contract=contract,
        calibration=Calibration(task=task), profile=profile, predictions=predictions, metrics=metrics[task],
        config_yaml="problem: {metric: ''}\n", snapshot="5" * 64,
    )  # fmt: skip


def log_of(predictions: Any, *, rows: int = ROWS, age: float = 40, seed: int = 5) -> pa.Table:
    rng = np.random.default_rng(seed)
    return pa.table({
        "prediction_id": [f"p{i}" for i in range(rows)], "row": np.zeros(rows, np.int64),
        "time": pa.array([START + timedelta(minutes=i) for i in range(rows)], pa.timestamp("us", tz="UTC")), "version": ["v1"] * rows,
        "prediction": pa.array(predictions, pa.float64()), "status": [200] * rows, "latency_ms": rng.random(rows),
        "in.age": rng.normal(age, 10, rows), "in.kind": rng.choice(["x", "y"], rows),
    })  # fmt: skip


def test_a_window_like_training_has_no_alert(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    minutes = rng.normal(0, 20, ROWS)
    p = np.clip(0.2266 + 0.25 * ((minutes > 15) - 0.2266) + rng.normal(0, 0.05, ROWS), 0, 1)
    log = log_of(p)
    settings = Monitor(psi=20)
    report = monitor(
        bundle_of("binary"),
        log,
        pa.table({"prediction_id": log["prediction_id"], "label": minutes}),
        settings,
        window="w",
        report_dir=tmp_path,
    )
    assert (report.rows, report.labelled, report.alerts) == (ROWS, ROWS, ())
    assert (report.findings[0].kind, report.findings[0].name) == ("prediction drift", "prediction")
    assert {finding.name for finding in report.findings if finding.kind == "feature drift"} == {"age", "kind"}
    assert [finding.name for finding in report.findings if finding.kind == "quality"] == ["auc", "base rate", "calibration"]
    assert report.report is not None
    assert "No alert" in report.report.read_text()


def test_planted_changes_alert_and_are_in_both_reports(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    log = log_of(rng.random(ROWS), age=70)
    labels = pa.table({"prediction_id": log["prediction_id"], "label": rng.normal(20, 5, ROWS)})
    report = monitor(bundle_of("binary"), log, labels, Monitor(), window="2013-09", report_dir=tmp_path)
    assert {finding.name for finding in report.alerts} == {"age", "auc", "base rate", "calibration"}
    assert report.report is not None
    page = report.report.read_text()
    assert "4 alerts" in page
    assert page.count("<figure>") == 1
    plain = json.loads((tmp_path / "monitoring.json").read_text())
    assert (plain["window"], plain["rows"], plain["problem"]) == ("2013-09", ROWS, "planted")
    assert {item["name"] for item in plain["findings"] if item["alert"]} == {"age", "auc", "base rate", "calibration"}


def test_only_answered_rows_count_and_labels_are_joined_by_id(tmp_path: Path) -> None:
    log = log_of(np.linspace(0, 1, ROWS))
    log = log.set_column(5, "status", pa.array([422 if i < 200 else 200 for i in range(ROWS)]))
    shuffled = [f"p{i}" for i in range(ROWS - 1, 99, -2)] + ["unknown"]
    labels = pa.table({"prediction_id": shuffled, "label": [30.0] * len(shuffled)})
    report = monitor(bundle_of("binary"), log, labels, Monitor(), window="w", report_dir=tmp_path)
    assert (report.rows, report.labelled) == (1_000, 500)


def test_a_label_meets_its_own_prediction(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    y = rng.normal(5, 2, ROWS)
    log = log_of(y + 0.5)
    order = rng.permutation(ROWS)
    labels = pa.table({"prediction_id": [f"p{i}" for i in order], "label": y[order]})
    report = monitor(bundle_of("regression"), log, labels, Monitor(), window="w", report_dir=tmp_path)
    drop = next(finding for finding in report.findings if finding.name == "rmse")
    assert drop.value == pytest.approx(0.5 - 1.0)


def test_rows_of_one_request_are_told_apart_by_their_number(tmp_path: Path) -> None:
    y = np.random.default_rng(4).normal(5, 2, ROWS)
    log = log_of(y).set_column(0, "prediction_id", pa.array(["p"] * ROWS)).set_column(1, "row", pa.array(range(ROWS)))
    labels = pa.table({"prediction_id": ["p"] * ROWS, "row": list(range(ROWS)), "label": y})
    report = monitor(bundle_of("regression"), log, labels, Monitor(), window="w", report_dir=tmp_path)
    assert next(finding for finding in report.findings if finding.name == "rmse").value == pytest.approx(-1.0)
    first = monitor(bundle_of("regression"), log, labels.drop_columns(["row"]).slice(0, 1), Monitor(), window="w", report_dir=tmp_path)
    assert first.labelled == 1


def test_rows_of_a_business_metric_are_no_labels(tmp_path: Path) -> None:
    log = log_of(np.linspace(0, 1, ROWS))
    paid = pa.table({"prediction_id": log["prediction_id"], "revenue": np.ones(ROWS)})
    answers = pa.table({"prediction_id": log["prediction_id"], "label": np.ones(ROWS)})
    for number, labels in ((ROWS, pa.concat_tables([paid, answers], promote_options="default")), (0, paid)):
        assert monitor(bundle_of("regression"), log, labels, Monitor(), window="w", report_dir=tmp_path).labelled == number


def test_several_classes_are_judged_by_their_most_likely_class(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    picks = rng.integers(0, 3, ROWS)
    log = log_of(picks)
    labels = pa.table({"prediction_id": log["prediction_id"], "label": np.array(["a", "b", "c"])[picks]})
    report = monitor(bundle_of("multiclass"), log, labels, Monitor(), window="w", report_dir=tmp_path)
    found = {finding.name: finding for finding in report.findings}
    assert found["accuracy"].value == pytest.approx(-0.4)
    assert found["prediction"].note.startswith("chi-square")
    assert not found["prediction"].alert
    assert "calibration" not in found


def test_an_empty_window_gives_an_empty_report(tmp_path: Path) -> None:
    report = monitor(bundle_of("binary"), log_of([], rows=0), None, Monitor(), window="w", report_dir=tmp_path)
    assert (report.rows, report.labelled, report.alerts) == (0, 0, ())
    assert "Nothing was judged" in (tmp_path / "monitoring.html").read_text()


def test_a_value_of_another_type_shows_as_missing(tmp_path: Path) -> None:
    log = log_of(np.linspace(0, 1, ROWS))
    ages = pa.array(["forty" if i % 2 else "40.5" for i in range(ROWS)])
    report = monitor(bundle_of("binary"), log.set_column(7, "in.age", ages), None, Monitor(), window="w", report_dir=tmp_path)
    found = next(finding for finding in report.findings if finding.name == "age")
    assert "missing 0.0% to 50.0%" in found.note


def test_a_bundle_on_disk_is_loaded_and_verified(tmp_path: Path) -> None:
    path = save_bundle(bundle_of("binary"), tmp_path / "bundle")
    report = monitor(path, log_of(np.linspace(0, 1, ROWS)), None, Monitor(), window="w", report_dir=tmp_path / "report")
    assert report.rows == ROWS
    assert "No label has come" in (tmp_path / "report" / "monitoring.html").read_text()
