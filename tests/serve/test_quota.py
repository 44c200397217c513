"""The rate limit over several replicas, by simulation through the real code on a clock of the test."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from raymlp.config.access import RateLimit
from raymlp.serve.quota import LEASE_S, SYNC_S, Buckets, Quota, spare

REPLICAS = 4
ANSWER_S = 0.003
"""From a replica's word to the answer."""


def admitted(
    limit: RateLimit,
    requests: Iterable[tuple[float, int]],
    *,
    silent: tuple[float, float] = (0.0, 0.0),
    lost: Callable[[int], bool] = lambda replica: False,
    late: float = 0.0,
    pace: float = 1.0,
) -> list[float]:
    """Moments at which requests (moment, replica) were admitted; between the moments of `silent` no word gets through, nor do those of
    replicas that are `lost`. Of the answers a share of `late` comes too late. `pace` is the seconds between words, in SYNC_S."""
    rng, order = random.Random(0), itertools.count()
    buckets, quotas = Buckets(), [Quota(replicas=REPLICAS) for _ in range(REPLICAS)]
    events: list[tuple[float, int, str, Any]] = [(rng.random() * SYNC_S, next(order), "tell", place) for place in range(REPLICAS)]
    events += [(when, next(order), "ask", place) for when, place in requests]
    last = max(when for when, _, kind, _ in events if kind == "ask")
    heapq.heapify(events)
    moments = []
    while events and events[0][0] <= last:
        now, _, kind, what = heapq.heappop(events)
        if kind == "ask":
            if quotas[what].take("shop", limit, now) == 0:
                moments.append(now)
        elif kind == "tell":
            spent = quotas[what].report()
            if not silent[0] <= now < silent[1] and not lost(what):
                grants, replicas = buckets.settle(str(what), spent, now)
                if rng.random() >= late:
                    heapq.heappush(events, (now + pace * ANSWER_S, next(order), "hear", (what, spent, grants, replicas)))
            heapq.heappush(events, (now + pace * SYNC_S * rng.uniform(0.9, 1.3), next(order), "tell", what))
        else:
            place, spent, grants, replicas = what
            quotas[place].take_over(spent, grants, replicas, now)
    return moments


def poisson(rate: float, seconds: float, replica_of: Callable[[float, random.Random], int], seed: int = 1) -> list[tuple[float, int]]:
    rng, now, found = random.Random(seed), 0.0, []
    while (now := now + rng.expovariate(rate)) <= seconds:
        found.append((now, replica_of(now, rng)))
    return found


SPREADS: dict[str, Callable[[float, random.Random], int]] = {
    "even": lambda now, rng: rng.randrange(REPLICAS),
    "all at one": lambda now, rng: 0,
    "skewed": lambda now, rng: rng.choices(range(REPLICAS), [8, 1, 1, 0.1])[0],
    "moving on each second": lambda now, rng: int(now) % REPLICAS,
}


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize(("rate", "burst", "load"), [(100, None, 400), (100, 10, 400), (100, None, 115), (5, 5, 20), (1_000, None, 3_000)])
def test_over_four_replicas_the_limit_holds_within_5_percent(rate: float, burst: int | None, load: float, spread: str) -> None:
    limit, seconds = RateLimit(requests_per_s=rate, burst=burst), 30.0
    requests = poisson(load, seconds, SPREADS[spread])
    expected = min(len(requests), rate * seconds + limit.most)
    assert abs(len(admitted(limit, requests)) / expected - 1) < 0.05


@pytest.mark.parametrize("spread", SPREADS)
def test_answers_that_are_lost_charge_nobody_twice(spread: str) -> None:
    moments = admitted(RateLimit(requests_per_s=100), poisson(400, 30, SPREADS[spread]), late=0.3)
    assert abs(len(moments) / (100 * 30 + 100) - 1) < 0.05


@pytest.mark.parametrize("spread", ["even", "all at one", "skewed"])
def test_on_a_busy_machine_where_replicas_tell_late_the_limit_holds_too(spread: str) -> None:
    moments = admitted(RateLimit(requests_per_s=100), poisson(478, 30, SPREADS[spread]), pace=4)
    assert abs(len(moments) / (100 * 30 + 100) - 1) < 0.05


@pytest.mark.parametrize("spread", SPREADS)
def test_in_no_stretch_of_time_more_is_admitted_than_rate_and_burst_allow(spread: str) -> None:
    limit = RateLimit(requests_per_s=50, burst=50)
    moments = admitted(limit, poisson(300, 20, SPREADS[spread]))
    for start in range(0, len(moments), 7):
        for end in range(start, len(moments), 13):
            allowed = 50 * (moments[end] - moments[start]) + 50
            assert end - start + 1 <= 1.05 * allowed + REPLICAS + 50 * SYNC_S


@pytest.mark.parametrize("spread", SPREADS)
def test_who_keeps_below_the_limit_is_hardly_ever_refused(spread: str) -> None:
    requests = poisson(80, 30, SPREADS[spread])
    assert len(admitted(RateLimit(requests_per_s=100), requests)) > 0.99 * len(requests)


def test_a_burst_after_a_pause_passes_and_what_is_over_it_is_made_up_for() -> None:
    at_once = [(10 + place / 10_000, place % REPLICAS) for place in range(200)]
    later = poisson(400, 20, SPREADS["even"])
    warm = [(place / 10, place % REPLICAS) for place in range(50)]
    moments = admitted(RateLimit(requests_per_s=100), [*warm, *at_once, *((when, place) for when, place in later if when > 10.1)])
    assert 95 <= sum(10 <= moment < 10.1 for moment in moments) <= 4 / 3 * 100
    assert abs(sum(moment >= 10 for moment in moments) / (100 * 10 + 100) - 1) < 0.05


def test_without_a_word_from_the_others_each_replica_keeps_to_its_part() -> None:
    limit = RateLimit(requests_per_s=100)
    for spread, expected in (("even", 100.0), ("all at one", 25.0)):
        moments = admitted(limit, poisson(400, 40, SPREADS[spread]), silent=(10.0, 30.0))
        alone = [moment for moment in moments if 10 + LEASE_S <= moment < 30]
        assert abs(len(alone) / (20 - LEASE_S) / expected - 1) < 0.1
        after = [moment for moment in moments if 31 <= moment < 40]
        assert abs(len(after) / 9 / 100 - 1) < 0.1, "then the others are heard again"


def test_a_replica_that_is_gone_takes_no_more_than_its_lease_along() -> None:
    moments = admitted(RateLimit(requests_per_s=100), poisson(400, 20, lambda now, rng: rng.randrange(2)), lost=lambda place: place > 1)
    assert abs(len(moments) / (100 * 20 + 100) - 1) < 0.05


def test_callers_do_not_share_and_limits_may_change() -> None:
    quota = Quota(replicas=1)
    small = RateLimit(requests_per_s=1, burst=2)
    assert [quota.take("a", small, 0.0) > 0 for _ in range(3)] == [False, False, True]
    assert quota.take("b", small, 0.0) == 0
    assert quota.take("a", RateLimit(requests_per_s=100, burst=2), 0.1) == 0
    assert quota.take("c", RateLimit(requests_per_s=0.1, burst=1), 0.0) == 0
    assert 9 < quota.take("c", RateLimit(requests_per_s=0.1, burst=1), 0.0) <= 10
    assert spare(RateLimit(requests_per_s=100, burst=1)) == 40
