"""When a new model is worth training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raymlp.config.section import Section


class Retrain(Section):
    """The retrain policy."""

    triggers: tuple[Literal["quality", "prediction drift", "feature drift"], ...] = ("quality", "prediction drift", "feature drift")
    """Kinds of alert that ask for a new model."""

    min_new_rows: int = Field(default=1_000, ge=1)
    """Rows newer than the champion's training data that must be there: labelled ones, or all of a task without a target."""

    cooldown_s: float = Field(default=0, ge=0)
    """Seconds after a retrain in which alerts do not start another one."""

    valid_days: int = Field(default=30, ge=1)
    """Newest days kept as the new validation split; everything older is training."""
