"""One trial of a study: trained as it would be alone, in this process or by workers of its own, and judged on the validation split."""

from __future__ import annotations

import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raymlp.config.schema import Config
from raymlp.config.trees import Trees
from raymlp.core.files import Place
from raymlp.core.metrics import METRICS, resample
from raymlp.core.records import Snapshot
from raymlp.data.snapshot import load_profile, read_split
from raymlp.model.judging import judged
from raymlp.model.predictor import Predictor
from raymlp.runtime.store import remove
from raymlp.train.shelf import Shelf

BOOTSTRAP = 200
"""Resamples of the interval of the main metric."""
ROUNDS, ROUND_ROWS = 15, 40
"""Rounds of single rows whose median latency is taken, and rows of each."""
Save = Callable[[Path], None]
Report = Callable[[dict[str, float], Save | None], bool]


class _TimeIsOver(Exception):
    """Ends a training whose caller has had enough."""


def fit_held(
    config: Config, snapshot: Snapshot, shelf: Shelf, report: Report, resume: Path | None = None, *, latency: bool = False
) -> dict[str, float]:
    """Train in this process on the rows of the shelf, as one worker on the CPU. `report` hears each epoch, and its checkpoint where
    `train.checkpoint` makes one; true ends training. `resume` is such a checkpoint, perhaps of other settings.

    Gives the metrics on the validation split, `interval_low` and `interval_high` of the main metric, and `latency_ms` where asked.
    Raises ConfigError for settings that do not go together, as `train` does.
    """
    from raymlp.train.population import adopted, note_settings
    from raymlp.train.trainer import bundle_of, check
    from raymlp.train.worker import fit_alone, job_of

    check(config)
    plan, splits = shelf.get(config.features, keeps_missing=isinstance(config.model, Trees))
    profile = load_profile(snapshot.path)
    job = job_of(config, plan, splits, profile)

    def noted(metrics: dict[str, float], save: Save | None) -> bool:
        def write(folder: Path) -> None:
            if save:
                save(folder)
                note_settings(folder, config.train)

        return report(metrics, write if save else None)

    with tempfile.TemporaryDirectory(prefix="raymlp-adopted-") as folder:
        outcome = fit_alone(job, splits, noted, resume=adopted(resume, job, Path(folder)) if resume else None)
    _, scores, metrics = outcome.scored(plan.target.task, job.class_weights)
    metrics |= _interval(config, outcome.answers, scores)
    if latency:
        metrics["latency_ms"] = latency_of(Predictor(bundle_of(job, outcome, snapshot, profile, "trial")[0]), snapshot.path)
    return metrics


def fit_by_workers(config: Config, snapshot: Snapshot, report: Report, *, folder: Place, latency: bool = False) -> dict[str, float]:
    """Train as `raymlp train` does, with the workers of `train`; the bundle is not kept. Gives what `fit_held` gives, or nothing when
    `report` ended it. `folder` is one that all workers see; a trial that did not come to its end leaves something in it."""
    from raymlp.train.trainer import train

    def on_epoch(metrics: dict[str, float]) -> None:
        if report(metrics, None):
            raise _TimeIsOver

    run_dir = folder / f"trial-{uuid.uuid4().hex[:8]}"
    try:
        model = train(config, snapshot, run_dir=run_dir, run_id="trial", on_epoch=on_epoch)
    except _TimeIsOver:
        return {}  # its workers may not have heard yet that they are to stop, which a file in their folder says
    predictor = Predictor.load(model.bundle)
    metrics = {**model.metrics, **_interval(config, *_scored(predictor, snapshot.path))}
    if latency:
        metrics["latency_ms"] = latency_of(predictor, snapshot.path)
    with suppress(OSError):
        remove(run_dir)
    return metrics


def latency_of(predictor: Predictor, path: Place) -> float:
    """Milliseconds that one row takes through feature plan and model, one after the other, on the threads that this process has.

    The median over rows of the validation split, in rounds, and of the rounds the lowest: other trials run at the same time, and what
    they add is not the model's. A request's parsing and the network are not in it.
    """
    table = next(_batches(path, predictor)).slice(0, ROUND_ROWS)
    rows: list[dict[str, Any]] = table.to_pylist()
    return 1e3 * min(_median_s(predictor, rows) for _ in range(ROUNDS))


def _median_s(predictor: Predictor, rows: list[dict[str, Any]]) -> float:
    times = []
    for row in rows:
        started = time.perf_counter()
        predictor.predict_typed(row)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _batches(path: Place, predictor: Predictor) -> Any:
    from raymlp.data import parquet
    from raymlp.data.place import split_files

    for file in split_files(path, "valid"):
        yield from parquet.batches(file, list(predictor.bundle.plan.inputs), rows=1_024)


def _scored(predictor: Predictor, path: Place) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What the validation rows are judged by, and their scores."""
    plan = predictor.bundle.plan
    table, answers, _ = judged(read_split(path, "valid", list(dict.fromkeys([*plan.inputs, *plan.target.columns]))), plan)
    return answers, predictor.bundle.calibration.apply(predictor.outputs(table))


def _interval(config: Config, answers: NDArray[Any], scores: NDArray[Any]) -> Mapping[str, float]:
    metric = METRICS[config.problem.task][config.problem.main_metric]
    found = resample(metric, answers, scores, samples=BOOTSTRAP, seed=0)
    return {"interval_low": found.low, "interval_high": found.high}
