"""A real Ray head with its own ports, folder and token, stopped by its process group alone."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raymlp.runtime.ports import free_ports

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_S = 240.0


@dataclass(frozen=True)
class Head:
    """Where the jobs API answers, where the head keeps its files, and the environment of a person who may use it."""

    address: str
    folder: Path
    environment: Mapping[str, str] = field(repr=False)

    def asked(self, path: str, method: str = "GET") -> Any:
        """JSON from the dashboard."""
        headers = {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        request = urllib.request.Request(self.address + path, headers=headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def until(self, name: str, said: str = "") -> dict[str, Any]:
        """The record of a job that has ended, or has written something."""
        for _ in waiting():
            record = dict(self.asked(f"/api/jobs/{name}"))
            if record["status"] in ("SUCCEEDED", "FAILED", "STOPPED") or (said and said in self.log(name)):
                return record
        raise AssertionError(f"the job {name} did not get there: {self.log(name)[-3000:]}")

    def log(self, name: str) -> str:
        with contextlib.suppress(urllib.error.HTTPError):  # while its supervisor starts
            return str(self.asked(f"/api/jobs/{name}/logs")["logs"])
        return ""


@contextlib.contextmanager
def started() -> Iterator[Head]:
    folder = tempfile.mkdtemp(prefix="raymlp-head-", dir="/tmp")
    port, dashboard, client, metrics, agent, agent_grpc = free_ports(6)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "RAYMLP_"))}
    environment = {
        **kept,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_urlsafe(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_raylet_start_wait_time_s": "120",
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    words = [
        "ray", "start", "--head", "--block", "--num-cpus=4", "--disable-usage-stats", f"--temp-dir={folder}", f"--port={port}",
        f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}", f"--metrics-export-port={metrics}",
        f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}", f"--object-store-memory={300 << 20}",
    ]  # fmt: skip
    with open(f"{folder}/head.log", "w") as out:
        process = subprocess.Popen(words, env=environment, stdout=out, stderr=out, start_new_session=True)
    running = Head(
        f"http://127.0.0.1:{dashboard}", Path(folder), {**environment, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    )
    try:
        _wait_for_node(running, process)
        yield running
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for_node(head: Head, process: subprocess.Popen[bytes]) -> None:
    for _ in waiting():
        assert process.poll() is None, "the head died"
        with contextlib.suppress(OSError):
            if head.asked("/api/v0/nodes")["data"]["result"]["total"]:
                return
    raise AssertionError(f"{head.address} had no node in time")


def waiting() -> Iterator[None]:
    """Looks, a quarter of a second apart, without a busy loop, until patience is over."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        yield
        select.select([], [], [], 0.25)
