"""The shadow of a replica: a version that answers copies of the champion's requests, unseen, after the answer went out.

A copy waits in a bounded queue. A quick shadow (`batching`) answers the copies of a turn of the event loop together, in the turn after the
answers went out: a thread would cost the champion far more, since the two take the interpreter lock from each other. Any other has a thread
of its own. What finds the queue full is dropped and counted; what fails is logged as a failure and harms nothing else.

Its log is a folder of its own, so that no reader of the prediction log takes a shadow's answers for served ones; its rows have the id of
the prediction they are a copy of, and no inputs, which the prediction log has.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from raymlp.core.errors import RequestError
from raymlp.serve.batching import TRIED_ROWS, outcomes
from raymlp.serve.formats.arrow import checked_table
from raymlp.serve.log import Entry, PredictionLog
from raymlp.serve.routing import bucket

logger = logging.getLogger("ray.serve")
SALT = "shadow"
CLOSE_S = 5.0
"""How long the end of a replica waits for the shadow's last answer."""
SWITCH_S = 0.0005
"""How long the shadow's thread may keep Python to itself while a request waits; Python's own default is ten times that."""

if TYPE_CHECKING:
    from raymlp.data.contract_row import Row
    from raymlp.model.predictor import Prediction
    from raymlp.serve.versions import Loaded


class Shadowed(NamedTuple):
    """Who is the shadow: the version, and its share of the champion's requests."""

    loaded: Loaded
    share: float
    max_waiting: int


class Copy(NamedTuple):
    """A request that was answered: rows as they came."""

    shadow: Shadowed
    prediction_id: str
    key: str
    rows: Any


class Shadow:
    """One replica's queue and thread. `offer` costs a microsecond; everything else happens later, or elsewhere."""

    def __init__(self, log: PredictionLog) -> None:
        self.log = log
        self.answered = self.failed = self.dropped = 0
        self._waiting: deque[Copy] = deque()
        self._work = threading.Event()
        self._is_due = False
        self._thread: threading.Thread | None = None
        self._ends = False
        self._before = sys.getswitchinterval()

    def offer(self, shadow: Shadowed, prediction_id: str, key: str, rows: Any) -> None:
        """Take a copy of a request when it is one of the share, chosen by the prediction's id; it is looked at once the event loop has
        gone on, when the answer is out."""
        if bucket(prediction_id, SALT) >= shadow.share:
            return
        if len(self._waiting) >= shadow.max_waiting:
            self.dropped += 1
            return
        self._waiting.append(Copy(shadow, prediction_id, key, rows))
        if not self._is_due and not self._work.is_set():
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._turn, asyncio.get_running_loop())

    def set(self, shadow: Shadowed | None) -> None:
        """What a replica's new state says: a shadow, or none. What waits for one that is gone is dropped."""
        self._waiting.clear()
        sys.setswitchinterval(SWITCH_S if shadow is not None else self._before)
        if shadow is not None and self._thread is None:
            self._thread = threading.Thread(target=self._answer_all, name="shadow", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """End the thread, once it has answered what it is at: a process must not go while a net computes."""
        self.set(None)
        self._ends = True
        self._work.set()
        if self._thread is not None:
            self._thread.join(CLOSE_S)

    def report(self) -> dict[str, int]:
        """Requests answered, failed, dropped and waiting."""
        return {"answered": self.answered, "failed": self.failed, "dropped": self.dropped, "waiting": len(self._waiting)}

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        """Answer some copies here when that is quick, and let requests be read before the next ones; wake the thread for what is not."""
        self._is_due = False
        some = list[Copy]()
        while self._waiting and len(some) < _quick_rows(self._waiting[0]):
            with suppress(IndexError):  # the thread was quicker
                some.append(self._waiting.popleft())
        if some:
            self._answer_together(some)
        if self._waiting and _quick_rows(self._waiting[0]):
            self._is_due = True
            loop.call_soon(self._turn, loop)
        elif self._waiting:
            self._work.set()

    def drain(self) -> int:
        """Answer what waits now, in this thread; how many requests."""
        done = 0
        while self._waiting:
            try:
                copy = self._waiting.popleft()
            except IndexError:  # the other thread was quicker
                break
            self._answer(copy)
            done += 1
        return done

    def _answer_all(self) -> None:
        while not self._ends:
            self._work.wait()
            self._work.clear()
            self.drain()

    def _answer_together(self, copies: Sequence[Copy]) -> None:
        """Copies of one row each."""
        start, predictor = time.perf_counter(), copies[0].shadow.loaded.predictor
        typed: list[Row] = []
        refused: dict[int, Exception] = {}
        for place, copy in enumerate(copies):
            try:
                typed.append(predictor.check(copy.rows[0], "instances[0]"))
            except Exception as error:
                refused[place] = error
        answers = iter(outcomes(predictor, typed))
        for place, copy in enumerate(copies):
            self._note(copy, refused[place] if place in refused else next(answers), start)

    def _answer(self, copy: Copy) -> None:
        start = time.perf_counter()
        try:
            answer: Prediction | Exception = _predicted(copy.shadow.loaded, copy.rows)
        except Exception as error:
            answer = error
        self._note(copy, answer, start)

    def _note(self, copy: Copy, answer: Prediction | Exception, start: float) -> None:
        status, loaded, scores = 200, copy.shadow.loaded, list[float | None]()
        if not isinstance(answer, Exception):
            scores = answer.summary.tolist()
        elif isinstance(answer, RequestError):
            status = 422
        else:
            status = 500
            logger.error("shadow %s failed for prediction %s: %s: %s", loaded.label, copy.prediction_id, type(answer).__name__, answer)
        self.answered += status == 200
        self.failed += status != 200
        took_ms, now = (time.perf_counter() - start) * 1e3, time.time()
        for place, score in enumerate(scores or [None] * len(copy.rows)):
            self.log.add(Entry(copy.prediction_id, place, now, loaded.label, copy.key, status, score, took_ms, None))


def _quick_rows(copy: Copy) -> int:
    """Copies that are answered in a turn of the event loop; 0 for what a thread has to answer."""
    line = copy.shadow.loaded.batcher
    is_quick = line is not None and line.pace.is_quick and isinstance(copy.rows, list) and len(copy.rows) == 1
    return min(line.pace.most_rows, TRIED_ROWS) if line is not None and is_quick else 0


def _predicted(loaded: Loaded, rows: Any) -> Prediction:
    from raymlp.data.contract_row import table_of

    predictor = loaded.predictor
    if isinstance(rows, pa.Table):
        return predictor.predict_checked(checked_table(rows, predictor.contract, predictor.key))
    typed = [predictor.check(row, f"instances[{place}]") for place, row in enumerate(rows)]
    if len(typed) == 1:
        return predictor.predict_typed(typed[0])
    return predictor.predict_checked(table_of(typed, predictor.bundle.contract))
