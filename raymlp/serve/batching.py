"""The line in which rows wait, and how many of a version are predicted together.

No request is predicted where it is read: it waits in the line, while the event loop reads the others. Only so is it known how many there
are, and the ones beyond `serve.max_queued_requests` are refused at once.

A quick model predicts in the event loop, all rows of a turn together where it gains from that, else one after the other for a few
milliseconds: nothing is passed on, and a row that comes alone waits for nobody.

A slow one has a thread. Rows that come while its batch is predicted are the next batch, so under
load batches grow by themselves. When the last batch was larger than what waits now, its requests have just been answered and the next ones
are about to come: they are given a part of a row's own time. Never more, and none when the last batch was one row, or is long gone.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Literal, NamedTuple

from raymlp.data.contract_row import Row

if TYPE_CHECKING:
    from raymlp.model.predictor import Prediction, Predictor

    Outcome = Prediction | Exception

Batching = Literal["auto", "off"]
TRIED_ROWS = 16
"""Rows that are predicted together when a model is measured."""
TRIALS, TRIED_S = 3, 0.05
"""Times a model is measured at least, and seconds for which it is measured again; the quickest counts."""
HANDOVER_S = 2e-4
"""What passing a row to another thread and back may cost; a row must save more than that."""
MOST_ROWS = 64
MOST_S = 0.1
"""A batch has at most so many rows, and fewer where those would take longer than this."""
QUICK_S = 5e-3
"""The same in the event loop, which reads no requests meanwhile."""
WAIT_SHARE = 0.25
"""Part of a row's own time that is waited for others, at most."""


class Pace(NamedTuple):
    """Seconds of a row that is predicted alone, and of a row among `TRIED_ROWS`."""

    alone_s: float
    together_s: float

    @property
    def is_quick(self) -> bool:
        """Whether a batch, or a row where there are none, may keep the event loop waiting."""
        return (self.together_s * TRIED_ROWS if self._saves > 0 else self.alone_s) <= QUICK_S

    @property
    def gains(self) -> bool:
        """Whether a row saves more than it costs to be in a batch."""
        return self._saves > (0 if self.is_quick else HANDOVER_S)

    @property
    def most_rows(self) -> int:
        """Rows a batch may have."""
        return max(1, min(MOST_ROWS, int((QUICK_S if self.is_quick else MOST_S) / self.together_s))) if self.gains else 1

    @property
    def _saves(self) -> float:
        return self.alone_s - self.together_s


def pace_of(predictor: Predictor, row: Row, *, together: bool = True, clock: Callable[[], float] = time.perf_counter) -> Pace:
    """Measure a predictor on a typed row; not `together` where rows shall be predicted one by one."""

    def quickest(work: Callable[[], object]) -> float:
        seconds = list[float]()
        while len(seconds) < TRIALS or sum(seconds) < TRIED_S:
            start = clock()
            work()
            seconds.append(max(clock() - start, 1e-9))
        return min(seconds)

    alone_s = quickest(lambda: outcomes(predictor, [row]))
    return Pace(alone_s, quickest(lambda: outcomes(predictor, [row] * TRIED_ROWS)) / TRIED_ROWS if together else alone_s)


class Waiting(NamedTuple):
    """A row in line."""

    version: Batcher
    row: Row
    answer: asyncio.Future[Prediction]


class Turn:
    """The line of all quick versions of a replica: whose row came first is answered first, whichever version it is for. In lines of
    their own the version with few requests would wait for the batch, and for the answers, of the one with many, and seem slower."""

    def __init__(self) -> None:
        self._waiting: list[Waiting] = []
        self._is_due = False

    def add(self, loop: asyncio.AbstractEventLoop, waiting: Waiting) -> None:
        """Have it predicted once the event loop has read what else there is."""
        self._waiting.append(waiting)
        if not self._is_due:
            self._is_due = True
            loop.call_soon(self._take, loop)

    def _take(self, loop: asyncio.AbstractEventLoop) -> None:
        """Predict for `QUICK_S`, the oldest row first with others of its version, and answer in the order in which they came."""
        began = time.perf_counter()
        found: dict[int, Outcome] = {}
        line = [one for one in self._waiting if not one.answer.done()]  # the others' requests went away
        left = list(enumerate(line))
        while left and (not found or time.perf_counter() - began < QUICK_S):
            version = left[0][1].version
            batch = [(place, one) for place, one in left if one.version is version][: version.pace.most_rows]
            answers = outcomes(version.predictor, [one.row for _, one in batch])
            found.update(zip([place for place, _ in batch], answers, strict=True))
            left = [(place, one) for place, one in left if place not in found]
        for place in sorted(found):
            _answer(line[place].answer, found[place])
        self._waiting = [one for _, one in left]
        self._is_due = bool(left)
        if left:
            loop.call_soon(self._take, loop)


class Batcher:
    """Predicts the rows of one version: in the `turn` that it has together with others, or, where it is slow, in a thread of its own. Used
    from one event loop."""

    def __init__(self, predictor: Predictor, pace: Pace) -> None:
        self.predictor, self.pace, self.turn = predictor, pace, Turn()
        self._waiting: list[tuple[Row, asyncio.Future[Prediction]]] = []
        self._is_busy = False
        self._timer: asyncio.TimerHandle | None = None
        self._last, self._ended = 1, -math.inf
        self._thread = None if pace.is_quick else ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")

    async def predict(self, row: Row) -> Prediction:
        """The answer of a typed row; raises what predicting this row alone raises."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Prediction] = loop.create_future()
        if self._thread is None:
            self.turn.add(loop, Waiting(self, row, answer))
            return await answer
        self._waiting.append((row, answer))
        if not self._is_busy:
            self._is_busy = True
            loop.call_soon(self._gather, loop)
        elif self._timer and len(self._waiting) >= self._wanted:
            self._begin(loop)
        return await answer

    @property
    def _wanted(self) -> int:
        return min(self._last, self.pace.most_rows)

    def _gather(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin the next batch, after a short wait when others are likely to come."""
        if len(self._waiting) < self._wanted and loop.time() - self._ended < self.pace.alone_s:
            self._timer = loop.call_later(self.pace.alone_s * WAIT_SHARE, self._begin, loop)
        else:
            self._begin(loop)

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        asked = [(row, answer) for row, answer in self._waiting if not answer.done()]  # the others' requests went away
        batch, self._waiting = asked[: self.pace.most_rows], asked[self.pace.most_rows :]
        if not batch:
            self._is_busy = False
            return
        self._last = len(batch)
        work = loop.run_in_executor(self._thread, outcomes, self.predictor, [row for row, _ in batch])
        work.add_done_callback(lambda done: self._finish(loop, [answer for _, answer in batch], _found(done, len(batch))))

    def _finish(
        self, loop: asyncio.AbstractEventLoop, answers: Sequence[asyncio.Future[Prediction]], found: Sequence[Outcome | BaseException]
    ) -> None:
        for answer, outcome in zip(answers, found, strict=True):
            _answer(answer, outcome)
        self._ended = loop.time()
        if self._waiting:
            loop.call_soon(self._gather, loop)
        else:
            self._is_busy = False


def _answer(answer: asyncio.Future[Prediction], outcome: Outcome | BaseException) -> None:
    if answer.done():
        return
    if isinstance(outcome, BaseException):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)


def _found(done: asyncio.Future[list[Outcome]], count: int) -> Sequence[Outcome | BaseException]:
    error = done.exception()
    return done.result() if error is None else [error] * count


def outcomes(predictor: Predictor, rows: Sequence[Row]) -> list[Outcome]:
    """The answer, or the error, of each typed row. When predicting them together fails, each is predicted alone, so that an error stays
    with the row that has it."""
    if len(rows) > 1:
        try:
            together = predictor.predict_together(rows)
            return [together.alone(place) for place in range(len(rows))]
        except Exception:  # noqa: S110 (found again below, for the row that has it)
            pass
    found: list[Outcome] = []
    for row in rows:
        try:
            found.append(predictor.predict_typed(row))
        except Exception as error:
            found.append(error)
    return found
