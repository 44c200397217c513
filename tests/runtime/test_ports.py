from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from raymlp.core.errors import RaymlpError
from raymlp.runtime import ports


def test_ports_are_different_free_and_not_of_those_for_clients() -> None:
    found = ports.free_ports(50)
    assert len(set(found)) == 50
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    for port in found:
        assert not first <= port <= last
        assert port not in ports.WORKER_PORTS
        assert port not in ports.REPLICA_PORTS
        with socket.socket() as server:
            server.bind(("127.0.0.1", port))


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_a_port_that_is_listened_on_is_not_given(address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.socket() as server:
        server.bind((address, ports.free_port()))
        server.listen()
        port = server.getsockname()[1]
        monkeypatch.setattr(ports, "ephemeral_ports", lambda: _NotThese(port))
        with pytest.raises(RaymlpError, match="0 ports are free"):
            ports.free_ports(1)


def test_the_kernels_range_is_read_and_known_where_it_is_not_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told = tmp_path / "range"
    told.write_text("40000\t50000\n")
    monkeypatch.setattr(ports, "EPHEMERAL", told)
    assert ports.ephemeral_ports() == range(40_000, 50_001)
    monkeypatch.setattr(ports, "EPHEMERAL", tmp_path / "none")
    assert ports.ephemeral_ports() == range(32_768, 61_000)


class _NotThese:
    """Everything but one port."""

    start, stop = 0, 65_536

    def __init__(self, port: int) -> None:
        self.port = port

    def __contains__(self, port: int) -> bool:
        return port != self.port


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_who_listens_is_told_by_program_and_process(address: str) -> None:
    with socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET) as server:
        port = server.getsockname()[1]
        assert ports.who_listens(port) == f"{Path('/proc/self/comm').read_text().strip()}, process {os.getpid()}"
    assert ports.who_listens(port) == ""
