"""Metrics and their uncertainty, in NumPy alone.

Legend: N rows, K classes. `y` holds 0/1 (binary), class ids (multiclass) or values (regression);
`p` is float64, (N,) probability of the positive class, (N, K) class probabilities, or (N,) predicted values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raymlp.core.records import Interval, Task

Array = NDArray[Any]
EPSILON = 1e-7
"""Probabilities are clipped to [EPSILON, 1 - EPSILON] before a logarithm."""


def auc(y: Array, p: Array) -> float:
    """Area under the ROC curve = P(score of a positive > score of a negative), ties count half (Mann-Whitney).

    In [0, 1], higher is better, .5 is chance; NaN when only one class is present.
    """
    order = np.argsort(p, kind="stable")
    sorted_p, positive = p[order], y[order] > 0
    num_pos = int(positive.sum())
    num_neg = len(y) - num_pos
    if num_pos == 0 or num_neg == 0:
        return float("nan")
    starts = np.flatnonzero(np.r_[True, sorted_p[1:] != sorted_p[:-1]])
    ends = np.r_[starts[1:], len(p)]
    ranks = np.repeat((starts + ends + 1) / 2.0, ends - starts)
    return float((ranks[positive].sum() - num_pos * (num_pos + 1) / 2) / (num_pos * num_neg))


def average_precision(y: Array, p: Array) -> float:
    """Sum of precision times gain in recall over thresholds; in [0, 1], higher is better; NaN without positives."""
    order = np.argsort(-p, kind="stable")
    hits = np.cumsum(y[order] > 0)
    if len(y) == 0 or hits[-1] == 0:
        return float("nan")
    last_of_tie = np.r_[p[order][1:] != p[order][:-1], True]
    hits, seen = hits[last_of_tie], (np.arange(len(y)) + 1)[last_of_tie]
    gain = np.diff(np.r_[0, hits]) / hits[-1]
    return float(np.sum(gain * hits / seen))


def log_losses(y: Array, p: Array) -> Array:
    """Per-row negative log likelihood (natural log), float64 (N,); lower is better."""
    if p.ndim == 2:
        return np.asarray(-np.log(np.clip(p[np.arange(len(y)), y.astype(int)], EPSILON, 1.0)))
    q = np.clip(p, EPSILON, 1 - EPSILON)
    return np.asarray(-np.where(y > 0, np.log(q), np.log1p(-q)))


def log_loss(y: Array, p: Array) -> float:
    """Mean of `log_losses`; NaN without rows."""
    return float(np.mean(log_losses(y, p))) if len(y) else float("nan")


def brier(y: Array, p: Array) -> float:
    """Mean squared error of the probability (Brier 1950); in [0, 1] for binary, lower is better."""
    return float(np.mean((p - y) ** 2)) if len(y) else float("nan")


def calibration_error(y: Array, p: Array, *, bins: int = 15) -> float:
    """Expected calibration error over equal-count bins: mean |observed rate - mean probability|; lower is better."""
    if len(y) == 0:
        return float("nan")
    groups = np.array_split(np.argsort(p, kind="stable"), bins)
    return float(sum(len(g) * abs(y[g].mean() - p[g].mean()) for g in groups if len(g)) / len(y))


def accuracy(y: Array, p: Array) -> float:
    """Share of rows whose most likely class is right (threshold .5 for binary); in [0, 1], higher is better."""
    guess = p.argmax(axis=1) if p.ndim == 2 else (p >= 0.5).astype(int)
    return float(np.mean(guess == y)) if len(y) else float("nan")


def macro_f1(y: Array, p: Array) -> float:
    """Unweighted mean over classes of 2TP / (2TP + FP + FN); in [0, 1], higher is better."""
    guess = p.argmax(axis=1)
    scores = []
    for k in range(p.shape[1]):
        hit = np.sum((guess == k) & (y == k))
        total = np.sum(guess == k) + np.sum(y == k)
        if total:
            scores.append(2 * hit / total)
    return float(np.mean(scores)) if scores else float("nan")


def rmse(y: Array, p: Array) -> float:
    """Root mean squared error in the target's unit; lower is better."""
    return float(np.sqrt(np.mean((p - y) ** 2))) if len(y) else float("nan")


def mae(y: Array, p: Array) -> float:
    """Mean absolute error in the target's unit; lower is better."""
    return float(np.mean(np.abs(p - y))) if len(y) else float("nan")


def r2(y: Array, p: Array) -> float:
    """1 - residual sum of squares / total sum of squares; at most 1, higher is better; NaN for a constant target."""
    total = float(np.sum((y - y.mean()) ** 2)) if len(y) else 0.0
    return float(1 - np.sum((y - p) ** 2) / total) if total else float("nan")


Metric = Callable[[Array, Array], float]
METRICS: dict[Task, dict[str, Metric]] = {
    "binary": {
        "auc": auc,
        "log_loss": log_loss,
        "average_precision": average_precision,
        "brier": brier,
        "calibration_error": calibration_error,
        "accuracy": accuracy,
    },
    "multiclass": {"log_loss": log_loss, "accuracy": accuracy, "macro_f1": macro_f1},
    "regression": {"rmse": rmse, "mae": mae, "r2": r2},
}
HIGHER_IS_BETTER = {"auc", "average_precision", "accuracy", "macro_f1", "r2"}
DEFAULT_METRIC: dict[Task, str] = {"binary": "auc", "multiclass": "log_loss", "regression": "rmse"}


def score(task: Task, y: Array, p: Array) -> dict[str, float]:
    """All metrics of a task on the same rows."""
    return {name: metric(y, p) for name, metric in METRICS[task].items()}


def losses(task: Task, y: Array, p: Array) -> Array:
    """Per-row proper loss, float64 (N,), used for paired comparison: log loss, or squared error for regression."""
    return np.asarray((p - y) ** 2, dtype=np.float64) if task == "regression" else log_losses(y, p)


def resample(metric: Metric, y: Array, p: Array, *, samples: int, seed: int) -> Interval:
    """Percentile bootstrap over rows (Efron 1979): the metric with its 95 % interval."""
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(samples):
        rows = rng.integers(0, len(y), len(y))
        values.append(metric(y[rows], p[rows]))
    low, high = np.nanpercentile(values, [2.5, 97.5]) if values else (float("nan"), float("nan"))
    return Interval(metric(y, p), float(low), float(high))


def paired_gain(name: str, task: Task, y: Array, new: Array, old: Array, *, samples: int, seed: int) -> Interval:
    """How much better `new` is than `old` on the same rows, in the metric's unit; positive is better.

    Paired percentile bootstrap: both models are scored on each resample, so shared noise cancels.
    """
    metric = METRICS[task][name]
    sign = 1.0 if name in HIGHER_IS_BETTER else -1.0
    rng = np.random.default_rng(seed)
    gains = []
    for _ in range(samples):
        rows = rng.integers(0, len(y), len(y))
        gains.append(sign * (metric(y[rows], new[rows]) - metric(y[rows], old[rows])))
    low, high = np.nanpercentile(gains, [2.5, 97.5])
    return Interval(sign * (metric(y, new) - metric(y, old)), float(low), float(high))
