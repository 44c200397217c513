"""Who is let in, how much he may ask, and the words for who is not."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar

import orjson

from raymlp.config.access import Access, RateLimit, Role
from raymlp.data.contract_row import Row
from raymlp.serve.extraction import HOUR_S, DistinctRows
from raymlp.serve.keys import KeyRing, Refusal
from raymlp.serve.quota import Quota
from raymlp.serve.tokens import Caller, Tokens, is_token

ANYONE = Caller("anyone")
"""The one caller of an endpoint without keys."""

NEAR = 0.75
"""Part of the limit on distinct rows from which on they are told at once."""

WAIT_S: ContextVar[int] = ContextVar("wait_s", default=1)
"""Seconds after which this request may be tried again, for its headers, whatever the format of its answer."""


class Admission:
    """The door of one replica."""

    def __init__(
        self,
        keys: KeyRing,
        *,
        needs_key: bool,
        access: Access | None = None,
        replicas: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.keys, self.needs_key, self.access, self._clock = keys, needs_key, access or Access(), clock
        self.tokens = Tokens(self.access.jwt) if self.access.jwt else None
        self.quota = Quota(replicas=replicas)
        self.rows = DistinctRows()

    def enter(self, headers: Mapping[bytes, bytes], role: Role) -> Caller:
        """Who holds a key or token with the role, or anyone where none is needed. Raises Refusal for others, and for who asks too often."""
        caller = self._known(headers.get(b"authorization", b""), role) if self.needs_key else ANYONE
        limit = caller.limit or self.access.rate_limit
        if limit is not None:
            wait_s = self.quota.take(caller.name, limit, self._clock())
            if wait_s:
                raise Refusal(429, _too_often(limit), "fewer; wait as Retry-After says", wait_s=wait_s)
        return caller

    def refused(self, headers: Mapping[bytes, bytes], role: Role) -> Refusal | None:
        """Why a request is not let in, or None."""
        try:
            self.enter(headers, role)
        except Refusal as refused:
            return noted(refused)
        return None

    def count_rows(self, caller: Caller, rows: list[Row]) -> None:
        """Count the rows of a request against the caller's distinct rows of the hour. Raises Refusal when these are used up."""
        most = self.access.extraction_limit
        if most is None:
            return
        now = time.time()
        count = self.rows.count(caller.name, now)
        self.rows.is_near = self.rows.is_near or count > NEAR * most
        if count >= most:
            left_s = HOUR_S - now % HOUR_S
            raise Refusal(429, f"over {most:,} distinct rows in this hour", "fewer rows an hour; wait as Retry-After says", wait_s=left_s)
        self.rows.add(caller.name, rows, now)

    def _known(self, header: bytes, role: Role) -> Caller:
        scheme, _, credential = header.partition(b" ")
        if self.tokens is not None and scheme.lower() == b"bearer" and is_token(credential.strip()):
            return self.tokens.let_in(credential.strip(), role)
        key = self.keys.let_in(header, role)
        return Caller(key.name, key.limit)


def noted(refused: Refusal) -> Refusal:
    """The refusal, with its seconds put where the headers of this request's answer are made."""
    if refused.status == 429:
        WAIT_S.set(max(1, math.ceil(refused.wait_s)))
    return refused


def refusal(field: str, found: str, expected: str) -> bytes:
    """The body of every 4xx and 5xx that is ours."""
    return orjson.dumps({"error": {"field": field, "found": found, "expected": expected}})


def _too_often(limit: RateLimit) -> str:
    return f"over {limit.requests_per_s:g} requests a second"
