"""Apache Iceberg tables, a data file a part, at a snapshot that is fixed when the parts are listed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any

import pyarrow as pa

from raymlp.config.sources import ColumnType, Condition, IcebergSource
from raymlp.core.errors import ConfigError, DataError, SourceUnavailable, nearest
from raymlp.core.files import digest_of
from raymlp.data.profile import column_type
from raymlp.data.sources.extras import load
from raymlp.data.sources.part import BadRows, Mark, Part
from raymlp.data.sources.retry import Unanswered

OPERATORS = {
    "==": "EqualTo", "!=": "NotEqualTo", "<": "LessThan", "<=": "LessThanOrEqual",
    ">": "GreaterThan", ">=": "GreaterThanOrEqual", "in": "In", "not in": "NotIn",
}  # fmt: skip


def parts(source: IcebergSource) -> list[Part]:
    with _asking(source):
        table = _table(source)
        snapshot = source.snapshot_id or (table.current_snapshot().snapshot_id if table.current_snapshot() else None)
        tasks = _tasks(_scan(source, table, snapshot)) if snapshot is not None else []
    if not tasks:
        raise DataError(f"{source.name} holds no rows that data.source.where lets through; expected some.")
    return [Part(task.file.file_path, None, task.file.file_size_in_bytes, (snapshot, index)) for index, task in enumerate(tasks)]


def fingerprint(source: IcebergSource, parts: list[Part]) -> list[dict[str, Any]]:
    """The table's identity and snapshot, which fix its rows."""
    with _asking(source):
        identity = str(_table(source).metadata.table_uuid)
    return [{"table": source.table, "snapshot": parts[0].piece[0], "mark": identity}]


def pieces(source: IcebergSource, parts: list[Part], facts: list[dict[str, Any]], known: Sequence[Mark]) -> list[tuple[Part, Mark]]:
    """A data file is never changed, so its name marks it, with the files of rows deleted from it, the table and its schema."""
    with _asking(source):
        table = _table(source)
        scan = _scan(source, table, parts[0].piece[0])
        shared = {"table": str(table.metadata.table_uuid), "schema": digest_of(str(scan.projection()))}
        deleted = [sorted(str(file.file_path) for file in task.delete_files) for task in _tasks(scan)]
    return [(part, shared | {"file": part.path, "deleted": names}) for part, names in zip(parts, deleted, strict=True)]


def schema(source: IcebergSource, parts: list[Part]) -> dict[str, ColumnType]:
    with _asking(source):
        table = _table(source)
        found = _scan(source, table, parts[0].piece[0]).projection().as_arrow()
    kinds = {name: column_type(found.field(name).type) for name in source.columns or found.names}
    return {name: kind for name, kind in kinds.items() if kind is not None}


def batches(source: IcebergSource, part: Part, types: dict[str, ColumnType], batch_rows: int, bad: BadRows) -> Iterator[pa.Table]:
    snapshot, index = part.piece
    reader = load("pyiceberg.io.pyarrow", "iceberg")
    with _asking(source):
        table = _table(source)
        scan = _scan(source, table, snapshot)
        found = reader.ArrowScan(table.metadata, table.io, scan.projection(), scan.row_filter)
        for batch in found.to_record_batches([_tasks(scan)[index]]):
            chosen = pa.Table.from_batches([batch]).select([name for name in types if name in batch.schema.names])
            for start in range(0, chosen.num_rows, batch_rows):
                yield chosen.slice(start, batch_rows)


def _table(source: IcebergSource) -> Any:
    return load("pyiceberg.catalog", "iceberg").load_catalog(source.catalog, **source.properties).load_table(source.table)


def _scan(source: IcebergSource, table: Any, snapshot: int | None) -> Any:
    names = [field.name for field in table.schema().fields]
    for setting, asked in (("columns", source.columns), ("where", tuple(name for name, _, _ in source.where))):
        unknown = next((name for name in asked if name not in names), None)
        if unknown:
            raise ConfigError(f"data.source.{setting} names '{unknown}', which {source.name} does not have.{nearest(unknown, names)}")
    return table.scan(row_filter=_filter(source.where), selected_fields=source.columns or ("*",), snapshot_id=snapshot)


def _filter(conditions: tuple[Condition, ...]) -> Any:
    """The conditions in Iceberg's words; null holds none of them."""
    words = load("pyiceberg.expressions", "iceberg")
    found = [words.And(words.NotNull(name), getattr(words, OPERATORS[operator])(name, value)) for name, operator, value in conditions]
    return reduce(words.And, found) if found else words.AlwaysTrue()


def _tasks(scan: Any) -> list[Any]:
    return sorted(scan.plan_files(), key=lambda task: str(task.file.file_path))


@contextmanager
def _asking(source: IcebergSource) -> Iterator[None]:
    errors = load("pyiceberg.exceptions", "iceberg")
    try:
        yield
    except (errors.NoSuchTableError, errors.NoSuchNamespaceError) as error:
        raise SourceUnavailable(f"{source.name} is not in the catalog: {error}. Set data.source.table.") from error
    except (errors.ServiceUnavailableError, errors.ServerError, OSError) as error:
        raise Unanswered(f"{source.name} did not answer: {error}.") from error
    except (errors.ValidationError, pa.ArrowInvalid, ValueError) as error:
        raise DataError(f"{source.name} cannot be read as an Iceberg table: {error}.") from error
