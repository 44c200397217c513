"""A light client: many requests in order over a few keep-alive connections, on nothing but the standard library's sockets.

It shares the machine with the endpoint in `raymlp run`, so it costs a fraction of what a full HTTP library does.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson

from raymlp.core.errors import ServingError

RETRIES = 2
"""Times a request is sent again after its connection failed. A prediction changes nothing, so that is safe."""

RETRY_WAIT_S = 0.2
MAX_HEADER_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for one row. `status` is 0 when no connection could be made; `error` is the endpoint's or the
    connection's; `prediction` is as `Prediction.rows` gives it."""

    status: int
    latency_ms: float
    version: str | None = None
    prediction_id: str | None = None
    prediction: dict[str, Any] | None = None
    error: Any = None

    @property
    def is_good(self) -> bool:
        return self.status == 200


def replay(
    url: str,
    name: str,
    rows: Sequence[dict[str, Any]],
    *,
    key: str | None,
    connections: int,
    routing_keys: Sequence[str] | None = None,
    on_progress: Callable[[int], None] | None = None,
    timeout_s: float = 30.0,
    ca: Path | None = None,
) -> list[Answer]:
    """Send each row as a request of its own, in order, `connections` at a time; one answer a row, in the rows' order.

    `on_progress` is told the number of answers so far. A connection that fails is tried again twice; a refusal (4xx, 5xx)
    is an answer. To look at the evidence on the way, call it for a slice of the rows at a time.
    `ca` is a file of certificates to trust in place of the system's, for an endpoint with a certificate of one's own.
    Works from a notebook too. Raises ServingError for a URL that is none.
    """
    if routing_keys is not None and len(routing_keys) != len(rows):
        raise ValueError(f"{len(routing_keys)} routing keys for {len(rows)} rows; expected one a row")
    return _finished(_replay(_Target.of(url, name, key, ca), rows, connections, routing_keys, on_progress, timeout_s))


@dataclass(frozen=True, slots=True)
class _Target:
    host: str
    port: int
    tls: ssl.SSLContext | None
    head: bytes

    @classmethod
    def of(cls, url: str, name: str, key: str | None, ca: Path | None = None) -> _Target:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ServingError(f"the endpoint's address is {url!r}; expected http://HOST:PORT.")
        tls = ssl.create_default_context(cafile=ca) if parts.scheme == "https" else None
        lines = [
            f"POST {parts.path.rstrip('/')}/v1/models/{name}:predict HTTP/1.1",
            f"Host: {parts.netloc}",
            "Content-Type: application/json",
        ]
        if key:
            lines.append(f"Authorization: Bearer {key}")
        return cls(parts.hostname, parts.port or (443 if tls else 80), tls, "\r\n".join(lines).encode())

    def request(self, row: dict[str, Any], routing_key: str | None) -> bytes:
        content: dict[str, Any] = {"instances": [row]}
        if routing_key is not None:
            content["routing_key"] = routing_key
        body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
        return b"%b\r\nContent-Length: %d\r\n\r\n%b" % (self.head, len(body), body)


async def _replay(
    target: _Target,
    rows: Sequence[dict[str, Any]],
    connections: int,
    routing_keys: Sequence[str] | None,
    on_progress: Callable[[int], None] | None,
    timeout_s: float,
) -> list[Answer]:
    answers: list[Answer | None] = [None] * len(rows)
    places = iter(range(len(rows)))
    done = 0

    async def work() -> None:
        nonlocal done
        connection = _Connection(target, timeout_s)
        try:
            for place in places:
                answers[place] = await connection.ask(target.request(rows[place], routing_keys[place] if routing_keys else None))
                done += 1
                if on_progress:
                    on_progress(done)
        finally:
            connection.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(min(connections, len(rows))):
            group.create_task(work())
    return [answer for answer in answers if answer is not None]


class _Connection:
    def __init__(self, target: _Target, timeout_s: float) -> None:
        self._target, self._timeout_s = target, timeout_s
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> Answer:
        start = time.perf_counter()
        problem = ""
        for attempt in range(1 + RETRIES):
            if attempt:
                await asyncio.sleep(RETRY_WAIT_S * attempt)
            try:
                async with asyncio.timeout(self._timeout_s):
                    status, body = await self._exchange(request)
                return _answer(status, body, (time.perf_counter() - start) * 1e3)
            except TimeoutError:
                self.close()
                return Answer(0, (time.perf_counter() - start) * 1e3, error=f"no answer within {self._timeout_s:g} s")
            except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
                self.close()
                problem = f"{type(error).__name__}: {error}"
        return Answer(0, (time.perf_counter() - start) * 1e3, error=problem)

    async def _exchange(self, request: bytes) -> tuple[int, bytes]:
        if self._streams is None:
            target = self._target
            self._streams = await asyncio.open_connection(target.host, target.port, ssl=target.tls, limit=MAX_HEADER_BYTES)
        reader, writer = self._streams
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        status = int(head[9:12])
        if b"transfer-encoding: chunked" in head:
            body = await _chunked(reader)
        elif (start := head.find(b"content-length:")) >= 0:
            body = await reader.readexactly(int(head[start + 15 : head.index(b"\r\n", start)]))
        else:
            body = await reader.read()
            self.close()
        if b"connection: close" in head:
            self.close()
        return status, body

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def _chunked(reader: asyncio.StreamReader) -> bytes:
    pieces = []
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        pieces.append(await reader.readexactly(size))
        await reader.readexactly(2)
    await reader.readuntil(b"\r\n")
    return b"".join(pieces)


def _answer(status: int, body: bytes, latency_ms: float) -> Answer:
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError:
        content = body[:200].decode("utf-8", "replace")
    if status != 200 or not isinstance(content, dict):
        return Answer(status, latency_ms, error=content.get("error", content) if isinstance(content, dict) else content)
    return Answer(status, latency_ms, content.get("model_version"), content.get("prediction_id"), content["predictions"][0])


def _finished(work: Coroutine[Any, Any, list[Answer]]) -> list[Answer]:
    """Run a coroutine to its end, in a thread of its own when this one already has a loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    results: list[list[Answer]] = []
    thread = threading.Thread(target=lambda: results.append(asyncio.run(work)))
    thread.start()
    thread.join()
    return results[0]
