"""The replica: all versions of one model in one process, chosen per request, behind HTTP.

Predictions take the short way (bytes, orjson, contract, predictor, orjson, bytes); everything else is FastAPI's. Versions and
weights come in `user_config` and change while requests run.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

from ray import serve
from ray.util.metrics import Counter
from starlette.types import ASGIApp, Receive, Scope, Send

from raymlp.config.serve import Log
from raymlp.core.errors import RaymlpError
from raymlp.serve.admission import Admission
from raymlp.serve.answering import Answering
from raymlp.serve.application import DEPLOYMENT
from raymlp.serve.guard import Guard
from raymlp.serve.keys import ApiKey, KeyRing
from raymlp.serve.log import PredictionLog
from raymlp.serve.metrics import ReplicaMetrics
from raymlp.serve.pages import pages
from raymlp.serve.versions import Loaded, State, next_state

TICK_S = 0.2
"""How often the background looks whether the log is due."""

EXPORT_S = 5.0
"""How often Ray's metrics are told."""

JSON = (b"content-type", b"application/json")
logger = logging.getLogger("ray.serve")


class ModelServer:
    """One replica. Torch is imported when the first version loads, which spares the process that only builds the application.
    `settings`: name, keys, keys_file, max_rows, log_folder, log, needs_key, and `loading`: how `Loaded.load` is told to load."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.name = str(settings["name"])
        file = settings["keys_file"]
        keys = KeyRing([ApiKey.model_validate(key) for key in settings["keys"]], Path(file) if file else None)
        self.admission = Admission(keys, needs_key=bool(settings["needs_key"]))
        self.replica = serve.get_replica_context().replica_id.unique_id
        self.log = PredictionLog(Path(settings["log_folder"]), Log.model_validate(settings["log"]), writer=self.replica)
        self.metrics = ReplicaMetrics(self.name, self.replica)
        self.answering = Answering(self.admission, self.log, self.metrics, max_rows=int(settings["max_rows"]))
        self.state: State | None = None
        self._load = partial(Loaded.load, **settings.get("loading", {}))
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
            self.state = await asyncio.to_thread(next_state, self.state, user_config, self._guard, self._load)
            self.metrics.set_weights(dict(self.state.weights))
            for loaded in self.state.loaded.values():
                self.log.know(loaded.label, loaded.predictor.bundle.contract)

    def report(self) -> dict[str, Any]:
        """What this replica serves, for the driver and for GET /v1/models/NAME."""
        state = self.state
        if state is None:
            return {"name": self.name, "replica": self.replica, "pid": os.getpid(), "versions": {}, "weights": {}, "problems": {}}
        return {
            "name": self.name,
            "champion": state.champion,
            "versions": {label: loaded.facts for label, loaded in state.loaded.items()},
            "weights": dict(state.weights),
            "problems": dict(state.problems),
            "revision": state.revision,
            "replica": self.replica,
            "pid": os.getpid(),
        }

    # ------------------------------------------------------------------ requests

    def __serve_build_asgi_app__(self) -> ASGIApp:
        predict_path, others = f"/v1/models/{self.name}:predict", pages(self)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] == predict_path:
                status, body = await self.answering.answer(self.state, scope["headers"], receive)
                headers = [JSON, (b"content-length", b"%d" % len(body))]
                if status == 401:
                    headers.append((b"www-authenticate", b"Bearer"))
                await send({"type": "http.response.start", "status": status, "headers": headers})
                await send({"type": "http.response.body", "body": body})
            else:
                await others(scope, receive, send)

        return app

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
