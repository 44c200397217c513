"""The endpoint of a problem: put up, moved from one version to another, what it has answered."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from raymlp.config.schema import Config
from raymlp.core.files import make_folder, write_text
from raymlp.core.records import (
    Decision,
    Endpoint,
    RolloutResult,
    needs_target,
)
from raymlp.pipeline.exclusive import refuse_beside_experiment
from raymlp.pipeline.models import as_version, resolve, store_of
from raymlp.runtime.audit import record
from raymlp.runtime.progress import SilentStory, Story
from raymlp.runtime.session import storage_root

if TYPE_CHECKING:
    import pyarrow as pa


def deploy(config: Config, model: str | Path = "", *, story: Story | None = None) -> Endpoint:
    """Serve a bundle, or `NAME@ALIAS` from the registry (the problem's champion by default). Needs a Ray session to stay."""
    from raymlp.pipeline.shadows import set_shadow
    from raymlp.serve import deploy as serving

    with (story or SilentStory()).step("deploy") as step:
        step.say("starting replicas")
        version = resolve(config, model or config.serve.model)
        endpoint = serving.deploy(config, version)
        record(config.runtime, "deploy", model=endpoint.name, version=version.label, url=endpoint.url)
        if config.serve.shadow.model:
            set_shadow(config)
        step.result(f"{endpoint.url} serves {', '.join(endpoint.weights)}")
    return endpoint


def undeploy(config: Config) -> None:
    """Stop the endpoint of the problem."""
    from raymlp.serve import deploy as serving

    serving.undeploy(config.problem.name)
    record(config.runtime, "undeploy", model=config.problem.name, version="")


def rollout(config: Config, *, traffic: Iterator[None] | None = None, story: Story | None = None) -> RolloutResult:
    """Give the registry's challenger growing shares of the traffic, look at the evidence, then promote it or roll it back.

    `traffic` lets requests pass between two looks, and a step then needs no least time; without it there is a look every two seconds
    or, over a long log, less often.
    Doubts that only a person can settle (`pause`) end it too: the champion serves alone, and the challenger keeps its alias.
    """
    from raymlp.model.predictor import Predictor
    from raymlp.registry import promotion
    from raymlp.serve import deploy as serving
    from raymlp.serve.evidence import Versions, gather, traffic_of
    from raymlp.serve.rollout.course import Course
    from raymlp.serve.rollout.drive import BY, World, drive
    from raymlp.serve.rollout.outlook import outlook

    refuse_beside_experiment(config)
    settings, store, name = config.serve.rollout, store_of(config), config.problem.name
    if traffic is not None:
        settings = settings.model_copy(update={"min_step_s": 0.0})
    champion, challenger = as_version(store.get(f"{name}@champion")), as_version(store.get(f"{name}@challenger"))
    bundles = {champion.label: champion.bundle, challenger.label: challenger.bundle}
    versions = Versions(champion.label, challenger.label, Predictor.load(champion.bundle), Predictor.load(challenger.bundle))
    start = Course.start(name, champion.label, challenger.label, salt=uuid.uuid4().hex, settings=settings, now=time.time(), by=BY)
    file = make_folder(storage_root(config.runtime) / "rollouts" / name) / f"{start.salt}.json"

    def give(course: Course) -> None:
        serving.set_versions(config, name, {label: bundles[label] for label in course.weights}, course.weights, salt=course.salt)

    def save(course: Course) -> None:
        event = course.history[-1]
        write_text(file, course.to_json())
        facts = {"champion": champion.label, "share": event.weight, "reason": event.reason}
        record(config.runtime, f"rollout {event.what}" if course.is_open else event.what, model=name, version=challenger.label, **facts)

    with (story or SilentStory()).step("rollout") as step:
        has_answers = needs_target(versions.champion.bundle.plan.target.task)
        for line in outlook(settings, traffic_of(prediction_log(config), champion.label), has_answers=has_answers).lines():
            step.note(line)

        def tell(decision: Decision) -> None:
            step.say(str(decision))
            if decision.action == "advance":
                step.note(str(decision))

        world = World(
            evidence=lambda: gather(prediction_log(config), labels(config), versions, start.salt, settings),
            left_out=lambda: serving.problems(name).get(challenger.label, ""),
            give=give,
            save=save,
        )
        course, decision, evidence = drive(start, traffic if traffic is not None else _ticks(), world, settings, tell=tell)
        if course.state != "aborted":
            event: promotion.Event = "promote" if course.state == "promoted" else "rollback"
            store.set_aliases(name, promotion.decide(event, challenger.label.removeprefix("v"), store.aliases(name))[1])
        step.result(
            f"{challenger.label} {course.state} after {evidence.requests:,} requests, {evidence.challenger_requests:,} of them its own"
        )
        step.note(str(decision))
    return RolloutResult(decision, evidence.requests, evidence.challenger_requests, course.shares, file)


def prediction_log(config: Config, *, version: str | None = None, since: datetime | None = None) -> pa.Table:
    """Rows of the prediction log, of one version or of all, from a moment on."""
    import pyarrow.compute as pc

    from raymlp.serve.log import read_log

    log = read_log(storage_root(config.runtime) / "predictions" / config.problem.name)
    if version is not None:
        log = log.filter(pc.equal(log.column("version"), version))
    return log.filter(pc.greater_equal(log.column("time"), since)) if since else log


def labels(config: Config) -> pa.Table | None:
    """True answers that have come: `prediction_id` and `label`, the raw value of the target column, and what else the files hold; null
    where a file does not have a column. None without files."""
    from raymlp.data.labels import read_labels

    return read_labels(label_folder(config))


def label_folder(config: Config) -> Path:
    """Where true answers are put, as Parquet with `prediction_id` and `label`; a business metric may have files of its own."""
    return storage_root(config.runtime) / "labels" / config.problem.name


def _ticks() -> Iterator[None]:
    """One every two seconds, and where what follows takes long, a fifth of the time for it."""
    took = 0.0
    while True:
        time.sleep(max(2.0, 4 * took))
        start = time.monotonic()
        yield
        took = time.monotonic() - start
