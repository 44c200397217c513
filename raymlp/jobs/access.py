"""Which cluster, and whether it may be talked to: address, token, and a look at what it answers to somebody without one.

Whoever reaches an open jobs API runs code on every node. So a cluster elsewhere has to ask for a token, the token goes only to one
that asks, and never in plain over the open internet.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from raymlp.core.errors import ConfigError, JobError
from raymlp.runtime.exposure import TOKEN_FILE, others_may_read

HERE = "http://127.0.0.1:8265"
TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Token:
    """A token, never shown, and where it was found."""

    value: str = field(repr=False)
    source: str


@dataclass(frozen=True)
class Access:
    """A cluster that may be talked to. `headers` hold the token, where it asks for one; `notes` are for the person who submits."""

    address: str
    ray_version: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()

    def ask(self, path: str, *, method: str = "GET") -> Any:
        """JSON from the dashboard; None when it knows no such thing. Raises JobError."""
        answer = _asked(self.address, path, self.headers, method=method)
        if answer.status_code == 404:
            return None
        if answer.status_code != 200:
            raise JobError(f"{self.address}{path} answers {answer.status_code}; expected 200. {_last_line(answer.text)}")
        return answer.json()

    @property
    def token(self) -> str | None:
        """What the headers hold."""
        value = self.headers.get("Authorization")
        return value.removeprefix("Bearer ") if value else None


def address_of(setting: str | None) -> str:
    """Address of the jobs API: the setting, RAY_API_SERVER_ADDRESS, or this machine's. Raises ConfigError."""
    found = (setting or os.environ.get("RAY_API_SERVER_ADDRESS") or HERE).rstrip("/")
    parts = urlsplit(found)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path or parts.query or parts.username:
        raise ConfigError(f"the cluster's address is {found}; expected that of its dashboard, as {HERE}. Set jobs.address.")
    return found


def token() -> Token | None:
    """The token of this machine's user, from the places where Ray looks for it. Raises ConfigError when its file cannot be read."""
    if value := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return Token(value, "RAY_AUTH_TOKEN")
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    place = Path(named or TOKEN_FILE).expanduser()
    if not named and not place.is_file():
        return None
    try:
        value = place.read_text().strip()
    except OSError as error:
        raise ConfigError(f"the token's file {place} cannot be read ({error.strerror}). Set RAY_AUTH_TOKEN_PATH.") from None
    return Token(value, str(place)) if value else None


def opened(setting: str | None = None) -> Access:
    """The cluster, asked without a token first. Raises ConfigError when it may not be talked to, JobError when it does not answer."""
    address = address_of(setting)
    answer = _asked(address, "/api/version", {})
    if answer.status_code == 200:
        if not is_here(address):
            raise ConfigError(
                f"{address} is no address of this machine's own, and answers without a token: whoever reaches it runs code on every node. "
                "Nothing was sent. Start its nodes with RAY_AUTH_MODE=token, or reach it through a tunnel (ssh -L, kubectl port-forward)."
            )
        return Access(address, _version(address, answer), notes=("no token is asked for: fit for a cluster of this machine alone",))
    if answer.status_code != 401:
        raise JobError(f"{address}/api/version answers {answer.status_code}; expected the dashboard of a Ray head. Set jobs.address.")
    found = token()
    if found is None:
        raise ConfigError(
            f"{address} asks for a token, and there is none; expected one in RAY_AUTH_TOKEN, in the file RAY_AUTH_TOKEN_PATH or in "
            f"{TOKEN_FILE}. On the head, ray get-auth-token shows it."
        )
    if address.startswith("http://") and _is_public(address):
        raise ConfigError(f"{address} would get the token in plain over the internet. Use https://, or a tunnel, and set jobs.address.")
    headers = {"Authorization": f"Bearer {found.value}"}
    answer = _asked(address, "/api/version", headers)
    if answer.status_code in (401, 403):
        raise ConfigError(f"{address} refuses the token of {found.source}; expected the cluster's. Mend it there.")
    if answer.status_code != 200:
        raise JobError(f"{address}/api/version answers {answer.status_code}; expected the dashboard of a Ray head. Set jobs.address.")
    plain = address.startswith("http://") and not is_here(address)
    notes = ("the token crosses the network in plain: use https:// or a tunnel where others listen",) if plain else ()
    return Access(address, _version(address, answer), headers, (*notes, *_open_file(found)))


def _asked(address: str, path: str, headers: Mapping[str, str], *, method: str = "GET") -> Any:
    import httpx2

    try:
        return httpx2.request(method, address + path, headers=dict(headers), timeout=TIMEOUT_S, trust_env=not is_here(address))
    except httpx2.HTTPError as error:
        raise JobError(
            f"no Ray head answers at {address} ({error or type(error).__name__}); expected its dashboard. "
            "Start one (ray start --head), or a tunnel to it, or set jobs.address."
        ) from None


def _version(address: str, answer: Any) -> str:
    try:
        return str(answer.json()["ray_version"])
    except (ValueError, KeyError, TypeError):
        raise JobError(f"{address}/api/version is no answer of a Ray head. Set jobs.address.") from None


def _last_line(text: str) -> str:
    """Of a traceback the error."""
    return (text.strip().splitlines() or [""])[-1][:300]


def _open_file(found: Token) -> tuple[str, ...]:
    if others_may_read(Path(found.source)):
        return (f"others of this machine may read the token: chmod 600 {found.source}",)
    return ()


def _hosts(address: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """What the host of an address stands for; nothing when the name is not known."""
    try:
        found = socket.getaddrinfo(urlsplit(address).hostname, None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return [ipaddress.ip_address(str(item[4][0]).partition("%")[0]) for item in found]


def is_here(address: str) -> bool:
    """Whether an address is this machine's own, which no other reaches."""
    hosts = _hosts(address)
    return bool(hosts) and all(host.is_loopback for host in hosts)


def _is_public(address: str) -> bool:
    hosts = _hosts(address)
    return not hosts or any(host.is_global for host in hosts)  # a name that only a proxy knows may be anywhere
