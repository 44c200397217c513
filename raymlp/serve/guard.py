"""Remembers which challenger a replica holds, in a file that outlives the process.

A challenger that kills its process takes the champion's replica with it, and would kill the next one too. So a replica
holds a locked file while it has a challenger; the lock goes when the process dies, however it dies, and a replica that
finds an unlocked file of the same revision starts without the challenger. Sending the versions again is a new revision.
"""

from __future__ import annotations

import fcntl
import os
import uuid
from pathlib import Path

from raymlp.core.files import make_folder


class Guard:
    """One replica's hold on a challenger. Sees the deaths of replicas on hosts that share `folder` and its locks: where results are in
    an object store, those of its own host."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._held: tuple[Path, int] | None = None

    def is_suspect(self, revision: str) -> bool:
        """Whether a replica died while it held a challenger of this revision. Traces of other revisions are removed."""
        found = False
        for path in self.folder.glob("*.held"):
            if not _is_abandoned(path):
                continue
            if path.name.startswith(f"{revision}."):
                found = True
            else:
                path.unlink(missing_ok=True)
        return found

    def hold(self, revision: str) -> None:
        """From now on, a death of this process counts against the revision's challenger."""
        self.release()
        path = make_folder(self.folder) / f"{revision}.{uuid.uuid4().hex}.held"
        aside = path.with_suffix(".new")
        handle = os.open(aside, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(handle, fcntl.LOCK_EX)
        os.replace(aside, path)
        self._held = path, handle

    def release(self) -> None:
        """The challenger is gone, or the process ends in good order."""
        if self._held:
            path, handle = self._held
            path.unlink(missing_ok=True)
            os.close(handle)
            self._held = None


def _is_abandoned(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True
