"""Start a cluster, look whether it is well, stop it."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from raymlp.core.errors import ConfigError, RaymlpError
from raymlp.runtime.cluster.certificates import make_certificate
from raymlp.runtime.cluster.layout import HOST, NODES, PORTS, Cluster, Shape, check_folder, load
from raymlp.runtime.cluster.processes import PROC, belonging, end, program, words
from raymlp.runtime.exposure import ask, refuses
from raymlp.runtime.ports import free_ports, port_is_free

START_S = 180.0
"""The head must be up within these seconds, and the workers within as many after it."""

TRIES = 5
"""Ray's raylet gives its agent 15 s to load and ends without it, which a machine that is busy now may need again."""

STOP_S = 15.0
POLL_S = 0.2
LOG, LOCK = "start.log", ".lock"
AUTOSCALER = "autoscaler/v2/monitor.py"


@dataclass(frozen=True)
class Health:
    """What a cluster answers when it is asked."""

    processes: int
    gcs: bool
    """The head knows its nodes."""

    agent: bool
    """The head's agent answers; without it jobs cannot be submitted."""

    scales: bool
    """What starts and ends workers runs."""

    guarded: bool
    """Who has no token is refused."""

    nodes: tuple[str, ...]
    """The nodes that are alive, each in words."""

    def problems(self, shape: Shape) -> list[str]:
        """What is wrong, in words; empty when it is well."""
        if not self.processes:
            return ["nothing of it runs"]
        found = []
        if not self.gcs:
            found.append("the head does not answer")
        if not self.agent:
            found.append("the head's agent does not answer: no job can be submitted")
        if not self.scales:
            found.append("the autoscaler has ended: no worker comes or goes")
        if self.gcs and not self.guarded:
            found.append("it answers without a token")
        if self.gcs and len(self.nodes) < 1 + shape.min_workers:
            found.append(f"{len(self.nodes)} of {1 + shape.min_workers} nodes are there")
        return found


def start(folder: Path, shape: Shape, *, dashboard_port: int | None = None) -> Cluster:
    """Start a cluster and wait until it is well.

    Raises ConfigError when one runs in this folder already, or for a port that is taken, and RaymlpError when it does not get well:
    then nothing of it is left.
    """
    if not (PROC / "self").exists():
        raise ConfigError(
            f"this machine has no {PROC}, by which the cluster's processes are found; expected Linux. Use one, or a container."
        )
    folder = _private(check_folder(folder))
    with _alone(folder):
        before = load(folder)
        if before and (running := belonging(before.owner)):
            raise ConfigError(
                f"a cluster with {len(running)} processes runs in {folder}; expected none. "
                "Stop it (raymlp cluster stop), or give another --folder."
            )
        cluster = Cluster(folder, uuid.uuid4().hex, shape, _ports(dashboard_port))
        _write_private(cluster.token_file, secrets.token_hex(32))
        if shape.tls:
            make_certificate(*cluster.certificate, host=HOST)
        (folder / NODES).write_text(yaml.safe_dump(cluster.nodes()))
        cluster.save()  # before anything runs: a start that is cut off can be stopped
        try:
            _start_head(cluster)
            _until_well(cluster)
        except BaseException:
            end(cluster.owner, patience_s=STOP_S)
            raise
    return cluster


def stop(cluster: Cluster, *, patience_s: float = STOP_S) -> int:
    """End all that the cluster started and that runs yet; gives back how many processes there were.

    Raises RaymlpError when a process or a port is left.
    """
    with _alone(cluster.folder):
        try:
            ended = end(cluster.owner, patience_s=patience_s)
        except TimeoutError as error:
            raise RaymlpError(f"{error}; expected none. Look at what they wait for: a disk that does not answer, a debugger.") from None
        if left := sorted(port for port in cluster.ports.values() if ended and not port_is_free("", port)):
            raise RaymlpError(
                f"the ports {left} are in use though nothing of the cluster runs; expected free ones. Look who listens: ss -ltnp."
            )
    return ended


def health(cluster: Cluster) -> Health:
    """Ask it. Raises ConfigError when its token is gone."""
    if not cluster.token_file.is_file():
        raise ConfigError(f"{cluster.token_file} is gone; expected the cluster's token. Stop the cluster and start it anew.")
    nodes, running = _ask(cluster, "/nodes?view=summary"), belonging(cluster.owner)
    return Health(
        processes=len(running),
        gcs=nodes is not None and _answers(f"{cluster.dashboard}/api/gcs_healthz"),  # the dashboard alone remembers nodes
        agent=_answers(f"http://{HOST}:{cluster.ports['agent']}/api/local_raylet_healthz"),
        scales=any(words(pid)[2:3] and words(pid)[2].endswith(AUTOSCALER) for pid in running),
        guarded=refuses(f"{cluster.dashboard}/api/version") is True,
        nodes=tuple(_told(nodes)) if nodes else (),
    )


def _told(nodes: dict[str, Any]) -> Iterator[str]:
    for raylet in (node["raylet"] for node in nodes["data"]["summary"]):
        if raylet["state"] == "ALIVE":
            kind = "head" if raylet["isHeadNode"] else f"worker {raylet['nodeId'][-5:]}"
            offered = {"CPU": 0.0, **raylet["resourcesTotal"]}
            yield f"{kind}: {', '.join(f'{offered[name]:g} {name}' for name in ('CPU', 'GPU') if name in offered)}"


def _ports(dashboard_port: int | None) -> dict[str, int]:
    if dashboard_port is not None and not port_is_free(HOST, dashboard_port):
        raise ConfigError(f"the port {dashboard_port} of {HOST} is taken; expected a free one. Set --dashboard-port, or leave it out.")
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    return ports if dashboard_port is None else {**ports, "dashboard": dashboard_port}


def _start_head(cluster: Cluster) -> None:
    for left in reversed(range(TRIES)):
        with (cluster.folder / LOG).open("w") as log:
            head = subprocess.Popen(
                cluster.head_words(), env=cluster.environment(), stdout=log, stderr=log, cwd=cluster.folder, start_new_session=True
            )
            ended = _ended_early(cluster, head)
        if not ended and head.returncode == 0:
            return
        end(cluster.owner, patience_s=STOP_S)
        head.wait()
        if ended and not left:
            raise RaymlpError(
                f"Ray's raylet ended {TRIES} times while the head was started; expected it to stay. It gives its agent 15 s to load, which "
                f"a busy machine may not keep: try again when less runs. Read {cluster.logs / 'raylet.err'}."
            )
        if not ended:
            raise RaymlpError(
                f"Ray's head did not start: {_last_words(cluster)}; expected it within {START_S:g} s. Read {cluster.folder / LOG}."
            )


def _ended_early(cluster: Cluster, head: subprocess.Popen[bytes]) -> bool:
    """Wait for the command that starts the head; True as soon as its raylet ended under it, which the command itself sees minutes later."""
    seen, deadline = False, time.monotonic() + START_S
    while head.poll() is None:
        if time.monotonic() > deadline:
            head.kill()
        runs = any(program(pid) == "raylet" for pid in belonging(cluster.owner))
        if seen and not runs:
            return True
        seen = seen or runs
        time.sleep(POLL_S)
    return False


def _last_words(cluster: Cluster) -> str:
    lines = [line.strip() for line in (cluster.folder / LOG).read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def _until_well(cluster: Cluster) -> None:
    deadline = time.monotonic() + START_S
    while problems := (found := health(cluster)).problems(cluster.shape):
        if time.monotonic() > deadline or not found.processes:
            raise RaymlpError(f"the cluster did not get well within {START_S:g} s: {'; '.join(problems)}. Read the logs in {cluster.logs}.")
        time.sleep(POLL_S)


# ---------------------------------------------------------------------- asking


def _ask(cluster: Cluster, path: str) -> dict[str, Any] | None:
    """JSON from the dashboard; None when it does not answer as it should."""
    try:
        bearer = {"Authorization": f"Bearer {cluster.token_file.read_text().strip()}"}
        with ask(urllib.request.Request(cluster.dashboard + path, headers=bearer)) as answer:  # noqa: S310 (our own address)
            found = json.load(answer)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _answers(url: str) -> bool:
    try:
        with ask(url) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


# ---------------------------------------------------------------------- files


def _private(folder: Path) -> Path:
    """Make the folder, for its owner alone. Raises ConfigError when it cannot be written, or holds something else."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not (folder / LOCK).exists() and any(folder.iterdir()):
            raise ConfigError(f"{folder} is not empty; expected a new folder, or one of a cluster. Give another --folder.")
        folder.chmod(0o700)
        (folder / LOCK).touch(mode=0o600)
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be made or written ({error.strerror}); expected a folder of your own. Give another --folder."
        ) from error
    return folder


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One start or stop at a time in a folder. Raises ConfigError for a second one."""
    with (folder / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another start or stop is at work in {folder}; expected none. Wait for it, or give another --folder."
            ) from None
        yield


def _write_private(path: Path, text: str) -> None:
    """A new file that its owner alone can read, from its first moment."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(text)
