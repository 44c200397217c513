"""The whole platform on one page: one function a job, each a straight line of calls to the stages.

Every function takes a Config, returns a small frozen record, and raises RaymlpError. `story` shows the steps to a person.
The life of an endpoint over time (`run`) is told in `life.py`.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from raymlp.config.loader import load_config, load_site, to_yaml, with_overrides
from raymlp.config.schema import Config, Site
from raymlp.config.split import TimeSplit
from raymlp.core.errors import ConfigError, DataError, GateRefused
from raymlp.core.files import make_folder, write_text
from raymlp.core.records import (
    BatchPrediction,
    CrossValidation,
    DataReport,
    Decision,
    Endpoint,
    Evaluation,
    ForgetResult,
    Found,
    MonitorReport,
    PlanReport,
    Registration,
    Reproduction,
    RetrainResult,
    RolloutResult,
    Snapshot,
    Trace,
    TrainedModel,
    TuneResult,
    Version,
    needs_target,
)
from raymlp.data.place import snapshot_root
from raymlp.runtime.audit import record
from raymlp.runtime.progress import SilentStory, Story, epoch_row
from raymlp.runtime.session import ray_session, storage_root

if TYPE_CHECKING:
    import pyarrow as pa

    from raymlp.data.rules import BrokenRule
    from raymlp.model.predictor import Predictor
    from raymlp.registry.store import Store


SHOWN_ALERTS = 3


def plan(config: Config) -> PlanReport:
    """Preflight, without Ray: what a run would do, and every problem that would stop it."""
    from raymlp.preflight import preflight

    return preflight(config)


def prepare(config: Config, *, story: Story | None = None) -> Snapshot:
    """Read, join, check, split and profile the data; an unchanged snapshot is found again."""
    from raymlp.data import snapshot

    with ray_session(config.runtime), (story or SilentStory()).step("prepare") as step:
        made = snapshot.prepare(config.problem, config.data, snapshot_root(config.runtime), say=step.say)
        rows = ", ".join(f"{count:,} {split}" for split, count in made.rows.items())
        step.result(
            f"snapshot {made.digest[:12]}{' (unchanged, reused)' if made.reused else ''}: {rows}; {made.quarantined:,} in quarantine"
            + (f"; {made.growth}" if made.growth and not made.reused else "")
        )
        if not made.reused:
            for note in (*snapshot.warnings_of(made.path), *made.notes):
                step.note(note)
    return made


def profile(config: Config, *, snapshot: Snapshot | None = None, story: Story | None = None) -> DataReport:
    """Show what the data holds as one HTML page, from the profiles that the snapshot keeps. Needs no Ray where there is one."""
    from raymlp.data.profile_page import write_page
    from raymlp.data.snapshot import find

    snapshot = snapshot or find(config.problem, config.data, snapshot_root(config.runtime)) or prepare(config, story=story)
    with (story or SilentStory()).step("profile") as step:
        folder = storage_root(config.runtime) / "profiles" / config.problem.name / snapshot.digest[:12]
        page = write_page(snapshot, config.problem, config.monitor, folder=folder)
        step.result(f"{page.stat().st_size / 1e3:,.0f} kB")
    return DataReport(snapshot, page)


def infer_contract(config: Config, out: Path, *, force: bool = False, story: Story | None = None) -> Path:
    """Write the contract that the training rows keep to `out`, for a person to edit. Raises ConfigError when it exists."""
    from raymlp.core.files import write_text
    from raymlp.data.snapshot import load_contract

    if out.exists() and not force:
        raise ConfigError(f"{out} exists; expected a new file. Choose another --out, or overwrite it with --force.")
    snapshot = prepare(with_overrides(config, {"data.contract": None}), story=story)
    return write_text(out, load_contract(snapshot.path).to_yaml())


def check_contract(config: Config, contract: Path, *, story: Story | None = None) -> list[BrokenRule]:
    """Rules of a contract file that the source breaks; empty when it keeps them. Publishes nothing."""
    from raymlp.data.conformance import check_source

    given = with_overrides(config, {"data.contract": str(contract)})
    with ray_session(config.runtime), (story or SilentStory()).step("contract") as step:
        step.say("checking every row")
        broken = check_source(given.problem, given.data, snapshot_root(config.runtime))
        step.result(f"{len(broken)} rules broken" if broken else "every row keeps the contract")
    return broken


def train(
    config: Config, *, snapshot: Snapshot | None = None, story: Story | None = None, shuffle_labels: bool = False, title: str = "train"
) -> TrainedModel:
    """Fit the feature plan and train the net; one MLflow run holds all about it. `shuffle_labels` makes a broken model for drills.

    With `train.name` set, a run of that name that was cut off goes on from its last checkpoint, in the same MLflow run; one that had
    come to its end is given back as it is. Other jobs than `train` itself always begin anew.
    """
    from raymlp.runtime.tracking import tracked
    from raymlp.train import named, trainer
    from raymlp.train.support import unused

    snapshot, config = snapshot or prepare(config, story=story), with_teacher(config)
    facts: dict[str, Any] = {"config_yaml": to_yaml(config), "seed": config.train.seed, "snapshot": snapshot.digest}
    runs, name = storage_root(config.runtime) / "runs", config.train.name if title == "train" else None
    names = runs / "names" / config.problem.name
    with ray_session(config.runtime), (story or SilentStory()).step(title) as step, named.claimed(names, name) if name else nullcontext():
        step.say("starting")
        earlier = named.run_of(names, name, config.train.resume) if name else None
        metric = config.problem.main_metric
        if earlier and (done := trainer.finished(config, snapshot, run_dir=runs / earlier)):
            step.result(f"{metric} {done.metrics[metric]:.4f} on validation; the run '{name}' had ended before")
            return done
        with tracked(config.problem.name, title, **facts, registry=config.registry, runtime=config.runtime, run_id=earlier) as run:
            if name:
                named.remember(names, name, run.id)
            logged = run.last_step("valid_loss") if earlier else -1

            def on_epoch(metrics: dict[str, float]) -> None:
                if metrics["epoch"] > logged:
                    run.metrics(metrics, step=int(metrics["epoch"]))
                step.say(f"epoch {int(metrics['epoch']) + 1} of {config.train.epochs} at most")
                step.row(epoch_row(metrics, f"valid_{metric}"))

            try:
                model = trainer.train(
                    config, snapshot, run_dir=runs / run.id, run_id=run.id, on_epoch=on_epoch, shuffle_labels=shuffle_labels
                )
            except (KeyboardInterrupt, SystemExit):
                if name:
                    step.note(f"the run '{name}' goes on from here when the same command is given again")
                raise
            run.metrics({f"bundle_{name}": value for name, value in model.metrics.items()})
            run.file(model.bundle / "environment.json")
        rows = model.metrics.get("sampled_rows")
        how = f"after {int(model.metrics['epochs'])} epochs" if rows is None else f"from {int(rows):,} of {snapshot.rows['train']:,} rows"
        step.result(f"{metric} {model.metrics[metric]:.4f} on validation {how}")
        if ignored := unused(config):
            step.note(f"without effect were {ignored}")
    return model


def with_teacher(config: Config) -> Config:
    """The config with the bundle in the place of a teacher's name, so that the run says which it was. Raises RegistryError."""
    distil = config.train.distil
    return config if distil is None else with_overrides(config, {"train.distil.teacher": resolve(config, distil.teacher).bundle})


def crossvalidate(config: Config, *, story: Story | None = None) -> CrossValidation:
    """Train a model for each fold of `data.split.folds`, as many at a time as the cluster holds, and score each row by the model that
    did not learn from it. Every fold is a snapshot and a run of its own. Raises ConfigError without `data.split.folds`."""
    from raymlp.evaluate.folds import judge
    from raymlp.runtime.tracking import tracked
    from raymlp.train.trainer import at_once

    count, story = config.data.split.folds, story or SilentStory()
    if not needs_target(config.problem.task):
        raise ConfigError(
            f"problem.task is {config.problem.task}, whose models of several folds have no common answers; expected a task with a target. "
            "Compare runs by raymlp evaluate."
        )
    if count is None:
        raise ConfigError("data.split.folds is not set; expected the number of folds. Set data.split.folds, for example to 5.")
    parts = [with_overrides(config, {"data.split.fold": fold}) for fold in range(count)]
    with ray_session(config.runtime):
        snapshots = [prepare(part, story=story) for part in parts]
        facts: dict[str, Any] = {"config_yaml": to_yaml(config), "seed": config.train.seed, "snapshot": snapshots[0].digest}
        with story.step("folds") as step:
            width = min(count, at_once(config.train))
            step.say(f"{count} models, {width} at a time")
            models = _trained_beside(parts, snapshots, width)
            with tracked(config.problem.name, "crossvalidate", **facts, registry=config.registry, runtime=config.runtime) as run:
                result = judge(config, models, snapshots, folder=storage_root(config.runtime) / "runs" / run.id, run_id=run.id)
                run.metrics({f"mean_{name}": found.mean for name, found in result.metrics.items()})
                run.metrics({f"deviation_{name}": found.deviation for name, found in result.metrics.items()})
                run.metrics({f"out_of_fold_{name}": value for name, value in result.out_of_fold.items()})
                run.tag("raymlp.folds", " ".join(model.run_id for model in models))
            name = config.problem.main_metric
            step.result(f"{name} {result.metrics[name]} over {count} folds, {result.out_of_fold[name]:.4f} out of fold")
    return result


def _trained_beside(parts: Sequence[Config], snapshots: Sequence[Snapshot], width: int) -> list[TrainedModel]:
    """A model of each part, `width` at a time; the first failure is raised once those that run have ended."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(width) as pool:
        started = [
            pool.submit(train, part, snapshot=snapshot, title=f"fold {fold + 1} of {len(parts)}")
            for fold, (part, snapshot) in enumerate(zip(parts, snapshots, strict=True))
        ]
        try:
            return [future.result() for future in started]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def tune(config: Config, *, story: Story | None = None) -> TuneResult:
    """Run a study over the settings of `tune.space`, or go on with it. Its record, page and `best.yaml` lie in one folder."""
    from raymlp.core.files import make_folder
    from raymlp.train.shelf import shelf
    from raymlp.train.trial import fit_by_workers, fit_held
    from raymlp.tune.checks import check
    from raymlp.tune.conclusion import conclude
    from raymlp.tune.portfolio import resolved
    from raymlp.tune.search import search
    from raymlp.tune.trials import LATENCY, Trial

    story = story or SilentStory()
    config, notes = resolved(with_teacher(config))
    check(config)
    snapshot, distil = prepare(config, story=story), config.train.distil
    root = make_folder(storage_root(config.runtime) / "tune")
    with (
        ray_session(config.runtime),
        story.step("tune") as step,
        shelf(snapshot.path, config.problem, config.features, distil) as rows,
        TemporaryDirectory(prefix=".trials-", dir=root, ignore_cleanup_errors=True) as scratch,
    ):
        settings, latency, done = config.tune, LATENCY in config.tune.objectives, [0]

        def on_trial(trial: Trial) -> None:
            done[0] += 1
            step.say(f"{done[0]} of {settings.limit or 'many'} trials{f'; trial {trial.number}: {trial.error}' if trial.error else ''}")

        def objective(trial: Config, report: Any, resume: Path | None) -> Mapping[str, float]:
            if settings.workers == "as_train":
                return fit_by_workers(trial, snapshot, report, folder=Path(scratch), latency=latency)
            return fit_held(trial, snapshot, rows, report, resume, latency=latency)

        found = search(config, objective, root=root, snapshot=snapshot.digest, on_trial=on_trial)
        result = conclude(found)
        step.result(f"{len(result.trials)} trials, best {result.metric} {result.score:.4f}")
        for note in (*notes, *found.notes):
            step.note(note)
    return result


def find(config: Config, what: Literal["learning-rate", "batch-size"], *, story: Story | None = None) -> Found:
    """Look for a learning rate or a batch size by real steps of one worker (`train.finder`). The config is left as it is: what is found
    comes back as an override. Raises TrainingError when the loss never falls, or no batch size fits."""
    from raymlp.runtime.tracking import tracked
    from raymlp.train import trainer

    snapshot, config = prepare(config, story=story), with_teacher(config)
    facts: dict[str, Any] = {"config_yaml": to_yaml(config), "seed": config.train.seed, "snapshot": snapshot.digest}
    with ray_session(config.runtime), (story or SilentStory()).step("find") as step:
        step.say(what)
        with tracked(config.problem.name, f"find-{what}", **facts, registry=config.registry, runtime=config.runtime) as run:
            found = trainer.find(config, snapshot, what, folder=storage_root(config.runtime) / "runs" / run.id)
            for file in found.files:
                run.file(file)
            run.tag("raymlp.found", found.best)
        step.result(found.best)
    return found


def reproduce(reference: str, site: Site, *, story: Story | None = None) -> Reproduction:
    """Make a recorded run again, of a bundle's path, `NAME@ALIAS` or a run's id, and compare what comes out, bit by bit.

    Config, snapshot and seed are those that were recorded; a snapshot that is gone is prepared again from its source. A run that
    cannot come out the same, such as a private one, is made again, too, and the story and the result say why it differs.
    Raises DataError when the source no longer gives it, RegistryError when there is no such model or run.
    """
    from raymlp.data.origin import with_digest
    from raymlp.lineage import recorded_bundle, recorded_config
    from raymlp.model.bundle import load_bundle
    from raymlp.model.comparison import compare, environments
    from raymlp.train.support import unrepeatable

    story = story or SilentStory()
    first = load_bundle(recorded_bundle(reference, site))
    assert first.path is not None
    config = recorded_config(first.config_yaml, site)
    if reasons := unrepeatable(config):
        with story.step("look up") as step:
            step.result(f"run {first.run_id} cannot be made again bit by bit")
            for reason in reasons:
                step.note(reason)
    snapshot = with_digest(snapshot_root(config.runtime) / config.problem.name, first.snapshot) or prepare(config, story=story)
    if snapshot.digest != first.snapshot:
        raise DataError(
            f"run {first.run_id} was trained on snapshot {first.snapshot[:12]}, which is gone, and the source now gives "
            f"{snapshot.digest[:12]}; expected the same rows. See what changed: raymlp trace {reference}"
        )
    shuffled = "labels_shuffled" in first.metrics
    model = train(config, snapshot=snapshot, story=story, shuffle_labels=shuffled, title="reproduce")
    facts = compare(first.path, model.bundle)
    return Reproduction(first.run_id, model, facts, environments(first.path, model.bundle), reasons)


def trace(reference: str, site: Site) -> Trace:
    """Walk from a bundle's path, `NAME@ALIAS` or a run's id back to the run, its code and config, the snapshot and the source files,
    and say what is missing or has changed since. Needs no Ray. Raises as `reproduce`."""
    from raymlp.lineage import stations

    return Trace(tuple(stations(reference, site)))


def evaluate(config: Config, bundle: str | Path, *, snapshot: Snapshot | None = None, story: Story | None = None) -> Evaluation:
    """Judge a bundle beside the baselines on the same rows; report and metrics join the run that made it."""
    from raymlp.evaluate import evaluation
    from raymlp.model.bundle import load_bundle
    from raymlp.runtime.tracking import existing

    snapshot = snapshot or prepare(config, story=story)
    with (story or SilentStory()).step("evaluate") as step:
        step.say("baselines and intervals")
        run_id = load_bundle(bundle).run_id
        result = evaluation.evaluate(config, snapshot, Path(bundle), report_dir=storage_root(config.runtime) / "runs" / run_id)
        run = existing(run_id, registry=config.registry, runtime=config.runtime)
        run.metrics({f"evaluation_{name}": interval.value for name, interval in result.metrics.items()})
        run.file(result.report)
        run.tag("raymlp.gate", str(result.gate))
        name = config.problem.main_metric
        beside = ", ".join(f"{other} {scores[name].value:.4f}" for other, scores in result.baselines.items())
        step.result(f"{name} {result.metrics[name]} beside {beside}")
        step.note(f"gate {result.gate}")
    return result


def register(config: Config, bundle: str | Path, *, aliases: tuple[str, ...] | None = None, story: Story | None = None) -> Registration:
    """Add a bundle to the registry as a new version. Its aliases are those given, or else what promotion says:
    `champion` where there is none, `challenger` beside one."""
    from raymlp.model.bundle import load_bundle
    from raymlp.registry import promotion
    from raymlp.runtime.tracking import existing

    with (story or SilentStory()).step("register") as step:
        store, name = _store(config), config.problem.name
        run = existing(load_bundle(bundle).run_id, registry=config.registry, runtime=config.runtime)
        registration = store.register(name, Path(bundle), run=run)
        version = registration.version
        changes = promotion.decide("register", version, store.aliases(name))[1] if aliases is None else dict.fromkeys(aliases, version)
        store.set_aliases(name, changes)
        registration = store.get(f"{name}/{version}")
        record(config.runtime, "register", model=name, version=f"v{version}", aliases=dict(changes), run=load_bundle(bundle).run_id)
        step.result(f"{name} version {version} as {', '.join(registration.aliases) or 'no alias'}")
    return registration


def deploy(config: Config, model: str | Path = "", *, story: Story | None = None) -> Endpoint:
    """Serve a bundle, or `NAME@ALIAS` from the registry (the problem's champion by default). Needs a Ray session to stay."""
    from raymlp.serve import deploy as serving

    with (story or SilentStory()).step("deploy") as step:
        step.say("starting replicas")
        version = resolve(config, model or config.serve.model)
        endpoint = serving.deploy(config, version)
        record(config.runtime, "deploy", model=endpoint.name, version=version.label, url=endpoint.url)
        step.result(f"{endpoint.url} serves {', '.join(endpoint.weights)}")
    return endpoint


def resolve(config: Config, model: str | Path = "") -> Version:
    """The version behind a bundle path, a registry reference, or nothing (the problem's champion)."""
    reference = str(model) or f"{config.problem.name}@champion"
    if Path(reference).is_dir():
        from raymlp.model.bundle import verify

        return Version(verify(Path(reference))["digest"][:12], str(Path(reference).resolve()))
    found = _store(config).get(reference)
    return as_version(found)


def as_version(registration: Registration) -> Version:
    """A registered version as the endpoint names it: `v7`."""
    return Version(f"v{registration.version}", str(registration.bundle))


def load_predictor(reference: str | Path, *, config: Config | None = None) -> Predictor:
    """The predictor of a bundle path or of `models:/name@alias`. A reference is looked up in the registry of `config`,
    or of the default storage folder."""
    from raymlp.config.registry import Registry
    from raymlp.config.runtime import Runtime
    from raymlp.model.predictor import Predictor
    from raymlp.registry.store import Store

    if Path(reference).is_dir():
        return Predictor.load(reference)
    store = _store(config) if config else Store(Registry(), Runtime())
    return Predictor.load(store.get(str(reference)).bundle)


def predict(config: Config, model: str | Path = "", *, story: Story | None = None) -> BatchPrediction:
    """Answer every row of `data.source` by a bundle, `NAME@ALIAS` or `NAME/VERSION` (the problem's champion by default), into Parquet files
    at `predict.output`. A job that was cut off goes on when it is given again. `config_of` has the config that suits a model."""
    from raymlp.predict import prediction

    with (story or SilentStory()).step("predict") as step:
        try:
            result = prediction.predict(config, resolve(config, model), snapshot_root(config.runtime), say=step.say)
        except (KeyboardInterrupt, SystemExit):
            step.note("finished files are kept: the same command goes on from here")
            raise
        if not result.reused:
            facts = {"rows": result.rows, "output": result.output.partition("?")[0]}
            record(config.runtime, "predict", model=config.problem.name, version=result.version.label, **facts)
        speed = f", {result.rows_per_s:,.0f} a second" if result.chunks else ""
        before = f"; {result.resumed:,} of {result.chunks + result.resumed:,} files were finished before" if result.resumed else ""
        before = "; all of it was there" if result.reused else before
        step.result(f"{result.rows:,} rows by {result.version.label}{speed}; {result.quarantined:,} in quarantine{before}")
        for note in result.notes:
            step.note(note)
    return result


def config_of(model: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The config to predict with a model: problem and data as its bundle records them, where the overrides choose no others, and Hydra
    overrides as `data.source.path=new.csv predict.output=scores`. Raises RegistryError, BundleError or ConfigError."""
    import yaml

    from raymlp.model.bundle import load_bundle
    from raymlp.registry.store import Store

    if Path(model).is_dir():
        bundle = Path(model)
    else:
        site = load_site([word for word in overrides if word.startswith(("runtime.", "registry."))])
        bundle = Store(site.registry, site.runtime).get(str(model)).bundle
    recorded = yaml.safe_load(load_bundle(bundle).config_yaml) or {}
    return load_config(overrides=overrides, base={name: recorded[name] for name in ("problem", "data") if name in recorded})


def monitor(config: Config, *, window: str = "all", since: datetime | None = None, story: Story | None = None) -> MonitorReport:
    """Compare the champion's prediction log, and the labels that have come, with training. Alerts go to the log and the webhook."""
    from raymlp.model.bundle import load_bundle
    from raymlp.monitor.alerts import notify
    from raymlp.monitor.monitoring import monitor as watch

    with (story or SilentStory()).step("monitor") as step:
        champion = resolve(config)
        folder = storage_root(config.runtime) / "monitor" / config.problem.name / window
        log = prediction_log(config, version=champion.label, since=since)
        result = watch(load_bundle(champion.bundle), log, labels(config), config.monitor, window=window, report_dir=folder)
        notify(result, config.monitor, problem=config.problem.name)
        step.result(f"{window}: {result.rows:,} predictions, {result.labelled:,} labelled, {len(result.alerts)} alerts")
        ordered = sorted(result.alerts, key=lambda alert: (alert.kind != "quality", -abs(alert.value / alert.threshold)))
        for alert in ordered[:SHOWN_ALERTS]:
            step.note(f"{alert.kind}: {alert.name} {alert.statistic} {alert.value:.3f} (threshold {alert.threshold:g}); {alert.note}")
        if len(ordered) > SHOWN_ALERTS:
            step.note(f"and {len(ordered) - SHOWN_ALERTS} more, in {result.report}")
    return result


def retrain(
    config: Config, *, seen: MonitorReport | None = None, until: datetime | None = None, story: Story | None = None
) -> RetrainResult:
    """Ask the policy; if it says so, train on the newer rows, compare with the champion, and make it the challenger.

    `until` ends the data (for data split by time); null takes all there is.
    """
    from raymlp.data.snapshot import read_split
    from raymlp.evaluate.evaluation import compare_models
    from raymlp.retrain import lock
    from raymlp.retrain.policy import RetrainFacts, decide

    story = story or SilentStory()
    seen = seen or monitor(config, story=story)
    folder = storage_root(config.runtime) / "retrain" / config.problem.name
    labelled = needs_target(config.problem.task)
    facts = RetrainFacts(
        Counter(alert.kind for alert in seen.alerts),
        seen.labelled if labelled else seen.rows,
        lock.seconds_since_last(folder),
        lock.is_held(folder),
        has_answers=labelled,
    )
    decision = decide(facts, config.retrain)
    if decision.action != "retrain":
        return RetrainResult(decision)
    with lock.held(folder):
        newer = with_newer_data(config, until)
        snapshot = prepare(newer, story=story)
        model = train(newer, snapshot=snapshot, story=story, title="retrain")
        with story.step("compare") as step:
            champion = resolve(config)
            gate, gain = compare_models(newer, Path(champion.bundle), model.bundle, read_split(snapshot.path, "valid"))
            step.result(f"gain in {config.problem.main_metric} over {champion.label} on the newest {snapshot.rows['valid']:,} rows: {gain}")
            step.note(f"gate {gate}")
    if gate.action != "pass":
        return RetrainResult(decision, gate, model)
    return RetrainResult(decision, gate, model, register(newer, model.bundle, aliases=("challenger",), story=story))


def with_newer_data(config: Config, until: datetime | None) -> Config:
    """The config with its time split moved to end at `until`, the newest `retrain.valid_days` being validation."""
    split = config.data.split
    if not isinstance(split, TimeSplit):
        return config
    end = until or newest_moment(config)
    start = end - timedelta(days=config.retrain.valid_days)
    return with_overrides(config, {"data.split.valid_start": start.isoformat(), "data.split.valid_end": end.isoformat()})


def newest_moment(config: Config) -> datetime:
    """The moment after the newest row of the source, from the snapshot of the present settings."""
    import pyarrow.compute as pc

    from raymlp.data.snapshot import read_split

    split = config.data.split
    assert isinstance(split, TimeSplit)
    snapshot = prepare(config)
    newest = max(pc.max(read_split(snapshot.path, name, [split.column]).column(0)).as_py() for name in snapshot.rows)
    moment: datetime = newest + timedelta(microseconds=1)
    return moment


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

    settings, store, name = config.serve.rollout, _store(config), config.problem.name
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
        for line in outlook(settings, traffic_of(prediction_log(config), champion.label)).lines():
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


def forget(
    config: Config, key: tuple[str, str] | None = None, *, expired: bool = False, dry_run: bool = False, story: Story | None = None
) -> ForgetResult:
    """Remove the rows of a person (`key` is a column and a value) or, with `expired`, those older than `data.privacy.retention_days`,
    from all snapshots of the problem, the prediction log and the labels; name the registered models that saw them.

    Not while a job reads a snapshot. The source is not touched; `prepare` drops the rows of a person who was forgotten when it reads
    them again.
    """
    from raymlp.data import forget as forgetting
    from raymlp.data.door import oldest_kept
    from raymlp.data.suppression import LIST

    root, name, privacy = storage_root(config.runtime), config.problem.name, config.data.privacy
    snapshots, logs = snapshot_root(config.runtime) / name, {"log": root / "predictions" / name, "labels": label_folder(config)}
    if (key is None) != expired:
        raise ConfigError("forget needs either a column with a value or expired; expected one of them. Set --key or --expired.")
    with (story or SilentStory()).step("forget") as step:
        if key is not None:
            wanted = forgetting.person(snapshots, *key, privacy.columns)
        elif privacy.retention_days is None:
            raise ConfigError("data.privacy.retention_days is not set; expected the days that a row is kept. Set it with retention_column.")
        else:
            wanted = forgetting.Wanted(privacy.retention_column, oldest=oldest_kept(privacy))
        found = forgetting.forget(wanted, snapshots=snapshots, **logs, dry_run=dry_run)
        models = _store(config).trained_on(name, found.digests) if found.snapshots else ()
        rows = sum(found.snapshots.values())
        step.result(
            f"{'would remove ' if dry_run else ''}{rows:,} rows of {len(found.snapshots)} snapshots, {found.log_rows:,} of the log, "
            f"{found.labels:,} labels; {len(models)} models were trained on those snapshots"
        )
        for note in found.notes:
            step.note(note)
        if key is not None and not dry_run:
            record(config.runtime, "forget", model=name, version="", rows=rows, column=key[0])
            step.note(f"listed, without the value, in {snapshots / LIST}: `prepare` leaves such rows out from now on")
    return ForgetResult(found.snapshots, found.log_rows, found.labels, models, found.notes, dry_run)


def undeploy(config: Config) -> None:
    """Stop the endpoint of the problem."""
    from raymlp.serve import deploy as serving

    serving.undeploy(config.problem.name)
    record(config.runtime, "undeploy", model=config.problem.name, version="")


def prediction_log(config: Config, *, version: str | None = None, since: datetime | None = None) -> pa.Table:
    """Rows of the prediction log, of one version or of all, from a moment on."""
    import pyarrow.compute as pc

    from raymlp.serve.log import read_log

    log = read_log(storage_root(config.runtime) / "predictions" / config.problem.name)
    if version is not None:
        log = log.filter(pc.equal(log.column("version"), version))
    return log.filter(pc.greater_equal(log.column("time"), since)) if since else log


def labels(config: Config) -> pa.Table | None:
    """True answers that have come: `prediction_id` and `label`, the raw value of the target column."""
    import pyarrow.parquet as pq

    folder = label_folder(config)
    return pq.read_table(folder) if any(folder.glob("*.parquet")) else None


def label_folder(config: Config) -> Path:
    """Where true answers are put, as Parquet with the columns `prediction_id` and `label`."""
    return storage_root(config.runtime) / "labels" / config.problem.name


def require(gate: Decision) -> None:
    """Raise GateRefused unless the gate passed."""
    if gate.action != "pass":
        raise GateRefused(f"the gate refused the model: {gate.reason}. Look at the report, then at evaluate.gate.")


def _ticks() -> Iterator[None]:
    """One every two seconds, and where what follows takes long, a fifth of the time for it."""
    took = 0.0
    while True:
        time.sleep(max(2.0, 4 * took))
        start = time.monotonic()
        yield
        took = time.monotonic() - start


def _store(config: Config) -> Store:
    from raymlp.registry.store import Store

    return Store(config.registry, config.runtime)
