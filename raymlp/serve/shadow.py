"""The shadow of a replica: a version that answers copies of the champion's requests, unseen, after the answer went out.

A copy waits in a bounded queue, and a thread of its own answers it. What finds the queue full is dropped and counted; what fails is
logged as a failure and harms nothing else. Its log is a folder of its own, so that no reader of the prediction log takes a shadow's
answers for served ones; its rows have the id of the prediction they are a copy of, and no inputs, which the prediction log has.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from raymlp.core.errors import RequestError
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
    """One replica's queue and thread. `offer` costs a microsecond; everything else happens elsewhere."""

    def __init__(self, log: PredictionLog) -> None:
        self.log = log
        self.answered = self.failed = self.dropped = 0
        self._waiting: deque[Copy] = deque()
        self._work = threading.Event()
        self._thread: threading.Thread | None = None
        self._ends = False
        self._before = sys.getswitchinterval()

    def offer(self, shadow: Shadowed, prediction_id: str, key: str, rows: Any) -> None:
        """Take a copy of a request when it is one of the share, chosen by the prediction's id; the thread is woken once the event loop has
        gone on, when the answer is out."""
        if bucket(prediction_id, SALT) >= shadow.share:
            return
        if len(self._waiting) >= shadow.max_waiting:
            self.dropped += 1
            return
        self._waiting.append(Copy(shadow, prediction_id, key, rows))
        if not self._work.is_set():
            asyncio.get_running_loop().call_soon(self._work.set)

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

    def _answer(self, copy: Copy) -> None:
        start, loaded = time.perf_counter(), copy.shadow.loaded
        status, scores = 200, list[float | None]()
        try:
            scores = _predicted(loaded, copy.rows).summary.tolist()
        except RequestError:
            status = 422
        except Exception as error:
            status = 500
            logger.error("shadow %s failed for prediction %s: %s: %s", loaded.label, copy.prediction_id, type(error).__name__, error)
        self.answered += status == 200
        self.failed += status != 200
        took_ms, now = (time.perf_counter() - start) * 1e3, time.time()
        for place, score in enumerate(scores or [None] * len(copy.rows)):
            self.log.add(Entry(copy.prediction_id, place, now, loaded.label, copy.key, status, score, took_ms, None))


def _predicted(loaded: Loaded, rows: Any) -> Prediction:
    from raymlp.data.contract_row import table_of

    predictor = loaded.predictor
    if isinstance(rows, pa.Table):
        return predictor.predict_checked(checked_table(rows, predictor.contract, predictor.key))
    typed = [predictor.check(row, f"instances[{place}]") for place, row in enumerate(rows)]
    if len(typed) == 1:
        return predictor.predict_typed(typed[0])
    return predictor.predict_checked(table_of(typed, predictor.bundle.contract))
