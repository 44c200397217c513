"""Reading a column or one part of it as a number: the same for a whole Arrow column and for one typed value."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raymlp.config.features import DatePart
from raymlp.data.profile import to_float

Part = DatePart | Literal["length"]
SECONDS_PER_DAY = 86_400
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def label(column: str, part: str | None) -> str:
    """Name of a column's part."""
    return f"{column}_{part}" if part else column


def numbers(column: pa.ChunkedArray, part: Part | None) -> NDArray[np.float64]:
    """float64 (B,), NaN for missing. `length` is the number of characters of a text."""
    if part is None:
        return to_float(column)
    parts: dict[Part, Callable[[Any], Any]] = {
        "month": pc.month,
        "day": pc.day,
        "weekday": pc.day_of_week,
        "hour": pc.hour,
        "minute": pc.minute,
        "dayofyear": pc.day_of_year,
        "epoch_days": lambda array: pc.divide(
            pc.cast(pc.cast(pc.floor_temporal(array, unit="day"), pa.timestamp("s")), pa.int64()), SECONDS_PER_DAY
        ),
        "length": pc.utf8_length,
    }
    return to_float(parts[part](column))


def number_reader(part: Part | None) -> Callable[[Any], float]:
    """Number of one typed value: int, float, bool, text, or datetime in UTC."""
    readers: dict[Part | None, Callable[[Any], float]] = {
        None: lambda value: value.timestamp() if isinstance(value, datetime) else float(value),
        "month": lambda moment: moment.month,
        "day": lambda moment: moment.day,
        "weekday": lambda moment: moment.weekday(),
        "hour": lambda moment: moment.hour,
        "minute": lambda moment: moment.minute,
        "dayofyear": lambda moment: moment.timetuple().tm_yday,
        "epoch_days": lambda moment: (moment - EPOCH).days,
        "length": len,
    }
    return readers[part]
