"""Workers, and the chunks that each has."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from raymlp.predict import room

log = logging.getLogger(__name__)
RETRIES = 3
"""Times that a chunk is given to another worker after the one that had it died, and that a worker which dies as it starts is replaced."""
CHUNKS_PER_WORKER = 2
"""Chunks that a worker has at a time: one that it works on, and the next."""


class Pool:
    """Workers that Ray found room for take chunks. One that died is replaced, and its chunks are given out again.

    Not by Ray's own restarts: with them Ray warns on the screen of every actor that is made from what lies in the object store.
    """

    def __init__(self, start: Callable[[], Any], count: int, wait_s: float = room.START_S) -> None:
        self.start, self.wait_s = start, wait_s
        self.workers = [start() for _ in range(count)]
        self.starting: dict[Any, tuple[int, Any, int]] = {}
        """Of what says that a worker runs: its place, the worker itself, and how often one died there as it started."""
        self.slots: dict[int, int] = {}
        """Chunks that each worker which runs can take, by its place."""
        self.busy: dict[Any, tuple[int, Any, Any, int]] = {}
        """Of what each worker will tell: its place, the worker itself, the chunk, and how often that was tried before."""
        self.again: deque[tuple[Any, int]] = deque()
        """Chunks whose worker died while no other could take them, and how often they were tried."""
        self.since = time.monotonic()
        """When there was no worker that runs."""
        for place, worker in enumerate(self.workers):
            self.starting[worker.ready.remote()] = place, worker, 0

    @property
    def is_free(self) -> bool:
        """Whether a worker can take a chunk."""
        return any(self.slots.values())

    @property
    def is_done(self) -> bool:
        """Whether no chunk is under way."""
        return not self.busy and not self.again

    def wait(self, readers: Iterable[Any]) -> Any | None:
        """What comes first: of a worker's word, its start, and, where a worker is free, a reader's chunk. None when there was no worker
        for too long."""
        import ray

        waiting = [*self.busy, *self.starting, *(readers if self.is_free else ())]
        left = None if self.slots else max(0.0, self.since + self.wait_s - time.monotonic())
        ready, _ = ray.wait(waiting, num_returns=1, timeout=left, fetch_local=False)
        return ready[0] if ready else None

    def give(self, chunk: Any, tries: int = 0) -> None:
        """Give a chunk to the worker that can take most."""
        place = max(self.slots, key=self.slots.__getitem__)
        self.slots[place] -= 1
        worker = self.workers[place]
        self.busy[worker.answer.remote(chunk)] = place, worker, chunk, tries

    def begin(self, ready: Any) -> None:
        """A worker runs, or died as it started. Raises RayError when that happened too often, or when it cannot be started."""
        import ray
        from ray.exceptions import RayActorError

        place, worker, deaths = self.starting.pop(ready)
        try:
            ray.get(ready)
        except RayActorError as error:
            if deaths == RETRIES:
                raise
            self._replace(place, worker, error, deaths + 1)
            return
        self.slots[place] = CHUNKS_PER_WORKER
        self._give_again()

    def end(self, told: Any) -> tuple[Any, ...] | None:
        """What a worker told; None when it died, and another gets its chunk. Raises RayError when that was tried too often."""
        import ray
        from ray.exceptions import RayActorError

        place, worker, chunk, tries = self.busy.pop(told)
        found: tuple[Any, ...] | None = None
        try:
            found = ray.get(told)
        except RayActorError as error:
            if tries == RETRIES:
                raise
            self.again.append((chunk, tries + 1))
            self._replace(place, worker, error, 0)
        if self.workers[place] is worker:
            self.slots[place] += 1
        self._give_again()
        return found

    def _replace(self, place: int, worker: Any, error: BaseException, deaths: int) -> None:
        if self.workers[place] is not worker:  # another chunk that it had told so before
            return
        log.warning("a worker died, and its chunks are given to others: %s", root_of(error))
        self.workers[place] = self.start()
        self.starting[self.workers[place].ready.remote()] = place, self.workers[place], deaths
        if self.slots.pop(place, None) is not None and not self.slots:
            self.since = time.monotonic()

    def _give_again(self) -> None:
        while self.again and self.is_free:
            self.give(*self.again.popleft())


def root_of(error: BaseException) -> str:
    """The last line of what Ray says, which has the cause."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
