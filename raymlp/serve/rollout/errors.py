"""Does the challenger fail more often?

Beside the champion by a bet on the version (see `sequential`), and only where its rate is above what is tolerated in any case: both
must be credible, so the smaller e-value counts. Beside a fixed limit by a likelihood ratio of its own requests.

The bet takes each key's first failure in the rollout: all it needs is that chance deals the keys. A rate takes each key's first request
in a step, failed or not. First failures over first requests would be no rate: keys that come back fail some day, every one of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raymlp.config.rollout import Errors
from raymlp.serve.rollout.facts import Check, Step, counts
from raymlp.serve.rollout.sequential import Outcome, bet, bets_since, from_any_step, mean_of, rate_above, rate_below, since_each

MIN_ERRORS = 5
"""Keys that failed with the challenger below which nothing is held against it."""

MORE = (1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0)
"""Alternatives of the tests for harm: multiples of the champion's rate, or of a limit."""

LESS = (0.8, 0.65, 0.5, 0.3, 0.1)
"""Alternatives of the test for no harm: multiples of the largest ratio that need not be excluded."""

FEWER = (0.6, 0.3, 0.1, 0.0)
"""Alternatives of the test of an acceptable rate: multiples of it."""


def check_errors(steps: Sequence[Step], settings: Errors) -> Check:
    """Harm: above the champion's rate and above `tolerated`, or above `limit`. Fine: below 1 + `margin` of the champion's, or below
    `acceptable`."""
    weights = [step.weight for step in steps]
    old, new = counts([step.errors for step in steps])
    (old_failed, new_failed), (old_trials, new_trials) = counts([s.failed for s in steps]), counts([s.trials for s in steps])
    failed, tried = int(new_failed.sum()), int(new_trials.sum())

    since, trials_since = since_each(new_failed), since_each(new_trials)
    harms = bets_since([Outcome(old, new, MORE)], weights)
    if settings.tolerated > 0:
        harms = np.minimum(harms, rate_above(since, trials_since, limit=settings.tolerated, factors=MORE))
    found = [from_any_step(harms)]
    if settings.limit is not None:
        found.append(from_any_step(rate_above(since, trials_since, limit=settings.limit, factors=MORE)))
    harm = float(mean_of(found))

    widest = 1 + settings.margin
    beside = bet([Outcome(old, new, tuple(widest * factor for factor in LESS), widest)], weights)
    alone = rate_below(failed, tried, limit=settings.acceptable, factors=FEWER)
    fine = float(mean_of([float(beside), float(alone)]))

    told = f"{_told(failed, tried)}, champion {_told(int(old_failed.sum()), int(old_trials.sum()), failed='')}"
    return Check("errors", harm if new.sum() >= MIN_ERRORS else min(harm, 0.0), fine, told)


def _told(hits: int, trials: int, failed: str = " failed") -> str:
    return f"{hits:,} of {trials:,}{failed}" + (f" ({hits / trials:.2%})" if trials else "")
