"""Predictions run to their end, whether or not their client is still there.

Ray Serve starts two tasks a request to notice a client that goes away, which takes longer than a small net. A prediction is over before
anything could be saved by cancelling it. Replicas find this by `VARIABLE` in their environment; the header is Ray Serve's own.
"""

from __future__ import annotations

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

VARIABLE = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "raymlp.serve.unwatched.middlewares"}
UNWATCHED = (b"x-request-disconnect-disabled", b"?1")


class Unwatched:
    """Marks predictions; everything else is watched as Ray Serve does it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].endswith(":predict"):
            scope["headers"] = [*scope["headers"], UNWATCHED]
        await self.app(scope, receive, send)


def middlewares() -> list[Middleware]:
    """What Ray Serve puts around a replica's HTTP server."""
    return [Middleware(Unwatched)]
