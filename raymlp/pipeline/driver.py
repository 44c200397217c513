"""What happens to the rollouts of an endpoint, a look at a time: joins the endpoint, its log and labels, the registry, the audit log, and
the folder of records and orders.
"""

from __future__ import annotations

import json
import logging
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from raymlp.config.rollout import Rollout
from raymlp.config.schema import Config
from raymlp.core.errors import RaymlpError, ServingError, VersionRefused
from raymlp.core.files import Place, make_folder, write_text
from raymlp.core.records import Decision, Version
from raymlp.pipeline.exclusive import refuse_beside_experiment, rollout_folder
from raymlp.pipeline.models import as_version, store_of
from raymlp.runtime.audit import record, user
from raymlp.serve.rollout import orders
from raymlp.serve.rollout.course import Course, Records
from raymlp.serve.rollout.drive import BY, Drive, World
from raymlp.serve.rollout.facts import Evidence
from raymlp.serve.rollout.lease import Lease, Lost, StoreLease
from raymlp.serve.rollout.orders import Answer, Order

if TYPE_CHECKING:
    from raymlp.registry.store import Store
    from raymlp.serve.ledger import Versions
    from raymlp.serve.reading import Reading

LOOK_S = 2.0
"""Least seconds between two looks at the evidence; over many rows the looks take longer, and a fifth of the time at most."""

REGISTRY = "the registry"
"""Who moved an alias; MLflow does not say."""

log = logging.getLogger(__name__)


def label_folder(config: Config) -> Place:
    """Where true answers are put, as Parquet with `prediction_id` and `label`; a business metric may have files of its own. The endpoint
    puts there what clients send back."""
    from raymlp.serve.application import label_folder

    return label_folder(config, config.problem.name)


class Driver:
    """Everything that happens to the rollouts of an endpoint, a look at a time. It holds the lease: what it writes and the weights it sends
    pass the fence. Nothing is remembered that is not on storage, so that the next process goes on."""

    def __init__(self, config: Config, lease: Lease | StoreLease) -> None:
        self.config, self.lease, self.name = config, lease, config.problem.name
        self.records = Records(make_folder(rollout_folder(config)))
        self.current: Drive | None = None
        self._picked_up = False
        self._registry: Store | None = None
        self._audited = self._told = 0
        self._seen = time.monotonic()
        self._next_look = self._next_poll = self._shown = 0.0
        self._troubles: dict[str, str] = {}

    # ------------------------------------------------------------------ a look

    def look(self) -> None:
        """Obey orders, look at the evidence and at the registry, each when it is due. What cannot be reached is told and tried again;
        raises Lost alone."""
        self._tried("record", self._pick_up)
        self._tried("orders", lambda: self.obey(self.current))
        if self.current is not None and time.monotonic() >= self._next_look:
            started = time.monotonic()
            if self._tried("rollout", self._go_on):
                self._seen = time.monotonic()
            else:
                self._tried("pause", self._pause_when_blind)
            self._tried("reports", self._report_and_end)
            self._next_look = time.monotonic() + max(LOOK_S, 4 * (time.monotonic() - started))
            self._shown = 0.0
        period = self.config.serve.rollout.follow_registry_s
        if period is not None and self._picked_up and time.monotonic() >= self._next_poll:
            self._tried("registry", self._follow)
            self._next_poll = time.monotonic() + period
        if time.monotonic() - self._shown > LOOK_S:
            self._tried("status", self._show)
            self._shown = time.monotonic()

    def look_at_registry(self) -> None:
        """Look at the aliases in the next look, however recent the last one is."""
        self._next_poll = 0.0

    def _tried(self, what: str, do: Callable[[], object]) -> bool:
        try:
            do()
        except Lost:
            raise
        except Exception as error:
            words = f"{type(error).__name__}: {error}"
            if self._troubles.get(what) != words:
                log.warning("the rollouts of %s: %s cannot be done, and is tried again: %s", self.name, what, words)
            self._troubles[what] = words
            return False
        self._troubles.pop(what, None)
        return True

    def _pick_up(self) -> None:
        if self._picked_up:
            return
        course = self.records.latest()
        if course is not None and not course.settled:
            self.current = self._drive_of(course)
            self._audited = len(course.history)
            self._seen = time.monotonic()
        self._picked_up = True

    def _go_on(self) -> None:
        from raymlp.serve import deploy as serving

        one = self.current
        assert one is not None
        if not one.course.is_open:
            return
        champion = serving.declared(self.name)["champion"]
        if champion == one.course.champion:
            one.look()
            return
        reason = f"the endpoint serves {champion}, which was deployed in place of {one.course.champion}"
        self.keep(replace(one.course.abort(now=time.time(), by=BY, reason=reason), settled=True))

    def _report_and_end(self) -> None:
        """Tell what is new; an end is settled once endpoint and registry have it."""
        from raymlp.serve import deploy as serving

        one = self.current
        assert one is not None
        self.report(one.course, aliases=False)
        if one.course.is_open:
            return
        if not one.course.settled:
            serves = serving.declared(self.name)["champion"]
            if serves in (one.course.champion, one.course.challenger) and not one.world.serves(one.course):
                one.give()
            self.report(one.course)
            self.keep(replace(one.course, settled=True))
        self.current = None

    def _pause_when_blind(self) -> None:
        one, away = self.current, time.monotonic() - self._seen
        if one is not None and one.course.state == "running" and away > one.course.settings.blind_s:
            reason = f"nothing could be looked at for {away:,.0f} s ({self._troubles.get('rollout', 'no reason')})"
            one.become(one.course.pause(now=time.time(), by=BY, reason=reason))

    def _show(self) -> None:
        """What `raymlp rollout status` shows beside the record."""
        decision = str(self.current.decision) if self.current else ""
        shown = {"time": time.time(), "decision": decision, "troubles": list(self._troubles.values()), "pid": os.getpid()}
        with self.lease.fenced():
            write_text(self.records.folder / "look.json", json.dumps(shown))

    # ------------------------------------------------------------------ orders

    def obey(self, one: Drive | None) -> None:
        """Carry out what is asked, and answer."""
        for order in orders.waiting(self.records.folder, user):
            answer = self._answered(one, order)
            orders.answer(self.records.folder, order.id, answer)
            log.info("the rollouts of %s: %s asked by %s: %s", self.name, order.verb, order.by, answer.told)
            one = self.current or one

    def _answered(self, one: Drive | None, order: Order) -> Answer:
        try:
            course = one.course if one else self.records.latest()
            if course is not None and any(event.order == order.id for event in course.history):
                return Answer(True, orders.words_of(course))
            if order.verb == "start" and (course is None or course.settled):
                settings = Rollout.model_validate(order.settings)
                one = self._begin(order.challenger, by=order.by, settings=settings, order=order.id, reason=order.reason)
                if not one.course.is_open:
                    return Answer(False, one.decision.reason)
            elif one is None:
                last = f"the last one, of {course.challenger}, is {course.state}" if course else "there was none so far"
                raise ServingError(f"no rollout of {self.name} is open, {last}; expected one. Start it: raymlp rollout start.")
            else:
                one.become(orders.obeyed(one.course, order, now=time.time()))
        except Lost:
            raise
        except Exception as error:
            if one is None or all(event.order != order.id for event in one.course.history):
                return Answer(False, str(error) if isinstance(error, RaymlpError) else f"{type(error).__name__}: {error}")
            return Answer(True, f"{orders.words_of(one.course)}; the endpoint has not followed yet and is tried again ({error})")
        self._next_look = 0.0
        return Answer(True, orders.words_of(one.course))

    # ------------------------------------------------------------------ beginning

    def planned(self, challenger: str, *, by: str, settings: Rollout, tell: Callable[[Decision], None] = lambda _: None) -> Drive:
        """A rollout that is not begun yet, of a version's number or (empty) of the alias. Raises ServingError beside an experiment."""
        from raymlp.serve import deploy as serving

        refuse_beside_experiment(self.config)
        served = serving.declared(self.name)
        champion = served["champion"]
        tried = as_version(self._store().get(f"{self.name}/{challenger}" if challenger else f"{self.name}@challenger"))
        salt = uuid.uuid4().hex
        course = Course.start(self.name, champion, tried.label, salt=salt, settings=settings, now=time.time(), by=by)
        self._audited = self._told = 0
        return self._drive_of(replace(course, bundles={champion: served["versions"][champion], tried.label: tried.bundle}), tell)

    def _begin(self, challenger: str, *, by: str, settings: Rollout, order: str = "", reason: str = "") -> Drive:
        one = self.planned(challenger, by=by, settings=settings)
        first = one.course.history[0]
        one.course = replace(
            one.course, history=(first._replace(order=order, reason=f"{first.reason}; {reason}" if reason else first.reason),)
        )
        self._store().set_aliases(self.name, {"challenger": one.course.challenger.removeprefix("v")})
        one.world.save(one.course)
        self.current, self._seen = one, time.monotonic()
        one.give()
        return one

    def _drive_of(self, course: Course, tell: Callable[[Decision], None] = lambda _: None) -> Drive:
        from raymlp.serve import deploy as serving

        reading: list[Reading] = []

        def evidence() -> Evidence:
            if not reading:
                reading.append(self._reading(course))
            return reading[0].evidence()

        def give(now: Course) -> None:
            versions = {label: now.bundles[label] for label in now.weights}
            serving.set_versions(self.config, self.name, versions, now.weights, salt=now.salt, fence=self.lease.fenced)

        def serves(now: Course) -> bool:
            declared = serving.declared(self.name)
            return declared["weights"] == now.weights and (declared["salt"] == now.salt or not now.is_open)

        world = World(evidence, lambda: serving.problems(self.name).get(course.challenger, ""), serves, give, self._save)
        return Drive(course, world, tell)

    def _reading(self, course: Course) -> Reading:
        from raymlp.serve.application import log_folder
        from raymlp.serve.reading import Reading

        return Reading(
            log_folder(self.config, self.name),
            label_folder(self.config),
            versions_of(course),
            course.salt,
            course.settings,
            since=course.started,
        )

    def _save(self, course: Course) -> None:
        with self.lease.fenced():
            self.records.save(course)

    def keep(self, course: Course) -> None:
        """Save a record as the last word on it."""
        self._save(course)
        if self.current is not None:
            self.current.course = course

    # ------------------------------------------------------------------ what others are told

    def report(self, course: Course, *, aliases: bool = True) -> None:
        """Tell audit log and registry what is new in a record; `aliases` follow its end."""
        for event in course.history[self._audited :]:
            what = f"rollout {event.what}" if event.what in ("start", "advance", "set", "pause", "resume") else event.what
            facts = {"champion": course.champion, "share": event.weight, "reason": event.reason, "by": event.by}
            record(self.config.runtime, what, model=self.name, version=course.challenger, **facts)
            self._audited += 1
        version = course.challenger.removeprefix("v")
        if self._told < len(course.history):
            event = course.history[-1]
            shares = ", ".join(f"{share:.4g}" for share in course.shares)
            tags = {"raymlp.rollout": course.state, "raymlp.rollout.shares": shares, "raymlp.rollout.reason": event.reason[:1000]}
            self._store().set_tags(self.name, version, tags)
            self._told = len(course.history)
        if aliases and not course.is_open:
            self._end_aliases(course, version)

    def _end_aliases(self, course: Course, version: str) -> None:
        from raymlp.registry import promotion

        known = dict(self._store().aliases(self.name))
        if course.state == "promoted":
            changes = dict(promotion.decide("promote", version, {**known, "challenger": version})[1])
            if known.get("challenger") != version:
                changes.pop("challenger", None)
            if known.get("champion") == version and course.champion.startswith("v"):
                changes["previous"] = course.champion.removeprefix("v")
        else:
            changes = {"challenger": None} if known.get("challenger") == version else {}
        self._store().set_aliases(self.name, changes)

    def _store(self) -> Store:
        if self._registry is None:
            self._registry = store_of(self.config)
        return self._registry

    # ------------------------------------------------------------------ the registry's aliases

    def _follow(self) -> None:
        from raymlp.registry.following import follow
        from raymlp.serve import deploy as serving

        one, served = self.current, serving.declared(self.name)["champion"]
        if one is not None and not one.course.is_open:
            return  # its end is not told yet
        open_one = one.course.challenger.removeprefix("v") if one else None
        move = follow(self._store().aliases(self.name), champion=served.removeprefix("v"), challenger=open_one)
        match move.action:
            case "start":
                self._started_by_alias(move)
            case "promote" if one is not None:
                one.become(one.course.promote(now=time.time(), by=REGISTRY, reason=move.reason))
            case "abort" if one is not None:
                one.become(one.course.abort(now=time.time(), by=REGISTRY, reason=move.reason))
            case "serve":
                self._serve(move, before=served)
        if move.action != "keep":
            self._next_look = 0.0

    def _started_by_alias(self, move: Decision) -> None:
        version = move.facts["version"]
        try:
            self._begin(version, by=REGISTRY, settings=self.config.serve.rollout, reason=move.reason)
        except RaymlpError as error:
            if self.current is None:  # it is tried again, as long as the alias is there
                self._store().set_tags(self.name, version, {"raymlp.rollout": "refused", "raymlp.rollout.reason": str(error)[:1000]})
            raise

    def _serve(self, move: Decision, *, before: str) -> None:
        """Serve the version that the alias `champion` was moved to; one that does not load never takes the place of one that works, and
        the alias goes back."""
        from raymlp.serve import deploy as serving

        store, version = self._store(), move.facts["version"]
        wanted: Version = as_version(store.get(f"{self.name}/{version}"))
        try:
            serving.set_versions(self.config, self.name, {wanted.label: wanted.bundle}, {wanted.label: 1.0}, fence=self.lease.fenced)
        except VersionRefused as error:
            store.set_tags(self.name, version, {"raymlp.rollout": "refused", "raymlp.rollout.reason": str(error)[:1000]})
            store.set_aliases(self.name, {"champion": before.removeprefix("v")})
            raise
        store.set_aliases(self.name, {"previous": before.removeprefix("v")})
        store.set_tags(self.name, version, {"raymlp.rollout": "serves", "raymlp.rollout.reason": move.reason})
        record(self.config.runtime, "promote", model=self.name, version=wanted.label, champion=before, reason=move.reason, by=REGISTRY)


def versions_of(course: Course) -> Versions:
    """The two versions of a record, loaded."""
    from raymlp.model.predictor import Predictor
    from raymlp.serve.ledger import Versions

    old, new = (Predictor.load(course.bundles[label]) for label in (course.champion, course.challenger))
    return Versions(course.champion, course.challenger, old, new)
