"""Metrics against hand-worked values, scikit-learn, and properties; intervals against theory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from raymlp.core import metrics
from raymlp.core.metrics import METRICS, Array

NAN = float("nan")
RNG = np.random.default_rng(0)


def binary(rows: int = 400, *, ties: bool = True) -> tuple[Array, Array]:
    y = (RNG.random(rows) < 0.3).astype(float)
    p = np.clip(0.3 + 0.3 * (y - 0.3) + RNG.normal(0, 0.2, rows), 0.01, 0.99)
    return y, np.round(p, 2) if ties else p


def test_auc_counts_pairs_and_half_the_ties() -> None:
    y, p = np.array([0.0, 1, 0, 1]), np.array([0.1, 0.4, 0.4, 0.8])
    assert metrics.auc(y, p) == pytest.approx((1 + 0.5 + 2) / 4)


def test_calibration_error_is_the_mean_gap_over_bins() -> None:
    y, p = np.array([0.0, 0, 1, 1]), np.array([0.2, 0.2, 0.6, 0.6])
    assert metrics.calibration_error(y, p, bins=2) == pytest.approx((0.2 + 0.4) / 2)


@pytest.mark.parametrize("seed", range(5))
def test_binary_metrics_equal_scikit_learn(seed: int) -> None:
    y, p = binary(300 + seed)
    found = metrics.score("binary", y, p)
    assert found["auc"] == pytest.approx(sk.roc_auc_score(y, p))
    assert found["average_precision"] == pytest.approx(sk.average_precision_score(y, p))
    assert found["log_loss"] == pytest.approx(sk.log_loss(y, p))
    assert found["brier"] == pytest.approx(sk.brier_score_loss(y, p))
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(y, p >= 0.5))


def test_multiclass_metrics_equal_scikit_learn() -> None:
    y = RNG.integers(0, 4, 500).astype(float)
    p = RNG.dirichlet(np.ones(4), 500) + 0.5 * np.eye(4)[y.astype(int)]
    p /= p.sum(axis=1, keepdims=True)
    found = metrics.score("multiclass", y, p)
    assert found["log_loss"] == pytest.approx(sk.log_loss(y, p))
    assert found["macro_f1"] == pytest.approx(sk.f1_score(y, p.argmax(axis=1), average="macro"))
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(y, p.argmax(axis=1)))


def test_regression_metrics_equal_scikit_learn() -> None:
    y = RNG.normal(1e6, 3, 500)
    p = y + RNG.normal(0, 1, 500)
    found = metrics.score("regression", y, p)
    assert found["rmse"] == pytest.approx(sk.root_mean_squared_error(y, p))
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(y, p))
    assert found["r2"] == pytest.approx(sk.r2_score(y, p))


@pytest.mark.parametrize(("y", "p"), [([], []), ([1.0, 1.0], [0.2, 0.9]), ([0.0, 0.0], [0.2, 0.9])], ids=["none", "positives", "negatives"])
def test_auc_is_nan_without_both_classes(y: list[float], p: list[float]) -> None:
    assert np.isnan(metrics.auc(np.array(y), np.array(p)))


def test_limit_cases_are_nan_and_not_errors() -> None:
    none = np.zeros(0)
    for name, metric in METRICS["binary"].items():
        assert np.isnan(metric(none, none)), name
    assert np.isnan(metrics.average_precision(np.zeros(3), np.ones(3)))
    assert np.isnan(metrics.r2(np.ones(3), np.zeros(3)))
    assert metrics.log_loss(np.array([1.0]), np.array([0.0])) == pytest.approx(-np.log(metrics.EPSILON))


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_weights_that_are_counts_equal_repeated_rows(task: metrics.Task) -> None:
    y, p = binary(200)
    if task == "multiclass":
        y, p = RNG.integers(0, 3, 200).astype(float), RNG.dirichlet(np.ones(3), 200)
    if task == "regression":
        y, p = RNG.normal(5, 2, 200), RNG.normal(5, 2, 200)
    weights = RNG.integers(0, 4, 200)
    for name, metric in METRICS[task].items():
        if name == "calibration_error":
            continue
        repeated = metric(np.repeat(y, weights, axis=0), np.repeat(p, weights, axis=0))
        assert metrics.weighted(metric, y, p)(weights.astype(float)) == pytest.approx(repeated), name


def test_calibration_error_with_equal_weights_is_the_plain_one() -> None:
    y, p = binary(997)
    assert metrics.weighted(metrics.calibration_error, y, p)(np.ones(997)) == pytest.approx(metrics.calibration_error(y, p))


def test_a_metric_of_the_user_is_resampled_too() -> None:
    def share_above(y: Array, p: Array) -> float:
        return float(np.mean(p > y))

    y = RNG.normal(size=2_000)
    interval = metrics.resample(share_above, y, y + RNG.normal(size=2_000), samples=200, seed=0)
    assert interval.low < 0.5 < interval.high
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(2_000), rel=0.25)


def test_the_interval_of_a_mean_has_the_width_that_theory_says() -> None:
    y = RNG.normal(size=4_000)
    p = y + RNG.normal(size=4_000)
    interval = metrics.resample(metrics.mae, y, p, samples=1_000, seed=0)
    expected = 2 * 1.96 * np.abs(p - y).std() / np.sqrt(4_000)
    assert interval.high - interval.low == pytest.approx(expected, rel=0.1)


def test_intervals_cover_the_truth_about_95_times_in_100() -> None:
    covered = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        y = (rng.random(400) < 0.5).astype(float)
        interval = metrics.resample(metrics.auc, y, y + rng.normal(0, 1, 400), samples=100, seed=seed)
        covered += interval.low <= 0.76025 <= interval.high
    assert 180 <= covered <= 199


def test_every_interval_holds_its_estimate() -> None:
    y, p = binary(3_000, ties=False)
    for name, interval in metrics.resample_all("binary", y, p, samples=100, seed=1).items():
        assert interval.low <= interval.value <= interval.high, name


def test_the_interval_of_a_calibrated_model_holds_its_small_calibration_error() -> None:
    p = RNG.random(3_000)
    y = (RNG.random(3_000) < p).astype(float)
    interval = metrics.resample(metrics.calibration_error, y, p, samples=200, seed=0)
    assert interval.low < interval.value < interval.high
    assert (interval.low + interval.high) / 2 == pytest.approx(interval.value, abs=0.15 * (interval.high - interval.low))


def test_resample_all_equals_resample_one_by_one() -> None:
    y, p = binary(500)
    together = metrics.resample_all("binary", y, p, samples=50, seed=3)
    for name, metric in METRICS["binary"].items():
        assert together[name] == metrics.resample(metric, y, p, samples=50, seed=3)


def test_no_rows_give_nan_intervals() -> None:
    none = np.zeros(0)
    interval = metrics.resample(metrics.auc, none, none, samples=10, seed=0)
    gain = metrics.paired_gain("auc", "binary", none, none, none, samples=10, seed=0)
    assert all(np.isnan([interval.value, interval.low, interval.high, gain.value, gain.low, gain.high]))


def test_paired_gain_is_positive_for_the_better_model_whatever_the_direction() -> None:
    y, p = binary(2_000, ties=False)
    worse = np.clip(p + RNG.normal(0, 0.3, 2_000), 0.01, 0.99)
    for name in METRICS["binary"]:
        if name == "calibration_error":
            continue
        assert metrics.paired_gain(name, "binary", y, p, worse, samples=100, seed=0).low > 0, name


def test_paired_gain_of_a_model_over_itself_is_exactly_zero() -> None:
    y, p = binary()
    gain = metrics.paired_gain("auc", "binary", y, p, p, samples=50, seed=0)
    assert (gain.value, gain.low, gain.high) == (0.0, 0.0, 0.0)


def test_pairing_makes_the_interval_narrower_than_two_separate_ones() -> None:
    y, p = binary(2_000, ties=False)
    close = np.clip(p + RNG.normal(0, 0.02, 2_000), 0.01, 0.99)
    gain = metrics.paired_gain("auc", "binary", y, p, close, samples=200, seed=0)
    alone = metrics.resample(metrics.auc, y, p, samples=200, seed=0)
    assert gain.high - gain.low < (alone.high - alone.low) / 3


@pytest.mark.parametrize(
    ("name", "reference", "expected"), [("auc", 0.7, 0.02), ("r2", 0.7, 0.02), ("rmse", 50.0, 1.0), ("log_loss", 0.5, 0.01)]
)
def test_a_margin_is_absolute_or_a_share(name: str, reference: float, expected: float) -> None:
    assert metrics.margin(name, 0.02, reference) == pytest.approx(expected)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1, allow_nan=False)), min_size=2, max_size=60))
def test_auc_turns_around_when_scores_do_and_ignores_their_scale(rows: list[tuple[bool, float]]) -> None:
    y = np.array([float(positive) for positive, _ in rows])
    p = np.round(np.array([score for _, score in rows]), 3)
    found = metrics.auc(y, p)
    if 0 < y.sum() < len(y):
        assert found + metrics.auc(y, -p) == pytest.approx(1)
        assert metrics.auc(y, 10 * p - 3) == pytest.approx(found)
        assert found == pytest.approx(sk.roc_auc_score(y, p))
    else:
        assert np.isnan(found)


def test_readable_numbers() -> None:
    assert metrics.readable(0.72134) == "0.7213"
    assert metrics.readable(57_712.6) == "57,713"
    assert metrics.readable_interval(metrics.Interval(0.5, 0.4, 0.6)) == "0.5000 [0.4000, 0.6000]"
