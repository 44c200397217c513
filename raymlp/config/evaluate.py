"""How a model is judged."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raymlp.config.section import Section


class Gate(Section):
    """What a model must show before it may serve."""

    min_gain_over_rule: float = 0.0
    """Gain in the metric over the majority rule (mean, for regression) that the 95 % interval must exceed:
    absolute for metrics in [0, 1], else a share."""

    max_gap_to_baseline: float = Field(default=0.02, ge=0)
    """How far the metric may lie behind the best learned baseline: absolute for metrics in [0, 1], else a share."""

    tolerance: float = Field(default=0.002, ge=0)
    """Retraining: how much worse than the champion the 95 % interval may reach: absolute for metrics in [0, 1],
    else a share."""


class Evaluate(Section):
    """Metrics with uncertainty, beside simple baselines on the same split."""

    bootstrap_samples: int = Field(default=200, ge=10)
    """Resamples behind each interval."""

    baselines: tuple[Literal["rule", "linear", "gradient_boosting"], ...] = ("rule", "linear", "gradient_boosting")
    """Models to beat: the majority class (or mean), a linear model, scikit-learn's histogram gradient boosting. For clusters `rule` draws
    them at random and `linear` cuts the rows into equal parts along their first principal component; for anomalies `rule` gives all rows
    one score and, where there is a label, `linear` is the Mahalanobis distance. For language `rule` is the unigram model, tokens by their
    shares, and `linear` the bigram model, by the token before. `gradient_boosting` is for tasks with a target."""

    max_baseline_rows: int = Field(default=500_000, ge=100)
    """Training rows that baselines may use; a larger split is sampled, and the report says so."""

    min_slice_rows: int = Field(default=200, ge=1)
    """Smallest slice that is reported."""

    gate: Gate = Gate()
    """What a model must show before it may serve."""

    seed: int = 0
    """Seed of resampling and of the baselines."""
