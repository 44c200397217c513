"""Thompson sampling: an arm's share of traffic is the chance that it is the best, given what was seen (Thompson 1933; Russo et al. 2018).

The posterior is Beta(1 + hits, 1 + misses) where every value is 0 or 1, else normal around the mean with its standard error. Shares have a
floor, so that the weight of each key in the intervals (`intervals`) stays bounded. All times are pooled here: a trend that moves all
arms favours those that had more traffic in good hours; the intervals, which compare at equal times, do not have that fault.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from raymlp.config.experiment import Bandit, Business, ErrorRate, Metric, Quality
from raymlp.core.errors import ConfigError
from raymlp.serve.experiment.intervals import Floats
from raymlp.serve.experiment.observations import Observations, Seen

DRAWS = 20_000
"""Draws of the posterior; a chance is known to within 0.4 %."""

MIN_VALUES = 30
"""Values an arm needs before a normal posterior is believed; until all have them, the shares stay."""


def rewards(seen: Observations, metric: Metric) -> list[Floats]:
    """The primary metric's values by arm, turned so that more is better."""
    match metric:
        case ErrorRate():
            return _by_arm(seen.failed, seen, lambda values: 1 - values)
        case Business():
            values = seen.business.get(metric.column, Seen.none())
            return _by_arm(values, seen, lambda found: found if metric.higher_is_better else -found)
        case Quality():
            sign = -1.0 if metric.measure == "loss" else 1.0
            return [sign * seen.labelled.measured(metric.measure, arm) for arm in range(seen.shares.shape[1])]
    raise ConfigError(f"{metric.name} is no mean over keys; expected errors, business or quality as the primary metric of a bandit.")


def shares(values: Sequence[Floats], current: Sequence[float], settings: Bandit, *, seed: int) -> tuple[float, ...]:
    """The next shares, which sum to 1; the current ones while an arm has too few values. The same values and seed give the same."""
    chances = best_chances(values, seed=seed)
    if chances is None:
        return tuple(current)
    arms = len(values)
    kept = settings.floor + (1 - arms * settings.floor) * chances
    rounded = np.round(kept, 4)
    rounded[0] += 1 - rounded.sum()
    return tuple(float(share) for share in rounded)


def best_chances(values: Sequence[Floats], *, seed: int) -> Floats | None:
    """The chance of each arm to have the highest mean, (K,); None while one has too few values."""
    rng = np.random.default_rng(seed)
    if all(np.isin(found, (0.0, 1.0)).all() for found in values):
        drawn = np.stack([rng.beta(1 + found.sum(), 1 + len(found) - found.sum(), DRAWS) for found in values])
    elif any(len(found) < MIN_VALUES for found in values):
        return None
    else:
        errors = [float(found.std(ddof=1)) / np.sqrt(len(found)) for found in values]
        drawn = np.stack([rng.normal(found.mean(), error, DRAWS) for found, error in zip(values, errors, strict=True)])
    return np.bincount(drawn.argmax(axis=0), minlength=len(values)) / DRAWS


def _by_arm(values: Seen, seen: Observations, turned: Callable[[Floats], Floats]) -> list[Floats]:
    return [turned(values.of(arm)) for arm in range(seen.shares.shape[1])]
