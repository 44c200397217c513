"""Room for workers, and who gets which chunk: arithmetic by hand, and workers that die or never start, without Ray."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError

from raymlp.config.predict import Predict
from raymlp.core.errors import ConfigError
from raymlp.predict import room
from raymlp.predict.pool import CHUNKS_PER_WORKER, RETRIES, Pool
from raymlp.predict.room import fitting, no_room, num_workers, wait_s
from raymlp.runtime import growth


@pytest.mark.parametrize(
    ("settings", "nodes", "reading", "expected"),
    [
        ({}, [{"CPU": 4}], 0, 4),
        ({"cpus_per_worker": 3}, [{"CPU": 4}, {"CPU": 4}, {"CPU": 2}], 0, 2),  # ten CPUs, and none lends to another
        ({"cpus_per_worker": 3}, [{"CPU": 4}, {"CPU": 4}], 3, 1),
        ({"cpus_per_worker": 0.1}, [{"CPU": 0.3}], 0, 3),  # 0.3 / 0.1 is less than 3
        ({}, [{"GPU": 1}, {}], 0, 0),
        ({}, [{"CPU": 1}], 2, 0),
        ({"gpus_per_worker": 1}, [{"CPU": 8, "GPU": 2}, {"CPU": 8}], 0, 2),
        ({"gpus_per_worker": 0.4}, [{"CPU": 8, "GPU": 2}], 0, 4),  # two on each GPU, not five on both
        ({"gpus_per_worker": 0.25}, [{"CPU": 8, "GPU": 1.5}], 0, 6),
        ({"cpus_per_worker": 3, "gpus_per_worker": 0.25}, [{"CPU": 8, "GPU": 1}], 0, 2),
    ],
)
def test_a_worker_fits_on_one_node(settings: dict[str, Any], nodes: list[dict[str, float]], reading: int, expected: int) -> None:
    assert fitting(Predict(**settings), nodes, reading=reading) == expected


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> list[list[dict[str, float]]]:
    """Two nodes of four CPUs, with one and two free at first, and later what a test puts in front; time goes on by waiting alone."""
    looks: list[list[dict[str, float]]] = [[{"CPU": 1.0}, {"CPU": 2.0}]]
    now = [0.0]
    monkeypatch.setattr(room.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(room.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    monkeypatch.setattr(room, "_totals", lambda: [{"CPU": 4.0}, {"CPU": 4.0}])
    monkeypatch.setattr(room, "_free", lambda: looks.pop(0) if len(looks) > 1 else looks[0])
    monkeypatch.setattr(growth, "autoscales", lambda: False)
    return looks


def test_null_takes_what_is_free_and_a_number_what_there_is(busy: list[list[dict[str, float]]]) -> None:
    assert num_workers(Predict(), reads_kafka=False, worth=None) == 3
    assert num_workers(Predict(), reads_kafka=False, worth=2) == 2
    assert num_workers(Predict(cpus_per_worker=2), reads_kafka=False, worth=None) == 1
    assert num_workers(Predict(cpus_per_worker=3), reads_kafka=False, worth=None) == 1  # none fits now: it is waited for
    assert num_workers(Predict(), reads_kafka=True, worth=None) == 1
    assert num_workers(Predict(num_workers=8), reads_kafka=False, worth=1) == 8
    busy.insert(0, [{"CPU": 0.0}])  # a job that ended just now gives back a moment later
    assert num_workers(Predict(), reads_kafka=False, worth=3) == 3


def test_what_cannot_fit_is_refused_with_the_arithmetic(busy: list[list[dict[str, float]]]) -> None:
    with pytest.raises(
        ConfigError, match=r"3 workers of 3 CPUs and 0 GPUs, and the cluster has 8 CPUs and 0 GPUs on 2 nodes, with room for 2;"
    ):
        num_workers(Predict(num_workers=3, cpus_per_worker=3), reads_kafka=False, worth=None)
    with pytest.raises(ConfigError, match=r"1 worker of 1 CPUs and 1 GPUs, .* 0 GPUs on 2 nodes, with room for 0"):
        num_workers(Predict(gpus_per_worker=1), reads_kafka=False, worth=None)
    words = str(no_room(Predict(cpus_per_worker=3), 2, 60))
    assert "2 workers of 3 CPUs and 0 GPUs and waited 60 s for the first; of the cluster's 8 CPUs" in words
    assert "3 and 0 are free, with room for 0. Stop what holds the rest" in words


def test_a_cluster_that_brings_nodes_is_asked_and_waited_for(busy: list[list[dict[str, float]]], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[dict[str, float]]] = []
    monkeypatch.setattr(growth, "may_bring", lambda bundles: asked.append(list(bundles)) or len(bundles) < 9)
    assert num_workers(Predict(gpus_per_worker=0.5, num_workers=2), reads_kafka=True, worth=None) == 2
    assert asked == [[{"CPU": 1, "GPU": 0.5}, {"CPU": 1, "GPU": 0.5}, {"CPU": 2}]]
    assert num_workers(Predict(cpus_per_worker=5), reads_kafka=False, worth=None) == 1
    with pytest.raises(ConfigError, match=r"9 workers of 1 CPUs .* with room for 8"):
        num_workers(Predict(num_workers=9), reads_kafka=False, worth=None)
    assert wait_s() == room.START_S
    monkeypatch.setattr(growth, "autoscales", lambda: True)
    assert wait_s() == room.GROWTH_S


class FakeWorker:
    """Gives its own words as what Ray would give for them: (itself, the chunk), or (itself, None) for its start."""

    def __init__(self) -> None:
        self.alive = True
        self.ready = self.answer = self

    def remote(self, chunk: Any = None) -> Any:
        return self, chunk, object()


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(told: Any) -> tuple[Any, ...]:
        if not told[0].alive:
            raise RayActorError
        return ("done", told[1])

    monkeypatch.setattr(ray, "get", get)


def begun(count: int, *, start: int) -> Pool:
    pool = Pool(FakeWorker, count)
    for ready in list(pool.starting)[:start]:
        pool.begin(ready)
    return pool


def test_no_chunk_goes_to_a_worker_that_does_not_run(fakes: None) -> None:
    pool = begun(3, start=0)
    assert not pool.is_free
    pool.begin(list(pool.starting)[1])
    given = 0
    while pool.is_free:
        pool.give(given)
        given += 1
    assert given == CHUNKS_PER_WORKER
    assert {place for place, *_ in pool.busy.values()} == {1}
    pool.begin(next(iter(pool.starting)))
    pool.give("next")
    assert [place for place, *_ in pool.busy.values()] == [1, 1, 0]


def test_chunks_go_to_those_that_have_least(fakes: None) -> None:
    pool = begun(3, start=3)
    for chunk in range(3):
        pool.give(chunk)
    assert Counter(place for place, *_ in pool.busy.values()) == {0: 1, 1: 1, 2: 1}


def test_a_worker_that_dies_is_replaced_once_and_its_chunks_wait_for_one_that_runs(fakes: None) -> None:
    pool = begun(1, start=1)
    pool.give("a")
    pool.give("b")
    dead = pool.workers[0]
    dead.alive = False
    assert [pool.end(told) for told in list(pool.busy)] == [None, None]
    assert pool.workers[0] is not dead
    assert (len(pool.starting), pool.is_free, pool.is_done) == (1, False, False)
    pool.begin(next(iter(pool.starting)))
    assert sorted(chunk for _, _, chunk, _ in pool.busy.values()) == ["a", "b"]
    assert [pool.end(told) for told in list(pool.busy)] == [("done", "a"), ("done", "b")]
    assert (pool.slots, pool.is_done) == ({0: CHUNKS_PER_WORKER}, True)


def test_deaths_are_counted(fakes: None) -> None:
    pool = begun(1, start=1)
    pool.give("a")
    for _ in range(RETRIES):
        pool.workers[0].alive = False
        assert pool.end(next(iter(pool.busy))) is None
        pool.begin(next(iter(pool.starting)))
    pool.workers[0].alive = False
    with pytest.raises(RayActorError):
        pool.end(next(iter(pool.busy)))
    pool = begun(1, start=0)
    for _ in range(RETRIES):
        pool.workers[0].alive = False
        pool.begin(next(iter(pool.starting)))
    pool.workers[0].alive = False
    with pytest.raises(RayActorError):
        pool.begin(next(iter(pool.starting)))


def test_only_a_pool_without_any_worker_gives_up(fakes: None, busy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, float | None]] = []

    def wait(refs: list[Any], *, num_returns: int, timeout: float | None, fetch_local: bool) -> tuple[list[Any], list[Any]]:
        asked.append((len(refs), timeout))
        return ([], refs) if timeout is not None else (refs[:1], refs[1:])

    monkeypatch.setattr(ray, "wait", wait)
    pool = begun(2, start=0)
    assert pool.wait(["reader"]) is None
    pool.begin(next(iter(pool.starting)))
    assert pool.wait(["reader"]) is not None
    room.time.sleep(100)
    pool.give("a")
    pool.workers[0].alive = False
    pool.end(next(iter(pool.busy)))
    assert pool.wait(["reader"]) is None
    assert asked == [(2, 60.0), (2, None), (2, 60.0)]
