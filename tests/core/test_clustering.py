"""Metrics of tasks that learn from the rows alone: by hand, against scikit-learn, and by their weighted forms."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics as reference

from raymlp.core import clustering
from raymlp.core.metrics import METRICS, SHUFFLED, auc, average_precision, flags, resample_all, weighted
from raymlp.core.records import Task


def blobs(rows: int = 300, clusters: int = 4, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rows around some centres, and their distances to slightly wrong ones."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(clusters, 3)) * 3
    x = centres[rng.integers(0, clusters, rows)] + rng.normal(size=(rows, 3))
    return x, np.linalg.norm(x[:, None] - (centres + 0.5), axis=2)


def test_silhouettes_of_four_rows_by_hand() -> None:
    x = np.array([[0.0], [1.0], [10.0], [12.0]])
    p = np.array([[0.0, 9], [1, 8], [9, 0], [9, 0]])
    a, b = np.array([1, 1, 2, 2]), np.array([11, 10, 9.5, 11.5])
    np.testing.assert_allclose(clustering.silhouettes(x, p), (b - a) / b)
    assert clustering.inertia_share(x, p) == pytest.approx(1 - 2.5 / np.square(x - 5.75).sum())


@pytest.mark.parametrize("clusters", [2, 4, 7])
def test_each_metric_is_that_of_scikit_learn(clusters: int) -> None:
    x, p = blobs(clusters=clusters)
    labels = p.argmin(axis=1)
    np.testing.assert_allclose(clustering.silhouettes(x, p), reference.silhouette_samples(x, labels), atol=1e-9)
    assert clustering.davies_bouldin(x, p) == pytest.approx(reference.davies_bouldin_score(x, labels))
    assert clustering.calinski_harabasz(x, p) == pytest.approx(reference.calinski_harabasz_score(x, labels))


def test_a_row_alone_in_its_cluster_counts_nothing_and_an_empty_cluster_is_none() -> None:
    x, p = blobs()
    p = np.c_[p, np.full(len(p), 1e9)]
    p[0, 1] = -1.0
    p[1:, 1] = 1e8
    assert clustering.silhouettes(x, p)[0] == 0.0
    assert clustering.silhouette(x, p) == pytest.approx(reference.silhouette_score(x, p.argmin(axis=1)))


@pytest.mark.parametrize("name", METRICS["clustering"])
def test_one_cluster_or_a_cluster_a_row_is_no_clustering(name: str) -> None:
    x = np.random.default_rng(0).normal(size=(5, 2))
    assert np.isnan(METRICS["clustering"][name](x, np.zeros((5, 3))))
    assert np.isnan(METRICS["clustering"][name](x, 1 - np.eye(5)))


def labelled(rows: int = 400) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Normal rows, anomalies with higher scores, rows of which nothing is known, and shuffled ones."""
    rng = np.random.default_rng(1)
    y = rng.choice([0.0, 1.0, np.nan, SHUFFLED], rows, p=[0.4, 0.1, 0.1, 0.4])
    return y, rng.normal(size=rows) + (y == 1) * 2 + (y == SHUFFLED)


def test_anomalies_are_judged_among_known_rows_and_shuffled_ones_against_all_others() -> None:
    y, p = labelled()
    known = (y == 0) | (y == 1)
    found = {name: metric(y, p) for name, metric in METRICS["anomaly"].items()}
    assert found["auc"] == pytest.approx(auc(y[known], p[known]))
    assert found["average_precision"] == pytest.approx(average_precision(y[known], p[known]))
    assert found["shuffled_auc"] == pytest.approx(reference.roc_auc_score(y == SHUFFLED, p))
    nothing = np.where(y == SHUFFLED, y, np.nan)
    assert np.isnan(METRICS["anomaly"]["auc"](nothing, p))
    assert METRICS["anomaly"]["shuffled_auc"](nothing, np.zeros(len(p))) == 0.5


def test_flags_count_real_rows_alone() -> None:
    y = np.array([0, np.nan, 1, 0, SHUFFLED, SHUFFLED])
    found = flags(y, np.array([0.1, 0.2, 0.9, 0.4, 0.9, 0.9]), 0.4)
    assert found["flagged_share"] == 0.5
    assert found["score_p50"] == pytest.approx(0.3)


@pytest.mark.parametrize(("task", "data"), [("clustering", blobs()), ("anomaly", labelled())])
def test_weights_of_one_give_the_metric_and_intervals_hold_it(task: Task, data: tuple[NDArray[np.float64], NDArray[np.float64]]) -> None:
    y, p = data
    for name, metric in METRICS[task].items():
        assert weighted(metric, y, p)(np.ones(len(y))) == pytest.approx(metric(y, p)), name
    for name, interval in resample_all(task, y, p, samples=40, seed=0).items():
        assert interval.low < interval.value < interval.high, name
