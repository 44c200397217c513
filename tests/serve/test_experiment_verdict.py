"""Readings, sample ratio and verdict of an experiment."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from raymlp.config.experiment import Business, ErrorRate, Experiment, LatencyQuantile
from raymlp.serve.experiment.analysis import Ratio, Reading, check_ratio, readings
from raymlp.serve.experiment.intervals import UNKNOWN, Effect
from raymlp.serve.experiment.observations import Observations, Seen
from raymlp.serve.experiment.verdict import judge

SETTINGS = Experiment(versions=("2", "3"), primary=Business(column="paid"), guard_rails=(ErrorRate(),))
ARMS = ("v1", "v2", "v3")
FINE = Ratio((100, 100, 100), (100.0, 100.0, 100.0), 0.0)


def primary(low: float, high: float, *, sign: int = 1, margin: float = 0.1) -> Reading:
    return Reading("paid", "business", 1, Effect(500, 1.0, (low + high) / 2, low, high), margin, sign)


def guard(low: float, high: float) -> Reading:
    return Reading("error rate", "errors", 1, Effect(500, 0.01, (low + high) / 2, low, high), 0.01, -1)


HELD, OPEN, BROKEN = guard(-0.005, 0.005), guard(-0.02, 0.02), guard(0.02, 0.05)


@pytest.mark.parametrize(
    ("reading", "finding"),
    [
        (primary(0.01, 0.5), "better"),
        (primary(-0.5, -0.01), "worse"),
        (primary(-0.05, 0.05), "no difference"),
        (primary(-0.05, 0.3), "no worse"),
        (primary(-0.3, 0.05), "undecided"),
        (primary(0.01, 0.5, sign=-1), "worse"),
        (primary(-0.5, -0.01, sign=-1), "better"),
        (replace(primary(0, 1), effect=UNKNOWN), "undecided"),
    ],
)
def test_what_an_interval_shows(reading: Reading, finding: str) -> None:
    assert reading.finding == finding


@pytest.mark.parametrize(
    ("first", "rail", "call", "reason"),
    [
        (primary(0.01, 0.5), HELD, "better", "paid +0.255"),
        (primary(0.01, 0.5), OPEN, "undecided", "better by the primary metric"),
        (primary(0.01, 0.5), BROKEN, "worse", "guard rail broken: error rate"),
        (primary(-0.05, 0.05), OPEN, "no difference", "paid"),
        (primary(-0.5, -0.01), HELD, "worse", "paid"),
        (primary(-0.5, 0.5), HELD, "undecided", "paid"),
    ],
)
def test_the_primary_metric_decides_and_guard_rails_guard(first: Reading, rail: Reading, call: str, reason: str) -> None:
    outcome = judge([[first], [rail]], FINE, SETTINGS, ARMS[:2])
    assert outcome.verdicts[0].call == call
    assert outcome.verdicts[0].reasons[0].startswith(reason)


def test_the_best_of_the_better_arms_is_chosen_and_the_control_when_none_is() -> None:
    first, second = primary(0.01, 0.5), replace(primary(0.1, 0.9), arm=2)
    assert judge([[first, second], [HELD, HELD]], FINE, SETTINGS, ARMS).choice == 2
    worse = primary(-0.5, -0.01)
    assert judge([[worse, worse], [HELD, HELD]], FINE, SETTINGS, ARMS).choice == 0
    assert judge([[worse, primary(-0.5, 0.5)], [HELD, HELD]], FINE, SETTINGS, ARMS).choice is None


def test_nothing_is_said_while_the_traffic_is_not_divided_by_its_weights() -> None:
    outcome = judge([[primary(0.01, 0.5)], [HELD]], Ratio((100, 60), (80.0, 80.0), math.log(1e4)), SETTINGS, ARMS[:2])
    assert (outcome.choice, outcome.verdicts[0].call) == (None, "undecided")
    assert "not divided by its weights" in outcome.reason


def seen(counts: list[list[int]], shares: list[list[float]]) -> Observations:
    """Keys by stretch and arm, none of which failed."""
    arm = np.concatenate([np.repeat(np.arange(len(row)), row) for row in counts])
    stretch = np.repeat(np.arange(len(counts)), [sum(row) for row in counts])
    keys = Seen(np.zeros(len(arm)), arm, stretch, np.arange(len(arm), dtype=np.float64))
    return Observations(np.array(shares), (0,) * len(shares[0]), keys, keys)


def test_the_ratio_doubts_what_the_weights_do_not_explain() -> None:
    shares = [[0.5, 0.25, 0.25]]
    assert not check_ratio(seen([[5_000, 2_500, 2_500]], shares)).is_off(0.001)
    assert check_ratio(seen([[5_000, 2_500, 2_100]], shares)).is_off(0.001)
    assert check_ratio(seen([[4_400, 2_500, 2_500]], shares)).is_off(0.001)
    changed = [[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]
    assert not check_ratio(seen([[1_000, 500, 500], [100, 100, 800]], changed)).is_off(0.001)
    assert check_ratio(seen([[1_000, 500, 350], [100, 100, 600]], changed)).is_off(0.001)
    assert check_ratio(seen([[1_000, 500, 350], [100, 100, 600]], changed)).expected == pytest.approx((1005, 542.5, 1102.5))


def test_the_ratio_is_an_e_value_with_mean_one() -> None:
    # All divisions of four keys among three arms, by their chance.
    shares = np.array([0.5, 0.3, 0.2])
    total = 0.0
    for a in range(5):
        for b in range(5 - a):
            counts = [a, b, 4 - a - b]
            ways = math.factorial(4) / math.prod(math.factorial(count) for count in counts)
            total += ways * math.prod(shares ** np.array(counts)) * math.exp(check_ratio(seen([counts], [shares.tolist()])).log_e)
    assert total == pytest.approx(1.0)


def test_half_of_alpha_is_the_primary_metrics_and_all_of_it_is_spent_once() -> None:
    settings = Experiment(versions=("2", "3"), primary=Business(column="paid"), alpha=0.05)
    parts = [settings.alpha_of(place) for place in range(3)]
    assert parts == pytest.approx([0.0125, 0.00625, 0.00625])
    assert 2 * sum(parts) == pytest.approx(0.05)


def test_a_latency_metric_has_no_interval_once_the_shares_have_changed() -> None:
    rng = np.random.default_rng(0)
    latency = Seen(rng.lognormal(2, 0.3, 4_000), rng.integers(0, 2, 4_000), np.repeat([0, 1], 2_000), np.arange(4_000.0))
    both = Observations(np.array([[0.5, 0.5], [0.4, 0.6]]), (0, 0), latency, latency)
    still = replace(both, shares=both.shares[:1], latency_ms=replace(latency, stretch=np.zeros(4_000, dtype=np.int64)))
    settings = Experiment(versions=("2",), primary=LatencyQuantile(), guard_rails=())
    assert not readings(both, settings)[0][0].effect.is_known
    assert readings(still, settings)[0][0].effect.is_known
