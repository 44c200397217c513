"""Reading tables: which parts a source has, what is in them, and their rows as Arrow batches.

One module a kind, each with the four functions of `part.Kind`; a new kind is a section in `raymlp/config/sources.py`, a
module here, and a line in `KINDS`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from raymlp.config.sources import ColumnType, Source
from raymlp.data.sources import csv, delta, iceberg, images, json, kafka, parquet, sql, text, tfrecord
from raymlp.data.sources.files import open_stream
from raymlp.data.sources.part import BadRows, Kind, Mark, Part
from raymlp.data.sources.retry import persistent, persistent_rows

__all__ = ["KINDS", "BadRows", "Mark", "Part", "fingerprint", "open_stream", "parts_of", "pieces_of", "read", "read_all", "schema_of"]

KINDS: dict[str, Kind] = {
    "csv": csv, "parquet": parquet, "json": json, "text": text, "images": images, "tfrecord": tfrecord,
    "sql": sql, "delta": delta, "iceberg": iceberg, "kafka": kafka,
}  # fmt: skip


def parts_of(source: Source) -> list[Part]:
    """The parts of a source, in a fixed order. Raises SourceUnavailable when there is nothing, DataError when it is unusable."""
    return persistent(source.retry, lambda: KINDS[source.kind].parts(source))


def fingerprint(source: Source, parts: list[Part] | None = None) -> list[dict[str, Any]]:
    """Facts that change when the rows of the (given) parts may have changed: of every file its name, size and content digest."""
    found = parts_of(source) if parts is None else parts
    return persistent(source.retry, lambda: KINDS[source.kind].fingerprint(source, found))


def pieces_of(source: Source, parts: list[Part], facts: list[dict[str, Any]], known: Sequence[Mark] = ()) -> list[tuple[Part, Mark]]:
    """The parts with their marks, in order; `facts` are their fingerprint.

    Where a file or a topic grew since the `known` marks were taken, the part is divided into what was there and the rest.
    """
    return persistent(source.retry, lambda: KINDS[source.kind].pieces(source, parts, facts, known))


def schema_of(source: Source, parts: list[Part] | None = None) -> dict[str, ColumnType]:
    """Column types, from the source's schema or inferred from its first rows. Raises DataError when it cannot be read."""
    found = parts_of(source) if parts is None else parts
    return persistent(source.retry, lambda: KINDS[source.kind].schema(source, found))


def read(source: Source, part: Part, types: dict[str, ColumnType], *, batch_rows: int, bad: BadRows) -> Iterator[pa.Table]:
    """Rows of a part in batches. Values that do not fit their type leave the column as text, for the contract to judge.

    Raises DataError naming the file when it cannot be read at all.
    """
    return persistent_rows(source.retry, lambda: KINDS[source.kind].batches(source, part, types, batch_rows, bad), bad)


def read_all(source: Source) -> pa.Table:
    """A whole (small) table, in memory."""
    types = schema_of(source)
    tables = [table for part in parts_of(source) for table in read(source, part, types, batch_rows=1 << 20, bad=BadRows())]
    return pa.concat_tables(tables, promote_options="permissive")
