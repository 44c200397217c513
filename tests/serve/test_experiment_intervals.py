"""Intervals of an experiment: the estimate is right, and the interval holds at every look."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from raymlp.serve.experiment.intervals import (
    MIN_KEYS,
    mean_effect,
    paired_effect,
    quantile_effect,
    quantile_interval,
    rank_bounds,
    rate_effect,
    rate_interval,
)
from raymlp.serve.rollout.quality import BURN_IN, TARGET_ROWS
from raymlp.serve.rollout.sequential import radius


def one_stretch(rows: int) -> np.ndarray:
    return np.zeros(rows, dtype=np.int64)


def test_with_even_sides_the_effect_is_the_difference_of_the_means() -> None:
    arm = np.arange(400) % 2 == 1
    y = np.where(arm, 5.0, 3.0) + np.tile([-1.0, -1.0, 1.0, 1.0], 100)
    found = mean_effect(y, arm, np.full(400, 0.5), one_stretch(400), alpha=0.05)
    assert (found.rows, found.control, found.difference) == (200, 3.0, 2.0)
    assert found.low < 2.0 < found.high
    # (A - w) (Y - m) is .5 * (+-1 +- 1), so that its mean square is .25 * (1 + 1)
    half = 400 * radius(400, 0.5, alpha=0.05, target_rows=4_000) / 100
    assert found.high - found.difference == pytest.approx(half)


def test_stretches_with_other_shares_are_compared_within_themselves() -> None:
    # The level rises from 0 to 10 just as the arm's share does from a tenth to nine tenths; the effect is 1 all the time.
    arm = np.concatenate([np.arange(1_000) % 10 == 0, np.arange(1_000) % 10 > 0])
    stretch = np.repeat([0, 1], 1_000)
    y = 10.0 * stretch + arm
    found = mean_effect(y, arm, np.where(stretch, 0.9, 0.1), stretch, alpha=0.05)
    assert y[arm].mean() - y[~arm].mean() > 8
    assert found.difference == pytest.approx(1.0)


def test_too_few_keys_or_too_rare_events_have_no_interval() -> None:
    arm = np.arange(2 * MIN_KEYS - 2) % 2 == 1
    few = mean_effect(np.arange(len(arm)) * 1.0, arm, np.full(len(arm), 0.5), one_stretch(len(arm)), alpha=0.05)
    rare = mean_effect((np.arange(1_000) < 15) * 1.0, np.arange(1_000) % 2 == 1, np.full(1_000, 0.5), one_stretch(1_000), alpha=0.05)
    same = mean_effect(np.ones(1_000), np.arange(1_000) % 2 == 1, np.full(1_000, 0.5), one_stretch(1_000), alpha=0.05)
    assert not few.is_known
    assert not rare.is_known
    assert not same.is_known
    assert math.isnan(mean_effect(np.zeros(0), np.zeros(0, dtype=bool), np.zeros(0), one_stretch(0), alpha=0.05).difference)


def test_a_small_arm_without_an_event_does_not_look_certain() -> None:
    rows, share = 20_000, 0.05
    arm = np.arange(rows) % 20 == 0
    y = (np.arange(rows) % 80 == 1) * 1.0  # 250 events, none of them the arm's
    found = mean_effect(y, arm, np.full(rows, share), one_stretch(rows), alpha=0.05)
    dealt = rows * share * (1 - share) * float(y.var())
    assert found.deviation == pytest.approx(math.sqrt(dealt) / (rows * share * (1 - share)))
    assert found.deviation > 3 * math.sqrt(float((((arm - share) * (y - y.mean())) ** 2).sum())) / (rows * share * (1 - share))


@pytest.mark.parametrize(("share", "rate"), [(0.5, 0.1), (0.1, 0.1), (0.1, 0.02)])
def test_the_interval_of_a_rare_event_holds_at_every_look_of_most_experiments(share: float, rate: float) -> None:
    rng, missed = np.random.default_rng(1), 0
    looks = [int(200 * 1.4**k) for k in range(12)]
    for _ in range(120):
        arm, y = rng.random(looks[-1]) < share, (rng.random(looks[-1]) < rate) * 1.0
        found = [mean_effect(y[:n], arm[:n], np.full(n, share), one_stretch(n), alpha=0.05) for n in looks]
        missed += any(not one.low <= 0 <= one.high for one in found)
        assert found[-1].is_known
    assert missed <= 6


def test_two_sides_without_a_failure_are_known_to_be_alike() -> None:
    arm, none = np.arange(4_000) % 2 == 1, np.zeros(4_000)
    found = rate_effect(none, arm, np.full(4_000, 0.5), one_stretch(4_000), alpha=0.05)
    # (1 - p)^-n B(.5, n + .5) / B(.5, .5) = 1 / alpha, and the latter quotient is about 1 / sqrt(pi n)
    reach = (math.log(4 / 0.05) + math.log(math.pi * 2_000) / 2) / 2_000
    assert (found.low, found.high) == pytest.approx((-reach, reach), rel=0.01)
    turned = rate_effect(none, arm, np.full(4_000, 0.5), np.repeat([0, 1], 2_000), alpha=0.05)
    assert (turned.low, turned.high) == pytest.approx((-reach, reach), rel=0.01)


@given(st.integers(0, 400), st.integers(1, 400))
@settings(max_examples=40)
def test_a_rate_lies_within_its_interval(hits: int, more: int) -> None:
    trials = hits + more - 1 or 1
    low, high = rate_interval(hits, trials, alpha=0.05)
    assert 0 <= low <= hits / trials <= high <= 1
    mirrored = rate_interval(trials - hits, trials, alpha=0.05)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-9)


def test_a_paired_effect_is_the_mean_difference_with_the_sequences_radius() -> None:
    old = np.zeros(500)
    new = np.tile([0.0, 1.0], 250)
    found = paired_effect(old, new, alpha=0.05)
    half = radius(500, float(new.var(ddof=1)), alpha=0.05, target_rows=TARGET_ROWS)
    assert (found.difference, found.high - 0.5, 0.5 - found.low) == pytest.approx((0.5, half, half))
    assert not paired_effect(old[: BURN_IN - 1], new[: BURN_IN - 1], alpha=0.05).is_known


@given(st.integers(1, 3_000), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
@settings(max_examples=40)
def test_rank_bounds_hold_the_expected_rank_and_are_wider_than_at_one_look(rows: int, quantile: float) -> None:
    fewest, most = rank_bounds(rows, quantile, alpha=0.05)
    assert 0 <= fewest <= quantile * rows <= most <= rows
    assert fewest <= binom.ppf(0.025, rows, quantile)
    assert most >= binom.ppf(0.975, rows, quantile)


def test_the_bounds_of_a_quantile_are_order_statistics() -> None:
    values = np.random.default_rng(0).permutation(np.arange(1.0, 2_001.0))
    found, low, high = quantile_interval(values, 0.9, alpha=0.05)
    fewest, most = rank_bounds(2_000, 0.9, alpha=0.05)
    assert (found, low, high) == (1_800.0, float(fewest), float(most + 1))
    assert quantile_interval(values[:5], 0.9, alpha=0.05)[1:] == (-math.inf, math.inf)


def test_the_interval_of_a_quantile_holds_at_every_look() -> None:
    rng, missed, truth = np.random.default_rng(2), 0, math.exp(0.5 * 1.6448536)
    for _ in range(120):
        values = np.exp(0.5 * rng.normal(size=6_000))
        for rows in (50, 100, 200, 400, 800, 1_600, 3_000, 6_000):
            _, low, high = quantile_interval(values[:rows], 0.95, alpha=0.05)
            if not low <= truth <= high:
                missed += 1
                break
    assert missed <= 8


def test_a_quantile_effect_is_found_and_its_sign_is_the_arms() -> None:
    rng = np.random.default_rng(3)
    old, new = rng.lognormal(2, 0.3, 8_000), 1.5 * rng.lognormal(2, 0.3, 8_000)
    found = quantile_effect(old, new, 0.95, alpha=0.05)
    assert 0 < found.low < found.difference < found.high
    assert found.control == pytest.approx(np.quantile(old, 0.95), rel=0.01)
