"""What follows from the readings: for each arm, and for the experiment. Facts in, verdict with its reasons out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from raymlp.config.experiment import Experiment
from raymlp.serve.experiment.analysis import Ratio, Reading

Call = Literal["better", "worse", "no difference", "undecided"]


@dataclass(frozen=True)
class Verdict:
    """What is said of one arm, and why."""

    arm: int
    call: Call
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """A verdict an arm, and the number of the arm to choose: 0, the control, where every arm is worse or no different; None while that is
    open."""

    verdicts: tuple[Verdict, ...]
    choice: int | None
    reason: str


def judge(readings: Sequence[Sequence[Reading]], ratio: Ratio, settings: Experiment, arms: Sequence[str]) -> Outcome:
    """The primary metric decides, a guard rail that is certainly broken makes an arm worse, and nothing is said while the traffic is not
    divided by its weights. `arms` are the versions, the control first."""
    if ratio.is_off(settings.ratio_alpha):
        told = ", ".join(f"{arm} {keys:,} of {wanted:,.0f}" for arm, keys, wanted in zip(arms, ratio.keys, ratio.expected, strict=True))
        reason = f"the traffic is not divided by its weights (keys: {told}), so nothing can be compared"
        return Outcome(tuple(Verdict(arm, "undecided", (reason,)) for arm in range(1, len(arms))), None, reason)
    verdicts = tuple(_of_arm(place + 1, [row[place] for row in readings]) for place in range(len(arms) - 1))
    better = [verdict.arm for verdict in verdicts if verdict.call == "better"]
    undecided = [arms[verdict.arm] for verdict in verdicts if verdict.call == "undecided"]
    if better:
        best = max(better, key=lambda arm: readings[0][arm - 1].gain[0])
        others = f"; {', '.join(undecided)} not decided yet" if undecided else ""
        return Outcome(verdicts, best, f"{arms[best]} is better than {arms[0]} by {readings[0][0].metric}{others}")
    if undecided:
        return Outcome(verdicts, None, f"{', '.join(undecided)}: not decided yet")
    return Outcome(verdicts, 0, f"no arm is better than {arms[0]}")


def _of_arm(arm: int, readings: Sequence[Reading]) -> Verdict:
    primary, guards = readings[0], readings[1:]
    broken = [guard for guard in guards if guard.is_broken]
    waiting = [guard for guard in guards if not guard.is_held and not guard.is_broken]
    told = told_of(primary)
    if broken:
        return Verdict(arm, "worse", tuple(f"guard rail broken: {told_of(guard)}" for guard in broken))
    match primary.finding:
        case "worse":
            return Verdict(arm, "worse", (told,))
        case "better" if not waiting:
            return Verdict(arm, "better", (told, *(f"guard rail held: {told_of(guard)}" for guard in guards)))
        case "better":
            open_guards = tuple(f"guard rail not certain yet: {told_of(guard)}" for guard in waiting)
            return Verdict(arm, "undecided", (f"better by the primary metric: {told}", *open_guards))
        case "no difference":
            return Verdict(arm, "no difference", (told,))
        case _:
            return Verdict(arm, "undecided", (told,))


def told_of(reading: Reading) -> str:
    """The figures in one line."""
    effect = reading.effect
    if not effect.is_known:
        return f"{reading.metric}: {reading.why} ({effect.rows:,})"
    return (
        f"{reading.metric} {effect.difference:+.4g} [{effect.low:+.4g}, {effect.high:+.4g}] beside {effect.control:.4g}, "
        f"margin {reading.margin:.4g}"
    )
