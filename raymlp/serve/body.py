"""A request's body, read whole or refused: too long, or too slow."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from starlette.types import Receive

from raymlp.config.access import Limits


class Unread(Exception):
    """A body that was not taken: the status, what was found, what was expected."""

    def __init__(self, status: int, found: str, expected: str) -> None:
        super().__init__(f"{found}; expected {expected}")
        self.status, self.found, self.expected = status, found, expected


async def read_body(headers: Mapping[bytes, bytes], receive: Receive, limits: Limits) -> bytes:
    """Raises Unread: 413 when it is too long, before it is read where its length is told; 408 when it does not come in time."""
    told = headers.get(b"content-length", b"")
    if told.isdigit() and int(told) > limits.body_bytes:
        raise _too_long(limits)
    pieces, size = [], 0
    try:
        async with asyncio.timeout(limits.body_s):
            while True:
                message = await receive()
                if message.get("type") == "http.disconnect":
                    raise Unread(408, "half a body", "all of it")
                piece = message.get("body", b"")
                pieces.append(piece)
                size += len(piece)
                if size > limits.body_bytes:
                    raise _too_long(limits)
                if not message.get("more_body", False):
                    return b"".join(pieces) if len(pieces) > 1 else piece
    except TimeoutError:
        raise Unread(408, f"not there after {limits.body_s:g} s", "all of it by then") from None


def _too_long(limits: Limits) -> Unread:
    return Unread(413, f"over {limits.body_bytes:,} bytes", "fewer rows a request")
