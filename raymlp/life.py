"""`run`: the whole life of a model. Train, serve, replay what came later, watch, retrain, roll out, and drill a rollback.

The replay sends rows the model has not seen to the endpoint over HTTP in the order of time; each window's true answers
arrive when the window is over, or chunk by chunk while a rollout waits for evidence.
"""

from __future__ import annotations

import os
import secrets
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymlp import pipeline
from raymlp.config.loader import with_overrides
from raymlp.config.schema import Config
from raymlp.config.split import TimeSplit
from raymlp.core.errors import RaymlpError, ServingError
from raymlp.core.files import make_folder
from raymlp.core.records import Endpoint, MonitorReport, RunSummary, Snapshot
from raymlp.data.contract import Contract
from raymlp.data.hours import write_table
from raymlp.runtime.copies import own_folder
from raymlp.runtime.progress import SilentStory, Story
from raymlp.runtime.session import ray_session, storage_root

CHUNK_ROWS = 250
"""Rows between two looks at the evidence of a rollout."""
LOG_WAIT_S = 20.0
KEYS = "RAYMLP_API_KEYS"


@dataclass(frozen=True)
class Window:
    """A stretch of later rows: its name, the moment it ends (data split by time), and the rows in the order of time."""

    name: str
    end: datetime | None
    rows: pa.Table


@dataclass
class Life:
    """An endpoint and what has happened to it."""

    config: Config
    story: Story
    endpoint: Endpoint
    key: str | None
    snapshot: Snapshot
    happened: list[tuple[str, str]] = field(default_factory=list)
    retrains: int = 0

    def tell(self, when: str, what: str) -> None:
        self.happened.append((when, what))


def run(config: Config, *, story: Story | None = None, on_ready: Callable[[Endpoint], None] | None = None) -> RunSummary:
    """Prepare, train, evaluate, gate, register, deploy; then live with it. Everything it started is stopped at the end,
    unless `serve.keep` asks to leave the endpoint up: then `on_ready` is called with it and may block.

    Raises GateRefused when the model is not good enough, RaymlpError when a step fails.
    """
    story = story or SilentStory()
    with _api_key(config) as key, ray_session(config.runtime):
        snapshot = pipeline.prepare(config, story=story)
        model = pipeline.train(config, snapshot=snapshot, story=story)
        evaluation = pipeline.evaluate(config, model.bundle, snapshot=snapshot, story=story)
        pipeline.require(evaluation.gate)
        pipeline.register(config, model.bundle, aliases=("champion",), story=story)
        endpoint = pipeline.deploy(config, with_driver=False, story=story)  # rollouts are driven here, on replayed traffic
        try:
            life = Life(config, story, endpoint, key, snapshot)
            _live(life)
            if config.serve.keep and on_ready is not None:
                pipeline.start_driver(config)
                on_ready(endpoint)
        finally:
            pipeline.undeploy(config)
    root = storage_root(config.runtime)
    places = {
        "evaluation report": str(evaluation.report),
        "monitoring": str(root / "monitor" / config.problem.name),
        "snapshot": str(snapshot.path),
        "MLflow": f"sqlite:///{root / 'mlflow.db'}" if not config.registry.tracking_uri else config.registry.tracking_uri,
        "prediction log": str(endpoint.log),
    }
    if key and config.serve.keep:
        places["API key"] = str(own_folder(root) / "api-key")
    return RunSummary(tuple(story.steps), places, tuple(life.happened), evaluation.gate)


@contextmanager
def _api_key(config: Config) -> Iterator[str | None]:
    """The first key of the environment; without one, a key made for this run and kept in the storage folder, or on this machine where
    that is an object store (mode 600)."""
    given = [key.strip() for key in os.environ.get(KEYS, "").split(",") if key.strip()]
    if config.serve.auth == "none" or given:
        yield given[0] if given else None
        return
    key = secrets.token_urlsafe(32)
    file = make_folder(own_folder(storage_root(config.runtime))) / "api-key"
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600), "w") as out:
        out.write(key)
    os.environ[KEYS] = key
    try:
        yield key
    finally:
        del os.environ[KEYS]


def _live(life: Life) -> None:
    """Window by window: a waiting challenger is rolled out in the next one, and the last one belongs to the drill."""
    windows = windows_of(life.config, life.snapshot)
    drill = windows.pop() if life.config.replay.drill and len(windows) > 1 else None
    waiting = False
    for number, window in enumerate(windows):
        seen = _roll_out(life, window, "rollout") if waiting else _replay_and_watch(life, window)
        is_last = number == len(windows) - 1
        waiting = not is_last and life.retrains < life.config.replay.max_retrains and _retrain(life, window, seen)
    if drill is not None:
        _drill(life, drill)


def windows_of(config: Config, snapshot: Snapshot) -> list[Window]:
    """Windows of later rows, each thinned to `replay.rows_per_window` evenly spaced ones; without a time split one window
    of test (or validation) rows. A last window too short to be judged is left out."""
    from raymlp.data.snapshot import read_split

    split = config.data.split
    if isinstance(split, TimeSplit) and "live" in snapshot.rows:
        table = read_split(snapshot.path, "live").sort_by(split.column)
        starts = pc.floor_temporal(table.column(split.column), unit=config.replay.window)
        names = pc.strftime(starts, format="%Y-%m-%d" if config.replay.window != "month" else "%Y-%m").to_pylist()
    else:
        table = read_split(snapshot.path, "test" if "test" in snapshot.rows else "valid")
        starts, names = None, ["held-out"] * table.num_rows
    labels = np.array(names)
    windows = []
    for name in dict.fromkeys(names):
        rows = table.filter(pa.array(labels == name))
        keep = np.unique(np.linspace(0, rows.num_rows - 1, min(rows.num_rows, config.replay.rows_per_window)).astype(int))
        end = pc.max(rows.column(split.column)).as_py() if isinstance(split, TimeSplit) and starts is not None else None
        windows.append(Window(name, end, rows.take(pa.array(keep))))
    if len(windows) > 1 and windows[-1].rows.num_rows < config.monitor.min_rows:
        windows.pop()
    return windows


def _replay_and_watch(life: Life, window: Window) -> MonitorReport:
    started = datetime.now(UTC)
    with life.story.step("live") as step:
        sent = _send(life, window.rows, step.say)
        step.result(f"{window.name}: {sent}")
    life.tell(window.name, sent)
    return _watch(life, window, started)


def _watch(life: Life, window: Window, started: datetime) -> MonitorReport:
    report = pipeline.monitor(life.config, window=window.name, since=started, story=life.story)
    kinds = Counter(alert.kind for alert in report.alerts)
    life.tell(window.name, "alerts: " + (", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "none"))
    return report


def _retrain(life: Life, window: Window, seen: MonitorReport) -> bool:
    """Ask the policy; True when a challenger now waits for a rollout."""
    result = pipeline.retrain(life.config, seen=seen, until=window.end, story=life.story)
    if result.decision.action != "retrain":
        life.tell(window.name, f"no retrain: {result.decision.reason}")
        return False
    life.retrains += 1
    assert result.gate is not None
    life.tell(window.name, f"retrained ({result.decision.reason}); gate {result.gate}")
    return result.registration is not None


def _roll_out(life: Life, window: Window, title: str) -> MonitorReport:
    """A rollout on the window's traffic; what is left of the window goes to the winner, and is watched."""
    traffic = _traffic(life, window)
    result = pipeline.rollout(life.config, traffic=traffic, story=life.story)
    verb = {"promote": "promoted", "rollback": "rolled back", "pause": "taken out"}[result.decision.action]
    through = ", ".join(f"{share:.0%}" for share in result.shares)
    life.tell(
        window.name,
        f"{title}: challenger {verb} after {result.requests:,} requests ({result.challenger_requests:,} its own, at {through}); "
        f"{result.decision.reason}",
    )
    if title == "drill" and result.decision.action == "promote":
        raise RaymlpError(f"the drill failed: a model trained on shuffled labels was promoted ({result.decision.reason}).")
    started = datetime.now(UTC)
    for _ in traffic:
        pass
    return _watch(life, window, started)


def _drill(life: Life, window: Window) -> None:
    """A challenger that learned from shuffled labels must be rolled back."""
    broken = with_overrides(life.config, {"train.epochs": 1})
    model = pipeline.train(broken, snapshot=life.snapshot, story=life.story, shuffle_labels=True, title="sabotage")
    pipeline.register(life.config, model.bundle, aliases=("challenger",), story=life.story)
    _roll_out(life, window, "drill")


def _traffic(life: Life, window: Window) -> Iterator[None]:
    """Sends the window chunk by chunk; each chunk's answers are known before the next look at the evidence."""
    for start in range(0, window.rows.num_rows, CHUNK_ROWS):
        _send(life, window.rows.slice(start, CHUNK_ROWS), lambda _: None)
        yield


def _send(life: Life, rows: pa.Table, say: Callable[[str], None]) -> str:
    """Send rows over HTTP, wait until the log holds them, and file their true answers. Returns what happened in words."""
    from raymlp.serve.client import replay

    contract = _contract(life.config)
    started = time.perf_counter()
    answers = replay(
        life.endpoint.url,
        life.endpoint.name,
        as_requests(rows, contract),
        key=life.key,
        connections=life.config.replay.connections,
        on_progress=lambda done: say(f"{done:,} of {rows.num_rows:,} requests"),
    )
    seconds = time.perf_counter() - started
    good = [i for i, answer in enumerate(answers) if answer.status == 200]
    if not good:
        first = answers[0]
        raise ServingError(f"none of {len(answers):,} requests was answered; the first got status {first.status}: {first.error}.")
    ids = [str(answers[i].prediction_id) for i in good]
    _await_log(life.config, set(ids))
    if life.config.problem.answer is not None:
        _file_labels(life.config, ids, rows.column(life.config.problem.answer).take(pa.array(good)))
    refused = len(answers) - len(good)
    p50 = float(np.median([answers[i].latency_ms for i in good]))
    failed = f", {refused:,} refused" if refused else ""
    return f"{len(answers):,} requests{failed}, {len(answers) / seconds:,.0f}/s, p50 {p50:.1f} ms"


def _contract(config: Config) -> Contract:
    from raymlp.model.bundle import load_bundle

    return load_bundle(pipeline.resolve(config).bundle).contract


def as_requests(rows: pa.Table, contract: Contract) -> list[dict[str, Any]]:
    """Rows as JSON-able request instances with the contract's fields."""
    plain: list[dict[str, Any]] = rows.select(list(contract.columns)).to_pylist()
    written: dict[str, Callable[[Any], str]] = {"timestamp": datetime.isoformat, "bytes": lambda value: b64encode(value).decode()}
    special = {name: written[rule.type] for name, rule in contract.columns.items() if rule.type in written}
    for row in plain:
        for name, write in special.items():
            row[name] = write(row[name]) if row[name] is not None else None
    return plain


def _await_log(config: Config, ids: set[str]) -> None:
    """Wait until the prediction log holds the ids; give up with an error that says how many are missing."""
    deadline = time.monotonic() + LOG_WAIT_S
    while True:
        missing = ids - set(pipeline.prediction_log(config).column("prediction_id").to_pylist())
        if not missing:
            return
        if time.monotonic() > deadline:
            raise ServingError(f"{len(missing):,} of {len(ids):,} predictions are not in the log after {LOG_WAIT_S:g} s; expected all.")
        time.sleep(0.1)


def _file_labels(config: Config, ids: list[str], answers: pa.ChunkedArray) -> None:
    folder = make_folder(pipeline.label_folder(config))
    write_table(pa.table({"prediction_id": ids, "label": answers}), folder / f"{time.time_ns()}.parquet")
