"""Baselines of tasks that learn from the rows alone. Scores are as in `raymlp.core.metrics`.

A rule that knows nothing, for clusters drawn at random and for anomalies the same score everywhere, and one learned model that is plain:
for clusters the rows cut into equal parts along their first principal component, for anomalies the Mahalanobis distance.

Legend: M scored rows, K clusters, P numbers of the reduced rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raymlp.data.parquet import spread
from raymlp.evaluate.baselines import PARTS, one_hot, reducer
from raymlp.features.plan import FeaturePlan

Floats = NDArray[np.float64]
BYTES = 256 << 20
"""Bytes of dense rows that are held at a time."""
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
    learned, chunks = _centred(plan, train, scored)
    reduce = reducer(learned, seed=seed)
    cuts = np.quantile(reduce(learned)[:, 0], np.arange(1, clusters) / clusters)
    found = np.concatenate([reduce(chunk)[:, 0] for chunk in chunks])
    return np.asarray(np.searchsorted(cuts, found)[:, None] != np.arange(clusters), dtype=np.float64)


def _same_score(plan: FeaturePlan, train: pa.Table, scored: pa.Table, clusters: int, seed: int) -> Floats:
    return np.zeros(scored.num_rows)


def _mahalanobis(plan: FeaturePlan, train: pa.Table, scored: pa.Table, clusters: int, seed: int) -> Floats:
    """Squared distance (M,) from the mean by a shrunk covariance (Ledoit and Wolf 2004), of the leading components where there are many."""
    from sklearn.covariance import LedoitWolf

    learned, chunks = _centred(plan, train, scored)
    reduce: Callable[[Any], Floats] = reducer(learned, seed=seed) if learned.shape[1] > PARTS else np.asarray
    distance = LedoitWolf().fit(reduce(learned))
    return np.concatenate([distance.mahalanobis(reduce(chunk)) for chunk in chunks])


def _centred(plan: FeaturePlan, train: pa.Table, scored: pa.Table) -> tuple[Floats, Iterator[Floats]]:
    """Numbers and one-hot categories, float64, less the training mean: of evenly spaced training rows, as many as `BYTES` hold, and of
    the scored rows in parts of that size, at least one."""
    hot = one_hot(plan, train)
    most = max(PARTS + 1, BYTES // (8 * max(1, hot.shape[1])))
    learned = hot[spread(train.num_rows, most)].toarray()
    mean = learned.mean(axis=0)
    starts = range(0, max(1, scored.num_rows), most)
    return learned - mean, (one_hot(plan, scored.slice(start, most)).toarray() - mean for start in starts)
