"""Who did what to which version: a log that is only added to, one JSON object a line, each with the hash of the one before. In an object
store, where nothing can be added to a file, each line is a file of its own, written on condition that there is none of its number.

A line that is changed, taken out or put in breaks the chain from there on, which `verify` shows. What a chain alone cannot show is
that lines at its end are gone, or that all of it was written anew: for that a hash that was noted elsewhere is looked for in it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import pwd
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from raymlp.config.runtime import Runtime
from raymlp.core.errors import RaymlpError
from raymlp.core.files import Place, make_folder, to_json
from raymlp.runtime.session import storage_root
from raymlp.runtime.store import StorePlace

log = logging.getLogger(__name__)
FIRST = "0" * 64
"""What the first line has in the place of the hash before it."""
LINE = "{:09d}.json"
FIELDS = ("number", "time", "who", "what", "model", "version", "details", "before", "hash")


@dataclass(frozen=True)
class Chain:
    """A log that holds: how many lines, and the hash of the last, to be noted elsewhere."""

    entries: int
    head: str


def audit_file(runtime: Runtime) -> Place:
    """Where the log of a storage is: a file, or a folder of an object store."""
    folder = storage_root(runtime) / "audit"
    return folder / "audit.jsonl" if isinstance(folder, Path) else folder


def record(runtime: Runtime, what: str, *, model: str, version: str, **details: Any) -> None:
    """Add a line: `what` was done to a version of a model, by the user of this process, now. `details` never hold a secret.

    Raises RaymlpError when it cannot be written: what is not recorded does not count as done.
    """
    file = audit_file(runtime)
    entry = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "who": who(),
        "what": what,
        "model": model,
        "version": version,
        "details": details,
    }
    if isinstance(file, StorePlace):
        _record_in_store(file, entry)
        return
    assert isinstance(file, Path)
    make_folder(file.parent)
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o640)
    except OSError as error:
        raise RaymlpError(f"{file} cannot be written ({error.strerror}); expected to record '{what}'. Mend its permissions.") from error
    with os.fdopen(descriptor, "r+b", buffering=0) as lines:
        fcntl.flock(lines, fcntl.LOCK_EX)
        end = _whole(lines, lines.seek(0, os.SEEK_END), file)
        number, before = _last(lines, end, file)
        line = _sealed(entry | {"number": number + 1, "before": before})
        try:
            if lines.write(line) != len(line):
                raise OSError(None, "the line was cut off")
            os.fsync(lines.fileno())
        except OSError as error:
            lines.truncate(end)  # half a line would break the chain
            raise RaymlpError(f"{file} cannot be written ({error.strerror}); expected to record '{what}'. Make room.") from error


def _record_in_store(folder: StorePlace, entry: dict[str, Any]) -> None:
    """Put a line behind the last; when another process was quicker, behind that one's."""
    while True:
        number, before = 0, FIRST
        if files := _lines_in(folder):
            number, before = _number_and_hash(files[-1].read_text(), files[-1])
        try:
            (folder / LINE.format(number + 1)).write_if(_sealed(entry | {"number": number + 1, "before": before}).decode(), None)
            return
        except FileExistsError:
            continue


def _lines_in(folder: StorePlace) -> list[StorePlace]:
    return sorted(folder.glob("[0-9]*.json"))


def _lines(file: Place) -> Iterator[bytes]:
    """The lines of a log, as they are."""
    if isinstance(file, StorePlace):
        yield from (line.read_text().encode() for line in _lines_in(file))
        return
    try:
        with file.open("rb") as lines:
            yield from lines
    except FileNotFoundError:
        return


def entries(file: Place) -> Iterator[dict[str, Any]]:
    """The lines of a log, each after its place in the chain was checked. Raises RaymlpError that names the line and what is wrong."""
    before = FIRST
    for number, line in enumerate(_lines(file), 1):
        try:
            entry = json.loads(line)
            content = {name: entry[name] for name in FIELDS if name != "hash"}
            whole = line == _sealed(content) and len(entry) == len(FIELDS)
        except (ValueError, KeyError, TypeError):
            raise _broken(file, number, "is no entry of the log") from None
        if entry["before"] != before or entry["number"] != number:
            raise _broken(file, number, "does not follow the line before it: lines were taken out, put in or moved")
        if not whole:
            raise _broken(file, number, "was changed after it was written: its hash does not fit")
        before = entry["hash"]
        yield entry


def verify(file: Place, *, head: str = "") -> Chain:
    """The chain, when every line holds. `head` is a hash noted earlier (its first digits will do), which must still be in it.

    Raises RaymlpError as `entries`, and when `head` is not there: lines at the end are gone, or all was written anew.
    """
    head = head.lower()
    last, found, count = FIRST, not head, 0
    for entry in entries(file):
        last, count = entry["hash"], entry["number"]
        found = found or last.startswith(head)
    if not found:
        raise RaymlpError(
            f"{file} has no line with the hash {head}, which was noted earlier; expected it among {count:,}. Lines at the end are gone, "
            "or all of it was written anew. Look for a copy."
        )
    return Chain(count, last)


def _sealed(content: dict[str, Any]) -> bytes:
    """The line of an entry with its hash: SHA-256 over the JSON of everything else."""
    plain = json.loads(to_json(content, indent=None))
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return (json.dumps(plain | {"hash": hashlib.sha256(text.encode()).hexdigest()}, sort_keys=True, separators=(",", ":")) + "\n").encode()


def _whole(lines: Any, end: int, file: Path) -> int:
    """Where the last whole line ends. What comes after it was cut off with its machine: it was never recorded, and is taken away."""
    size = found = 0
    while size < end and not found:
        size = min(end, max(1 << 16, 2 * size))
        lines.seek(end - size)
        place = lines.read(size).rfind(b"\n")
        found = end - size + place + 1 if place >= 0 else 0
    if found < end:
        lines.truncate(found)
        log.warning("%s ended with half a line of %d bytes, which was never recorded and is taken away", file, end - found)
    return found


def _last(lines: Any, end: int, file: Path) -> tuple[int, str]:
    """Number and hash of the last line."""
    if not end:
        return 0, FIRST
    size = min(end, 1 << 16)
    lines.seek(end - size)
    tail = lines.read(size)
    return _number_and_hash(tail.rstrip(b"\n").rpartition(b"\n")[2], file)


def _number_and_hash(line: str | bytes, file: Place) -> tuple[int, str]:
    try:
        entry = json.loads(line)
        return int(entry["number"]), str(entry["hash"])
    except (ValueError, KeyError, TypeError):
        raise RaymlpError(
            f"the last line of {file} is no entry of the log; expected one to go on from. Look at it: raymlp audit verify."
        ) from None


def _broken(file: Place, number: int, what: str) -> RaymlpError:
    return RaymlpError(f"{file}, line {number:,} {what}. The log cannot be trusted from there on; compare it with a copy.")


def who() -> str:
    """The user of this process at its machine."""
    return f"{user(os.getuid())}@{socket.gethostname()}"


def user(number: int) -> str:
    """The name of a user, or the number; no environment variable is believed."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)
