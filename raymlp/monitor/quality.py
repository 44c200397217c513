"""Is the model still right, now that answers have come? Labels and predictions in, findings out.

Legend: N labelled rows of one window, K classes. `y` and `p` as in `raymlp.core.metrics`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfc

from raymlp.config.monitor import Monitor
from raymlp.core.metrics import METRICS, gain, margin, readable, readable_interval, resample
from raymlp.core.records import Finding, Task
from raymlp.data.drift import chi_square_test, shown
from raymlp.data.profile import ColumnProfile
from raymlp.data.target import Target

Floats = NDArray[np.float64]
SAMPLES, SEED = 200, 0
"""Resamples behind each interval, and their seed."""


@dataclass(frozen=True)
class Labels:
    """The answers in training: `rows` of them; `shares` of the K classes (binary: negative, positive), or mean and deviation."""

    rows: int
    shares: tuple[float, ...] = ()
    mean: float = 0.0
    std: float = 0.0

    @classmethod
    def of(cls, target: Target, column: ColumnProfile) -> Self | None:
        """Read from the target column's profile; None when it has no values."""
        if not column.values:
            return None
        if not target.classes:
            return cls(column.values, mean=column.mean, std=column.std)
        return cls(column.values, target.class_shares(column))


def metric_drop(task: Task, y: Floats, p: NDArray[np.float64], *, metric: str, reference: float, settings: Monitor) -> Finding:
    """The metric on the window beside the metric at training.

    The value is the drop in the metric's unit, positive is worse. It alerts when the whole 95 % bootstrap interval of
    the window lies beyond the allowed drop, so that a small window does not alert by chance.
    """
    allowed = margin(metric, settings.max_quality_drop, reference)
    found = resample(METRICS[task][metric], y, p, samples=SAMPLES, seed=SEED)
    drop = -gain(metric, found.value, reference)
    least = min(-gain(metric, bound, reference) for bound in (found.low, found.high))
    note = f"{metric} {readable_interval(found)} on the window, {readable(reference)} at training"
    return _finding(metric, "drop", drop, allowed, len(y), least > allowed, note, settings)


def base_rate_shift(task: Task, y: Floats, training: Labels, settings: Monitor) -> Finding:
    """How far the labels have moved since training.

    Binary and anomaly: change of the positive rate, in [-1, 1]. Multiclass: half the sum of the absolute changes of the class
    shares, in [0, 1]. Regression: change of the mean in deviations. It alerts when the size reaches the limit and a
    z-test (several classes: chi-square) against the training rows is significant.
    """
    limit, n, m = settings.max_base_rate_shift, training.rows, len(y)
    if task == "multiclass":
        before = np.array(training.shares)
        now = np.bincount(y.astype(int), minlength=len(before)).astype(np.float64)
        shift = float(np.abs(now / max(m, 1) - before).sum() / 2)
        p_value = chi_square_test(before * n, now)[1]
        note = f"class shares moved by {shift:.3f}"
    elif task in ("binary", "anomaly"):
        before_rate, rate = training.shares[1], float(np.mean(y)) if m else float("nan")
        shift, pooled = rate - before_rate, (before_rate * n + rate * m) / (n + m)
        p_value = _two_sided(shift, np.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m)) if m else 0.0)
        note = f"positive rate {rate:.3f}, {before_rate:.3f} at training"
    else:
        mean, spread = (float(np.mean(y)), float(np.var(y))) if m else (float("nan"), 0.0)
        shift = (mean - training.mean) / (training.std or 1.0)
        p_value = _two_sided(mean - training.mean, np.sqrt(training.std**2 / n + spread / m) if m else 0.0)
        note = f"mean {mean:.4g}, {training.mean:.4g} at training"
    alert = abs(shift) >= limit and p_value <= settings.p_value
    return _finding("base rate", "shift", shift, limit, m, alert, f"{note}; {shown(p_value)}", settings)


def calibration_gap(task: Task, y: Floats, p: Floats, training: Labels, settings: Monitor) -> Finding:
    """Mean prediction minus mean label, binary in [-1, 1], regression in deviations of the training labels; 0 is calibrated.

    It alerts when the size reaches `max_base_rate_shift` and a paired z-test is significant.
    """
    unit = (training.std or 1.0) if task == "regression" else 1.0
    errors = p - y
    gap = float(errors.mean()) if len(y) else float("nan")
    p_value = _two_sided(gap, float(errors.std()) / np.sqrt(len(y)) if len(y) else 0.0)
    limit = settings.max_base_rate_shift
    alert = abs(gap / unit) >= limit and p_value <= settings.p_value
    note = f"mean prediction {np.mean(p):.4g}, mean label {np.mean(y):.4g}; {shown(p_value)}" if len(y) else ""
    return _finding("calibration", "mean gap", gap / unit, limit, len(y), alert, note, settings)


def _two_sided(difference: float, error: float) -> float:
    """Normal p-value of a difference with its standard error; without any spread, 1 for no difference and else 0."""
    if not error > 0:
        return 0.0 if abs(difference) > 0 else 1.0
    return float(erfc(abs(difference) / error / np.sqrt(2)))


def _finding(name: str, statistic: str, value: float, threshold: float, rows: int, alert: bool, note: str, settings: Monitor) -> Finding:
    enough = rows >= settings.min_rows
    if not enough:
        note = "; ".join(filter(None, [note, f"not judged: fewer than {settings.min_rows} labelled rows"]))
    return Finding("quality", name, statistic, value, threshold, rows, bool(alert and enough), note)
