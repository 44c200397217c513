"""Models that learn from the rows alone: clusters and anomalies. Both are fitted by scikit-learn on a bounded sample of the rows."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raymlp.config.section import Section


class KMeans(Section):
    """K-means with k-means++ starts (Lloyd 1982; Arthur and Vassilvitskii 2007), on a sample of the training rows. For task=clustering."""

    kind: Literal["kmeans"] = "kmeans"

    clusters: int = Field(default=8, ge=2, le=4096)
    """Clusters, K: worth a search by silhouette, as in `raymlp tune tune.space.model.clusters=...`."""

    sample_rows: int = Field(default=50_000, ge=100, le=5_000_000)
    """Most training rows that are learned from, held in memory; of more, as many evenly spaced ones."""

    n_init: int = Field(default=4, ge=1, le=100)
    """Starts from other centres, of which the best result is kept."""

    max_iterations: int = Field(default=300, ge=1)
    """Most rounds of each start."""


class IsolationForest(Section):
    """Isolation forest (Liu, Ting and Zhou 2008), on a sample of the training rows. For task=anomaly."""

    kind: Literal["isolation_forest"] = "isolation_forest"

    trees: int = Field(default=100, ge=1, le=5_000)
    """Trees."""

    tree_rows: int = Field(default=256, ge=2, le=65_536)
    """Rows that each tree is grown on: the more, the deeper it tells rows apart, and the longer a prediction takes."""

    sample_rows: int = Field(default=100_000, ge=100, le=5_000_000)
    """Most training rows that the trees draw theirs from, held in memory; of more, as many evenly spaced ones."""

    feature_share: float = Field(default=1.0, gt=0, le=1)
    """Share of the features that each tree sees."""

    contamination: Annotated[float, Field(gt=0, le=0.5)] | None = None
    """Share of the sampled training rows that is flagged: their score of that rank is the threshold. Null flags from a score of .5 on,
    which the paper takes as the one of ordinary rows."""


Sampled = KMeans | IsolationForest
