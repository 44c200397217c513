"""Models that scikit-learn fits on a bounded sample of the training rows, in one go: k-means and isolation forests.

One worker reads all rows once, keeps evenly spaced ones and fits on them. A fit that was cut off begins anew: it has no middle.
Legend: N rows, F features, K clusters.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raymlp.config.unsupervised import IsolationForest, KMeans, Sampled
from raymlp.core.errors import DataError
from raymlp.core.metrics import METRICS, SHUFFLED, flags
from raymlp.core.records import Task
from raymlp.data.parquet import spread
from raymlp.features.plan import FeaturePlan
from raymlp.model.calibration import Calibration
from raymlp.model.clusters import ClusterScorer
from raymlp.model.isolation import IsolationScorer, features_of, tree_of, usual_path
from raymlp.model.judging import CLUSTERED_ROWS, SHUFFLED_ROWS, coordinates, shuffled_tensors
from raymlp.model.scorer import Scorer, taken
from raymlp.model.trees import matrix
from raymlp.runtime import environment
from raymlp.train.blocks import Block, Source, joined
from raymlp.train.figures import Figures, epoch_figures
from raymlp.train.job import Job, Outcome, Progress
from raymlp.train.pace import Pace
from raymlp.train.team import Report, Team

log = logging.getLogger(__name__)
SAMPLE_BYTES = 1 << 30
"""Most bytes of the sample; with thousands of categories it may hold fewer rows than were asked for."""
SCORED_ROWS = 8_192
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Found:
    """A fitted model, and its mean loss on the sample."""

    scorer: Scorer
    loss: float
    calibration: Calibration
    facts: Mapping[str, float] = field(default_factory=dict)


def fit_sampled(job: Job, train: Source, valid: Source, team: Team, *, report: Report) -> Outcome:
    """Fit on a sample of the training rows and judge on the validation split. One worker alone.

    It is one epoch. The loss of clusters is the mean squared distance to the nearest centre; that of an isolation forest 1 - the area
    under the curve that tells shuffled rows from real ones. Raises DataError when the sample has fewer different rows than clusters.
    """
    model, plan, settings = job.config.model, job.plan, job.config.train
    assert isinstance(model, KMeans | IsolationForest)
    figures = Figures()
    figures.start()
    rows = job.train_rows(1)
    most = min(model.sample_rows, max(1, SAMPLE_BYTES // (8 * width(model, plan))))
    sample = sampled(train(None), rows, most)
    waited = figures.seconds
    log.info("model.kind %s learns from %s of %s training rows", model.kind, f"{len(sample):,}", f"{rows:,}")
    found = fitted(model, plan, sample, seed=settings.seed)
    took = figures.seconds
    figures.step()
    outputs, answers, loss = _judged(job, found.scorer, valid)
    metric = job.config.problem.main_metric
    metrics = {
        "epoch": 0.0,
        "train_loss": found.loss,
        "valid_loss": loss,
        f"valid_{metric}": METRICS[plan.target.task][metric](answers, outputs),
        "workers": 1.0,
        "rows_per_s": len(sample) / took,
        **epoch_figures(figures.row(train_s=took, waited_s=waited)),
    }
    progress = Progress(1, Pace(0), seconds=took)
    progress.add(metrics, settings, over=True)
    report(metrics, None)
    facts = {"sampled_rows": float(len(sample)), **found.facts}
    if plan.target.task == "anomaly":
        facts |= flags(answers, outputs, found.calibration.threshold)
    return Outcome(found.scorer, outputs, answers, progress, environment.facts(), found.calibration, facts)


def width(model: Sampled, plan: FeaturePlan) -> int:
    """Numbers of a row of the sample."""
    return plan.num_numeric + (sum(plan.cardinalities) if isinstance(model, KMeans) else len(plan.categories))


def sampled(blocks: Iterator[Block], rows: int, most: int) -> Block:
    """At most so many evenly spaced ones of all rows."""
    places, start = spread(rows, most), 0
    kept = []
    for block in blocks:
        inside = places[(places >= start) & (places < start + len(block))] - start
        if len(inside):
            kept.append(block.take(inside))
        start += len(block)
    return joined(kept)


def fitted(model: Sampled, plan: FeaturePlan, sample: Block, *, seed: int) -> Found:
    """Fit on the sample. On one thread: several would add in an order of their own, and two runs would differ."""
    from threadpoolctl import threadpool_limits

    tensors = taken(sample.tensors)
    with threadpool_limits(1):
        if isinstance(model, KMeans):
            return _clusters(model, plan, tensors, seed)
        return _forest(model, plan, tensors, seed)


def _clusters(model: KMeans, plan: FeaturePlan, tensors: Mapping[str, NDArray[Any]], seed: int) -> Found:
    from sklearn.cluster import KMeans as Estimator
    from sklearn.exceptions import ConvergenceWarning

    x = coordinates(plan, tensors).astype(np.float64)
    different = len(np.unique(x[: 4 * model.clusters], axis=0))
    if different < model.clusters and (different := len(np.unique(x, axis=0))) < model.clusters:
        raise DataError(f"the sample has {different:,} different rows; expected {model.clusters:,} or more. Set model.clusters.")
    estimator = Estimator(model.clusters, init="k-means++", n_init=model.n_init, max_iter=model.max_iterations, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        estimator.fit(x)
    scorer = ClusterScorer.of(np.asarray(estimator.cluster_centers_, dtype=np.float64), plan)
    return Found(scorer, float(estimator.inertia_) / len(x), Calibration(task="clustering"))


def _forest(model: IsolationForest, plan: FeaturePlan, tensors: Mapping[str, NDArray[Any]], seed: int) -> Found:
    from sklearn.ensemble import IsolationForest as Estimator

    x = matrix(tensors)
    rows = min(model.tree_rows, len(x))
    estimator = Estimator(n_estimators=model.trees, max_samples=rows, max_features=model.feature_share, random_state=seed).fit(x)
    trees = []
    for tree, features in zip(estimator.estimators_, estimator.estimators_features_, strict=True):
        nodes = tree.tree_
        read = np.where(nodes.feature >= 0, np.asarray(features)[np.maximum(nodes.feature, 0)], 0)
        children = np.stack([nodes.children_left, nodes.children_right], axis=1).astype(np.int64)
        trees.append(tree_of(read.astype(np.int64), nodes.threshold, children, nodes.n_node_samples.astype(np.int64)))
    scorer = IsolationScorer(trees, features_of(plan), float(usual_path(np.array([rows]))[0]))
    scores = _in_parts(scorer, tensors)[:, 0]
    threshold = 0.5 if model.contamination is None else float(np.quantile(scores, 1 - model.contamination))
    y = np.r_[np.zeros(len(scores)), np.full(len(scores), SHUFFLED)]
    made = _in_parts(scorer, shuffled_tensors(tensors, plan))[:, 0]
    return Found(scorer, _loss("anomaly", y, np.r_[scores, made]), Calibration(task="anomaly", threshold=threshold))


def _judged(job: Job, scorer: Scorer, valid: Source) -> tuple[Floats, NDArray[Any], float]:
    """Outputs and what they are judged by, of the rows that `raymlp.model.judging.judged` would take; and the loss."""
    plan, rows = job.plan, job.rows["valid"]
    if plan.target.task == "clustering":
        squares = sum(
            float(np.square(scorer(taken(part.tensors)).min(axis=1)).sum()) for block in valid(None) for part in block.pieces(SCORED_ROWS)
        )
        tensors = taken(sampled(valid(None), rows, CLUSTERED_ROWS).tensors)
        return _in_parts(scorer, tensors), coordinates(plan, tensors), squares / rows
    real = [(_in_parts(scorer, taken(block.tensors))[:, 0], block.target) for block in valid(None)]
    made = _in_parts(scorer, shuffled_tensors(taken(sampled(valid(None), rows, SHUFFLED_ROWS).tensors), plan))[:, 0]
    outputs = np.concatenate([*(scores for scores, _ in real), made])
    answers = np.concatenate([*(labels.astype(np.float64) for _, labels in real), np.full(len(made), SHUFFLED)])
    return outputs, answers, _loss("anomaly", answers, outputs)


def _loss(task: Task, y: NDArray[Any], p: Floats) -> float:
    return 1 - METRICS[task]["shuffled_auc"](y, p)


def _in_parts(scorer: Scorer, tensors: Mapping[str, NDArray[Any]]) -> Floats:
    rows = len(tensors["numeric"])
    parts = [{name: values[at : at + SCORED_ROWS] for name, values in tensors.items()} for at in range(0, rows, SCORED_ROWS)]
    return np.concatenate([scorer(part) for part in parts]).astype(np.float64)
