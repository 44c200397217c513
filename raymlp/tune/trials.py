"""What came of the trials of a study: which is best, and which no other beats. No Ray here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from raymlp.core.errors import ConfigError, nearest
from raymlp.core.metrics import HIGHER_IS_BETTER, METRICS
from raymlp.core.records import Interval, Task

LOSS, LATENCY = "valid_loss", "latency_ms"
State = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True)
class Trial:
    """One ended trial. `values` are those of the objectives that are known; `valid_loss` the lowest of any epoch.

    `finished` ran to its end, `stopped` was ended before by the scheduler or the time, `failed` has an `error`, its root cause.
    `metrics` are the final ones, `interval` that of the main metric by the bootstrap, both on the validation split.
    """

    number: int
    draw: Mapping[str, Any]
    state: State
    values: Mapping[str, float] = field(default_factory=dict)
    epochs: int = 0
    seconds: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    interval: Interval | None = None
    error: str | None = None

    @property
    def finished(self) -> bool:
        return self.state == "finished"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Trial:
        """A trial from its JSON, in which a number that is none is null."""
        read = {name: {key: _number(value) for key, value in values[name].items()} for name in ("values", "metrics")}
        interval = values["interval"]
        return cls(**{**values, **read, "interval": interval and Interval(**{key: _number(value) for key, value in interval.items()})})


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def lower_is_better(objective: str) -> bool:
    """Whether less of an objective is better."""
    return objective not in HIGHER_IS_BETTER


def check_objectives(objectives: Sequence[str], task: Task) -> None:
    """Raise ConfigError for an objective that the task does not have, or that stands twice."""
    known = [LOSS, LATENCY, *METRICS[task]]
    for name in objectives:
        if name not in known:
            raise ConfigError(f"tune.objectives has '{name}'; expected of {', '.join(known)}.{nearest(name, known)} Set tune.objectives.")
    if len(set(objectives)) < len(objectives):
        raise ConfigError(f"tune.objectives is {list(objectives)}; expected each once. Set tune.objectives.")


def ranked(trials: Sequence[Trial], objective: str) -> list[Trial]:
    """Trials with a value of the objective, best first; of equals the earlier one."""
    sign = 1.0 if lower_is_better(objective) else -1.0
    known = [trial for trial in trials if math.isfinite(trial.values.get(objective, math.nan))]
    return sorted(known, key=lambda trial: (sign * trial.values[objective], trial.number))


def pareto(trials: Sequence[Trial], objectives: Sequence[str]) -> list[Trial]:
    """Trials that no other beats: none is as good in every objective and better in one. By number."""
    signs = [1.0 if lower_is_better(name) else -1.0 for name in objectives]
    known = [trial for trial in trials if all(math.isfinite(trial.values.get(name, math.nan)) for name in objectives)]
    costs = {trial.number: [sign * trial.values[name] for sign, name in zip(signs, objectives, strict=True)] for trial in known}
    return [trial for trial in known if not any(_beats(costs[other.number], costs[trial.number]) for other in known)]


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and any(a < b for a, b in zip(one, other, strict=True))
