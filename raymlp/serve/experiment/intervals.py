"""Differences between an arm and the control, with intervals that hold at every moment at once (confidence sequences).

Means. With A = 1 for the arm's keys, 0 for the control's, w the arm's share of the two when the key came and m the mean of the stretch
of time in which the shares stood, (A - w) (Y - m) has mean w (1 - w) times the effect. Summed over stretches it estimates the effect at
equal times whatever the metric did from hour to hour, and it stays right when the shares follow what was seen (a bandit), since w is known
before the key comes; then it is the logged share that weighs each key, as in the adaptively weighted sequences of Waudby-Smith, Wu,
Ramdas, Karampatziakis and Mineiro (2022). The interval is the asymptotic sequence of Waudby-Smith, Arbour, Sinha, Kennedy and
Ramdas (2021), with the larger of two variances: that of the sum itself, and w (1 - w) (Y - m)^2, which the dealing of the keys gives and
which does not shrink when a small arm happens to have had none of the rare events.

Rates of failure have bounds from exact binomial likelihood ratios beside it, since failures may be rare or none.

Quantiles. The number of values at or below the true quantile q is a count of coins with the known chance q. A beta mixture of
likelihood ratios bounds such a count at all times (Robbins 1970; Howard and Ramdas 2022), and order statistics turn the bounds of the
count into bounds of the quantile: nothing about it is asymptotic, but the values of an arm must be alike over time, so the shares must
stand still.

Legend: N keys of the arm and the control in the order of time, S stretches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln

from raymlp.serve.rollout.quality import BURN_IN, RANKING_BLOCK, RANKING_BURN_IN, TARGET_ROWS
from raymlp.serve.rollout.sequential import radius, tuning

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

MIN_KEYS = 100
"""Keys of each side below which a mean has no interval: it is asymptotic."""

MIN_EVEN = 10.0
"""Least even number of values, (sum d^2)^2 / sum d^4 of what they are away from the mean, times the smaller share: a mean of rare events or
of a few large sums has no interval before some of them are to be expected on each side."""

TARGET_KEYS = 4_000
"""Keys of both sides at which the interval is narrowest for their number."""


REACH = 12.0
"""Deviations of a count within which its bounds are looked for; they lie far inside for any alpha above 1e-20."""


@dataclass(frozen=True)
class Effect:
    """The control's value, and the arm's minus the control's with its interval, infinite where nothing can be said yet. `deviation` is
    the standard error of the difference, NaN where there is none. `rows` are the arm's keys, or the rows of a paired comparison."""

    rows: int
    control: float
    difference: float
    low: float
    high: float
    deviation: float = math.nan

    @property
    def is_known(self) -> bool:
        """Whether there is an interval."""
        return math.isfinite(self.low) and math.isfinite(self.high)


UNKNOWN = Effect(0, math.nan, math.nan, -math.inf, math.inf)


def mean_effect(y: Floats, arm: Mask, share: Floats, stretch: NDArray[np.int64], *, alpha: float) -> Effect:
    """Effect on a mean: values, whose they are, the arm's share of the two sides at the time, the number of the stretch; all (N,)."""
    theirs = int(arm.sum())
    if not 0 < theirs < len(y):
        return Effect(theirs, float(y.mean()) if len(y) and not theirs else math.nan, math.nan, -math.inf, math.inf)
    held = np.bincount(stretch)
    away = y - (np.bincount(stretch, y) / np.maximum(held, 1))[stretch]
    drawn = share * (1 - share)
    moved, information = (arm - share) * away, float(drawn.sum())
    variance = max(float((moved**2).sum()), float((drawn * away**2).sum()))
    difference, control = float(moved.sum()) / information, float(y[~arm].mean())
    squares, fourth = float((away**2).sum()), float((away**4).sum())
    even = squares**2 / fourth * float(np.minimum(share, 1 - share).mean()) if fourth > 0 else 0.0
    if min(theirs, len(y) - theirs) < MIN_KEYS or even < MIN_EVEN:
        return Effect(theirs, control, difference, -math.inf, math.inf)
    half = len(y) * radius(len(y), variance / len(y), alpha=alpha, target_rows=TARGET_KEYS) / information
    return Effect(theirs, control, difference, difference - half, difference + half, math.sqrt(variance) / information)


def rate_effect(y: Floats, arm: Mask, share: Floats, stretch: NDArray[np.int64], *, alpha: float) -> Effect:
    """`mean_effect` of values that are 0 or 1, at half of alpha, within bounds from each side's rate at the other half. Those need no event
    at all, so that two versions without a failure are known to be alike. Once the shares have changed, the sides' rates are those of
    other hours, and it is only used that the other side's is no less than 0."""
    rough = mean_effect(y, arm, share, stretch, alpha=alpha / 2)
    theirs = y[arm]
    if not 0 < len(theirs) < len(y):
        return rough
    _, old_high = old = rate_interval(int(y.sum() - theirs.sum()), len(y) - len(theirs), alpha=alpha / 4)
    _, new_high = new = rate_interval(int(theirs.sum()), len(theirs), alpha=alpha / 4)
    low, high = (new[0] - old_high, new_high - old[0]) if stretch[0] == stretch[-1] else (-old_high, new_high)
    if max(low, rough.low) > min(high, rough.high):
        return rough
    return replace(rough, low=max(low, rough.low), high=min(high, rough.high))


def rate_interval(hits: int, trials: int, *, alpha: float) -> tuple[float, float]:
    """Bounds of a rate in [0, 1] that hold at all times: the p for which the likelihood ratio B(.5 + k, .5 + n - k) / (B(.5, .5) p^k
    (1 - p)^(n - k)), a mixture over Beta(.5, .5), is below 1 / alpha."""
    mixed = float(betaln(0.5 + hits, 0.5 + trials - hits) - betaln(0.5, 0.5)) + math.log(alpha)

    def refuted(p: float) -> bool:
        return mixed - hits * math.log(p) - (trials - hits) * math.log1p(-p) >= 0

    ends = []
    for inside, outside in ((hits / trials, 0.0), (hits / trials, 1.0)):
        for _ in range(50 if inside != outside else 0):
            middle = (inside + outside) / 2
            inside, outside = (inside, middle) if refuted(middle) else (middle, outside)
        ends.append(outside)
    return ends[0], ends[1]


def paired_effect(control: Floats, arm: Floats, *, alpha: float, by_block: bool = False) -> Effect:
    """Effect on a mean where both versions have a value for the same row, (N,); `by_block` where a value is that of 16 rows."""
    rows = len(arm)
    if rows == 0:
        return UNKNOWN
    difference = arm - control
    mean, value = float(difference.mean()), float(control.mean())
    if rows < (RANKING_BURN_IN if by_block else BURN_IN):
        return Effect(rows, value, mean, -math.inf, math.inf)
    variance = float(difference.var(ddof=1))
    half = radius(rows, variance, alpha=alpha, target_rows=TARGET_ROWS / (RANKING_BLOCK if by_block else 1))
    return Effect(rows, value, mean, mean - half, mean + half, math.sqrt(variance / rows))


def quantile_effect(control: Floats, arm: Floats, quantile: float, *, alpha: float) -> Effect:
    """Effect on a quantile of two sides' values, (N,) each, from an interval of each at alpha / 2."""
    if not len(control) or not len(arm):
        return Effect(len(arm), math.nan, math.nan, -math.inf, math.inf)
    old, old_low, old_high = quantile_interval(control, quantile, alpha=alpha / 2)
    new, new_low, new_high = quantile_interval(arm, quantile, alpha=alpha / 2)
    return Effect(len(arm), old, new - old, new_low - old_high, new_high - old_low)


def quantile_interval(values: Floats, quantile: float, *, alpha: float) -> tuple[float, float, float]:
    """The ceil(q n)-th smallest of the values, (N,), and bounds that hold for the true quantile at all times; infinite while the values are
    too few."""
    rows = len(values)
    fewest, most = rank_bounds(rows, quantile, alpha=alpha)
    place = max(math.ceil(quantile * rows), 1)
    ranked = np.partition(values, sorted({place - 1, max(fewest - 1, 0), min(most, rows - 1)}))
    low = float(ranked[fewest - 1]) if fewest > 0 else -math.inf
    high = float(ranked[most]) if most < rows else math.inf
    return float(ranked[place - 1]), low, high


def rank_bounds(rows: int, quantile: float, *, alpha: float) -> tuple[int, int]:
    """Fewest and most of `rows` values that lie at or below the true quantile, at all times with a chance of 1 - alpha.

    Those k for which the mean likelihood ratio B(a + k, b + n - k) / (B(a, b) q^k (1 - q)^(n - k)) is below 1 / alpha, where a and b are
    the shares q and 1 - q of `TARGET_KEYS / tuning(alpha)` coins.
    """
    weight = TARGET_KEYS / tuning(alpha)
    a, b = quantile * weight, (1 - quantile) * weight
    reach = REACH * math.sqrt(rows * quantile * (1 - quantile)) + REACH
    k = np.arange(max(0, math.floor(quantile * rows - reach)), min(rows, math.ceil(quantile * rows + reach)) + 1)
    log_e = betaln(a + k, b + rows - k) - betaln(a, b) - k * math.log(quantile) - (rows - k) * math.log1p(-quantile)
    kept = k[log_e < -math.log(alpha)]
    return int(kept[0]), int(kept[-1])
