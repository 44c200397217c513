"""Column types as Arrow has them, and columns and values read into them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymlp.config.sources import ColumnType
from raymlp.data.contract import ColumnContract
from raymlp.data.profile import column_type

ARROW: dict[ColumnType, pa.DataType] = {
    "bool": pa.bool_(),
    "int": pa.int64(),
    "float": pa.float64(),
    "string": pa.string(),
    "timestamp": pa.timestamp("us", tz="UTC"),
    "bytes": pa.binary(),
}


def read_column(array: pa.ChunkedArray, rule: ColumnContract) -> tuple[pa.ChunkedArray, Any]:
    """A raw column in the contract's type, before its privacy rule, and a mask of the values that could not be read (they become null).

    What is to be transformed is read as a whole number where it can be: 7.0 is the text `7`, since nulls often make floats of numbers.
    """
    if rule.privacy is None or rule.privacy.kind == "keep" or rule.type != "string" or not pa.types.is_floating(array.type):
        return _cast(array, rule.type)
    whole, unreadable = _cast(array, "int")
    return _cast(whole, "string")[0], unreadable


def moment(value: Any) -> datetime:
    """A timestamp in UTC; text is ISO 8601, and no zone means UTC."""
    when = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    return when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)


def _cast(array: pa.ChunkedArray, wanted: ColumnType) -> tuple[pa.ChunkedArray, Any]:
    """The column in the wanted type, and a mask of the values that could not be read (they become null)."""
    none = np.zeros(len(array), dtype=bool)
    if column_type(array.type) == wanted and array.type == ARROW[wanted]:
        return array, none
    if pa.types.is_null(array.type):
        return pa.chunked_array([pa.nulls(len(array), ARROW[wanted])]), none
    try:
        if wanted in ("int", "float", "bool") and column_type(array.type) == "timestamp":
            raise pa.ArrowInvalid("a timestamp is no number")
        if wanted == "timestamp" and column_type(array.type) in ("int", "float", "bool"):
            raise pa.ArrowInvalid("a number is no timestamp")
        if wanted == "timestamp" and column_type(array.type) == "timestamp" and getattr(array.type, "tz", None) is None:
            array = pc.assume_timezone(pc.cast(array, pa.timestamp("us")), "UTC")
        return pc.cast(array, ARROW[wanted]), none
    except pa.ArrowInvalid:
        values = array.to_pylist()
        convert = _text_reader(wanted)
        read = [convert(value) for value in values]
        lost = np.array([value is not None and got is None for value, got in zip(values, read, strict=True)])
        return pa.chunked_array([pa.array(read, ARROW[wanted])]), lost


def _text_reader(wanted: ColumnType) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        try:
            if value is None:
                return None
            if wanted == "string":
                return str(value)
            if wanted == "bytes":
                return value if isinstance(value, bytes) else None
            if wanted == "timestamp":
                return moment(value)
            if wanted == "bool":
                return {"true": True, "false": False}[str(value).lower()]
            if isinstance(value, datetime):
                return None
            number = float(value)
            if wanted == "int":
                return int(number) if number == int(number) and -(2**63) <= number < 2**63 else None
            return number
        except (TypeError, ValueError, KeyError, OverflowError):
            return None

    return read
