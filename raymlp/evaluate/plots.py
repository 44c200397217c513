"""Drawings of the evaluation report, as inline SVG. Legend: N rows, K classes; `y`, `p` as in `raymlp.core.metrics`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raymlp.core.clustering import own, silhouettes
from raymlp.core.language import losses
from raymlp.core.metrics import SHUFFLED, readable
from raymlp.core.records import Task
from raymlp.evaluate.curves import calibration_curve, roc_curve
from raymlp.runtime.page import BAD, FAINT, INK, MODEL, OTHER, axes, drawing, plain

Floats = NDArray[np.float64]
Plot = Mapping[str, Any]
"""`title`, `note` (a sentence on how to read it) and `svg`."""
MAX_POINTS = 1_000


def plots(
    task: Task, y: Floats, p: Floats, baselines: Mapping[str, Floats], *, classes: tuple[str, ...], threshold: float = 0.5
) -> list[Plot]:
    """What helps to judge a model of this task; anomalies are flagged from `threshold` on."""
    if not len(y):
        return []
    if task == "binary":
        return [calibration(y, p, "positive rate"), roc(y, p, baselines), score_distribution(y, p, classes)]
    if task == "regression":
        return [predicted_against_actual(y, p), calibration(y, p, "mean of the answer"), residuals(y, p)]
    if task == "clustering":
        return [silhouette_heaps(y, p), cluster_sizes(p)]
    if task == "anomaly":
        return [anomaly_scores(y, p, threshold)]
    if task == "language":
        return [text_losses(p, baselines)]
    return [confidence(y, p)]


def calibration(y: Floats, p: Floats, unit: str) -> Plot:
    """Mean prediction against observed mean, with intervals and the diagonal."""
    curve = calibration_curve(y, p)
    figure, ax = axes()
    ends = [min(curve.predicted.min(), curve.observed.min()), max(curve.predicted.max(), curve.observed.max())]
    ax.plot(ends, ends, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
    ax.vlines(curve.predicted, curve.low, curve.high, color=MODEL, alpha=0.45, linewidth=2.5)
    ax.plot(curve.predicted, curve.observed, color=MODEL, marker="o", markersize=4, linewidth=1.4)
    ax.set_xlabel(f"predicted {unit}")
    ax.set_ylabel(f"observed {unit}")
    title = "Calibration"
    note = "Groups of equal size by prediction, with 95 % intervals. On the dashed line the predictions mean what they say."
    return {"title": title, "note": note, "svg": drawing(figure, title=f"{title}: predicted against observed {unit}")}


def roc(y: Floats, p: Floats, baselines: Mapping[str, Floats]) -> Plot:
    """True against false positive rate, the baselines behind the model."""
    figure, ax = axes()
    styles = {"linear": (0, (5, 2)), "gradient_boosting": "-"}
    for name, style in styles.items():
        if name in baselines:
            ax.plot(*roc_curve(y, baselines[name]), color=OTHER, linewidth=1.4, linestyle=style, label=name.replace("_", " "))
    ax.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (1, 3)), label="chance")
    ax.plot(*roc_curve(y, p), color=MODEL, linewidth=2, label="model")
    ax.set_xlabel("false positive rate")
    ax.set_ylabel("true positive rate")
    _legend(ax)
    note = "How many positives are found for a given share of false alarms; further up and left is better."
    return {"title": "ROC curve", "note": note, "svg": drawing(figure, title="ROC curve of the model and the baselines")}


def score_distribution(y: Floats, p: Floats, classes: tuple[str, ...]) -> Plot:
    """Share of each class's rows by predicted probability."""
    figure, ax = axes()
    edges = np.linspace(0, 1, 41)
    for value, colour in ((0, OTHER), (1, MODEL)):
        rows = p[y == value]
        if len(rows):
            shares = np.histogram(rows, edges)[0] / len(rows)
            ax.stairs(shares, edges, color=colour, fill=True, alpha=0.3)
            ax.stairs(shares, edges, color=colour, linewidth=1.6, label=plain(classes[value]))
    ax.set_xlabel("predicted probability")
    ax.set_ylabel("share of the class")
    _legend(ax)
    note = "Two heaps that lie apart are easy to tell apart."
    return {"title": "Scores by class", "note": note, "svg": drawing(figure, title="Distribution of scores by class")}


def predicted_against_actual(y: Floats, p: Floats) -> Plot:
    """A sample of rows as points, with the diagonal."""
    rows = np.linspace(0, len(y) - 1, min(MAX_POINTS, len(y))).astype(int)
    figure, ax = axes()
    ends = [float(min(y[rows].min(), p[rows].min())), float(max(y[rows].max(), p[rows].max()))]
    ax.plot(ends, ends, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
    ax.plot(p[rows], y[rows], linestyle="none", marker=".", markersize=4, color=MODEL, alpha=0.35, markeredgewidth=0)
    ax.set_xlabel("predicted")
    ax.set_ylabel("actual")
    note = f"{len(rows):,} of {len(y):,} rows, evenly spaced. On the dashed line the prediction is exact."
    return {"title": "Predicted and actual", "note": note, "svg": drawing(figure, title="Predicted against actual values")}


def residuals(y: Floats, p: Floats) -> Plot:
    """Distribution of prediction minus answer, the outer hundredth left out."""
    errors = p - y
    low, high = np.quantile(errors, [0.005, 0.995])
    figure, ax = axes()
    shares, edges = np.histogram(errors, bins=50, range=(low, high if high > low else low + 1))
    ax.stairs(shares / len(y), edges, color=MODEL, fill=True, alpha=0.3)
    ax.stairs(shares / len(y), edges, color=MODEL, linewidth=1.6)
    ax.axvline(0, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
    ax.axvline(float(errors.mean()), color=BAD, linewidth=1.2, label=f"mean {readable(float(errors.mean()))}")
    ax.set_xlabel("predicted minus actual")
    ax.set_ylabel("share of rows")
    _legend(ax)
    note = "A mean away from zero is a bias; long tails are rare large errors."
    return {"title": "Errors", "note": note, "svg": drawing(figure, title="Distribution of errors")}


def confidence(y: Floats, p: Floats) -> Plot:
    """Accuracy against the probability of the most likely class."""
    right = (p.argmax(axis=1) == y).astype(np.float64)
    plot = dict(calibration(right, p.max(axis=1), "accuracy"))
    return plot | {"title": "Confidence", "note": "How often the most likely class is right, by the probability the model gave it."}


def silhouette_heaps(x: Floats, p: Floats) -> Plot:
    """Silhouettes of the rows, falling within each cluster, the largest cluster first."""
    found, clusters = silhouettes(x, p), own(p)
    figure, ax = axes()
    start = 0
    for place, cluster in enumerate(np.argsort(-np.bincount(clusters, minlength=p.shape[1]), kind="stable")):
        rows = np.sort(found[clusters == cluster])[::-1]
        ax.fill_between(np.arange(start, start + len(rows)), rows, color=(MODEL, OTHER)[place % 2], alpha=0.6, linewidth=0)
        start += len(rows)
    ax.axhline(float(np.mean(found)), color=BAD, linewidth=1.2, label=f"mean {readable(float(np.mean(found)))}")
    ax.set_xlabel("rows, cluster by cluster")
    ax.set_ylabel("silhouette")
    _legend(ax)
    note = "Near 1 a row lies well inside its cluster, at 0 between two, below 0 nearer to another."
    return {"title": "Silhouettes", "note": note, "svg": drawing(figure, title="Silhouette of each row, by cluster")}


def cluster_sizes(p: Floats) -> Plot:
    """Share of the rows in each cluster."""
    shares = np.bincount(own(p), minlength=p.shape[1]) / len(p)
    figure, ax = axes()
    ax.bar(np.arange(len(shares)), shares, color=MODEL, alpha=0.6)
    ax.set_xlabel("cluster")
    ax.set_ylabel("share of rows")
    note = "A cluster of a few rows is often a handful of outliers."
    return {"title": "Sizes of clusters", "note": note, "svg": drawing(figure, title="Share of the rows in each cluster")}


def anomaly_scores(y: Floats, p: Floats, threshold: float) -> Plot:
    """Scores of real rows beside those of shuffled ones and, where there is a label, of known anomalies."""
    figure, ax = axes()
    edges = np.linspace(float(p.min()), float(p.max()) + 1e-9, 41)
    kinds = {"real rows": (y != SHUFFLED, MODEL), "shuffled rows": (y == SHUFFLED, OTHER), "known anomalies": (y == 1, BAD)}
    for name, (rows, colour) in kinds.items():
        if rows.any():
            ax.stairs(np.histogram(p[rows], edges)[0] / rows.sum(), edges, color=colour, linewidth=1.6, label=name)
    ax.axvline(threshold, color=FAINT, linewidth=1.2, linestyle=(0, (4, 3)), label=f"flagged from {readable(threshold)}")
    ax.set_xlabel("anomaly score")
    ax.set_ylabel("share of each kind")
    _legend(ax)
    note = "A shuffled row has a real value in every column, from rows that have nothing to do with each other."
    return {"title": "Scores", "note": note, "svg": drawing(figure, title="Distribution of anomaly scores")}


def text_losses(p: Floats, baselines: Mapping[str, Floats]) -> Plot:
    """Loss a token of each text, by the model and by the baselines."""
    found = {"model": losses(p)} | {name: losses(scores) for name, scores in baselines.items()}
    found = {name: values[np.isfinite(values)] for name, values in found.items()}
    figure, ax = axes()
    edges = np.linspace(0.0, max((float(values.max()) for values in found.values() if len(values)), default=1.0) + 1e-9, 41)
    for (name, values), colour in zip(found.items(), (MODEL, FAINT, OTHER, BAD), strict=False):
        ax.stairs(np.histogram(values, edges)[0] / max(len(values), 1), edges, color=colour, linewidth=1.6, label=name)
    ax.set_xlabel("nats a token")
    ax.set_ylabel("share of texts")
    _legend(ax)
    note = "The further to the left, the better texts were foretold. Short texts lie far out on both sides."
    return {"title": "Loss of the texts", "note": note, "svg": drawing(figure, title="Distribution of the loss of a text, a token")}


def _legend(ax: Any) -> None:
    ax.legend(frameon=False, fontsize=9, labelcolor=INK)
