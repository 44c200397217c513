"""Room in the cluster for the workers of a batch: how many fit on its nodes, now or at all, and what is said when none does."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping

from raymlp.config.predict import Predict
from raymlp.core.errors import ConfigError
from raymlp.runtime import growth

START_S, GROWTH_S = 60.0, 600.0
"""Seconds that a job without any worker waits for room for one, and for a node that the cluster may bring."""
SETTLE_S = 2.0
"""Seconds in which Ray tells of what a job that ended just now gave back."""
POLL_S = 0.1
KAFKA_CPUS = 2
"""CPUs that reading from Kafka takes beside the workers."""
Node = Mapping[str, float]
"""CPUs and GPUs of a node, or those of them that are free."""


def fitting(settings: Predict, nodes: Iterable[Node], *, reading: int) -> int:
    """Workers that fit on the nodes, each whole on one of them, beside `reading` CPUs."""
    nodes = list(nodes)
    room = sum(_on(settings, float(node.get("CPU", 0)), float(node.get("GPU", 0))) for node in nodes)
    left = sum(float(node.get("CPU", 0)) for node in nodes) - reading
    return max(0, min(room, _times(left, settings.cpus_per_worker)))


def _on(settings: Predict, cpus: float, gpus: float) -> int:
    room = _times(cpus, settings.cpus_per_worker)
    if not settings.gpus_per_worker:
        return room
    whole = math.floor(gpus)
    return min(room, whole * _times(1, settings.gpus_per_worker) + _times(gpus - whole, settings.gpus_per_worker))


def _times(there: float, each: float) -> int:
    return math.floor(there / each + 1e-9)


def num_workers(settings: Predict, *, reads_kafka: bool, worth: int | None) -> int:
    """Workers to start: as many as are asked for, else as many as there is room for now and the source is `worth`, and one at least.

    Raises ConfigError with the arithmetic when they do not fit on the cluster's nodes, whatever else runs there, nor on those that it
    may bring.
    """
    reading, totals = KAFKA_CPUS if reads_kafka else 0, _totals()
    most, asked = fitting(settings, totals, reading=reading), settings.num_workers or 1
    if most < asked and not growth.may_bring(_bundles(settings, asked, reading)):
        cpus, gpus = _sums(totals)
        raise ConfigError(
            f"predict asks for {_words(settings, asked)}{' beside two CPUs for reading' if reading else ''}, and the cluster has "
            f"{cpus:g} CPUs and {gpus:g} GPUs on {len(totals)} node{'s' * (len(totals) != 1)}, with room for {most}; expected "
            "room for all. Set predict.num_workers, predict.cpus_per_worker or predict.gpus_per_worker."
        )
    if settings.num_workers:
        return settings.num_workers
    wanted = most if worth is None else max(1, min(most, worth))
    until = time.monotonic() + SETTLE_S
    while (now := fitting(settings, _free(), reading=reading)) < wanted and time.monotonic() < until:
        time.sleep(POLL_S)
    return max(1, min(now, wanted))


def wait_s() -> float:
    """Seconds that a job waits for its first worker."""
    return GROWTH_S if growth.autoscales() else START_S


def no_room(settings: Predict, count: int, waited_s: float) -> ConfigError:
    """Why a job has no worker yet, with the arithmetic."""
    totals, free = _totals(), _free()
    (cpus, gpus), (free_cpus, free_gpus) = _sums(totals), _sums(free)
    return ConfigError(
        f"predict asks for {_words(settings, count)} and waited {waited_s:g} s for the first; of the cluster's {cpus:g} CPUs and {gpus:g} "
        f"GPUs, {free_cpus:g} and {free_gpus:g} are free, with room for {fitting(settings, free, reading=0)}. Stop what holds the rest, "
        "or set predict.cpus_per_worker or predict.gpus_per_worker. Finished files are kept."
    )


def _words(settings: Predict, count: int) -> str:
    return f"{count} worker{'s' * (count > 1)} of {settings.cpus_per_worker:g} CPUs and {settings.gpus_per_worker:g} GPUs"


def _sums(nodes: Iterable[Node]) -> tuple[float, float]:
    nodes = list(nodes)
    return sum(float(node.get("CPU", 0)) for node in nodes), sum(float(node.get("GPU", 0)) for node in nodes)


def _totals() -> list[Node]:
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _bundles(settings: Predict, count: int, reading: int) -> list[dict[str, float]]:
    worker = {"CPU": settings.cpus_per_worker, "GPU": settings.gpus_per_worker}
    return [{kind: amount for kind, amount in worker.items() if amount}] * count + [{"CPU": float(reading)}] * bool(reading)


def _free() -> list[Node]:
    from ray._private.state import available_resources_per_node

    return list(available_resources_per_node().values())
