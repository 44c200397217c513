"""The record of a rollout: where it is, what happened and why, and what decisions and verbs make of it. Pure: a record in, a record out.

    running -> advance -> running      running <-> paused      running, paused -> promoted | rolled back | aborted

Everything is in the record, so that whoever reads it can go on: it is written as JSON, and the endpoint's weights follow from it.
`Records` is the folder where they lie.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple, Self

from raymlp.config.rollout import Rollout
from raymlp.core.errors import ServingError
from raymlp.core.files import Place, write_text
from raymlp.core.records import Decision
from raymlp.serve.rollout.facts import Position
from raymlp.serve.rollout.policy import next_weight

FORMAT = 2
State = Literal["running", "paused", "promoted", "rolled back", "aborted"]
OPEN: tuple[State, ...] = ("running", "paused")


class Event(NamedTuple):
    """Something that happened: seconds since 1970, what, the challenger's share after it, who did it and why, and the order it was."""

    time: float
    what: str
    weight: float
    by: str
    reason: str
    order: str = ""


@dataclass(frozen=True)
class Course:
    """One rollout. `weight` is the challenger's share in [0, 1]; times are seconds since 1970. `salt` deals the keys of this rollout;
    `accepted` are the guards whose pause a person has overruled, `settings` its plan, `bundles` the path of each version. It is `settled`
    when it has ended, and endpoint and registry have what follows."""

    name: str
    champion: str
    challenger: str
    salt: str
    state: State
    weight: float
    started: float
    step_started: float
    history: tuple[Event, ...]
    settings: Rollout
    accepted: tuple[str, ...] = ()
    bundles: Mapping[str, str] = field(default_factory=dict)
    settled: bool = False

    @classmethod
    def start(cls, name: str, champion: str, challenger: str, *, salt: str, settings: Rollout, now: float, by: str) -> Self:
        """A rollout at the plan's first share. Raises ServingError when both versions are the same."""
        if champion == challenger:
            raise ServingError(f"{champion} is the champion of {name} already; expected another version as challenger.")
        first = settings.weights[0]
        event = Event(now, "start", first, by, f"{challenger} beside {champion}")
        return cls(name, champion, challenger, salt, "running", first, now, now, (event,), settings)

    # ------------------------------------------------------------------ what follows from it

    @property
    def is_open(self) -> bool:
        """Whether it still runs or waits."""
        return self.state in OPEN

    @property
    def weights(self) -> dict[str, float]:
        """Shares of traffic by version, the one that serves first."""
        if self.state == "promoted":
            return {self.challenger: 1.0}
        return {self.champion: 1.0 - self.weight, self.challenger: self.weight} if self.is_open else {self.champion: 1.0}

    @property
    def shares(self) -> tuple[float, ...]:
        """The shares the challenger had, in order."""
        return tuple(event.weight for event in self.history if event.what in ("start", "advance", "set"))

    def position(self, now: float) -> Position:
        """What the policy needs to know of it."""
        return Position(self.weight, max(0.0, now - self.step_started), max(0.0, now - self.started), self.accepted)

    # ------------------------------------------------------------------ what happens to it

    def after(self, decision: Decision, *, now: float, by: str = "policy") -> Course:
        """What a decision of the policy makes of it; the same record for `hold`, and while it is paused for all but a rollback."""
        self._require(OPEN, decision.action)
        if self.state == "paused" and decision.action != "rollback":
            return self
        match decision.action:
            case "hold":
                return self
            case "advance":
                to = next_weight(self.weight, self.settings.weights)
                if to is None:
                    raise ServingError(
                        f"the rollout of {self.challenger} is at the end of its plan; expected a further share to advance to."
                    )
                return self._moved(to, "advance", now, by, decision.reason)
            case "promote":
                return self._ended("promoted", "promote", now, by, decision.reason)
            case "rollback":
                return self._ended("rolled back", "rollback", now, by, decision.reason)
            case "pause":
                return self.pause(now=now, by=by, reason=decision.reason)
        raise ServingError(f"a rollout policy said {decision.action!r}; expected hold, advance, promote, rollback or pause.")

    def pause(self, *, now: float, by: str, reason: str = "") -> Course:
        """Keep the share, and neither advance nor promote."""
        self._require(("running",), "pause")
        return self._with("paused", Event(now, "pause", self.weight, by, reason))

    def resume(self, *, now: float, by: str, accept: tuple[str, ...] = (), reason: str = "") -> Course:
        """Go on at the share it has, the step's time starting anew; `accept` names guards that may not pause it again."""
        self._require(("paused",), "resume")
        resumed = self._with("running", Event(now, "resume", self.weight, by, reason))
        return replace(resumed, step_started=now, accepted=tuple(sorted({*self.accepted, *accept})))

    def promote(self, *, now: float, by: str, reason: str = "") -> Course:
        """End it with the challenger, whatever the evidence says."""
        self._require(OPEN, "promote")
        return self._ended("promoted", "promote", now, by, reason)

    def abort(self, *, now: float, by: str, reason: str = "") -> Course:
        """End it with the champion, whatever the evidence says."""
        self._require(OPEN, "abort")
        return self._ended("aborted", "abort", now, by, reason)

    def set(self, weight: float, *, now: float, by: str, reason: str = "") -> Course:
        """Give the challenger another share, above 0 and up to the plan's last; the plan goes on with the first share above. Raises
        ServingError for any other."""
        self._require(OPEN, "set")
        if not (math.isfinite(weight) and 0 < weight <= 1):
            raise ServingError(f"the share is {weight}; expected one above 0 and up to 1. Use abort to take the challenger out.")
        last = self.settings.weights[-1]
        if weight > last:
            raise ServingError(f"the share is {weight:g} and the plan ends at {last:g}; expected at most that. Use promote to give it all.")
        return self._moved(weight, "set", now, by, reason)

    def ordered(self, order: str) -> Course:
        """The same, its last event being an order's."""
        return replace(self, history=(*self.history[:-1], self.history[-1]._replace(order=order)))

    # ------------------------------------------------------------------ as text

    def to_json(self) -> str:
        """The record as JSON, without secrets."""
        plain = {**asdict(self), "history": [event._asdict() for event in self.history], "settings": self.settings.model_dump(mode="json")}
        return json.dumps({"format": FORMAT, **plain}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises ServingError for anything but a record that `to_json` wrote."""
        try:
            content: dict[str, Any] = json.loads(text)
            if content.pop("format", None) != FORMAT:
                raise ValueError(f"its format is not {FORMAT}")
            history = tuple(Event(**event) for event in content.pop("history"))
            typed = {"accepted": tuple(content["accepted"]), "settings": Rollout.model_validate(content["settings"])}
            course = cls(**{**content, **typed}, history=history)
            if course.state not in (*OPEN, "promoted", "rolled back", "aborted") or not 0 <= course.weight <= 1 or not history:
                raise ValueError(f"state {course.state!r}, weight {course.weight} and {len(history)} events do not go together")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ServingError(
                f"the record of the rollout cannot be read ({error}); expected one that raymlp wrote. Move its file away, and start anew."
            ) from None
        return course

    # ------------------------------------------------------------------ inside

    def _require(self, states: tuple[State, ...], verb: str) -> None:
        if self.state not in states:
            raise ServingError(
                f"the rollout of {self.challenger} is {self.state}, so it cannot {verb}; expected one that is {' or '.join(states)}."
            )

    def _with(self, state: State, event: Event) -> Course:
        return replace(self, state=state, weight=event.weight, history=(*self.history, event))

    def _moved(self, weight: float, what: str, now: float, by: str, reason: str) -> Course:
        return replace(self._with(self.state, Event(now, what, weight, by, reason)), step_started=now)

    def _ended(self, state: State, what: str, now: float, by: str, reason: str) -> Course:
        return self._with(state, Event(now, what, 1.0 if state == "promoted" else 0.0, by, reason))


@dataclass(frozen=True)
class Records:
    """The records of a model's rollouts, a file each. Two are never open at once, so the last one is the one that counts."""

    folder: Place

    def place(self, course: Course) -> Place:
        """The file of a record; names are in the order of the starts."""
        return self.folder / f"{datetime.fromtimestamp(course.started, UTC):%Y%m%dT%H%M%S.%f}-{course.salt[:8]}.json"

    def save(self, course: Course) -> Place:
        """Write a record, whole or not at all."""
        return write_text(self.place(course), course.to_json())

    def latest(self) -> Course | None:
        """The record of the last rollout; None without any."""
        files = sorted(self.folder.glob("[0-9]*T*-*.json"))
        return Course.from_json(files[-1].read_text()) if files else None
