"""Whom a machine's Ray answers, by real sockets and files."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from raymlp.runtime.exposure import Exposure, is_loopback, judge, listening, look, readable_token, refuses
from raymlp.runtime.ports import free_port

SAFE = Exposure(metrics=("127.0.0.1",), dashboard=("127.0.0.1",), is_guarded=True, tls=False, token="")


@pytest.mark.parametrize(
    ("family", "bound", "seen"),
    [
        (socket.AF_INET, "127.0.0.1", ("127.0.0.1",)),
        (socket.AF_INET, "0.0.0.0", ("0.0.0.0",)),
        (socket.AF_INET6, "::1", ("::1",)),
        (socket.AF_INET6, "::", ("::",)),
        (socket.AF_INET6, "::ffff:127.0.0.1", ("127.0.0.1",)),
    ],
)
def test_the_addresses_of_a_socket_that_listens(family: socket.AddressFamily, bound: str, seen: tuple[str, ...]) -> None:
    port = free_port()
    with socket.socket(family) as server:
        try:
            server.bind((bound, port))
        except OSError:
            pytest.skip(f"this machine has no {bound}")
        assert listening(port) == (), "bound, and not listening yet"
        server.listen()
        assert listening(port) == seen
        assert is_loopback(seen[0]) == (bound not in ("0.0.0.0", "::"))


def said(seen: Exposure, machines: int = 1) -> dict[str, tuple[str, str]]:
    return {one.what.removeprefix("n1: "): (one.level, one.do) for one in judge(seen, "n1", machines=machines)}


def test_a_guarded_node_has_nothing_to_do() -> None:
    assert set(said(SAFE).values()) == {("ok", "")}
    assert set(said(replace(SAFE, tls=True), machines=3).values()) == {("ok", "")}
    worker = said(replace(SAFE, is_guarded=None, dashboard=()))
    assert set(worker) == {"token file", "TLS between nodes", "metrics port"}


@pytest.mark.parametrize(
    ("changed", "machines", "what", "level", "advice"),
    [
        ({"is_guarded": False}, 1, "authentication", "warn", "RAY_AUTH_MODE=token"),
        ({"is_guarded": False, "dashboard": ("0.0.0.0",)}, 1, "authentication", "fail", "RAY_AUTH_MODE=token"),
        ({"dashboard": ("::",)}, 1, "dashboard", "warn", "--dashboard-host=127.0.0.1"),
        ({"token": "/home/a/token, mode 0644"}, 1, "token file", "warn", "chmod 600 /home/a/token"),
        ({}, 2, "TLS between nodes", "warn", "RAY_USE_TLS=1"),
        ({"metrics": ("0.0.0.0",)}, 1, "metrics port", "warn", "firewall"),
    ],
)
def test_each_opening_is_named_with_what_to_do(changed: dict[str, object], machines: int, what: str, level: str, advice: str) -> None:
    found = said(replace(SAFE, **changed), machines)  # type: ignore[arg-type]
    assert found[what][0] == level
    assert advice in found[what][1]


def test_a_token_that_others_may_read_is_named_and_one_that_they_may_not_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    assert readable_token() == ""
    file.write_text("very-secret")
    for mode, found in ((0o644, f"{file}, mode 0644"), (0o640, f"{file}, mode 0640"), (0o600, ""), (0o400, "")):
        file.chmod(mode)
        assert readable_token() == found
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").touch(mode=0o644)
    assert readable_token() == f"{tmp_path}/.ray/auth_token, mode 0644"


@contextmanager
def dashboard(status: int) -> Iterator[str]:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(("status", "guarded"), [(200, False), (401, True), (500, False)])
def test_only_a_401_is_a_refusal(status: int, guarded: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setenv("RAY_USE_TLS", "1")
    with dashboard(status) as address:
        assert refuses(f"http://{address}") is guarded
        expected = Exposure(metrics=(), dashboard=("127.0.0.1",), is_guarded=guarded, tls=True, token="")
        assert look(metrics_port=free_port(), dashboard=address) == expected
    assert refuses(f"http://{address}") is None


def test_no_proxy_is_asked_in_place_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with dashboard(200) as proxy, dashboard(401) as address:
        monkeypatch.setenv("http_proxy", f"http://{proxy}")
        assert refuses(f"http://{address}") is True
