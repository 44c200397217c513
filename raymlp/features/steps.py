"""Fitted steps. Each is a small frozen record that runs over an Arrow column or over one value, with equal results.

A step reads a column, or one part of a timestamp column, and gives float32 numbers or one int64 category id.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from raymlp.config.features import DatePart
from raymlp.config.section import Section
from raymlp.data.profile import to_float, to_text

UNSEEN, MISSING, FIRST = 0, 1, 2
"""Category ids: 0 a value without a slot, 1 no value, 2 and up the vocabulary."""
SECONDS_PER_DAY = 86_400
LARGEST = float(np.finfo(np.float32).max)
"""Scaled numbers stay finite in float32."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Standard(Section):
    """(x - mean) / scale."""

    kind: Literal["standard"] = "standard"
    mean: float
    """Mean over the training values."""
    scale: float
    """Standard deviation over the training values; 1 for a constant."""

    def batch(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray((values - self.mean) / self.scale)

    def one(self) -> Callable[[float], float]:
        mean, scale = self.mean, self.scale
        return lambda value: (value - mean) / scale


class Quantile(Section):
    """x through its training distribution to a standard normal one, linear between knots, flat beyond them."""

    kind: Literal["quantile"] = "quantile"
    knots: tuple[float, ...] = Field(min_length=1)
    """Distinct training quantiles, rising."""
    heights: tuple[float, ...] = Field(min_length=1)
    """Normal score of each knot."""

    def batch(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.interp(values, self.knots, self.heights)

    def one(self) -> Callable[[float], float]:
        knots, heights = list(self.knots), list(self.heights)
        last = len(knots) - 1

        def scale(value: float) -> float:
            right = bisect.bisect_right(knots, value)
            if right == 0:
                return heights[0]
            if right > last:
                return heights[last]
            left = right - 1
            slope = (heights[right] - heights[left]) / (knots[right] - knots[left])
            return slope * (value - knots[left]) + heights[left]

        return scale


Scaler = Annotated[Standard | Quantile, Field(discriminator="kind")]


class Number(Section):
    """A number: missing values filled, scaled, and said to be missing by a second output where asked."""

    kind: Literal["number"] = "number"
    column: str
    """Column read."""
    part: DatePart | None = None
    """Part of a timestamp column."""
    fill: float
    """Value that stands for a missing one, before scaling."""
    scaler: Scaler
    """How values are scaled."""
    indicator: bool = False
    """Whether a 0/1 output says that the value was missing."""

    @property
    def names(self) -> tuple[str, ...]:
        name = _name(self.column, self.part)
        return (name, f"{name}_missing") if self.indicator else (name,)

    def batch(self, table: pa.Table) -> list[NDArray[np.float32]]:
        values = _numbers(table.column(self.column), self.part)
        missing = np.isnan(values)
        scaled = np.clip(self.scaler.batch(np.where(missing, self.fill, values)), -LARGEST, LARGEST).astype(np.float32)
        return [scaled, missing.astype(np.float32)] if self.indicator else [scaled]

    def row(self) -> Callable[[dict[str, Any], list[float]], None]:
        column, fill, indicator, scale = self.column, self.fill, self.indicator, self.scaler.one()
        read = _number_reader(self.part)

        def run(row: dict[str, Any], out: list[float]) -> None:
            value = row[column]
            number = math.nan if value is None else read(value)
            missing = not math.isfinite(number)
            out.append(min(max(scale(fill if missing else number), -LARGEST), LARGEST))
            if indicator:
                out.append(1.0 if missing else 0.0)

        return run


class Category(Section):
    """A category id from a vocabulary."""

    kind: Literal["category"] = "category"
    column: str
    """Column read."""
    part: DatePart | None = None
    """Part of a timestamp column."""
    vocabulary: tuple[str, ...]
    """Values with a slot of their own, as text; the id is the position plus 2."""

    @property
    def name(self) -> str:
        return _name(self.column, self.part)

    @property
    def size(self) -> int:
        """Number of ids."""
        return len(self.vocabulary) + FIRST

    def batch(self, table: pa.Table) -> NDArray[np.int64]:
        column = table.column(self.column)
        texts = to_text(column) if self.part is None else _whole_text(_numbers(column, self.part))
        found = pc.index_in(texts, value_set=pa.array(self.vocabulary, pa.string()))
        ids = pc.add(pc.cast(found, pa.int64()), FIRST).fill_null(UNSEEN).to_numpy(zero_copy_only=False)
        missing = texts.is_null().to_numpy(zero_copy_only=False)
        return np.where(missing, MISSING, ids)

    def row(self) -> Callable[[dict[str, Any]], int]:
        column, part = self.column, self.part
        ids = {value: index + FIRST for index, value in enumerate(self.vocabulary)}
        read = _number_reader(part)

        def run(row: dict[str, Any]) -> int:
            value = row[column]
            if value is None:
                return MISSING
            if part is not None:
                value = str(int(read(value)))
            elif value is True or value is False:
                value = "true" if value else "false"
            elif type(value) is not str:
                value = str(value)
            return ids.get(value, UNSEEN)

        return run


Step = Annotated[Number | Category, Field(discriminator="kind")]


def _name(column: str, part: str | None) -> str:
    return f"{column}_{part}" if part else column


def _whole_text(values: NDArray[np.float64]) -> pa.Array:
    whole = pa.array(np.where(np.isnan(values), 0, values).astype(np.int64), mask=np.isnan(values))
    return pc.cast(whole, pa.string())


def _numbers(column: pa.ChunkedArray, part: DatePart | None) -> NDArray[np.float64]:
    if part is None:
        return to_float(column)
    parts: dict[DatePart, Callable[[Any], Any]] = {
        "month": pc.month,
        "day": pc.day,
        "weekday": pc.day_of_week,
        "hour": pc.hour,
        "minute": pc.minute,
        "dayofyear": pc.day_of_year,
        "epoch_days": lambda array: pc.floor(
            pc.divide(pc.cast(pc.cast(array, pa.timestamp("s"), safe=False), pa.int64()), float(SECONDS_PER_DAY))
        ),
    }
    return to_float(parts[part](column))


def _number_reader(part: DatePart | None) -> Callable[[Any], float]:
    """Number of one typed value: int, float, bool, or datetime in UTC."""
    readers: dict[DatePart | None, Callable[[Any], float]] = {
        None: lambda value: value.timestamp() if isinstance(value, datetime) else float(value),
        "month": lambda moment: moment.month,
        "day": lambda moment: moment.day,
        "weekday": lambda moment: moment.weekday(),
        "hour": lambda moment: moment.hour,
        "minute": lambda moment: moment.minute,
        "dayofyear": lambda moment: moment.timetuple().tm_yday,
        "epoch_days": lambda moment: (moment - EPOCH).days,
    }
    return readers[part]
