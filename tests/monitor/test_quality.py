"""Quality on late labels: drops, base rates, calibration, and the silence of small windows."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from raymlp.config.monitor import Monitor
from raymlp.data.profile import Profile
from raymlp.data.target import Target
from raymlp.monitor.quality import Labels, base_rate_shift, calibration_gap, metric_drop

SETTINGS = Monitor(min_rows=100)


def scores(rows: int, *, strength: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = (rng.random(rows) < 0.4).astype(float)
    return y, 1 / (1 + np.exp(-(strength * (2 * y - 1) + rng.normal(0, 1, rows))))


def test_a_clear_drop_alerts_with_its_numbers() -> None:
    y, p = scores(4_000, strength=0.3)
    found = metric_drop("binary", y, p, metric="auc", reference=0.9, settings=SETTINGS)
    assert found.alert
    assert found.value == pytest.approx(0.9 - float(stats.mannwhitneyu(p[y == 1], p[y == 0]).statistic) / (sum(y == 1) * sum(y == 0)))
    assert (found.kind, found.name, found.threshold, found.rows) == ("quality", "auc", 0.02, 4_000)
    assert "0.9000 at training" in found.note


def test_a_better_window_and_a_wide_interval_do_not_alert() -> None:
    y, p = scores(4_000, strength=2)
    better = metric_drop("binary", y, p, metric="auc", reference=0.8, settings=SETTINGS)
    assert better.value < 0
    assert not better.alert
    y, p = scores(120, strength=0.5)
    wide = metric_drop("binary", y, p, metric="auc", reference=0.86, settings=SETTINGS)
    assert wide.value > wide.threshold
    assert not wide.alert


def test_for_a_loss_a_rise_is_the_drop_and_the_threshold_is_a_share() -> None:
    y = np.random.default_rng(0).normal(size=3_000)
    found = metric_drop("regression", y, y + 2, metric="rmse", reference=1.5, settings=SETTINGS)
    assert (found.value, found.threshold, found.alert) == (pytest.approx(0.5), pytest.approx(0.03), True)


def test_too_few_labels_are_not_judged() -> None:
    y, p = scores(99, strength=-3)
    found = metric_drop("binary", y, p, metric="auc", reference=0.9, settings=SETTINGS)
    assert not found.alert
    assert "not judged: fewer than 100 labelled rows" in found.note


def test_one_class_only_gives_no_number_and_no_alert() -> None:
    found = metric_drop("binary", np.ones(500), np.full(500, 0.4), metric="auc", reference=0.9, settings=SETTINGS)
    assert np.isnan(found.value)
    assert not found.alert


def test_a_base_rate_shift_alerts_when_large_and_certain() -> None:
    training = Labels(10_000, (0.75, 0.25))
    y = np.repeat([0.0, 1.0], [850, 150])
    found = base_rate_shift("binary", y, training, SETTINGS)
    table = [[2_500, 7_500], [150, 850]]
    assert found.value == pytest.approx(-0.1)
    assert found.alert
    assert f"p {stats.chi2_contingency(table, correction=False).pvalue:.2g}" in found.note
    assert not base_rate_shift("binary", np.repeat([0.0, 1.0], [720, 280]), training, SETTINGS).alert
    assert not base_rate_shift("binary", np.repeat([0.0, 1.0], [70, 32]), training, SETTINGS).alert


def test_a_mean_shift_is_in_deviations() -> None:
    y = np.random.default_rng(0).normal(12, 4, 1_000)
    found = base_rate_shift("regression", y, Labels(5_000, mean=10.0, std=4.0), SETTINGS)
    assert found.value == pytest.approx((y.mean() - 10) / 4)
    assert found.alert


def test_class_shares_that_move_alert() -> None:
    training = Labels(9_000, (0.5, 0.3, 0.2))
    y = np.repeat([0.0, 1, 2], [300, 300, 400])
    found = base_rate_shift("multiclass", y, training, SETTINGS)
    assert (found.value, found.alert) == (pytest.approx(0.2), True)
    assert not base_rate_shift("multiclass", np.repeat([0.0, 1, 2], [500, 300, 200]), training, SETTINGS).alert


def test_overconfidence_shows_in_the_mean_gap() -> None:
    y = np.repeat([0.0, 1.0], [800, 200])
    training = Labels(10_000, (0.8, 0.2))
    assert calibration_gap("binary", y, np.full(1_000, 0.3), training, SETTINGS).alert
    calm = calibration_gap("binary", y, np.full(1_000, 0.2), training, SETTINGS)
    assert (calm.value, calm.alert) == (pytest.approx(0, abs=1e-12), False)


def test_no_rows_are_no_error() -> None:
    none, training = np.zeros(0), Labels(100, (0.5, 0.5))
    for found in (
        metric_drop("binary", none, none, metric="auc", reference=0.9, settings=SETTINGS),
        base_rate_shift("binary", none, training, SETTINGS),
        base_rate_shift("multiclass", none, training, SETTINGS),
        calibration_gap("binary", none, none, training, SETTINGS),
    ):
        assert (found.alert, found.rows) == (False, 0)


def test_training_labels_are_read_from_the_profile() -> None:
    table = pa.table({"minutes": [0, 10, 15, 16, 40], "kind": ["a", "b", "a", "c", "a"], "value": [1.0, 2.0, 3.0, 4.0, 5.0]})
    profile = Profile().update(table)
    above = Target(column="minutes", task="binary", positive_above=15, classes=("no", "yes"))
    kinds = Target(column="kind", task="multiclass", classes=("a", "b", "c"))
    is_a = Target(column="kind", task="binary", classes=("not a", "a"))
    value = Target(column="value", task="regression")
    assert Labels.of(above, profile.columns["minutes"]) == Labels(5, (pytest.approx(0.6), pytest.approx(0.4)))
    assert Labels.of(kinds, profile.columns["kind"]) == Labels(5, (0.6, 0.2, 0.2))
    assert Labels.of(is_a, profile.columns["kind"]) == Labels(5, (pytest.approx(0.4), 0.6))
    assert Labels.of(value, profile.columns["value"]) == Labels(5, mean=3.0, std=pytest.approx(2**0.5))
    assert Labels.of(value, Profile().update(pa.table({"v": pa.nulls(2, pa.float64())})).columns["v"]) is None
