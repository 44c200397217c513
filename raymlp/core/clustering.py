"""How well rows fall into clusters, without an answer to compare with. In NumPy alone.

Legend: N rows, F coordinates, K clusters. `x` float (N, F) has the rows as the model sees them; `p` float64 (N, K) their distances to
the clusters, of which the nearest is a row's own. A cluster without rows counts for nothing. Everything is NaN with fewer than two
clusters that have rows, or as many clusters as rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
CHUNK = 512
"""Rows whose distances to all others are held at a time."""


def own(p: Array) -> NDArray[np.int64]:
    """The nearest cluster of each row, (N,): the first of equals."""
    return np.asarray(p.argmin(axis=1), dtype=np.int64)


def silhouettes(x: Array, p: Array) -> Array:
    """Of each row (b - a) / max(a, b), float64 (N,): a is the mean distance to the other rows of its cluster, b that to the rows of the
    nearest other one (Rousseeuw 1987). In [-1, 1]; 0 for a row alone in its cluster. Takes N x N distances, a chunk at a time."""
    clusters, sizes = _numbered(p)
    if not 1 < len(sizes) < len(x):
        return np.full(len(x), np.nan)
    x = np.asarray(x, dtype=np.float64)
    member = np.eye(len(sizes))[clusters]
    squares = np.einsum("ij,ij->i", x, x)
    found = np.empty(len(x))
    for start in range(0, len(x), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(x)))
        distances = np.sqrt(np.maximum(squares[rows, None] + squares - 2 * x[rows] @ x.T, 0.0))
        distances[np.arange(len(rows)), rows] = 0.0
        sums, mine = distances @ member, clusters[rows]
        a = sums[np.arange(len(rows)), mine] / np.maximum(sizes[mine] - 1, 1)
        others = sums / sizes
        others[np.arange(len(rows)), mine] = np.inf
        b = others.min(axis=1)
        widest = np.maximum(np.maximum(a, b), np.finfo(float).tiny)
        found[rows] = np.where(sizes[mine] > 1, (b - a) / widest, 0.0)
    return found


def silhouette(x: Array, p: Array) -> float:
    """Mean of `silhouettes`, in [-1, 1]; higher is better."""
    return float(silhouettes(x, p).mean()) if len(x) else float("nan")


def davies_bouldin(x: Array, p: Array) -> float:
    """Mean over clusters of the worst (spread + spread of the other) / distance of their means (Davies and Bouldin 1979); at least 0, lower
    is better."""
    return weighted_davies_bouldin(x, p)(np.ones(len(x)))


def calinski_harabasz(x: Array, p: Array) -> float:
    """Variance between clusters over that within, each by its degrees of freedom (Calinski and Harabasz 1974); higher is better."""
    return weighted_calinski_harabasz(x, p)(np.ones(len(x)))


def inertia_share(x: Array, p: Array) -> float:
    """Share of the rows' squared distance to their mean that the means of the clusters explain, in [0, 1]; higher is better, and never
    less with more clusters."""
    return weighted_inertia_share(x, p)(np.ones(len(x)))


# ---------------------------------------------------------------- by weights of rows: the means stay those of all rows

Weighted = Callable[[Array], float]


def weighted_silhouette(x: Array, p: Array) -> Weighted:
    found = silhouettes(x, p)
    return lambda weights: float(weights @ found / weights.sum())


def weighted_davies_bouldin(x: Array, p: Array) -> Weighted:
    clusters, means = _means(x, p)
    if not 1 < len(means) < len(x):
        return _nothing
    far = np.sqrt(np.einsum("ij,ij->i", x - means[clusters], x - means[clusters]))
    apart = np.sqrt(np.square(means[:, None] - means).sum(axis=2))
    np.fill_diagonal(apart, np.inf)

    def value(weights: Array) -> float:
        rows = np.bincount(clusters, weights, len(means))
        spread = np.bincount(clusters, weights * far, len(means)) / np.maximum(rows, 1e-12)
        with np.errstate(divide="ignore"):
            worst = ((spread[:, None] + spread) / apart).max(axis=1)
        return float(worst[rows > 0].mean())

    return value


def weighted_calinski_harabasz(x: Array, p: Array) -> Weighted:
    within, whole, num = _squares(x, p)
    if not 1 < num < len(x):
        return _nothing

    def value(weights: Array) -> float:
        inside = float(weights @ within)
        between = float(weights @ whole) - inside
        return float(between / (num - 1) / (inside / (weights.sum() - num))) if inside > 0 else float("nan")

    return value


def weighted_inertia_share(x: Array, p: Array) -> Weighted:
    within, whole, num = _squares(x, p)
    if not 1 < num < len(x):
        return _nothing

    def value(weights: Array) -> float:
        total = float(weights @ whole)
        return 1 - float(weights @ within) / total if total > 0 else float("nan")

    return value


def _nothing(weights: Array) -> float:
    return float("nan")


def _numbered(p: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Clusters that have rows, numbered from 0 (N,), and the rows of each."""
    _, clusters, sizes = np.unique(own(p), return_inverse=True, return_counts=True)
    return clusters, sizes


def _means(x: Array, p: Array) -> tuple[NDArray[np.int64], Array]:
    """The cluster of each row, and the mean of each that has rows."""
    clusters, sizes = _numbered(p)
    sums = np.zeros((len(sizes), x.shape[1]))
    np.add.at(sums, clusters, x)
    return clusters, sums / sizes[:, None]


def _squares(x: Array, p: Array) -> tuple[Array, Array, int]:
    """Squared distances of each row to the mean of its cluster and to that of all, (N,), and the number of clusters with rows."""
    clusters, means = _means(x, p)
    return np.square(x - means[clusters]).sum(axis=1), np.square(x - x.mean(axis=0, dtype=np.float64)).sum(axis=1), len(means)
