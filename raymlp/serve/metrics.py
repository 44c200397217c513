"""What a replica counts, as Prometheus text. `export` has the same as Ray's metrics."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

LATENCY_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Upper bounds of the latency histogram, in seconds."""


class ReplicaMetrics:
    """Requests by version and status, latency by version, weights, rows out of place, and rows the prediction log lost."""

    def __init__(self, model: str, replica: str) -> None:
        self.registry = CollectorRegistry()
        names = ["model", "replica", "version"]
        self._requests = Counter("raymlp_requests", "Requests answered", [*names, "status"], registry=self.registry)
        self._latency = Histogram(
            "raymlp_latency_seconds", "Time from request to answer in the replica", names, buckets=LATENCY_S, registry=self.registry
        )
        self._weight = Gauge("raymlp_weight", "Share of traffic", names, registry=self.registry)
        self._lost = Gauge("raymlp_log_rows_dropped", "Rows the prediction log lost", names[:2], registry=self.registry)
        self._flagged = Counter("raymlp_flagged_rows", "Rows answered with a field out of place", [*names, "field"], registry=self.registry)
        self._labels = (model, replica)
        self._children: dict[tuple[str, int], Callable[[], None]] = {}
        self._observers: dict[str, Callable[[float], None]] = {}

    def count(self, version: str, status: int, latency_s: float) -> None:
        """One answered request; `version` is empty when none was chosen."""
        key = version, status
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self._requests.labels(*self._labels, version, str(status)).inc
        child()
        observe = self._observers.get(version)
        if observe is None:
            observe = self._observers[version] = self._latency.labels(*self._labels, version).observe
        observe(latency_s)

    def flag(self, version: str, fields: tuple[str, ...]) -> None:
        """A row was answered although these fields are out of place."""
        for field in fields:
            self._flagged.labels(*self._labels, version, field).inc()

    def set_weights(self, weights: dict[str, float]) -> None:
        """The shares that hold from now on."""
        self._weight.clear()
        for version, share in weights.items():
            self._weight.labels(*self._labels, version).set(share)

    def set_dropped(self, rows: int) -> None:
        """The prediction log's count of lost rows."""
        self._lost.labels(*self._labels).set(rows)

    def text(self, *, dropped: int) -> bytes:
        """Prometheus exposition format; `dropped` is the log's count of lost rows."""
        self.set_dropped(dropped)
        return bytes(generate_latest(self.registry))
