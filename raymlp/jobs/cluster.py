"""What a job finds on the cluster: versions, machines, room. Asked of the dashboard, without starting anything."""

from __future__ import annotations

import platform
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from raymlp import __version__
from raymlp.config.runtime import Runtime
from raymlp.config.schema import Config, Site
from raymlp.core.errors import ConfigError
from raymlp.jobs.access import Access

TRAINS = ("train", "crossvalidate", "find", "tune", "run", "retrain", "reproduce")
"""Verbs that start the workers of `train`."""
PROBE_S = 2.0


@dataclass(frozen=True)
class Cluster:
    """A cluster's versions, its live nodes (the address and the resources of each), and the names of their machines."""

    ray_version: str
    python_version: str
    nodes: tuple[tuple[str, Mapping[str, float]], ...]
    hosts: tuple[str, ...] = ()

    @classmethod
    def of(cls, access: Access) -> Cluster:
        versions = access.ask("/api/v0/cluster_metadata")["data"]
        found = access.ask("/api/v0/nodes?detail=1&limit=10000")["data"]["result"]["result"]
        nodes = [(node["node_ip"], node["resources_total"]) for node in found if node["state"] == "ALIVE"]
        hosts = access.ask("/nodes?view=hostNameList")["data"]["hostNameList"]
        return cls(access.ray_version, versions["pythonVersion"], tuple(nodes), tuple(hosts))

    def total(self, kind: str) -> float:
        """What all nodes have of a resource."""
        return sum(resources.get(kind, 0.0) for _, resources in self.nodes)

    def most(self, kind: str) -> float:
        """What one node has of it."""
        return max((resources.get(kind, 0.0) for _, resources in self.nodes), default=0.0)

    @property
    def is_this_machine(self) -> bool:
        """Whether every node is this very machine, whose folders are then the cluster's, too. Behind a tunnel another's loopback has the
        same address, and another name."""
        return set(self.hosts) == {socket.gethostname()} and all(_is_own(ip) for ip, _ in self.nodes)

    @property
    def summary(self) -> str:
        """Size and versions in words."""
        sizes = ", ".join(f"{self.total(kind):g} {kind}s" for kind in ("CPU", "GPU") if self.total(kind))
        count = len(self.nodes)
        return f"{count} node{'s' * (count != 1)}, {sizes or 'no CPUs'}; Ray {self.ray_version}, Python {self.python_version}"


def _is_own(ip: str) -> bool:
    """Whether this machine has the address: only its own can be bound."""
    with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET) as probe:
        try:
            probe.bind((ip, 0))
        except OSError:
            return False
        return True


def require_versions(cluster: Cluster, *, ray_version: str, image: str | None) -> list[str]:
    """Notes on versions that differ. Raises ConfigError when the cluster's Ray is of another release than this one's: raymlp is made
    for one. With an image, versions are the image's affair, but Ray's, which has to be that of the nodes."""
    here, there = (".".join(version.split(".")[:2]) for version in (ray_version, cluster.ray_version))
    if here != there:
        raise ConfigError(
            f"the cluster runs Ray {cluster.ray_version}, and raymlp {__version__} needs {here}; expected the same release. "
            "Bring the cluster to it, or submit with the raymlp that was made for it."
        )
    mine, its = (".".join(version.split(".")[:2]) for version in (platform.python_version(), cluster.python_version))
    return [] if mine == its or image else [f"the cluster runs Python {its}, and this machine {mine}"]


def raymlp_version(root: Path, names: Sequence[str]) -> str | None:
    """Version of the raymlp that is among the files that upload; None when the job takes the one that the cluster has installed."""
    if "raymlp/__init__.py" not in names:
        return None
    found = re.search(r'^__version__ = "([^"]+)"', (root / "raymlp/__init__.py").read_text(), re.MULTILINE)
    return found[1] if found else None


def require_room(verb: str, config: Config | Site, cluster: Cluster) -> list[str]:
    """Raise ConfigError with the arithmetic when all nodes together, or the largest, cannot hold what the verb asks for. A cluster that
    brings nodes by itself (`jobs.autoscaled`) gives a note instead."""
    if not isinstance(config, Config):
        return []
    driver = config.jobs.driver_cpus
    wants = [("jobs.driver_cpus", driver, f"the driver needs {driver:g} CPUs", cluster.most("CPU"))]
    if verb in TRAINS:
        train = config.train
        count = train.elastic.min_workers if train.elastic else train.num_workers
        cpus, each = count * train.cpus_per_worker, f"{train.cpus_per_worker:g} CPUs"
        wants += [
            ("train.num_workers", cpus, f"training needs {count} workers x {each} = {cpus:g} CPUs", cluster.total("CPU")),
            ("train.cpus_per_worker", train.cpus_per_worker, f"a worker needs {each}", cluster.most("CPU")),
        ]
        if train.gpu:
            gpus = f"training needs {count} workers x 1 GPU = {count} GPUs"
            wants.append(("train.num_workers", float(count), gpus, cluster.total("GPU")))
    for key, amount, sums, room in wants:
        if amount > room:
            whole = "all nodes have" if key == "train.num_workers" else "the largest node has"
            if config.jobs.autoscaled:
                return [f"{sums}, and {whole} {room:g} now: the job waits for the cluster to grow"]
            raise ConfigError(
                f"{sums}; {whole} {room:g}. Set {key}, add nodes, or set jobs.autoscaled=true when the cluster brings nodes by itself."
            )
    return []


def storage_notes(config: Config | Site, cluster: Cluster) -> list[str]:
    """What can be told from here of whether the job reaches its storage: services that do not answer this machine may answer the nodes."""
    notes = []
    if not is_lasting(config.runtime) and not cluster.is_this_machine:
        notes.append(
            f"runtime.storage is the relative folder {config.runtime.storage}: the job takes RAYMLP_STORAGE of its node, and does not run "
            "without one"
        )
    places = {"runtime.storage": config.runtime.storage, "runtime.snapshots": config.runtime.snapshots}
    services = {"registry.tracking_uri": config.registry.tracking_uri, **places}
    for key, service in services.items():
        host, port = _service(service or "")
        if host in ("localhost", "127.0.0.1", "::1") and not cluster.is_this_machine:
            raise ConfigError(f"{key} is {service}, which on the cluster's nodes is the node itself; expected an address that they reach.")
        if host and not _answers(host, port):
            notes.append(f"{key}: {host}:{port} does not answer this machine; the nodes have to reach it")
    return notes


def is_lasting(runtime: Runtime) -> bool:
    """Whether results outlive a job, which works in a folder that Ray deletes."""
    return "://" in runtime.storage or Path(runtime.storage).expanduser().is_absolute()


def _service(address: str) -> tuple[str, int]:
    """Host and port of an HTTP service or of an S3 store that names its endpoint; an empty host for anything else."""
    parts = urlsplit(address)
    if parts.scheme == "s3" and (endpoint := re.search(r"endpoint_override=([^&]+)", parts.query)):
        parts = urlsplit(endpoint[1] if "://" in endpoint[1] else f"https://{endpoint[1]}")
    if parts.scheme not in ("http", "https"):
        return "", 0
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=PROBE_S):
            return True
    except OSError:
        return False
