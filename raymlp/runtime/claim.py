"""What one process at a time has, where all that they share is an object store: a file that its holder writes anew now and then.

A store has no lock that ends with its process. So a claim is a file that is written on condition that it is the one that was seen: of
several who try, one succeeds, and it has an `epoch` that is higher by one. Who has it shows that it lives every few seconds; another
process takes over once it has seen no change for `silent_s`, by its own clock, and the one that was silent finds out when it next writes.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from raymlp.core.errors import RaymlpError
from raymlp.runtime.store import Seen, StorePlace

SILENT_S = 30.0
"""Seconds without a sign of life after which another process may take over."""


class Taken(RaymlpError):
    """Another process has the claim by now."""


class Claim:
    """The claim on a file of a store, as one process has it or wants it."""

    def __init__(self, place: StorePlace, *, silent_s: float = SILENT_S) -> None:
        self.place, self.silent_s, self.epoch = place, silent_s, 0
        self._mine: Seen | None = None
        self._looked: tuple[str, float] = ("", time.monotonic())
        self._ended = threading.Event()
        self._writing = threading.RLock()

    def take(self) -> bool:
        """Whether it is this process's now. Ask again while another has it: silence shows only over time."""
        found = self.place.seen()
        before = _read(found)
        if found is not None and before.get("time") and not self._is_silent(found.text):
            return False
        self.epoch = int(before.get("epoch", 0)) + 1
        try:
            self._mine = self.place.write_if(self._sign(), found)
        except FileExistsError:
            return False
        self._ended = threading.Event()
        threading.Thread(target=self._breathe, args=(self._ended,), daemon=True).start()
        return True

    def take_when_silent(self) -> bool:
        """Whether it is this process's now. Where another has it, this waits until that one shows life, or has shown none for `silent_s`:
        it may have died."""
        before: str | None = None
        while not self.take():
            now = self.place.seen()
            if now is not None and _read(now).get("time"):
                if before not in (None, now.text):
                    return False
                before = now.text
            time.sleep(self.silent_s / 30)
        return True

    def renew(self) -> None:
        """Show that it is held, from this moment for `silent_s`. Raises Taken when it is not."""
        with self._writing:
            if self._mine is None or self._ended.is_set():
                raise Taken(f"{self.place} is claimed by another process; expected to have it alone.")
            try:
                self._mine = self.place.write_if(self._sign(), self._mine)
            except FileExistsError:
                self._mine = None
                raise Taken(f"{self.place} was claimed by {self.holder() or 'another process'}; expected to have it alone.") from None

    def require(self) -> None:
        """Raise Taken when another process has it. A store that is away for a moment is so for whoever might take over, too."""
        try:
            self.renew()
        except Taken:
            raise
        except (RaymlpError, OSError):
            pass

    def release(self) -> None:
        """Another may have it at once."""
        with self._writing:
            self._ended.set()
            if self._mine is not None:
                with suppress(RaymlpError, OSError):
                    self.place.write_if(self._sign(gone=True), self._mine)
            self._mine = None

    @contextmanager
    def held(self, refusal: RaymlpError) -> Iterator[None]:
        """The claim inside the block. Raises `refusal` when another process has it and lives, which shows within a few seconds."""
        if not self.take_when_silent():
            raise refusal
        try:
            yield
        finally:
            self.release()

    def sign(self) -> dict[str, Any]:
        """What its holder wrote last; empty without any."""
        return _read(self.place.seen())

    def is_live(self) -> bool:
        """Whether some process has it, or had a moment ago."""
        return time.time() - float(self.sign().get("time", 0.0)) < self.silent_s

    def holder(self) -> str:
        """Who has it, or had it last: process and machine; empty without any."""
        found = self.sign()
        return f"process {found['pid']} on {found['host']}" if found else ""

    def _is_silent(self, text: str) -> bool:
        """Whether the file has not changed for `silent_s` by this process's own clock."""
        now = time.monotonic()
        if text != self._looked[0]:
            self._looked = text, now
        return now - self._looked[1] >= self.silent_s

    def _breathe(self, ended: threading.Event) -> None:
        while not ended.wait(self.silent_s / 6):
            try:
                self.require()
            except Taken:
                return

    def _sign(self, *, gone: bool = False) -> str:
        who = {"pid": os.getpid(), "host": socket.gethostname(), "unlike": uuid.uuid4().hex}
        return json.dumps({"epoch": self.epoch, "time": 0.0 if gone else time.time(), **who})


def _read(found: Seen | None) -> dict[str, Any]:
    try:
        return dict(json.loads(found.text)) if found is not None else {}
    except ValueError:
        return {}
