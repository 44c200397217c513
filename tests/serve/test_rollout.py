"""Promote, roll back or wait."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymlp.config.serve import Rollout
from raymlp.core.metrics import auc
from raymlp.serve.rollout import BURN_IN, Evidence, Paired, Traffic, credibly_above, decide, misranking, radius

SETTINGS = Rollout(min_requests=200, max_requests=20_000, alpha=0.05, margin=0.01, max_error_rate=0.01, max_latency_ratio=3.0)
GOOD = Traffic(requests=900, errors=0, p95_ms=5.0)


def evidence(challenger: int = 300, errors: int = 0, p95_ms: float = 5.0, loss: Paired | None = None) -> Evidence:
    return Evidence(GOOD, Traffic(challenger, errors, p95_ms), loss or Paired())


def test_radius_agrees_with_the_formula_worked_by_hand() -> None:
    # alpha .05, target 100: r^2 = (5.99146 + log 6.99146) / 100 = .0793615. At n = 100: n r^2 + 1 = 8.93615,
    # log(sqrt(8.93615) / .05) = 4.09078, so with variance 4: sqrt(4 * 2 * 8.93615 / (100 * 7.93615) * 4.09078) = .607042.
    assert radius(100, 4.0, alpha=0.05, target_rows=100) == pytest.approx(0.607042, abs=1e-6)


def test_radius_shrinks_with_rows_and_is_infinite_without() -> None:
    widths = [radius(n, 1.0, alpha=0.05, target_rows=2_000) for n in (100, 1_000, 10_000)]
    assert widths == sorted(widths, reverse=True)
    assert radius(0, 1.0, alpha=0.05, target_rows=2_000) == math.inf


def test_paired_summary_of_four_rows_worked_by_hand() -> None:
    loss = Paired.of(np.array([1.0, 1.0, 2.0, 0.0]), np.array([2.0, 1.0, 2.0, 1.0]))
    assert (loss.rows, loss.mean, loss.champion_loss) == (4, 0.5, 1.0)
    assert loss.variance == pytest.approx(1 / 3)


def test_losses_of_different_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="the same rows"):
        Paired.of(np.zeros(3), np.zeros(4))


def test_it_waits_for_the_requests_asked_for_and_says_how_many_there_are() -> None:
    decision = decide(evidence(challenger=150), SETTINGS)
    assert (decision.action, decision.reason) == ("hold", "150 of 200 challenger requests so far")


def test_it_waits_for_labels() -> None:
    assert str(decide(evidence(loss=Paired(40, -1.0, 0.1, 0.5)), SETTINGS)) == "hold: 40 labelled rows so far; too few to judge"


def test_a_clearly_better_challenger_is_promoted() -> None:
    decision = decide(evidence(loss=Paired(1_000, -0.1, 0.04, 0.5)), SETTINGS)
    assert decision.action == "promote"
    assert decision.facts["quality"][0]["high"] < 0


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


def test_a_model_that_separates_nothing_is_rolled_back_although_its_loss_is_fair() -> None:
    ranking = Paired(60, 0.2, 0.04, 0.3)
    decision = decide(Evidence(GOOD, Traffic(300, 0, 5.0), Paired(1_000, -0.05, 0.04, 0.6), ranking), SETTINGS)
    assert decision.action == "rollback"
    assert decision.reason.startswith("misranking difference +0.2000")


def test_a_fair_loss_alone_does_not_promote_before_the_ranking_is_known() -> None:
    few = Evidence(GOOD, Traffic(300, 0, 5.0), Paired(1_000, -0.1, 0.04, 0.5), Paired(10, 0.0, 0.01, 0.3))
    assert decide(few, SETTINGS).action == "hold"
    enough = Evidence(GOOD, Traffic(300, 0, 5.0), Paired(1_000, -0.1, 0.04, 0.5), Paired(400, -0.02, 0.01, 0.3))
    assert decide(enough, SETTINGS).action == "promote"


def test_an_equal_challenger_is_promoted_once_the_margin_is_all_that_it_can_be_worse() -> None:
    loss = Paired(5_000, 0.0, 0.001, 0.5)
    assert radius(5_000, 0.001, alpha=0.025, target_rows=2_000) < 0.01 * 0.5
    assert decide(evidence(loss=loss), SETTINGS).action == "promote"


def test_a_worse_challenger_is_rolled_back_even_before_the_requests_asked_for() -> None:
    decision = decide(evidence(challenger=120, loss=Paired(400, 0.3, 0.04, 0.5)), SETTINGS)
    assert decision.action == "rollback"
    assert "400 labelled rows" in decision.reason


def test_failing_requests_roll_back_and_say_how_many() -> None:
    decision = decide(evidence(challenger=60, errors=8), SETTINGS)
    assert (decision.action, decision.reason) == ("rollback", "8 of 60 challenger requests failed; the limit is 1.00%")


def test_a_slow_challenger_is_rolled_back_but_not_on_a_handful_of_requests() -> None:
    assert decide(evidence(challenger=150, p95_ms=20.0), SETTINGS).action == "rollback"
    assert decide(evidence(challenger=50, p95_ms=20.0), SETTINGS).action == "hold"


def test_no_verdict_by_the_last_request_keeps_the_champion() -> None:
    decision = decide(Evidence(Traffic(18_000, 0, 5.0), Traffic(2_000, 0, 5.0)), SETTINGS)
    assert decision.action == "rollback"
    assert decision.reason.startswith("no verdict after 20,000 requests")


def test_one_error_is_too_many_where_none_is_allowed() -> None:
    assert credibly_above(1, 1_000, limit=0.0, alpha=0.05)
    assert not credibly_above(0, 1_000, limit=0.0, alpha=0.05)


def test_false_rollbacks_of_an_equal_challenger_stay_within_alpha_however_often_one_looks() -> None:
    """Losses like a log loss (skewed), errors exactly at the limit, a look after every 20 rows."""
    rng = np.random.default_rng(7)
    runs, steps, look = 200, 3_000, 20
    settings = SETTINGS.model_copy(update={"margin": 0.0, "max_requests": 10**9, "min_requests": 10**9})
    counts = np.arange(1, steps + 1)
    wrong = 0
    for _ in range(runs):
        difference = rng.exponential(0.5, steps) - rng.exponential(0.5, steps)
        mean = np.cumsum(difference) / counts
        variance = np.cumsum(difference**2) / counts - mean**2
        errors = np.cumsum(rng.random(steps) < settings.max_error_rate)
        for n in range(look, steps + 1, look):
            loss = Paired(n, float(mean[n - 1]), float(variance[n - 1]), 0.5)
            if decide(Evidence(GOOD, Traffic(n, int(errors[n - 1]), 5.0), loss), settings).action == "rollback":
                wrong += 1
                break
    assert wrong / runs <= settings.alpha


def test_a_bad_challenger_is_rolled_back_within_a_thousand_labels() -> None:
    rng = np.random.default_rng(3)
    champion = rng.exponential(0.5, 1_000)
    challenger = champion + rng.normal(0.15, 0.3, 1_000)
    actions = [decide(evidence(loss=Paired.of(champion[:n], challenger[:n])), SETTINGS).action for n in range(100, 1_001, 50)]
    assert "promote" not in actions
    assert actions.index("rollback") <= 4


def test_a_challenger_that_fails_three_times_the_limit_is_found() -> None:
    rng = np.random.default_rng(5)
    errors = np.cumsum(rng.random(3_000) < 0.03)
    found = next(n for n in range(1, 3_001) if credibly_above(int(errors[n - 1]), n, limit=0.01, alpha=0.025))
    assert found < 1_500


TRAFFIC = st.builds(lambda n, share, p95: Traffic(n, int(n * share), p95), st.integers(0, 30_000), st.floats(0, 1), st.floats(0.1, 1e4))
LOSS = st.builds(Paired, st.integers(0, 30_000), st.floats(-5, 5), st.floats(0, 10), st.floats(0, 5))


@given(TRAFFIC, TRAFFIC, LOSS)
def test_never_promotes_before_the_requests_or_labels_asked_for(champion: Traffic, challenger: Traffic, loss: Paired) -> None:
    decision = decide(Evidence(champion, challenger, loss), SETTINGS)
    assert decision.action in {"hold", "promote", "rollback"}
    assert decision.reason
    if decision.action == "promote":
        assert challenger.requests >= SETTINGS.min_requests
        assert loss.rows >= BURN_IN
        assert loss.mean < SETTINGS.margin * loss.champion_loss


@given(TRAFFIC, TRAFFIC, LOSS)
def test_never_holds_beyond_the_last_request(champion: Traffic, challenger: Traffic, loss: Paired) -> None:
    if decide(Evidence(champion, challenger, loss), SETTINGS).action == "hold":
        assert champion.requests + challenger.requests < SETTINGS.max_requests
