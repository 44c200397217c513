"""One retrain at a time, and when the last one ended: a lock file and a stamp beside the results."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raymlp.core.errors import RaymlpError
from raymlp.core.files import make_folder, write_text

LOCK, STAMP = "running", "last.json"


def is_held(folder: Path) -> bool:
    """Whether a retrain that is still alive holds the lock. A lock left by a dead process does not count."""
    try:
        pid = int((folder / LOCK).read_text())
    except (OSError, ValueError):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def seconds_since_last(folder: Path) -> float | None:
    """Seconds since the last retrain ended; None if there was none."""
    try:
        return max(0.0, time.time() - float(json.loads((folder / STAMP).read_text())["ended"]))
    except (OSError, ValueError, KeyError):
        return None


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the lock; raise RaymlpError when another retrain does."""
    make_folder(folder)
    lock = folder / LOCK
    if not is_held(folder):
        lock.unlink(missing_ok=True)
    try:
        with lock.open("x") as file:
            file.write(str(os.getpid()))
    except FileExistsError:
        raise RaymlpError(f"a retrain is running already ({lock}); expected none. Wait for it to end.") from None
    try:
        yield
        write_text(folder / STAMP, json.dumps({"ended": time.time()}))
    finally:
        lock.unlink(missing_ok=True)
