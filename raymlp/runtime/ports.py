"""TCP ports that a server may be given: free now, and not of those that the kernel hands to any client that connects.

A port of the ephemeral range, found free, can be a client's a moment later. Ray's workers and the replicas have ranges of their own.
"""

from __future__ import annotations

import os
import random
import socket
from contextlib import suppress
from pathlib import Path

from raymlp.core.errors import RaymlpError

WORKER_PORTS = range(10_002, 20_000)
"""Where Ray's workers listen."""

REPLICA_PORTS = range(20_000, 30_000)
"""Where replicas listen: between Ray's worker ports and the ports that Linux gives to clients (from 32768)."""

LISTENING = "0A"
"""The state of a socket that listens, in the kernel's tables."""

EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_ports(count: int) -> list[int]:
    """Different ports that are free on every address of this machine. Raises RaymlpError when there are not so many."""
    taken, found = ephemeral_ports(), list[int]()
    candidates = [port for port in (*range(30_000, 65_536), *range(5_000, 10_000)) if port not in taken]
    random.shuffle(candidates)  # so that two processes that choose at once do not choose the same
    for port in candidates:
        if len(found) == count:
            break
        if port_is_free("", port):
            found.append(port)
    if len(found) < count:
        raise RaymlpError(
            f"{len(found)} ports are free outside {taken.start} to {taken.stop - 1}, which the kernel gives to clients; expected {count}. "
            f"Make {EPHEMERAL} narrower, or stop what listens."
        )
    return found


def free_port() -> int:
    """One of them."""
    return free_ports(1)[0]


def ephemeral_ports() -> range:
    """The ports that the kernel gives to clients; Linux's own default where it does not say."""
    try:
        first, last = map(int, EPHEMERAL.read_text().split())
    except (OSError, ValueError):
        return range(32_768, 61_000)
    return range(first, last + 1)


def port_is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now; an empty host is every address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def who_listens(port: int) -> str:
    """The program that listens at a port and the number of its process; empty where that cannot be told: another user's, no Linux."""
    sockets = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        for line in table.read_text().splitlines()[1:] if table.exists() else ():
            parts = line.split()
            if parts[3] == LISTENING and int(parts[1].rpartition(":")[2], 16) == port:
                sockets.add(f"socket:[{parts[9]}]")
    for link in Path("/proc").glob("[0-9]*/fd/*") if sockets else ():
        with suppress(OSError):
            if os.readlink(link) in sockets:
                process = link.parents[1]
                return f"{(process / 'comm').read_text().strip()}, process {process.name}"
    return ""
