"""The network between two nodes is cut without a word: network namespaces, which root alone can make."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raymlp.runtime.cluster.layout import BUSY, FAULTS
from raymlp.runtime.cluster.processes import MARK, Owner, end
from tests.chaos.faults import ROOT, until

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.xdist_group("cluster"),
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="needs root and the program ip"),
]
HEAD, FAR = "10.213.77.1", "10.213.77.2"
START_S = 150.0


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def places() -> Iterator[tuple[str, str]]:
    """Two network namespaces with a cable between them."""
    tag = uuid.uuid4().hex[:6]
    names = f"rh{tag}", f"rf{tag}"
    try:
        for name in names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("link", "add", f"h{tag}", "netns", names[0], "type", "veth", "peer", "name", f"f{tag}", "netns", names[1])
        for name, cable, address in zip(names, (f"h{tag}", f"f{tag}"), (HEAD, FAR), strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", cable)
            ip("-n", name, "link", "set", cable, "up")
        yield names
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this machine makes no network namespaces: {error.stderr.decode()}")
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def test_a_task_on_a_node_that_fell_silent_is_done_elsewhere_within_a_minute(
    places: tuple[str, str], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """With the settings of cluster/env; Ray's own held such a task for 416 s."""
    folder = Path(tempfile.mkdtemp(prefix="rx-", dir="/tmp"))
    owner = Owner(uuid.uuid4().hex, folder)
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(uuid.uuid4().hex * 2)
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    ray = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_TMPDIR": str(folder)}
    environment = {**own, **FAULTS, **BUSY, **ray, MARK: owner.mark, "PYTHONPATH": str(ROOT)}
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--num-cpus=1", "--object-store-memory=100000000"]

    def run(place: str, words: list[str], **more: str) -> None:
        with (folder / "start.log").open("a") as log:
            subprocess.run(
                ["ip", "netns", "exec", place, *words], env={**environment, **more}, check=True, stdout=log, stderr=log, timeout=START_S
            )

    try:
        run(places[0], [*start, "--head", f"--node-ip-address={HEAD}", "--port=6379", f"--temp-dir={folder / 'ray'}"])
        run(places[1], [*start, f"--address={HEAD}:6379", f"--node-ip-address={FAR}", f"--temp-dir={folder / 'far'}"])
        drill = [sys.executable, "-m", "tests.chaos.partition_drill", str(tmp_path), HEAD]
        with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as errors:
            process = subprocess.Popen(
                ["ip", "netns", "exec", places[0], *drill],
                env={**environment, "RAY_ADDRESS": f"{HEAD}:6379"},
                stdout=out,
                stderr=errors,
                cwd=ROOT,
            )
        until(lambda: (tmp_path / "began").exists() or process.poll() is not None, "the task on the far node")
        ip("-n", places[1], "link", "set", f"f{places[1][2:]}", "down")
        (tmp_path / "cut").touch()
        assert process.wait(START_S) == 0, (tmp_path / "err").read_text()[-3_000:]
    finally:
        end(owner, patience_s=5)
        shutil.rmtree(folder, ignore_errors=True)
    seen = json.loads((tmp_path / "out").read_text().splitlines()[-1])
    assert seen["where"] == HEAD
    assert seen["done_s"] < 60, seen
    for name in ("declared_s", "done_s"):
        record_property(name, round(seen[name], 1))
