"""Files of metrics: what Prometheus would read after a look at the model, and after each way a retrain ends."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from raymlp.config.runtime import Runtime
from raymlp.core.records import Finding, MonitorReport
from raymlp.runtime.textfile import OUTCOMES, MonitorMetrics, RetrainMetrics, failure_is_told


def series(file: Path) -> dict[tuple[str, frozenset[str]], float]:
    families = text_string_to_metric_families(file.read_text())
    return {(sample.name, frozenset(sample.labels.values())): sample.value for family in families for sample in family.samples}


def test_a_look_leaves_each_finding_with_its_threshold_and_verdict(tmp_path: Path) -> None:
    found = (Finding("feature drift", 'a "b"', "psi", 0.31, 0.25, 900, True), Finding("quality", "auc", "drop", -0.01, 0.05, 80, False))
    runtime = Runtime(storage=str(tmp_path))
    file = MonitorMetrics().write(runtime, "flights", MonitorReport("w", 900, 80, found))
    assert file == tmp_path / "metrics" / "monitor-flights.prom"
    read = series(file)
    drifted = frozenset(("flights", "feature drift", 'a "b"', "psi"))
    assert (read["raymlp_monitor_value", drifted], read["raymlp_monitor_threshold", drifted]) == (0.31, 0.25)
    assert read["raymlp_monitor_alert", drifted] == 1
    assert read["raymlp_monitor_alert", frozenset(("flights", "quality", "auc", "drop"))] == 0
    assert (read["raymlp_monitor_rows", frozenset(("flights",))], read["raymlp_monitor_labelled_rows", frozenset(("flights",))]) == (
        900,
        80,
    )
    MonitorMetrics().write(runtime, "flights", MonitorReport("w", 5, 0, ()))
    assert ("raymlp_monitor_alert", drifted) not in series(file)


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_a_retrain_leaves_how_it_ended_and_no_other(tmp_path: Path, outcome: str) -> None:
    runtime = Runtime(storage=str(tmp_path))
    RetrainMetrics().write(runtime, "flights", "failed")
    read = series(RetrainMetrics().write(runtime, "flights", outcome))
    assert {name for name in OUTCOMES if read["raymlp_retrain_outcome", frozenset(("flights", name))] == 1} == {outcome}


def test_a_retrain_that_breaks_is_told_and_still_raises(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), failure_is_told(Runtime(storage=str(tmp_path)), "flights"):
        1 / 0  # noqa: B018
    assert series(tmp_path / "metrics" / "retrain-flights.prom")["raymlp_retrain_outcome", frozenset(("flights", "failed"))] == 1
