"""The gate: each check, its reason with numbers, and both directions of a metric."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymlp.config.evaluate import Gate
from raymlp.core.records import Interval
from raymlp.evaluate.gate import GateFacts, compare, decide

NAN = float("nan")


def facts(**changes: object) -> GateFacts:
    values: dict[str, object] = {
        "metric": "auc",
        "rows": 1_000,
        "value": Interval(0.72, 0.70, 0.74),
        "rule": 0.5,
        "rule_gain": Interval(0.22, 0.20, 0.24),
        "baselines": {"linear": 0.70, "gradient_boosting": 0.73},
    }
    return GateFacts(**{**values, **changes})  # type: ignore[arg-type]


def test_a_good_model_passes_with_its_numbers() -> None:
    decision = decide(facts(), Gate(), success_threshold=0.7)
    assert decision.action == "pass"
    assert decision.reason == (
        "auc 0.7200 [0.7000, 0.7400] on 1,000 rows: reaches the success threshold (at least 0.7); beats the rule (0.5000) by more than 0: "
        "gain 0.2200 [0.2000, 0.2400]; 0.0100 behind gradient boosting (0.7300), 0.0200 allowed"
    )


@pytest.mark.parametrize(
    ("changes", "threshold", "reason"),
    [
        ({}, 0.8, "misses the success threshold (at least 0.8)"),
        ({"rule_gain": Interval(0.01, -0.01, 0.03)}, None, "does not beat the rule (0.5000) by more than 0"),
        ({"baselines": {"linear": 0.75}}, None, "0.0300 behind linear (0.7500), 0.0200 allowed"),
        ({"rows": 0, "value": Interval(NAN, NAN, NAN)}, None, "cannot be computed on 0 rows"),
        ({"value": Interval(NAN, NAN, NAN)}, None, "cannot be computed on 1,000 rows; expected labelled rows of more than one class"),
        ({"rule_gain": Interval(0.1, NAN, NAN)}, None, "does not beat the rule"),
    ],
)
def test_each_check_refuses_alone(changes: dict[str, object], threshold: float | None, reason: str) -> None:
    decision = decide(facts(**changes), Gate(), success_threshold=threshold)
    assert decision.action == "fail"
    assert reason in decision.reason


def test_for_a_loss_lower_is_better_and_the_gap_is_a_share() -> None:
    loss = facts(
        metric="rmse",
        value=Interval(51, 50, 52),
        rule=100.0,
        rule_gain=Interval(49, 47, 51),
        baselines={"linear": 70.0, "gradient_boosting": 50.0},
    )
    assert decide(loss, Gate(max_gap_to_baseline=0.02), success_threshold=51).action == "pass"
    assert decide(loss, Gate(max_gap_to_baseline=0.019)).action == "fail"
    assert decide(loss, Gate(), success_threshold=50.9).action == "fail"
    assert decide(loss, Gate(min_gain_over_rule=0.48)).reason.endswith("gain 49.0000 [47.0000, 51.0000]")


def test_all_failures_are_told_together() -> None:
    decision = decide(facts(rule_gain=Interval(0, -0.1, 0.1), baselines={"linear": 0.9}), Gate(), success_threshold=0.8)
    assert decision.reason.count(";") == 2


def test_without_baselines_only_the_value_counts() -> None:
    decision = decide(facts(rule=None, rule_gain=None, baselines={}), Gate())
    assert str(decision) == "pass: auc 0.7200 [0.7000, 0.7400] on 1,000 rows"


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 0.2))
def test_a_better_model_is_never_refused_where_a_worse_one_passes(a: float, b: float, gap: float) -> None:
    low, high = sorted((a, b))
    settings = Gate(max_gap_to_baseline=gap)

    def action(value: float) -> str:
        return decide(facts(value=Interval(value, value, value), baselines={"linear": 0.5}), settings).action

    assert not (action(low) == "pass" and action(high) == "fail")


@pytest.mark.parametrize(
    ("gain", "action"),
    [
        (Interval(0.01, 0.001, 0.02), "pass"),
        (Interval(0.0, -0.0019, 0.0019), "pass"),
        (Interval(0.005, -0.003, 0.013), "fail"),
        (Interval(-0.05, -0.06, -0.04), "fail"),
        (Interval(NAN, NAN, NAN), "fail"),
    ],
)
def test_a_challenger_must_not_be_worse_beyond_the_tolerance(gain: Interval, action: str) -> None:
    decision = compare(gain, Gate(tolerance=0.002), metric="auc", champion=0.7, rows=500)
    assert decision.action == action
    assert "500 rows" in decision.reason


def test_the_tolerance_of_a_loss_is_a_share_of_the_champions() -> None:
    gain = Interval(0.0, -0.9, 0.9)
    assert compare(gain, Gate(tolerance=0.01), metric="rmse", champion=100.0, rows=500).action == "pass"
    assert compare(gain, Gate(tolerance=0.01), metric="rmse", champion=50.0, rows=500).action == "fail"
    assert math.isclose(compare(gain, Gate(tolerance=0.01), metric="rmse", champion=50.0, rows=500).facts["tolerance"], 0.5)
