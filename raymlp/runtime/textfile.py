"""What monitoring and retraining found last, as files for Prometheus.

These are short jobs: nobody could ask them. They leave `metrics/*.prom` under the storage, in the format of node_exporter's
textfile collector, which reads a folder; from an object store the files have to be fetched for it. Each file is replaced whole.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from raymlp.config.runtime import Runtime
from raymlp.core.files import Place, write_text
from raymlp.core.records import MonitorReport
from raymlp.runtime.session import storage_root

Outcome = Literal["unneeded", "refused", "challenger", "failed"]
OUTCOMES: tuple[Outcome, ...] = ("unneeded", "refused", "challenger", "failed")
"""The policy saw no need, the gate refused the model, a challenger was registered, the job broke."""


class MonitorMetrics:
    """One window: every finding with its threshold and verdict, rows, and when it was looked at."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        names = ["problem", "kind", "name", "statistic"]
        self.value = Gauge("raymlp_monitor_value", "What a check of monitoring measured", names, registry=self.registry)
        self.threshold = Gauge("raymlp_monitor_threshold", "Beyond it the check is an alert", names, registry=self.registry)
        self.alert = Gauge("raymlp_monitor_alert", "1 where the check is an alert", names, registry=self.registry)
        self.rows = Gauge("raymlp_monitor_rows", "Predictions of the window", ["problem"], registry=self.registry)
        self.labelled = Gauge("raymlp_monitor_labelled_rows", "Predictions whose answer has come", ["problem"], registry=self.registry)
        self.time = Gauge("raymlp_monitor_timestamp_seconds", "When monitoring last ended", ["problem"], registry=self.registry)

    def write(self, runtime: Runtime, problem: str, report: MonitorReport) -> Place:
        """Leave the file of the problem; gives back its path."""
        for finding in report.findings:
            labels = (problem, finding.kind, finding.name, finding.statistic)
            self.value.labels(*labels).set(finding.value)
            self.threshold.labels(*labels).set(finding.threshold)
            self.alert.labels(*labels).set(finding.alert)
        self.rows.labels(problem).set(report.rows)
        self.labelled.labels(problem).set(report.labelled)
        self.time.labels(problem).set(time.time())
        return _write(runtime, f"monitor-{problem}", self.registry)


class RetrainMetrics:
    """How the last retrain ended, and when."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.outcome = Gauge(
            "raymlp_retrain_outcome", "1 for the way the last retrain ended", ["problem", "outcome"], registry=self.registry
        )
        self.time = Gauge("raymlp_retrain_timestamp_seconds", "When a retrain last ended", ["problem"], registry=self.registry)

    def write(self, runtime: Runtime, problem: str, outcome: Outcome) -> Place:
        """Leave the file of the problem; gives back its path."""
        for name in OUTCOMES:
            self.outcome.labels(problem, name).set(name == outcome)
        self.time.labels(problem).set(time.time())
        return _write(runtime, f"retrain-{problem}", self.registry)


@contextmanager
def failure_is_told(runtime: Runtime, problem: str) -> Iterator[None]:
    """A retrain that raises inside the block leaves `failed`."""
    try:
        yield
    except Exception:
        RetrainMetrics().write(runtime, problem, "failed")
        raise


def _write(runtime: Runtime, name: str, registry: CollectorRegistry) -> Place:
    return write_text(storage_root(runtime) / "metrics" / f"{name}.prom", generate_latest(registry).decode())
