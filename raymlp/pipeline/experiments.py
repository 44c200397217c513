"""Experiments on the endpoint of a problem: begun, looked at, watched, ended."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from raymlp.config.experiment import Quality
from raymlp.config.schema import Config
from raymlp.core.errors import ServingError
from raymlp.core.files import Place, make_folder, write_text
from raymlp.core.records import Version
from raymlp.pipeline.exclusive import experiment_folder, open_experiment, records, refuse_beside_experiment, refuse_beside_rollout
from raymlp.pipeline.models import as_version, store_of
from raymlp.pipeline.serving import labels, prediction_log
from raymlp.runtime.audit import record as audited
from raymlp.runtime.progress import SilentStory, Story
from raymlp.serve.experiment.record import Record

if TYPE_CHECKING:
    from raymlp.model.predictor import Predictor
    from raymlp.serve.experiment.report import Analysis

BY = "raymlp experiment"


def start_experiment(config: Config, *, story: Story | None = None) -> Record:
    """Give the arms of `serve.experiment` their shares of the endpoint's traffic, beside its champion; tells what to expect first.

    Raises ServingError when the endpoint is not there, serves something beside its champion, or has a rollout or an experiment already.
    """
    from raymlp.serve import deploy as serving
    from raymlp.serve.deploy import declared
    from raymlp.serve.evidence import traffic_of
    from raymlp.serve.experiment.expected import expected
    from raymlp.serve.experiment.gathering import known_of

    settings, name = config.serve.experiment, config.problem.name
    refuse_beside_rollout(config)
    refuse_beside_experiment(config)
    now = declared(name)
    champion = str(now["champion"])
    if others := [label for label, share in now["weights"].items() if label != champion and share > 0]:
        raise ServingError(f"{name} serves {', '.join(others)} beside {champion}; expected the champion alone. End what moves its traffic.")
    found = [_version(config, version) for version in settings.versions]
    bundles = {champion: str(now["versions"][champion]), **{version.label: version.bundle for version in found}}
    arms = (champion, *(version.label for version in found))
    if not re.fullmatch(r"v\d+", champion):
        raise ServingError(
            f"{name} serves {champion}, which is not of the registry; expected a registered champion. Register and deploy it."
        )
    begun = Record.start(name, arms, salt=uuid.uuid4().hex, settings=settings, now=time.time(), by=BY)
    with (story or SilentStory()).step("experiment") as step:
        log, came = prediction_log(config), labels(config)
        known = known_of(log, came, _predictors(begun, bundles), begun)
        for line in expected(settings, traffic_of(log, champion), known):
            step.note(str(line))
        _save(config, begun)
        try:
            _refuse_beside_others(config, begun)
            serving.set_versions(config, name, bundles, begun.weights, salt=begun.salt)
        except BaseException as error:
            _save(config, begun.stopped(now=time.time(), by=BY, reason=f"not begun: {error}"))
            raise
        shares = ", ".join(f"{arm} {share:.1%}" for arm, share in begun.weights.items())
        step.result(f"{shares}; {settings.primary.name} decides")
        if settings.bandit is not None:
            step.note("the weights follow what is seen while raymlp experiment watch runs")
    return begun


def experiment(config: Config) -> Analysis:
    """All that can be said now of the running experiment, or of the newest. Raises ServingError when there is none."""

    return _analysed(config, _newest(config))


def watch_experiment(config: Config, *, looks: Iterator[None] | None = None, story: Story | None = None) -> Analysis:
    """Look at the running experiment until there is a verdict or its time is over, a bandit's weights following what is seen; the traffic
    stays divided until it is stopped. `looks` paces it; without it there is a look every `bandit.look_s`, or every minute."""
    from raymlp.serve import deploy as serving
    from raymlp.serve.experiment import bandit

    record = _running(config)
    settings = record.settings
    paced = looks if looks is not None else _every(settings.bandit.look_s if settings.bandit else 60.0)
    loaded = _predictors(record, _bundles(config, record))
    rewarded = 0
    with (story or SilentStory()).step("experiment") as step:
        analysis = _analysed(config, record, loaded)
        for _ in paced:
            now = open_experiment(config)
            if now is None or now.salt != record.salt:  # stopped by somebody else
                break
            record = now
            analysis = _analysed(config, record, loaded)
            step.say(analysis.outcome.reason)
            if analysis.outcome.choice is not None or time.time() - record.started > settings.max_s:
                break
            if settings.bandit is None or analysis.ratio.is_off(settings.ratio_alpha):
                continue
            rewards = bandit.rewards(analysis.seen, settings.primary)
            values = sum(len(found) for found in rewards)
            if values - rewarded < settings.bandit.min_keys:
                continue
            rewarded = values
            seed = int(record.salt[:8], 16) + len(record.history)
            shares = bandit.shares(rewards, record.history[-1].weights, settings.bandit, seed=seed)
            if not np.allclose(shares, record.history[-1].weights, atol=0.005):
                record = record.reweighted(shares, now=time.time(), by=BY, reason=f"after {values:,} values of {settings.primary.name}")
                serving.set_versions(config, record.name, _given(config, record), record.weights, salt=record.salt)
                _save(config, record)
        step.result(analysis.outcome.reason)
    return analysis


def stop_experiment(config: Config, *, reason: str = "") -> Record:
    """End the running experiment: its control serves alone. Raises ServingError when none runs."""
    from raymlp.serve import deploy as serving

    record = _running(config).stopped(now=time.time(), by=BY, reason=reason)
    control = record.arms[0]
    if serving.status(record.name)["state"] != "NOT_STARTED":
        serving.set_versions(config, record.name, {control: _given(config, record)[control]}, record.weights)
    _save(config, record)
    return record


def report_experiment(config: Config) -> Place:
    """Write the page of the running experiment, or of the newest; where it is."""
    from raymlp.serve.experiment.report import write_report

    analysis = experiment(config)
    return write_report(analysis, folder=experiment_folder(config) / analysis.record.salt)


def _analysed(config: Config, record: Record, loaded: list[Predictor] | None = None) -> Analysis:
    from raymlp.serve.experiment.gathering import observe
    from raymlp.serve.experiment.report import Analysis

    predictors = loaded if loaded is not None else _predictors(record, _bundles(config, record))
    return Analysis.of(record, observe(prediction_log(config), labels(config), predictors, record))


def _predictors(record: Record, bundles: dict[str, str]) -> list[Predictor]:
    """The arms' predictors in their order, where a metric asks for scores; else none."""
    from raymlp.model.predictor import Predictor

    asked = any(isinstance(metric, Quality) for metric in record.settings.metrics)
    return [Predictor.load(bundles[arm]) for arm in record.arms] if asked else []


def _bundles(config: Config, record: Record) -> dict[str, str]:
    """Where the arms' bundles are, by label: those of the registry."""
    return {arm: _version(config, arm).bundle for arm in record.arms}


def _given(config: Config, record: Record) -> dict[str, str]:
    """The same for the endpoint: what it has keeps the path it has it from."""
    from raymlp.serve.deploy import declared

    known = declared(record.name)["versions"]
    return {arm: known.get(arm) or bundle for arm, bundle in _bundles(config, record).items()}


def _refuse_beside_others(config: Config, begun: Record) -> None:
    """Looks once more, now that this one is on record: of two that start at the same moment at most one goes on."""
    refuse_beside_rollout(config)
    if any(record.is_open and record.salt != begun.salt for record in records(config)):
        raise ServingError(f"another experiment of {begun.name} has just been started; expected one at a time. Look at it, or stop it.")


def _version(config: Config, version: str) -> Version:
    """A registered version by number (`4` or `v4`) or alias."""
    number = version.removeprefix("v")
    reference = f"{config.problem.name}/{number}" if number.isdigit() else f"{config.problem.name}@{version}"
    return as_version(store_of(config).get(reference))


def _newest(config: Config) -> Record:
    found = open_experiment(config) or next(iter(records(config)), None)
    if found is None:
        raise ServingError(f"there is no experiment of {config.problem.name}; expected one. Start it with raymlp experiment start.")
    return found


def _running(config: Config) -> Record:
    found = open_experiment(config)
    if found is None:
        raise ServingError(f"no experiment of {config.problem.name} runs; expected one. Start it with raymlp experiment start.")
    return found


def _save(config: Config, record: Record) -> None:
    event = record.history[-1]
    write_text(make_folder(experiment_folder(config)) / f"{record.salt}.json", record.to_json())
    weights = dict(zip(record.arms, event.weights, strict=True))
    audited(
        config.runtime, f"experiment {event.what}", model=record.name, version=", ".join(record.arms), weights=weights, reason=event.reason
    )


def _every(seconds: float) -> Iterator[None]:
    while True:
        yield
        time.sleep(seconds)
