"""How long a task that needs a GPU waits for its worker, and how soon the worker is gone: a cluster of this machine that scales.

    python benchmarks/autoscaling.py [--rounds 5] [--plot docs/images/autoscaling.png] [--json FILE]

Ray's autoscaler, with its provider that starts a worker as processes here: what a cloud needs to bring up a machine is not in it. First
one task at a time, each of which finds the head alone; then sixteen tasks at once for at most four workers, watched until the last one
has gone. The GPUs are said and not there: what is placed and counted is the same.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

IDLE_S = 5.0
MOST, TASKS, TASK_S = 4, 16, 6.0


def measure(rounds: int) -> dict[str, Any]:
    """Against the cluster of the environment."""
    import ray

    ray.init(logging_level="ERROR", log_to_driver=False)

    def alive() -> int:
        return sum(node["Alive"] for node in ray.nodes())

    def until_alone() -> None:
        while alive() > 1:
            time.sleep(0.05)

    @ray.remote(num_gpus=1)
    def work(seconds: float) -> tuple[float, float]:
        began = time.time()
        time.sleep(seconds)
        return began, time.time()

    singles = []
    for _ in range(rounds):
        asked = time.time()
        began, ended = ray.get(work.remote(0.0))
        until_alone()
        singles.append({"wait_s": began - asked, "gone_s": time.time() - ended})
        print(json.dumps(singles[-1]), file=sys.stderr, flush=True)
    samples: list[tuple[float, int]] = []
    asked = time.time()
    with sampled(lambda: samples.append((time.time() - asked, alive() - 1))):
        spans = ray.get([work.remote(TASK_S) for _ in range(TASKS)])
        until_alone()
        time.sleep(1.0)
    return {"singles": singles, "spans": [(began - asked, ended - asked) for began, ended in spans], "workers": samples}


@contextmanager
def sampled(look: Any) -> Any:
    """Call `look` five times a second while the block runs."""
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(0.2):
            look()

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def draw(found: dict[str, Any], place: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    times = [at for at, _ in found["workers"]]
    spans = found["spans"]
    waiting = [sum(at < began for began, _ in spans) for at in times]
    running = [sum(began <= at < ended for began, ended in spans) for at in times]
    figure, axes = plt.subplots(figsize=(7.2, 3.4), layout="constrained")
    both = [one + other for one, other in zip(running, waiting, strict=True)]
    axes.fill_between(times, running, both, step="post", color="#f2c894", linewidth=0, label="tasks that wait for a GPU")
    axes.fill_between(times, running, step="post", color="#9cc4e4", linewidth=0, label="tasks that run")
    axes.step(times, [count for _, count in found["workers"]], where="post", color="#1f2d3d", linewidth=1.8, label="workers")
    axes.set_xlabel("seconds since sixteen tasks asked for a GPU each")
    axes.set_ylabel("tasks, workers")
    axes.set_xlim(0, max(times))
    axes.set_ylim(0)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper right")
    figure.savefig(place, dpi=110)


def show(found: dict[str, Any]) -> None:
    table = Table("", "median s", "least s", "most s")
    singles, spans = found["singles"], found["spans"]
    rows = {
        f"a task finds no worker: until it runs ({len(singles)} times)": [one["wait_s"] for one in singles],
        f"its worker is idle: until it is gone, of which {IDLE_S:g} are the rule": [one["gone_s"] for one in singles],
        f"{TASKS} tasks at once, at most {MOST} workers: until each runs": [began for began, _ in spans],
    }
    for what, seconds in rows.items():
        table.add_row(what, *(f"{one:.1f}" for one in (median(seconds), min(seconds), max(seconds))))
    Console(width=120).print(table)


def main() -> None:
    words = argparse.ArgumentParser()
    words.add_argument("--rounds", type=int, default=5)
    words.add_argument("--plot", type=Path)
    words.add_argument("--json", type=Path)
    words.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    chosen = words.parse_args()
    if chosen.measure:
        print(json.dumps(measure(chosen.rounds)))
        return
    from raymlp.runtime.cluster.layout import Shape
    from raymlp.runtime.cluster.start import start, stop

    with tempfile.TemporaryDirectory(prefix="ra-", dir="/tmp") as place:
        cluster = start(Path(place), Shape(0, MOST, worker_cpus=1, worker_gpus=1, idle_s=IDLE_S))
        try:
            # A driver of its own: Ray reads the environment when it is loaded.
            again = [sys.executable, __file__, "--measure", "--rounds", str(chosen.rounds)]
            done = subprocess.run(again, env={**os.environ, **cluster.exports()}, stdout=subprocess.PIPE, text=True, check=True)
        finally:
            stop(cluster)
    found = json.loads(done.stdout.splitlines()[-1])
    show(found)
    if chosen.json:
        chosen.json.write_text(json.dumps(found))
    if chosen.plot:
        draw(found, chosen.plot)


if __name__ == "__main__":
    main()
