"""Which processes belong to a cluster, and their end. Linux: what `/proc` says.

Whatever a cluster starts, and whatever that starts, has the cluster's mark in the environment it was born with. A process that writes a
long title over its environment, as some of Ray's do, is known by a file that it has open in the cluster's folder. A process is held by a
descriptor before it is looked at and until its signal is sent, so that a number that is used again hits nobody else.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

MARK = "RAYMLP_CLUSTER"
PROC = Path("/proc")
VARIABLE = re.compile(rb"[A-Za-z_][A-Za-z0-9_]*=")
GCS = "gcs_server"
"""Asked to end when it is the last one: raylets that end talk to it."""

POLL_S = 0.1


@dataclass(frozen=True)
class Owner:
    """What its processes are known by."""

    mark: str
    folder: Path
    """Absolute, links resolved."""


def belonging(owner: Owner) -> list[int]:
    """Process numbers of what runs now, this process left out."""
    numbers = (int(place.name) for place in PROC.iterdir() if place.name.isdigit())
    return sorted(pid for pid in numbers if pid != os.getpid() and is_of(owner, pid))


def is_of(owner: Owner, pid: int) -> bool:
    """Whether this process is the cluster's. What has ended, or may not be looked at, is not."""
    place = PROC / str(pid)
    try:
        if _is_dead(place):
            return False
        variables = (place / "environ").read_bytes().split(b"\0")
        if f"{MARK}={owner.mark}".encode() in variables:
            return True
        return not VARIABLE.match(variables[0]) and any(path.is_relative_to(owner.folder) for path in _open_files(place))
    except OSError:
        return False


def words(pid: int) -> list[str]:
    """The words that a process was started with, or its title; none when it has ended."""
    try:
        return [os.fsdecode(word) for word in (PROC / str(pid) / "cmdline").read_bytes().split(b"\0")]
    except OSError:
        return []


def program(pid: int) -> str:
    """The file name of the program that a process runs; empty when it has ended."""
    return Path((words(pid) or [""])[0]).name


def _is_dead(place: Path) -> bool:
    """Ended, and not yet asked about by its parent."""
    return (place / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"


def _open_files(place: Path) -> Iterator[Path]:
    for link in (place / "fd").iterdir():
        with suppress(OSError):
            yield Path(os.readlink(link))


def end(owner: Owner, *, patience_s: float) -> int:
    """End all of it: asked first (SIGTERM), killed after `patience_s`. Gives back how many there were.

    Raises TimeoutError when something outlives SIGKILL by as long again.
    """
    start, told, killed = time.monotonic(), set[int](), set[int]()
    while found := belonging(owner):
        waited = time.monotonic() - start
        if waited > 2 * patience_s + 1:
            raise TimeoutError(f"{len(found)} processes outlive SIGKILL: {', '.join(map(str, found))}")
        number, done = (signal.SIGKILL, killed) if waited > patience_s else (signal.SIGTERM, told)
        for pid in [pid for pid in found if program(pid) != GCS] or found:
            if pid not in done:
                done.add(pid)
                send(owner, pid, number)
        time.sleep(POLL_S)
    return len(told | killed)


def send(owner: Owner, pid: int, number: signal.Signals) -> bool:
    """Signal a process if it is still the cluster's; says whether it was."""
    with _held(pid) as descriptor:
        if descriptor is None or not is_of(owner, pid):
            return False
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, number)
        return True


@contextmanager
def _held(pid: int) -> Iterator[int | None]:
    """A descriptor of the process that has this number now; None when none has."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)
