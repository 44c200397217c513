"""E-values: hand-worked cases, and that chance alone does not carry them over the line."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymlp.serve.rollout.sequential import Outcome, bet, bets_since, from_any_step, mean_above, mean_of, radius, rate_above, rate_below


def outcome(champion: list[float], challenger: list[float], ratios: tuple[float, ...], null: float = 1.0) -> Outcome:
    return Outcome(np.array(champion), np.array(challenger), ratios, null)


def test_a_bet_worked_by_hand() -> None:
    # At a share of a half, a ratio of 3 gives the challenger 3 of 4: each of its three wins 1.5, each of the champion's one .5.
    assert float(bet([outcome([1], [3], (3.0,))], [0.5])) == pytest.approx(math.log(1.5**3 * 0.5))


def test_a_bet_over_steps_is_the_product_over_them() -> None:
    # At a share of a tenth, a ratio of 3 gives the challenger 3 of 12: 2.5 times its share; the champion .75 of .9.
    both = float(bet([outcome([1, 2], [3, 1], (3.0,))], [0.5, 0.1]))
    assert both == pytest.approx(math.log(1.5**3 * 0.5 * 2.5 * (0.75 / 0.9) ** 2))


def test_a_bet_against_a_ratio_of_two() -> None:
    # Null 2 of 3, alternative 4 of 5.
    assert float(bet([outcome([1], [1], (4.0,), 2.0)], [0.5])) == pytest.approx(math.log((0.8 / (2 / 3)) * (0.2 / (1 / 3))))


def test_bets_since_each_step_and_their_mean_worked_by_hand() -> None:
    found = bets_since([outcome([1, 2], [3, 1], (3.0,))], [0.5, 0.1])
    later = 2.5 * (0.75 / 0.9) ** 2
    assert np.exp(found) == pytest.approx([1.5**3 * 0.5 * later, later])
    assert math.exp(float(from_any_step(found))) == pytest.approx(1.5**3 * 0.5 * later / 2 + later / 4 + 1 / 4)
    assert float(from_any_step(np.zeros(0))) == 0.0


def test_alternatives_are_averaged_and_outcomes_of_one_request_go_together() -> None:
    slow, quick = outcome([1], [2], (3.0, 1.5)), outcome([5], [4], (0.5, 0.9))
    by_hand = [
        (3 / 4 * 2) ** 2 * (1 / 4 * 2) * (1 / 3 * 2) ** 4 * (2 / 3 * 2) ** 5,
        (1.5 / 2.5 * 2) ** 2 * (1 / 2.5 * 2) * (0.9 / 1.9 * 2) ** 4 * (1 / 1.9 * 2) ** 5,
    ]
    assert float(bet([slow, quick], [0.5])) == pytest.approx(math.log(sum(by_hand) / 2))


def test_nothing_is_learned_where_one_version_has_all_the_traffic() -> None:
    assert float(bet([outcome([0], [500], (3.0,))], [1.0])) == 0.0
    assert float(bet([outcome([500], [0], (3.0,))], [0.0])) == 0.0


def test_mean_above_is_exact_far_below_zero() -> None:
    # log(2 / sqrt(1 + k) * exp(a^2 / 2) Phi(a)) at a = -40, where Phi(a) exp(a^2 / 2) is 1 / (40 sqrt(2 pi)) (1 - 1 / 1600 + ...).
    k = 400 * (-2 * math.log(0.05) + math.log(1 - 2 * math.log(0.05))) / 1_000
    total = -40 / math.sqrt(k / (1 + k)) * 20
    tail = (1 - 40**-2 + 3 * 40**-4 - 15 * 40**-6) / (40 * math.sqrt(2 * math.pi))
    expected = math.log(2 * tail / math.sqrt(1 + k))
    assert mean_above(400, total, 400.0, alpha=0.05, target_rows=1_000) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5])
@pytest.mark.parametrize("null", [1.0, 1.5])
def test_the_mean_of_one_more_bet_is_one_at_the_null_and_less_below_it(share: float, null: float) -> None:
    def mean(ratio: float) -> float:
        theirs = share * ratio / (share * ratio + 1 - share)
        won, lost = (math.exp(float(bet([outcome([1 - hit], [hit], (2.0, 5.0), null)], [share]))) for hit in (1, 0))
        return theirs * won + (1 - theirs) * lost

    assert mean(null) == pytest.approx(1.0)
    assert mean(null * 0.8) < 1


@pytest.mark.parametrize("drift", ["steady", "an incident"])
def test_false_alarms_stay_within_alpha_at_every_single_request(drift: str) -> None:
    """1,500 runs of 2,000 requests with a look after each; an incident that hits both versions alike changes nothing."""
    rng = np.random.default_rng(1)
    runs, requests, alpha = 1_500, 2_000, 0.05
    share = np.where(np.arange(requests) < 800, 0.1, 0.5)
    rate = np.full(requests, 0.03)
    if drift == "an incident":
        rate[500:1_100] = 0.5
    failed = rng.random((runs, requests)) < rate
    theirs = rng.random((runs, requests)) < share
    first = share == 0.1

    def counts(who: np.ndarray) -> np.ndarray:
        return np.stack([np.cumsum(failed & who & first, axis=1), np.cumsum(failed & who & ~first, axis=1)], axis=-1).astype(float)

    found = bet([Outcome(counts(~theirs), counts(theirs), (1.5, 3.0, 10.0))], [0.1, 0.5])
    assert found.shape == (runs, requests)
    alarms = (found.max(axis=1) >= -math.log(alpha)).mean()
    assert alarms <= alpha
    assert alarms > 0.005, "a test that never alarms has no power either"


def test_rates_worked_by_hand() -> None:
    # 2 of 10 against .1: at .2 the ratio is 2^2 (8/9)^8; at .3 it is 3^2 (7/9)^8.
    assert rate_above(2, 10, limit=0.1, factors=(2.0, 3.0)) == pytest.approx(math.log((4 * (8 / 9) ** 8 + 9 * (7 / 9) ** 8) / 2))
    # No failure in 100 against .05: at 0 the ratio is 1 / .95^100.
    assert rate_below(0, 100, limit=0.05, factors=(0.0,)) == pytest.approx(-100 * math.log(0.95))
    assert rate_below(1, 100, limit=0.05, factors=(0.0,)) == -math.inf
    assert rate_above(0, 0, limit=0.1, factors=(2.0,)) == 0.0


def test_factors_that_are_no_rates_give_way_to_one_halfway_to_one() -> None:
    assert rate_above(3, 3, limit=0.8, factors=(2.0, 3.0)) == pytest.approx(3 * math.log(0.9 / 0.8))


def test_mean_above_is_the_mixture_of_normal_likelihood_ratios() -> None:
    """Against numerical integration of the likelihood ratio over a half-normal weight for the mean."""
    rows, total, variance, target, alpha = 400, 30.0, 100.0, 1_000, 0.05
    r2 = (-2 * math.log(alpha) + math.log(1 - 2 * math.log(alpha))) / target
    row_variance = variance / rows
    scale = math.sqrt(r2 * row_variance)
    means = np.linspace(0, 12 * scale, 400_001)
    weight = 2 / (scale * math.sqrt(2 * math.pi)) * np.exp(-((means / scale) ** 2) / 2)
    ratio = np.exp(means * total / row_variance - rows * means**2 / (2 * row_variance))
    expected = math.log(float(np.trapezoid(weight * ratio, means)))
    assert mean_above(rows, total, variance, alpha=alpha, target_rows=target) == pytest.approx(expected, rel=1e-6)


def test_mean_above_without_rows_or_spread() -> None:
    assert mean_above(0, 0.0, 0.0, alpha=0.05, target_rows=100) == 0.0
    assert mean_above(500, 0.0, 0.0, alpha=0.05, target_rows=100) == 0.0
    assert mean_above(500, 1.0, 0.0, alpha=0.05, target_rows=100) > 1e6
    assert mean_above(500, -1.0, 0.0, alpha=0.05, target_rows=100) < -15


def test_a_mean_of_zero_is_called_positive_within_alpha_however_often_one_looks() -> None:
    rng = np.random.default_rng(7)
    runs, rows, look = 400, 3_000, 20
    values = rng.exponential(0.5, (runs, rows)) - rng.exponential(0.5, (runs, rows))
    totals, squares = np.cumsum(values, axis=1), np.cumsum(values**2, axis=1)
    wrong = 0
    for run in range(runs):
        for n in range(100, rows, look):
            spread = squares[run, n - 1] - totals[run, n - 1] ** 2 / n
            if mean_above(n, totals[run, n - 1], spread, alpha=0.05, target_rows=2_000) >= -math.log(0.05):
                wrong += 1
                break
    assert wrong / runs <= 0.05


def test_radius_agrees_with_the_formula_worked_by_hand() -> None:
    # alpha .05, target 100: r^2 = (5.99146 + log 6.99146) / 100 = .0793615. At n = 100: n r^2 + 1 = 8.93615,
    # log(sqrt(8.93615) / .05) = 4.09078, so with variance 4: sqrt(4 * 2 * 8.93615 / (100 * 7.93615) * 4.09078) = .607042.
    assert radius(100, 4.0, alpha=0.05, target_rows=100) == pytest.approx(0.607042, abs=1e-6)


def test_radius_shrinks_with_rows_and_is_infinite_without() -> None:
    widths = [radius(n, 1.0, alpha=0.05, target_rows=2_000) for n in (100, 1_000, 10_000)]
    assert widths == sorted(widths, reverse=True)
    assert radius(0, 1.0, alpha=0.05, target_rows=2_000) == math.inf


@given(st.lists(st.floats(-700, 700), min_size=1, max_size=8))
def test_mean_of_logarithms(values: list[float]) -> None:
    largest = max(values)
    expected = largest + math.log(sum(math.exp(value - largest) for value in values) / len(values))
    assert float(mean_of(values)) == pytest.approx(expected, abs=1e-9)
    assert float(mean_of([*values, -math.inf])) == pytest.approx(expected + math.log(len(values) / (len(values) + 1)), abs=1e-9)
