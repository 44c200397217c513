"""Nodes that are announced to leave, that are lost and that come, in a cluster of this process's own: run by `test_drills`.

The cluster has two raylets with one CPU each. Says what it saw as JSON, in the last line.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import ray
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DrainNodeReason

from raymlp.config.runtime import Runtime
from raymlp.core.records import Snapshot
from raymlp.runtime.session import ray_session
from raymlp.train.follow import CHECKPOINTS
from raymlp.train.job import Progress
from raymlp.train.trainer import train
from tests.train.planted import config_of

NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 150 << 20, "include_dashboard": False}
QUICK = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1_000, "health_check_failure_threshold": 3}
"""How soon a cluster notices that a node is gone."""
PATIENCE_S = 300.0


class Enough(Exception):
    """The drill has seen what it wanted to."""


class Nodes:
    """Takes the second node away once the run has begun, and brings another when it went on without."""

    def __init__(self, cluster: Cluster, run_dir: Path) -> None:
        self._cluster, self._run_dir = cluster, run_dir
        self._second = cluster.add_node(**NODE)
        self.workers: list[int] = []
        self.epochs: list[int] = []
        self.saved: dict[str, int] = {}

    def __call__(self, metrics: dict[str, float]) -> None:
        self.epochs.append(int(metrics["epoch"]))
        workers = int(metrics["workers"])
        if not self.workers or self.workers[-1] != workers:
            self.workers.append(workers)
        if self.workers == [2] and len(self.epochs) == 2:
            self._announce()
            self._cluster.remove_node(self._second, allow_graceful=False)
        elif self.workers == [2, 1] and len(self._cluster.worker_nodes) == 0:
            self._cluster.add_node(**NODE)
        elif self.workers == [2, 1, 2]:
            raise Enough

    def _announce(self) -> None:
        """A notice that the node will be taken away in a minute; no other save is due in this run."""
        assert not list((self._run_dir / CHECKPOINTS).glob("checkpoint_*/progress.json"))
        minute = int(1e3 * (time.time() + 60))
        client = GcsClient(address=self._cluster.address)
        taken, why = client.drain_node(self._second.node_id, DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"), "drill", minute)
        assert taken, why
        started = time.monotonic()
        while not (listed := list((self._run_dir / CHECKPOINTS).glob("checkpoint_*/progress.json"))):
            assert time.monotonic() - started < PATIENCE_S
            time.sleep(0.05)
        while not (self._run_dir / CHECKPOINTS / "checkpoints.json").exists():
            time.sleep(0.05)
        progress = Progress.load(listed[0].parent)
        self.saved = {"epochs": progress.epochs, "batch": progress.batch}


def main(folder: Path) -> None:
    snapshot = Snapshot(folder / "snapshot", "0" * 64, json.loads((folder / "snapshot" / "manifest.json").read_text())["rows"])
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "_system_config": QUICK})
    settings: dict[str, Any] = {
        "num_workers": 2,
        "elastic": {"min_workers": 1, "look_every_s": 1.0},
        "max_failures": 9,
        "epochs": 100_000,
        "schedule": {"kind": "constant"},
    }
    try:
        with ray_session(Runtime(address=cluster.address, storage=str(folder))):
            nodes = Nodes(cluster, folder / "run")
            config = config_of(**settings, batch_size=4, checkpoint={"every_epochs": None}, stopping={"patience": 100_000})
            with contextlib.suppress(Enough):
                train(config, snapshot, run_dir=folder / "run", run_id="run", on_epoch=nodes)
            heard: list[int] = []
            config = config_of(**settings, batch_size=4, stopping={"patience": 1, "min_delta": 9.0})
            model = train(
                config, snapshot, run_dir=folder / "run", run_id="run", on_epoch=lambda metrics: heard.append(int(metrics["epoch"]))
            )
            seen = {"workers": nodes.workers, "saved": nodes.saved, "epochs": nodes.epochs, "rest": heard, "metrics": model.metrics}
            sys.stdout.write(f"{json.dumps(seen)}\n")
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
