"""One replica in this process, without Ray: asked through its ASGI app as an HTTP server would."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from raymlp.serve.app import ModelServer


@dataclass(frozen=True)
class Got:
    """An answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


@dataclass(frozen=True)
class Replica:
    """A replica with its app."""

    server: ModelServer
    app: Any

    async def ask(self, method: str, path: str, body: Any = b"", *, receive: Any = None, **headers: str) -> Got:
        """Header names have `_` for `-`. A body that is no bytes is sent as JSON."""
        content = body if isinstance(body, bytes) else orjson.dumps(body)
        sent = [(name.replace("_", "-").lower().encode(), value.encode()) for name, value in headers.items()]
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path, "raw_path": path.encode(),
            "root_path": "", "scheme": "http", "query_string": b"", "headers": sent, "client": ("test", 1), "server": ("test", 80),
        }  # fmt: skip
        messages: list[dict[str, Any]] = []

        async def give() -> dict[str, Any]:
            return {"type": "http.request", "body": content, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            messages.append(message)

        await self.app(scope, receive or give, send)
        start, *rest = messages
        headers_back = {name.decode().lower(): value.decode() for name, value in start["headers"]}
        return Got(start["status"], headers_back, b"".join(part.get("body", b"") for part in rest))


@asynccontextmanager
async def replica(settings: dict[str, Any], bundle: Path | None) -> AsyncIterator[Replica]:
    """A replica that serves a bundle as version `v1`; with None, one that has loaded nothing yet."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray.serve.get_replica_context", lambda: SimpleNamespace(replica_id=SimpleNamespace(unique_id="r")))
        server = ModelServer(settings)
    if bundle is not None:
        wanted = {"versions": {"v1": str(bundle)}, "weights": {"v1": 1.0}, "champion": "v1", "salt": "", "revision": "a"}
        await server.reconfigure(wanted)
    try:
        yield Replica(server, server.__serve_build_asgi_app__())
    finally:
        for task in (server._background, *server._others):
            if task is not None:
                task.cancel()
