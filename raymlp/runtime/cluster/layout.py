"""What a cluster of this machine is: its shape, its ports, its files, and the environments of its nodes and of those who use it."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raymlp.core.errors import ConfigError, RaymlpError
from raymlp.core.files import write_text
from raymlp.runtime.cluster.processes import MARK, Owner

RECORD, TOKEN, NODES = "cluster.json", "token", "nodes.yaml"
HOST = "127.0.0.1"
HEAD_ID, HEAD_TYPE = f"{0:05d}".rjust(56, "f"), "ray.head.default"
"""What the provider calls the head; it knows no other names."""

PORTS = (
    "gcs",
    "dashboard",
    "agent",
    "agent_grpc",
    "metrics",
    "runtime_env",
    "node_manager",
    "objects",
    "client",
    "autoscaler",
    "dashboard_metrics",
)
SOCKET_PATH = 107
"""Bytes that the path of a socket may have."""

SESSION = "/ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store.99"
"""What Ray appends to the folder, at its longest."""

UNUSED = ("setup_commands", "head_setup_commands", "worker_setup_commands", "cluster_synced_files")
"""Ray's autoscaler ends without them."""

LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Ray's own way, on macOS, to have each of its addresses on loopback. Drivers need it too: else they look for the head elsewhere."""

FAULTS = {
    "RAY_grpc_client_keepalive_time_ms": "10000",
    "RAY_grpc_client_keepalive_timeout_ms": "5000",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "120",
    "RAY_JOB_STOP_WAIT_TIME_S": "120",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "10",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""What `cluster/env` gives to the nodes of other clusters, where the reasons stand."""

BUSY = {
    "RAY_worker_niceness": "0",
    # A busy machine needs longer than Ray's 30 s; but a raylet whose agent is late has ended after 15, and is better started anew soon.
    "RAY_raylet_start_wait_time_s": "45",
}
OF_ANOTHER_CLUSTER = (
    "RAY_ADDRESS",
    "RAY_API_SERVER_ADDRESS",
    "RAY_AUTH_TOKEN",
    "RAY_TMPDIR",
    "RAY_JOB_CONFIG_JSON_ENV_VAR",
    "RAY_NAMESPACE",
)
TLS_SETTINGS = ("RAY_USE_TLS", "RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT")


@dataclass(frozen=True)
class Shape:
    """How large, and how guarded."""

    min_workers: int = 2
    max_workers: int = 2
    """More than `min_workers`: workers come when tasks wait for room, and go after `idle_s` without one."""

    worker_cpus: int = 2
    """CPUs that a worker offers. Logical, as all of Ray's: they bound what runs at once, and bind nothing to a core."""

    worker_gpus: int = 0
    """GPUs that a worker says it has, whether there are any or not."""

    head_cpus: int = 1
    idle_s: float = 60.0
    object_store_mb: int = 200
    """Shared memory of each node, in MiB."""

    tls: bool = False
    """Encrypt between nodes, with a certificate made for this cluster."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_workers <= self.max_workers:
            raise ConfigError(f"workers are {self.min_workers} to {self.max_workers}; expected 0 or more, the smaller number first.")


@dataclass(frozen=True)
class Cluster:
    """A cluster that was started in a folder; it may have ended since."""

    folder: Path
    mark: str
    shape: Shape
    ports: dict[str, int]

    @property
    def owner(self) -> Owner:
        return Owner(self.mark, self.folder)

    @property
    def address(self) -> str:
        """For `ray.init` and `runtime.address`."""
        return f"{HOST}:{self.ports['gcs']}"

    @property
    def dashboard(self) -> str:
        """For `ray job submit` and a browser."""
        return f"http://{HOST}:{self.ports['dashboard']}"

    @property
    def logs(self) -> Path:
        """Ray's, of the last start."""
        return self.folder / "ray" / "session_latest" / "logs"

    @property
    def token_file(self) -> Path:
        return self.folder / TOKEN

    @property
    def certificate(self) -> tuple[Path, Path]:
        """Certificate and key, where `shape.tls` is set."""
        return self.folder / "node.crt", self.folder / "node.key"

    def exports(self) -> dict[str, str]:
        """The environment of a shell that uses the cluster. Holds the place of the token and not the token."""
        found = {
            "RAY_ADDRESS": self.address,
            "RAY_API_SERVER_ADDRESS": self.dashboard,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token_file),
            **LOOPBACK,
        }
        if self.shape.tls:
            certificate, key = map(str, self.certificate)
            found |= dict(zip(TLS_SETTINGS, ("1", certificate, key, certificate), strict=True))
        return found

    def environment(self) -> dict[str, str]:
        """The environment of its nodes: this process's, less what points to another cluster. Settings of this process's win."""
        inherited = {name: value for name, value in os.environ.items() if name not in (*OF_ANOTHER_CLUSTER, *TLS_SETTINGS)}
        own = {name: value for name, value in self.exports().items() if name not in OF_ANOTHER_CLUSTER}
        return {
            **FAULTS,
            **BUSY,
            **inherited,
            **own,
            MARK: self.mark,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",  # jobs say `python`
            "RAY_FAKE_CLUSTER": "1",
            # The autoscaler knows the head by these, and takes it for lost without them.
            "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
            "RAY_NODE_TYPE_NAME": HEAD_TYPE,
            "RAY_enable_autoscaler_v2": "1",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "AUTOSCALER_METRIC_PORT": str(self.ports["autoscaler"]),
            "DASHBOARD_METRIC_PORT": str(self.ports["dashboard_metrics"]),
        }

    def nodes(self) -> dict[str, Any]:
        """The autoscaler's config. Its provider starts each worker as processes of this machine."""
        shape = self.shape
        worker = {"CPU": shape.worker_cpus, "GPU": shape.worker_gpus, "object_store_memory": shape.object_store_mb << 20}
        return {
            "cluster_name": "local",
            **{name: [] for name in UNUSED},
            "max_workers": shape.max_workers,
            "idle_timeout_minutes": shape.idle_s / 60,
            "head_node_type": HEAD_TYPE,
            "provider": {
                "type": "external",
                "module": "raymlp.runtime.cluster.provider.Workers",
                "gcs_address": self.address,
                "launch_multiple": True,
                "disable_node_updaters": True,  # nothing is installed on a worker: it is this machine
            },
            "available_node_types": {
                HEAD_TYPE: {"resources": {"CPU": shape.head_cpus}, "node_config": {}, "max_workers": 0},
                "worker": {
                    "resources": {name: amount for name, amount in worker.items() if amount},
                    "node_config": {},
                    "min_workers": shape.min_workers,
                    "max_workers": shape.max_workers,
                },
            },
        }

    def head_words(self) -> list[str]:
        """The command that starts the head."""
        shape, ports = self.shape, self.ports
        options = {
            "port": ports["gcs"],
            "dashboard-host": HOST,
            "dashboard-port": ports["dashboard"],
            "dashboard-agent-listen-port": ports["agent"],
            "dashboard-agent-grpc-port": ports["agent_grpc"],
            "metrics-export-port": ports["metrics"],
            "runtime-env-agent-port": ports["runtime_env"],
            "node-manager-port": ports["node_manager"],
            "object-manager-port": ports["objects"],
            "ray-client-server-port": ports["client"],
            "min-worker-port": 0,  # any that is free: workers of several nodes share this machine
            "max-worker-port": 0,
            "num-cpus": shape.head_cpus,
            "num-gpus": 0,
            "object-store-memory": shape.object_store_mb << 20,
            "temp-dir": self.folder / "ray",
            "autoscaling-config": self.folder / NODES,
        }
        words = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head"]
        return words + [f"--{name}={value}" for name, value in options.items()]

    def save(self) -> None:
        record = {"mark": self.mark, "shape": asdict(self.shape), "ports": self.ports}
        write_text(self.folder / RECORD, json.dumps(record, indent=2))


def load(folder: Path) -> Cluster | None:
    """The cluster whose record lies in a folder; None without one. Raises RaymlpError for a record that cannot be read."""
    folder = folder.expanduser().resolve()
    try:
        record = json.loads((folder / RECORD).read_text())
        return Cluster(folder, record["mark"], Shape(**record["shape"]), record["ports"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RaymlpError(
            f"{folder / RECORD} cannot be read ({type(error).__name__}: {error}); expected the record of a cluster. "
            "Give the folder that the cluster was started in."
        ) from error


def check_folder(folder: Path) -> Path:
    """The absolute folder; raises ConfigError when Ray's sockets in it would have paths that are too long."""
    folder = folder.expanduser().resolve()
    longest = SOCKET_PATH - len(SESSION)
    if len(os.fsencode(folder)) > longest:
        raise ConfigError(
            f"the folder {folder} has {len(os.fsencode(folder))} characters; expected {longest} at most, since the path of a socket in it "
            f"may have {SOCKET_PATH}. Give a shorter --folder."
        )
    return folder
