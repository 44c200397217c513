"""A rate limit that holds over all replicas although no request waits for another process.

Each caller has one bucket of tokens in a process of its own (`counts`). A replica holds a lease of some of them, admits on its own,
and in the background tells what it used and gets a new lease: a share of what is there, by the requests that it lately saw. What it used
is taken from the bucket even where it had no lease for it, so in the long run the callers get what the limit says. Without a word
from the bucket for three seconds, a replica goes on with its own part of the limit: rate and burst divided by the number of replicas.
No Ray; the clock is the caller's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from raymlp.config.access import RateLimit

SYNC_S = 0.1
"""How often a replica tells what it used and gets a new lease."""
LEASE_S = 3.0
"""A lease that is older counts no more."""
PRESENT_S = 5.0
"""A replica that was not heard of for so long is gone."""
MAX_CALLERS = 10_000
"""Callers that are remembered; beyond it the one that asked least recently begins anew."""
MAX_REPLICAS = 1_000
"""Replicas whose use is remembered for a caller, those that are gone among them."""
MEMORY = 0.5
"""Weight of the latest requests in what a replica is thought to see."""
MOST_OF_LEVEL = 0.5
"""Part of what is there that a lease of more than one token may take, beside what comes in until it is renewed: a replica whose first
requests come now finds something."""
TINY = 1e-9
LEAST = 0.05
"""Part of an even share that a replica gets however few requests it saw."""


class Spent(NamedTuple):
    """What a replica tells of a caller: requests it admitted since the last word that was answered and ever, so that a word whose answer
    was lost is not charged twice; requests it saw; and the limit."""

    used: int
    ever: int
    asked: int
    rate: float
    most: float


class Grant(NamedTuple):
    """What it gets: tokens, as a lease, or as credit that is not set apart for it because it saw no requests."""

    tokens: float
    is_lease: bool


def spare(limit: RateLimit) -> float:
    """The bucket's size: the burst, and at least what comes in while replicas are told four times."""
    return max(limit.most, 4 * SYNC_S * limit.requests_per_s)


# ---------------------------------------------------------------------- the bucket


@dataclass
class _Seat:
    lease: float
    demand: float
    heard: float


@dataclass
class Bucket:
    """One caller's tokens. `level` is below zero while replicas used more than there was."""

    rate: float
    most: float
    now: float
    level: float = field(init=False)
    seats: dict[str, _Seat] = field(default_factory=dict)
    ever: dict[str, int] = field(default_factory=dict)
    """What each replica used, as it last told."""

    def __post_init__(self) -> None:
        self.level = self.most

    def settle(self, replica: str, spent: Spent, now: float, *, replicas: int) -> Grant:
        """Take what was used, and give a new lease."""
        self.rate, self.most = spent.rate, spent.most
        for name in [name for name, seat in self.seats.items() if now - seat.heard > LEASE_S]:
            del self.seats[name]  # what it held is taken as used: it will not tell
        seat = self.seats.pop(replica, None)
        leased = sum(other.lease for other in self.seats.values())
        used = spent.ever - self.ever.pop(replica, spent.ever - spent.used)
        self.ever[replica] = spent.ever
        if len(self.ever) > MAX_REPLICAS:
            del self.ever[next(iter(self.ever))]
        self.level += (seat.lease if seat else 0.0) - used + self.rate * (now - self.now)
        unused = sum(max(0.0, other.lease - other.demand * (now - other.heard)) for other in self.seats.values())
        self.level = max(-self.most, min(self.level, self.most - unused))  # replicas that were alone for long owe a burst and no more
        since = max(now - (seat.heard if seat else self.now), SYNC_S / 10)
        self.now = now
        if not spent.asked:
            return Grant(self.level / replicas, is_lease=False)
        demand = MEMORY * spent.asked / since + (1 - MEMORY) * (seat.demand if seat else spent.asked / since)
        least = LEAST * self.rate / (len(self.seats) + 1)
        wanted = sum(other.demand + least for other in self.seats.values())
        part = (demand + least) / (wanted + demand + least)
        least_left = self.level * (1 - MOST_OF_LEVEL) - part * self.rate * min(since, LEASE_S)
        lease = max(0.0, min(self.level, part * (self.level + leased), max(self.level - least_left, 1.0)))
        self.level -= lease
        self.seats[replica] = _Seat(lease, demand, now)
        return Grant(lease, is_lease=True)


class Buckets:
    """Those of all callers, and who asks them."""

    def __init__(self) -> None:
        self._buckets: dict[str, Bucket] = {}
        self._heard: dict[str, float] = {}

    def settle(self, replica: str, spent: Mapping[str, Spent], now: float) -> tuple[dict[str, Grant], int]:
        """New grants by caller, and the number of replicas that are there."""
        self._heard[replica] = now
        self._heard = {name: heard for name, heard in self._heard.items() if now - heard <= PRESENT_S}
        grants = {}
        for caller, part in spent.items():
            bucket = self._buckets.pop(caller, None) or Bucket(part.rate, part.most, now)
            self._buckets[caller] = bucket
            grants[caller] = bucket.settle(replica, part, now, replicas=len(self._heard))
        while len(self._buckets) > MAX_CALLERS:
            del self._buckets[next(iter(self._buckets))]
        return grants, len(self._heard)


# ---------------------------------------------------------------------- a replica's part


@dataclass
class _Share:
    tokens: float
    at: float
    rate: float
    most: float
    leased_until: float = -math.inf
    used: int = 0
    ever: int = 0
    asked: int = 0
    is_told: bool = True

    def fill(self, now: float, replicas: int) -> None:
        """Without a lease, its own part of the limit comes in."""
        if now >= self.leased_until:
            since = max(self.at, self.leased_until)
            most = max(self.tokens, self.most / replicas)
            self.tokens = min(most, self.tokens + (now - since) * self.rate / replicas)
        self.at = now


class Quota:
    """What one replica may admit now."""

    def __init__(self, *, replicas: int) -> None:
        """`replicas` is how many there may be, until the number is told."""
        self.replicas = max(1, replicas)
        self._shares: dict[str, _Share] = {}
        self.is_short = False
        """A caller was refused since the last report, so that a new one is worth while."""

    def take(self, caller: str, limit: RateLimit, now: float) -> float:
        """0 when the request is admitted, else the seconds after which to try again. This replica's part of a token is enough, since
        a last token may lie divided among all; the rest is owed."""
        share = self._shares.get(caller)
        if share is None:
            if len(self._shares) >= MAX_CALLERS:
                del self._shares[next(iter(self._shares))]
            most = spare(limit)
            share = self._shares[caller] = _Share(most / self.replicas, now, limit.requests_per_s, most)
        elif share.rate != limit.requests_per_s or share.most != spare(limit):
            share.rate, share.most = limit.requests_per_s, spare(limit)
        share.asked += 1
        share.fill(now, self.replicas)
        enough = 1 / self.replicas - TINY
        if share.tokens >= enough:
            share.tokens -= 1
            share.used += 1
            share.ever += 1
            return 0.0
        self.is_short = True
        return max(SYNC_S, (enough - share.tokens) * self.replicas / share.rate)

    def report(self) -> dict[str, Spent]:
        """What is to be told: callers that asked since the last report, and those that stopped asking, once."""
        self.is_short = False
        return {
            caller: Spent(share.used, share.ever, share.asked, share.rate, share.most)
            for caller, share in self._shares.items()
            if share.asked or share.used or not share.is_told
        }

    def take_over(self, told: Mapping[str, Spent], grants: Mapping[str, Grant], replicas: int, now: float) -> None:
        """The answer to a report. What was admitted while it was on its way counts against the new tokens."""
        self.replicas = max(1, replicas)
        for caller, grant in grants.items():
            share = self._shares.get(caller)
            if share is None:
                continue
            share.used -= told[caller].used
            share.asked -= told[caller].asked
            share.tokens, share.at = grant.tokens - share.used, now
            share.leased_until = now + LEASE_S if grant.is_lease else -math.inf
            share.is_told = not grant.is_lease
