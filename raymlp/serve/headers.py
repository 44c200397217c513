"""What every request and answer meets on its way in and out, whatever it is about: the size of its headers, headers that keep browsers
safe, and which pages of other origins may ask.

A page that sets one of these headers itself keeps its own: a page with scripts needs a content-security-policy of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raymlp.serve.admission import WAIT_S, refusal

SAFE: tuple[tuple[bytes, bytes], ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
)


def guarded(app: ASGIApp, *, header_bytes: int, cors_origins: Sequence[str]) -> ASGIApp:
    """The app behind all of it."""

    async def outer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = complete(list(message.get("headers", ())), message["status"])
            await send(message)

        if sum(len(name) + len(value) + 4 for name, value in scope["headers"]) > header_bytes:
            body = refusal("headers", f"over {header_bytes:,} bytes", "fewer or shorter headers")
            headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
            await sending({"type": "http.response.start", "status": 431, "headers": headers})
            await sending({"type": "http.response.body", "body": body})
            return
        await app(scope, receive, sending)

    if not cors_origins:
        return outer
    return CORSMiddleware(
        outer,
        allow_origins=list(cors_origins),
        allow_methods=["GET", "POST"],
        allow_headers=["authorization", "content-type", "x-routing-key"],
        expose_headers=["retry-after"],
        max_age=600,
    )


def complete(headers: list[tuple[bytes, bytes]], status: int) -> list[tuple[bytes, bytes]]:
    """The headers with those that are missing."""
    present = {name.lower() for name, _ in headers}
    for name, value in SAFE:
        if name not in present:
            headers.append((name, value))
    if status == 401 and b"www-authenticate" not in present:
        headers.append((b"www-authenticate", b"Bearer"))
    if status in (429, 503) and b"retry-after" not in present:
        headers.append((b"retry-after", b"%d" % WAIT_S.get()))
    return headers
