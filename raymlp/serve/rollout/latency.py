"""Is the challenger slower?

For each quantile the champion's first requests, once the rollout has settled, set a time t. From then on a champion's request is slow
above t, and a challenger's above t * (1 + tolerated); a bet on the version asks whether slow ones are more often the challenger's. That is
the statement "its quantile is above the champion's by more than is tolerated" with nothing but counts from histograms, and unlike two
confidence sequences for quantiles (Howard and Ramdas 2022) it compares requests of the same time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from raymlp.config.rollout import Latency
from raymlp.serve.rollout.facts import BINS_PER_OCTAVE, Check, Floats, Histogram, Pair, Step, counts, upper_ms
from raymlp.serve.rollout.sequential import Outcome, bets_since, from_any_step, mean_of

REFERENCE_REQUESTS = 200
"""Champion's requests that set what is slow."""

SETTLES_S = 2.0
"""Seconds from a rollout's first request that do not count: the process that probed the challenger ends beside it, and what is slow then is
slow for both."""

MIN_REQUESTS = 30
"""Challenger's requests below which nothing is held against it."""

SLOWER = (1.25, 1.6, 2.5, 5.0, 15.0)
"""Alternatives of the test for harm: odds of being slow, as multiples of the champion's."""

FASTER = (0.8, 0.6, 0.4, 0.15)
"""Alternatives of the test for no harm."""


def check_latency(steps: Sequence[Step], reference: Histogram, settings: Latency) -> Check:
    """Harm: the mean e-value over the quantiles. Fine: every quantile must be, so the smallest counts."""
    old, new = (Histogram.merged([step.latency[side] for step in steps]) for side in (0, 1))
    if reference.total < REFERENCE_REQUESTS:
        return Check("latency", 0.0, 0.0, f"{reference.total:,} of the champion's first {REFERENCE_REQUESTS:,} requests are there")
    harms, fines = [], []
    for quantile in settings.quantiles:
        # What is slow begins after the quantile's bin for harm and with it for its absence, so that both work for latencies that are
        # all the same.
        place = reference.quantile_bin(quantile)
        harms.append(_bets(steps, reference, place + 1, settings.tolerated, settings.slack_ms, math.ceil, SLOWER))
        fines.append(_bets(steps, reference, place, settings.margin, settings.slack_ms, math.floor, FASTER))
    harm = float(mean_of([float(from_any_step(found)) for found in harms]))
    fine = min(float(found[0]) for found in fines) if steps else 0.0
    told = ", ".join(f"p{100 * q:g} {new.quantile_ms(q):.1f} ms beside {old.quantile_ms(q):.1f} ms" for q in settings.quantiles)
    return Check("latency", harm if new.total >= MIN_REQUESTS else min(harm, 0.0), fine, f"{told} on {new.total:,} requests")


def _shifted(slow: int, share: float, slack_ms: float, whole: Callable[[float], int]) -> int:
    """The bin from which a challenger's request is slow, when from `slow` on a champion's is. Rounded up, harm is never called too
    early; rounded down, neither is its absence."""
    time_ms = upper_ms(slow - 1)
    allowed_ms = max(time_ms * (1 + share), time_ms + slack_ms)
    return max(slow, whole(BINS_PER_OCTAVE * math.log2(allowed_ms) - 1e-9))


def _bets(
    steps: Sequence[Step],
    reference: Histogram,
    champion_bin: int,
    share: float,
    slack_ms: float,
    whole: Callable[[float], int],
    odds: Sequence[float],
) -> Floats:
    """The reference's share of slow requests aims the alternatives; validity does not need it."""
    challenger_bin = _shifted(champion_bin, share, slack_ms, whole)
    nominal = min(max(reference.from_bin(champion_bin) / reference.total, 0.001), 0.999)
    old_slow, new_slow = counts([Pair(step.latency[0].from_bin(champion_bin), step.latency[1].from_bin(challenger_bin)) for step in steps])
    old, new = counts([Pair(step.latency[0].total, step.latency[1].total) for step in steps])
    slow = tuple(ratio / (1 + nominal * (ratio - 1)) for ratio in odds)
    quick = tuple((1 - nominal * ratio) / (1 - nominal) for ratio in slow)
    outcomes = [Outcome(old_slow, new_slow, slow), Outcome(old - old_slow, new - new_slow, quick)]
    return bets_since(outcomes, [step.weight for step in steps])
