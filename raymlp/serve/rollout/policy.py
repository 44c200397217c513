"""Hold, advance, promote, roll back or pause: what the facts of a rollout say, however often they are looked at.

Roll back when the average e-value of the guards against "no worse" reaches 1 / alpha: an equal challenger is rolled back with a chance
of at most alpha over all guards and the whole rollout. Promote when every guard's e-value against "beyond the margin" does: a
challenger beyond a margin is promoted with a chance of at most alpha. Between the two, traffic grows step by step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from raymlp.config.rollout import Rollout
from raymlp.core.records import Decision
from raymlp.serve.rollout.business import check_business
from raymlp.serve.rollout.distribution import check_distribution
from raymlp.serve.rollout.errors import check_errors
from raymlp.serve.rollout.facts import Check, Evidence, Position, as_facts
from raymlp.serve.rollout.latency import check_latency
from raymlp.serve.rollout.quality import check_quality
from raymlp.serve.rollout.ratio import check_ratio
from raymlp.serve.rollout.sequential import mean_of


def decide(evidence: Evidence, position: Position, settings: Rollout) -> Decision:
    """`hold`, `advance` (to `next_weight`), `promote`, `rollback` or `pause`, with the figures behind it."""
    guards, ratio = guards_of(evidence, settings), check_ratio(evidence.steps)
    facts = as_facts(evidence, position, [*guards, ratio])
    certain = -math.log(settings.alpha)
    judged = [guard for guard in guards if guard.guard != "distribution" or settings.distribution.on_shift == "rollback"]
    doubtful = [guard for guard in guards if guard.fine is not None and guard.fine < certain]
    to = next_weight(position.weight, settings.weights)
    wanting = _wanting(evidence, position, settings)
    shift = "" if "distribution" in position.accepted else _unexplained_shift(guards, certain)

    if float(mean_of([guard.harm for guard in judged])) >= certain:
        worst = max(judged, key=lambda guard: guard.harm)
        return Decision("rollback", f"{worst}: worse", facts)
    if ratio.harm >= -math.log(settings.ratio_alpha) and "ratio" not in position.accepted:
        reason = f"{ratio}: the traffic is not divided by its weights, so nothing can be compared"
        return Decision("pause", reason, {**facts, "paused_by": "ratio"})
    if to is None and not wanting and not shift and (position.weight == 1 or not doubtful):
        return Decision("promote", f"{_told(guards)}: no worse", facts)
    if limit := _spent(evidence, position, settings):
        return Decision("rollback", f"no verdict after {limit} ({_told(doubtful) or wanting or shift})", facts)
    if wanting:
        return Decision("hold", wanting, facts)
    if shift:
        if settings.distribution.on_shift == "pause":
            return Decision("pause", shift, {**facts, "paused_by": "distribution"})
        return Decision("hold", shift, facts)
    if to is not None and (to < 1 or not doubtful):
        return Decision("advance", f"to {to:.4g} of the traffic; {_told(guards)}", facts)
    return Decision("hold", f"{_told(doubtful)}: not certain yet", facts)


def guards_of(evidence: Evidence, settings: Rollout) -> list[Check]:
    """What each guard that is switched on says. Without answers there is no quality, and no predictions that could be compared."""
    steps = evidence.steps
    found = [
        check_errors(steps, settings.errors),
        check_latency(steps, evidence.latency_reference, settings.latency),
    ]
    if evidence.has_answers:
        found.append(check_quality(evidence.loss, evidence.ranking, settings.quality, alpha=settings.alpha))
    if evidence.has_answers and settings.distribution.max_gap is not None:
        found.append(check_distribution(steps, evidence.scores, settings.distribution))
    if settings.business is not None:
        found.append(check_business(steps, settings.business, alpha=settings.alpha))
    return found


def next_weight(weight: float, plan: Sequence[float]) -> float | None:
    """The first share of the plan above this one; None at its end."""
    return next((share for share in plan if share > weight + 1e-9), None)


def _wanting(evidence: Evidence, position: Position, settings: Rollout) -> str:
    """What the step still lacks in requests or time; empty when nothing."""
    answered = evidence.at(position.weight).requests.challenger
    lacks = []
    if answered < settings.min_requests:
        lacks.append(f"{answered:,} of {settings.min_requests:,} challenger requests")
    if position.step_s < settings.min_step_s:
        lacks.append(f"{position.step_s:,.0f} of {settings.min_step_s:,.0f} s")
    return f"{' and '.join(lacks)} at {position.weight:.4g} of the traffic so far" if lacks else ""


def _spent(evidence: Evidence, position: Position, settings: Rollout) -> str:
    """The limit that is reached, in words; empty when none is."""
    if evidence.requests >= settings.max_requests:
        return f"{evidence.requests:,} requests"
    return f"{position.total_s:,.0f} s" if position.total_s >= settings.max_s else ""


def _unexplained_shift(guards: Sequence[Check], certain: float) -> str:
    """The words of a shift of the answers that labels have not shown to be harmless; empty without one."""
    by_name = {guard.guard: guard for guard in guards}
    shift, quality = by_name.get("distribution"), by_name.get("quality")
    if shift is None or quality is None or shift.harm < certain or (quality.fine is not None and quality.fine >= certain):
        return ""
    return f"{shift}, and labels do not show yet that they are no worse"


def _told(guards: Sequence[Check]) -> str:
    return "; ".join(map(str, guards))
