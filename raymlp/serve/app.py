"""The replica: all versions of one model in one process, chosen per request, behind HTTP.

Predictions take the short way (bytes, format, contract, predictor, format, bytes); everything else is FastAPI's. Versions and
weights come in `user_config` and change while requests run.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from pathlib import Path
from typing import Any

from ray import serve
from starlette.types import ASGIApp, Receive, Scope, Send

from raymlp.config.access import Access
from raymlp.config.serve import Log
from raymlp.core.errors import RaymlpError, ServingError
from raymlp.data.contract import Contract
from raymlp.runtime.copies import own_folder
from raymlp.runtime.memory import available
from raymlp.runtime.store import place_of
from raymlp.serve.admission import Admission
from raymlp.serve.answering import Answering
from raymlp.serve.application import DEPLOYMENT
from raymlp.serve.batching import Turn
from raymlp.serve.counts import Together
from raymlp.serve.export import RayExport
from raymlp.serve.fallback import Fallback
from raymlp.serve.formats.choice import wire_of
from raymlp.serve.formats.grpc import InferenceService
from raymlp.serve.guard import Guard
from raymlp.serve.headers import guarded
from raymlp.serve.hearing import Hearing
from raymlp.serve.keys import ApiKey, KeyRing
from raymlp.serve.log import PredictionLog
from raymlp.serve.metrics import ReplicaMetrics
from raymlp.serve.pages import pages
from raymlp.serve.shadow import Shadow
from raymlp.serve.versions import State, next_state

TICK_S = 0.2
"""How often the background looks whether the log is due."""

EXPORT_S = 5.0
"""How often Ray's metrics are told."""

RETRY_S = 30.0
"""How often versions are tried again while the fallback alone answers."""

logger = logging.getLogger("ray.serve")


class ModelServer(InferenceService):
    """One replica. Torch is imported when the first version loads, which spares the process that only builds the application.
    `settings`: name, keys, keys_file, max_rows, log_folder, shadow_folder, log, label_folder, label_rule, needs_key, access,
    max_replicas, fallback, protocols; and where they differ from the usual, stand_in and loading (device, runtime, graphs, batching,
    timeout_s)."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.name = str(settings["name"])
        file = settings["keys_file"]
        keys = KeyRing([ApiKey.model_validate(key) for key in settings["keys"]], Path(file) if file else None)
        access = Access.model_validate(settings["access"])
        self.admission = Admission(keys, needs_key=bool(settings["needs_key"]), access=access, replicas=int(settings["max_replicas"]))
        self.replica = serve.get_replica_context().replica_id.unique_id
        self._loading = {"device": "cpu", **settings.get("loading", {})}
        self._node = socket.gethostname()
        self.log = PredictionLog(place_of(settings["log_folder"]), Log.model_validate(settings["log"]), writer=self.replica)
        self.metrics = ReplicaMetrics(self.name, self.replica)
        fallback = Fallback.read(settings["fallback"]) if settings["fallback"] else None
        self.shadow = Shadow(PredictionLog(place_of(settings["shadow_folder"]), self.log.settings, writer=self.replica))
        self.answering = Answering(
            self.admission,
            self.log,
            self.metrics,
            max_rows=int(settings["max_rows"]),
            fallback=fallback,
            stand_in=settings.get("stand_in", False),
            shadow=self.shadow,
        )
        self.protocols = tuple(settings["protocols"])
        self.hearing = Hearing(
            self.admission,
            place_of(settings["label_folder"]),
            rule=settings["label_rule"],
            max_rows=self.answering.max_rows,
            writer=self.replica,
        )
        self.together = Together(self.name, self.replica, self.admission.quota, self.admission.rows)
        self.state: State | None = None
        self._wanted: dict[str, Any] = {}
        self._problem = ""
        self._guard = Guard(own_folder(self.log.folder) / ".challengers")
        self._changing, self._turn = asyncio.Lock(), Turn()
        self._background: asyncio.Task[None] | None = None
        self._others: list[asyncio.Task[None]] = []

    # ------------------------------------------------------------------ versions

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take over versions and weights. What cannot be loaded is reported and never replaces what works; raises only when
        there is nothing to serve at all, not even a fallback."""
        async with self._changing:
            if self._background is None:
                await self._read_public_keys()
                self._background = asyncio.create_task(self._tend())
                self._others = [asyncio.create_task(self.together.keep()), asyncio.create_task(self._follow_issuer())]
            self._wanted = user_config
            try:
                self.state = await asyncio.to_thread(next_state, self.state, {**user_config, **self._loading}, self._guard)
            except ServingError as error:
                if self.answering.fallback is None:
                    raise
                self._problem = str(error)
                logger.error("%s has no version, and answers with its fallback: %s", self.name, error)
                return
            self.metrics.set_weights(dict(self.state.weights))
            for loaded in self.state.loaded.values():
                if loaded.batcher is not None:
                    loaded.batcher.turn = self._turn
                self.log.know(loaded.label, loaded.predictor.bundle.contract)
                self.answering.know(loaded.label, loaded.predictor)
            self.hearing.know(self.state.loaded[self.state.champion].predictor.bundle)
            self.shadow.set(self.state.shadow)

    def report(self) -> dict[str, Any]:
        """What this replica serves, for the driver and for GET /v1/models/NAME."""
        state, wanted = self.state, self._wanted
        replica = {
            "replica": self.replica,
            "pid": os.getpid(),
            "node": self._node,
            "free_bytes": available(),
            "protocols": self.protocols,
            "fallback": self.answering.fallback is not None,
        }
        if state is None:
            lost = {"champion": wanted["champion"], "revision": wanted["revision"]} if self._problem else {}
            problems = {wanted["champion"]: self._problem} if self._problem else {}
            return {"name": self.name, **lost, "versions": {}, "weights": {}, "problems": problems, **replica}
        return {
            "name": self.name,
            "champion": state.champion,
            "versions": {label: loaded.facts for label, loaded in state.loaded.items()},
            "weights": dict(state.weights),
            "problems": dict(state.problems),
            "revision": state.revision,
            "shadow": {"version": state.shadow.loaded.label, "share": state.shadow.share, **self.shadow.report()} if state.shadow else None,
            **replica,
        }

    @property
    def contract(self) -> Contract | None:
        """What requests must keep: the champion's, or the fallback's while no version is loaded; None before there is one."""
        if self.state is not None:
            return self.state.loaded[self.state.champion].predictor.contract
        return self.answering.fallback.contract if self.answering.fallback else None

    @property
    def is_ready(self) -> bool:
        """Whether requests are answered, be it by the fallback."""
        return self.state is not None or bool(self._problem)

    def holds(self, version: str) -> bool:
        """Whether a version is loaded here."""
        return self.state is not None and version in self.state.loaded

    # ------------------------------------------------------------------ requests

    def __serve_build_asgi_app__(self) -> ASGIApp:
        predict_path, others = f"/v1/models/{self.name}:predict", pages(self)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            is_post = scope["type"] == "http" and scope["method"] == "POST"
            wire = wire_of(scope, predict_path, self.contract) if is_post else None
            if wire is None or (wire.version and not self.holds(wire.version)):
                await others(scope, receive, send)
                return
            status, body = await self.answering.answer(self.state, scope["headers"], receive, wire)
            headers = [*wire.headers, (b"content-length", b"%d" % len(body))]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})

        access = self.admission.access
        return guarded(app, header_bytes=access.limits.header_bytes, cors_origins=access.cors_origins)

    # ------------------------------------------------------------------ background

    async def _tend(self) -> None:
        export = RayExport(self.metrics.registry)
        flushed = told = tried = time.monotonic()
        while True:
            await asyncio.sleep(min(TICK_S, self.log.settings.flush_s))
            now = time.monotonic()
            try:
                if self.log.is_due or self.shadow.log.is_due or now - flushed >= self.log.settings.flush_s:
                    flushed = now
                    await asyncio.to_thread(self.hearing.log.flush)
                    for log in (self.log, self.shadow.log):
                        if len(log):
                            await asyncio.to_thread(log.flush)
                if self.state is None and self._problem and now - tried >= RETRY_S:
                    tried = now
                    await self.reconfigure(self._wanted)
                if now - told >= EXPORT_S:
                    told = now
                    self.metrics.set_dropped(self.log.dropped)
                    export.tell()
            except Exception as error:
                logger.warning("the prediction log, labels or metrics of %s wait: %s: %s", self.name, type(error).__name__, error)

    async def _follow_issuer(self) -> None:
        """Beside `_tend`, since an issuer may take long to answer."""
        while self.admission.tokens is not None:
            await asyncio.sleep(TICK_S)
            await self._read_public_keys()

    async def _read_public_keys(self) -> None:
        tokens = self.admission.tokens
        if tokens is not None and tokens.is_due:
            await asyncio.to_thread(tokens.refresh)

    async def __del__(self) -> None:
        """Serve awaits this when a replica stops in good order: write what waits."""
        for task in (self._background, *self._others):
            if task:
                task.cancel()
        await asyncio.to_thread(self.shadow.close)
        logs = ("the prediction log", self.log), ("the labels", self.hearing.log), ("the shadow's log", self.shadow.log)
        for what, log in logs:
            try:
                await asyncio.to_thread(log.flush)
            except (OSError, RaymlpError) as error:
                logger.error("%s rows of %s are lost: %s", len(log), what, error)
        self._guard.release()


def application(args: dict[str, Any]) -> serve.Application:
    """What Ray Serve imports and builds: the deployment with its settings."""
    return serve.deployment(serve.ingress()(ModelServer), name=DEPLOYMENT).bind(args)
