"""`ray job submit` against a real head with its own ports and folder, stopped by its process group alone."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raymlp.runtime.ports import free_ports

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.ray


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "RAYMLP_"))}
    return {
        **kept,
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """Address of the jobs API of a head that this test started."""
    folder = tempfile.mkdtemp(prefix="raymlp-head-", dir="/tmp")
    port, dashboard, client, metrics, agent, agent_grpc = free_ports(6)
    words = [
        "ray", "start", "--head", "--block", "--num-cpus=4", "--disable-usage-stats", f"--temp-dir={folder}", f"--port={port}",
        f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}", f"--metrics-export-port={metrics}",
        f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}", f"--object-store-memory={300 << 20}",
    ]  # fmt: skip
    with open(f"{folder}/head.log", "w") as out:
        process = subprocess.Popen(words, env=environment(), stdout=out, stderr=out, start_new_session=True)
    address = f"http://127.0.0.1:{dashboard}"
    try:
        _wait_for(f"{address}/api/jobs/", process)
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, "the head died"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2):
            return
        select_wait()
    raise AssertionError(f"{url} did not answer in 120 s")


def select_wait() -> None:
    """Half a second without a busy loop."""
    import select

    select.select([], [], [], 0.5)


def submit(address: str, name: str, *words: str) -> None:
    options = ["--address", address, "--submission-id", name, "--no-wait", "--working-dir", "."]
    command = ["ray", "job", "submit", *options, "--", "python", *words]
    result = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr


def ended(address: str, name: str) -> tuple[dict[str, Any], str]:
    """The record and the output of a job that has ended, from the jobs API: a log that is followed can break off."""
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
        record = asked(f"{address}/api/jobs/{name}")
        if record["status"] in ("SUCCEEDED", "FAILED", "STOPPED"):
            return record, str(asked(f"{address}/api/jobs/{name}/logs")["logs"])
        select_wait()
    raise AssertionError(f"the job {name} did not end in 400 s")


def asked(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return dict(json.load(answer))


def test_a_job_leaves_its_bundle_while_a_wrong_one_fails_with_the_message_of_the_command_line(head: str, tmp_path: Path) -> None:
    settings = ["experiment=flights", f"runtime.storage={tmp_path}", "data.split.train_start=2013-06-15", "train.epochs=1"]
    submit(head, "good", "jobs/train.py", *settings)
    submit(head, "wrong", "jobs/train.py", "experiment=flights", "train.epoch=1")
    record, said = ended(head, "wrong")
    assert (record["status"], record["driver_exit_code"]) == ("FAILED", 2)
    assert "train.epoch is not a setting" in said
    record, said = ended(head, "good")
    assert record["status"] == "SUCCEEDED", said[-3000:]
    assert len(list(tmp_path.glob("runs/*/bundle/manifest.json"))) == 1
