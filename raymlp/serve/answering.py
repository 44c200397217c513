"""From a request's bytes to the answer's: keys, JSON, contract, version, predictor, JSON; logged and counted on the way."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import TYPE_CHECKING

import orjson
from starlette.types import Receive

from raymlp.core.errors import RequestError
from raymlp.data.contract_row import Row, table_of
from raymlp.serve.admission import Admission, refusal
from raymlp.serve.log import Entry, PredictionLog
from raymlp.serve.metrics import ReplicaMetrics
from raymlp.serve.request import MAX_BODY_BYTES, parse
from raymlp.serve.versions import Loaded, State

INLINE_ROWS = 32
"""Requests with more rows are predicted in a thread, so that short ones do not wait for them."""

logger = logging.getLogger("ray.serve")

if TYPE_CHECKING:
    from raymlp.model.predictor import Prediction


class Answering:
    """The predictions of one replica."""

    def __init__(self, admission: Admission, log: PredictionLog, metrics: ReplicaMetrics, *, max_rows: int) -> None:
        self.admission, self.log, self.metrics, self.max_rows = admission, log, metrics, max_rows

    async def answer(self, state: State | None, headers: list[tuple[bytes, bytes]], receive: Receive) -> tuple[int, bytes]:
        """Status and body for a request; it is logged and counted, whatever becomes of it."""
        start = time.perf_counter()
        given = dict(headers)
        status, label, key, rows, prediction_id = 500, "", "", 1, new_id()
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
            loaded = state.loaded[label]
            predictor = loaded.predictor
            typed = [predictor.check(row, f"instances[{i}]") for i, row in enumerate(request.instances)]
            answer = await _answers(loaded, typed)
            body = orjson.dumps({"predictions": answer.rows(), "model_version": label, "prediction_id": prediction_id})
            status = 200
            self._note(state.routed, prediction_id, label, key, typed, answer, (time.perf_counter() - start) * 1e3)
        except RequestError as error:
            status, body = 422, refusal(error.field, error.found, error.expected)
        except RecursionError:
            status, body = 422, refusal("body", "nested too deep", "rows of plain values")
        except Exception as error:
            logger.exception("prediction %s by %s failed: %s", prediction_id, label, type(error).__name__)
            status, body = 500, refusal("prediction", f"failed ({prediction_id})", "an answer; the replica's log has the cause")
            took_ms = (time.perf_counter() - start) * 1e3
            for place in range(rows):
                self.log.add(Entry(prediction_id, place, time.time(), label, key, 500, None, took_ms, None, state.routed if state else ""))
        finally:
            self.metrics.count(label, status, time.perf_counter() - start)
        return status, body

    def _note(self, routed: str, prediction_id: str, label: str, key: str, typed: list[Row], answer: Prediction, took_ms: float) -> None:
        now = time.time()
        for place, (row, score) in enumerate(zip(typed, answer.summary.tolist(), strict=True)):
            self.log.add(Entry(prediction_id, place, now, label, key, 200, score, took_ms, row, routed))


def new_id() -> str:
    """A random UUID (version 4), as `uuid.uuid4` makes it in four times the time."""
    digits = os.urandom(16).hex()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{'89ab'[int(digits[16], 16) & 3]}{digits[17:20]}-{digits[20:]}"


async def _answers(loaded: Loaded, typed: list[Row]) -> Prediction:
    predictor = loaded.predictor
    if len(typed) == 1:
        return await loaded.batcher.predict(typed[0]) if loaded.batcher else predictor.predict_typed(typed[0])
    if loaded.batcher is None and len(typed) <= INLINE_ROWS:
        return predictor.predict_together(typed)
    return await asyncio.to_thread(predictor.predict, table_of(typed, predictor.bundle.contract))


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
