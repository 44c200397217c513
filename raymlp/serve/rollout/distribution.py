"""Does the challenger give other answers?

Predictions are counted in cells that the champion's first ones set. For the tails of an ordered range (the lower and the upper tenth,
fifth, ... half) or for each class, a bet on the version asks whether the challenger's fall there more often than (s + gap) / s times as
often as the champion's, s being the champion's share at the start. The mean over tails or classes is a multinomial test that holds
however often it is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raymlp.config.rollout import Distribution
from raymlp.serve.rollout.facts import Check, Floats, Scores, Step
from raymlp.serve.rollout.sequential import Outcome, bets_since, from_any_step, mean_of

REFERENCE_ROWS = 200
"""Champion's predictions that set the cells."""

CELLS = 10
"""Cells of a number, as even as its values allow."""

MIN_REQUESTS = 30
"""Challenger's predictions below which nothing is held against it."""

MORE = (1.15, 1.4, 2.0, 4.0)
"""Alternatives: multiples of the share that is allowed."""


def check_distribution(steps: Sequence[Step], scores: Scores, settings: Distribution) -> Check:
    """Harm: moved by more than `max_gap`. Promotion never asks for the opposite."""
    cells = len(scores.reference)
    if settings.max_gap is None or cells < 2:
        return Check("distribution", 0.0, None, "not looked at")
    old, new = (np.array([step.scores[side] or (0,) * cells for step in steps], dtype=np.float64).reshape(-1, cells) for side in (0, 1))
    weights, seen = [step.weight for step in steps], int(new.sum())
    found = _bets(old, new, weights, scores, settings.max_gap)
    harm = float(mean_of(found)) if len(found) and steps else 0.0
    told = f"answers moved by {gap(old.sum(axis=0), new.sum(axis=0), ordered=scores.ordered):.2f} on {seen:,} requests"
    return Check("distribution", harm if seen >= MIN_REQUESTS else min(harm, 0.0), None, told)


def gap(champion: Floats, challenger: Floats, *, ordered: bool) -> float:
    """Largest difference of the two cumulative shares (ordered cells), or half the sum of the differences of the shares; in [0, 1].
    Counts by cell, (C,); 0 when a side has none."""
    if not champion.sum() or not challenger.sum():
        return 0.0
    difference = challenger / challenger.sum() - champion / champion.sum()
    return float(np.abs(np.cumsum(difference)).max() if ordered else np.abs(difference).sum() / 2)


def _events(scores: Scores) -> list[tuple[slice, float]]:
    """Cells that are looked at together, and the champion's share in them, of at most a half."""
    counts = np.array(scores.reference, dtype=np.float64)
    shares = np.maximum(counts, 1.0) / counts.sum()
    if not scores.ordered:
        return [(slice(cell, cell + 1), float(share)) for cell, share in enumerate(shares)]
    tails = (tail for cut in range(1, len(shares)) for tail in (slice(0, cut), slice(cut, None)))
    return [(tail, share) for tail in tails if (share := float(shares[tail].sum())) <= 0.5]


def _bets(old: Floats, new: Floats, weights: Sequence[float], scores: Scores, max_gap: float) -> Floats:
    """A log e-value for each event, (T,), from counts by step and cell, (S, C); 0 where a move of `max_gap` is more than there is."""
    events = _events(scores)
    open_to_more = [(tail, share) for tail, share in events if share + max_gap < 1]
    if not open_to_more:
        return np.zeros(len(events))
    allowed = tuple((share + max_gap) / share for _, share in open_to_more)
    alternatives = tuple(
        tuple(min(most * factor, 1 / share) for factor in MORE) for most, (_, share) in zip(allowed, open_to_more, strict=True)
    )
    counts = [np.stack([side[:, tail].sum(axis=1) for tail, _ in open_to_more]) for side in (old, new)]
    found = from_any_step(bets_since([Outcome(counts[0], counts[1], alternatives, allowed)], weights))
    return np.concatenate([found, np.zeros(len(events) - len(open_to_more))])
