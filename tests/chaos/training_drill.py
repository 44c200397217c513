"""A run on two nodes, of which one loses its power, and the same run left alone: run by `test_node_of_training`.

The folder holds a snapshot. Says what it saw as JSON, in the last line.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import ray

from raymlp.config.runtime import Runtime
from raymlp.core.records import Snapshot, TrainedModel
from raymlp.runtime.cluster.layout import load
from raymlp.runtime.session import ray_session
from raymlp.train.trainer import train
from tests.chaos.faults import cut_power, raylets
from tests.train.planted import config_of
from tests.train.test_trainer import same

AT = 2


def main(folder: Path, place: Path) -> None:
    rows = json.loads((folder / "snapshot" / "manifest.json").read_text())["rows"]
    snapshot = Snapshot(folder / "snapshot", "0" * 64, rows)
    cluster = load(place)
    assert cluster
    heard: list[int] = []
    moments: dict[str, float] = {}

    def on_epoch(metrics: dict[str, float]) -> None:
        heard.append(int(metrics["epoch"]))
        if heard[-1] == AT and "cut" not in moments:
            cut_power(cluster, min(raylets(cluster)))
            moments["cut"] = time.monotonic()
        elif "cut" in moments:
            moments.setdefault("on", time.monotonic())

    def run(name: str, **options: object) -> TrainedModel:
        config = config_of(num_workers=2, max_failures=3, epochs=5, cpus_per_worker=1)
        return train(config, snapshot, run_dir=folder / name, run_id="run", **options)  # type: ignore[arg-type]

    with ray_session(Runtime(storage=str(folder))):
        whole = run("whole")
        before = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        cut = run("cut", on_epoch=on_epoch)
        after = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    seen = {
        "same": same(whole, cut),
        "metrics": cut.metrics,
        "expected": whole.metrics,
        "heard": heard,
        "lost": len(before - after),
        "came": len(after - before),
        "away_s": moments["on"] - moments["cut"],
    }
    sys.stdout.write(f"{json.dumps(seen)}\n")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
