"""From a request's bytes to the answer's: keys, JSON, contract, version, predictor, JSON; logged and counted on the way."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from typing import TYPE_CHECKING

import orjson
from starlette.types import Receive

from raymlp.core.errors import RequestError
from raymlp.data.contract_row import Row, table_of
from raymlp.serve.admission import Admission, noted, refusal
from raymlp.serve.body import Unread, read_body
from raymlp.serve.keys import Refusal
from raymlp.serve.log import Entry, PredictionLog
from raymlp.serve.metrics import ReplicaMetrics
from raymlp.serve.request import parse
from raymlp.serve.screening import Screen
from raymlp.serve.versions import State

INLINE_ROWS = 32
"""Requests with more rows are predicted in a thread, so that short ones do not wait for them."""

logger = logging.getLogger("ray.serve")

if TYPE_CHECKING:
    from raymlp.model.predictor import Prediction, Predictor


class Answering:
    """The predictions of one replica."""

    def __init__(self, admission: Admission, log: PredictionLog, metrics: ReplicaMetrics, *, max_rows: int) -> None:
        self.admission, self.log, self.metrics, self.max_rows = admission, log, metrics, max_rows
        self._screens: dict[str, Screen] = {}

    def know(self, label: str, predictor: Predictor) -> None:
        """A version's guard, made before its first row."""
        bundle, access = predictor.bundle, self.admission.access
        self._screens[label] = Screen(
            bundle.contract, bundle.profile.columns, predictor.check, guard=access.guard, absurd_factor=access.absurd_factor
        )

    async def answer(self, state: State | None, headers: list[tuple[bytes, bytes]], receive: Receive) -> tuple[int, bytes]:
        """Status and body for a request; it is logged and counted, whatever becomes of it."""
        start = time.perf_counter()
        given = dict(headers)
        status, label, key, rows, prediction_id = 500, "", "", 1, str(uuid.uuid4())
        try:
            caller = self.admission.enter(given, "predict")
            content = await read_body(given, receive, self.admission.access.limits)
            if state is None:
                status, body = 503, refusal("model", "not loaded", "a model that is ready; try again")
                return status, body
            request = parse(content, max_rows=self.max_rows)
            rows = len(request.instances)
            key = given.get(b"x-routing-key", b"").decode("latin-1") or request.routing_key or prediction_id
            key = state.hide(key)
            label = state.routes.choose(key)
            predictor, screen = state.loaded[label].predictor, self._screens[label]
            typed = [screen.check(row, f"instances[{i}]") for i, row in enumerate(request.instances)]
            self.admission.count_rows(caller, typed)
            flags = [screen.doubts(row) for row in typed]
            answer = await _answers(predictor, typed)
            told = {"predictions": answer.rows(), "model_version": label, "prediction_id": prediction_id}
            body = orjson.dumps({**told, "flags": flags} if any(flags) else told)
            status = 200
            self._note(state.routed, prediction_id, label, key, typed, flags, answer, (time.perf_counter() - start) * 1e3)
        except Refusal as refused:
            status, body = noted(refused).status, refusal(refused.field, refused.found, refused.expected)
        except Unread as unread:
            status, body = unread.status, refusal("body", unread.found, unread.expected)
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

    def _note(
        self,
        routed: str,
        prediction_id: str,
        label: str,
        key: str,
        typed: list[Row],
        flags: list[tuple[str, ...]],
        answer: Prediction,
        took_ms: float,
    ) -> None:
        now = time.time()
        for place, (row, doubts, score) in enumerate(zip(typed, flags, answer.summary.tolist(), strict=True)):
            if doubts:
                self.metrics.flag(label, doubts)
            self.log.add(Entry(prediction_id, place, now, label, key, 200, score, took_ms, row, routed, ",".join(doubts) or None))


async def _answers(predictor: Predictor, typed: list[Row]) -> Prediction:
    if len(typed) == 1:
        return predictor.predict_typed(typed[0])
    table = table_of(typed, predictor.bundle.contract)
    return predictor.predict_checked(table) if len(typed) <= INLINE_ROWS else await asyncio.to_thread(predictor.predict_checked, table)
