"""May this model serve? Facts in, decision with its reason out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from raymlp.config.evaluate import Gate
from raymlp.core.metrics import HIGHER_IS_BETTER, gain, margin, readable, readable_interval
from raymlp.core.records import Decision, Interval


@dataclass(frozen=True)
class GateFacts:
    """What the gate looks at: one metric, on rows that the model did not learn from."""

    metric: str
    """Name of the metric."""
    rows: int
    """Rows with an answer."""
    value: Interval
    """The model's metric."""
    rule: float | None = None
    """The rule's metric; None when there is no rule to beat."""
    rule_gain: Interval | None = None
    """Gain of the model over the rule on the same rows, positive is better."""
    baselines: Mapping[str, float] = field(default_factory=dict)
    """Metric of each learned baseline."""


def decide(facts: GateFacts, settings: Gate, *, success_threshold: float | None = None) -> Decision:
    """`pass` when every check holds, else `fail` with each check that does not.

    Checks: there is a value at all; it reaches `success_threshold`; the 95 % interval of the gain over the rule lies
    above `min_gain_over_rule`; the best learned baseline is at most `max_gap_to_baseline` ahead.
    """
    plain = asdict(facts)
    if not facts.rows or not math.isfinite(facts.value.value):
        reason = f"{facts.metric} cannot be computed on {facts.rows:,} rows; expected labelled rows of more than one class"
        return Decision("fail", reason, plain)
    checks = [_threshold(facts, success_threshold), _rule(facts, settings), _baseline(facts, settings)]
    failed = [text for check in checks if check for ok, text in [check] if not ok]
    held = [text for check in checks if check for ok, text in [check] if ok]
    head = f"{facts.metric} {readable_interval(facts.value)} on {facts.rows:,} rows"
    if failed:
        return Decision("fail", f"{head}: {'; '.join(failed)}", plain)
    return Decision("pass", f"{head}: {'; '.join(held)}" if held else head, plain)


def compare(gain_over_champion: Interval, settings: Gate, *, metric: str, champion: float, rows: int) -> Decision:
    """`pass` when the challenger is not worse than the champion: the 95 % interval of the paired gain lies above -tolerance.

    Few rows make a wide interval and so a `fail`: the champion stays until the evidence is there.
    """
    allowed = margin(metric, settings.tolerance, champion)
    found = f"gain in {metric} {readable_interval(gain_over_champion)} on {rows:,} rows (champion {readable(champion)})"
    facts = {"metric": metric, "rows": rows, "champion": champion, "gain": asdict(gain_over_champion), "tolerance": allowed}
    if not math.isfinite(gain_over_champion.low):
        return Decision("fail", f"{found}; it cannot be judged without labelled rows of more than one class", facts)
    if gain_over_champion.low > -allowed:
        return Decision("pass", f"{found}; the interval lies above {readable(-allowed)}", facts)
    return Decision("fail", f"{found}; the interval reaches below {readable(-allowed)}", facts)


Check = tuple[bool, str] | None
"""Whether a check holds and what it found; None when it does not apply."""


def _threshold(facts: GateFacts, wanted: float | None) -> Check:
    if wanted is None:
        return None
    ok = gain(facts.metric, facts.value.value, wanted) >= 0
    side = "at least" if facts.metric in HIGHER_IS_BETTER else "at most"
    return ok, f"{'reaches' if ok else 'misses'} the success threshold ({side} {wanted:g})"


def _rule(facts: GateFacts, settings: Gate) -> Check:
    if facts.rule is None or facts.rule_gain is None:
        return None
    wanted = margin(facts.metric, settings.min_gain_over_rule, facts.rule)
    ok = facts.rule_gain.low > wanted
    verb = "beats" if ok else "does not beat"
    return ok, f"{verb} the rule ({readable(facts.rule)}) by more than {wanted:.4g}: gain {readable_interval(facts.rule_gain)}"


def _baseline(facts: GateFacts, settings: Gate) -> Check:
    known = {name: value for name, value in facts.baselines.items() if math.isfinite(value)}
    if not known:
        return None
    best = max(known, key=lambda name: gain(facts.metric, known[name], facts.value.value))
    behind = gain(facts.metric, known[best], facts.value.value)
    allowed = margin(facts.metric, settings.max_gap_to_baseline, known[best])
    label = f"{best.replace('_', ' ')} ({readable(known[best])})"
    if behind <= 0:
        return True, f"{readable(-behind)} ahead of {label}"
    return behind <= allowed, f"{readable(behind)} behind {label}, {readable(allowed)} allowed"
