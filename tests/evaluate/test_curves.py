"""Numbers behind the drawings, against hand-worked values and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from raymlp.core.metrics import auc
from raymlp.evaluate.curves import calibration_curve, confusion, roc_curve, wilson

RNG = np.random.default_rng(0)


def test_the_calibration_curve_is_the_mean_of_each_group() -> None:
    y, p = np.array([0.0, 0, 1, 1]), np.array([0.1, 0.3, 0.6, 0.8])
    curve = calibration_curve(y, p, bins=2)
    assert curve.predicted == pytest.approx([0.2, 0.7])
    assert curve.observed == pytest.approx([0.0, 1.0])


def test_rows_with_one_prediction_share_a_bin() -> None:
    curve = calibration_curve(np.array([0.0, 1, 1, 1]), np.full(4, 0.3))
    assert (curve.predicted.tolist(), curve.observed.tolist()) == ([pytest.approx(0.3)], [0.75])


def test_calibrated_scores_lie_inside_their_intervals_about_95_times_in_100() -> None:
    p = RNG.random(40_000)
    curve = calibration_curve((RNG.random(40_000) < p).astype(float), p, bins=200)
    inside = np.mean((curve.low <= curve.predicted) & (curve.predicted <= curve.high))
    assert 0.90 <= inside <= 0.99


def test_values_have_a_curve_too() -> None:
    y = RNG.normal(50, 10, 3_000)
    curve = calibration_curve(y, y + RNG.normal(0, 1, 3_000), bins=5)
    assert len(curve.observed) == 5
    assert (curve.low < curve.observed).all()
    assert (curve.observed < curve.high).all()


def test_no_rows_give_an_empty_curve() -> None:
    assert len(calibration_curve(np.zeros(0), np.zeros(0)).observed) == 0


def test_wilson_of_no_hit_in_ten() -> None:
    low, high = wilson(np.array([0.0]), np.array([10.0]))
    assert (low[0], high[0]) == (pytest.approx(0), pytest.approx(0.2775, abs=1e-3))


def test_the_area_under_the_roc_curve_is_auc() -> None:
    y = (RNG.random(500) < 0.3).astype(float)
    p = np.round(y * 0.3 + RNG.random(500), 2)
    false, true = roc_curve(y, p)
    expected = sk.roc_curve(y, p, drop_intermediate=False)
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(true, false) == pytest.approx(auc(y, p))
    assert np.allclose(false, expected[0])
    assert np.allclose(true, expected[1])


def test_a_long_roc_curve_is_thinned_and_one_class_has_none() -> None:
    y, p = (RNG.random(5_000) < 0.5).astype(float), RNG.random(5_000)
    assert len(roc_curve(y, p)[0]) == 400
    assert len(roc_curve(np.ones(5), np.arange(5.0))[0]) == 0


def test_confusion_counts_true_class_by_row() -> None:
    y = np.array([0.0, 0, 1, 2])
    p = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.8, 0.1], [0.1, 0.8, 0.1]])
    assert confusion(y, p).tolist() == [[1, 1, 0], [0, 1, 0], [0, 1, 0]]
