"""Rows of a query: SQLite through the standard library, PostgreSQL through psycopg."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa

from raymlp.config.sources import POSTGRES, ColumnType, SqlSource
from raymlp.core.errors import DataError, SourceUnavailable
from raymlp.core.files import sha256_file
from raymlp.data.sources import rows
from raymlp.data.sources.extras import load
from raymlp.data.sources.part import BadRows, Mark, Part
from raymlp.data.sources.retry import Unanswered

CONNECT_TIMEOUT_S = 10
FETCH_ROWS = 1024


def parts(source: SqlSource) -> list[Part]:
    """One part: a database gives no stable order to divide by."""
    if source.url.startswith(POSTGRES):
        return [Part(source.url)]
    return [Part(source.url, size=_sqlite_file(source).stat().st_size)]


def fingerprint(source: SqlSource, parts: list[Part]) -> list[dict[str, Any]]:
    """Of SQLite the digest of the file and of its write-ahead log; of PostgreSQL a digest of the rows, made by the server."""
    if not source.url.startswith(POSTGRES):
        file = _sqlite_file(source)
        log = file.with_name(file.name + "-wal")
        return [{"file": item.name, "bytes": item.stat().st_size, "mark": sha256_file(item)} for item in (file, log) if item.exists()]
    query = f"SELECT count(*), sum(hashtextextended(t::text, 0)::numeric) FROM ({source.query.rstrip('; ')}) AS t"  # noqa: S608
    with _asking(source), _postgres(source) as connection:
        count, digest = connection.execute(query).fetchone()
    return [{"table": source.url, "rows": count, "mark": str(digest)}]


def pieces(source: SqlSource, parts: list[Part], facts: list[dict[str, Any]], known: Sequence[Mark]) -> list[tuple[Part, Mark]]:
    return [(parts[0], {"all": facts})]


def schema(source: SqlSource, parts: list[Part]) -> dict[str, ColumnType]:
    return rows.inferred(_rows(source), source.types, f"the query on {source.url}")


def batches(source: SqlSource, part: Part, types: dict[str, ColumnType], batch_rows: int, bad: BadRows) -> Iterator[pa.Table]:
    yield from rows.tables(_rows(source), types, batch_rows)


def _rows(source: SqlSource) -> Iterator[dict[str, Any]]:
    connect = _postgres if source.url.startswith(POSTGRES) else _sqlite
    with _asking(source), connect(source) as connection, closing(_cursor(connection)) as cursor:
        cursor.execute(source.query)
        if cursor.description is None:
            raise DataError(f"data.source.query gives no rows on {source.url}; expected a SELECT. Set data.source.query.")
        names = [column[0] for column in cursor.description]
        doubled = next((name for name in names if names.count(name) > 1), None)
        if doubled is not None:
            raise DataError(f"data.source.query gives the column '{doubled}' twice; expected different names. Write AS.")
        while found := cursor.fetchmany(FETCH_ROWS):
            yield from (dict(zip(names, row, strict=True)) for row in found)


def _cursor(connection: Any) -> Any:
    """For PostgreSQL a cursor on the server, so that the result is not held in memory."""
    return connection.cursor() if isinstance(connection, sqlite3.Connection) else connection.cursor(name="raymlp")


def _sqlite_file(source: SqlSource) -> Path:
    file = Path(source.url.removeprefix("sqlite:///")).expanduser().absolute()
    if not file.is_file():
        raise SourceUnavailable(f"{file} is no file; expected an SQLite database. Set data.source.url (now in {Path.cwd()}).")
    return file


@contextmanager
def _sqlite(source: SqlSource) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(f"file:{quote(str(_sqlite_file(source)))}?mode=ro", uri=True)) as connection:
        yield connection


@contextmanager
def _postgres(source: SqlSource) -> Iterator[Any]:
    psycopg = load("psycopg", "postgres")
    options = {"connect_timeout": CONNECT_TIMEOUT_S, "options": "-c default_transaction_read_only=on -c TimeZone=UTC"}
    with psycopg.connect(source.url, **options) as connection:
        yield connection


@contextmanager
def _asking(source: SqlSource) -> Iterator[None]:
    """Turns what a database says into errors of ours; a lost connection or a lock into Unanswered."""
    try:
        yield
    except sqlite3.Error as error:
        if "locked" in str(error):
            raise Unanswered(f"{source.url} is locked: {error}.") from error
        raise _wrong_query(source, error) from error
    except Exception as error:
        if type(error).__module__.split(".")[0] != "psycopg":
            raise
        if type(error).__name__ in ("OperationalError", "ConnectionTimeout", "AdminShutdown", "InterfaceError"):
            raise Unanswered(f"{source.url} did not answer: {_first_line(error)}.") from error
        raise _wrong_query(source, error) from error


def _wrong_query(source: SqlSource, error: Exception) -> DataError:
    return DataError(f"{source.url} refused data.source.query: {_first_line(error)}. Set data.source.query.")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
