"""A job, watched until it ends. Its state is asked for and is the truth; its log is shown beside that, and may break off."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from raymlp.core.errors import JobError
from raymlp.jobs.api import Api, Job, NoSuchJob

POLL_S, SLOWEST_S = 0.2, 1.0
"""Seconds between two looks at a job, at first and later."""
PATIENCE_S = 120.0
"""Seconds that the cluster may not answer: a tunnel that comes back, a head that is replaced."""
AGAIN_S = 2.0
"""Seconds until a log that broke off is opened anew."""
SHORT = 1_000_000
"""Characters of a log that is fetched whole at its job's end; of a longer one the stream, which ends 2 s later, is waited for."""
LAST_WORDS_S = 5.0
OnLog = Callable[[str], None]


def watch(api: Api, name: str, on_log: OnLog | None = None, on_interrupt: Callable[[], bool] | None = None) -> Job:
    """Wait for a job's end, and hand its log on as it comes. Raises JobError when there is no such job, or the cluster is gone.

    At Ctrl-C `on_interrupt` says whether to wait on, for a job that was asked to stop; without it Ctrl-C is the caller's. The job itself
    goes on in any case.
    """
    job = api.job(name)
    if job.has_ended:
        if on_log is not None:
            on_log(api.log(name))
        return job
    log = _Log(api, name, on_log) if on_log is not None else None
    try:
        job = _waited_for(api, name, log, on_interrupt)
        if log is not None:
            log.finish()
    finally:
        if log is not None:
            log.close()
    return job


def _waited_for(api: Api, name: str, log: _Log | None, on_interrupt: Callable[[], bool] | None) -> Job:
    while True:
        try:
            return _ended(api, name)
        except KeyboardInterrupt:
            with log.silent() if log is not None else nullcontext():
                if on_interrupt is None or not on_interrupt():
                    raise


def result_of(log: str) -> tuple[str, float] | None:
    """The metric that a job ended with, by the last line `result: auc 0.71` of its log."""
    found = re.findall(r"^result: (\S+) (-?[\d.]+(?:e[+-]?\d+)?)$", log, re.MULTILINE)
    return (found[-1][0], float(found[-1][1])) if found else None


def _ended(api: Api, name: str) -> Job:
    began = answered = time.monotonic()
    while True:
        try:
            job = api.job(name)
        except JobError as error:
            if time.monotonic() - answered > PATIENCE_S:
                if isinstance(error, NoSuchJob):
                    raise NoSuchJob(f"{api.access.address} no longer knows the job {name}. Was its head started anew?") from None
                raise JobError(
                    f"{api.access.address} has not answered for {PATIENCE_S:g} s; what became of the job {name} is not known. "
                    f"When it answers again: raymlp jobs wait {name}"
                ) from None
            time.sleep(SLOWEST_S)
            continue
        if job.has_ended:
            return job
        answered = time.monotonic()
        time.sleep(min(SLOWEST_S, POLL_S + (answered - began) / 100))


class _Log:
    """A job's log in a thread of its own: what was not handed on yet, in order, each character once."""

    def __init__(self, api: Api, name: str, on_log: OnLog) -> None:
        self._api, self._name, self._on_log = api, name, on_log
        self._given, self._closed = 0, False
        self._lock, self._ended = threading.Lock(), threading.Event()
        threading.Thread(target=self._follow, name="raymlp-log", daemon=True).start()

    def finish(self) -> None:
        """The job has ended: hand on the rest."""
        if self._given > SHORT:
            self._ended.wait(LAST_WORDS_S)
        else:
            try:
                self._give(self._api.log(self._name), at=0)
            except JobError:
                self._ended.wait(LAST_WORDS_S)

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Nothing is handed on inside."""
        with self._lock:
            yield

    def close(self) -> None:
        with self._lock:
            self._closed = True

    def _follow(self) -> None:
        while not self._closed:
            try:
                asyncio.run(self._stream())
            except Exception:  # whatever befalls the stream, the job's state is asked for by itself
                time.sleep(AGAIN_S)
                continue
            self._ended.set()
            return

    async def _stream(self) -> None:
        at = 0
        async for piece in self._api.tail(self._name):
            self._give(piece, at=at)
            at += len(piece)
            if self._closed:
                return

    def _give(self, text: str, *, at: int) -> None:
        """Hand on what of a text, which begins at a place of the log, is new."""
        with self._lock:
            new = text[max(self._given - at, 0) :]
            if new and not self._closed:
                self._given += len(new)
                self._on_log(new)
