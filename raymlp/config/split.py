"""How rows are divided: by chance, class, group, time, key, or a given column; each also as k folds."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, model_validator

from raymlp.config.section import AsText, Section

UNITS = {"w": "weeks", "d": "days", "h": "hours", "m": "minutes", "s": "seconds"}


def _in_utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _duration(value: Any) -> Any:
    """`3d`, `12h`, `30m`, or a number of hours; ISO 8601 (`P3D`) is left to pydantic."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return timedelta(hours=value)
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([wdhms]?)\s*", value) if isinstance(value, str) else None
    return timedelta(**{UNITS[found[2] or "h"]: float(found[1])}) if found else value


def _not_negative(length: timedelta) -> timedelta:
    if length < timedelta(0):
        raise ValueError(f"the duration is {length}; expected 0 or more, as 3d, 12h or a number of hours")
    return length


def _written(length: timedelta) -> str:
    """As a person writes it: the largest unit that leaves no fraction."""
    seconds = length.total_seconds()
    sizes = {"d": 86_400, "h": 3_600, "m": 60}
    unit = next((unit for unit, size in sizes.items() if seconds and seconds % size == 0), "s")
    return f"{seconds / sizes.get(unit, 1):g}{unit}"


Moment = Annotated[datetime, AfterValidator(_in_utc)]
"""A moment with a zone; none given means UTC."""
Duration = Annotated[
    timedelta, BeforeValidator(_duration), AfterValidator(_not_negative), PlainSerializer(_written, return_type=str, when_used="json")
]
"""A length of time: `3d`, `12h`, `30m`, ISO 8601, or a number of hours."""
Names = tuple[Annotated[str, AsText], ...]


class Folds(Section):
    """What every kind of split has: the choice of one fold of several."""

    folds: int | None = Field(default=None, ge=2, le=100)
    """Number of folds for cross-validation; null makes one validation split. The test split stays the same in all folds."""
    fold: int = Field(default=0, ge=0)
    """Fold that validates, from 0; the others train. Only with `folds`."""

    @model_validator(mode="after")
    def _fold_exists(self) -> Self:
        if self.fold and self.fold >= (self.folds or 1):
            raise ValueError(f"fold is {self.fold}; expected less than folds ({self.folds or 'not set'})")
        return self

    @property
    def key_columns(self) -> tuple[str, ...]:
        """Columns named by the rule that decide where a row goes."""
        return ()


class RandomSplit(Folds):
    """Every row at random by the seed, in exact shares. New rows move others, so a source that grew is read anew."""

    kind: Literal["random"] = "random"
    valid: float = Field(default=0.15, gt=0, lt=1)
    """Share of rows in the validation split; with `folds` each fold is an equal share instead."""
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
    """Shuffled, with every class of the target in the same proportion in each split, and in each split where it has the rows."""

    kind: Literal["stratified"] = "stratified"  # type: ignore[assignment]


class GroupSplit(RandomSplit):
    """All rows of one group in the same split, by a keyed hash of the group: it keeps its split when the data grows."""

    kind: Literal["group"] = "group"  # type: ignore[assignment]
    column: str
    """Column that names the group."""

    @property
    def key_columns(self) -> tuple[str, ...]:
        return (self.column,)


class HashSplit(RandomSplit):
    """By a keyed hash of the row's key: a row keeps its split when the data grows, whatever the order. Shares are approximate."""

    kind: Literal["hash"] = "hash"  # type: ignore[assignment]
    columns: tuple[str, ...] = Field(min_length=1)
    """Columns that together name a row."""

    @property
    def key_columns(self) -> tuple[str, ...]:
        return self.columns


class ColumnSplit(Folds):
    """By a column that says it. With `folds` the values that are not named here are numbers of folds, from 0."""

    kind: Literal["column"] = "column"
    column: str
    """Column whose values name the split. It is not a feature."""
    train: Names = ("train",)
    """Values that mean training, compared as text."""
    valid: Names = ("valid", "validation")
    """Values that mean validation."""
    test: Names = ("test",)
    """Values that mean test."""
    live: Names = ("live",)
    """Values that mean live traffic."""

    @model_validator(mode="after")
    def _one_meaning_each(self) -> Self:
        names = [*self.train, *self.valid, *self.test, *self.live]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise ValueError(f"the value '{twice}' is named twice; expected each value under one of train, valid, test, live")
        return self

    @property
    def key_columns(self) -> tuple[str, ...]:
        return (self.column,)


class TimeSplit(Folds):
    """Training before validation before the future. Bounds are inclusive below and exclusive above.

    With `folds` the time from valid_start to valid_end is cut into that many windows of about equal rows; a window
    validates, and everything before it trains (expanding windows).
    """

    kind: Literal["time"] = "time"
    column: str
    """Timestamp column. Values without a zone are taken as UTC."""
    train_start: Moment | None = None
    """First moment of training; null takes all that is older than valid_start."""
    valid_start: Moment
    """First moment of validation, and the end of training."""
    valid_end: Moment | None = None
    """End of validation; rows from here on form the split `live`. Null puts every newer row in validation."""
    purge: Duration = timedelta(0)
    """Gap before validation: rows this close to its start are left out of training (`3d`, `12h`, or hours), because
    their answers, or features that look back, overlap with it."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        moments = [m for m in (self.train_start, self.valid_start, self.valid_end) if m is not None]
        if any(later <= earlier for earlier, later in pairwise(moments)):
            raise ValueError("train_start, valid_start, valid_end must follow each other in time")
        if self.train_start is not None and self.train_start >= self.valid_start - self.purge:
            raise ValueError(f"purge is {self.purge}, which leaves no training after train_start; expected a shorter gap")
        return self

    @property
    def key_columns(self) -> tuple[str, ...]:
        return (self.column,)


Split = Annotated[RandomSplit | StratifiedSplit | GroupSplit | HashSplit | ColumnSplit | TimeSplit, Field(discriminator="kind")]
"""Any rule."""
