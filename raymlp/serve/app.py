"""The replica: all versions of one model in one process, chosen per request, behind HTTP.

Predictions take the short way (bytes, orjson, contract, predictor, orjson, bytes); everything else is FastAPI's. Versions and
weights come in `user_config` and change while requests run.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from fastapi import FastAPI
from fastapi import Request as HttpRequest
from prometheus_client import CONTENT_TYPE_LATEST
from ray import serve
from ray.util.metrics import Counter
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from raymlp.config.serve import Log
from raymlp.core.errors import RaymlpError, RequestError, ServingError
from raymlp.data.contract_row import Row, table_of
from raymlp.serve.deploy import DEPLOYMENT
from raymlp.serve.guard import Guard
from raymlp.serve.keys import ApiKey, KeyRing, Refusal, Role
from raymlp.serve.log import Entry, PredictionLog
from raymlp.serve.metrics import ReplicaMetrics
from raymlp.serve.openapi import openapi
from raymlp.serve.probe import example_row
from raymlp.serve.request import MAX_BODY_BYTES, parse
from raymlp.serve.routing import Routes

INLINE_ROWS = 32
"""Requests with more rows are predicted in a thread, so that short ones do not wait for them."""

TICK_S = 0.2
"""How often the background looks whether the log is due."""

EXPORT_S = 5.0
"""How often Ray's metrics are told."""

JSON = (b"content-type", b"application/json")
logger = logging.getLogger("ray.serve")

if TYPE_CHECKING:
    from raymlp.model.predictor import Prediction, Predictor


@dataclass(frozen=True)
class Loaded:
    """A version in memory."""

    label: str
    path: str
    predictor: Predictor

    @classmethod
    def load(cls, label: str, path: str) -> Loaded:
        """Load, and answer a sample, so that the first request finds a warm net. Raises BundleError and what a broken net raises."""
        import torch

        from raymlp.model.predictor import Predictor

        torch.set_num_threads(1)
        predictor = Predictor.load(path)
        predictor.predict_typed(predictor.check(example_row(predictor.bundle.contract), "example"))
        return cls(label, path, predictor)


@dataclass(frozen=True)
class State:
    """What a replica serves now; replaced as a whole, never changed."""

    champion: str
    loaded: Mapping[str, Loaded]
    routes: Routes
    weights: Mapping[str, float]
    revision: str
    problems: Mapping[str, str]

    @cached_property
    def routed(self) -> str:
        """The routes as the log has them."""
        return str(self.routes)

    def hide(self, key: str) -> str:
        """A routing key as it is logged: hashed where a version has privacy rules with a key. The version is chosen by what is logged,
        so that the log shows why."""
        for loaded in self.loaded.values():
            key = loaded.predictor.hide_routing_key(key)
        return key


class ModelServer:
    """One replica. Torch is imported when the first version loads, which spares the process that only builds the application.
    `settings`: name, keys, keys_file, max_rows, log_folder, log, needs_key."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.name = str(settings["name"])
        self.max_rows = int(settings["max_rows"])
        self.needs_key = bool(settings["needs_key"])
        file = settings["keys_file"]
        self.keys = KeyRing([ApiKey.model_validate(key) for key in settings["keys"]], Path(file) if file else None)
        self.replica = serve.get_replica_context().replica_id.unique_id
        self.log = PredictionLog(Path(settings["log_folder"]), Log.model_validate(settings["log"]), writer=self.replica)
        self.metrics = ReplicaMetrics(self.name, self.replica)
        self.state: State | None = None
        self._predict_path = f"/v1/models/{self.name}:predict"
        self._guard = Guard(self.log.folder / ".challengers")
        self._changing = asyncio.Lock()
        self._background: asyncio.Task[None] | None = None

    # ------------------------------------------------------------------ versions

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take over versions and weights. What cannot be loaded is reported and never replaces what works; raises only when
        there is nothing to serve at all."""
        async with self._changing:
            if self._background is None:
                self._background = asyncio.create_task(self._tend())
            self.state = await asyncio.to_thread(self._next_state, user_config)
            self.metrics.set_weights(dict(self.state.weights))
            for loaded in self.state.loaded.values():
                self.log.know(loaded.label, loaded.predictor.bundle.contract)

    def _next_state(self, wanted: dict[str, Any]) -> State:
        versions, weights = dict(wanted["versions"]), dict(wanted["weights"])
        champion, revision = wanted["champion"], wanted["revision"]
        current, problems, loaded = self.state, {}, {}
        suspect = len(versions) > 1 and self._guard.is_suspect(revision)
        if len(versions) > 1 and not suspect:
            self._guard.hold(revision)
        for label, path in versions.items():
            if label != champion and suspect:
                problems[label] = "a replica died while it held this version; it was left out. Send the versions again to retry."
                continue
            known = current.loaded.get(label) if current else None
            try:
                loaded[label] = known if known and known.path == path else Loaded.load(label, path)
            except Exception as error:
                problems[label] = f"{type(error).__name__}: {error}"
                logger.error("version %s cannot be loaded from %s: %s", label, path, problems[label])
        try:
            shares = weights if not problems else _shares_of(champion, weights, loaded)
            routes = Routes.of(champion, shares, salt=wanted["salt"])
            if champion not in loaded:
                raise ServingError(f"the champion {champion} cannot be loaded: {problems.get(champion, 'it is not among the versions')}")
        except (ServingError, KeyError) as error:
            if current is None:
                raise ServingError(f"nothing to serve: {error}") from None
            return replace(current, revision=revision, problems=problems or {champion: str(error)})
        if len(loaded) == 1:
            self._guard.release()
        return State(champion, loaded, routes, shares, revision, problems)

    def report(self) -> dict[str, Any]:
        """What this replica serves, for the driver and for GET /v1/models/NAME."""
        state = self.state
        if state is None:
            return {"name": self.name, "replica": self.replica, "pid": os.getpid(), "versions": {}, "weights": {}, "problems": {}}
        return {
            "name": self.name,
            "champion": state.champion,
            "versions": {label: _facts(loaded) for label, loaded in state.loaded.items()},
            "weights": dict(state.weights),
            "problems": dict(state.problems),
            "revision": state.revision,
            "replica": self.replica,
            "pid": os.getpid(),
        }

    # ------------------------------------------------------------------ requests

    def __serve_build_asgi_app__(self) -> ASGIApp:
        pages = _pages(self)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] == self._predict_path:
                status, body = await self._predict(scope["headers"], receive)
                headers = [JSON, (b"content-length", b"%d" % len(body))]
                if status == 401:
                    headers.append((b"www-authenticate", b"Bearer"))
                await send({"type": "http.response.start", "status": status, "headers": headers})
                await send({"type": "http.response.body", "body": body})
            else:
                await pages(scope, receive, send)

        return app

    async def _predict(self, headers: list[tuple[bytes, bytes]], receive: Receive) -> tuple[int, bytes]:
        start = time.perf_counter()
        state = self.state
        given = dict(headers)
        status, label, key, rows, prediction_id = 500, "", "", 1, str(uuid.uuid4())
        try:
            refused = self.refused(given, "predict")
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
            answer = await _answers(predictor, typed)
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

    def refused(self, headers: Mapping[bytes, bytes], role: Role) -> Refusal | None:
        """Why a request is not let in; None when it holds a key with the role, or needs none."""
        if self.needs_key:
            try:
                self.keys.let_in(headers.get(b"authorization", b""), role)
            except Refusal as refused:
                return refused
        return None

    def _note(self, routed: str, prediction_id: str, label: str, key: str, typed: list[Row], answer: Prediction, took_ms: float) -> None:
        now = time.time()
        for place, (row, score) in enumerate(zip(typed, answer.summary.tolist(), strict=True)):
            self.log.add(Entry(prediction_id, place, now, label, key, 200, score, took_ms, row, routed))

    # ------------------------------------------------------------------ background

    async def _tend(self) -> None:
        exported = Counter("raymlp_predictions", "Requests answered", tag_keys=("model", "version", "status"))
        flushed = told = time.monotonic()
        while True:
            await asyncio.sleep(min(TICK_S, self.log.settings.flush_s))
            now = time.monotonic()
            try:
                if self.log.is_due or now - flushed >= self.log.settings.flush_s:
                    flushed = now
                    if len(self.log):
                        await asyncio.to_thread(self.log.flush)
                if now - told >= EXPORT_S:
                    told = now
                    for (version, status), count in self.metrics.new_counts().items():
                        exported.inc(count, {"model": self.name, "version": version or "none", "status": str(status)})
            except Exception as error:
                logger.warning("the prediction log or metrics of %s wait: %s: %s", self.name, type(error).__name__, error)

    async def __del__(self) -> None:
        """Serve awaits this when a replica stops in good order: write what waits."""
        if self._background:
            self._background.cancel()
        try:
            await asyncio.to_thread(self.log.flush)
        except (OSError, RaymlpError) as error:
            logger.error("%s rows of the prediction log are lost: %s", len(self.log), error)
        self._guard.release()


def application(args: dict[str, Any]) -> serve.Application:
    """What Ray Serve imports and builds: the deployment with its settings."""
    return serve.deployment(serve.ingress()(ModelServer), name=DEPLOYMENT).bind(args)


def refusal(field: str, found: str, expected: str) -> bytes:
    """The body of every 4xx and 5xx that is ours."""
    return orjson.dumps({"error": {"field": field, "found": found, "expected": expected}})


def _pages(server: ModelServer) -> FastAPI:
    """Everything but predictions."""
    app = FastAPI(title=server.name, redoc_url=None)

    def document() -> dict[str, Any]:
        if server.state is None:
            raise HTTPException(503)
        bundle = server.state.loaded[server.state.champion].predictor.bundle
        return openapi(server.name, bundle.contract, bundle.plan.target.task, max_rows=server.max_rows, needs_key=server.needs_key)

    async def healthz(_: HttpRequest) -> Response:
        return _json(200, {"status": "ok"})

    async def readyz(_: HttpRequest) -> Response:
        return _json(200, {"status": "ready"}) if server.state else _json(503, {"status": "loading"})

    async def metrics(_: HttpRequest) -> Response:
        return Response(server.metrics.text(dropped=server.log.dropped), media_type=CONTENT_TYPE_LATEST)

    async def model(request: HttpRequest) -> Response:
        refused = server.refused(dict(request.scope["headers"]), "operate")
        if refused is not None:
            headers = {"www-authenticate": "Bearer"} if refused.status == 401 else None
            return Response(refusal("Authorization", refused.found, refused.expected), refused.status, headers, "application/json")
        if request.path_params["name"] != server.name:
            raise HTTPException(404)
        return _json(200, server.report())

    async def refuse(request: HttpRequest, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        expected = f"POST /v1/models/{server.name}:predict, or a page of /openapi.json"
        return Response(refusal("path", f"{request.method} {request.url.path[:100]}", expected), status, media_type="application/json")

    for path, page in (("/healthz", healthz), ("/readyz", readyz), ("/metrics", metrics), ("/v1/models/{name}", model)):
        app.add_route(path, page, methods=["GET"], include_in_schema=False)
    app.add_exception_handler(HTTPException, refuse)
    setattr(app, "openapi", document)  # noqa: B010
    return app


def _json(status: int, content: dict[str, Any]) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")


def _facts(loaded: Loaded) -> dict[str, str]:
    bundle = loaded.predictor.bundle
    return {"digest": bundle.digest, "run_id": bundle.run_id}


def _shares_of(champion: str, weights: Mapping[str, float], loaded: Mapping[str, Loaded]) -> dict[str, float]:
    """The weights of what could be loaded; the champion takes over the rest."""
    others = {label: share for label, share in weights.items() if label in loaded and label != champion}
    return {champion: 1 - sum(others.values()), **others}


async def _answers(predictor: Predictor, typed: list[Row]) -> Prediction:
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
