"""Look at this machine, or at the cluster of `runtime.address`, for what the endpoint needs, and say what to do about the rest.

One function asks a node for its facts, wherever it runs; the judgements are plain functions of those facts.
"""

from __future__ import annotations

import os
import platform
import resource
import shutil
import socket
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from raymlp import __version__
from raymlp.config.schema import Config
from raymlp.core.errors import RaymlpError
from raymlp.core.files import Place, make_folder
from raymlp.runtime import exposure, memory
from raymlp.runtime.exposure import Exposure
from raymlp.runtime.findings import Finding, Level
from raymlp.runtime.front import check_certificate
from raymlp.runtime.ingress import SWITCH, haproxy_binary
from raymlp.runtime.ports import REPLICA_PORTS, ephemeral_ports, port_is_free
from raymlp.runtime.session import storage_root
from raymlp.runtime.store import StorePlace, place_of, require_conditions
from raymlp.runtime.tracking import tracking_uri

FILES = 4_096
"""Open files that a process may have: HAProxy holds two for each connection."""

SHARED_MEMORY = 0.3
"""Share of a node's memory that Ray's object store takes and wants in /dev/shm."""

ASK_S = 20.0


@dataclass(frozen=True)
class Node:
    """One machine of the cluster, as a process on it sees it."""

    name: str
    is_head: bool
    versions: dict[str, str]
    haproxy: str
    niceness: int
    files: int
    shared_memory: int
    memory: int
    cpus: int
    storage: str
    """Empty when the storage can be written and shows the driver's file; else what went wrong."""

    exposure: Exposure = field(default_factory=Exposure)


def doctor(config: Config) -> list[Finding]:
    """All findings. Reads, but for one file in the storage that is removed again; starts no Ray and deploys nothing."""
    address = config.runtime.address or os.environ.get("RAY_ADDRESS")
    found = [*(_cluster(config, address) if address else _machine(config)), *_keys(config), *_tracking(config)]
    return sorted(found, key=lambda one: ("fail", "warn", "ok").index(one.level))


def look(token: str, folder: str, *, is_head: bool, metrics_port: int = 0, dashboard: str = "") -> Node:
    """Ask the machine this runs on. `token` is the name of a file that lies in the storage `folder`; port and address are its Ray's."""
    shared = shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else 0  # noqa: S108 (looked at, not written)
    binary = haproxy_binary()
    return Node(
        name=socket.gethostname(),
        is_head=is_head,
        versions={"python": platform.python_version(), "ray": version("ray"), "raymlp": __version__},
        haproxy=str(binary or ""),
        niceness=os.nice(0),
        files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        shared_memory=shared,
        memory=memory.total(),
        cpus=os.cpu_count() or 1,
        storage=_storage_of(place_of(folder), token),
        exposure=exposure.look(metrics_port=metrics_port, dashboard=dashboard),
    )


def _storage_of(folder: Place, token: str) -> str:
    try:
        if isinstance(folder, StorePlace):
            require_conditions(folder / token)
        mine = folder / f"{token}.{uuid.uuid4().hex}"
        mine.write_text("")
        mine.unlink()
        if not (folder / token).is_file():
            return f"{folder} does not show a file that the driver wrote there"
    except OSError as error:
        return f"{folder}: {error.strerror}"
    except RaymlpError as error:
        return str(error)
    return ""


# ---------------------------------------------------------------------- judgements


def judge(node: Node, driver: Node, config: Config) -> Iterator[Finding]:
    """What is to be said of a node, held against the driver's machine."""
    where = f"{node.name}: " if node is not driver else ""
    theirs, own = (", ".join(f"{name} {number}" for name, number in one.versions.items()) for one in (node, driver))
    same = theirs == own
    do = "" if same else "Install the same versions on all nodes"
    yield Finding(f"{where}versions", "ok" if same else "fail", theirs, "the same on all nodes" if same else own, do)
    yield Finding(
        f"{where}storage",
        "fail" if node.storage else "ok",
        node.storage or str(storage_root(config.runtime)),
        "a place that every node can write and sees alike",
        "Set runtime.storage to a folder that all nodes share, or to an object store" if node.storage else "",
    )
    few = node.files < FILES
    yield Finding(
        f"{where}open files",
        "warn" if few else "ok",
        f"{node.files:,}",
        f"at least {FILES:,}",
        "Raise ulimit -n before Ray starts" if few else "",
    )
    wanted = int(node.memory * SHARED_MEMORY)
    small = node.shared_memory < wanted
    yield Finding(
        f"{where}/dev/shm",  # noqa: S108 (words)
        "warn" if small else "ok",
        f"{node.shared_memory >> 20:,} MiB",
        f"{wanted >> 20:,} MiB, 30 % of the memory",
        "Make it larger (docker run --shm-size), or Ray's object store lies on disk" if small else "",
    )
    if node.is_head:
        yield from _ingress(node, where, config)


def _ingress(node: Node, where: str, config: Config) -> Iterator[Finding]:
    wanted = config.serve.ingress
    if wanted == "proxy":
        yield Finding(f"{where}ingress", "ok", "serve.ingress=proxy", "Ray Serve's own proxy")
        return
    lost = "a twentieth of the requests per second, and requests fail when a replica dies"
    yield Finding(
        f"{where}HAProxy",
        "ok" if node.haproxy else "fail" if wanted == "haproxy" else "warn",
        node.haproxy or "none",
        "the program, on the head",
        "" if node.haproxy else f"pip install 'ray[serve]' on Linux; without it: {lost}",
    )
    off = os.environ.get(SWITCH) == "0"
    yield Finding(
        "Ray Serve's environment",
        "fail" if off else "ok",
        f"{SWITCH}=0 here" if off else f"{sum(one.startswith('RAY_SERVE_') for one in os.environ)} variables of your own, which win",
        "none that switches HAProxy off; raymlp deploy sends the rest to the cluster",
        f"Deploy without {SWITCH} in the environment" if off else "",
    )
    clients = ephemeral_ports()
    overlap = clients.start < REPLICA_PORTS.stop
    yield Finding(
        f"{where}ports of replicas",
        "warn" if overlap else "ok",
        f"clients get {clients.start} to {clients.stop - 1}",
        f"none of {REPLICA_PORTS.start} to {REPLICA_PORTS.stop - 1}, where replicas listen",
        "Set net.ipv4.ip_local_port_range='32768 60999'" if overlap else "",
    )
    nice = node.niceness > 0
    yield Finding(
        f"{where}priority of workers",
        "warn" if nice else "ok",
        f"nice {node.niceness}",
        "nice 0, as beside a batch job a replica would wait",
        "Start Ray with RAY_worker_niceness=0 in its environment" if nice else "",
    )


def judge_cpus(offered: float, config: Config) -> Finding:
    """Whether the replicas fit."""
    serve = config.serve
    low, high = (count * serve.cpus_per_replica for count in (serve.replicas.min_replicas, serve.replicas.max_replicas))
    level: Level = "fail" if low > offered else "warn" if high > offered else "ok"
    do = "Set serve.cpus_per_replica, serve.min_replicas or serve.max_replicas, or add nodes"
    expected = f"{low:g} to {high:g}: {serve.replicas.min_replicas} to {serve.replicas.max_replicas} replicas of {serve.cpus_per_replica:g}"
    return Finding("cores", level, f"{offered:g}", expected, "" if level == "ok" else do)


def is_well(found: Sequence[Finding]) -> bool:
    """Whether nothing fails; a warning is none."""
    return all(one.level != "fail" for one in found)


# ---------------------------------------------------------------------- asking


def _machine(config: Config) -> Iterator[Finding]:
    """This machine, on which `raymlp deploy` starts Ray by itself."""
    with _token(config) as token:
        node = look(token, str(storage_root(config.runtime)), is_head=True)
    yield from judge(node, node, config)
    yield judge_cpus(config.runtime.num_cpus or max(4, node.cpus), config)
    yield _address(config)


def _cluster(config: Config, address: str) -> Iterator[Finding]:
    """The nodes of a cluster, each asked by a task of its own."""
    import ray

    from raymlp.runtime.session import ray_session

    with _token(config) as token, ray_session(config.runtime):
        folder = str(storage_root(config.runtime))
        driver = look(token, folder, is_head=False)
        alive = [node for node in ray.nodes() if node["Alive"]]
        yield Finding("cluster", "ok", f"{address}, {len(alive)} nodes", "a cluster that answers")
        pending = [_asked(node, token, folder) for node in alive]
        machines = len({node["NodeManagerAddress"] for node in alive})
        for node, answer in zip(alive, pending, strict=True):
            try:
                seen = ray.get(answer, timeout=ASK_S)
                yield from judge(seen, driver, config)
                yield from exposure.judge(seen.exposure, seen.name, machines=machines)
            except Exception as error:
                cause = f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"
                expected = f"an answer within {ASK_S:g} s from a process that can import raymlp"
                yield Finding(node["NodeManagerHostname"], "fail", cause, expected, "Install raymlp on all nodes, with the same versions")
        yield judge_cpus(ray.cluster_resources().get("CPU", 0.0), config)
        yield from _serve(config)


def _asked(node: dict[str, Any], token: str, folder: str) -> Any:
    import ray
    from ray._private.worker import get_dashboard_url
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    is_head = "node:__internal_head__" in node["Resources"]
    dashboard = get_dashboard_url() or "" if is_head else ""
    task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=here)(look)
    return task.remote(token, folder, is_head=is_head, metrics_port=node["MetricsExportPort"], dashboard=dashboard)


def _serve(config: Config) -> Iterator[Finding]:
    """Ray Serve, when it runs already: its address, and whether it has HAProxy."""
    from raymlp.serve.controller import serve_client

    client = serve_client()
    if client is None:
        yield Finding("Ray Serve", "ok", "does not run yet", "nothing, or what raymlp deploy started")
        return
    http, wanted = client.http_config, (config.serve.host, config.serve.port)
    same = (http.host, http.port) == wanted
    do = f"Set serve.host={http.host} serve.port={http.port}, or stop Ray Serve (serve shutdown) and deploy anew"
    yield Finding("Ray Serve", "ok" if same else "fail", f"{http.host}:{http.port}", f"{wanted[0]}:{wanted[1]}", "" if same else do)


@contextmanager
def _token(config: Config) -> Iterator[str]:
    """The name of a file that lies in the storage while the block runs. A storage that cannot be written is found by `look`."""
    path = storage_root(config.runtime) / f".doctor-{uuid.uuid4().hex}"
    with suppress(OSError, RaymlpError):
        make_folder(path.parent)
        path.write_text("")
    try:
        yield path.name
    finally:
        with suppress(OSError, RaymlpError):
            path.unlink()


def _address(config: Config) -> Finding:
    serve = config.serve
    free = port_is_free(serve.host, serve.port)
    where = f"{serve.host}:{serve.port}"
    return Finding(
        "address", "ok" if free else "fail", where if free else f"{where} is taken", "a free port", "" if free else "Set serve.port"
    )


def _keys(config: Config) -> Iterator[Finding]:
    from raymlp.serve.deploy import API_KEYS, keys_of

    serve = config.serve
    try:
        keys = keys_of(serve)
        found = "serve.auth=none, for this machine alone" if serve.auth == "none" else f"{len(keys)} in {API_KEYS}"
        found += f", and those of {serve.keys_file}" if serve.keys_file else ""
        yield Finding("keys", "ok", found, "one or more, or serve.auth=none on loopback")
    except RaymlpError as error:
        yield Finding("keys", "fail", "none that can be used", "one or more, or serve.auth=none on loopback", str(error))
    if serve.tls:
        try:
            check_certificate(serve.tls)
            yield Finding("certificate", "ok", serve.tls.certificate, "a certificate with its key")
        except RaymlpError as error:
            yield Finding("certificate", "fail", str(error), "a certificate with its key", "Set serve.tls.certificate and serve.tls.key")


def _tracking(config: Config) -> Iterator[Finding]:
    """MLflow: a server answers a connection, a database lies in a folder that can be written."""
    uri = tracking_uri(config.registry, config.runtime)
    parts = urlsplit(uri)
    what, expected = "MLflow", "a server that answers, or a database on disk"
    if parts.scheme not in ("http", "https"):
        yield Finding(what, "ok", uri, expected)
        return
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    where = f"{host}:{port}"
    try:
        with socket.create_connection((host, port), timeout=3):
            yield Finding(what, "ok", where, expected)
    except OSError as error:
        yield Finding(what, "fail", f"{where}: {error}", expected, "Start the server, or set registry.tracking_uri")
