"""Live traffic of clusters and anomaly scores: drift of what was given, quality where a label came, and a rollout without answers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raymlp.config.monitor import Monitor
from raymlp.config.rollout import Rollout
from raymlp.core.metrics import METRICS
from raymlp.core.records import WITH_TARGET, Decision
from raymlp.model.bundle import Bundle
from raymlp.model.predictor import Prediction, Predictor
from raymlp.monitor.monitoring import monitor
from raymlp.serve.evidence import Versions, gather
from raymlp.serve.openapi import ANSWERS
from raymlp.serve.rollout.facts import Position
from raymlp.serve.rollout.policy import decide
from raymlp.serve.routing import Routes
from tests.monitor.unlabelled import bundle_of, rows

START = datetime(2024, 1, 1, tzinfo=UTC)


def log_of(bundle: Bundle, table: pa.Table) -> pa.Table:
    """What the endpoint would have written."""
    inputs = table.select(list(bundle.plan.inputs))
    answer = Predictor(bundle).predict(inputs)
    count = table.num_rows
    return pa.table(
        {
            "prediction_id": [f"id-{i}" for i in range(count)],
            "row": np.zeros(count, np.int64),
            "time": pa.array([START + timedelta(seconds=i) for i in range(count)], pa.timestamp("us", tz="UTC")),
            "version": ["1"] * count,
            "status": np.full(count, 200),
            "prediction": answer.summary,
            "latency_ms": np.ones(count),
            **{f"in.{name}": inputs.column(name) for name in inputs.column_names},
        }
    )


def labels_of(table: pa.Table) -> pa.Table:
    return pa.table({"prediction_id": [f"id-{i}" for i in range(table.num_rows)], "label": table.column("odd")})


@pytest.mark.parametrize("moved", [0.0, 0.3])
def test_clusters_that_fill_otherwise_are_drift_and_labels_say_nothing(moved: float, tmp_path: Path) -> None:
    bundle, live = bundle_of("clustering"), rows(1_500, 2, moved)
    found = monitor(bundle, log_of(bundle, live), labels_of(live), Monitor(), window="w", report_dir=tmp_path)
    (drift,) = (finding for finding in found.findings if finding.kind == "prediction drift")
    assert drift.alert is (moved > 0)
    assert found.labelled == 0
    assert not [finding for finding in found.findings if finding.kind == "quality"]


def test_a_label_of_anomalies_judges_quality_once_it_comes(tmp_path: Path) -> None:
    bundle, live = bundle_of("anomaly"), rows(1_500, 2)
    log = log_of(bundle, live)
    names = {
        f.name: f for f in monitor(bundle, log, labels_of(live), Monitor(), window="w", report_dir=tmp_path).findings if f.kind == "quality"
    }
    assert set(names) == {"auc", "base rate"}
    assert not any(finding.alert for finding in names.values())
    wrong = labels_of(live).set_column(1, "label", pa.array(["yes" if value == "no" else "no" for value in live["odd"].to_pylist()]))
    turned = monitor(bundle, log, wrong, Monitor(), window="w", report_dir=tmp_path)
    assert {f.name for f in turned.alerts if f.kind == "quality"} == {"auc", "base rate"}


def test_a_rollout_without_answers_goes_by_errors_and_latency() -> None:
    bundle = bundle_of("clustering")
    versions = Versions("1", "2", Predictor(bundle), Predictor(bundle))
    routes = Routes.of("1", {"1": 0.5, "2": 0.5}, salt="s")
    log = log_of(bundle, rows(2_000, 2))
    keys = [f"id-{i}" for i in range(2_000)]
    chosen = [routes.choose(key) for key in keys]
    mixed = log.set_column(log.schema.get_field_index("version"), "version", pa.array(chosen))
    mixed = mixed.append_column("routing_key", pa.array(keys)).append_column("routes", pa.array([str(routes)] * 2_000))
    settings = Rollout(weights=(0.5,), min_requests=500, min_step_s=0)

    def decided(table: pa.Table) -> Decision:
        return decide(gather(table, None, versions, "s", settings), Position(0.5, 60, 60), settings)

    decision = decided(mixed)
    assert decision.action == "promote"
    assert [check["guard"] for check in decision.facts["checks"]] == ["errors", "latency", "ratio"]
    assert decided(mixed.slice(0, 200)).action == "hold"
    status = pa.array([500 if label == "2" else 200 for label in chosen])
    assert decided(mixed.set_column(mixed.schema.get_field_index("status"), "status", status)).action == "rollback"


def test_every_task_has_metrics_and_an_answer_that_the_page_describes() -> None:
    assert set(ANSWERS) == set(METRICS) > set(WITH_TARGET)
    for task, scores in (("clustering", np.zeros((1, 2))), ("anomaly", np.zeros(1))):
        (answer,) = Prediction(task, (), scores).rows()  # type: ignore[arg-type]
        assert set(answer) == set(ANSWERS[task])  # type: ignore[index]
