"""When to train again: facts in, decision with its reason out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from raymlp.config.retrain import Retrain
from raymlp.core.records import Decision


@dataclass(frozen=True)
class RetrainFacts:
    """What the policy looks at."""

    alerts: Mapping[str, int]
    """Kind of finding to the number of alerts of that kind in the newest window."""
    new_rows: int
    """Rows newer than the champion's training data: labelled ones, or all of a task without a target."""
    seconds_since_last: float | None = None
    """Seconds since the last retrain ended; None if there was none."""
    is_running: bool = False
    """Whether a retrain is running now."""
    has_answers: bool = True
    """Whether the task has a target, whose labels come."""


def decide(facts: RetrainFacts, settings: Retrain) -> Decision:
    """`retrain` or `wait`. Two retrains never run at once, and nothing is trained on too few new rows."""
    plain = asdict(facts)
    found = sum(facts.alerts.values())
    if facts.is_running:
        return Decision("wait", "a retrain is running already", plain)
    if not found:
        return Decision("wait", "no alert", plain)
    asking = {kind: count for kind, count in facts.alerts.items() if kind in settings.triggers and count > 0}
    if not asking:
        kept = ", ".join(settings.triggers) or "none"
        return Decision("wait", f"none of {found} alerts is of a kind that asks for a new model ({kept})", plain)
    why = " and ".join(f"{count} {kind} alert{'s' * (count != 1)}" for kind, count in sorted(asking.items()))
    rows = "new labelled rows" if facts.has_answers else "new rows"
    if facts.new_rows < settings.min_new_rows:
        return Decision("wait", f"{why}, but only {facts.new_rows:,} of {settings.min_new_rows:,} {rows}", plain)
    if facts.seconds_since_last is not None and facts.seconds_since_last < settings.cooldown_s:
        ago = f"the last retrain ended {facts.seconds_since_last:,.0f} s ago (cooldown {settings.cooldown_s:,.0f} s)"
        return Decision("wait", f"{why}, but {ago}", plain)
    return Decision("retrain", f"{why}, with {facts.new_rows:,} {rows}", plain)
