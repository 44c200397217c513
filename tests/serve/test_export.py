"""The replica's counts as Ray's metrics: differences of what grows, values of what is set, and names that do not change by chance."""

from __future__ import annotations

from typing import Any

import pytest
import ray.util.metrics

from raymlp.serve.export import RayExport, ray_names
from raymlp.serve.metrics import LATENCY_S, ReplicaMetrics

Key = tuple[str, tuple[tuple[str, str], ...]]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[Key, float]:
    """What Ray was told, summed or set, in place of Ray's agent."""
    found: dict[Key, float] = {}

    class Metric:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            self.name, self.tag_keys = name, set(tag_keys)

        def key(self, tags: dict[str, str]) -> Key:
            assert set(tags) == self.tag_keys
            return self.name, tuple(sorted(tags.items()))

    class Counter(Metric):
        def inc(self, value: float, tags: dict[str, str]) -> None:
            assert value > 0
            found[self.key(tags)] = found.get(self.key(tags), 0) + value

    class Gauge(Metric):
        def set(self, value: float, tags: dict[str, str]) -> None:
            found[self.key(tags)] = value

    monkeypatch.setattr(ray.util.metrics, "Counter", Counter)
    monkeypatch.setattr(ray.util.metrics, "Gauge", Gauge)
    return found


def labels(**more: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted({"model": "m", "replica": "r", **more}.items()))


def test_ray_is_told_what_has_grown_once(told: dict[Key, float]) -> None:
    metrics = ReplicaMetrics("m", "r")
    export = RayExport(metrics.registry)
    for latency in (0.003, 0.003, 0.2):
        metrics.count("1", 200, latency)
    metrics.count("1", 503, 0.0001)
    export.tell()
    export.tell()
    assert told["raymlp_requests", labels(version="1", status="200")] == 3
    metrics.count("1", 200, 0.003)
    export.tell()
    assert told["raymlp_requests", labels(version="1", status="200")] == 4
    assert told["raymlp_requests", labels(version="1", status="503")] == 1
    buckets = {float(bound): told.get(("raymlp_latency_seconds_bucket", labels(version="1", le=str(bound))), 0) for bound in LATENCY_S}
    assert (buckets[0.0005], buckets[0.005], buckets[0.1], buckets[0.25]) == (1, 4, 4, 5)
    assert told["raymlp_latency_seconds_count", labels(version="1")] == 5
    assert not [name for name, _ in told if "created" in name]


def test_a_version_that_is_gone_has_no_share_left(told: dict[Key, float]) -> None:
    metrics = ReplicaMetrics("m", "r")
    export = RayExport(metrics.registry)
    metrics.set_weights({"1": 0.9, "2": 0.1})
    export.tell()
    metrics.set_weights({"1": 1.0})
    metrics.set_dropped(7)
    export.tell()
    assert told["raymlp_weight", labels(version="1")] == 1.0
    assert told["raymlp_weight", labels(version="2")] == 0.0
    assert told["raymlp_log_rows_dropped", labels()] == 7


def test_what_is_told_has_the_names_that_are_promised(told: dict[Key, float]) -> None:
    metrics: Any = ReplicaMetrics("m", "r")
    metrics.count("1", 200, 0.003)
    metrics.set_weights({"1": 1.0})
    metrics.set_dropped(1)
    metrics.flag("1", ("hour",))
    RayExport(metrics.registry).tell()
    gauges = {"raymlp_weight", "raymlp_log_rows_dropped"}
    assert {f"ray_{name}" if name in gauges else f"ray_{name}_total" for name, _ in told} == ray_names(metrics.registry)
    assert "ray_raymlp_latency_seconds_bucket_total" in ray_names(metrics.registry)
