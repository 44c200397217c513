"""The head's store (GCS) is killed and comes back, with its state on disk (RocksDB, which Ray 2.60 calls alpha)."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from raymlp.runtime.cluster.layout import Shape
from raymlp.runtime.cluster.start import health
from tests.chaos.faults import job, running, store_away, submit, until

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.xdist_group("cluster")]
JOB = """
import pathlib, sys, time
import ray
ray.init(logging_level="ERROR")
@ray.remote(num_cpus=1)
class Counter:
    def __init__(self): self.calls = 0
    def count(self):
        self.calls += 1
        return self.calls
counter = Counter.options(name="counter").remote()
folder = pathlib.Path(sys.argv[1])
while not (folder / "enough").exists():
    (folder / "calls").write_text(str(ray.get(counter.count.remote())))
    time.sleep(0.05)
assert ray.get(ray.get_actor("counter").count.remote()) == int((folder / "calls").read_text()) + 1
assert ray.get(ray.remote(num_cpus=1)(lambda: 7).remote()) == 7
raise SystemExit(5)
"""


def test_a_job_and_its_actors_outlive_the_heads_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    monkeypatch.setenv("RAY_gcs_storage", "rocksdb")
    monkeypatch.setenv("RAY_gcs_storage_path", str(tmp_path / "store"))
    (tmp_path / "job.py").write_text(JOB)

    def calls() -> int:
        file = tmp_path / "calls"
        return int(file.read_text() or 0) if file.exists() else 0

    with running(Shape(1, 1, worker_cpus=2, head_cpus=1)) as cluster:
        submit(cluster, shlex.join([sys.executable, str(tmp_path / "job.py"), str(tmp_path)]), "outlives")
        until(lambda: calls() > 3, "the job's first calls")
        with store_away(cluster):
            assert not health(cluster).gcs
            before = calls()
            until(lambda: calls() > before + 10, "calls of an actor without the store")
        back_s = until(lambda: not health(cluster).problems(cluster.shape), "the cluster's health")
        before = calls()
        until(lambda: calls() > before + 10, "calls after it")
        (tmp_path / "enough").touch()
        until(lambda: job(cluster, "outlives")["status"] not in ("PENDING", "RUNNING"), "the job's end")
        found = job(cluster, "outlives")
        assert (found["status"], found["driver_exit_code"]) == ("FAILED", 5), found["message"]
    record_property("seconds from the start of the store until all is well", round(back_s, 1))
