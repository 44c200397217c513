"""Disks that are full: told by name and by numbers, whoever meets them first."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray.util

from raymlp.core.errors import TrainingError
from raymlp.core.files import Place

CLOSED = {errno.EROFS, errno.EACCES}
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG} | CLOSED
"""What a new try would meet again."""
TORCH_FULL = "PytorchStreamWriter failed writing"
"""How PyTorch's own writer, which DeepSpeed uses, says that a file could not be written."""


def is_full(error: BaseException) -> bool:
    """Whether a file could not be written, and will not be at the next try."""
    return _number(error) in FULL


def full_disk(place: str | Place, what: str, error: BaseException, *, size: int | None = None) -> TrainingError:
    """The error to raise where `what`, of `size` bytes if they are known, could not be written to a place."""
    node, number = ray.util.get_node_ip_address(), _number(error) or errno.ENOSPC
    closed = number in CLOSED
    return TrainingError(
        f"{what} could not be written to {place} on node {node}: {os.strerror(number)}{'' if closed else _sums(Path(str(place)), size)}. "
        f"What was saved before is intact: make {'it writable' if closed else 'room there'}, and start the run again under its name to go "
        "on from it."
    )


@contextmanager
def writing(place: str | Place, what: str, *, size: int | None = None, clear: Callable[[], Any] = lambda: None) -> Iterator[None]:
    """Raise TrainingError that names the place when the disk is full or read-only; `clear` takes away what was written, at any error."""
    try:
        yield
    except Exception as error:
        clear()
        if not is_full(error):
            raise
        raise full_disk(place, what, error, size=size) from error


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _number(error: BaseException) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    if type(error).__name__ == "SafetensorError":
        found = re.search(r"\(os error (\d+)\)", str(error))
        return int(found[1]) if found else None
    return errno.ENOSPC if isinstance(error, RuntimeError) and TORCH_FULL in str(error) else None


def _sums(place: Path, size: int | None) -> str:
    """What is free on the disk of a place, or would be found there, and what was needed."""
    there = next((path for path in (place, *place.parents) if path.is_absolute() and path.exists()), None)
    free = "" if there is None else f"{shutil.disk_usage(there).free / 1e6:,.2f} MB are free"
    need = "" if size is None else f"it takes {size / 1e6:,.2f} MB"
    said = ", and ".join(part for part in (need, free) if part)
    return f" ({said})" if said else ""
