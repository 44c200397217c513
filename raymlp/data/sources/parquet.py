"""Parquet. Columns and row groups that are not wanted are never read; a file that would burst the memory is refused."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from raymlp.config.sources import ColumnType, Condition, ParquetSource
from raymlp.core.errors import ConfigError, DataError, nearest
from raymlp.data.profile import column_type
from raymlp.data.sources import files
from raymlp.data.sources.part import BATCH_BYTES, BadRows, Mark, Part

ENDINGS = (".parquet", ".pq")
ROW_GROUPS_PER_PART = 8
WIDTH = {"BOOLEAN": 0.125, "INT32": 4, "INT64": 8, "INT96": 8, "FLOAT": 4, "DOUBLE": 8, "BYTE_ARRAY": 4}
"""Bytes in memory of a value, by physical type; text has an offset and its length."""


def parts(source: ParquetSource) -> list[Part]:
    found = [part for file in files.find(source.path, ENDINGS) for part in _row_groups(source, file)]
    if not found:
        fitting = " that fits data.source.where" if source.where else ""
        raise DataError(f"{source.name} holds no rows; expected at least one{fitting}.")
    return found


def fingerprint(source: ParquetSource, parts: list[Part]) -> list[dict[str, Any]]:
    return files.fingerprint(parts)


def pieces(source: ParquetSource, parts: list[Part], facts: list[dict[str, Any]], known: Sequence[Mark]) -> list[tuple[Part, Mark]]:
    return files.pieces(parts, facts, known)


def schema(source: ParquetSource, parts: list[Part]) -> dict[str, ColumnType]:
    """Types from the schema of the first file. Columns of nested types are left out."""
    part = parts[0]
    with files.reading(part):
        found = pq.read_schema(part.path, filesystem=part.filesystem)
    unknown = next((name for name in source.columns if name not in found.names), None)
    if unknown:
        raise ConfigError(f"data.source.columns names '{unknown}', which {part.path} does not have.{nearest(unknown, found.names)}")
    doubled = next((name for name in found.names if found.names.count(name) > 1), None)
    if doubled is not None:
        raise DataError(f"{part.path} has {found.names.count(doubled)} columns named '{doubled}'; expected different names. Rename one.")
    kinds = {name: column_type(found.field(name).type) for name in source.columns or found.names}
    return {name: kind for name, kind in kinds.items() if kind is not None}


def batches(source: ParquetSource, part: Part, types: dict[str, ColumnType], batch_rows: int, bad: BadRows) -> Iterator[pa.Table]:
    with files.reading(part), pq.ParquetFile(part.path, filesystem=part.filesystem) as file:
        condition = where(source.where, file.schema_arrow, part.path)
        used = {name for name, _, _ in source.where}
        names = [name for name in file.schema_arrow.names if name in types or name in used]
        rows = min(batch_rows, _rows_that_fit(file, part, names))
        wordy = _wordy_columns(file, part, names, rows)
        if wordy:
            tables = _checked(source, part, names, wordy, rows)
        else:
            found = file.iter_batches(batch_size=rows, row_groups=list(part.piece), columns=names)
            tables = (pa.Table.from_batches([batch]) for batch in found)
        for table in tables:
            chosen = table if condition is None else table.filter(condition)
            if chosen.num_rows:
                yield chosen.select([name for name in types if name in names])


def where(conditions: tuple[Condition, ...], schema: pa.Schema, path: str) -> pc.Expression | None:
    """All conditions as one expression over a table of this schema. Raises ConfigError."""
    expressions = [_expression(condition, schema, path) for condition in conditions]
    return reduce(lambda left, right: left & right, expressions) if expressions else None


def _expression(condition: Condition, schema: pa.Schema, path: str) -> pc.Expression:
    name, operator, value = condition
    if name not in schema.names:
        raise ConfigError(f"data.source.where names '{name}', which {path} does not have.{nearest(name, schema.names)}")
    column, kind = pc.field(name), schema.field(name).type
    try:
        if operator in ("in", "not in"):
            known = pa.array(value if isinstance(value, tuple) else (value,)).cast(kind)
            return column.isin(known) if operator == "in" else ~column.isin(known) & column.is_valid()
        bound = pc.scalar(_scalar(value, kind))
    except (pa.ArrowException, TypeError) as error:
        raise ConfigError(f"data.source.where compares '{name}' ({kind}) with {value!r}: {error}. Set data.source.where.") from None
    compared: dict[str, Any] = {
        "==": column == bound, "!=": column != bound, "<": column < bound,
        "<=": column <= bound, ">": column > bound, ">=": column >= bound,
    }  # fmt: skip
    return compared[operator]


def _scalar(value: Any, kind: pa.DataType) -> pa.Scalar:
    """The value as the column's type. A moment without a zone means UTC."""
    if pa.types.is_timestamp(kind) and kind.tz:
        text = pa.scalar(value)
        return pc.assume_timezone(text.cast(pa.timestamp("us")), "UTC").cast(kind)
    return pa.scalar(value).cast(kind)


def _row_groups(source: ParquetSource, file: Part) -> list[Part]:
    with files.reading(file), pq.ParquetFile(file.path, filesystem=file.filesystem) as parquet:
        total, schema = (parquet.num_row_groups if parquet.metadata.num_rows else 0), parquet.schema_arrow
        expanded = sum(_expanded(parquet.metadata, group) for group in range(total))
        if expanded > max(files.FREE_BYTES, source.max_expansion * file.size):
            raise files.bomb(file, expanded, source.max_expansion)
        wanted = _groups_that_may_fit(source, file, schema, total)
    pieces = [tuple(wanted[i : i + ROW_GROUPS_PER_PART]) for i in range(0, len(wanted), ROW_GROUPS_PER_PART)]
    return [Part(file.path, file.filesystem, file.size, piece) for piece in pieces]


def _groups_that_may_fit(source: ParquetSource, file: Part, schema: pa.Schema, total: int) -> list[int]:
    condition = where(source.where, schema, file.path)
    if condition is None:
        return list(range(total))
    fragment = pads.ParquetFileFormat().make_fragment(file.path, filesystem=file.filesystem)
    return [group.id for piece in fragment.split_by_row_group(condition) for group in piece.row_groups]


def _expanded(metadata: pq.FileMetaData, group: int) -> float:
    """Bytes that a row group takes in memory, at least, by the footer alone."""
    chunks = [metadata.row_group(group).column(i) for i in range(metadata.num_columns)]
    return float(sum(max(chunk.total_uncompressed_size, chunk.num_values * WIDTH.get(chunk.physical_type, 1)) for chunk in chunks))


def _rows_that_fit(file: pq.ParquetFile, part: Part, names: list[str]) -> int:
    """Rows of average size in one batch."""
    rows = size = 0
    for group in part.piece:
        rows += file.metadata.row_group(group).num_rows
        size += sum(chunk.total_uncompressed_size for chunk in _chunks(file, group, names))
    return max(1, int(BATCH_BYTES * rows / size)) if size else BATCH_BYTES


def _chunks(file: pq.ParquetFile, group: int, names: list[str]) -> list[Any]:
    found = [file.metadata.row_group(group).column(i) for i in range(file.metadata.num_columns)]
    return [chunk for chunk in found if chunk.path_in_schema in names]


def _wordy_columns(file: pq.ParquetFile, part: Part, names: list[str], rows: int) -> list[str]:
    """Text columns whose dictionary holds values so long that a batch of them could burst the memory.

    The footer does not tell: one value of 100 kB, a million times, is 2 kB on disk and 100 GB in memory. So the dictionary
    is looked at, which is as large as the column's chunk at most.
    """
    coded = {group: _coded(file, group, names, rows) for group in part.piece}
    peeked = sorted(set().union(*coded.values()))
    wordy: set[str] = set()
    if not peeked:
        return []
    with pq.ParquetFile(part.path, filesystem=part.filesystem, metadata=file.metadata, read_dictionary=peeked) as peek:
        for group, columns in coded.items():
            left = [name for name in columns if name not in wordy]
            for batch in islice(peek.iter_batches(batch_size=1, row_groups=[group], columns=left), bool(left)):
                wordy |= {name for name in left if _longest(batch.column(name)) * rows > files.FREE_BYTES}
    return sorted(wordy)


def _coded(file: pq.ParquetFile, group: int, names: list[str], rows: int) -> set[str]:
    """Columns of text with a dictionary that is large enough to hold a value that could burst the memory."""
    return {
        chunk.path_in_schema
        for chunk in _chunks(file, group, names)
        if chunk.physical_type == "BYTE_ARRAY"
        and chunk.has_dictionary_page
        and min(rows, chunk.num_values) * chunk.total_uncompressed_size > files.FREE_BYTES
    }


def _longest(column: pa.DictionaryArray) -> int:
    return pc.max(pc.binary_length(column.dictionary)).as_py() or 0


def _checked(source: ParquetSource, part: Part, names: list[str], wordy: list[str], rows: int) -> Iterator[pa.Table]:
    """Batches whose wordy columns are measured before they are written out in full."""
    first = 0
    with pq.ParquetFile(part.path, filesystem=part.filesystem, read_dictionary=wordy) as file:
        for batch in file.iter_batches(batch_size=rows, row_groups=list(part.piece), columns=names):
            size = 0
            for name in wordy:
                column = batch.column(name)
                lengths = pc.cast(pc.binary_length(column.dictionary), pa.int64())
                size = max(size, pc.sum(lengths.take(column.indices)).as_py() or 0)
                if size > max(files.FREE_BYTES, source.max_expansion * part.size):
                    raise files.bomb(part, size, source.max_expansion, f", column '{name}', rows {first:,} to {first + len(batch):,},")
            first += len(batch)
            step = max(1, len(batch) // math.ceil(size / BATCH_BYTES) if size else len(batch))
            for start in range(0, len(batch), step):
                yield _spelled_out(batch.slice(start, step), wordy)


def _spelled_out(batch: pa.RecordBatch, wordy: list[str]) -> pa.Table:
    table = pa.Table.from_batches([batch])
    for name in wordy:
        column = table.column(name)
        table = table.set_column(table.schema.get_field_index(name), name, column.cast(column.type.value_type))
    return table
