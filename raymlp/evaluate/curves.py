"""Numbers behind the report's drawings. Legend: N rows, K classes, B bins; `y`, `p` as in `raymlp.core.metrics`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class CalibrationCurve:
    """Per bin, float64 (B,): mean prediction, observed mean, and the 95 % interval of the observed mean."""

    predicted: Floats
    observed: Floats
    low: Floats
    high: Floats


def calibration_curve(y: Floats, p: Floats, *, bins: int = 15) -> CalibrationCurve:
    """Predicted against observed over bins of equal count; rows with one prediction stay in one bin.

    For 0/1 answers the interval is Wilson's (1927), for values the normal one of a mean. Without rows every array is empty.
    """
    binary = bool(np.isin(y, (0.0, 1.0)).all())
    edges = np.unique(np.quantile(p, np.linspace(0, 1, bins + 1))) if len(p) else np.zeros(0)
    place = np.searchsorted(edges[1:-1], p, side="left")
    count = np.bincount(place, minlength=1)
    used = count > 0
    size = count[used].astype(np.float64)
    predicted = np.bincount(place, p, minlength=1)[used] / size
    observed = np.bincount(place, y, minlength=1)[used] / size
    squares = np.bincount(place, y**2, minlength=1)[used] / size
    low, high = wilson(observed, size) if binary else _normal(observed, squares, size)
    return CalibrationCurve(predicted, observed, low, high)


def wilson(rate: Floats, count: Floats, *, z: float = 1.96) -> tuple[Floats, Floats]:
    """Interval of a rate in [0, 1] from `count` rows (Wilson 1927)."""
    centre = (rate + z * z / (2 * count)) / (1 + z * z / count)
    half = z * np.sqrt(rate * (1 - rate) / count + z * z / (4 * count**2)) / (1 + z * z / count)
    return np.maximum(centre - half, 0.0), np.minimum(centre + half, 1.0)


def _normal(mean: Floats, squares: Floats, count: Floats) -> tuple[Floats, Floats]:
    half = 1.96 * np.sqrt(np.maximum(squares - mean**2, 0.0) / count)
    return mean - half, mean + half


def roc_curve(y: Floats, p: Floats, *, points: int = 400) -> tuple[Floats, Floats]:
    """False and true positive rate, rising from 0 to 1, at most about `points` long; both empty with one class."""
    order = np.argsort(-p, kind="stable")
    hits = np.cumsum(y[order] > 0)
    if not len(y) or hits[-1] in (0, len(y)):
        return np.zeros(0), np.zeros(0)
    last_of_tie = np.flatnonzero(np.r_[p[order][1:] != p[order][:-1], True])
    true = np.r_[0.0, hits[last_of_tie] / hits[-1]]
    false = np.r_[0.0, (last_of_tie + 1 - hits[last_of_tie]) / (len(y) - hits[-1])]
    kept = np.unique(np.linspace(0, len(true) - 1, min(points, len(true))).astype(int))
    return false[kept], true[kept]


def confusion(y: Floats, p: Floats) -> NDArray[np.int64]:
    """Rows of each true class (first axis) by most likely class (second axis), int64 (K, K)."""
    num = p.shape[1]
    pairs = y.astype(np.int64) * num + p.argmax(axis=1)
    return np.bincount(pairs, minlength=num * num).reshape(num, num)
