"""The boosting loop of one worker: the same code in a Ray Train group and inside one process.

Legend: N rows of the worker, F features, K classes, O outputs.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raymlp.config.budget import Budget
from raymlp.config.trees import Trees, XGBoost
from raymlp.core.metrics import METRICS
from raymlp.core.records import Task
from raymlp.data.target import Target
from raymlp.model.calibration import Calibration
from raymlp.model.trees import FILES, TreeScorer, matrix
from raymlp.runtime import environment
from raymlp.train.blocks import Block, Source, grouped, joined
from raymlp.train.boosting import Booster, Rows, booster
from raymlp.train.figures import Figures, epoch_figures
from raymlp.train.job import Job, Outcome, Progress
from raymlp.train.pace import Pace
from raymlp.train.pulse import Notice, Pulse
from raymlp.train.team import Report, Stopped, Team, is_due

BEST = "best.json"
"""The round and loss of the best, and its trees."""
Floats = NDArray[np.float64]


@dataclass
class Best:
    """The round with the lowest validation loss so far."""

    round: int = 0
    loss: float = float("inf")
    text: str = ""
    """Its trees."""


def loss_of(task: Task, outputs: Floats, answers: NDArray[Any]) -> Floats:
    """Loss of each row (N,) from `outputs` (N, O): that of nets (`raymlp.train.module.loss_sum`), unweighted."""
    if task == "regression":
        return np.asarray(np.square(outputs[:, 0] - answers))
    if task == "binary":
        return np.logaddexp(0.0, outputs[:, 0]) - answers * outputs[:, 0]
    top = outputs.max(axis=1, keepdims=True)
    total = top[:, 0] + np.log(np.exp(outputs - top).sum(axis=1))
    return np.asarray(total - outputs[np.arange(len(outputs)), answers.astype(np.int64)])


def fit_trees(job: Job, train: Source, valid: Source, team: Team, *, report: Report, resume: Path | None = None) -> Outcome:
    """Add trees until the last epoch, or until validation stops getting better, from a checkpoint where one is given. The trees up to the
    round with the lowest validation loss are kept.

    Every worker of the group calls it and gets the same trees. Rows are held in memory, as float32 (N, F). A step of the budget is a
    round. Raises TrainingError when the loss is no number, Stopped when the run was saved and ended at its caller's wish.
    """
    model, settings, target = job.config.model, job.config.train, job.plan.target
    assert isinstance(model, Trees)
    progress = Progress.load(resume) if resume else Progress(team.world_size, Pace(0))
    pulse = Pulse(team.agree, team.hear, rank=team.rank, seconds=progress.seconds)
    saved_s, figures = progress.seconds, Figures()
    started = time.perf_counter()
    rows, held = _training_rows(job, train, team), _rows(joined(valid(None)), job.class_weights)
    waited = time.perf_counter() - started
    if job.shuffle_labels:
        drawn = np.random.default_rng((settings.seed, team.rank)).permutation(len(rows.y))
        rows = Rows(rows.x, rows.y[drawn], rows.weights[drawn])
    name = FILES[model.kind]
    text = (resume / name).read_text() if resume else ""
    best = Best(**json.loads((resume / BEST).read_text())) if resume else Best()
    answers = team.gather(held.y)
    with _connected(model, team):
        if not progress.finished:
            making = booster(
                model, job.plan, rows, held,
                seed=settings.seed, threads=max(1, int(settings.cpus_per_worker)), network=_machines(model, team), resume=text,
            )  # fmt: skip
        while not progress.finished:
            before = best.round
            figures.start()
            rounds = min(model.rounds_per_epoch, (settings.budget.steps or sys.maxsize) - making.rounds)
            valid_loss, outputs = _epoch(making, rounds, held, len(answers), target.task, team, best, figures)
            train_sum, train_rows = team.total(np.array([_total(target.task, making.outputs("train"), rows), len(rows.y)]))
            took = figures.seconds
            metric = job.config.problem.main_metric
            scores = Calibration.undoing(target.task, job.class_weights).apply(target.in_unit(team.gather(outputs)))
            metrics = {
                "epoch": float(progress.epochs),
                "train_loss": train_sum / train_rows,
                "valid_loss": valid_loss,
                f"valid_{metric}": METRICS[target.task][metric](_truth(target, answers), scores),
                "workers": float(team.world_size),
                "rows_per_s": train_rows * rounds / took,
                **epoch_figures(team.gather(figures.row(train_s=waited + took, waited_s=waited))),
            }
            waited = 0.0
            beat = pulse.beat(making.rounds, uploading=team.uploading())
            progress.seconds = beat.seconds
            progress.add(metrics, settings, over=_is_over(settings.budget, making.rounds, beat.seconds))
            if best.round > before:
                best.text = making.text(best.round)
            stop = beat.notice is Notice.STOP and not progress.finished
            due = progress.finished or stop or is_due(settings.checkpoint, progress.epochs, beat, saved_s=saved_s)
            saved_s = beat.seconds if due else saved_s

            def save(folder: Path) -> None:
                if team.rank == 0:
                    (folder / name).write_text(making.text(making.rounds))
                    (folder / BEST).write_text(json.dumps(asdict(best)))
                    progress.save(folder)

            if report(metrics, save if due else None):
                break
            if stop:
                raise Stopped
    scorer = TreeScorer.read(model.kind, best.text, job.plan, source="what was trained")
    outputs = team.gather(scorer.forest(held.x))
    return Outcome(scorer, target.in_unit(outputs), _truth(target, answers), progress, environment.facts())


def _is_over(budget: Budget, rounds: int, seconds: float) -> bool:
    """Whether a limit is reached."""
    by_rounds = budget.steps is not None and rounds >= budget.steps
    return by_rounds or (budget.minutes is not None and seconds >= budget.minutes * 60)


def _epoch(
    making: Booster, rounds: int, valid: Rows, num_valid: int, task: Task, team: Team, best: Best, figures: Figures
) -> tuple[float, Floats]:
    """Some rounds; the lowest validation loss, over the `num_valid` rows of all workers, and this worker's validation outputs there. Notes
    in `best` the best round of all. A round is a step of the figures."""
    lowest, kept = float("inf"), np.zeros(0)
    for number in range(rounds):
        making.update()
        outputs = making.outputs("valid")
        loss = float(team.total(np.array([_total(task, outputs, valid)]))[0]) / num_valid
        if not number or loss < lowest or not np.isfinite(loss):
            lowest, kept = loss, outputs
        if loss < best.loss:
            best.round, best.loss = making.rounds, loss
        figures.step()
    return lowest, kept


def _total(task: Task, outputs: Floats, rows: Rows) -> float:
    return float((loss_of(task, outputs, rows.y) * rows.weights).sum())


def _training_rows(job: Job, source: Source, team: Team) -> Rows:
    """The rows of this worker, weighed, or resampled once for the whole run, which draws them again when it goes on."""
    settings, blocks = job.config.train, source(None)
    resample = job.resampler(team.world_size)
    if resample is not None:
        blocks = resample(map(joined, grouped(blocks)), np.random.default_rng((settings.seed, team.rank)), keep_order=True)
    return _rows(joined(blocks), job.class_weights if settings.class_weights == "balanced" else ())


def _rows(block: Block, class_weights: Sequence[float]) -> Rows:
    weights = np.array(class_weights, np.float32)[block.target.astype(np.int64)] if class_weights else np.ones(len(block), np.float32)
    return Rows(matrix(block.tensors), np.array(block.target), weights)


def _truth(target: Target, answers: NDArray[Any]) -> Floats:
    truth = answers.astype(np.float64)
    return truth if target.task == "multiclass" else truth * target.scale + target.mean


def _connected(model: Trees, team: Team) -> AbstractContextManager[Any]:
    """XGBoost's network, while the block runs."""
    if team.world_size == 1 or not isinstance(model, XGBoost):
        return nullcontext()
    from ray.train.xgboost import XGBoostConfig

    context: AbstractContextManager[Any] = XGBoostConfig().train_func_context()
    return context


def _machines(model: Trees, team: Team) -> dict[str, Any]:
    """What LightGBM needs to find the other workers."""
    if team.world_size == 1 or isinstance(model, XGBoost):
        return {}
    from ray.train.lightgbm import get_network_params

    return {**get_network_params(), "tree_learner": "data", "pre_partition": True}
