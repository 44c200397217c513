"""When live traffic counts as different from training."""

from __future__ import annotations

from pydantic import Field

from raymlp.config.section import Section


class Monitor(Section):
    """Thresholds of drift and quality. An alert needs both size (PSI) and significance (p-value)."""

    min_rows: int = Field(default=500, ge=1)
    """Rows below which nothing is judged."""

    psi: float = Field(default=0.2, gt=0)
    """Population stability index of a column from which on it counts as drifted; .1 is slight, .25 is strong."""

    p_value: float = Field(default=0.001, gt=0, lt=1)
    """Largest p-value of the Kolmogorov-Smirnov or chi-square test, after Holm's correction over the columns."""

    max_quality_drop: float = Field(default=0.02, ge=0)
    """Drop of the metric against training that alerts when the whole 95 % interval lies beyond it: absolute for
    metrics in [0, 1], else a share."""

    max_base_rate_shift: float = Field(default=0.05, ge=0)
    """Change of the mean label against training, or of the mean prediction against the mean label, that alerts
    when significant: absolute for a rate, in deviations of the training labels for regression."""

    ignore: tuple[str, ...] = ()
    """Columns whose drift is expected (a clock, a counter)."""

    webhook_env: str = "RAYMLP_WEBHOOK_URL"
    """Environment variable that holds the URL alerts are posted to; unset posts nowhere."""
