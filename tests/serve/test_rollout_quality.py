"""Paired losses and rankings."""

from __future__ import annotations

import numpy as np
import pytest

from raymlp.config.rollout import Quality
from raymlp.core.metrics import auc
from raymlp.serve.rollout.facts import Check, Paired
from raymlp.serve.rollout.quality import BURN_IN, RANKING_BURN_IN, check_quality, misranking

CERTAIN = np.log(20)


def check(loss: Paired, ranking: Paired | None = None, **settings: float | bool) -> Check:
    return check_quality(loss, ranking, Quality.model_validate(settings), alpha=0.05)


def test_paired_summary_of_four_rows_worked_by_hand() -> None:
    loss = Paired.of(np.array([1.0, 1.0, 2.0, 0.0]), np.array([2.0, 1.0, 2.0, 1.0]))
    assert (loss.rows, loss.mean, loss.champion_loss) == (4, 0.5, 1.0)
    assert loss.variance == pytest.approx(1 / 3)


def test_losses_of_different_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="the same rows"):
        Paired.of(np.zeros(3), np.zeros(4))


def test_a_worse_challenger_shows_and_a_better_one_is_fine() -> None:
    worse, better = check(Paired(400, 0.3, 0.04, 0.5)), check(Paired(1_000, -0.1, 0.04, 0.5))
    assert worse.harm > CERTAIN > 0 > (worse.fine or 0)
    assert better.harm < 0 < CERTAIN < (better.fine or 0)
    assert worse.told.startswith("loss +0.3000 [+0.2")


def test_an_equal_challenger_is_fine_once_the_margin_is_all_that_it_can_be_worse() -> None:
    few, many = check(Paired(200, 0.0, 0.04, 0.5), margin=0.02), check(Paired(40_000, 0.0, 0.04, 0.5), margin=0.02)
    assert (few.fine or 0) < CERTAIN < (many.fine or 0)
    assert max(few.harm, many.harm) < 0


def test_what_is_tolerated_is_not_held_against_it() -> None:
    loss = Paired(10_000, 0.008, 0.04, 0.5)
    assert check(loss).harm > CERTAIN
    assert check(loss, tolerated=0.02, margin=0.03).harm < 0


def test_nothing_is_said_before_enough_rows() -> None:
    found = check(Paired(BURN_IN - 1, 5.0, 0.01, 0.5))
    assert (found.harm, found.fine, found.told) == (0.0, 0.0, "99 labelled rows; too few to judge")
    assert check(Paired(BURN_IN, 5.0, 0.01, 0.5)).harm > CERTAIN


def test_a_model_that_separates_nothing_shows_although_its_loss_is_fair() -> None:
    found = check(Paired(1_000, -0.05, 0.04, 0.6), Paired(60, 0.2, 0.04, 0.3))
    assert found.harm > CERTAIN
    assert (found.fine or 0) < 0


def test_a_fair_loss_alone_is_not_enough_before_the_ranking_is_known() -> None:
    loss = Paired(1_000, -0.1, 0.04, 0.5)
    assert check(loss, Paired(RANKING_BURN_IN - 1, 0.0, 0.01, 0.3)).fine == 0.0
    assert (check(loss, Paired(400, -0.02, 0.01, 0.3)).fine or 0) > CERTAIN


def test_labels_are_asked_for_where_they_are_required_or_have_come() -> None:
    assert check(Paired()).fine == 0.0
    assert check(Paired(), required=False).fine is None
    assert check(Paired(5, 0.0, 1.0, 0.5), required=False).fine == 0.0


def test_misranking_of_a_hand_worked_run_is_one_minus_auc_within_blocks() -> None:
    y = np.tile([1.0] * 32 + [0.0] * 32, 8)
    right, wrong, tied = y, -y, np.zeros(512)
    assert misranking(y, right).tolist() == [0.0] * 32
    assert misranking(y, wrong).tolist() == [1.0] * 32
    assert misranking(y, tied).tolist() == [0.5] * 32
    assert misranking(y[:511], right[:511]).size == 0
    assert misranking(np.ones(512), np.zeros(512)).size == 0


def test_misranking_agrees_with_auc_on_independent_rows() -> None:
    rng = np.random.default_rng(0)
    y = (rng.random(51_200) < 0.3).astype(float)
    p = rng.normal(size=y.size) + y
    assert 1 - misranking(y, p).mean() == pytest.approx(auc(y, p), abs=0.01)
