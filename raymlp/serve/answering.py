"""From a request's bytes to the answer's: keys, format, contract, version, predictor, format; logged and counted on the way."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from starlette.types import Receive

from raymlp.core.errors import RequestError, VersionAway
from raymlp.data.contract_row import Row, table_of
from raymlp.serve.admission import Admission
from raymlp.serve.apart import Apart
from raymlp.serve.fallback import Fallback
from raymlp.serve.formats.arrow import checked_table
from raymlp.serve.formats.wire import FALLBACK, JSON_ROWS, Wire
from raymlp.serve.log import Entry, PredictionLog
from raymlp.serve.metrics import ReplicaMetrics
from raymlp.serve.request import MAX_BODY_BYTES, Request
from raymlp.serve.versions import Loaded, State

INLINE_ROWS = 32
"""Requests with more rows are predicted in a thread, so that short ones do not wait for them."""

logger = logging.getLogger("ray.serve")

if TYPE_CHECKING:
    from raymlp.model.predictor import Prediction, Predictor


class Answering:
    """The predictions of one replica. `fallback` answers where no version can; None says so. `stand_in`: the champion
    answers for a version that stands apart and is away."""

    def __init__(
        self,
        admission: Admission,
        log: PredictionLog,
        metrics: ReplicaMetrics,
        *,
        max_rows: int,
        fallback: Fallback | None = None,
        stand_in: bool = False,
    ) -> None:
        self.admission, self.log, self.metrics, self.max_rows, self.fallback = admission, log, metrics, max_rows, fallback
        self.stand_in = stand_in

    async def answer(
        self, state: State | None, headers: list[tuple[bytes, bytes]], receive: Receive, wire: Wire = JSON_ROWS
    ) -> tuple[int, bytes]:
        """Status and body for a request; it is logged and counted, whatever becomes of it. `wire` is its format."""
        start = time.perf_counter()
        given = dict(headers)
        status, label, key, rows, routed, prediction_id = 500, "", "", 1, "", new_id()
        try:
            refused = self.admission.refused(given, wire.role)
            if refused is not None:
                status, body = refused.status, wire.refuse("Authorization", refused.found, refused.expected)
                return status, body
            content = await _read(receive)
            if content is None:
                status, body = 413, wire.refuse("body", f"over {MAX_BODY_BYTES:,} bytes", "fewer rows a request")
                return status, body
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
                loaded = state.loaded[label]
                predictor = loaded.predictor
                typed = await _typed(predictor, request)
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
                        typed = await _typed(predictor, request)
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
            body = wire.write(answer, label=label, digest=digest, prediction_id=prediction_id)
            status = 200
            inputs = typed if isinstance(typed, list) else await asyncio.to_thread(typed.to_pylist)
            inputs = [None] * rows if label == FALLBACK else inputs
            self._note(routed, prediction_id, label, key, inputs, answer, (time.perf_counter() - start) * 1e3)
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

    def _note(self, routed: str, prediction_id: str, label: str, key: str, inputs: list[Any], answer: Prediction, took_ms: float) -> None:
        now = time.time()
        for place, (row, score) in enumerate(zip(inputs, answer.summary.tolist(), strict=True)):
            self.log.add(Entry(prediction_id, place, now, label, key, 200, score, took_ms, row, routed))

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


async def _typed(checker: Predictor | Fallback, request: Request) -> list[Row] | pa.Table:
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


async def _read(receive: Receive) -> bytes | None:
    """The body, or None when it is too long."""
    pieces, size = [], 0
    while True:
        message = await receive()
        piece = message.get("body", b"")
        pieces.append(piece)
        size += len(piece)
        if size > MAX_BODY_BYTES:
            return None
        if not message.get("more_body", False):
            return b"".join(pieces) if len(pieces) > 1 else piece
