"""The doors to an endpoint's rollouts: one driven here on replayed traffic, and what is asked of the process that drives the others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from raymlp.config.schema import Config
from raymlp.core.errors import ServingError
from raymlp.core.records import Decision, RolloutResult, needs_target
from raymlp.pipeline.driver import Driver
from raymlp.pipeline.exclusive import open_rollout, rollout_folder
from raymlp.runtime.audit import who
from raymlp.runtime.progress import SilentStory, Story
from raymlp.serve.rollout import orders
from raymlp.serve.rollout.course import Course, Records
from raymlp.serve.rollout.drive import BY, drive
from raymlp.serve.rollout.lease import lease_of
from raymlp.serve.rollout.orders import Order

TRAFFIC_ROWS = 20_000
"""Newest rows of the log that the outlook is told from."""


def rollout(config: Config, *, traffic: Iterator[None], story: Story | None = None) -> RolloutResult:
    """A rollout of the registry's challenger on traffic that this process sends, to its end: `traffic` lets requests pass between two
    looks, and a step needs no least time.

    Doubts that only a person can settle (`pause`) end it too: the champion serves alone, and the challenger keeps its alias.
    """
    settings = config.serve.rollout.model_copy(update={"min_step_s": 0.0})
    with (story or SilentStory()).step("rollout") as step, lease_of(rollout_folder(config)).held() as lease:
        driver = Driver(config, lease)

        def tell(decision: Decision) -> None:
            step.say(str(decision))
            if decision.action == "advance":
                step.note(str(decision))

        one = driver.planned("", by=BY, settings=settings, tell=tell)
        for line in outlook_of(config, one.course):
            step.note(line)

        def looks() -> Iterator[None]:
            for _ in traffic:
                driver.obey(one)
                driver.report(one.course, aliases=False)
                if one.course.is_open:
                    yield

        try:
            drive(one, looks())
        finally:
            driver.report(one.course, aliases=one.course.state != "aborted")
        driver.keep(replace(one.course, settled=True))
        course, evidence = one.course, one.evidence
        step.result(
            f"{course.challenger} {course.state} after {evidence.requests:,} requests, {evidence.challenger_requests:,} of them its own"
        )
        step.note(str(one.decision))
    return RolloutResult(one.decision, evidence.requests, evidence.challenger_requests, course.shares, driver.records.place(course))


def rollout_outlook(config: Config) -> list[str]:
    """`outlook_of` the open rollout; empty without one."""
    course = open_rollout(config)
    return outlook_of(config, course) if course is not None else []


def outlook_of(config: Config, course: Course) -> list[str]:
    """What to expect of a rollout on the traffic that the champion had lately, in words."""
    from raymlp.model.bundle import load_bundle
    from raymlp.serve.application import log_folder
    from raymlp.serve.evidence import traffic_of
    from raymlp.serve.log import read_log
    from raymlp.serve.rollout.outlook import outlook

    recent = read_log(log_folder(config, config.problem.name), newest_rows=TRAFFIC_ROWS)
    task = load_bundle(course.bundles[course.champion]).plan.target.task
    return outlook(course.settings, traffic_of(recent, course.champion), has_answers=needs_target(task)).lines()


@dataclass(frozen=True)
class RolloutStatus:
    """The last rollout of a problem, whether a process drives, which, and what it saw last: `time`, `decision`, `troubles`."""

    course: Course | None
    is_driven: bool
    driver: str
    look: dict[str, Any]


def rollout_status(config: Config) -> RolloutStatus:
    """Where the last rollout is. Needs only the storage."""
    folder = rollout_folder(config)
    lease = lease_of(folder)
    try:
        look = dict(json.loads((folder / "look.json").read_text()))
    except (FileNotFoundError, ValueError):
        look = {}
    return RolloutStatus(Records(folder).latest(), lease.is_live(), lease.holder(), look)


def order_rollout(config: Config, verb: orders.Verb, *, limit_s: float = 300.0, **what: Any) -> str:
    """Ask the process that drives the rollouts for something (see `orders.Order`) and wait: what came of it, in words. Needs only the
    storage. Raises ServingError when it is refused, or when no process drives."""
    folder = rollout_folder(config)
    lease = lease_of(folder)
    if not lease.is_live():
        raise ServingError(
            f"no process drives the rollouts of {config.problem.name} in {folder}; expected an endpoint. raymlp deploy starts one, and "
            "takes up a rollout that was open."
        )
    if verb == "start":
        what["settings"] = config.serve.rollout.model_dump(mode="json")
    return orders.asked(folder, Order(verb, who(), **what), limit_s=limit_s, is_live=lease.is_live)
