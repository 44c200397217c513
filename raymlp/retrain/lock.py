"""One retrain at a time, and when the last one ended: a lock file, or a claim in an object store, and a stamp beside the results."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raymlp.core.errors import RaymlpError
from raymlp.core.files import Place, make_folder, write_text
from raymlp.runtime.claim import Claim
from raymlp.runtime.store import StorePlace

LOCK, CLAIM, STAMP = "running", "running.json", "last.json"


def is_held(folder: Place) -> bool:
    """Whether a retrain that is still alive holds the lock. A lock left by a dead process does not count."""
    if isinstance(folder, StorePlace):
        return Claim(folder / CLAIM).is_live()
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


def seconds_since_last(folder: Place) -> float | None:
    """Seconds since the last retrain ended; None if there was none."""
    try:
        return max(0.0, time.time() - float(json.loads((folder / STAMP).read_text())["ended"]))
    except (OSError, ValueError, KeyError):
        return None


@contextmanager
def held(folder: Place) -> Iterator[None]:
    """Hold the lock; raise RaymlpError when another retrain does."""
    refusal = RaymlpError(f"a retrain is running already ({folder / LOCK}); expected none. Wait for it to end.")
    with Claim(folder / CLAIM).held(refusal) if isinstance(folder, StorePlace) else _locked(folder, refusal):
        yield
        write_text(folder / STAMP, json.dumps({"ended": time.time()}))


@contextmanager
def _locked(folder: Place, refusal: RaymlpError) -> Iterator[None]:
    assert isinstance(folder, Path)
    lock = make_folder(folder) / LOCK
    if not is_held(folder):
        lock.unlink(missing_ok=True)
    try:
        with lock.open("x") as file:
            file.write(str(os.getpid()))
    except FileExistsError:
        raise refusal from None
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
