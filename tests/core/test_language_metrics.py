"""Metrics of texts, worked by hand, and as functions of weights."""

from __future__ import annotations

import math

import numpy as np
import pytest

from raymlp.core.language import losses, on_common_tokens, perplexity, token_accuracy, token_loss
from raymlp.core.metrics import METRICS, paired_gain, resample_all, score, weighted

Y = np.full(3, np.nan)
P = np.array([[-6.0, 3, 1], [0.0, 0, 0], [-1.0, 1, 1]])
"""Three tokens of 2 nats each, no text, one token of 1 nat: 7 nats over 4 tokens, of which 2 were thought most likely."""


def test_every_token_counts_the_same() -> None:
    assert token_loss(Y, P) == 7 / 4
    assert perplexity(Y, P) == pytest.approx(math.exp(7 / 4))
    assert token_accuracy(Y, P) == 2 / 4
    assert losses(P).tolist() == pytest.approx([2.0, math.nan, 1.0], nan_ok=True)


def test_without_tokens_nothing_is_known() -> None:
    assert np.isnan(list(score("language", Y[:1], P[1:2]).values())).all()
    assert np.isnan(list(score("language", Y[:0], P[:0]).values())).all()


@pytest.mark.parametrize("name", list(METRICS["language"]))
def test_whole_weights_are_repeated_rows(name: str) -> None:
    metric, counts = METRICS["language"][name], np.array([2, 1, 3])
    repeated = np.repeat(P, counts, axis=0)
    assert weighted(metric, Y, P)(counts.astype(float)) == pytest.approx(metric(np.repeat(Y, counts), repeated))


def test_tokenizers_are_compared_by_whole_texts() -> None:
    """The old model takes twice as many tokens, and says the same of the first text; the second it did not read to the end."""
    new = np.array([[-6.0, 3, 1], [-4.0, 2, 1]])
    old = np.array([[-6.0, 6, 2], [-1.0, 1, 1]])
    assert token_loss(Y[:2], old) < token_loss(Y[:2], new), "per token of its own it looks better"
    left, right = on_common_tokens(new, old, np.array([True, False]))
    assert token_loss(Y[:2], left) == token_loss(Y[:2], right) == 2
    assert new[1].tolist() == [-4, 2, 1], "the scores are left as they are"


def test_a_model_that_foretells_more_gains() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 30, 400)
    old = np.stack([-2.0 * tokens + rng.normal(size=400), tokens, tokens // 4], axis=1)
    new = old + np.array([5.0, 0, 0])
    gained = paired_gain("perplexity", "language", np.full(400, np.nan), new, old, samples=50, seed=0)
    assert gained.low > 0
    found = resample_all("language", np.full(400, np.nan), old, samples=50, seed=0)["token_loss"]
    assert found.low < 2 < found.high
