"""Which columns become tensors, and how."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raymlp.config.section import Section

DatePart = Literal["month", "day", "weekday", "hour", "minute", "dayofyear", "epoch_days"]


class Features(Section):
    """Null lists are filled by column type and profile; the plan writes down the reason of each choice."""

    numeric: tuple[str, ...] | None = None
    """Columns taken as numbers; null takes every numeric column not named elsewhere."""

    categorical: tuple[str, ...] | None = None
    """Columns taken as categories, also integers; null takes every text and boolean column."""

    dates: dict[str, tuple[DatePart, ...]] | None = None
    """Timestamp columns and the parts to take from each (in UTC); null takes weekday and hour of every one."""

    drop: tuple[str, ...] = ()
    """Columns that stay in the snapshot but are no features."""

    impute: Literal["mean", "median"] = "median"
    """Value that stands for a missing number."""

    scaling: Literal["standard", "quantile"] = "standard"
    """`standard` is (x - mean) / deviation; `quantile` maps x through its training distribution to a normal one."""

    quantiles: int = Field(default=100, ge=4, le=1000)
    """Knots of quantile scaling."""

    missing_indicators: bool = True
    """Add a 0/1 column for every number that was ever missing in training."""

    max_categories: int = Field(default=256, ge=1)
    """Categories kept a column, most frequent first; the rest share the unseen slot."""

    min_count: int = Field(default=10, ge=1)
    """Rows a category must have in training to get a slot of its own."""
