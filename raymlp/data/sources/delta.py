"""Delta Lake tables, a data file a part, at a version that is fixed when the parts are listed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from raymlp.config.sources import ColumnType, DeltaSource
from raymlp.core.errors import ConfigError, DataError, SourceUnavailable, nearest
from raymlp.core.files import digest_of
from raymlp.data.profile import column_type
from raymlp.data.sources.extras import load
from raymlp.data.sources.parquet import where
from raymlp.data.sources.part import BadRows, Mark, Part
from raymlp.data.sources.retry import Unanswered


def parts(source: DeltaSource) -> list[Part]:
    with _asking(source):
        table = _table(source, source.version)
        files = _fragments(source, table)
        sizes = dict(zip(table.file_uris(), pa.table(table.get_add_actions()).column("size_bytes").to_pylist(), strict=True))
        size = round(sum(sizes.values()) / max(1, len(files)))
    if not files:
        raise DataError(f"{source.path} (version {table.version()}) holds no rows that data.source.where lets through; expected some.")
    return [Part(f"{source.path}/{file.path}", None, size, (table.version(), index)) for index, file in enumerate(files)]


def fingerprint(source: DeltaSource, parts: list[Part]) -> list[dict[str, Any]]:
    """The table's identity and version, which fix its rows."""
    version = parts[0].piece[0]
    with _asking(source):
        identity = str(_table(source, version).metadata().id)
    return [{"table": source.path, "version": version, "mark": identity}]


def pieces(source: DeltaSource, parts: list[Part], facts: list[dict[str, Any]], known: Sequence[Mark]) -> list[tuple[Part, Mark]]:
    """A data file is never changed, so its name marks it, with the table and the schema that it is read under."""
    with _asking(source):
        table = _table(source, parts[0].piece[0])
        shared = {"table": str(table.metadata().id), "schema": digest_of(table.schema().to_json())}
    return [(part, shared | {"file": part.path.removeprefix(f"{source.path}/")}) for part in parts]


def schema(source: DeltaSource, parts: list[Part]) -> dict[str, ColumnType]:
    with _asking(source):
        found = _table(source, parts[0].piece[0]).to_pyarrow_dataset().schema
    unknown = next((name for name in source.columns if name not in found.names), None)
    if unknown:
        raise ConfigError(f"data.source.columns names '{unknown}', which {source.path} does not have.{nearest(unknown, found.names)}")
    kinds = {name: column_type(found.field(name).type) for name in source.columns or found.names}
    return {name: kind for name, kind in kinds.items() if kind is not None}


def batches(source: DeltaSource, part: Part, types: dict[str, ColumnType], batch_rows: int, bad: BadRows) -> Iterator[pa.Table]:
    version, index = part.piece
    with _asking(source):
        table = _table(source, version)
        found = table.to_pyarrow_dataset().schema
        file = _fragments(source, table)[index]
        names = [name for name in types if name in found.names]
        for batch in file.to_batches(schema=found, columns=names, filter=where(source.where, found, source.path), batch_size=batch_rows):
            if batch.num_rows:
                yield pa.Table.from_batches([batch])


def _table(source: DeltaSource, version: int | None) -> Any:
    return load("deltalake", "delta").DeltaTable(source.path, version=version)


def _fragments(source: DeltaSource, table: Any) -> list[Any]:
    dataset = table.to_pyarrow_dataset()
    found = dataset.get_fragments(where(source.where, dataset.schema, source.path))
    return sorted(found, key=lambda fragment: str(fragment.path))


@contextmanager
def _asking(source: DeltaSource) -> Iterator[None]:
    errors = load("deltalake.exceptions", "delta")
    try:
        yield
    except errors.TableNotFoundError as error:
        raise SourceUnavailable(f"{source.path} is no Delta table: {error}. Set data.source.path.") from error
    except errors.DeltaError as error:
        raise DataError(f"{source.path} cannot be read as a Delta table: {error}.") from error
    except pa.ArrowInvalid as error:
        raise DataError(f"{source.path} holds a file that cannot be read: {error}.") from error
    except OSError as error:
        raise Unanswered(f"{source.path} broke off: {error}.") from error
