"""Requests on a steady stream, each with its moment, its latency and what became of it: what drills and scaling traces look at.

No library of requests that quietly tries again: a connection that is refused (nothing listens) is opened anew until something does and
counted apart; a request that was sent and got no answer, or another answer than 200, has failed.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit

REFUSED_WAIT_S = 0.05


@dataclass(slots=True)
class Sent:
    """One request: when it began, in seconds of `time.monotonic`, how long it took with all refused connections, and its status, 0 for
    a connection that broke; then `why`."""

    at: float
    took_s: float
    status: int
    refused: int
    retry_after: str = ""
    body: bytes = b""
    why: str = ""


@dataclass
class Load:
    """Requests from a thread of its own while the block runs: `connections` workers, each at most `per_second / connections` a second."""

    url: str
    request: Callable[[int], bytes]
    """Bytes of the n-th request."""

    connections: int = 8
    per_second: float = 200.0
    keep_bodies: bool = False
    tls: ssl.SSLContext | None = None
    sent: list[Sent] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    async def _run(self) -> None:
        await asyncio.gather(*(self._work(place) for place in range(self.connections)))

    async def _work(self, place: int) -> None:
        parts, streams, number = urlsplit(self.url), None, place
        due = time.monotonic() + place / self.per_second
        while not self._stop.is_set():
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            start, refused = time.monotonic(), 0
            due = max(due + self.connections / self.per_second, start - 1.0)
            status, retry_after, body, why = 0, "", b"", ""
            while streams is None and not self._stop.is_set():
                try:
                    streams = await asyncio.open_connection(parts.hostname, parts.port, ssl=self.tls)
                except OSError:
                    refused += 1
                    await asyncio.sleep(REFUSED_WAIT_S)
            if streams is None:
                return
            try:
                async with asyncio.timeout(60):
                    status, retry_after, body, stays = await _exchange(*streams, self.request(number))
            except (OSError, EOFError, ValueError, TimeoutError) as error:
                stays, why = False, f"{type(error).__name__}: {error}"
            if not stays:
                with suppress(OSError):
                    streams[1].close()
                streams = None
            number += self.connections
            self.sent.append(Sent(start, time.monotonic() - start, status, refused, retry_after, body if self.keep_bodies else b"", why))


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> tuple[int, str, bytes, bool]:
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
    if "content-length" in headers:
        body = await reader.readexactly(int(headers["content-length"]))
    elif "chunked" in headers.get("transfer-encoding", ""):
        body = b""
        while size := int(await reader.readline(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
    else:
        body = await reader.read()
    return int(head[9:12]), headers.get("retry-after", ""), body, headers.get("connection", "") != "close" and "content-length" in headers


def post(path: str, body: bytes, key: str) -> bytes:
    """A request's bytes."""
    return b"POST %b HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
        path.encode(), key.encode(), len(body), body,
    )  # fmt: skip


def quantile(values: list[float], share: float) -> float:
    """The value below which this share of the values lies; not a number for none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def told(sent: list[Sent]) -> dict[str, object]:
    """Counts and milliseconds of one stretch of requests."""
    failed = Counter(one.status for one in sent if one.status != 200)
    latencies = [one.took_s * 1e3 for one in sent if one.status == 200]
    return {
        "requests": len(sent),
        "failed": sum(failed.values()),
        "failures": {str(status or "broken"): count for status, count in sorted(failed.items())},
        "why": sorted({f"after {one.took_s:.1f} s: {one.why}" for one in sent if one.why})[:5],
        "refused": sum(one.refused for one in sent),
        "p50_ms": quantile(latencies, 0.5),
        "p99_ms": quantile(latencies, 0.99),
        "worst_ms": max(latencies, default=float("nan")),
    }
