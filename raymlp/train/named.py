"""Runs that have a name: which run it stands for, and that one process at a time works on it."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from raymlp.core.errors import TrainingError
from raymlp.core.files import Place, make_folder, write_text
from raymlp.runtime.claim import Claim
from raymlp.runtime.store import StorePlace


def run_of(folder: Place, name: str, resume: Literal["auto", "never", "must"]) -> str | None:
    """The id of the run that goes on under this name, or None when a new one begins. `folder` keeps the names of a problem.

    Raises TrainingError when `must` finds none.
    """
    place = folder / name
    found = place.read_text().strip() if place.exists() else None
    if resume == "must" and found is None:
        known = ", ".join(sorted(file.name for file in folder.glob("*") if not file.name.endswith(".lock"))) or "none"
        raise TrainingError(f"there is no run named '{name}' to go on with; expected one of: {known}. Set train.name or train.resume=auto.")
    return None if resume == "never" else found


def remember(folder: Place, name: str, run_id: str) -> None:
    """Let the name stand for this run from now on."""
    write_text(folder / name, f"{run_id}\n")


@contextmanager
def claimed(folder: Place, name: str) -> Iterator[Callable[[], None]]:
    """Work on a named run alone. The claim ends with the process, however that ends; in an object store, half a minute later. Raises
    TrainingError when another has it. What it gives raises Taken once another has it: in a store, after this process stood still for so
    long.
    """
    place = make_folder(folder) / f"{name}.lock"
    if isinstance(place, StorePlace):
        claim = Claim(place)
        with claim.held(_going_on(name, claim.holder())):
            yield claim.require
        return
    assert isinstance(place, Path)
    with place.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise _going_on(name, file.read().strip()) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield lambda: None


def _going_on(name: str, where: str) -> TrainingError:
    return TrainingError(
        f"the run '{name}' is going on in {where or 'another process'}; expected it to have ended. "
        "Wait for it, stop it, or set another train.name."
    )
