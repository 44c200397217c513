"""What to expect of a rollout before it starts: how long it takes, and what it would find on the way.

The checks of the policy are asked what they would say of expected counts, moved against the answer by as much as chance moves them in one
case of five. So an equal challenger is promoted by the time told here in about four cases of five, and the smallest difference told
is rolled back by then about as often.

A key counts once, and users come back. With K keys that are all as busy, n requests come from K (1 - exp(-n / K)) of them; those that
are busier than others make it fewer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from statistics import NormalDist

import numpy as np
from scipy.special import ndtri

from raymlp.config.rollout import Rollout
from raymlp.serve.rollout.errors import check_errors
from raymlp.serve.rollout.facts import Check, Histogram, Pair, Paired, Step
from raymlp.serve.rollout.latency import REFERENCE_REQUESTS, check_latency
from raymlp.serve.rollout.quality import check_quality

CHANCE = NormalDist().inv_cdf(0.8)
"""Deviations that chance is allowed for: four cases of five."""

POINTS = 400
"""Points that stand for a latency distribution."""


@dataclass(frozen=True)
class Traffic:
    """What an endpoint gets. `latency_spread` is the deviation of the latency's logarithm. The deviations of loss differences, in the
    loss's unit, are known once both versions have scored the same labelled rows; None leaves quality out."""

    requests_per_s: float = 0.0
    error_rate: float = 0.0
    latency_ms: float = 10.0
    latency_spread: float = 0.5
    labelled_share: float = 1.0
    loss: float = 0.5
    loss_deviation: float | None = None
    keys: float = math.inf
    """Routing keys there are; infinite where each request has one of its own."""

    def seen(self, requests: float) -> float:
        """Different keys to expect among some requests."""
        return requests if math.isinf(self.keys) else -self.keys * math.expm1(-requests / self.keys)


def population_of(requests: int, different: int) -> float:
    """How many keys there are, where so many different ones came in some requests: K of `different = K (1 - exp(-requests / K))`."""
    if different >= requests:
        return math.inf
    lowest, highest = float(different), float(different) * requests
    for _ in range(100):
        middle = math.sqrt(lowest * highest)
        lowest, highest = (middle, highest) if Traffic(keys=middle).seen(requests) < different else (lowest, middle)
    return highest


@dataclass(frozen=True)
class Outlook:
    """Requests and seconds (NaN without a rate) until an equal challenger is promoted, None for `requests` when the plan's limits come
    first; and by guard the smallest difference that is found by then, None when even a large one is not."""

    requests: int | None
    seconds: float
    by_step: tuple[tuple[float, int], ...]
    """Share and requests of each step up to there."""
    detectable: dict[str, float | None]
    """`errors`: error rate; `latency`: share slower; `quality`: extra loss, where known."""
    traffic: Traffic
    if_labels: bool = False
    """Whether labels must come too, and show that quality is no worse, of which nothing is known yet."""

    def lines(self) -> list[str]:
        """In words, a line each."""
        if self.requests is None:
            first = "an equal challenger would not be promoted within serve.rollout.max_requests and max_s"
            if not math.isinf(self.traffic.keys):
                first += (
                    f"; about {self.traffic.keys:,.0f} routing keys come back, each counts once, and latency is compared after the "
                    f"champion's first {REFERENCE_REQUESTS:,}"
                )
        else:
            time = f", {duration(self.seconds)} at {self.traffic.requests_per_s:,.1f} requests/s" if self.seconds == self.seconds else ""
            first = f"an equal challenger is promoted after about {self.requests:,} requests{time}"
            if self.if_labels:
                first += ", if labels come and show by then that its quality is no worse"
        found = []
        rate, slower, loss = (self.detectable.get(name) for name in ("errors", "latency", "quality"))
        if rate is not None:
            found.append(f"an error rate of {rate:.2%} instead of {self.traffic.error_rate:.2%}")
        if slower is not None:
            found.append(f"latency {slower:+.0%}")
        if loss is not None:
            found.append(f"a loss {loss:+.4f} higher")
        return [first, f"smallest differences found by then: {', '.join(found) or 'none'}"]


def outlook(settings: Rollout, traffic: Traffic, *, has_answers: bool = True) -> Outlook:
    """Expected length and smallest detectable differences of a rollout with these settings on this traffic. `has_answers` as in
    `Evidence`."""
    certain = -math.log(settings.alpha)
    limit = settings.max_requests
    if traffic.requests_per_s > 0:
        limit = min(limit, int(settings.max_s * traffic.requests_per_s))
    found = None
    for total in _totals(settings, traffic, limit):
        checks = _checks(settings, traffic, total, _Effect(), against=1)
        if all(check.fine is None or check.fine >= certain for check in checks):
            found = total
            break
    by = found if found is not None else limit
    steps = _divided(settings, traffic, by)
    after = _soak(settings, traffic) if found is not None else 0
    requests = found + after if found is not None else None
    seconds = requests / traffic.requests_per_s if requests is not None and traffic.requests_per_s > 0 else math.nan
    by_step = (*steps, (1.0, after)) if after else steps
    if_labels = has_answers and settings.quality.required and traffic.loss_deviation is None
    return Outlook(requests, seconds, by_step, _detectable(settings, traffic, by), traffic, if_labels)


@dataclass(frozen=True)
class _Effect:
    """How the challenger differs."""

    error_rate: float | None = None
    slower: float = 0.0
    loss: float = 0.0


def _detectable(settings: Rollout, traffic: Traffic, total: int) -> dict[str, float | None]:
    guards = (
        3 + (settings.distribution.on_shift == "rollback" and settings.distribution.max_gap is not None) + (settings.business is not None)
    )
    needed = math.log(guards / settings.alpha)

    def smallest(place: int, effects: Sequence[float], effect: Callable[[float], _Effect]) -> float | None:
        for size in effects:
            if _checks(settings, traffic, total, effect(size), against=-1)[place].harm >= needed:
                return size
        return None

    base = max(traffic.error_rate, 1e-5)
    rates = [rate for rate in (base * np.geomspace(1.1, 1e4, 120)).tolist() if rate <= 1]
    found = {
        "errors": smallest(0, rates, lambda rate: _Effect(error_rate=rate)),
        "latency": smallest(1, np.geomspace(0.02, 10, 100).tolist(), lambda slower: _Effect(slower=slower)),
    }
    if traffic.loss_deviation is not None:
        found["quality"] = smallest(2, (traffic.loss * np.geomspace(1e-4, 1, 100)).tolist(), lambda loss: _Effect(loss=loss))
    return found


def _checks(settings: Rollout, traffic: Traffic, total: int, effect: _Effect, *, against: int) -> list[Check]:
    """What errors, latency and quality say of the counts to expect after `total` requests, where chance lets the challenger look worse
    (`against` 1) or better (-1) than it is."""
    divided = _divided(settings, traffic, total)
    rate = traffic.error_rate if effect.error_rate is None else effect.error_rate
    tried = sum(weight * traffic.seen(number) for weight, number in divided)
    chance = against * CHANCE * math.sqrt(rate * (1 - rate) / max(tried, 1.0))
    rates = traffic.error_rate, max(0.0, rate + chance)
    theirs = sum(weight * number for weight, number in _new_keys(divided, traffic, 1.0))
    luck = against * CHANCE * 1.25 * traffic.latency_spread / math.sqrt(max(theirs, 1.0))
    shift = math.log1p(effect.slower) + luck
    steps, waiting = [], REFERENCE_REQUESTS
    for place, (weight, number) in enumerate(divided):
        keys = _pair(weight, _new_keys(divided, traffic, 1.0)[place][1])
        errors = Pair(*(_pair(weight, _new_keys(divided, traffic, rates[side])[place][1])[side] for side in (0, 1)))
        trials = _pair(weight, traffic.seen(number))
        failed = Pair(*(round(rates[side] * trials[side]) for side in (0, 1)))
        # The champion's first keys set what is slow; the challenger's of the same time count for nothing.
        held = min(waiting, keys.champion)
        waiting -= held
        left = 1 - held / keys.champion if keys.champion else float(waiting == 0)
        latency = _lognormal(traffic, keys.champion - held, 0.0), _lognormal(traffic, round(keys.challenger * left), shift)
        steps.append(Step(weight, _pair(weight, number), keys, errors, trials, failed, latency))
    rows = round(total * traffic.labelled_share)
    deviation = traffic.loss_deviation
    settled = settings.quality.model_copy(update={"required": settings.quality.required and deviation is not None})
    mean = effect.loss + against * CHANCE * (deviation or 0.0) / math.sqrt(max(rows, 1))
    loss = Paired(rows, mean, deviation**2, traffic.loss) if deviation is not None else Paired()
    return [
        check_errors(steps, settings.errors),
        check_latency(steps, _lognormal(traffic, REFERENCE_REQUESTS - waiting, 0.0), settings.latency),
        check_quality(loss, None, settled, alpha=settings.alpha),
    ]


def _pair(weight: float, number: float) -> Pair:
    """So many, divided by the challenger's share."""
    new = round(weight * number)
    return Pair(round(number) - new, new)


def _new_keys(divided: Sequence[tuple[float, int]], traffic: Traffic, rate: float) -> list[tuple[float, float]]:
    """Share and, by step, keys to which something happens for the first time that happens to this share of requests."""
    ends = accumulate((number * rate for _, number in divided), initial=0.0)
    return [(weight, traffic.seen(end) - traffic.seen(start)) for (weight, _), (start, end) in zip(divided, pairwise(ends), strict=True)]


def _lognormal(traffic: Traffic, number: int, shift: float) -> Histogram:
    """The latencies to expect of a number of requests."""
    if number == 0:
        return Histogram()
    points = min(number, POINTS)
    places = (np.arange(points) + 0.5) / points
    logs = math.log(traffic.latency_ms) + shift + traffic.latency_spread * ndtri(places)
    one = Histogram.of(np.exp(logs))
    return Histogram(one.bins, tuple(round(count * number / points) for count in one.counts))


def _divided(settings: Rollout, traffic: Traffic, total: int) -> tuple[tuple[float, int], ...]:
    """Requests by share until `total`: every step below 1 as short as it may be, and the last of them as long as it takes."""
    shares = [share for share in settings.weights if share < 1]
    found, left = [], total
    for place, share in enumerate(shares):
        least = max(math.ceil(settings.min_requests / share), math.ceil(settings.min_step_s * traffic.requests_per_s))
        number = left if place == len(shares) - 1 else min(left, least)
        found.append((share, number))
        left -= number
    return tuple((share, number) for share, number in found if number)


def _soak(settings: Rollout, traffic: Traffic) -> int:
    """Requests of the last step, where it is the challenger's alone."""
    if settings.weights[-1] < 1:
        return 0
    return max(settings.min_requests, math.ceil(settings.min_step_s * traffic.requests_per_s))


def _totals(settings: Rollout, traffic: Traffic, limit: int) -> Iterator[int]:
    """Totals to ask about: from where the last step may end, 3 % apart."""
    shares = [share for share in settings.weights if share < 1]
    least = sum(max(math.ceil(settings.min_requests / share), math.ceil(settings.min_step_s * traffic.requests_per_s)) for share in shares)
    total = float(least)
    while total <= limit:
        yield round(total)
        total *= 1.03


def duration(seconds: float) -> str:
    """A time in words, in the unit that fits."""
    for unit, size in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
