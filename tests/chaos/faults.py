"""Clusters of this machine to break, and ways to break them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from raymlp.runtime.cluster.layout import HEAD_ID, Cluster, Shape
from raymlp.runtime.cluster.processes import PROC, belonging, program, words
from raymlp.runtime.cluster.start import start, stop

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 120.0


@contextmanager
def running(shape: Shape) -> Iterator[Cluster]:
    """A cluster with the code of this checkout, gone with all its files at the end."""
    place = Path(tempfile.mkdtemp(prefix="rx-", dir="/tmp"))
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, ROOT / "benchmarks")))
    cluster = None
    try:
        cluster = start(place, shape)
        yield cluster
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
        if cluster:
            stop(cluster)
        shutil.rmtree(place, ignore_errors=True)


def drive(cluster: Cluster, module: str, *given: object, **environment: str) -> Any:
    """Run a driver of this folder on the cluster; gives the JSON of its last line."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.chaos.{module}", *map(str, given)],
        cwd=ROOT,
        env=driver_environment(cluster, **environment),
        capture_output=True,
        text=True,
        timeout=3.5 * PATIENCE_S,
    )
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-4_000:]
    return json.loads(done.stdout.splitlines()[-1])


def driver_environment(cluster: Cluster, **more: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**own, **cluster.exports(), "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "benchmarks"))), **more}


def until(is_so: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> float:
    """Wait; gives the seconds that it took."""
    started = time.monotonic()
    while not is_so():
        assert time.monotonic() < started + patience_s, f"{what}: not within {patience_s:g} s"
        time.sleep(0.1)
    return time.monotonic() - started


# ---------------------------------------------------------------------- nodes


def raylets(cluster: Cluster) -> dict[str, int]:
    """The process of each worker node by the node's id."""
    found = {}
    for pid in belonging(cluster.owner):
        if program(pid) == "raylet":
            node = variables(pid)["RAY_OVERRIDE_NODE_ID_FOR_TESTING"]
            if node != HEAD_ID:
                found[node] = pid
    return found


def variables(pid: int) -> dict[str, str]:
    pairs = (PROC / str(pid) / "environ").read_bytes().decode().split("\0")
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def cut_power(cluster: Cluster, node: str) -> None:
    """Every process of a node ends at once, and none can say so."""
    top = raylets(cluster)[node]
    os.kill(top, signal.SIGSTOP)  # it must start no more of them
    for pid in [*below(top), top]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def below(top: int) -> list[int]:
    """All that a process has started, and what those have."""
    parents = {}
    for place in PROC.iterdir():
        with suppress(OSError, ValueError):
            parents[int(place.name)] = int((place / "stat").read_text().rpartition(")")[2].split()[1])
    found, grown = [top], True
    while grown:
        more = [pid for pid, parent in parents.items() if parent in found and pid not in found]
        found, grown = found + more, bool(more)
    return found[1:]


# ---------------------------------------------------------------------- the head's store


@contextmanager
def store_away(cluster: Cluster) -> Iterator[None]:
    """The head's GCS is killed; behind the block it is started again as it was."""
    (pid,) = (pid for pid in belonging(cluster.owner) if program(pid) == "gcs_server")
    command, environment = words(pid)[:-1], variables(pid)
    os.kill(pid, signal.SIGKILL)
    until(lambda: pid not in belonging(cluster.owner), "the end of the GCS")
    try:
        yield
    finally:
        with (cluster.folder / "gcs.log").open("w") as log:
            subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)


# ---------------------------------------------------------------------- jobs


def submit(cluster: Cluster, entrypoint: str, submission_id: str) -> None:
    call(cluster, "/api/jobs/", {"entrypoint": entrypoint, "submission_id": submission_id})


def job(cluster: Cluster, submission_id: str) -> dict[str, Any]:
    found: dict[str, Any] = call(cluster, f"/api/jobs/{submission_id}")
    return found


def call(cluster: Cluster, path: str, body: dict[str, Any] | None = None) -> Any:
    headers = {"Authorization": f"Bearer {cluster.token_file.read_text()}", "Content-Type": "application/json"}
    data = json.dumps(body).encode() if body is not None else None
    with urllib.request.urlopen(urllib.request.Request(cluster.dashboard + path, data, headers), timeout=30) as answer:
        return json.load(answer)
