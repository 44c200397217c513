"""Is the traffic divided as the weights say?

Where it is not, one version's rows are missing or its keys are not what was drawn, and every comparison is in doubt: a challenger that
crashes before it logs, or refuses rows the champion accepts, looks better than it is. Keys count, since one busy client moves requests
but not keys. The test is a bet on the version in both directions, a sequential test of a sample ratio as in Lindon and Malek (2022).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raymlp.serve.rollout.facts import Check, Step, counts
from raymlp.serve.rollout.sequential import Outcome, bets_since, from_any_step

ODDS = (1.02, 1.05, 1.1, 1.2, 1.5, 2.0, 5.0)
"""Alternatives: how far the odds of the challenger may be off, up and down."""


def check_ratio(steps: Sequence[Step]) -> Check:
    """Harm: an e-value against "every new key is the challenger's with the chance that its weight says"."""
    compared = [step for step in steps if 0 < step.weight < 1]
    if not compared:
        return Check("ratio", 0.0, None, "nothing is divided yet")
    old, new = counts([step.keys for step in compared])
    weights = [step.weight for step in compared]
    harm = float(from_any_step(bets_since([Outcome(old, new, (*ODDS, *(1 / odds for odds in ODDS)))], weights)))
    expected = float(((old + new) * np.asarray(weights)).sum())
    return Check(
        "ratio", harm, None, f"{int(new.sum()):,} of {int((old + new).sum()):,} keys were the challenger's, {expected:,.0f} expected"
    )
