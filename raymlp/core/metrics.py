"""Metrics and their uncertainty, in NumPy alone.

Legend: N rows, K classes or clusters, F coordinates. `y` holds 0/1 (binary), class ids (multiclass) or values (regression);
`p` is float64, (N,) probability of the positive class, (N, K) class probabilities, or (N,) predicted values.
Clustering: `y` (N, F) has the rows as the model sees them, `p` (N, K) their distances to the clusters (`raymlp.core.clustering`).
Anomaly: `p` (N,) is the score, higher for what is more unusual; `y` (N,) is 0 or 1 where the label is known, NaN where it is not, and
`SHUFFLED` for rows that were made up. Language: `p` (N, 3) says how well each text was foretold (`raymlp.core.language`).

The bootstrap draws how often each row counts rather than the rows themselves, so that a metric sorts and takes
logarithms once for all resamples. Every metric has a weighted form for it; one that a user brings is simply repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raymlp.core import clustering, language
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


SHUFFLED = 2.0
"""In place of a label: the row was put together from the values of several, each column drawn by itself."""


def shuffled_auc(y: Array, p: Array) -> float:
    """Probability that a shuffled row gets a higher score than a real one, ties half; in [0, 1], higher is better, .5 is chance. How well a
    detector knows which values go together, where no anomaly is known (Hastie, Tibshirani and Friedman 2009, section 14.2.4)."""
    return auc(y == SHUFFLED, p)


def known_auc(y: Array, p: Array) -> float:
    """`auc` on the rows whose label is known."""
    known = y <= 1
    return auc(y[known], p[known])


def known_average_precision(y: Array, p: Array) -> float:
    """`average_precision` on the rows whose label is known."""
    known = y <= 1
    return average_precision(y[known], p[known])


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
    "clustering": {
        "silhouette": clustering.silhouette,
        "davies_bouldin": clustering.davies_bouldin,
        "calinski_harabasz": clustering.calinski_harabasz,
        "inertia_share": clustering.inertia_share,
    },
    "anomaly": {"shuffled_auc": shuffled_auc, "auc": known_auc, "average_precision": known_average_precision},
    "language": {"perplexity": language.perplexity, "token_loss": language.token_loss, "token_accuracy": language.token_accuracy},
}
HIGHER_IS_BETTER = {
    *("auc", "average_precision", "accuracy", "macro_f1", "r2"),
    *("silhouette", "calinski_harabasz", "inertia_share", "shuffled_auc", "token_accuracy"),
}
UNBOUNDED = {"log_loss", "rmse", "mae", "davies_bouldin", "calinski_harabasz", "perplexity", "token_loss"}
"""Metrics without a fixed scale: tolerances on them are shares of a reference value."""
DEFAULT_METRIC: dict[Task, str] = {
    "binary": "auc", "multiclass": "log_loss", "regression": "rmse", "clustering": "silhouette", "anomaly": "shuffled_auc",
    "language": "perplexity",
}  # fmt: skip


def score(task: Task, y: Array, p: Array) -> dict[str, float]:
    """All metrics of a task on the same rows."""
    return {name: metric(y, p) for name, metric in METRICS[task].items()}


def flags(y: Array, p: Array, threshold: float) -> dict[str, float]:
    """Of real rows, how many an anomaly detector flags, in [0, 1], and the median and upper quantiles of their scores. NaN without rows."""
    real = p[y != SHUFFLED]
    quantiles = np.quantile(real, [0.5, 0.95, 0.99]) if len(real) else np.full(3, np.nan)
    names = ("score_p50", "score_p95", "score_p99")
    return {
        "flagged_share": float(np.mean(real >= threshold)) if len(real) else float("nan"),
        **dict(zip(names, map(float, quantiles), strict=True)),
    }


def losses(task: Task, y: Array, p: Array) -> Array:
    """Per-row proper loss, float64 (N,), used for paired comparison: log loss, or squared error for regression."""
    return np.asarray((p - y) ** 2, dtype=np.float64) if task == "regression" else log_losses(y, p)


def margin(name: str, amount: float, reference: float) -> float:
    """A tolerance in the metric's own unit: `amount` as it is, or as a share of `reference` where the metric is unbounded."""
    return amount * abs(reference) if name in UNBOUNDED else amount


def gain(name: str, new: float, old: float) -> float:
    """How much better `new` is than `old`, in the metric's unit; positive is better whatever the metric's direction."""
    return new - old if name in HIGHER_IS_BETTER else old - new


def readable(value: float) -> str:
    """A metric for people: four decimals, or none from 1,000 on."""
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.4f}"


def readable_interval(interval: Interval) -> str:
    """`0.7213 [0.7140, 0.7286]`."""
    return f"{readable(interval.value)} [{readable(interval.low)}, {readable(interval.high)}]"


# ---------------------------------------------------------------- uncertainty

Weighted = Callable[[Array], float]
"""A metric with its rows fixed: from float64 weights (N,), how often each row counts, to the value."""


def _weighted_auc(y: Array, p: Array) -> Weighted:
    order, starts = _ties(p)
    positive = (y[order] > 0).astype(np.float64)

    def value(weights: Array) -> float:
        w = weights[order]
        pos = np.add.reduceat(w * positive, starts)
        neg = np.add.reduceat(w, starts) - pos
        pairs = pos.sum() * neg.sum()
        return _dot(pos, np.cumsum(neg) - neg / 2) / pairs if pairs else float("nan")

    return value


def _weighted_average_precision(y: Array, p: Array) -> Weighted:
    order, starts = _ties(-p)
    positive = (y[order] > 0).astype(np.float64)

    def value(weights: Array) -> float:
        w = weights[order]
        found = np.add.reduceat(w * positive, starts)
        hits, seen = np.cumsum(found), np.cumsum(np.add.reduceat(w, starts))
        return _dot(found, hits / np.maximum(seen, 1.0)) / float(hits[-1]) if hits[-1] else float("nan")

    return value


def _weighted_calibration_error(y: Array, p: Array) -> Weighted:
    """The bins are those of all rows, in every resample."""
    groups = [group for group in np.array_split(np.argsort(p, kind="stable"), 15) if len(group)]
    order, starts = np.concatenate(groups), np.cumsum([0, *(len(group) for group in groups[:-1])])
    gap = (y - p)[order]
    return lambda weights: float(np.abs(np.add.reduceat(weights[order] * gap, starts)).sum() / weights.sum())


def _weighted_macro_f1(y: Array, p: Array) -> Weighted:
    num, truth, guess = p.shape[1], y.astype(int), p.argmax(axis=1)
    right = guess == truth

    def value(weights: Array) -> float:
        hit = np.bincount(truth, weights * right, num)
        total = np.bincount(truth, weights, num) + np.bincount(guess, weights, num)
        return float(np.mean(2 * hit[total > 0] / total[total > 0]))

    return value


def _weighted_r2(y: Array, p: Array) -> Weighted:
    centred, squares = y - y.mean(), (y - p) ** 2

    def value(weights: Array) -> float:
        total = _dot(weights, centred**2) - _dot(weights, centred) ** 2 / weights.sum()
        return float(1 - _dot(weights, squares) / total) if total > 0 else float("nan")

    return value


def _among(which: Callable[[Array], Array], form: Callable[[Array, Array], Weighted]) -> Callable[[Array, Array], Weighted]:
    """A form on some of the rows, by their answers; NaN without any."""

    def make(y: Array, p: Array) -> Weighted:
        rows = np.flatnonzero(which(y))
        if not len(rows):
            return lambda _: float("nan")
        inner = form(y[rows], p[rows])
        return lambda weights: inner(weights[rows])

    return make


def _mean_of(rows: Array) -> Weighted:
    return lambda weights: _dot(weights, rows) / float(weights.sum())


def _root_mean_of(rows: Array) -> Weighted:
    return lambda weights: float(np.sqrt(_dot(weights, rows) / weights.sum()))


def _dot(a: Array, b: Array) -> float:
    """Sum of products on one core: waking BLAS threads for each of thousands of short sums costs far more than it saves."""
    return float(np.einsum("i,i->", a, b))


def _hits(y: Array, p: Array) -> Array:
    guess = p.argmax(axis=1) if p.ndim == 2 else p >= 0.5
    return np.asarray(guess == y, dtype=np.float64)


def _ties(p: Array) -> tuple[Array, Array]:
    """Rows in rising order of `p`, and where each run of equal values starts."""
    order = np.argsort(p, kind="stable")
    ranked = p[order]
    return order, np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])


WEIGHTED: dict[Metric, Callable[[Array, Array], Weighted]] = {
    auc: _weighted_auc,
    average_precision: _weighted_average_precision,
    calibration_error: _weighted_calibration_error,
    macro_f1: _weighted_macro_f1,
    r2: _weighted_r2,
    log_loss: lambda y, p: _mean_of(log_losses(y, p)),
    brier: lambda y, p: _mean_of((p - y) ** 2),
    accuracy: lambda y, p: _mean_of(_hits(y, p)),
    mae: lambda y, p: _mean_of(np.abs(p - y)),
    rmse: lambda y, p: _root_mean_of((p - y) ** 2),
    clustering.silhouette: clustering.weighted_silhouette,
    clustering.davies_bouldin: clustering.weighted_davies_bouldin,
    clustering.calinski_harabasz: clustering.weighted_calinski_harabasz,
    clustering.inertia_share: clustering.weighted_inertia_share,
    shuffled_auc: lambda y, p: _weighted_auc(y == SHUFFLED, p),
    known_auc: _among(lambda y: y <= 1, _weighted_auc),
    language.perplexity: language.weighted_perplexity,
    language.token_loss: language.weighted_token_loss,
    language.token_accuracy: language.weighted_token_accuracy,
    known_average_precision: _among(lambda y: y <= 1, _weighted_average_precision),
}


def weighted(metric: Metric, y: Array, p: Array) -> Weighted:
    """The metric as a function of row weights; whole weights give the value of the rows repeated that often."""
    if metric in WEIGHTED:
        return WEIGHTED[metric](y, p)
    return lambda weights: metric(np.repeat(y, weights.astype(int), axis=0), np.repeat(p, weights.astype(int), axis=0))


def resample(metric: Metric, y: Array, p: Array, *, samples: int, seed: int) -> Interval:
    """Bootstrap over rows (Efron 1979): the metric with its 95 % interval.

    Percentiles of the resampled values, moved so that their mean is the estimate: without it the interval of a metric
    that resampling biases (`calibration_error`) can miss its own estimate. All NaN without rows.
    """
    return _interval(metric(y, p), _draws([weighted(metric, y, p)] if len(y) else [], len(y), samples, seed))


def resample_all(task: Task, y: Array, p: Array, *, samples: int, seed: int) -> dict[str, Interval]:
    """`resample` for every metric of a task, on the same draws."""
    forms = [weighted(metric, y, p) for metric in METRICS[task].values()] if len(y) else []
    draws = _draws(forms, len(y), samples, seed)
    return {name: _interval(metric(y, p), draws[i : i + 1]) for i, (name, metric) in enumerate(METRICS[task].items())}


def paired_gain(name: str, task: Task, y: Array, new: Array, old: Array, *, samples: int, seed: int) -> Interval:
    """How much better `new` is than `old` on the same rows, in the metric's unit; positive is better.

    Paired bootstrap: both models are scored on each resample, so shared noise cancels. All NaN without rows.
    """
    metric = METRICS[task][name]
    estimate = gain(name, metric(y, new), metric(y, old))
    forms = [weighted(metric, y, p) for p in (new, old)] if len(y) else []
    draws = _draws(forms, len(y), samples, seed)
    return _interval(estimate, gain(name, draws[:1], draws[1:]) if len(draws) else draws)  # type: ignore[arg-type]


def _draws(forms: list[Weighted], rows: int, samples: int, seed: int) -> Array:
    """Values of each form on the same resamples, float64 (forms, samples)."""
    rng = np.random.default_rng(seed)
    values = np.empty((len(forms), samples if forms else 0))
    for column in range(values.shape[1]):
        weights = np.bincount(rng.integers(0, rows, rows), minlength=rows).astype(np.float64)
        values[:, column] = [form(weights) for form in forms]
    return values


def _interval(estimate: float, draws: Array) -> Interval:
    kept = draws[np.isfinite(draws)]
    if not len(kept) or not np.isfinite(estimate):
        return Interval(estimate, float("nan"), float("nan"))
    low, high = np.percentile(kept, [2.5, 97.5]) + estimate - kept.mean()
    return Interval(estimate, float(low), float(high))
