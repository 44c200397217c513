"""How well texts were foretold, token by token. In NumPy alone.

Legend: N texts. `p` float64 (N, 3) has of each text the sum of the log-likelihoods (natural log) of its tokens, how many there were, and
how many of them were thought most likely. Every token counts the same, whatever text it is in; `y` is not looked at, since the text is its
own answer. Everything is NaN without tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
LIKELIHOOD, TOKENS, RIGHT = 0, 1, 2
"""Places in a row of `p`."""
LARGEST_LOSS = 700.0
"""Loss of a token, in nats, whose perplexity is still a finite number."""


def token_loss(y: Array, p: Array) -> float:
    """Mean negative log-likelihood of a token in nats; at least 0, lower is better."""
    return weighted_token_loss(y, p)(np.ones(len(p)))


def perplexity(y: Array, p: Array) -> float:
    """exp of `token_loss`: among how many equally likely tokens one would be as unsure (Jelinek et al. 1977); from 1, lower is better."""
    return weighted_perplexity(y, p)(np.ones(len(p)))


def token_accuracy(y: Array, p: Array) -> float:
    """Share of the tokens that were thought most likely, in [0, 1]; higher is better."""
    return weighted_token_accuracy(y, p)(np.ones(len(p)))


def losses(p: Array) -> Array:
    """`token_loss` of each text by itself, float64 (N,); NaN for one without tokens."""
    return np.asarray(np.where(p[:, TOKENS] > 0, -p[:, LIKELIHOOD] / np.maximum(p[:, TOKENS], 1), np.nan), dtype=np.float64)


def told(p: Array) -> dict[str, Array]:
    """What is said of each text: `log_likelihood`, `tokens` (int64), `token_loss` and `perplexity`, the last two NaN without tokens."""
    loss = losses(p)
    return {
        "log_likelihood": p[:, LIKELIHOOD],
        "tokens": p[:, TOKENS].astype(np.int64),
        "token_loss": loss,
        "perplexity": np.exp(np.minimum(loss, LARGEST_LOSS)),
    }


def on_common_tokens(new: Array, old: Array, whole: Array) -> tuple[Array, Array]:
    """Two models with tokenizers of their own, on the same texts: the likelihood of each text as `p` has it, spread over the tokens of the
    new one, so that losses can be compared. Texts that one of them did not read to the end (`whole`, bool (N,)) count for nothing."""
    tokens = np.where(whole, new[:, TOKENS], 0.0)
    common = [np.where(whole[:, None], p, 0.0) for p in (new, old)]
    for p in common:
        p[:, TOKENS] = tokens
    return common[0], common[1]


# ---------------------------------------------------------------- as functions of how often each text counts

Weighted = Callable[[Array], float]


def weighted_token_loss(y: Array, p: Array) -> Weighted:
    return _a_token(-p[:, LIKELIHOOD], p[:, TOKENS])


def weighted_perplexity(y: Array, p: Array) -> Weighted:
    loss = weighted_token_loss(y, p)
    return lambda weights: float(np.exp(loss(weights)))


def weighted_token_accuracy(y: Array, p: Array) -> Weighted:
    return _a_token(p[:, RIGHT], p[:, TOKENS])


def _a_token(sums: Array, tokens: Array) -> Weighted:
    def value(weights: Array) -> float:
        total = float(np.einsum("i,i->", weights, tokens))
        return float(np.einsum("i,i->", weights, sums)) / total if total else float("nan")

    return value
