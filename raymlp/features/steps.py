"""Fitted steps that give numbers. Each is a small frozen record that runs over an Arrow column or over one value, with equal results.

Legend: B rows, F folds, I ids, W outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from raymlp.config.features import DatePart
from raymlp.config.section import Section
from raymlp.features.custom import Custom
from raymlp.features.ids import FIRST, MISSING, Buckets, Category, Hashed, IdStep
from raymlp.features.image import Picture
from raymlp.features.reading import Part, label, number_reader, numbers
from raymlp.features.regression import Regression
from raymlp.features.scalers import LARGEST, Piecewise, Scaler, Standard
from raymlp.features.text import Ngrams, Subword

Floats = NDArray[np.float32]
Folds = NDArray[np.int64] | None
"""Fold of each training row, int64 (B,); None when rows were not trained on."""
RowNumbers = Callable[[dict[str, Any], list[float]], None]
"""Appends a row's numbers to a list."""


class Number(Section):
    """A number: missing values filled, cut, scaled, and said to be missing by a last output where asked."""

    kind: Literal["number"] = "number"
    column: str
    """Column read."""
    part: Part | None = None
    """Part of a timestamp column, or the length of a text."""
    fill: float | None
    """Value that stands for a missing one, before scaling; null leaves it missing: every output is NaN."""
    regression: Regression | None = None
    """What predicts a missing value from other columns, in the place of `fill`."""
    low: float | None = None
    """Smaller values are taken as this one."""
    high: float | None = None
    """Larger values are taken as this one."""
    scaler: Scaler
    """How values are scaled."""
    indicator: bool = False
    """Whether a 0/1 output says that the value was missing."""

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column, *(term.column for term in self.regression.terms)) if self.regression else (self.column,)

    @property
    def names(self) -> tuple[str, ...]:
        name = label(self.column, self.part)
        scaled = tuple(f"{name}_{i}" for i in range(self.scaler.outputs)) if isinstance(self.scaler, Piecewise) else (name,)
        return (*scaled, f"{name}_missing") if self.indicator else scaled

    def batch(self, table: pa.Table, folds: Folds = None) -> list[Floats]:
        """W arrays float32 (B,)."""
        values = numbers(table.column(self.column), self.part)
        missing = np.isnan(values)
        if missing.any():
            values = np.where(missing, math.nan if self.fill is None else self.fill, values)
            if self.regression is not None:
                values[missing] = self.regression.batch(table.filter(pa.array(missing)))
        if self.low is not None or self.high is not None:
            values = np.clip(values, self.low, self.high)
        scaled = np.clip(self.scaler.batch(values), -LARGEST, LARGEST).astype(np.float32)
        outputs = [scaled] if scaled.ndim == 1 else list(scaled.T)
        return [*outputs, missing.astype(np.float32)] if self.indicator else outputs

    def row(self) -> RowNumbers:
        column, fill, indicator = self.column, self.fill, self.indicator
        low, high = -math.inf if self.low is None else self.low, math.inf if self.high is None else self.high
        read, write, isfinite = number_reader(self.part), self._writer(), math.isfinite
        predict = self.regression.one() if self.regression else lambda row: fill or 0.0
        gaps = [math.nan] * len(self.names)

        def run(row: dict[str, Any], out: list[float]) -> None:
            value = row[column]
            number = math.nan if value is None else read(value)
            missing = not isfinite(number)
            if missing and fill is None:
                out += gaps
                return
            number = predict(row) if missing else number
            write(low if number < low else high if number > high else number, out)
            if indicator:
                out.append(1.0 if missing else 0.0)

        return run

    def _writer(self) -> Callable[[float, list[float]], None]:
        if isinstance(self.scaler, Piecewise):
            many = self.scaler.many()
            return lambda value, out: out.extend(min(max(part, -LARGEST), LARGEST) for part in many(value))
        scale = self.scaler.one()

        def write(value: float, out: list[float]) -> None:
            scaled = scale(value)
            out.append(LARGEST if scaled > LARGEST else max(scaled, -LARGEST))

        return write


def plain(step: NumberStep) -> bool:
    """Whether a step only fills and standardises a number, as most do."""
    return isinstance(step, Number) and step.part is None and step.low is None and step.high is None and isinstance(step.scaler, Standard)


def plain_row(steps: Sequence[Number]) -> RowNumbers:
    """What the steps' own `row` give one after the other, in one loop: a call for each would take most of the time."""
    facts = []
    for step in steps:
        assert isinstance(step.scaler, Standard)
        facts.append((step.column, step.scaler.mean, step.scaler.scale, step.indicator, step.row()))

    def run(row: dict[str, Any], out: list[float]) -> None:
        append = out.append
        for column, mean, scale, indicator, run_missing in facts:
            value = row[column]
            if type(value) is not float:
                value = math.nan if value is None else value.timestamp() if isinstance(value, datetime) else float(value)
            scaled = (value - mean) / scale
            if -LARGEST <= scaled <= LARGEST:
                append(scaled)
                if indicator:
                    append(0.0)
            elif isfinite(value):
                append(LARGEST if scaled > 0 else -LARGEST)
                if indicator:
                    append(0.0)
            else:
                run_missing(row, out)

    isfinite = math.isfinite
    return run


class Cyclic(Section):
    """A part of a timestamp that comes round, as a point on a circle: sine and cosine, both 0 when it is missing."""

    kind: Literal["cyclic"] = "cyclic"
    column: str
    """Column read."""
    part: DatePart
    """Part of the timestamp."""
    first: int
    """Smallest value of the part."""
    period: int = Field(ge=2)
    """Number of its values."""

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    @property
    def names(self) -> tuple[str, ...]:
        return (f"{label(self.column, self.part)}_sin", f"{label(self.column, self.part)}_cos")

    def batch(self, table: pa.Table, folds: Folds = None) -> list[Floats]:
        """Two arrays float32 (B,)."""
        angle = (numbers(table.column(self.column), self.part) - self.first) * (2 * math.pi / self.period)
        return [np.nan_to_num(turn(angle)).astype(np.float32) for turn in (np.sin, np.cos)]

    def row(self) -> RowNumbers:
        column, first, step, read = self.column, self.first, 2 * math.pi / self.period, number_reader(self.part)

        def run(row: dict[str, Any], out: list[float]) -> None:
            value = row[column]
            if value is None:
                out += (0.0, 0.0)
            else:
                angle = (read(value) - first) * step
                out += (math.sin(angle), math.cos(angle))

        return run


class OneHot(Section):
    """A 0/1 number for each category, and one for `missing`; a value without a slot is all 0."""

    kind: Literal["onehot"] = "onehot"
    ids: IdStep
    """Where ids come from."""

    @property
    def columns(self) -> tuple[str, ...]:
        return self.ids.columns

    @property
    def names(self) -> tuple[str, ...]:
        slots = self.ids.vocabulary if isinstance(self.ids, Category) else map(str, range(self.ids.size - FIRST))
        return tuple(f"{self.ids.name}={slot}" for slot in ("missing", *slots))

    def batch(self, table: pa.Table, folds: Folds = None) -> list[Floats]:
        """W arrays float32 (B,)."""
        ids = self.ids.batch(table)
        return [(ids == slot).astype(np.float32) for slot in range(MISSING, self.ids.size)]

    def row(self) -> RowNumbers:
        read, width = self.ids.row(), self.ids.size - MISSING

        def run(row: dict[str, Any], out: list[float]) -> None:
            hot = [0.0] * width
            place = read(row) - MISSING
            if place >= 0:
                hot[place] = 1.0
            out += hot

        return run


class Lookup(Section):
    """Numbers that belong to a category: its frequency, or the mean answer of its rows."""

    kind: Literal["lookup"] = "lookup"
    ids: IdStep
    """Where ids come from."""
    labels: tuple[str, ...] = Field(min_length=1)
    """What the numbers are, W of them."""
    values: tuple[tuple[float, ...], ...]
    """Numbers of each id, (I, W)."""
    out_of_fold: tuple[tuple[tuple[float, ...], ...], ...] = ()
    """Numbers of each id for the training rows of a fold, from the rows of the other folds, (F, I, W); left out of a bundle."""

    @property
    def columns(self) -> tuple[str, ...]:
        return self.ids.columns

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"{self.ids.name}_{what}" for what in self.labels)

    def batch(self, table: pa.Table, folds: Folds = None) -> list[Floats]:
        """W arrays float32 (B,); out of fold where the folds of training rows are given."""
        ids = self.ids.batch(table)
        if folds is not None and self.out_of_fold:
            found = np.array(self.out_of_fold, dtype=np.float32)[folds % len(self.out_of_fold), ids]
        else:
            found = np.array(self.values, dtype=np.float32)[ids]
        return list(found.T)

    def row(self) -> RowNumbers:
        read, values = self.ids.row(), self.values

        def run(row: dict[str, Any], out: list[float]) -> None:
            out += values[read(row)]

        return run


NumberStep = Number | Cyclic | OneHot | Lookup | Custom
Step = Annotated[
    Number | Cyclic | OneHot | Lookup | Custom | Category | Buckets | Hashed | Ngrams | Subword | Picture, Field(discriminator="kind")
]
