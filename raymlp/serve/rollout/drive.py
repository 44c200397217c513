"""One look at a rollout: see that the endpoint serves what the record says, decide, keep the decision, carry it out.

The record is written first and the endpoint follows it, so that a process that dies in between leaves something to go on from. What a
look takes from the world and gives to it are five functions.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from raymlp.core.errors import VersionRefused
from raymlp.core.records import Decision
from raymlp.serve.rollout.course import Course
from raymlp.serve.rollout.facts import Evidence
from raymlp.serve.rollout.policy import decide

logger = logging.getLogger(__name__)

BY = "raymlp rollout"
"""Who ends or pauses a rollout when neither the policy nor a person does."""


@dataclass(frozen=True)
class World:
    """`evidence` is all that is known now; `left_out` says why the endpoint does not serve the challenger, empty when it does; `serves`
    whether the endpoint has the record's weights, `give` makes it have them; `save` keeps the record."""

    evidence: Callable[[], Evidence]
    left_out: Callable[[], str]
    serves: Callable[[Course], bool]
    give: Callable[[Course], None]
    save: Callable[[Course], object]


@dataclass
class Drive:
    """A rollout and whoever looks at it; `tell` hears each decision. What a look raises changed nothing, or the next look mends it."""

    course: Course
    world: World
    tell: Callable[[Decision], None]
    decision: Decision = field(default_factory=lambda: Decision("hold", "no request so far"))
    evidence: Evidence = field(default_factory=Evidence)
    given_again: bool = False

    def look(self) -> None:
        """One look, at a record that is open.

        A challenger that the endpoint leaves out, since a replica died with it, is given once more; the second time, or when the
        endpoint does not take it, it is rolled back.
        """
        if not self.world.serves(self.course):
            self.give()
            if not self.course.is_open:
                return
        problem = self.world.left_out()
        if problem and not self.given_again:
            self.given_again = True
            self.decision = Decision("hold", f"the endpoint left {self.course.challenger} out and is given it once more: {problem}")
            self.tell(self.decision)
            self.give()
        elif problem:
            self._carry_out(Decision("rollback", f"the endpoint left {self.course.challenger} out a second time: {problem}"))
        else:
            self.evidence = self.world.evidence()
            self._carry_out(decide(self.evidence, self.course.position(time.time()), self.course.settings))

    def become(self, after: Course) -> None:
        """Keep another record, then make the endpoint follow it."""
        before = self.course
        if after != before:
            self.world.save(after)
            self.course = after
        if after.weights != before.weights:
            self.give()

    def give(self) -> None:
        """Make the endpoint serve the record; a challenger that it does not take is rolled back."""
        try:
            self.world.give(self.course)
        except VersionRefused as error:
            if not self.course.is_open:
                raise
            self._carry_out(Decision("rollback", f"the endpoint does not take {self.course.challenger}: {error}"))

    def _carry_out(self, decision: Decision) -> None:
        self.decision = decision
        self.tell(decision)
        self.become(self.course.after(decision, now=time.time()))


def drive(rollout: Drive, looks: Iterable[None]) -> None:
    """Take a rollout from its start to its end, with a look whenever `looks` says.

    When the looks end first, the champion stays; so it does, for now, when the rollout is paused, since nobody is here to settle the
    doubt, and when an error or a signal cuts it off: no challenger has traffic that nobody watches.
    """
    try:
        rollout.world.save(rollout.course)
        rollout.give()
        for _ in looks if rollout.course.is_open else ():
            rollout.look()
            if rollout.course.state != "running":
                break
    except BaseException as error:
        if rollout.course.is_open:
            rollout.course = rollout.course.abort(now=time.time(), by=BY, reason=f"cut off by {type(error).__name__}")
            _taken_out(rollout.course, rollout.world)
        raise
    if rollout.course.state == "running":
        unsure = rollout.decision
        rollout.decision = Decision("rollback", f"the traffic ended without a verdict ({unsure.reason})", unsure.facts)
        rollout.become(rollout.course.after(rollout.decision, now=time.time(), by=BY))
    elif rollout.course.state == "paused":
        rollout.become(rollout.course.abort(now=time.time(), by=BY, reason="paused, and nobody is here to resume it"))


def _taken_out(aborted: Course, world: World) -> None:
    """Give and save an abort, each whether or not the other works: what cut the rollout off is the error to hear of."""
    for what, do in (("take the challenger out of the endpoint", world.give), ("keep the record", world.save)):
        try:
            do(aborted)
        except Exception as error:
            logger.error("the rollout of %s was cut off, and it was not possible to %s: %s", aborted.challenger, what, error)
