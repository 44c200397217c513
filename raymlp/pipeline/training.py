"""How a model comes to be, is tried beside others, and is made again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

from raymlp.config.loader import to_yaml, with_overrides
from raymlp.config.schema import Config, Site
from raymlp.core.errors import ConfigError, DataError
from raymlp.core.files import make_folder
from raymlp.core.records import (
    CrossValidation,
    Found,
    Reproduction,
    Snapshot,
    Trace,
    TrainedModel,
    TuneResult,
    needs_target,
)
from raymlp.data.place import scratch, snapshot_root
from raymlp.pipeline.data import prepare
from raymlp.pipeline.models import resolve
from raymlp.runtime.progress import SilentStory, Story, epoch_row
from raymlp.runtime.session import ray_session, storage_root


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
    alone = named.claimed(names, name) if name else nullcontext(lambda: None)
    with ray_session(config.runtime), (story or SilentStory()).step(title) as step, alone as require_alone:
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
                require_alone()
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
        scratch(root, ".trials") as shared,
    ):
        settings, latency, done = config.tune, LATENCY in config.tune.objectives, [0]

        def on_trial(trial: Trial) -> None:
            done[0] += 1
            step.say(f"{done[0]} of {settings.limit or 'many'} trials{f'; trial {trial.number}: {trial.error}' if trial.error else ''}")

        def objective(trial: Config, report: Any, resume: Path | None) -> Mapping[str, float]:
            if settings.workers == "as_train":
                return fit_by_workers(trial, snapshot, report, folder=shared, latency=latency)
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
