"""The script in front of HAProxy, with the program itself."""

from __future__ import annotations

import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ray.serve._private.haproxy_templates import HAPROXY_CONFIG_TEMPLATE

from raymlp.config.serve import Tls
from raymlp.core.errors import ServingError
from raymlp.runtime.front import lay_out, script_of
from raymlp.runtime.ingress import haproxy_binary
from raymlp.runtime.ports import free_ports
from tests.certificates import make_certificate

CONFIG = """
global
    stats socket {folder}/admin.sock mode 666 level admin
defaults
    mode http
    timeout connect 1s
    timeout client 5s
    timeout server 5s
frontend prometheus
    bind :{metrics}
    http-request use-service prometheus-exporter if {{ path /metrics }}
frontend http_frontend
    bind 127.0.0.1:{port}
    {route}
    default_backend none
backend model
    http-request return status 200 content-type text/plain string served
backend none
    http-request return status 404 content-type text/plain string none
listen stats
  bind *:{stats}
  stats enable
  stats uri /stats
"""


@contextmanager
def running(folder: Path, tls: Tls | None, *, route: str = "use_backend model if TRUE") -> Iterator[tuple[int, str]]:
    """HAProxy behind the script: its port, and the config that it got."""
    binary = haproxy_binary()
    if binary is None:
        pytest.skip("no HAProxy on this machine")
    port, metrics, stats = free_ports(3)
    lay_out(folder, binary, tls)
    config = folder / "haproxy.cfg"
    config.write_text(CONFIG.format(folder=folder, port=port, metrics=metrics, stats=stats, route=route))
    process = subprocess.Popen([script_of(folder), "-db", "-f", config], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 10
        while not (folder / "admin.sock").exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
        text = config.read_text()
        assert f"bind 127.0.0.1:{metrics}\n" in text
        assert f"bind 127.0.0.1:{stats}\n" in text
        yield port, text
    finally:
        process.kill()
        process.communicate()


def answer(url: str, context: ssl.SSLContext | None = None) -> str:
    with urllib.request.urlopen(url, timeout=5, context=context) as found:
        return str(found.read().decode())


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("f")


def test_a_certificate_makes_the_address_speak_tls_alone(folder: Path) -> None:
    tls = make_certificate(folder)
    with running(folder, tls) as (port, text):
        trusting = ssl.create_default_context(cafile=tls.certificate)
        assert answer(f"https://127.0.0.1:{port}/", trusting) == "served"
        with pytest.raises(OSError, match="certificate verify failed"):
            answer(f"https://127.0.0.1:{port}/", ssl.create_default_context())
        with pytest.raises(OSError, match=r"Remote end closed|Connection reset|BadStatusLine"):
            answer(f"http://127.0.0.1:{port}/")
        trusting.maximum_version = ssl.TLSVersion.TLSv1_2
        assert answer(f"https://127.0.0.1:{port}/", trusting) == "served"
        assert text.count(" ssl crt ") == 1


def test_without_a_certificate_the_address_speaks_http(folder: Path) -> None:
    with running(folder, None) as (port, text):
        assert answer(f"http://127.0.0.1:{port}/") == "served"
        assert "ssl" not in text


def test_nothing_listens_until_there_is_a_route(folder: Path) -> None:
    with running(folder, None, route="") as (port, _), pytest.raises(OSError, match="refused"):
        answer(f"http://127.0.0.1:{port}/")


def test_a_config_that_is_changed_already_is_left_as_it_is(folder: Path) -> None:
    binary, tls, config = haproxy_binary(), make_certificate(folder), folder / "haproxy.cfg"
    assert binary
    lay_out(folder, binary, tls)
    for route in ("use_backend model if TRUE", ""):
        config.write_text(CONFIG.format(folder=folder, port=1, metrics=2, stats=3, route=route))
        texts = []
        for _ in range(2):
            subprocess.run([script_of(folder), "-c", "-f", config], check=True, capture_output=True)
            texts.append(config.read_text())
        assert texts[0] == texts[1]


def test_a_config_of_another_make_is_refused(folder: Path) -> None:
    binary, config = haproxy_binary(), folder / "haproxy.cfg"
    assert binary
    lay_out(folder, binary, None)
    for gone in ("listen stats", "frontend prometheus", "frontend http_frontend"):
        config.write_text(
            CONFIG.format(folder=folder, port=1, metrics=2, stats=3, route="use_backend model").replace(gone, f"{gone.split()[0]} other")
        )
        found = subprocess.run([script_of(folder), "-c", "-f", config], check=False, capture_output=True, text=True)
        assert found.returncode == 1
        assert f"no address under '{gone}'" in found.stderr


def test_rays_own_template_has_the_places_that_are_changed() -> None:
    for place in (
        "\nfrontend prometheus\n    bind :{{ config.metrics_port }}\n",
        "\nfrontend http_frontend\n    bind {{ config.frontend_host }}:{{ config.frontend_port }}\n",
        "\nlisten stats\n  bind *:{{ config.stats_port }}\n",
        "\n    use_backend {{ backend.name or 'unknown' }} if is_",
    ):
        assert place in HAPROXY_CONFIG_TEMPLATE


def test_files_that_are_no_pair_are_refused_by_name(folder: Path) -> None:
    one, other = make_certificate(folder), make_certificate(folder, name="other")
    with pytest.raises(ServingError, match=r"serve.tls.key is .*gone, which cannot be read"):
        lay_out(folder, Path("haproxy"), Tls(certificate=one.certificate, key=str(folder / "gone")))
    with pytest.raises(ServingError, match=r"do not go together .*KEY_VALUES_MISMATCH"):
        lay_out(folder, Path("haproxy"), Tls(certificate=one.certificate, key=other.key))
    secret = make_certificate(folder, name="secret", password=b"word")
    with pytest.raises(ServingError, match="the key has a password"):
        lay_out(folder, Path("haproxy"), secret)
