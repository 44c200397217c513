"""The counts of a replica again as Ray's metrics, so that Prometheus finds them at every node's metrics port.

`prometheus_client` costs a quarter of a microsecond on the request path and Ray's own counters ten times that; so Ray is told in the
background, and only what has changed.
"""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric

SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
"""The series of each kind of metric; every one but a gauge only grows."""


def ray_names(registry: CollectorRegistry) -> set[str]:
    """The names under which Prometheus finds the registry's series at Ray's port: `raymlp_requests_total` is `ray_raymlp_requests_total`,
    and `raymlp_latency_seconds_bucket` is `ray_raymlp_latency_seconds_bucket_total`, of use to `histogram_quantile` all the same."""
    return {ray_name(family, family.name + suffix) for family in registry.collect() for suffix in SUFFIXES.get(family.type, ())}


def ray_name(family: Metric, sample: str) -> str:
    """The name of one series at Ray's port, where what grows ends in `_total`."""
    return f"ray_{sample}" if family.type == "gauge" else f"ray_{sample.removesuffix('_total')}_total"


class RayExport:
    """Tells Ray what a registry has counted since the last time. Ray must be initialised."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._metrics: dict[str, Any] = {}
        self._told: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    def tell(self) -> None:
        """Add what has grown, and set what is set; a gauge's series that is gone from the registry becomes 0."""
        seen = set()
        for family in self._registry.collect():
            for sample in family.samples:
                if sample.name.removeprefix(family.name) not in SUFFIXES.get(family.type, ()):
                    continue
                key = sample.name, tuple(sorted(sample.labels.items()))
                seen.add(key)
                before = self._told.get(key, 0.0)
                if family.type == "gauge":
                    self._metric(family, sample.name, sample.labels).set(sample.value, sample.labels)
                elif sample.value > before:
                    self._metric(family, sample.name, sample.labels).inc(sample.value - before, sample.labels)
                self._told[key] = sample.value
        for name, labels in set(self._told) - seen:
            self._metrics[name].set(0.0, dict(labels))
            del self._told[name, labels]

    def _metric(self, family: Metric, name: str, labels: dict[str, str]) -> Any:
        from ray.util.metrics import Counter, Gauge

        if name not in self._metrics:
            kind = Gauge if family.type == "gauge" else Counter
            self._metrics[name] = kind(name.removesuffix("_total"), family.documentation, tag_keys=tuple(labels))
        return self._metrics[name]
