"""Whom a machine's Ray answers, and what to do about it. Linux: what `/proc` says of sockets that listen."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

from raymlp.runtime.findings import Finding

LISTEN = "0A"
TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
TOKEN_FILE = Path("~/.ray/auth_token")
"""Where Ray looks for a token."""
OTHERS = 0o077
ASK_S = 5.0


@dataclass(frozen=True)
class Exposure:
    """What one machine shows."""

    metrics: tuple[str, ...] = ("127.0.0.1",)
    """Addresses at which its metrics port listens."""

    dashboard: tuple[str, ...] = ()
    """Addresses at which the dashboard listens, on the head."""

    is_guarded: bool | None = None
    """Whether who has no token is refused; None where nobody could be asked: a node that is not the head, a head without a dashboard."""

    tls: bool = False
    """Whether nodes talk to one another over TLS."""

    token: str = ""
    """The token's file with its mode, where others than its owner may read it."""


def look(*, metrics_port: int, dashboard: str) -> Exposure:
    """Ask the machine this runs on. `dashboard` is `host:port` on the head, and empty elsewhere."""
    port = int(dashboard.rpartition(":")[2]) if dashboard else 0
    return Exposure(
        metrics=listening(metrics_port),
        dashboard=listening(port),
        is_guarded=refuses(f"http://{dashboard}/api/version") if dashboard else None,
        tls=os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"),
        token=readable_token(),
    )


def judge(seen: Exposure, name: str, *, machines: int) -> Iterator[Finding]:
    """Who may make the node of this name run code, read its metrics, listen in; in a cluster on so many machines."""
    where = f"{name}: "
    far = [address for address in seen.dashboard if not is_loopback(address)]
    if seen.is_guarded is not None:
        yield Finding(
            f"{where}authentication",
            "ok" if seen.is_guarded else "fail" if far else "warn",
            "who has no token is refused" if seen.is_guarded else "off: whoever reaches the dashboard runs code here",
            "a token",
            "" if seen.is_guarded else "Start Ray anew with RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH (a file with mode 0600)",
        )
    if seen.dashboard:
        do = "Start Ray with --dashboard-host=127.0.0.1 and reach it through a tunnel or a gateway with TLS: the token crosses in plain"
        yield Finding(f"{where}dashboard", "warn" if far else "ok", ", ".join(seen.dashboard), "loopback", do if far else "")
    yield Finding(
        f"{where}token file",
        "warn" if seen.token else "ok",
        seen.token or "its owner's alone, or none",
        "mode 0600: who reads it runs code on the cluster",
        f"chmod 600 {seen.token.partition(',')[0]}" if seen.token else "",
    )
    plain = machines > 1 and not seen.tls
    yield Finding(
        f"{where}TLS between nodes",
        "warn" if plain else "ok",
        "on" if seen.tls else "off" if plain else "off, on one machine",
        "on, or a network that nobody else is on",
        "Set RAY_USE_TLS=1 with RAY_TLS_SERVER_CERT, RAY_TLS_SERVER_KEY and RAY_TLS_CA_CERT on all nodes, or encrypt the network"
        if plain
        else "",
    )
    everybody = [address for address in seen.metrics if not is_loopback(address)]
    yield Finding(
        f"{where}metrics port",
        "warn" if everybody else "ok",
        ", ".join(seen.metrics) or "none",
        "loopback, or a firewall in front: it asks for no token",
        "Let Prometheus alone reach it: a NetworkPolicy, a security group or a firewall" if everybody else "",
    )


def is_loopback(address: str) -> bool:
    """Whether this machine alone reaches an address."""
    return ip_address(address).is_loopback


def listening(port: int) -> tuple[str, ...]:
    """The addresses of this machine's sockets that listen at a port; `0.0.0.0` and `::` are all interfaces."""
    found = set()
    for table in TABLES:
        lines = Path(table).read_text().splitlines()[1:] if Path(table).exists() else []
        for local, state in ((line.split()[1], line.split()[3]) for line in lines):
            address, _, number = local.partition(":")
            if state == LISTEN and int(number, 16) == port:
                found.add(str(_address(address)))
    return tuple(sorted(found))


def _address(words: str) -> IPv4Address | IPv6Address:
    """The kernel writes an address as 32-bit words, each with its lowest byte first."""
    raw = b"".join(bytes.fromhex(words[place : place + 8])[::-1] for place in range(0, len(words), 8))
    if len(raw) == 4:
        return IPv4Address(raw)
    address = IPv6Address(raw)
    return address.ipv4_mapped or address


def ask(request: str | urllib.request.Request) -> Any:
    """The answer of an address of this machine or its cluster, never through a proxy: it may carry a token. As `urlopen`."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=ASK_S)


def refuses(url: str) -> bool | None:
    """Whether a request without a token gets 401; None when nothing answers."""
    try:
        with ask(url):
            return False
    except urllib.error.HTTPError as error:
        return error.code == 401
    except OSError:
        return None


def readable_token() -> str:
    """The file that holds the token, when others may read it."""
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or TOKEN_FILE).expanduser()
    return f"{file}, mode {file.stat().st_mode & 0o777:04o}" if others_may_read(file) else ""


def others_may_read(file: Path) -> bool:
    """Whether a file is there, and open to others than its owner."""
    try:
        return bool(file.stat().st_mode & OTHERS)
    except OSError:
        return False
