"""Who is let in: by a key whose hash is kept, its role and its end; while replicas run, too."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raymlp.cli import run_command
from raymlp.config.serve import Serve
from raymlp.core.errors import ConfigError, ServingError
from raymlp.serve.admission import Admission
from raymlp.serve.app import ModelServer
from raymlp.serve.deploy import keys_of
from raymlp.serve.keys import GRACE_S, KeyRing, Refusal, add_key, given_keys, key_hash, read_keys, revoke_key
from tests.serve.bundles import replica_settings

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
RING = KeyRing(given_keys("first, second,,"))


def refused(ring: KeyRing, header: bytes, role: Any = "predict", now: datetime = NOON) -> tuple[int, str]:
    with pytest.raises(Refusal) as found:
        ring.let_in(header, role, now=now)
    return found.value.status, found.value.found


@pytest.mark.parametrize("header", [b"Bearer first", b"bearer second", b"Bearer  first "])
def test_a_known_key_is_let_in(header: bytes) -> None:
    assert RING.let_in(header, "operate").name in ("environment-1", "environment-2")


@pytest.mark.parametrize(
    "header", [b"", b"Bearer", b"Bearer ", b"first", b"Basic first", b"Bearer firs", b"Bearer \xff", f"Bearer {key_hash('first')}".encode()]
)
def test_anything_else_is_kept_out(header: bytes) -> None:
    assert refused(RING, header) == (401, "missing or unknown")


def test_a_key_allows_what_its_roles_say_until_its_end(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    end = NOON + timedelta(days=1)
    one, two = add_key(file, "shop", ["predict"], end), add_key(file, "desk", ["operate"])
    ring = KeyRing((), file)
    assert ring.let_in(f"Bearer {one}".encode(), "predict", now=end - timedelta(seconds=1)).name == "shop"
    assert refused(ring, f"Bearer {one}".encode(), now=end) == (401, "a key that expired on 2026-01-02")
    assert refused(ring, f"Bearer {two}".encode()) == (403, "a key for operate")
    assert ring.let_in(f"Bearer {two}".encode(), "operate", now=NOON).name == "desk"
    text = file.read_text()
    assert one not in text
    assert two not in text
    assert key_hash(one) in text
    assert file.stat().st_mode & 0o777 == 0o600
    assert len(one) >= 47


def test_a_file_is_followed_while_replicas_run(tmp_path: Path) -> None:
    file, now = tmp_path / "keys.json", [0.0]
    old = add_key(file, "old", ["predict"])
    ring = KeyRing(given_keys("fixed"), file, clock=lambda: now[0])
    new = add_key(file, "new", ["predict"])
    assert refused(ring, f"Bearer {new}".encode())[0] == 401  # not looked at again yet
    now[0] = 1.5
    assert ring.let_in(f"Bearer {new}".encode(), "predict").name == "new"
    revoke_key(file, "old")
    now[0] = 3.0
    assert refused(ring, f"Bearer {old}".encode())[0] == 401
    file.write_text("{")
    now[0] = 5.0
    assert ring.let_in(f"Bearer {new}".encode(), "predict").name == "new"
    now[0] = 6.5 + GRACE_S
    assert refused(ring, f"Bearer {new}".encode())[0] == 401
    assert ring.let_in(b"Bearer fixed", "predict").name == "environment-1"
    file.unlink()
    newest = add_key(file, "newest", ["predict"])
    now[0] = 9.0 + GRACE_S
    assert ring.let_in(f"Bearer {newest}".encode(), "predict").name == "newest"


def test_a_file_that_others_can_open_or_that_holds_no_keys_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    with pytest.raises(ConfigError, match=r"cannot be read .*raymlp keys add NAME"):
        read_keys(file)
    add_key(file, "shop", ["predict"])
    with pytest.raises(ConfigError, match=r"has a key 'shop' already"):
        add_key(file, "shop", ["predict"])
    with pytest.raises(ConfigError, match=r"'predcit' is no role; .*Did you mean 'predict'"):
        add_key(file, "desk", ["predcit"])
    with pytest.raises(ConfigError, match=r"'a b' is no name of a key"):
        add_key(file, "a b", ["predict"])
    with pytest.raises(ConfigError, match=r"has no key 'shp'; expected one of shop. Did you mean 'shop'"):
        revoke_key(file, "shp")
    os.chmod(file, 0o640)
    with pytest.raises(ConfigError, match=r"has mode 0640; expected 0600"):
        read_keys(file)
    os.chmod(file, 0o600)
    for text, words in (
        ('{"keys": [{"name": "a", "sha256": "plain", "roles": ["predict"]}]}', "keys.0.sha256"),
        ('{"keys": [{"name": "a", "sha256": "' + "0" * 64 + '", "roles": ["admin"]}]}', "keys.0.roles"),
        ('{"keys": [' + ",".join(['{"name": "a", "sha256": "' + "0" * 64 + '", "roles": ["predict"]}'] * 2) + "]}", "there twice"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=words):
            read_keys(file)


def test_changes_at_once_lose_no_key_and_bring_none_back(tmp_path: Path) -> None:
    file = tmp_path / "new" / "keys.json"
    for number in range(10):
        add_key(file, f"old-{number}", ["predict"])
    with ThreadPoolExecutor(8) as pool:
        work = [pool.submit(revoke_key, file, f"old-{number}") for number in range(10)]
        work += [pool.submit(add_key, file, f"new-{number}", ["predict"]) for number in range(10)]
        for item in work:
            item.result()
    assert sorted(key.name for key in read_keys(file).keys) == [f"new-{number}" for number in range(10)]
    assert sorted(found.name for found in file.parent.iterdir()) == [".keys.json.lock", "keys.json"]
    assert (file.parent / ".keys.json.lock").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match=r"cannot be read"):
        revoke_key(tmp_path / "elsewhere.json", "shop")
    assert [found.name for found in tmp_path.iterdir()] == ["new"]


def test_a_key_that_cannot_be_recorded_is_taken_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "artifacts" / "audit" / "audit.jsonl").mkdir(parents=True)
    file = tmp_path / "keys.json"
    assert run_command(["keys", "add", "shop", "--file", str(file), f"runtime.storage={tmp_path / 'artifacts'}"]) == 1
    told = capsys.readouterr()
    assert "expected to record 'key added'" in " ".join(told.err.split())
    assert "rml_" not in told.out + told.err
    assert read_keys(file).keys == ()


def test_an_endpoint_needs_a_key_from_somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYMLP_API_KEYS", " , ")
    with pytest.raises(ServingError, match=r"RAYMLP_API_KEYS holds none and serve.keys_file is None"):
        keys_of(Serve())
    add_key(tmp_path / "keys.json", "shop", ["predict"])
    assert keys_of(Serve(keys_file=str(tmp_path / "keys.json"))) == []
    monkeypatch.setenv("RAYMLP_API_KEYS", "one")
    (key,) = keys_of(Serve())
    assert (key.name, key.sha256) == ("environment-1", key_hash("one"))
    assert keys_of(Serve(auth="none")) == []


def test_a_replica_asks_each_route_for_its_role(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.serve.get_replica_context", lambda: SimpleNamespace(replica_id=SimpleNamespace(unique_id="r")))
    key = add_key(tmp_path / "keys.json", "shop", ["predict"])
    server = ModelServer(replica_settings(tmp_path, needs_key=True, keys_file=str(tmp_path / "keys.json")))
    headers = {b"authorization": f"Bearer {key}".encode()}
    assert server.admission.refused(headers, "predict") is None
    found = server.admission.refused(headers, "operate")
    assert found is not None
    assert (found.status, found.expected) == (403, "a key with the role operate")
    unknown = server.admission.refused({}, "predict")
    assert unknown is not None
    assert unknown.status == 401


def test_the_commands_make_list_and_revoke_and_leave_a_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, site = ["--file", str(tmp_path / "keys.json")], f"runtime.storage={tmp_path / 'artifacts'}"
    assert run_command(["keys", "add", "shop", "--roles", "predict, operate", "--days", "30", *file, site]) == 0
    shown = capsys.readouterr().out
    key = next(word for word in shown.split() if word.startswith("rml_"))
    assert KeyRing((), tmp_path / "keys.json").let_in(f"Bearer {key}".encode(), "operate").name == "shop"
    assert run_command(["keys", "list", *file]) == 0
    shown = capsys.readouterr().out
    assert "shop" in shown
    assert "predict, operate" in shown
    assert key not in shown
    assert run_command(["keys", "revoke", "shp", *file, site]) == 2
    assert run_command(["keys", "revoke", "shop", *file, site]) == 0
    assert read_keys(tmp_path / "keys.json").keys == ()
    assert run_command(["audit", "show", site]) == 0
    shown = capsys.readouterr().out
    assert "key added" in shown
    assert "key revoked" in shown
    log = tmp_path / "artifacts" / "audit" / "audit.jsonl"
    assert key not in log.read_text()
    assert key_hash(key) not in log.read_text()
    assert run_command(["audit", "verify", site]) == 0
    log.write_text(log.read_text().replace('"key":"shop"', '"key":"desk"', 1))
    assert run_command(["audit", "verify", site]) == 1
    assert "line 1 was changed after it was written" in " ".join(capsys.readouterr().err.split())


def test_a_key_may_have_a_limit_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, site = ["--file", str(tmp_path / "keys.json")], f"runtime.storage={tmp_path / 'artifacts'}"
    assert run_command(["keys", "add", "shop", "--rate", "0.001", "--burst", "2", *file, site]) == 0
    key = next(word for word in capsys.readouterr().out.split() if word.startswith("rml_"))
    assert run_command(["keys", "add", "desk", "--burst", "2", *file, site]) == 2
    door = Admission(KeyRing((), tmp_path / "keys.json"), needs_key=True)
    headers = {b"authorization": f"Bearer {key}".encode()}
    found = [door.refused(headers, "predict") for _ in range(3)]
    assert found[:2] == [None, None]
    assert found[2] is not None
    assert (found[2].status, found[2].field) == (429, "requests")
    assert run_command(["keys", "list", *file]) == 0
    assert "0.001/s" in capsys.readouterr().out
