"""From a request's bytes to the answer's: keys, format, contract, version, predictor, format; logged and counted on the way."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

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
from raymlp.serve.tokens import Caller
from raymlp.serve.versions import Loaded, State

INLINE_ROWS = 32
"""Requests with more rows, and those of slow models, are predicted in a thread, so that short ones do not wait for them."""

logger = logging.getLogger("ray.serve")

if TYPE_CHECKING:
    from raymlp.model.predictor import Prediction, Predictor


@dataclass(slots=True)
class Asked:
    """A request on its way: what log and metrics have to know, whatever becomes of it. `start` is of `time.perf_counter`, when the event
    loop turned to it and to those that came with it."""

    id: str
    start: float
    label: str = ""
    key: str = ""
    rows: int = 1
    routed: str = ""

    @property
    def took_ms(self) -> float:
        """Milliseconds since it came."""
        return (time.perf_counter() - self.start) * 1e3


class Served(NamedTuple):
    """An answer: by the bundle of `digest`, to `rows` as they are logged, with the fields out of place of each."""

    answer: Prediction
    digest: str
    rows: Sequence[Row | None]
    flags: list[tuple[str, ...]]


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
        self._turn: float | None = None

    def know(self, label: str, predictor: Predictor) -> None:
        """A version's guard, made before its first row."""
        access = self.admission.access
        self._screens[label] = Screen.of(predictor, guard=access.guard, absurd_factor=access.absurd_factor)

    async def answer(
        self, state: State | None, headers: list[tuple[bytes, bytes]], receive: Receive, wire: Wire = JSON_ROWS
    ) -> tuple[int, bytes]:
        """Status and body for a request; it is logged and counted, whatever becomes of it. `wire` is its format."""
        given, asked = dict(headers), Asked(new_id(), self._began())
        status = 500
        try:
            caller = self.admission.enter(given, wire.role)
            content = await read_body(given, receive, self.admission.access.limits)
            if state is None and self.fallback is None:
                status, body = 503, wire.refuse("model", "not loaded", "a model that is ready; try again")
                return status, body
            request = wire.read(content, max_rows=self.max_rows)
            asked.rows = len(request.instances)
            asked.key = given.get(b"x-routing-key", b"").decode("latin-1") or request.routing_key or asked.id
            if state is None:
                served = await self._without_versions(asked, request)
            else:
                served = await self._served(state, asked, request, caller, version=wire.version)
            body = wire.write(served.answer, label=asked.label, digest=served.digest, prediction_id=asked.id, flags=served.flags)
            status = 200
            self._note(asked, served)
            if state is not None and state.shadow is not None and self.shadow is not None and asked.label == state.champion:
                self.shadow.offer(state.shadow, asked.id, asked.key, request.instances)
        except Refusal as refused:
            status, body = noted(refused).status, wire.refuse(refused.field, refused.found, refused.expected)
        except Unread as unread:
            status, body = unread.status, wire.refuse("body", unread.found, unread.expected)
        except RequestError as error:
            status, body = 422, wire.refuse(error.field, error.found, error.expected)
        except RecursionError:
            status, body = 422, wire.refuse("body", "nested too deep", "rows of plain values")
        except VersionAway as away:
            status, body = 503, wire.refuse("model_version", f"{asked.label}, which does not answer", "a version that does; try again")
            self._note_failure(asked, away, status=503)
        except Exception as error:
            status, body = 500, wire.refuse("prediction", f"failed ({asked.id})", "an answer; the replica's log has the cause")
            self._note_failure(asked, error)
        finally:
            self.metrics.count(asked.label, status, time.perf_counter() - asked.start)
        return status, body

    def _began(self) -> float:
        """When this turn of the event loop began to answer. Requests that were read together wait for one another, whether they are
        predicted together or one after the other; counted from here, the times of versions that do it differently can be compared."""
        if self._turn is None:
            self._turn = time.perf_counter()
            asyncio.get_running_loop().call_soon(self._end_turn)
        return self._turn

    def _end_turn(self) -> None:
        self._turn = None

    async def _served(self, state: State, asked: Asked, request: Request, caller: Caller, *, version: str | None) -> Served:
        """By the version that the key is routed to, or that was asked for; when that fails, by whom is declared to answer then."""
        asked.key = state.hide(asked.key)
        asked.label, asked.routed = (version, "") if version else (state.routes.choose(asked.key), state.routed)
        typed, rows, flags = await _judged(self._screens[asked.label], request)
        self.admission.count_rows(caller, rows)
        try:
            try:
                return await _by(state.loaded[asked.label], typed, rows, flags)
            except VersionAway as away:
                if not self.stand_in or asked.label == state.champion:
                    raise
                self._fails(asked, away, 503, then=state.champion)
                return await _by(state.loaded[asked.label], *await _judged(self._screens[asked.label], request))
        except Exception as error:
            if self.fallback is None:
                raise
            self._fails(asked, error, 500, then=FALLBACK)
            return Served(self.fallback.answer(asked.rows), "", [None] * asked.rows, [()] * asked.rows)

    async def _without_versions(self, asked: Asked, request: Request) -> Served:
        """By the fallback, since nothing is loaded."""
        assert self.fallback is not None
        asked.key, asked.label = self.fallback.hide_routing_key(asked.key), FALLBACK
        await _typed(self.fallback, request)
        return Served(self.fallback.answer(asked.rows), "", [None] * asked.rows, [()] * asked.rows)

    def _fails(self, asked: Asked, error: Exception, status: int, *, then: str) -> None:
        """The failure is the version's own; `then` answers, without a route, so that it is no evidence for anyone."""
        self._note_failure(asked, error, status=status)
        self.metrics.count(asked.label, status, time.perf_counter() - asked.start)
        asked.label, asked.routed = then, ""

    def _note(self, asked: Asked, served: Served) -> None:
        now, took_ms = time.time(), asked.took_ms
        for place, (row, doubts, score) in enumerate(zip(served.rows, served.flags, served.answer.summary.tolist(), strict=True)):
            if doubts:
                self.metrics.flag(asked.label, doubts)
            flags = ",".join(doubts) or None
            self.log.add(Entry(asked.id, place, now, asked.label, asked.key, 200, score, took_ms, row, asked.routed, flags))

    def _note_failure(self, asked: Asked, error: Exception, *, status: int = 500) -> None:
        logger.error("prediction %s by %s failed: %s", asked.id, asked.label, type(error).__name__, exc_info=error)
        now, took_ms = time.time(), asked.took_ms
        for place in range(asked.rows):
            self.log.add(Entry(asked.id, place, now, asked.label, asked.key, status, None, took_ms, None, asked.routed))


def new_id() -> str:
    """A random UUID (version 4), as `uuid.uuid4` makes it in about twice the time."""
    digits = os.urandom(16).hex()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{'89ab'[int(digits[16], 16) & 3]}{digits[17:20]}-{digits[20:]}"


async def _by(loaded: Loaded, typed: list[Row] | pa.Table, rows: list[Row], flags: list[tuple[str, ...]]) -> Served:
    """Served by a version."""
    return Served(await answers(loaded, typed), loaded.predictor.bundle.digest, rows, flags)


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
    line = loaded.batcher
    if line is not None and len(typed) == 1:
        return await line.predict(typed[0])
    if line is not None and line.pace.is_quick and len(typed) <= INLINE_ROWS:
        await asyncio.sleep(0)  # those that came with it are read, and counted, first
        return predictor.predict_together(typed)
    return await asyncio.to_thread(predictor.predict_checked, table_of(typed, predictor.bundle.contract))
