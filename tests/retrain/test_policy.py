"""The retrain policy: every reason to wait, and the one to train."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymlp.config.retrain import Retrain
from raymlp.retrain.policy import RetrainFacts, decide

SETTINGS = Retrain(min_new_rows=1_000, cooldown_s=3_600)


def facts(**changes: object) -> RetrainFacts:
    values: dict[str, object] = {"alerts": {"quality": 1}, "new_rows": 2_000, "seconds_since_last": None, "is_running": False}
    return RetrainFacts(**{**values, **changes})  # type: ignore[arg-type]


def test_an_alert_with_enough_new_rows_retrains() -> None:
    decision = decide(facts(alerts={"quality": 1, "feature drift": 2}), SETTINGS)
    assert str(decision) == "retrain: 2 feature drift alerts and 1 quality alert, with 2,000 new labelled rows"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"is_running": True}, "a retrain is running already"),
        ({"alerts": {}}, "no alert"),
        ({"new_rows": 999}, "1 quality alert, but only 999 of 1,000 new labelled rows"),
        ({"seconds_since_last": 3_599.0}, "1 quality alert, but the last retrain ended 3,599 s ago (cooldown 3,600 s)"),
    ],
)
def test_it_waits_and_says_why(changes: dict[str, object], reason: str) -> None:
    decision = decide(facts(**changes), SETTINGS)
    assert (decision.action, decision.reason) == ("wait", reason)


def test_the_limits_themselves_are_enough() -> None:
    assert decide(facts(new_rows=1_000, seconds_since_last=3_600.0), SETTINGS).action == "retrain"


def test_a_kind_that_is_no_trigger_does_not_ask() -> None:
    decision = decide(facts(alerts={"feature drift": 3}), Retrain(triggers=("quality",)))
    assert decision.reason == "none of 3 alerts is of a kind that asks for a new model (quality)"


@given(
    alerts=st.dictionaries(st.sampled_from(["quality", "prediction drift", "feature drift"]), st.integers(0, 5)),
    new_rows=st.integers(0, 5_000),
    since=st.none() | st.floats(0, 1e5),
    running=st.booleans(),
)
def test_it_retrains_only_when_every_condition_holds(alerts: dict[str, int], new_rows: int, since: float | None, running: bool) -> None:
    decision = decide(RetrainFacts(alerts, new_rows, since, running), SETTINGS)
    allowed = not running and sum(alerts.values()) > 0 and new_rows >= 1_000 and (since is None or since >= 3_600)
    assert (decision.action == "retrain") == allowed
    assert decision.reason


def test_a_task_without_answers_waits_for_rows_and_not_for_labels() -> None:
    told = RetrainFacts({"prediction drift": 1}, 2_000, has_answers=False)
    assert str(decide(told, Retrain())) == "retrain: 1 prediction drift alert, with 2,000 new rows"
