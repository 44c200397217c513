"""The step size over a run, as a share of `train.learning_rate`: pure arithmetic on the number of optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from raymlp.config.average import Swa
from raymlp.config.schedule import Constant, Linear, OneCycle, Plateau, Schedule
from raymlp.config.train import Train

CYCLE_START, CYCLE_END = 1 / 25, 1 / 25e4
"""Shares that a cycle begins and ends with, those of PyTorch's OneCycleLR."""


def shares(settings: Train, *, epoch_steps: float, losses: Callable[[], Sequence[float]]) -> Callable[[float], float]:
    """The share for each step, counted from 0, of a run of `train.epochs` times `epoch_steps` steps.

    `losses` gives the validation losses of the epochs so far: a plateau is read from them, so that nothing else need be saved.
    """
    schedule, average, steps = settings.schedule, settings.average, settings.epochs * epoch_steps
    held_from = first_averaged_epoch(average, settings.epochs) * epoch_steps if isinstance(average, Swa) else steps + 1

    def share(step: float) -> float:
        if isinstance(average, Swa) and step >= held_from:
            return average.rate
        if isinstance(schedule, Plateau):
            return _warmed(step, schedule.warm_up * steps) * schedule.factor ** reductions(losses(), epochs=schedule.epochs)
        return planned(schedule, min(step, steps - 1), steps)

    return share


def first_averaged_epoch(average: Swa, epochs: int) -> int:
    """The first epoch, counted from 0, whose weights are part of the mean."""
    return int(average.start * epochs)


def planned(schedule: Schedule, step: float, steps: float) -> float:
    """The share of step `step`, from 0 to `steps` - 1, of a schedule that depends on nothing else. In (0, 1], or 0 at the end."""
    rise = schedule.warm_up * steps
    if isinstance(schedule, OneCycle):
        last = rise - 1
        if step <= last and last > 0:
            return _cosine(CYCLE_START, 1.0, step / last)
        return _cosine(1.0, CYCLE_END, (step - max(last, 0)) / max(steps - 1 - max(last, 0), 1))
    if step < rise or isinstance(schedule, Constant | Plateau):
        return _warmed(step, rise)
    done = (step - rise) / max(steps - 1 - rise, 1)
    if isinstance(schedule, Linear):
        return 1 + (schedule.end - 1) * min(done, 1.0)
    return _cosine(1.0, schedule.end, min(done, 1.0))


def reductions(losses: Sequence[float], *, epochs: int) -> int:
    """How often a step size that shrinks after `epochs` epochs without a lower loss has shrunk."""
    lowest, waited, count = math.inf, 0, 0
    for loss in losses:
        waited = 0 if loss < lowest else waited + 1
        lowest = min(lowest, loss)
        if waited == epochs:
            count, waited = count + 1, 0
    return count


def _warmed(step: float, rise: float) -> float:
    return min(1.0, (step + 1) / rise) if rise else 1.0


def _cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * done))
