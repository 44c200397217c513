"""What is looked for in the training rows before they may train, and what each finding does."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raymlp.config.section import Section

ID_SHARE = 0.95
"""Distinct values in a column's values, from which on its text or whole numbers name a row."""
Severity = Literal["off", "warn", "stop"]
"""`off` does not look, `warn` notes what it finds, `stop` ends the run and publishes nothing."""


class Checks(Section):
    """Quality checks of `prepare`. The costly ones look at a sample of the training rows."""

    duplicates: Severity = "warn"
    """Rows that occur more than once in training, id columns aside."""
    max_duplicate_share: float = Field(default=0.01, ge=0, le=1)
    """Share of training rows that may be copies."""

    shared_rows: Severity = "warn"
    """Rows of validation or test that are also in training: they make a model look better than it is."""
    max_shared_share: float = Field(default=0.01, ge=0, le=1)
    """Share of a held-out split that may also be in training."""

    constant: Severity = "warn"
    """Columns with one value or none."""

    id_like: Severity = "warn"
    """Columns of text or whole numbers that differ in nearly every row: they name a row, and a model can only learn them by heart."""
    id_share: float = Field(default=ID_SHARE, gt=0, le=1)
    """Distinct values in a column's values, from which on it counts as id-like."""

    leakage: Severity = "warn"
    """Columns that predict the target almost alone, by their values or by being missing."""
    leak_score: float = Field(default=0.985, gt=0, le=1)
    """Score from which on a column leaks: AUC, share of the majority's errors avoided, or R squared, of that column alone."""

    known_after: Severity = "stop"
    """Columns of `problem.known_after` that a contract has brought back."""

    time_travel: Severity = "warn"
    """Training rows that are newer than validation, or hold moments from its time."""

    small_classes: Severity = "warn"
    """Classes with too few training rows, or with none in validation."""
    min_class_rows: int = Field(default=10, ge=1)
    """Training rows that a class needs."""

    outliers: Severity = "warn"
    """Rows far from all others (isolation forest): a screen for broken or poisoned data."""
    max_outlier_share: float = Field(default=0.02, ge=0, le=1)
    """Share of rows that may have an anomaly score above .65; ordinary rows have about .45."""

    label_noise: Severity = "warn"
    """Labels that contradict a cross-validated model where it is surest: a screen for wrong or poisoned labels. Finds noise of
    about 10 to 25 %, in problems that can be learned at all; regression is judged on above or below the median."""
    max_label_noise: float = Field(default=0.05, ge=0, le=1)
    """Share of labels that may be wrong among the tenth of rows that the model is surest of."""

    sample_rows: int = Field(default=10_000, ge=100)
    """Training rows, evenly spaced, that the costly checks (leakage, outliers, label_noise) look at."""
