"""What to expect of an experiment before it starts: the smallest difference each metric finds by its end, and how long its margin takes.

A difference is found once the interval has left 0. With a standard error s and an interval of half width h, a difference of h + .84 s
does so in four cases of five. Keys count once and come back (see `rollout.outlook`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from raymlp.config.experiment import Business, ErrorRate, Experiment, LatencyQuantile, Metric, Quality
from raymlp.serve.experiment.intervals import MIN_EVEN, MIN_KEYS, TARGET_KEYS, rank_bounds, rate_interval
from raymlp.serve.rollout.outlook import CHANCE, Traffic, duration
from raymlp.serve.rollout.quality import BURN_IN, RANKING_BLOCK, RANKING_BURN_IN, TARGET_ROWS
from raymlp.serve.rollout.sequential import radius


@dataclass(frozen=True)
class Known:
    """What is known of a metric before the start: the control's mean, the deviation of a value (of a difference for paired ones), and the
    share of keys for which it comes."""

    mean: float
    deviation: float
    share: float = 1.0


@dataclass(frozen=True)
class Expected:
    """One metric: the smallest difference from the control found by the end in four cases of five, None when even a large one is not or
    nothing is known; seconds until the margin would be, None when not by the end."""

    metric: str
    detectable: float | None
    margin: float | None
    seconds: float | None

    def __str__(self) -> str:
        if self.margin is None:
            return f"{self.metric}: nothing is known yet that says how much it varies"
        if self.detectable is None:
            return f"{self.metric}: no difference is found by the end"
        time = (
            f"the margin ({self.margin:.3g}) after {duration(self.seconds)}"
            if self.seconds is not None
            else (f"the margin ({self.margin:.3g}) is not found by then")
        )
        return f"{self.metric}: a difference of {self.detectable:.3g} is found by the end; {time}"


def expected(settings: Experiment, traffic: Traffic, known: Mapping[str, Known]) -> list[Expected]:
    """By metric. `known` by a metric's name, for business and quality metrics; the smallest arm counts."""
    return [_expected(settings, place, metric, traffic, known.get(metric.name)) for place, metric in enumerate(settings.metrics)]


def _expected(settings: Experiment, place: int, metric: Metric, traffic: Traffic, known: Known | None) -> Expected:
    alpha, margin = settings.alpha_of(place), math.nan
    match metric:
        case ErrorRate():
            known, margin = Known(traffic.error_rate, math.sqrt(traffic.error_rate * (1 - traffic.error_rate))), metric.margin
        case LatencyQuantile():
            center = traffic.latency_ms * math.exp(traffic.latency_spread * float(ndtri(metric.quantile)))
            known, margin = Known(center, 0.0), metric.margin * center
        case Business():
            margin = metric.margin * abs(known.mean) if known else math.nan
        case Quality():
            margin = metric.margin
    if known is None or traffic.requests_per_s <= 0:
        return Expected(metric.name, None, None, None)

    def found_after(seconds: float) -> float:
        keys = traffic.seen(traffic.requests_per_s * seconds) * known.share
        return detectable(metric, keys, settings.shares, traffic, known, alpha=alpha)

    at_end = found_after(settings.max_s)
    times = np.geomspace(1.0, settings.max_s, 200)
    seconds = next((float(time) for time in times if found_after(float(time)) <= margin), None)
    return Expected(metric.name, at_end if math.isfinite(at_end) else None, margin, seconds)


def detectable(metric: Metric, keys: float, shares: tuple[float, ...], traffic: Traffic, known: Known, *, alpha: float) -> float:
    """The smallest difference found among so many keys in four cases of five; infinite when none is."""
    old, new = shares[0] * keys, min(shares[1:]) * keys
    if isinstance(metric, LatencyQuantile):
        return _quantile_distance(metric.quantile, round(old), round(new), traffic, alpha=alpha)
    if isinstance(metric, Quality):
        by_block = metric.measure == "auc"
        rows = keys / RANKING_BLOCK if by_block else keys
        if rows < (RANKING_BURN_IN if by_block else BURN_IN):
            return math.inf
        half = radius(round(rows), known.deviation**2, alpha=alpha, target_rows=TARGET_ROWS / (RANKING_BLOCK if by_block else 1))
        return half + CHANCE * known.deviation / math.sqrt(rows)
    share, both = new / (old + new) if old + new else 0.5, old + new
    if isinstance(metric, ErrorRate) and known.mean * both * min(share, 1 - share) < MIN_EVEN:  # too rare for the normal sequence
        hits = [round(known.mean * rows) for rows in (old, new)]
        bounds = [rate_interval(hits[side], max(round(rows), 1), alpha=alpha / 4) for side, rows in enumerate((old, new))]
        return bounds[0][1] - bounds[0][0] + bounds[1][1] - bounds[1][0]
    if min(old, new) < MIN_KEYS:
        return math.inf
    alpha = alpha / 2 if isinstance(metric, ErrorRate) else alpha
    deviation = known.deviation / math.sqrt(share * (1 - share))
    return radius(round(both), deviation**2, alpha=alpha, target_rows=TARGET_KEYS) + CHANCE * deviation / math.sqrt(both)


def _quantile_distance(quantile: float, old: int, new: int, traffic: Traffic, *, alpha: float) -> float:
    """Bounds of both sides' quantiles where latencies are lognormal, and the deviation of their difference."""
    if min(old, new) < 1:
        return math.inf
    z, reach, variance = float(ndtri(quantile)), 0.0, 0.0
    for rows, upper in ((old, False), (new, True)):
        fewest, most = rank_bounds(rows, quantile, alpha=alpha / 2)
        place = most + 1 if upper else fewest
        if not 0 < place <= rows:
            return math.inf
        reach += abs(float(ndtri((place - 0.5) / rows)) - z)
        density = math.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
        variance += quantile * (1 - quantile) / (density**2 * rows)
    center = traffic.latency_ms * math.exp(traffic.latency_spread * z)
    return center * math.expm1(traffic.latency_spread * (reach + CHANCE * math.sqrt(variance)))
