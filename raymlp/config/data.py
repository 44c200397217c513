"""Where rows come from, what they may hold, and how they are split."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from raymlp.config.privacy import Privacy
from raymlp.config.section import Section
from raymlp.config.sources import ColumnType as ColumnType
from raymlp.config.sources import CsvSource as CsvSource
from raymlp.config.sources import ParquetSource as ParquetSource
from raymlp.config.sources import Source as Source


def _in_utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


Moment = Annotated[datetime, AfterValidator(_in_utc)]
"""A moment with a zone; none given means UTC."""


class Join(Section):
    """A smaller table whose columns are added to each row (left join; keys must be unique there)."""

    source: Source
    """The table to look up in. It is held in memory once a worker."""

    keys: tuple[str, ...] = Field(min_length=1)
    """Key columns, by the same name in both tables."""

    prefix: str = ""
    """Put before the name of every column that is added."""

    columns: tuple[str, ...] = ()
    """Columns to add; empty adds all that are not keys."""


class RandomSplit(Section):
    """Every row at random by the seed, in exact shares."""

    kind: Literal["random"] = "random"
    valid: float = Field(default=0.15, gt=0, lt=1)
    """Share of rows in the validation split."""
    test: float = Field(default=0.15, ge=0, lt=1)
    """Share of rows in the test split; 0 makes none, and evaluation uses the validation split."""
    seed: int = 0
    """Another seed gives another split."""

    @model_validator(mode="after")
    def _leaves_training_rows(self) -> Self:
        if self.valid + self.test >= 1:
            raise ValueError(f"valid + test is {self.valid + self.test:g}; expected less than 1, the rest is training")
        return self


class StratifiedSplit(RandomSplit):
    """Shuffled, with every class of the target in the same proportion in each split."""

    kind: Literal["stratified"] = "stratified"  # type: ignore[assignment]


class GroupSplit(RandomSplit):
    """All rows of one group in the same split."""

    kind: Literal["group"] = "group"  # type: ignore[assignment]
    column: str
    """Column that names the group."""


class TimeSplit(Section):
    """Training before validation before the future. Bounds are inclusive below and exclusive above."""

    kind: Literal["time"] = "time"
    column: str
    """Timestamp column. Values without a zone are taken as UTC."""
    train_start: Moment | None = None
    """First moment of training; null takes all that is older than valid_start."""
    valid_start: Moment
    """First moment of validation, and the end of training."""
    valid_end: Moment | None = None
    """End of validation; rows from here on form the split `live`. Null puts every newer row in validation."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        moments = [m for m in (self.train_start, self.valid_start, self.valid_end) if m is not None]
        if any(later <= earlier for earlier, later in pairwise(moments)):
            raise ValueError("train_start, valid_start, valid_end must follow each other in time")
        return self


Split = Annotated[RandomSplit | StratifiedSplit | GroupSplit | TimeSplit, Field(discriminator="kind")]


class Data(Section):
    """Rows, from source to snapshot."""

    source: Source
    """The main table: one row a case."""

    fallback: Source | None = None
    """Table to read when `source` is not there or does not answer; the snapshot's warnings name both. Null stops the run."""

    joins: tuple[Join, ...] = ()
    """Tables whose columns are added, in order."""

    drop: tuple[str, ...] = ()
    """Columns to leave out."""

    split: Split
    """How rows are divided."""

    privacy: Privacy = Privacy()
    """What happens to personal data before a row reaches any file."""

    contract: str | None = None
    """A contract file (YAML) to enforce; null infers one from the training split."""

    max_bad_share: float = Field(default=0.01, ge=0, le=1)
    """Share of rows that may go to quarantine before the run stops, in [0, 1]."""

    batch_rows: int = Field(default=65_536, ge=1)
    """Rows that are read, checked and written at a time; more is faster and takes more memory."""

    def fallen_back(self) -> Self:
        """These settings with the fallback as the source; it stays declared, so that the snapshot has a key of its own."""
        return self.model_copy(update={"source": self.fallback})
