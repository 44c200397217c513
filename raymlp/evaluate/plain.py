"""Baselines of tasks that learn from the rows alone. Scores are as in `raymlp.core.metrics`.

A rule that knows nothing, for clusters drawn at random and for anomalies the same score everywhere, and one learned model that is plain:
for clusters the rows cut into equal parts along their first principal component, for anomalies the Mahalanobis distance.

Legend: M scored rows, K clusters, P numbers of the reduced rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raymlp.evaluate.baselines import PARTS, leading, one_hot
from raymlp.features.plan import FeaturePlan

Floats = NDArray[np.float64]
Fit = Callable[[FeaturePlan, pa.Table, pa.Table, int, int], Floats]


def plain_scores_of(
    names: Sequence[str], plan: FeaturePlan, train: pa.Table, scored: pa.Table, *, clusters: int, seed: int
) -> dict[str, Floats]:
    """Those of the named baselines that the task has. Without a label anomalies have the rule alone: what is left to judge them by, how
    well they know which values go together, is what the Mahalanobis distance measures and few anomalies are about."""
    known: dict[str, Fit] = (
        {"rule": _random_clusters, "linear": _principal_parts}
        if plan.target.task == "clustering"
        else {"rule": _same_score} | ({"linear": _mahalanobis} if plan.target.column else {})
    )
    return {name: known[name](plan, train, scored, clusters, seed) for name in names if name in known}


def _random_clusters(plan: FeaturePlan, train: pa.Table, scored: pa.Table, clusters: int, seed: int) -> Floats:
    return np.random.default_rng(seed).random((scored.num_rows, clusters))


def _principal_parts(plan: FeaturePlan, train: pa.Table, scored: pa.Table, clusters: int, seed: int) -> Floats:
    """Distance (M, K) to each of K equal parts of the training rows, 0 within it."""
    learned, found = (component[:, 0] for component in leading(*_centred(plan, train, scored), seed=seed))
    cuts = np.quantile(learned, np.arange(1, clusters) / clusters)
    return np.asarray(np.searchsorted(cuts, found)[:, None] != np.arange(clusters), dtype=np.float64)


def _same_score(plan: FeaturePlan, train: pa.Table, scored: pa.Table, clusters: int, seed: int) -> Floats:
    return np.zeros(scored.num_rows)


def _mahalanobis(plan: FeaturePlan, train: pa.Table, scored: pa.Table, clusters: int, seed: int) -> Floats:
    """Squared distance (M,) from the mean by a shrunk covariance (Ledoit and Wolf 2004), of the leading components where there are many."""
    from sklearn.covariance import LedoitWolf

    learned, found = _centred(plan, train, scored)
    if learned.shape[1] > PARTS:
        learned, found = leading(learned, found, seed=seed)
    return np.asarray(LedoitWolf().fit(learned).mahalanobis(found))


def _centred(plan: FeaturePlan, train: pa.Table, scored: pa.Table) -> tuple[Floats, Floats]:
    """Numbers and one-hot categories of both tables, float64, less the training mean."""
    learned, found = (one_hot(plan, table).toarray() for table in (train, scored))
    return learned - learned.mean(axis=0), found - learned.mean(axis=0)
