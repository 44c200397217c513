"""What is told before a rollout starts, held against the checks themselves."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from raymlp.config.rollout import Quality, Rollout
from raymlp.serve.rollout.outlook import Traffic, outlook, population_of

SETTINGS = Rollout(weights=(0.1, 0.5, 1.0), min_requests=100, min_step_s=0)
TRAFFIC = Traffic(requests_per_s=10, error_rate=0.01)


def test_it_tells_requests_time_and_what_would_be_found() -> None:
    found = outlook(SETTINGS, TRAFFIC)
    assert found.requests is not None
    assert found.by_step[0] == (0.1, 1_000)
    assert found.by_step[-1] == (1.0, 100)
    assert sum(number for _, number in found.by_step) == found.requests
    assert found.seconds == pytest.approx(found.requests / 10)
    assert found.lines() == [
        f"an equal challenger is promoted after about {found.requests:,} requests, {found.seconds / 60:.1f} min at 10.0 requests/s, "
        "if labels come and show by then that its quality is no worse",
        f"smallest differences found by then: an error rate of {found.detectable['errors']:.2%} instead of 1.00%, "
        f"latency {found.detectable['latency']:+.0%}",
    ]


def test_the_time_of_steps_counts_where_traffic_is_dense() -> None:
    slow = outlook(SETTINGS.model_copy(update={"min_step_s": 600.0}), TRAFFIC)
    assert slow.by_step[0] == (0.1, 6_000)
    assert slow.by_step[-1] == (1.0, 6_000)


def test_more_errors_take_longer_and_a_tighter_alpha_too() -> None:
    def requests(settings: Rollout, rate: float) -> int:
        return outlook(settings, Traffic(error_rate=rate)).requests or 0

    assert 0 < requests(SETTINGS, 0.0) < requests(SETTINGS, 0.01)
    assert requests(SETTINGS, 0.01) < requests(SETTINGS.model_copy(update={"alpha": 0.001}), 0.01)


def test_a_plan_that_cannot_end_is_told_to() -> None:
    found = outlook(SETTINGS.model_copy(update={"max_requests": 1_500}), TRAFFIC)
    assert found.requests is None
    assert found.lines()[0] == "an equal challenger would not be promoted within serve.rollout.max_requests and max_s"
    assert found.detectable["errors"] is not None
    assert outlook(SETTINGS.model_copy(update={"max_s": 60.0}), TRAFFIC).requests is None


def test_quality_is_told_of_once_the_spread_of_losses_is_known() -> None:
    unknown = outlook(SETTINGS, TRAFFIC)
    known = outlook(SETTINGS, Traffic(error_rate=0.01, loss=0.5, loss_deviation=0.1))
    assert "quality" not in unknown.detectable
    assert 0 < (known.detectable["quality"] or 0) < 0.1
    wide = outlook(SETTINGS, Traffic(loss=0.5, loss_deviation=2.0))
    assert wide.requests is None or wide.requests > (known.requests or 0)


def test_without_a_rate_there_is_no_time_but_there_are_requests() -> None:
    found = outlook(SETTINGS, Traffic())
    assert math.isnan(found.seconds)
    assert found.lines()[0].startswith(f"an equal challenger is promoted after about {found.requests:,} requests, if labels come")


def test_a_difference_that_is_told_of_is_larger_than_what_is_tolerated() -> None:
    found = outlook(SETTINGS.model_copy(update={"quality": Quality(required=False)}), TRAFFIC)
    assert (found.detectable["errors"] or 0) > TRAFFIC.error_rate
    assert (found.detectable["latency"] or 0) > SETTINGS.latency.tolerated


def test_labels_are_told_of_only_where_they_are_needed_and_nothing_is_known_of_them() -> None:
    not_required = SETTINGS.model_copy(update={"quality": Quality(required=False)})
    known = Traffic(error_rate=0.01, loss=0.5, loss_deviation=0.1)
    for found in (outlook(not_required, TRAFFIC), outlook(SETTINGS, known), outlook(SETTINGS, TRAFFIC, has_answers=False)):
        assert found.requests is not None
        assert "labels" not in found.lines()[0]


def test_the_number_of_keys_is_found_from_those_that_came() -> None:
    assert population_of(1_000, 1_000) == math.inf
    for keys in (50.0, 2_000.0, 1e6):
        came = Traffic(keys=keys).seen(10_000)
        assert population_of(10_000, round(came)) == pytest.approx(keys, rel=0.02)
    assert Traffic(keys=2_000).seen(2_000) == pytest.approx(2_000 * (1 - 1 / math.e))


@pytest.mark.parametrize("keys", [20.0, 200.0, 230.0])
def test_too_few_keys_are_told_of(keys: float) -> None:
    """The champion's first 200 keys are the reference, so nothing is left to compare, however many requests come."""
    found = outlook(SETTINGS, replace(TRAFFIC, keys=keys))
    assert found.requests is None
    assert found.lines()[0] == (
        "an equal challenger would not be promoted within serve.rollout.max_requests and max_s; "
        f"about {keys:.0f} routing keys come back, each counts once, and latency is compared after the champion's first 200"
    )


def test_keys_that_come_back_take_longer_and_many_of_them_are_as_good_as_new() -> None:
    each = outlook(SETTINGS, TRAFFIC)
    many = outlook(SETTINGS, replace(TRAFFIC, keys=1e9))
    few = outlook(SETTINGS, replace(TRAFFIC, keys=5_000.0))
    assert each.requests == many.requests
    assert (few.requests or 0) > (each.requests or 0)
