"""What the facts of a rollout say."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymlp.config.rollout import Business, Distribution, Quality, Rollout
from raymlp.serve.rollout.facts import Evidence, Histogram, Pair, Paired, Position, Scores, Step
from raymlp.serve.rollout.policy import decide, next_weight

SETTINGS = Rollout(weights=(0.1, 0.5, 1.0), min_requests=200, min_step_s=60, max_requests=20_000, max_s=3_600)
QUICK = Histogram.of(np.random.default_rng(0).lognormal(2, 0.3, 4_000))
GOOD = Paired(5_000, -0.05, 0.04, 0.5)
"""Labels that show a better challenger."""


def step(weight: float, champion: int, challenger: int, errors: Pair | None = None) -> Step:
    pair = Pair(champion, challenger)
    failed = errors or Pair()
    return Step(weight, pair, pair, failed, pair, failed, (part_of(QUICK, champion), part_of(QUICK, challenger)))


def part_of(histogram: Histogram, number: int) -> Histogram:
    return Histogram(histogram.bins, tuple(round(count * number / histogram.total) for count in histogram.counts))


def evidence(*steps: Step, loss: Paired = GOOD) -> Evidence:
    return Evidence(steps, part_of(QUICK, 400), Scores(), loss)


FIRST, SECOND = step(0.1, 1_800, 200), step(0.5, 1_000, 1_000)


@pytest.mark.parametrize(
    ("requests", "seconds", "words"),
    [
        (150, 100.0, "150 of 200 challenger requests at 0.1 of the traffic so far"),
        (200, 35.0, "35 of 60 s at 0.1 of the traffic so far"),
        (150, 35.0, "150 of 200 challenger requests and 35 of 60 s at 0.1 of the traffic so far"),
    ],
)
def test_it_waits_for_the_requests_and_the_time_of_a_step(requests: int, seconds: float, words: str) -> None:
    decision = decide(evidence(step(0.1, 9 * requests, requests)), Position(0.1, seconds, seconds), SETTINGS)
    assert (decision.action, decision.reason) == ("hold", words)


def test_a_step_that_is_through_leads_to_the_next_share() -> None:
    decision = decide(evidence(FIRST), Position(0.1, 60, 60), SETTINGS)
    assert decision.action == "advance"
    assert decision.reason.startswith("to 0.5 of the traffic; errors: 0 of 200 failed")


def test_the_first_steps_need_no_proof_and_the_last_one_does() -> None:
    no_labels = evidence(FIRST, loss=Paired())
    assert decide(no_labels, Position(0.1, 60, 60), SETTINGS).action == "advance"
    held = decide(evidence(FIRST, SECOND, loss=Paired()), Position(0.5, 60, 120), SETTINGS)
    assert (held.action, held.reason) == ("hold", "quality: 0 labelled rows; too few to judge: not certain yet")
    assert decide(evidence(FIRST, SECOND), Position(0.5, 60, 120), SETTINGS).action == "advance"


def test_it_is_promoted_at_the_end_of_the_plan() -> None:
    alone = step(1.0, 0, 200)
    assert decide(evidence(FIRST, SECOND, step(1.0, 0, 150)), Position(1.0, 60, 180), SETTINGS).action == "hold"
    decision = decide(evidence(FIRST, SECOND, alone), Position(1.0, 60, 180), SETTINGS)
    assert decision.action == "promote"
    assert decision.reason.endswith(": no worse")


def test_a_plan_without_a_step_of_its_own_promotes_from_the_last_share() -> None:
    plan = SETTINGS.model_copy(update={"weights": (0.1, 0.5)})
    assert decide(evidence(FIRST, SECOND), Position(0.5, 60, 120), plan).action == "promote"
    assert decide(evidence(FIRST, SECOND, loss=Paired()), Position(0.5, 60, 120), plan).action == "hold"


def test_labels_are_not_waited_for_where_none_come() -> None:
    settings = SETTINGS.model_copy(update={"quality": Quality(required=False)})
    assert decide(evidence(FIRST, SECOND, loss=Paired()), Position(0.5, 60, 120), settings).action == "advance"


def test_a_worse_challenger_is_rolled_back_at_once() -> None:
    decision = decide(evidence(step(0.1, 450, 50), loss=Paired(400, 0.3, 0.04, 0.5)), Position(0.1, 5, 5), SETTINGS)
    assert decision.action == "rollback"
    assert decision.reason.startswith("quality: loss +0.3000")
    assert decision.reason.endswith("on 400 labelled rows, margin +0.0050: worse")


def test_failing_requests_roll_back_and_say_how_many() -> None:
    decision = decide(evidence(step(0.1, 540, 60, Pair(5, 12))), Position(0.1, 5, 5), SETTINGS)
    assert (decision.action, decision.reason) == ("rollback", "errors: 12 of 60 failed (20.00%), champion 5 of 540 (0.93%): worse")


def test_failures_that_come_with_all_the_traffic_are_not_outweighed_by_what_went_well_before() -> None:
    """60 of 300 in the last step, which is 4 % of all its requests."""
    decision = decide(evidence(FIRST, SECOND, step(1.0, 0, 300, Pair(0, 60))), Position(1.0, 60, 180), SETTINGS)
    assert decision.action == "rollback"
    assert decision.reason.startswith("errors: 60 of 1,500 failed (4.00%)")


def test_one_guard_among_many_needs_more_than_alpha_alone() -> None:
    """Errors whose e-value is between 1 / alpha and the number of guards times that: enough alone, not as one of three."""
    steps = [step(0.1, 1_800, 200, Pair(18, errors)) for errors in range(5, 30)]
    found = [decide(evidence(one), Position(0.1, 5, 5), SETTINGS) for one in steps]
    harms = [decision.facts["checks"][0]["harm"] for decision in found]
    assert [decision.action == "rollback" for decision in found] == [harm >= math.log(3 / 0.05) - 0.05 for harm in harms]
    assert any(math.log(20) < harm < math.log(60) - 0.1 for harm in harms)


def test_a_split_that_is_not_the_declared_one_pauses_and_a_person_may_overrule() -> None:
    torn = replace(step(0.1, 1_800, 200), keys=Pair(1_800, 90))
    decision = decide(evidence(torn), Position(0.1, 60, 60), SETTINGS)
    assert (decision.action, decision.facts["paused_by"]) == ("pause", "ratio")
    assert decision.reason.startswith("ratio: 90 of 1,890 keys were the challenger's, 189 expected: the traffic is not divided")
    assert decide(evidence(torn), Position(0.1, 60, 60, accepted=("ratio",)), SETTINGS).action == "advance"


@pytest.mark.parametrize(("on_shift", "action"), [("hold", "hold"), ("pause", "pause"), ("rollback", "rollback")])
def test_other_answers_wait_for_labels_or_a_person_or_end_it(on_shift: str, action: str) -> None:
    settings = SETTINGS.model_copy(update={"distribution": Distribution.model_validate({"on_shift": on_shift})})
    moved = replace(FIRST, scores=((180,) * 10, (0,) * 9 + (200,)))
    shifted = replace(evidence(moved, loss=Paired()), scores=Scores((40,) * 10))
    decision = decide(shifted, Position(0.1, 60, 60), settings)
    assert decision.action == action
    assert decision.reason.startswith("distribution: answers moved by 0.90 on 200 requests")
    if on_shift != "rollback":
        assert decide(replace(shifted, loss=GOOD), Position(0.1, 60, 60), settings).action == "advance"
        assert decide(shifted, Position(0.1, 60, 60, accepted=("distribution",)), settings).action == "advance"


def test_a_shift_is_not_waved_through_where_no_labels_come() -> None:
    settings = SETTINGS.model_copy(update={"quality": Quality(required=False)})
    moved = replace(FIRST, scores=((180,) * 10, (0,) * 9 + (200,)))
    shifted = replace(evidence(moved, loss=Paired()), scores=Scores((40,) * 10))
    assert decide(shifted, Position(0.1, 60, 60), settings).action == "hold"


@pytest.mark.parametrize("on_shift", ["hold", "pause"])
@pytest.mark.parametrize("last", [0.5, 1.0])
def test_a_certain_shift_is_not_promoted_at_the_end_of_the_plan(on_shift: str, last: float) -> None:
    """Also in the step without the champion: rows of the step before may have reached the log only after it ended."""
    shifting = Distribution.model_validate({"on_shift": on_shift})
    changes = {"weights": (0.1, last), "quality": Quality(required=False), "distribution": shifting}
    settings = SETTINGS.model_copy(update=changes)
    moved = replace(SECOND, scores=((100,) * 10, (0,) * 9 + (1_000,)))
    steps = (FIRST, moved) if last < 1 else (FIRST, moved, step(1.0, 0, 1_000))
    shifted = replace(evidence(*steps, loss=Paired()), scores=Scores((40,) * 10))
    decision = decide(shifted, Position(last, 60, 120), settings)
    assert decision.action == on_shift
    assert decision.reason.startswith("distribution: answers moved by 0.90 on 1,000 requests, and labels do not show yet")
    assert decide(shifted, Position(last, 60, 120, accepted=("distribution",)), settings).action == "promote"
    assert decide(replace(shifted, loss=GOOD), Position(last, 60, 120), settings).action == "promote"
    late = decide(shifted, Position(last, 60, 3_600), settings)
    assert late.action == "rollback"
    assert late.reason.startswith("no verdict after 3,600 s (distribution: answers moved")


def test_a_business_metric_is_waited_for_where_one_is_named() -> None:
    settings = SETTINGS.model_copy(update={"business": Business(column="revenue")})
    decision = decide(evidence(FIRST, SECOND), Position(0.5, 60, 120), settings)
    assert (decision.action, decision.reason) == (
        "hold", "business: revenue is known of 0 of the challenger's keys; too few to judge: not certain yet",
    )  # fmt: skip


def test_no_verdict_by_the_last_request_or_second_keeps_the_champion() -> None:
    waiting = evidence(step(0.1, 18_000, 2_000), SECOND, loss=Paired())
    spent = decide(waiting, Position(0.5, 60, 120), SETTINGS)
    assert (spent.action, spent.reason) == (
        "rollback", "no verdict after 22,000 requests (quality: 0 labelled rows; too few to judge)",
    )  # fmt: skip
    late = decide(evidence(step(0.1, 900, 100)), Position(0.1, 3_600, 3_600), SETTINGS)
    assert late.action == "rollback"
    assert late.reason.startswith("no verdict after 3,600 s (errors: 0 of 100 failed")


def test_the_next_share_is_the_first_above_wherever_it_is() -> None:
    plan = (0.01, 0.05, 0.25, 1.0)
    assert [next_weight(weight, plan) for weight in (0.01, 0.1, 0.25, 1.0)] == [0.05, 0.25, 1.0, None]


PAIRS = st.builds(Pair, st.integers(0, 30_000), st.integers(0, 30_000))
STEPS = st.lists(
    st.builds(
        lambda weight, keys, share: step(weight, *keys, Pair(int(keys.champion * share), int(keys.challenger * share))),
        st.sampled_from([0.1, 0.5, 1.0]), PAIRS, st.floats(0, 1),
    ),
    max_size=3, unique_by=lambda one: one.weight,
)  # fmt: skip
LOSS = st.builds(Paired, st.integers(0, 30_000), st.floats(-5, 5), st.floats(0, 10), st.floats(0, 5))


@given(STEPS, LOSS, st.sampled_from([0.1, 0.5, 1.0]), st.floats(0, 4_000))
def test_whatever_the_facts_there_is_one_of_five_answers_with_a_reason(
    steps: list[Step], loss: Paired, weight: float, seconds: float
) -> None:
    found = decide(Evidence(tuple(steps), loss=loss), Position(weight, seconds, seconds), SETTINGS)
    assert found.action in {"hold", "advance", "promote", "rollback", "pause"}
    assert found.reason
    assert set(found.facts) >= {"requests", "challenger_requests", "checks"}
    here = sum(one.requests.challenger for one in steps if one.weight == weight)
    if found.action in {"advance", "promote"}:
        assert here >= SETTINGS.min_requests
        assert seconds >= SETTINGS.min_step_s
    if found.action == "hold":
        assert sum(sum(one.requests) for one in steps) < SETTINGS.max_requests
        assert seconds < SETTINGS.max_s
