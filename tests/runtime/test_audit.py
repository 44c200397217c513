"""A log that is only added to: what was changed, taken out, put in, moved or cut off is told."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from raymlp.config.runtime import Runtime
from raymlp.core.errors import RaymlpError
from raymlp.runtime import audit
from raymlp.runtime.audit import FIRST, audit_file, entries, record, verify


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    found = Runtime(storage=str(tmp_path))
    for number in range(1, 5):
        record(found, "deploy", model="flights", version=f"v{number}", url="http://x", note="ü")
    return found


def test_entries_say_who_did_what_to_which_version(runtime: Runtime) -> None:
    found = list(entries(audit_file(runtime)))
    assert [(entry["number"], entry["what"], entry["model"], entry["version"]) for entry in found] == [
        (number, "deploy", "flights", f"v{number}") for number in range(1, 5)
    ]
    assert all("@" in entry["who"] and entry["time"].endswith("+00:00") for entry in found)
    assert found[0]["details"] == {"url": "http://x", "note": "ü"}
    assert [entry["before"] for entry in found] == [FIRST, *(entry["hash"] for entry in found[:-1])]
    chain = verify(audit_file(runtime), head=found[1]["hash"][:12])
    assert (chain.entries, chain.head) == (4, found[-1]["hash"])


def _changed(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[1].replace(b'"v2"', b'"v9"'), *lines[2:]]


def _resealed(lines: list[bytes]) -> list[bytes]:
    """The second line changed, and its own hash made to fit."""
    content = {name: value for name, value in json.loads(lines[1]).items() if name != "hash"} | {"version": "v9"}
    return [lines[0], audit._sealed(content), *lines[2:]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_changed, "line 2 was changed after it was written"),
        (_resealed, "line 3 does not follow"),
        (lambda lines: [lines[0], *lines[2:]], "line 2 does not follow"),
        (lambda lines: [lines[1], lines[0], *lines[2:]], "line 1 does not follow"),
        (lambda lines: [*lines, lines[3]], "line 5 does not follow"),
        (lambda lines: [*lines[:3], lines[3][:20]], "line 4 is no entry"),
        (lambda lines: [*lines[:3], lines[3].replace(b"{", b'{"more":1,', 1)], "line 4 was changed"),
        (lambda lines: [*lines[:3], b"[]\n"], "line 4 is no entry"),
    ],
)
def test_what_was_tampered_with_is_named_by_its_line(runtime: Runtime, change: Callable[[list[bytes]], list[bytes]], words: str) -> None:
    file = audit_file(runtime)
    file.write_bytes(b"".join(change(file.read_bytes().splitlines(keepends=True))))
    with pytest.raises(RaymlpError, match=words):
        verify(file)


def test_lines_gone_at_the_end_are_seen_by_a_hash_that_was_noted(runtime: Runtime) -> None:
    file = audit_file(runtime)
    noted = verify(file).head
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:2]))
    assert verify(file).entries == 2
    with pytest.raises(RaymlpError, match=r"has no line with the hash .*expected it among 2"):
        verify(file, head=noted)


def test_an_empty_log_holds_and_one_that_does_not_end_as_a_log_is_not_gone_on_with(runtime: Runtime, tmp_path: Path) -> None:
    assert verify(tmp_path / "none.jsonl").entries == 0
    file = audit_file(runtime)
    with file.open("ab") as log:
        log.write(b'{"half\n')
    with pytest.raises(RaymlpError, match=r"the last line of .* is no entry"):
        record(runtime, "deploy", model="flights", version="v5")


@pytest.mark.parametrize("length", [7, 200_000])
def test_half_a_line_of_a_machine_that_died_is_taken_away(runtime: Runtime, length: int, caplog: pytest.LogCaptureFixture) -> None:
    file = audit_file(runtime)
    with file.open("ab") as log:
        log.write(b"{" * length)
    with pytest.raises(RaymlpError, match="line 5 is no entry"):
        verify(file)
    record(runtime, "deploy", model="flights", version="v5")
    assert f"ended with half a line of {length} bytes, which was never recorded" in caplog.text
    assert [entry["version"] for entry in entries(file)] == ["v1", "v2", "v3", "v4", "v5"]


def test_half_a_first_line_is_taken_away_too(tmp_path: Path) -> None:
    found = Runtime(storage=str(tmp_path))
    audit_file(found).parent.mkdir(parents=True)
    audit_file(found).write_text('{"half')
    record(found, "deploy", model="flights", version="v1")
    assert verify(audit_file(found)).entries == 1


def test_the_user_is_that_of_the_process_whatever_the_environment_says(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "somebody-else")
    record(runtime, "deploy", model="flights", version="v5")
    monkeypatch.setattr("os.getuid", lambda: 3_999_999_999)
    record(runtime, "deploy", model="flights", version="v6")
    who = [entry["who"].partition("@")[0] for entry in entries(audit_file(runtime))]
    assert who[-2] == who[0] != "somebody-else"
    assert who[-1] == "3999999999"


def test_a_noted_hash_counts_in_capitals_too(runtime: Runtime) -> None:
    noted = verify(audit_file(runtime)).head
    assert verify(audit_file(runtime), head=noted.upper()).head == noted


def test_processes_that_write_at_once_make_one_chain(runtime: Runtime) -> None:
    code = f"""
from raymlp.config.runtime import Runtime
from raymlp.runtime.audit import record
for number in range(20):
    record(Runtime(storage={runtime.storage!r}), "register", model="m", version=str(number), text="x" * 500)
"""
    others = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [other.wait() for other in others] == [0, 0]
    assert verify(audit_file(runtime)).entries == 44
