"""From a request's bytes to the answer's: keys, JSON, contract, version, predictor, JSON; logged and counted on the way."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from typing import TYPE_CHECKING

import orjson
from starlette.types import Receive

from raymlp.core.errors import RequestError, VersionAway
from raymlp.data.contract_row import Row, table_of
from raymlp.serve.admission import Admission, refusal
from raymlp.serve.apart import Apart
from raymlp.serve.log import Entry, PredictionLog
from raymlp.serve.metrics import ReplicaMetrics
from raymlp.serve.request import MAX_BODY_BYTES, parse
from raymlp.serve.versions import State

INLINE_ROWS = 32
"""Requests with more rows are predicted in a thread, so that short ones do not wait for them."""

logger = logging.getLogger("ray.serve")

if TYPE_CHECKING:
    from raymlp.model.predictor import Prediction, Predictor


class Answering:
    """The predictions of one replica. `stand_in`: the champion answers for a version that is away."""

    def __init__(self, admission: Admission, log: PredictionLog, metrics: ReplicaMetrics, *, max_rows: int, stand_in: bool = False) -> None:
        self.admission, self.log, self.metrics, self.max_rows, self.stand_in = admission, log, metrics, max_rows, stand_in

    async def answer(self, state: State | None, headers: list[tuple[bytes, bytes]], receive: Receive) -> tuple[int, bytes]:
        """Status and body for a request; it is logged and counted, whatever becomes of it."""
        start = time.perf_counter()
        given = dict(headers)
        status, label, key, rows, stood_in, prediction_id = 500, "", "", 1, False, str(uuid.uuid4())
        try:
            refused = self.admission.refused(given, "predict")
            if refused is not None:
                status, body = refused.status, refusal("Authorization", refused.found, refused.expected)
                return status, body
            content = await _read(receive)
            if content is None:
                status, body = 413, refusal("body", f"over {MAX_BODY_BYTES:,} bytes", "fewer rows a request")
                return status, body
            if state is None:
                status, body = 503, refusal("model", "not loaded", "a model that is ready; try again")
                return status, body
            request = parse(content, max_rows=self.max_rows)
            rows = len(request.instances)
            key = given.get(b"x-routing-key", b"").decode("latin-1") or request.routing_key or prediction_id
            key = state.hide(key)
            label = state.routes.choose(key)
            predictor = state.loaded[label].predictor
            typed = [predictor.check(row, f"instances[{i}]") for i, row in enumerate(request.instances)]
            try:
                answer = await answers(predictor, typed)
            except VersionAway as away:
                if not self.stand_in or label == state.champion:
                    raise
                self._note_failure(503, away, prediction_id, label, key, rows, state.routed, start)
                self.metrics.count(label, 503, time.perf_counter() - start)
                champion = state.loaded[state.champion].predictor
                typed = [champion.check(row, f"instances[{i}]") for i, row in enumerate(request.instances)]
                label, stood_in, answer = state.champion, True, await answers(champion, typed)
            body = orjson.dumps({"predictions": answer.rows(), "model_version": label, "prediction_id": prediction_id})
            status = 200
            self._note("" if stood_in else state.routed, prediction_id, label, key, typed, answer, (time.perf_counter() - start) * 1e3)
        except RequestError as error:
            status, body = 422, refusal(error.field, error.found, error.expected)
        except RecursionError:
            status, body = 422, refusal("body", "nested too deep", "rows of plain values")
        except VersionAway as away:
            status, body = 503, refusal("model_version", f"{label} does not answer", "a version that does; try again")
            self._note_failure(503, away, prediction_id, label, key, rows, state.routed if state else "", start)
        except Exception as error:
            status, body = 500, refusal("prediction", f"failed ({prediction_id})", "an answer; the replica's log has the cause")
            self._note_failure(500, error, prediction_id, label, key, rows, state.routed if state else "", start)
        finally:
            self.metrics.count(label, status, time.perf_counter() - start)
        return status, body

    def _note(self, routed: str, prediction_id: str, label: str, key: str, typed: list[Row], answer: Prediction, took_ms: float) -> None:
        now = time.time()
        for place, (row, score) in enumerate(zip(typed, answer.summary.tolist(), strict=True)):
            self.log.add(Entry(prediction_id, place, now, label, key, 200, score, took_ms, row, routed))

    def _note_failure(
        self, status: int, error: Exception, prediction_id: str, label: str, key: str, rows: int, routed: str, start: float
    ) -> None:
        logger.error("prediction %s by %s failed: %s", prediction_id, label, error, exc_info=error if status == 500 else None)
        took_ms = (time.perf_counter() - start) * 1e3
        for place in range(rows):
            self.log.add(Entry(prediction_id, place, time.time(), label, key, status, None, took_ms, None, routed))


async def answers(predictor: Predictor, typed: list[Row]) -> Prediction:
    """The predictor's answer to rows that it has checked. Raises VersionAway for one that stands apart and has no replica."""
    if isinstance(predictor, Apart):
        return await predictor.ask(typed)
    if len(typed) == 1:
        return predictor.predict_typed(typed[0])
    table = table_of(typed, predictor.bundle.contract)
    return predictor.predict(table) if len(typed) <= INLINE_ROWS else await asyncio.to_thread(predictor.predict, table)


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
