"""How the workers of a run agree on time and on news: about once a second, and after the same step on all of them.

A clock or a signal read by each for itself would make one worker stop while the others wait for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

BEAT_S = 1.0
"""Seconds between two beats, as far as steps allow."""
FASTER = 8
"""How many times more steps than before one beat may lie behind another: the first steps of a run are slow."""


class Notice(IntEnum):
    """What a worker has heard from outside; the higher one wins."""

    NONE = 0
    SAVE = 1
    """A node is about to be taken away."""
    STOP = 2
    """The caller wants the run saved and ended."""


Agree = Callable[[list[float]], list[float]]
"""The element-wise maximum over all workers; each must call it."""


@dataclass(frozen=True)
class Beat:
    """What all workers know alike: seconds of training by the clock of rank 0, news, and whether any still uploads."""

    seconds: float
    reserve_s: float
    notice: Notice
    uploading: bool


class Pulse:
    """The agreement of one worker with the others. `seconds` are those of the starts before this one."""

    def __init__(
        self, agree: Agree, hear: Callable[[], Notice], *, rank: int, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._agree, self._hear, self._leads, self._clock = agree, hear, rank == 0, clock
        self._started = clock() - seconds
        self._interval, self._next, self._last, self._last_step = 1, 0, self._started + seconds, 0

    def start(self, step: int) -> None:
        """The steps made before this start of the run."""
        self._next, self._last_step = step + 1, step

    def due(self, step: int) -> bool:
        return step >= self._next

    def beat(self, step: int, *, reserve_s: float = 0.0, uploading: bool = False) -> Beat:
        """Every worker must call it after the same step. `reserve_s` counts as rank 0 says."""
        now = self._clock()
        mine = [now - self._started, reserve_s, self._steps_until_next(now, step)] if self._leads else [0.0, 0.0, 0.0]
        seconds, reserve, interval, notice, busy = self._agree([*mine, float(self._hear()), float(uploading)])
        self._interval, self._last, self._last_step = int(interval), now, step
        self._next = step + self._interval
        return Beat(seconds, reserve, Notice(int(notice)), bool(busy))

    def _steps_until_next(self, now: float, step: int) -> float:
        per_step = (now - self._last) / max(1, step - self._last_step)
        return float(max(1, min(int(BEAT_S / max(per_step, 1e-6)), FASTER * self._interval)))
