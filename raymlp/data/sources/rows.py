"""Rows of Python values (from JSON, a database, a message) as Arrow tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, datetime
from decimal import Decimal
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raymlp.config.sources import ColumnType
from raymlp.core.errors import DataError, nearest
from raymlp.data.casting import ARROW
from raymlp.data.sources.part import BATCH_BYTES

INFER_ROWS = 10_000
"""First rows that column types are inferred from."""
CHUNK = 1024
Row = Mapping[str, Any]
SCALARS: dict[type, ColumnType] = {
    bool: "bool", int: "int", float: "float", Decimal: "float", str: "string", bytes: "bytes",
    datetime: "timestamp", date: "timestamp",
}  # fmt: skip


def inferred(rows: Iterable[Row], types: Mapping[str, ColumnType], where: str) -> dict[str, ColumnType]:
    """Column types of the first rows, in the order that columns appear; `types` wins. Lists and objects are left out.

    Raises DataError when there is no row, or `types` names a column that is not there.
    """
    first = list(islice(rows, INFER_ROWS))
    if not first:
        raise DataError(f"{where} holds no rows; expected some.")
    names = list(dict.fromkeys(name for row in first for name in row))
    unknown = next((name for name in types if name not in names), None)
    if unknown:
        raise DataError(f"data.source.types names '{unknown}', which {where} does not have.{nearest(unknown, names)}")
    kinds = {name: types.get(name) or _kind([row.get(name) for row in first]) for name in names}
    return {name: kind for name, kind in kinds.items() if kind is not None}


def _kind(values: list[Any]) -> ColumnType | None:
    found = {SCALARS.get(type(value)) for value in values if value is not None}
    if None in found:
        return None
    if found == {"string"}:
        return _text_kind([value for value in values if value is not None])
    if found == {"string", "bytes"}:
        return "bytes"
    if found == {"int", "float"} or (found == {"int"} and any(value is not None and abs(value) >= 2**63 for value in values)):
        return "float"
    return found.pop() if len(found) == 1 else "string"


def _text_kind(values: list[Any]) -> ColumnType:
    for wanted in (pa.timestamp("us"), pa.timestamp("us", "UTC")):
        try:
            pc.cast(pa.array(values, pa.string()), wanted)
            return "timestamp"
        except (pa.ArrowInvalid, UnicodeEncodeError):
            continue
    return "string"


def tables(rows: Iterable[Row], types: Mapping[str, ColumnType], batch_rows: int) -> Iterator[pa.Table]:
    """The rows in batches; a column whose values do not fit its type is given as text."""
    waiting: list[pa.Table] = []
    num = size = 0
    source = iter(rows)
    while chunk := list(islice(source, min(CHUNK, batch_rows - num))):
        waiting.append(table_of(chunk, types))
        num, size = num + len(chunk), size + waiting[-1].nbytes
        if num >= batch_rows or size >= BATCH_BYTES:
            yield _joined(waiting)
            waiting, num, size = [], 0, 0
    if waiting:
        yield _joined(waiting)


def _joined(pieces: list[pa.Table]) -> pa.Table:
    """One table; a column that is text in one piece is text in all."""
    text = {item.name for piece in pieces for item in piece.schema if pa.types.is_string(item.type)}
    same = [piece.cast(pa.schema([(i.name, pa.string() if i.name in text else i.type) for i in piece.schema])) for piece in pieces]
    return pa.concat_tables(same)


def table_of(rows: list[Row], types: Mapping[str, ColumnType]) -> pa.Table:
    return pa.table({name: _array([row.get(name) for row in rows], kind) for name, kind in types.items()})


def _array(values: list[Any], kind: ColumnType) -> pa.Array:
    if any(isinstance(value, Decimal) for value in values):
        values = [float(value) if isinstance(value, Decimal) else value for value in values]
    if kind == "bytes":
        values = [value.encode() if isinstance(value, str) else value for value in values]
    try:
        return pa.array(values, ARROW[kind])
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return pa.array([_text(value) for value in values], pa.string())


def _text(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, bool | list | dict):
        return json.dumps(value, default=str)
    return str(value).encode(errors="replace").decode()
