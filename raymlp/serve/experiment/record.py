"""The record of an experiment: its arms, its salt, its settings, what happened. Pure: a record in, a record out, JSON between.

What was seen is not in it: the prediction log has the routes of every request with the salt, and all figures are made anew from that.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple, Self

from raymlp.config.experiment import Experiment
from raymlp.core.errors import ServingError

FORMAT = 1
State = Literal["running", "stopped"]


class Event(NamedTuple):
    """Something that happened: seconds since 1970, what (`start`, `weights` or `stop`), the arms' shares after it, by whom, why."""

    time: float
    what: str
    weights: tuple[float, ...]
    by: str
    reason: str


@dataclass(frozen=True)
class Record:
    """One experiment. `arms` are the versions as in the log, the control first; `salt` deals its keys; `settings` are those it started
    with, which stay whatever the config says later."""

    name: str
    salt: str
    arms: tuple[str, ...]
    settings: Experiment
    state: State
    history: tuple[Event, ...]

    @classmethod
    def start(cls, name: str, arms: tuple[str, ...], *, salt: str, settings: Experiment, now: float, by: str) -> Self:
        """A running experiment. Raises ServingError when an arm is there twice, or there is none beside the control."""
        if len(arms) < 2:
            raise ServingError(f"an experiment of {name} has no arm beside {arms[0]}; expected one or more. Set serve.experiment.versions.")
        if len(set(arms)) < len(arms):
            raise ServingError(f"the arms are {', '.join(arms)}, the first being the control; expected each version once.")
        return cls(name, salt, arms, settings, "running", (Event(now, "start", settings.shares, by, ""),))

    @property
    def is_open(self) -> bool:
        """Whether it still runs."""
        return self.state == "running"

    @property
    def started(self) -> float:
        """When it began, in seconds since 1970."""
        return self.history[0].time

    @property
    def weights(self) -> dict[str, float]:
        """Shares of traffic by version: the control alone once it is stopped."""
        return dict(zip(self.arms, self.history[-1].weights, strict=True)) if self.is_open else {self.arms[0]: 1.0}

    def reweighted(self, weights: tuple[float, ...], *, now: float, by: str, reason: str) -> Record:
        """The same with other shares. Raises ServingError when it is stopped or the shares do not fit."""
        self._require_open("change its weights")
        if len(weights) != len(self.arms) or not math.isclose(math.fsum(weights), 1, abs_tol=1e-9) or min(weights) <= 0:
            raise ServingError(f"the shares are {list(weights)} for {len(self.arms)} arms; expected one above 0 for each, 1 in total.")
        return replace(self, history=(*self.history, Event(now, "weights", weights, by, reason)))

    def stopped(self, *, now: float, by: str, reason: str) -> Record:
        """Ended: the control serves alone."""
        self._require_open("stop")
        alone = (1.0, *(0.0 for _ in self.arms[1:]))
        return replace(self, state="stopped", history=(*self.history, Event(now, "stop", alone, by, reason)))

    def to_json(self) -> str:
        """The record as JSON, without secrets."""
        plain = asdict(replace(self, settings=None))  # type: ignore[arg-type]
        plain |= {"settings": self.settings.model_dump(mode="json"), "history": [event._asdict() for event in self.history]}
        return json.dumps({"format": FORMAT, **plain}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises ServingError for anything but a record that `to_json` wrote."""
        try:
            content: dict[str, Any] = json.loads(text)
            if content.pop("format", None) != FORMAT:
                raise ValueError(f"its format is not {FORMAT}")
            history = tuple(Event(**{**event, "weights": tuple(event["weights"])}) for event in content.pop("history"))
            settings = Experiment.model_validate(content.pop("settings"))
            record = cls(**{**content, "arms": tuple(content["arms"])}, settings=settings, history=history)
            if record.state not in ("running", "stopped") or not history or len(history[-1].weights) != len(record.arms):
                raise ValueError(f"state {record.state!r}, {len(record.arms)} arms and {len(history)} events do not go together")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ServingError(f"the record of an experiment cannot be read ({error}); expected one that raymlp wrote.") from None
        return record

    def _require_open(self, verb: str) -> None:
        if not self.is_open:
            raise ServingError(
                f"the experiment of {self.name} is {self.state}, so it cannot {verb}; expected a running one. Start another."
            )
