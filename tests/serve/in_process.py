"""A replica's application called without Ray Serve: the same code behind the same interface, in milliseconds."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import orjson
import pytest
from ray import serve

from raymlp.config.fallback import Constant, Rule
from raymlp.config.serve import Log
from raymlp.serve.app import ModelServer
from raymlp.serve.application import user_config_of
from raymlp.serve.fallback import Fallback
from raymlp.serve.keys import ApiKey, Role, key_hash
from tests.serve.bundles import replica_settings

KEY, OPERATOR = "a-key-that-predicts", "a-key-that-operates"


class Reply(NamedTuple):
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


class Replica:
    """One replica, its event loop, and calls to it."""

    def __init__(self, server: ModelServer, loop: asyncio.AbstractEventLoop) -> None:
        self.server, self._loop = server, loop
        self._app = server.__serve_build_asgi_app__()

    def reconfigure(self, versions: Mapping[str, Path], weights: Mapping[str, float] | None = None) -> None:
        paths = {label: str(path) for label, path in versions.items()}
        self.run(self.server.reconfigure(user_config_of(paths, weights or {next(iter(versions)): 1.0})))

    def run(self, work: Any) -> Any:
        return self._loop.run_until_complete(work)

    def call(self, method: str, path: str, body: bytes = b"", *, key: str | None = KEY, **headers: str) -> Reply:
        """One HTTP request; `headers` with `_` for `-`."""
        sent = {name.replace("_", "-").lower(): value for name, value in headers.items()}
        if key is not None:
            sent["authorization"] = f"Bearer {key}"
        return self.run(self._call(method, path, body, [(name.encode(), value.encode()) for name, value in sent.items()]))

    def post(self, path: str, content: Any, **more: Any) -> Reply:
        return self.call("POST", path, orjson.dumps(content), **more)

    async def _call(self, method: str, path: str, body: bytes, headers: list[tuple[bytes, bytes]]) -> Reply:
        scope = {
            "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"", "headers": headers,
            "http_version": "1.1", "scheme": "http", "server": ("test", 80), "client": ("test", 1), "root_path": "",
            "asgi": {"version": "3.0"},
        }  # fmt: skip
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body}

        async def send(message: Any) -> None:
            sent.append(message)

        await self._app(scope, receive, send)
        told = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return Reply(sent[0]["status"], told, b"".join(message.get("body", b"") for message in sent[1:]))


@contextmanager
def replica(folder: Path, bundle: Path, *, fallback: Rule | Constant | None = None, max_rows: int = 50) -> Iterator[Replica]:
    """A replica of the model `flights` that holds no version yet."""
    roles: dict[str, tuple[Role, ...]] = {KEY: ("predict",), OPERATOR: ("predict", "operate")}
    keys = [ApiKey(name=key, sha256=key_hash(key), roles=allowed).model_dump(mode="json") for key, allowed in roles.items()]
    settings = replica_settings(
        folder,
        keys=keys,
        needs_key=True,
        max_rows=max_rows,
        log_folder=str(folder),
        log=Log(flush_s=60).model_dump(),
        fallback=Fallback.of(fallback, str(bundle)).facts() if fallback else None,
        protocols=["rest-v1"],
    )
    loop = asyncio.new_event_loop()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serve, "get_replica_context", lambda: SimpleNamespace(replica_id=SimpleNamespace(unique_id="here")))
        made = Replica(ModelServer(settings), loop)
    try:
        yield made
    finally:
        made.run(made.server.__del__())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
