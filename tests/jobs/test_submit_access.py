"""Who may be talked to: a server that answers like a dashboard, on this machine's own addresses."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from raymlp.core.errors import ConfigError, JobError
from raymlp.jobs import access
from raymlp.jobs.access import address_of, opened

TOKEN = "right-" * 8


class Dashboard(BaseHTTPRequestHandler):
    """Open, or asking for TOKEN; remembers the headers of each request."""

    def do_GET(self) -> None:
        given = self.headers.get("Authorization")
        self.server.seen.append(given)  # type: ignore[attr-defined]
        asks = self.server.asks  # type: ignore[attr-defined]
        status = 200 if not asks or given == f"Bearer {TOKEN}" else 403 if given else 401
        body = json.dumps({"ray_version": "2.60.0"}).encode() if status == 200 else b"no"
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ThreadingHTTPServer]:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with ThreadingHTTPServer(("0.0.0.0", 0), Dashboard) as server:
        server.asks, server.seen = True, []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def url(server: ThreadingHTTPServer, host: str = "127.0.0.1") -> str:
    return f"http://{host}:{server.server_address[1]}"


def own_address() -> str:
    """An address of this machine that is not the loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
            host = str(probe.getsockname()[0])
        except OSError:
            host = "127.0.0.1"
    if host.startswith("127."):
        pytest.skip("this machine has the loopback alone")
    return host


def test_an_open_cluster_elsewhere_is_refused_and_told_nothing(dashboard: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    dashboard.asks = False  # type: ignore[attr-defined]
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    with pytest.raises(ConfigError, match=r"answers without a token: whoever reaches it runs code on every node\. Nothing was sent"):
        opened(url(dashboard, own_address()))
    assert opened(url(dashboard)).headers == {}
    assert opened(url(dashboard)).notes == ("no token is asked for: fit for a cluster of this machine alone",)
    assert set(dashboard.seen) == {None}  # type: ignore[attr-defined]


def test_a_token_goes_to_a_cluster_that_asks(dashboard: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    found = opened(url(dashboard))
    assert (found.ray_version, found.token, found.notes) == ("2.60.0", TOKEN, ())
    assert "right" not in repr(found)
    remote = opened(url(dashboard, own_address()))
    assert remote.notes == ("the token crosses the network in plain: use https:// or a tunnel where others listen",)


def test_a_missing_and_a_wrong_token_are_told_apart(
    dashboard: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="asks for a token, and there is none; expected one in RAY_AUTH_TOKEN"):
        opened(url(dashboard))
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "gone"))
    with pytest.raises(ConfigError, match="gone cannot be read"):
        opened(url(dashboard))
    (tmp_path / "gone").write_text("wrong-token")
    with pytest.raises(ConfigError, match=r"refuses the token of .*gone; expected the cluster's") as refused:
        opened(url(dashboard))
    assert "wrong-token" not in str(refused.value)


def test_a_file_of_the_token_that_others_may_read_is_told(dashboard: ThreadingHTTPServer, tmp_path: Path) -> None:
    place = tmp_path / ".ray" / "auth_token"
    place.parent.mkdir()
    place.write_text(f"{TOKEN}\n")
    place.chmod(0o644)
    assert opened(url(dashboard)).notes == (f"others of this machine may read the token: chmod 600 {place}",)
    place.chmod(0o600)
    assert opened(url(dashboard)).notes == ()


def test_a_token_does_not_cross_the_internet_in_plain(dashboard: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setattr(access, "_is_public", lambda _: True)
    with pytest.raises(ConfigError, match="in plain over the internet"):
        opened(url(dashboard))
    assert dashboard.seen == [None]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("host", "public"), [("8.8.8.8", True), ("10.1.2.3", False), ("[::1]", False), ("127.0.0.1", False)])
def test_what_counts_as_the_internet(host: str, public: bool) -> None:
    assert access._is_public(f"http://{host}:8265") is public


def test_nobody_there_and_somebody_else_there(dashboard: ThreadingHTTPServer) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(JobError, match="no Ray head answers at"):
            opened(f"http://127.0.0.1:{free.getsockname()[1]}")


def test_the_address_is_a_dashboards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    assert address_of(None) == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "https://ray.example.com/")
    assert address_of(None) == "https://ray.example.com"
    assert address_of("http://head:8265") == "http://head:8265"
    for wrong in ("ray://head:10001", "head:8265", "auto", "http://user@head:1", "http://head:8265/jobs"):
        with pytest.raises(ConfigError, match="expected that of its dashboard"):
            address_of(wrong)
