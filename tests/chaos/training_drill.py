"""A run whose node loses its power: run by `test_node_of_training`, which has written a snapshot into the folder.

Says what it saw as JSON, in the last line.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import ray

from raymlp.config.runtime import Runtime
from raymlp.core.records import Snapshot
from raymlp.runtime.cluster.layout import load
from raymlp.runtime.cluster.processes import words
from raymlp.runtime.session import ray_session
from raymlp.train.trainer import fit_in_process, train
from tests.chaos.faults import below, cut_power, raylets
from tests.train.planted import config_of

AT = 2


def main(folder: Path, place: Path) -> None:
    rows = json.loads((folder / "snapshot" / "manifest.json").read_text())["rows"]
    snapshot = Snapshot(folder / "snapshot", "0" * 64, rows)
    cluster = load(place)
    assert cluster
    config = config_of(num_workers=1, max_failures=3, cpus_per_worker=1)
    expected = fit_in_process(config, snapshot.path, lambda _: None)
    heard: list[int] = []
    moments: dict[str, float] = {}

    def at_work() -> str:
        """The node that has the worker."""
        titles = {node: [words(pid)[0] for pid in below(raylet)] for node, raylet in raylets(cluster).items()}
        (node,) = (node for node, found in titles.items() if any(title.startswith("ray::RayTrainWorker") for title in found))
        return node

    def on_epoch(metrics: dict[str, float]) -> None:
        heard.append(int(metrics["epoch"]))
        if heard[-1] == AT and "cut" not in moments:
            cut_power(cluster, at_work())
            moments["cut"] = time.monotonic()
        elif "cut" in moments:
            moments.setdefault("on", time.monotonic())

    with ray_session(Runtime(storage=str(folder))):
        before = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        model = train(config, snapshot, run_dir=folder / "run", run_id="run", on_epoch=on_epoch)
        after = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    seen = {
        "metrics": model.metrics,
        "expected": expected,
        "heard": heard,
        "lost": len(before - after),
        "came": len(after - before),
        "away_s": moments["on"] - moments["cut"],
    }
    sys.stdout.write(f"{json.dumps(seen)}\n")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
