"""What an endpoint needs over time: a look at what it sees, newer models, people who are forgotten."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta

from raymlp.config.loader import with_overrides
from raymlp.config.schema import Config
from raymlp.config.split import TimeSplit
from raymlp.core.errors import ConfigError
from raymlp.core.records import (
    ForgetResult,
    MonitorReport,
    RetrainResult,
    needs_target,
)
from raymlp.data.place import snapshot_root
from raymlp.pipeline.data import prepare
from raymlp.pipeline.driver import label_folder
from raymlp.pipeline.models import register, resolve, store_of
from raymlp.pipeline.serving import labels, prediction_log
from raymlp.pipeline.training import train
from raymlp.runtime.audit import record
from raymlp.runtime.progress import SilentStory, Story
from raymlp.runtime.session import storage_root
from raymlp.runtime.textfile import MonitorMetrics, Outcome, RetrainMetrics, failure_is_told

SHOWN_ALERTS = 3


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
        MonitorMetrics().write(config.runtime, config.problem.name, result)
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

    `until` ends the data (for data split by time); null takes all there is. How it ended is left for Prometheus.
    """
    with failure_is_told(config.runtime, config.problem.name):
        result = _retrain(config, seen, until, story or SilentStory())
    outcome: Outcome = "challenger" if result.registration else "refused" if result.gate else "unneeded"
    RetrainMetrics().write(config.runtime, config.problem.name, outcome)
    return result


def _retrain(config: Config, seen: MonitorReport | None, until: datetime | None, story: Story) -> RetrainResult:
    from raymlp.data.snapshot import read_split
    from raymlp.evaluate.evaluation import compare_models
    from raymlp.retrain import lock
    from raymlp.retrain.policy import RetrainFacts, decide

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
            gate, gain = compare_models(newer, champion.bundle, model.bundle, read_split(snapshot.path, "valid"))
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
    from raymlp.serve.application import log_folder, shadow_folder

    name, privacy = config.problem.name, config.data.privacy
    snapshots, logs = (
        snapshot_root(config.runtime) / name,
        {
            "log": log_folder(config, name),
            "labels": label_folder(config),
            "shadows": shadow_folder(config, name),
        },
    )
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
        models = store_of(config).trained_on(name, found.digests) if found.snapshots else ()
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
