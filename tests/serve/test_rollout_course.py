"""The record of a rollout and its verbs."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymlp.config.rollout import Rollout
from raymlp.core.errors import ServingError
from raymlp.core.records import Decision
from raymlp.serve.rollout.course import Course

SETTINGS = Rollout(weights=(0.01, 0.1, 1.0))
ADVANCE, PROMOTE, ROLLBACK = (Decision(action, "for a reason") for action in ("advance", "promote", "rollback"))


def start() -> Course:
    return Course.start("flights", "v1", "v2", salt="s", settings=SETTINGS, now=100.0, by="ann")


def test_it_starts_at_the_first_share_and_says_who_began_it() -> None:
    course = start()
    assert (course.state, course.weight, course.weights) == ("running", 0.01, {"v1": 0.99, "v2": 0.01})
    assert course.history[0] == (100.0, "start", 0.01, "ann", "v2 beside v1", "")
    position = course.position(130.0)
    assert (position.weight, position.step_s, position.total_s) == (0.01, 30.0, 30.0)


def test_it_advances_through_its_plan_and_is_promoted() -> None:
    course = start().after(ADVANCE, now=200.0).after(ADVANCE, now=300.0)
    assert (course.weight, course.position(310.0).step_s, course.position(310.0).total_s) == (1.0, 10.0, 210.0)
    assert course.weights == {"v1": 0.0, "v2": 1.0}
    course = course.after(PROMOTE, now=400.0)
    assert (course.state, course.weights, course.shares) == ("promoted", {"v2": 1.0}, (0.01, 0.1, 1.0))
    assert [event.what for event in course.history] == ["start", "advance", "advance", "promote"]
    assert course.history[-1].reason == "for a reason"


@pytest.mark.parametrize(("end", "state"), [("rollback", "rolled back"), ("abort", "aborted")])
def test_an_end_gives_the_champion_everything(end: str, state: str) -> None:
    course = start().after(ROLLBACK, now=200.0) if end == "rollback" else start().abort(now=200.0, by="ann")
    assert (course.state, course.is_open, course.weights) == (state, False, {"v1": 1.0})


def test_hold_leaves_no_trace() -> None:
    assert start().after(Decision("hold", "few"), now=200.0) == start()


def test_a_paused_one_keeps_its_share_and_only_a_rollback_ends_it() -> None:
    paused = start().after(Decision("pause", "torn"), now=200.0)
    assert (paused.state, paused.weights) == ("paused", {"v1": 0.99, "v2": 0.01})
    assert paused.after(ADVANCE, now=300.0) == paused
    assert paused.after(PROMOTE, now=300.0) == paused
    assert paused.after(ROLLBACK, now=300.0).state == "rolled back"


def test_resume_starts_the_step_anew_and_remembers_what_was_overruled() -> None:
    course = start().pause(now=200.0, by="ann", reason="lunch").resume(now=900.0, by="bob", accept=("ratio",))
    assert (course.state, course.accepted, course.position(910.0).step_s) == ("running", ("ratio",), 10.0)
    assert course.position(910.0).accepted == ("ratio",)
    assert [event.by for event in course.history] == ["ann", "ann", "bob"]


def test_set_moves_to_any_share_and_the_plan_goes_on_above_it() -> None:
    course = start().set(0.05, now=200.0, by="ann")
    assert (course.weight, course.position(200.0).step_s) == (0.05, 0.0)
    assert course.after(ADVANCE, now=300.0).weight == 0.1
    for share in (0.0, 1.5, float("nan")):
        with pytest.raises(ServingError, match=f"the share is {share}; expected one above 0"):
            course.set(share, now=300.0, by="ann")


def test_what_has_ended_takes_no_verb() -> None:
    ended = start().promote(now=200.0, by="ann", reason="urgent")
    assert ended.weights == {"v2": 1.0}
    for call in (
        lambda: ended.pause(now=1.0, by="x"), lambda: ended.resume(now=1.0, by="x"), lambda: ended.promote(now=1.0, by="x"),
        lambda: ended.abort(now=1.0, by="x"), lambda: ended.set(0.5, now=1.0, by="x"), lambda: ended.after(ADVANCE, now=1.0),
    ):  # fmt: skip
        with pytest.raises(ServingError, match="the rollout of v2 is promoted, so it cannot"):
            call()


def test_a_running_one_cannot_be_resumed_and_a_paused_one_not_paused() -> None:
    with pytest.raises(ServingError, match="is running, so it cannot resume; expected one that is paused"):
        start().resume(now=1.0, by="x")
    with pytest.raises(ServingError, match="is paused, so it cannot pause; expected one that is running"):
        start().pause(now=1.0, by="x").pause(now=2.0, by="x")


def test_the_champion_is_no_challenger_and_a_plan_has_an_end() -> None:
    with pytest.raises(ServingError, match="v1 is the champion of flights already"):
        Course.start("flights", "v1", "v1", salt="s", settings=SETTINGS, now=0.0, by="x")
    with pytest.raises(ServingError, match="at the end of its plan"):
        start().set(1.0, now=1.0, by="x").after(ADVANCE, now=2.0)


VERBS = st.lists(st.sampled_from(["pause", "resume", "promote", "abort", "set", "advance", "rollback", "hold"]), max_size=8)


@given(VERBS)
def test_any_history_survives_json_and_its_weights_are_shares(verbs: list[str]) -> None:
    course = start()
    for place, verb in enumerate(verbs):
        now = 200.0 + place
        try:
            if verb == "set":
                course = course.set(0.3, now=now, by="x")
            elif verb in ("advance", "rollback", "hold"):
                course = course.after(Decision(verb, "y"), now=now)
            else:
                course = getattr(course, verb)(now=now, by="x")
        except ServingError:
            continue
    assert Course.from_json(course.to_json()) == course
    assert sum(course.weights.values()) == pytest.approx(1)
    assert course.history[-1].weight == course.weight


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        json.dumps({"format": 1}),
        start().to_json().replace('"running"', '"running away"'),
        start().to_json().replace("0.01", "7"),
    ],
)
def test_a_record_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ServingError, match="the record of the rollout cannot be read"):
        Course.from_json(text)
