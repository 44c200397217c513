"""Look, decide, carry out, until a rollout has ended. What it takes from the world and gives to it are four functions."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from raymlp.config.rollout import Rollout
from raymlp.core.errors import ServingError
from raymlp.core.records import Decision
from raymlp.serve.rollout.course import Course
from raymlp.serve.rollout.facts import Evidence
from raymlp.serve.rollout.policy import decide

logger = logging.getLogger(__name__)

BY = "raymlp rollout"
"""Who starts a rollout and ends one that the policy does not."""


@dataclass(frozen=True)
class World:
    """`evidence` is all that is known now; `left_out` says why the endpoint does not serve the challenger, empty when it does; `give`
    makes the endpoint serve the record's weights; `save` keeps the record."""

    evidence: Callable[[], Evidence]
    left_out: Callable[[], str]
    give: Callable[[Course], None]
    save: Callable[[Course], object]


def drive(
    course: Course, looks: Iterable[None], world: World, settings: Rollout, *, tell: Callable[[Decision], None]
) -> tuple[Course, Decision, Evidence]:
    """Take a rollout from its start to its end, with one decision a look; `tell` hears each.

    A challenger that the endpoint leaves out, since a replica died with it, is given once more; the second time, or when the
    endpoint does not take it again, it is rolled back. When the looks end first, the champion stays; so it does, for now, when the policy
    pauses, since nobody is here to settle the doubt, and when an error or a signal cuts the rollout off: no challenger has traffic that
    nobody watches.
    """
    evidence, given_again = Evidence(), False
    decision = Decision("hold", "no request so far")
    try:
        world.give(course)
        world.save(course)
        for _ in looks:
            evidence = world.evidence()
            problem = world.left_out()
            if problem and not given_again:
                given_again = True
                tell(Decision("hold", f"the endpoint left {course.challenger} out and is given it once more: {problem}"))
                try:
                    world.give(course)
                    continue
                except ServingError as error:
                    decision = Decision("rollback", f"the endpoint left {course.challenger} out and does not take it again: {error}")
            elif problem:
                decision = Decision("rollback", f"the endpoint left {course.challenger} out a second time: {problem}")
            else:
                decision = decide(evidence, course.position(time.time()), settings)
            tell(decision)
            course = _carried_out(course, course.after(decision, settings, now=time.time()), world)
            if course.state != "running":
                break
    except BaseException as error:
        if course.is_open:
            _taken_out(course.abort(now=time.time(), by=BY, reason=f"cut off by {type(error).__name__}"), world)
        raise
    if course.state == "running":
        decision = Decision("rollback", f"the traffic ended without a verdict ({decision.reason})", decision.facts)
        course = _carried_out(course, course.after(decision, settings, now=time.time(), by=BY), world)
    elif course.state == "paused":
        course = _carried_out(course, course.abort(now=time.time(), by=BY, reason="paused, and nobody is here to resume it"), world)
    return course, decision, evidence


def _taken_out(aborted: Course, world: World) -> None:
    """Give and save an abort, each whether or not the other works: what cut the rollout off is the error to hear of."""
    for what, do in (("take the challenger out of the endpoint", world.give), ("keep the record", world.save)):
        try:
            do(aborted)
        except Exception as error:
            logger.error("the rollout of %s was cut off, and it was not possible to %s: %s", aborted.challenger, what, error)


def _carried_out(before: Course, after: Course, world: World) -> Course:
    if after.weights != before.weights:
        world.give(after)
    if after != before:
        world.save(after)
    return after
