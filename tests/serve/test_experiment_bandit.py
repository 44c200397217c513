"""Thompson sampling."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta

from raymlp.config.experiment import Bandit
from raymlp.serve.experiment.bandit import best_chances, shares

SETTINGS = Bandit(floor=0.05)


def binary(hits: int, misses: int) -> np.ndarray:
    return np.repeat([1.0, 0.0], [hits, misses])


def test_the_chance_to_be_best_is_that_of_the_beta_posteriors() -> None:
    x = np.linspace(0, 1, 20_001)
    expected = np.trapezoid(beta(31, 71).pdf(x) * beta(21, 81).cdf(x), x)
    chances = best_chances([binary(20, 80), binary(30, 70)], seed=0)
    assert chances is not None
    assert chances[1] == pytest.approx(expected, abs=0.01)


def test_the_chance_of_numbers_is_that_of_two_normal_means() -> None:
    old, new = np.tile([0.0, 2.0], 200), np.tile([0.1, 2.1], 200)
    chances = best_chances([old, new], seed=0)
    assert chances is not None
    # The difference .1 has a standard error of sqrt(2 / 399) = .0708, 1.41 of them.
    assert chances[1] == pytest.approx(0.921, abs=0.01)


def test_every_arm_keeps_its_floor_and_the_shares_sum_to_one() -> None:
    found = shares([binary(10, 990), binary(500, 500), binary(20, 980)], (0.3, 0.3, 0.4), SETTINGS, seed=1)
    assert found == pytest.approx((0.05, 0.9, 0.05), abs=1e-3)
    assert sum(found) == pytest.approx(1.0, abs=1e-12)
    assert shares([binary(10, 990), binary(500, 500), binary(20, 980)], (0.3, 0.3, 0.4), SETTINGS, seed=1) == found


def test_the_shares_stay_while_an_arm_has_too_few_numbers() -> None:
    assert shares([np.arange(100.0), np.arange(5.0)], (0.6, 0.4), SETTINGS, seed=0) == (0.6, 0.4)
