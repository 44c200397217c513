"""Delimited text. Values that do not fit their column's type leave it as text, for the contract to judge."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from raymlp.config.sources import ColumnType, CsvSource
from raymlp.core.errors import DataError, nearest
from raymlp.data.casting import ARROW
from raymlp.data.profile import column_type
from raymlp.data.sources import files
from raymlp.data.sources.part import BATCH_BYTES, BadRows, Mark, Part

INFER_BYTES = 32 << 20
"""Bytes of the first file that column types are inferred from."""
GLANCE_ROWS = 100
"""Values that are tried before a whole column is."""
ENDINGS = tuple(f".{name}{packed}" for name in ("csv", "tsv", "txt") for packed in ("", ".gz", ".bz2", ".zst", ".lz4", ".zip"))
DELIMITERS = ",;\t|"


def parts(source: CsvSource) -> list[Part]:
    return files.find(source.path, ENDINGS)


def fingerprint(source: CsvSource, parts: list[Part]) -> list[dict[str, Any]]:
    return files.fingerprint(parts)


def pieces(source: CsvSource, parts: list[Part], facts: list[dict[str, Any]], known: Sequence[Mark]) -> list[tuple[Part, Mark]]:
    return files.pieces(parts, facts, known, grows=lambda part, beginning: _grows(source, part, beginning))


def schema(source: CsvSource, parts: list[Part]) -> dict[str, ColumnType]:
    """Types inferred from the first 32 MiB; `types` wins."""
    part = parts[0]
    batch = next(_blocks(source, part, {}, BadRows(), block_bytes=INFER_BYTES), None)
    if batch is None or not batch.num_rows:
        raise DataError(f"{part.path} has a header and no rows; expected rows.")
    names = batch.schema.names
    _refuse_wrong_header(source, part, batch)
    foreign = next((item.name for item in batch.schema if pa.types.is_binary(item.type)), None)
    if foreign is not None:
        raise _foreign(source, part, foreign)
    unknown = next((name for name in source.types if name not in names), None)
    if unknown:
        raise DataError(f"data.source.types names '{unknown}', which {part.path} does not have.{nearest(unknown, names)}")
    first = _tidy(pa.Table.from_batches([batch]), source)
    return {name: source.types.get(name) or _inferred(first.column(name)) for name in names}


def batches(source: CsvSource, part: Part, types: dict[str, ColumnType], batch_rows: int, bad: BadRows) -> Iterator[pa.Table]:
    wanted = {name: ARROW[kind] for name, kind in types.items() if kind != "timestamp"}
    given = 0
    try:
        for table in _tables(source, part, wanted, bad, batch_rows):
            given += table.num_rows
            yield table
    except pa.ArrowInvalid:
        bad.clear()
        yield from _rest_as_text(source, part, types, batch_rows, given, bad)


def _rest_as_text(
    source: CsvSource, part: Part, types: dict[str, ColumnType], batch_rows: int, skip: int, bad: BadRows
) -> Iterator[pa.Table]:
    for table in _tables(source, part, {name: pa.string() for name in types}, bad, batch_rows):
        rest = table.slice(min(skip, table.num_rows))
        skip -= table.num_rows - rest.num_rows
        if rest.num_rows:
            yield rest


def _tables(source: CsvSource, part: Part, types: dict[str, Any], bad: BadRows, batch_rows: int) -> Iterator[pa.Table]:
    waiting: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in _blocks(source, part, types, bad, block_bytes=round(source.max_row_mb * (1 << 20))):
        waiting.append(batch)
        rows, size = rows + batch.num_rows, size + batch.nbytes
        if rows >= batch_rows or size >= BATCH_BYTES:
            yield _tidy(pa.Table.from_batches(waiting), source)
            waiting, rows, size = [], 0, 0
    if waiting:
        yield _tidy(pa.Table.from_batches(waiting), source)


def _blocks(source: CsvSource, part: Part, types: dict[str, Any], bad: BadRows, *, block_bytes: int) -> Iterator[pa.RecordBatch]:
    """Record batches as they are parsed. ArrowInvalid comes through for a value that does not fit its type, else DataError."""
    files.refuse_other_kinds(part, source.encoding)
    rows = 0 if source.columns else 1
    with files.reading(part):
        try:
            with _open(source, part, types, bad, max(block_bytes, round(source.max_row_mb * (1 << 20)))) as reader:
                for batch in reader:
                    rows += batch.num_rows
                    yield batch
            return
        except pa.ArrowInvalid as error:
            words, mismatch = str(error), error
    if "invalid UTF8" in words:
        raise _foreign(source, part, _column_named(words, list(types)))
    if "conversion error" in words:
        raise mismatch
    if "straddling" in words or "out of sync" in words:
        raise DataError(
            f"{part.path}: the row after row {rows + bad.count} is longer than {source.max_row_mb:g} MiB, or a quote in it is never "
            "closed. Mend the file, or raise data.source.max_row_mb."
        )
    raise DataError(f"{part.path} cannot be read as CSV: {words}. Look at data.source.delimiter and the file.")


def _open(source: CsvSource, part: Part, types: dict[str, Any], bad: BadRows, block_bytes: int) -> pacsv.CSVStreamingReader:
    def skip(row: Any) -> str:
        bad.add(f"row {row.number} has {row.actual_columns} fields; expected {row.expected_columns}")
        return "skip"

    convert = pacsv.ConvertOptions(column_types=types, null_values=list(source.null_values), strings_can_be_null=True)
    return pacsv.open_csv(
        files.open_stream(part, max_expansion=source.max_expansion, encoding=source.encoding, before=_header(source, part)),
        # Without threads rows are numbered, and one file is read no slower.
        read_options=pacsv.ReadOptions(block_size=block_bytes, column_names=list(source.columns) or None, use_threads=False),
        parse_options=pacsv.ParseOptions(delimiter=source.delimiter, newlines_in_values=True, invalid_row_handler=skip),
        convert_options=convert,
    )


def _grows(source: CsvSource, part: Part, beginning: files.Beginning) -> bool:
    """Whether what follows the beginning of a file can be read on its own: no quote is open, nor in the header line."""
    return files.is_plain(part, source.encoding) and not beginning.in_quotes and not _header(source, part).count(b'"') % 2


def _header(source: CsvSource, part: Part) -> bytes:
    """The header line, which a later range of a file is read with; rows are then numbered from the start of the range."""
    return files.first_line(part) if files.is_plain(part, source.encoding) and not source.columns else b""


def _refuse_wrong_header(source: CsvSource, part: Part, batch: pa.RecordBatch) -> None:
    names = batch.schema.names
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled is not None:
        raise DataError(f"{part.path} has {names.count(doubled)} columns named '{doubled}'; expected different names. Rename one.")
    if len(names) > 1:
        return
    values = [str(value) for value in batch.column(0).slice(0, GLANCE_ROWS).to_pylist()]
    for sign in DELIMITERS.replace(source.delimiter, ""):
        if names[0].count(sign) and all(value.count(sign) == names[0].count(sign) for value in values):
            raise DataError(
                f"{part.path} has the one column '{names[0][:80]}'; expected fields between '{source.delimiter}' and found {sign!r} "
                f"in every row. Set data.source.delimiter."
            )


def _foreign(source: CsvSource, part: Part, column: str | None) -> DataError:
    line = files.first_foreign_line(part, max_expansion=source.max_expansion, encoding=source.encoding)
    where = f", line {line}" if line else ""
    named = f": the column '{column}'" if column is not None else " "
    return DataError(
        f"{part.path}{where}{named} is not UTF-8 text; expected UTF-8. Set data.source.encoding (latin-1, cp1252, ...), or convert it."
    )


def _column_named(words: str, names: list[str]) -> str | None:
    found = re.search(r"In CSV column #(\d+)", words)
    return names[int(found[1])] if found and int(found[1]) < len(names) else None


def _tidy(table: pa.Table, source: CsvSource) -> pa.Table:
    """Spaces around text removed, and what then means `no value` made null."""
    nulls = pa.array(source.null_values, pa.string())
    for i, item in enumerate(table.schema):
        if pa.types.is_string(item.type):
            text = pc.utf8_trim_whitespace(table.column(i))
            text = pc.if_else(pc.is_in(text, value_set=nulls), pa.scalar(None, pa.string()), text)
            table = table.set_column(i, item.name, text)
    return table


def _inferred(column: pa.ChunkedArray) -> ColumnType:
    kind = column_type(column.type)
    if kind == "string" and column.null_count < len(column):
        numbers: tuple[ColumnType, ...] = ("int", "float")
        for wanted in numbers:
            try:
                pc.cast(column.slice(0, GLANCE_ROWS), ARROW[wanted])
                pc.cast(column, ARROW[wanted])
                return wanted
            except pa.ArrowInvalid:
                continue
    return kind or "string"
