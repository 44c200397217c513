"""What each metric says of each arm, and whether the traffic is divided as it should be.

Every interval has a part of alpha of its own (`Experiment.alpha_of`), so that with a chance of 1 - alpha none of them ever misses its
true difference, whatever ties arms and metrics together and however often one looks (Bonferroni: the only correction that also gives
intervals which hold together; a step-down like Holm's gives decisions alone).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from raymlp.config.experiment import Business, ErrorRate, Experiment, LatencyQuantile, Metric, Quality
from raymlp.serve.experiment.intervals import UNKNOWN, Effect, Floats, mean_effect, paired_effect, quantile_effect, rate_effect
from raymlp.serve.experiment.observations import Observations, Seen
from raymlp.serve.rollout.ratio import ODDS
from raymlp.serve.rollout.sequential import mean_of

Finding = Literal["better", "worse", "no difference", "no worse", "undecided"]


@dataclass(frozen=True)
class Reading:
    """One metric of one arm. `margin` is in the metric's unit, NaN while the control's value is not known; `sign` is 1 where higher is
    better and -1 where lower is. `why` says what is missing for an interval."""

    metric: str
    kind: str
    arm: int
    effect: Effect
    margin: float
    sign: int
    why: str = ""

    @property
    def gain(self) -> tuple[float, float, float]:
        """The difference and its interval turned so that positive is better."""
        effect = self.effect
        if self.sign > 0:
            return effect.difference, effect.low, effect.high
        return -effect.difference, -effect.high, -effect.low

    @property
    def finding(self) -> Finding:
        """What the interval shows. `better` and `worse` are beyond 0; `no difference` is within the margin on both sides, `no worse` above
        minus the margin."""
        _, low, high = self.gain
        if low > 0:
            return "better"
        if high < 0:
            return "worse"
        if low > -self.margin:
            return "no difference" if high < self.margin else "no worse"
        return "undecided"

    @property
    def is_broken(self) -> bool:
        """As a guard rail: certainly worse by more than the margin."""
        return self.gain[2] < -self.margin

    @property
    def is_held(self) -> bool:
        """As a guard rail: certainly no worse than by the margin."""
        return self.gain[1] > -self.margin


@dataclass(frozen=True)
class Ratio:
    """Keys of each arm beside those to expect, and the natural logarithm of an e-value against "the traffic is divided by its weights"."""

    keys: tuple[int, ...]
    expected: tuple[float, ...]
    log_e: float

    def is_off(self, alpha: float) -> bool:
        """Whether that is refuted."""
        return self.log_e >= -math.log(alpha)


def readings(seen: Observations, settings: Experiment) -> list[list[Reading]]:
    """By metric, the primary one first, and arm, the control left out."""
    arms = range(1, seen.shares.shape[1])
    return [[read(seen, metric, arm, alpha=settings.alpha_of(place)) for arm in arms] for place, metric in enumerate(settings.metrics)]


def read(seen: Observations, metric: Metric, arm: int, *, alpha: float) -> Reading:
    """One metric of one arm."""
    match metric:
        case ErrorRate():
            effect = rate_effect(*seen.failed.pair(arm, seen.shares), alpha=alpha)
            return _told(metric, arm, effect, metric.margin, -1, "keys")
        case Business():
            values = seen.business.get(metric.column, Seen.none())
            effect = mean_effect(*values.pair(arm, seen.shares), alpha=alpha)
            margin = metric.margin * abs(effect.control)
            return _told(metric, arm, effect, margin, 1 if metric.higher_is_better else -1, f"keys with a value of {metric.column}")
        case LatencyQuantile():
            old, new = seen.latency_ms.of(0), seen.latency_ms.of(arm)
            effect = quantile_effect(old, new, metric.quantile, alpha=alpha)
            if not seen.is_divided_evenly_over_time:
                effect = replace(effect, low=-math.inf, high=math.inf)
            return _told(metric, arm, effect, metric.margin * abs(effect.control), -1, "answers, or shares that changed")
        case Quality():
            by_block = metric.measure == "auc"
            old, new = (seen.labelled.measured(metric.measure, place) for place in (0, arm))
            effect = paired_effect(old, new, alpha=alpha, by_block=by_block) if len(old) else UNKNOWN
            return _told(metric, arm, effect, metric.margin, -1 if metric.measure == "loss" else 1, "labelled rows")


def _told(metric: Metric, arm: int, effect: Effect, margin: float, sign: int, wanting: str) -> Reading:
    return Reading(metric.name, metric.kind, arm, effect, margin, sign, "" if effect.is_known else f"too few {wanting}")


def check_ratio(seen: Observations) -> Ratio:
    """A bet on the arm of every new key: that one arm's odds are a multiple of what its weight says, over all arms and multiples; a
    sequential multinomial test as in Lindon and Malek (2022), with alternatives that keep their meaning when the weights change."""
    counts, shares = seen.keys_by_stretch(), seen.shares
    expected = (counts.sum(axis=1, keepdims=True) * shares).sum(axis=0)
    found = [_bet(counts, shares, arm, odds) for arm in range(shares.shape[1]) for odds in (*ODDS, *(1 / odds for odds in ODDS))]
    return Ratio(seen.keys, tuple(expected.tolist()), float(mean_of(found)) if counts.size else 0.0)


def _bet(counts: Floats, shares: Floats, arm: int, odds: float) -> float:
    total = np.log1p(shares[:, arm] * (odds - 1))
    return float(counts[:, arm].sum() * math.log(odds) - (counts.sum(axis=1) * total).sum())
