"""Baselines of a language model: counts of tokens, and of pairs of neighbours. Scores are as in `raymlp.core.language`.

Legend: N training texts, M scored ones, L ids of a text, V tokens (see `raymlp.model.decoder`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from scipy import sparse

from raymlp.features.plan import FeaturePlan
from raymlp.model.decoder import UNCOUNTED, num_tokens, shifted

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]
Foretold = tuple[Floats, NDArray[np.bool_]]
"""Of each place the probability of the token that is there, float64 (M, L), and whether it is the likeliest one, (M, L)."""


def counted_scores_of(names: Sequence[str], plan: FeaturePlan, train: pa.Table, scored: pa.Table) -> dict[str, Floats]:
    """Scores (M, 3) of the named baselines that language has: `rule` is the unigram model, `linear` the bigram model, which is what a
    softmax regression on the token before comes to."""
    (step,) = plan.texts
    size = num_tokens(step.size)
    learned, asked = (tuple(part.numpy() for part in shifted(torch.from_numpy(step.batch(table)))) for table in (train, scored))
    known: dict[str, Callable[[], Foretold]] = {
        "rule": lambda: _unigram(learned[1], asked[1], size),
        "linear": lambda: _bigram(learned, asked, size),
    }
    return {name: _scores(asked[1], *known[name]()) for name in names if name in known}


def _scores(wanted: Ids, likelihoods: Floats, right: NDArray[np.bool_]) -> Floats:
    counted = wanted != UNCOUNTED
    logs = np.where(counted, np.log(np.where(counted, likelihoods, 1.0)), 0.0)
    return np.stack([logs.sum(axis=1), counted.sum(axis=1), (right & counted).sum(axis=1)], axis=1).astype(np.float64)


def _shares(wanted: Ids, size: int) -> Floats:
    """Probability of each token, (V,): one is added to every count (Laplace), so that a token never seen is not impossible."""
    counts = np.bincount(wanted[wanted != UNCOUNTED], minlength=size) + 1.0
    return np.asarray(counts / counts.sum())


def _unigram(learned: Ids, asked: Ids, size: int) -> Foretold:
    """Every token by its share in training, whatever stands before it."""
    shares = _shares(learned, size)
    return shares[asked.clip(0)], asked == shares.argmax()


def _bigram(learned: Sequence[Ids], asked: Sequence[Ids], size: int) -> Foretold:
    """(c(v, w) + t(v) p(w)) / (c(v) + t(v)) for the token w behind v: c counts, t(v) is the number of different tokens seen behind v, and p
    the unigram model (Witten and Bell 1991)."""
    given, wanted = learned
    counted = wanted != UNCOUNTED
    pairs = sparse.csr_matrix((np.ones(counted.sum()), (given[counted], wanted[counted])), shape=(size, size))
    pairs.sum_duplicates()
    shares = _shares(wanted, size)
    total, kinds = np.asarray(pairs.sum(axis=1)).ravel(), np.diff(pairs.indptr).astype(np.float64)
    behind = total + kinds
    likeliest, best = np.full(size, shares.argmax()), kinds * shares.max()
    for token in np.flatnonzero(kinds):
        part = slice(pairs.indptr[token], pairs.indptr[token + 1])
        masses = pairs.data[part] + kinds[token] * shares[pairs.indices[part]]
        if masses.max() >= best[token]:
            likeliest[token] = pairs.indices[part][masses.argmax()]
    before, after = asked[0], asked[1].clip(0)
    seen = np.asarray(pairs[before.ravel(), after.ravel()]).reshape(before.shape)
    known = behind[before] > 0
    found = (seen + kinds[before] * shares[after]) / np.where(known, behind[before], 1.0)
    return np.where(known, found, shares[after]), likeliest[before] == asked[1]
