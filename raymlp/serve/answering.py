"""From a request's bytes to the answer's: keys, format, contract, version, predictor, format; logged and counted on the way."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import TYPE_CHECKING

import pyarrow as pa
from starlette.types import Receive

from raymlp.core.errors import RequestError, VersionAway
from raymlp.data.contract_row import Row, table_of
from raymlp.serve.admission import Admission, noted
from raymlp.serve.apart import Apart
from raymlp.serve.body import Unread, read_body
from raymlp.serve.fallback import Fallback
from raymlp.serve.formats.arrow import checked_table
from raymlp.serve.formats.wire import FALLBACK, JSON_ROWS, Wire
from raymlp.serve.keys import Refusal
from raymlp.serve.log import Entry, PredictionLog
from raymlp.serve.metrics import ReplicaMetrics
from raymlp.serve.request import Request
from raymlp.serve.screening import Screen
from raymlp.serve.shadow import Shadow
from raymlp.serve.versions import Loaded, State

INLINE_ROWS = 32
"""Requests with more rows are predicted in a thread, so that short ones do not wait for them."""

logger = logging.getLogger("ray.serve")

if TYPE_CHECKING:
    from raymlp.model.predictor import Prediction, Predictor


class Answering:
    """The predictions of one replica. `fallback` answers where no version can; None says so. `stand_in`: the champion
    answers for a version that stands apart and is away. `shadow` gets copies of what the champion answered."""

    def __init__(
        self,
        admission: Admission,
        log: PredictionLog,
        metrics: ReplicaMetrics,
        *,
        max_rows: int,
        fallback: Fallback | None = None,
        stand_in: bool = False,
        shadow: Shadow | None = None,
    ) -> None:
        self.admission, self.log, self.metrics, self.max_rows, self.fallback = admission, log, metrics, max_rows, fallback
        self.stand_in, self.shadow = stand_in, shadow
        self._screens: dict[str, Screen] = {}

    def know(self, label: str, predictor: Predictor) -> None:
        """A version's guard, made before its first row."""
        access = self.admission.access
        self._screens[label] = Screen.of(predictor, guard=access.guard, absurd_factor=access.absurd_factor)

    async def answer(
        self, state: State | None, headers: list[tuple[bytes, bytes]], receive: Receive, wire: Wire = JSON_ROWS
    ) -> tuple[int, bytes]:
        """Status and body for a request; it is logged and counted, whatever becomes of it. `wire` is its format."""
        start = time.perf_counter()
        given = dict(headers)
        status, label, key, rows, routed, prediction_id = 500, "", "", 1, "", new_id()
        inputs: list[Row] = []
        flags: list[tuple[str, ...]] = []
        try:
            caller = self.admission.enter(given, wire.role)
            content = await read_body(given, receive, self.admission.access.limits)
            fallback = self.fallback
            if state is None and fallback is None:
                status, body = 503, wire.refuse("model", "not loaded", "a model that is ready; try again")
                return status, body
            request = wire.read(content, max_rows=self.max_rows)
            rows = len(request.instances)
            key = given.get(b"x-routing-key", b"").decode("latin-1") or request.routing_key or prediction_id
            if state is not None:
                key = state.hide(key)
                label, routed = (wire.version, "") if wire.version else (state.routes.choose(key), state.routed)
                loaded, screen = state.loaded[label], self._screens[label]
                predictor = loaded.predictor
                typed, inputs, flags = await _judged(screen, request)
                self.admission.count_rows(caller, inputs)
                try:
                    try:
                        answer = await answers(loaded, typed)
                    except VersionAway as away:
                        if not self.stand_in or label == state.champion:
                            raise
                        self._note_failure(away, prediction_id, label, key, rows, routed, start, status=503)
                        self.metrics.count(label, 503, time.perf_counter() - start)
                        label, routed, loaded = state.champion, "", state.loaded[state.champion]
                        predictor = loaded.predictor
                        typed, inputs, flags = await _judged(self._screens[label], request)
                        answer = await answers(loaded, typed)
                    digest = predictor.bundle.digest
                except Exception as error:
                    if fallback is None:
                        raise
                    self._note_failure(error, prediction_id, label, key, rows, routed, start)
                    self.metrics.count(label, 500, time.perf_counter() - start)
                    label, routed, digest, answer = FALLBACK, "", "", fallback.answer(rows)
            elif fallback is not None:
                key, typed = fallback.hide_routing_key(key), await _typed(fallback, request)
                label, digest, answer = FALLBACK, "", fallback.answer(rows)
            kept: list[Row | None] = [None] * rows if label == FALLBACK else [*inputs]
            flags = [()] * rows if label == FALLBACK else flags
            body = wire.write(answer, label=label, digest=digest, prediction_id=prediction_id, flags=flags)
            status = 200
            self._note(routed, prediction_id, label, key, kept, flags, answer, (time.perf_counter() - start) * 1e3)
            if state is not None and state.shadow is not None and self.shadow is not None and label == state.champion:
                self.shadow.offer(state.shadow, prediction_id, key, request.instances)
        except Refusal as refused:
            status, body = noted(refused).status, wire.refuse(refused.field, refused.found, refused.expected)
        except Unread as unread:
            status, body = unread.status, wire.refuse("body", unread.found, unread.expected)
        except RequestError as error:
            status, body = 422, wire.refuse(error.field, error.found, error.expected)
        except RecursionError:
            status, body = 422, wire.refuse("body", "nested too deep", "rows of plain values")
        except VersionAway as away:
            status, body = 503, wire.refuse("model_version", f"{label}, which does not answer", "a version that does; try again")
            self._note_failure(away, prediction_id, label, key, rows, routed, start, status=503)
        except Exception as error:
            status, body = 500, wire.refuse("prediction", f"failed ({prediction_id})", "an answer; the replica's log has the cause")
            self._note_failure(error, prediction_id, label, key, rows, routed, start)
        finally:
            self.metrics.count(label, status, time.perf_counter() - start)
        return status, body

    def _note(
        self,
        routed: str,
        prediction_id: str,
        label: str,
        key: str,
        inputs: list[Row | None],
        flags: list[tuple[str, ...]],
        answer: Prediction,
        took_ms: float,
    ) -> None:
        now = time.time()
        for place, (row, doubts, score) in enumerate(zip(inputs, flags, answer.summary.tolist(), strict=True)):
            if doubts:
                self.metrics.flag(label, doubts)
            self.log.add(Entry(prediction_id, place, now, label, key, 200, score, took_ms, row, routed, ",".join(doubts) or None))

    def _note_failure(
        self, error: Exception, prediction_id: str, label: str, key: str, rows: int, routed: str, start: float, *, status: int = 500
    ) -> None:
        logger.error("prediction %s by %s failed: %s", prediction_id, label, type(error).__name__, exc_info=error)
        took_ms = (time.perf_counter() - start) * 1e3
        for place in range(rows):
            self.log.add(Entry(prediction_id, place, time.time(), label, key, status, None, took_ms, None, routed))


def new_id() -> str:
    """A random UUID (version 4), as `uuid.uuid4` makes it in four times the time."""
    digits = os.urandom(16).hex()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{'89ab'[int(digits[16], 16) & 3]}{digits[17:20]}-{digits[20:]}"


async def _judged(screen: Screen, request: Request) -> tuple[list[Row] | pa.Table, list[Row], list[tuple[str, ...]]]:
    """The request's rows typed, as rows, and the fields out of place of each. Raises RequestError."""
    typed = await _typed(screen, request)
    rows = typed if isinstance(typed, list) else await asyncio.to_thread(typed.to_pylist)
    return typed, rows, [screen.judged(row, f"instances[{place}]") for place, row in enumerate(rows)]


async def _typed(checker: Screen | Fallback, request: Request) -> list[Row] | pa.Table:
    """The request's rows in the contract's types. Raises RequestError."""
    if isinstance(request.instances, list):
        return [checker.check(row, f"instances[{i}]") for i, row in enumerate(request.instances)]
    return await asyncio.to_thread(checked_table, request.instances, checker.contract, checker.key)


async def answers(loaded: Loaded, typed: list[Row] | pa.Table) -> Prediction:
    """A version's answer to rows that its predictor has checked. Raises VersionAway for one that stands apart and is away."""
    predictor = loaded.predictor
    if isinstance(predictor, Apart):
        return await predictor.ask(typed)
    if not isinstance(typed, list):
        return await asyncio.to_thread(predictor.predict_checked, typed)
    if len(typed) == 1:
        return await loaded.batcher.predict(typed[0]) if loaded.batcher else predictor.predict_typed(typed[0])
    if loaded.batcher is None and len(typed) <= INLINE_ROWS:
        return predictor.predict_together(typed)
    return await asyncio.to_thread(predictor.predict_checked, table_of(typed, predictor.bundle.contract))
