"""Errors, latency, predictions, ratio and business metric of the two versions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymlp.config.rollout import Business, Distribution, Errors, Latency
from raymlp.serve.rollout.business import MIN_KEYS, check_business
from raymlp.serve.rollout.distribution import check_distribution, gap
from raymlp.serve.rollout.errors import MIN_ERRORS, check_errors
from raymlp.serve.rollout.facts import Histogram, Moments, Pair, Scores, Step
from raymlp.serve.rollout.latency import REFERENCE_REQUESTS, check_latency
from raymlp.serve.rollout.ratio import check_ratio

CERTAIN = math.log(20)
LATENCIES = st.lists(st.floats(1e-4, 1e5), min_size=1, max_size=60)


def failing(weight: float, champion: tuple[int, int], challenger: tuple[int, int]) -> Step:
    failed, keys = Pair(champion[0], challenger[0]), Pair(champion[1], challenger[1])
    return Step(weight, keys=keys, errors=failed, trials=keys, failed=failed)


# ---------------------------------------------------------------------- histograms


@given(LATENCIES, st.floats(0.01, 1))
def test_a_quantile_lies_in_its_bin(values: list[float], quantile: float) -> None:
    found = Histogram.of(values)
    exact = max(1e-3, sorted(values)[math.ceil(quantile * len(values)) - 1])
    assert exact / found.quantile_ms(quantile) == pytest.approx(1, abs=0.03)
    assert found.total == len(values)


@given(LATENCIES, LATENCIES, st.integers(-400, 600))
def test_histograms_add_up(one: list[float], other: list[float], place: int) -> None:
    both = Histogram.merged([Histogram.of(one), Histogram(), Histogram.of(other)])
    assert both == Histogram.of(one + other)
    assert both.from_bin(place) == Histogram.of(one).from_bin(place) + Histogram.of(other).from_bin(place)


def test_an_empty_histogram_has_no_quantile() -> None:
    assert math.isnan(Histogram().quantile_ms(0.5))
    with pytest.raises(ValueError, match="without requests has no quantile"):
        Histogram().quantile_bin(0.5)


# ---------------------------------------------------------------------- errors


def test_three_times_the_champions_errors_are_harm() -> None:
    found = check_errors([failing(0.05, (190, 19_000), (40, 1_000))], Errors())
    assert found.harm > CERTAIN
    assert found.told == "40 of 1,000 failed (4.00%), champion 190 of 19,000 (1.00%)"


def test_the_champions_own_errors_are_no_harm_however_many() -> None:
    """Both fail in a fifth of their requests, which is far above the acceptable rate, and no limit is set."""
    step = failing(0.5, (2_000, 10_000), (2_000, 10_000))
    assert check_errors([step], Errors(limit=None)).harm < 0
    assert (check_errors([step], Errors(limit=None)).fine or 0) > CERTAIN
    assert check_errors([step], Errors(limit=0.05)).harm > CERTAIN


def test_a_rate_that_is_tolerated_is_no_harm_although_the_champion_has_none() -> None:
    step = failing(0.5, (0, 100_000), (30, 100_000))
    assert check_errors([step], Errors(tolerated=0.001)).harm < 0
    assert check_errors([step], Errors(tolerated=0.0)).harm > CERTAIN


def test_a_handful_of_failures_is_not_held_against_it() -> None:
    few = failing(0.01, (0, 400), (MIN_ERRORS - 1, MIN_ERRORS - 1))
    assert check_errors([few], Errors()).harm <= 0
    assert check_errors([failing(0.01, (0, 400), (MIN_ERRORS, MIN_ERRORS))], Errors()).harm > CERTAIN


def test_no_errors_are_fine_after_some_hundred_requests() -> None:
    assert (check_errors([failing(0.5, (0, 100), (0, 100))], Errors()).fine or 0) < CERTAIN
    assert (check_errors([failing(0.5, (0, 600), (0, 600))], Errors()).fine or 0) > CERTAIN


def test_without_any_step_nothing_is_said() -> None:
    found = check_errors([], Errors())
    assert (found.harm, found.fine) == (0.0, 0.0)


# ---------------------------------------------------------------------- latency


def lognormal(median: float, number: int, seed: int) -> Histogram:
    return Histogram.of(np.random.default_rng(seed).lognormal(math.log(median), 0.5, number))


REFERENCE = lognormal(10, REFERENCE_REQUESTS, 0)


def timed(weight: float, champion: Histogram, challenger: Histogram) -> Step:
    return Step(weight, latency=(champion, challenger))


def test_a_third_slower_is_harm_and_equal_is_fine() -> None:
    slower = check_latency([timed(0.5, lognormal(10, 2_000, 1), lognormal(13, 2_000, 2))], REFERENCE, Latency())
    equal = check_latency([timed(0.5, lognormal(10, 2_000, 1), lognormal(10, 2_000, 2))], REFERENCE, Latency())
    assert slower.harm > CERTAIN > 0 > (slower.fine or 0)
    assert equal.harm < 0 < CERTAIN < (equal.fine or 0)
    assert slower.told == "p50 12.9 ms beside 9.9 ms, p95 28.1 ms beside 23.6 ms on 2,000 requests"


def test_a_heavier_tail_alone_is_harm() -> None:
    tail = Histogram.merged([lognormal(10, 1_800, 2), lognormal(100, 200, 3)])
    assert check_latency([timed(0.5, lognormal(10, 2_000, 1), tail)], REFERENCE, Latency()).harm > CERTAIN


def test_a_slow_hour_that_hits_both_is_no_harm() -> None:
    """The champion has most of its requests in the quick hours and the challenger in the slow one: the pooled quantiles differ by far."""
    steps = [
        timed(0.01, lognormal(10, 9_900, 1), lognormal(10, 100, 2)),
        timed(0.5, lognormal(40, 1_000, 3), lognormal(40, 1_000, 4)),
    ]
    found = check_latency(steps, REFERENCE, Latency())
    assert found.harm < 0
    assert "p50 37" in found.told or "p50 38" in found.told


def test_a_millisecond_is_slack() -> None:
    reference = lognormal(0.5, REFERENCE_REQUESTS, 0)
    step = timed(0.5, lognormal(0.5, 2_000, 1), lognormal(0.8, 2_000, 2))
    assert check_latency([step], reference, Latency(slack_ms=1.0)).harm < 0
    assert check_latency([step], reference, Latency(slack_ms=0.0)).harm > CERTAIN


def test_latencies_that_are_all_the_same_are_fine_and_twice_as_long_ones_are_harm() -> None:
    one, two = Histogram.of([10.0] * 1_000), Histogram.of([20.0] * 1_000)
    reference = Histogram.of([10.0] * REFERENCE_REQUESTS)
    same, double = (check_latency([timed(0.5, one, other)], reference, Latency()) for other in (one, two))
    assert same.harm < 1 < CERTAIN < (same.fine or 0)
    assert double.harm > CERTAIN > (double.fine or 0)


def test_it_waits_for_its_reference_and_is_not_harsh_on_a_handful() -> None:
    step = timed(0.5, lognormal(10, 29, 1), lognormal(1_000, 29, 2))
    waiting = check_latency([step], lognormal(10, REFERENCE_REQUESTS - 1, 0), Latency())
    assert (waiting.harm, waiting.fine) == (0.0, 0.0)
    assert waiting.told == "199 of the champion's first 200 requests are there"
    assert check_latency([step], REFERENCE, Latency()).harm <= 0
    assert check_latency([timed(0.5, lognormal(10, 30, 1), lognormal(1_000, 30, 2))], REFERENCE, Latency()).harm > CERTAIN


def test_a_quantile_at_what_is_tolerated_alarms_within_alpha_however_often_one_looks() -> None:
    """The challenger is slower by exactly what is tolerated, so every alarm is false."""
    rng = np.random.default_rng(4)
    runs, alarms = 120, 0
    settings = Latency(tolerated=0.1, slack_ms=0.0)
    for _ in range(runs):
        reference = Histogram.of(rng.lognormal(2, 0.5, REFERENCE_REQUESTS))
        champion, challenger = Histogram(), Histogram()
        for _ in range(20):
            theirs = int(rng.binomial(60, 0.3))
            champion = Histogram.merged([champion, Histogram.of(rng.lognormal(2, 0.5, 60 - theirs))])
            challenger = Histogram.merged([challenger, Histogram.of(1.1 * rng.lognormal(2, 0.5, theirs))])
            if check_latency([timed(0.3, champion, challenger)], reference, settings).harm >= CERTAIN:
                alarms += 1
                break
    assert alarms / runs <= 0.05


# ---------------------------------------------------------------------- predictions


def scored(weight: float, champion: list[int], challenger: list[int]) -> Step:
    return Step(weight, scores=(tuple(champion), tuple(challenger)))


TENTHS = Scores((20,) * 10)


def test_a_challenger_that_gives_one_answer_is_seen() -> None:
    found = check_distribution([scored(0.05, [95] * 10, [0] * 9 + [60])], TENTHS, Distribution())
    assert found.harm > CERTAIN
    assert found.fine is None
    assert found.told == "answers moved by 0.90 on 60 requests"


def test_a_shift_within_the_gap_is_none() -> None:
    """A tenth of the answers moved from the lower half to the upper."""
    step = scored(0.5, [1_000] * 10, [800] * 5 + [1_200] * 5)
    assert check_distribution([step], TENTHS, Distribution(max_gap=0.25)).harm < 0
    assert check_distribution([step], TENTHS, Distribution(max_gap=0.03)).harm > CERTAIN


def test_classes_are_compared_one_by_one() -> None:
    classes = Scores((100, 90, 10, 0), ordered=False)
    same = check_distribution([scored(0.2, [2_000, 1_800, 200, 0], [500, 450, 50, 0])], classes, Distribution())
    new = check_distribution([scored(0.2, [2_000, 1_800, 200, 0], [300, 200, 0, 500])], classes, Distribution())
    assert same.harm < 0 < CERTAIN < new.harm


def test_predictions_are_not_looked_at_when_switched_off_or_without_cells() -> None:
    step = scored(0.05, [95] * 10, [0] * 9 + [60])
    assert check_distribution([step], TENTHS, Distribution(max_gap=None)).harm == 0.0
    assert check_distribution([Step(0.05)], Scores(), Distribution()).harm == 0.0


def test_the_gap_is_the_largest_difference_of_cumulative_shares() -> None:
    assert gap(np.array([1.0, 1.0, 2.0]), np.array([0.0, 2.0, 2.0]), ordered=True) == 0.25
    assert gap(np.array([1.0, 1.0, 2.0]), np.array([0.0, 2.0, 2.0]), ordered=False) == 0.25
    assert gap(np.zeros(3), np.ones(3), ordered=True) == 0.0


# ---------------------------------------------------------------------- ratio


def test_a_split_as_declared_is_no_harm_and_another_one_is() -> None:
    as_declared = [Step(0.01, keys=Pair(9_900, 100)), Step(0.5, keys=Pair(5_030, 4_970))]
    assert check_ratio(as_declared).harm < 0
    lost = [*as_declared, Step(0.25, keys=Pair(7_500, 2_100))]
    found = check_ratio(lost)
    assert found.harm > math.log(1_000)
    assert found.told == "7,170 of 29,600 keys were the challenger's, 7,500 expected"


def test_too_many_is_as_wrong_as_too_few_and_a_step_without_the_champion_says_nothing() -> None:
    assert check_ratio([Step(0.1, keys=Pair(8_500, 1_500))]).harm > math.log(1_000)
    assert check_ratio([Step(1.0, keys=Pair(50, 9_000))]).harm == 0.0
    assert check_ratio([]).harm == 0.0


def test_a_fair_split_is_called_unfair_within_alpha_at_every_key() -> None:
    rng = np.random.default_rng(2)
    runs, alarms = 200, 0
    for _ in range(runs):
        theirs = np.cumsum(rng.random(3_000) < 0.1)
        looks = range(20, 3_000, 20)
        alarms += any(check_ratio([Step(0.1, keys=Pair(n - int(theirs[n - 1]), int(theirs[n - 1])))]).harm >= CERTAIN for n in looks)
    assert alarms / runs <= 0.05


# ---------------------------------------------------------------------- business metric


def paid(weight: float, champion: np.ndarray, challenger: np.ndarray) -> Step:
    return Step(weight, business=(Moments.of(champion), Moments.of(challenger)))


def test_a_lower_mean_is_harm_and_a_higher_one_is_fine() -> None:
    rng = np.random.default_rng(0)
    settings = Business(column="revenue")
    old, low, high = rng.gamma(2, 5, 4_000), rng.gamma(2, 4, 1_000), rng.gamma(2, 6, 1_000)
    worse = check_business([paid(0.2, old, low)], settings, alpha=0.05)
    better = check_business([paid(0.2, old, high)], settings, alpha=0.05)
    assert worse.harm > CERTAIN > 0 > (worse.fine or 0)
    assert better.harm < 0 < CERTAIN < (better.fine or 0)
    assert worse.told.startswith("revenue -1.")


def test_an_hour_of_low_revenue_that_hits_both_is_no_harm() -> None:
    """All of the challenger's many keys came in the poor hour; compared without hours it would lose by half."""
    rng = np.random.default_rng(0)
    steps = [
        paid(0.01, rng.gamma(2, 5, 9_900), rng.gamma(2, 5, 100)),
        paid(0.5, rng.gamma(2, 2, 3_000), rng.gamma(2, 2, 3_000)),
    ]
    found = check_business(steps, Business(column="revenue"), alpha=0.05)
    assert found.harm < 1
    assert abs(float(found.told.split()[1])) < 0.3


def test_the_effect_of_one_step_is_the_difference_of_means() -> None:
    """With the challenger's keys exactly at its share, (A - w) (Y - m) adds up to w (1 - w) n times the difference."""
    found = check_business([paid(0.25, np.full(300, 4.0), np.full(100, 6.0))], Business(column="clicks"), alpha=0.05)
    assert found.told == "clicks +2 beside 4 on 100 of the challenger's keys"


def test_few_keys_say_nothing() -> None:
    found = check_business([paid(0.5, np.ones(500), np.zeros(MIN_KEYS - 1))], Business(column="clicks"), alpha=0.05)
    assert (found.harm, found.fine) == (0.0, 0.0)
