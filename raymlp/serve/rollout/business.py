"""Is a number that people care about lower on the challenger's traffic?

On each version's own traffic, since such a number depends on the prediction. Within a step, (A - w) (Y - m) has mean w (1 - w) times the
effect, with A = 1 for the challenger's keys, w its share and m the mean of the step: summed over steps it estimates the effect at
equal times, whatever the number did from hour to hour. The test is asymptotic (see `sequential.mean_above`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from raymlp.config.rollout import Business
from raymlp.serve.rollout.facts import Check, Moments, Step
from raymlp.serve.rollout.sequential import mean_above

MIN_KEYS = 100
"""Keys of each version below which nothing is said: the test is asymptotic."""

TARGET_KEYS = 2_000
"""Keys of the challenger at which the test is sharpest."""


def check_business(steps: Sequence[Step], settings: Business, *, alpha: float) -> Check:
    """Harm: a loss of more than `tolerated` of the champion's mean. Fine: certainly less than `margin`."""
    compared = [step for step in steps if 0 < step.weight < 1 and step.business[0].rows + step.business[1].rows]
    old, new = (_sum([step.business[side] for step in compared]) for side in (0, 1))
    if min(old.rows, new.rows) < MIN_KEYS:
        return Check("business", 0.0, 0.0, f"{settings.column} is known of {new.rows:,} of the challenger's keys; too few to judge")
    total, variance, information = (sum(values) for values in zip(*map(_effect, compared), strict=True))
    champion_mean = old.total / old.rows
    told = f"{settings.column} {total / information:+.4g} beside {champion_mean:.4g} on {new.rows:,} of the challenger's keys"

    def log_e(sign: float, allowed: float) -> float:
        moved = sign * (total + allowed * abs(champion_mean) * information)
        return mean_above(new.rows, moved, variance, alpha=alpha, target_rows=TARGET_KEYS)

    return Check("business", log_e(-1, settings.tolerated), log_e(1, settings.margin), told)


def _effect(step: Step) -> tuple[float, float, float]:
    """Sum of (A - w) (Y - m), its variance, and what an effect of 1 adds to the sum."""
    share, (old, new) = step.weight, step.business
    rows = old.rows + new.rows
    mean = (old.total + new.total) / rows
    total = (1 - share) * (new.total - new.rows * mean) - share * (old.total - old.rows * mean)
    variance = (1 - share) ** 2 * _spread(new, mean) + share**2 * _spread(old, mean)
    return total, variance, rows * share * (1 - share)


def _spread(values: Moments, mean: float) -> float:
    return max(0.0, values.squares - 2 * mean * values.total + values.rows * mean**2)


def _sum(parts: Sequence[Moments]) -> Moments:
    return Moments(sum(p.rows for p in parts), math.fsum(p.total for p in parts), math.fsum(p.squares for p in parts))
