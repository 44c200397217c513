"""The right to drive a model's rollouts: one process at a time, and one that lost it can do nothing more.

Whoever takes the right raises a number, the epoch, and every later act is done under a short lock after a look at the number: a process
that slept through its end, on this machine or another, finds a higher one and is stopped (a fencing token, Kleppmann 2016). Dead is who no
longer holds its lock, which the kernel frees however a process dies, or who gave no sign of life for a while where its lock is still
held or locks do not reach that far.

In an object store, which has no locks, the number is raised by a write on condition (`raymlp.runtime.claim`), and an act is done right
after another such write, which keeps all others away for `silent_s`; an act that took longer is told to have lost its right.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from raymlp.core.errors import ServingError
from raymlp.core.files import Place, make_folder, write_text
from raymlp.runtime.claim import Claim, Taken
from raymlp.runtime.store import StorePlace

SILENT_S = 30.0
"""Seconds without a sign of life after which another process may take over."""

LOCK_S = 10.0
"""Seconds that a single act of another process may hold the short lock."""


class Lost(ServingError):
    """Another process drives by now."""


class Lease:
    """The right as one process has it or wants it. `folder` lies where all who may drive see it."""

    def __init__(self, folder: Path, *, silent_s: float = SILENT_S) -> None:
        self.folder, self.silent_s, self.epoch = folder, silent_s, 0
        self._alive: int | None = None
        self._last_seen: tuple[dict[str, Any], float] = ({}, time.monotonic())
        self._ended = threading.Event()

    # ------------------------------------------------------------------ having it

    def take(self) -> bool:
        """Whether the right is this process's now. Ask again while another has it: silence shows only over time."""
        make_folder(self.folder)
        with self._locked():
            found = self._read()
            before = int(found.get("epoch", 0))
            if self._is_locked(before) and not self._is_silent(found):
                return False
            self.epoch = before + 1
            self._alive = os.open(self._alive_file(self.epoch), os.O_CREAT | os.O_RDWR, 0o600)
            fcntl.flock(self._alive, fcntl.LOCK_EX)
            self._ended = threading.Event()
            self._write()
            self._alive_file(before).unlink(missing_ok=True)
        threading.Thread(target=self._breathe, args=(self._ended,), daemon=True).start()
        return True

    @contextmanager
    def held(self) -> Iterator[Self]:
        """The right inside the block. Raises ServingError when another process has it."""
        if not self.take():
            raise _driven(self)
        try:
            yield self
        finally:
            self.release()

    @contextmanager
    def fenced(self) -> Iterator[None]:
        """For a single, short act. Raises Lost when another process has taken over; while the block runs, none can."""
        with self._locked():
            if self._read().get("epoch") != self.epoch or self._ended.is_set():
                raise Lost(
                    f"another process took over the rollouts of {self.folder.name}; expected to be the only one. Nothing was changed."
                )
            yield

    def release(self) -> None:
        """Another may drive at once."""
        if self._alive is None:
            return
        with suppress(OSError, ServingError), self.fenced():
            self._write(gone=True)
        self._ended.set()
        os.close(self._alive)
        self._alive = None

    # ------------------------------------------------------------------ seen from outside

    def is_live(self) -> bool:
        """Whether some process drives, or did a moment ago."""
        found = self._read()
        return bool(found) and (time.time() - float(found["time"]) < self.silent_s or self._is_locked(int(found["epoch"])))

    def holder(self) -> str:
        """Who drives, or drove last: process and machine; empty without any."""
        found = self._read()
        return f"process {found['pid']} on {found['host']}" if found else ""

    # ------------------------------------------------------------------ inside

    def _alive_file(self, epoch: int) -> Path:
        """Whose lock is held for as long as the process of that epoch lives."""
        return self.folder / f".alive.{epoch}"

    def _is_silent(self, found: dict[str, Any]) -> bool:
        """Whether the file has not changed for `silent_s` by this process's own clock."""
        now = time.monotonic()
        if found != self._last_seen[0]:
            self._last_seen = found, now
        return now - self._last_seen[1] >= self.silent_s

    def _is_locked(self, epoch: int) -> bool:
        try:
            handle = os.open(self._alive_file(epoch), os.O_RDWR)
        except OSError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(handle)
        return False

    def _breathe(self, ended: threading.Event) -> None:
        while not ended.wait(self.silent_s / 6):
            try:
                with self.fenced():
                    self._write()
            except Lost:
                ended.set()
            except (OSError, ServingError):
                continue  # the storage is away for a moment; so is whoever might take over

    def _read(self) -> dict[str, Any]:
        try:
            return dict(json.loads((self.folder / ".lease.json").read_text()))
        except (FileNotFoundError, ValueError):
            return {}

    def _write(self, *, gone: bool = False) -> None:
        sign = {"epoch": self.epoch, "time": 0.0 if gone else time.time(), "pid": os.getpid(), "host": socket.gethostname()}
        write_text(self.folder / ".lease.json", json.dumps(sign))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """The short lock. Raises ServingError when another process keeps it."""
        handle = os.open(self.folder / ".lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            deadline = time.monotonic() + LOCK_S
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        raise ServingError(
                            f"{self.folder / '.lock'} is held for {LOCK_S:g} s; expected a moment. Is a process stopped there?"
                        ) from None
                    time.sleep(0.01)
            yield
        finally:
            os.close(handle)


class StoreLease:
    """The right where what all see is an object store."""

    def __init__(self, folder: StorePlace, *, silent_s: float = SILENT_S) -> None:
        self.folder = folder
        self._claim = Claim(folder / ".lease.json", silent_s=silent_s)

    @property
    def epoch(self) -> int:
        return self._claim.epoch

    def take(self) -> bool:
        """As `Lease.take`."""
        return self._claim.take()

    @contextmanager
    def held(self) -> Iterator[Self]:
        """As `Lease.held`, once it shows that nobody who lives has it."""
        if not self._claim.take_when_silent():
            raise _driven(self)
        try:
            yield self
        finally:
            self.release()

    @contextmanager
    def fenced(self) -> Iterator[None]:
        """For a single, short act. Raises Lost, before it, when another process has taken over, and after it when one may have."""
        try:
            self._claim.renew()
            began = time.monotonic()
            yield
            if time.monotonic() - began > self._claim.silent_s / 2:
                self._claim.renew()
        except Taken as error:
            raise Lost(f"another process took over the rollouts of {self.folder.name}; expected to be the only one: {error}") from None

    def release(self) -> None:
        """Another may drive at once."""
        self._claim.release()

    def is_live(self) -> bool:
        """As `Lease.is_live`."""
        return self._claim.is_live()

    def holder(self) -> str:
        """As `Lease.holder`."""
        return self._claim.holder()


def lease_of(folder: Place) -> Lease | StoreLease:
    """The right to drive the rollouts whose records are in a folder."""
    if isinstance(folder, StorePlace):
        return StoreLease(folder)
    assert isinstance(folder, Path)
    return Lease(folder)


def _driven(lease: Lease | StoreLease) -> ServingError:
    return ServingError(f"{lease.holder() or 'another process'} drives the rollouts of {lease.folder.name}; expected none. Stop it first.")
