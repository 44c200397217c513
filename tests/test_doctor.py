"""What the doctor says of facts, and of this machine."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest

from raymlp.cli import run_command
from raymlp.config.loader import load_config
from raymlp.doctor import Node, doctor, is_well, judge, judge_cpus, look
from raymlp.runtime.ports import free_port

GIB = 1 << 30
NODE = Node(
    name="n1",
    is_head=True,
    versions={"python": "3.11.7", "ray": "2.60.0", "raymlp": "0.1.0"},
    haproxy="/bin/haproxy",
    niceness=0,
    files=65_536,
    shared_memory=8 * GIB,
    memory=16 * GIB,
    cpus=4,
    storage="",
)


def said(node: Node, *settings: str) -> dict[str, tuple[str, str]]:
    """Level and advice by what was looked at, of a node that is not the driver's."""
    found = judge(node, replace(NODE, name="driver"), load_config("flights", list(settings)))
    return {one.what.removeprefix("n1: "): (one.level, one.do) for one in found}


def test_a_sound_node_has_nothing_to_do() -> None:
    assert set(said(NODE).values()) == {("ok", "")}


@pytest.mark.parametrize(
    ("changed", "what", "level", "advice"),
    [
        ({"versions": {**NODE.versions, "ray": "2.59.0"}}, "versions", "fail", "same versions on all nodes"),
        ({"storage": "/x: Permission denied"}, "storage", "fail", "runtime.storage"),
        ({"files": 1024}, "open files", "warn", "ulimit -n"),
        ({"shared_memory": 64 << 20}, "/dev/shm", "warn", "shm-size"),
        ({"haproxy": ""}, "HAProxy", "warn", "a twentieth of the requests per second"),
        ({"niceness": 15}, "priority of workers", "warn", "RAY_worker_niceness=0"),
    ],
)
def test_each_fault_is_named_with_what_to_do(changed: dict[str, object], what: str, level: str, advice: str) -> None:
    found = said(replace(NODE, **changed))  # type: ignore[arg-type]
    assert found.pop(what)[0] == level
    assert advice in said(replace(NODE, **changed))[what][1]  # type: ignore[arg-type]
    assert set(found.values()) == {("ok", "")}


def test_haproxy_that_was_asked_for_is_missed_and_a_worker_node_needs_none() -> None:
    assert said(replace(NODE, haproxy=""), "serve.ingress=haproxy")["HAProxy"][0] == "fail"
    assert "HAProxy" not in said(replace(NODE, haproxy="", is_head=False))
    assert said(replace(NODE, haproxy=""), "serve.ingress=proxy")["ingress"][0] == "ok"


def test_replicas_must_fit_the_cores() -> None:
    config = load_config("flights", ["serve.min_replicas=2", "serve.max_replicas=4", "serve.cpus_per_replica=1"])
    assert [judge_cpus(cores, config).level for cores in (1.5, 2, 3.9, 4)] == ["fail", "warn", "warn", "ok"]


def test_this_machine_is_looked_at_and_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYMLP_API_KEYS", "secret-key")
    settings = [f"runtime.storage={tmp_path}", f"serve.port={free_port()}"]
    found = doctor(load_config("flights", settings))
    assert is_well(found), [one for one in found if one.level == "fail"]
    assert list(tmp_path.iterdir()) == []
    assert "secret-key" not in str(found)
    assert look("none", str(tmp_path), is_head=False).storage.endswith("does not show a file that the driver wrote there")


def test_what_fails_comes_first_and_makes_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAYMLP_API_KEYS", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "file").write_text("")
    with socket.socket() as server:
        server.bind(("127.0.0.1", free_port()))
        server.listen()
        words = ["doctor", "experiment=flights", f"runtime.storage={tmp_path / 'file' / 'below'}", f"serve.port={server.getsockname()[1]}"]
        words += ["registry.tracking_uri=http://127.0.0.1:1"]
        assert run_command(words) == 1
    lines = capsys.readouterr().out
    for what in ("storage", "address", "keys", "MLflow"):
        assert f"fail   {what}" in lines
    assert lines.index("fail") < lines.index("ok ")
    assert run_command(["doctor", "experiment=flights", f"runtime.storage={tmp_path}", "serve.auth=none", f"serve.port={free_port()}"]) == 0
