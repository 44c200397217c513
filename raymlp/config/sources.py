"""Where rows come from: one section a kind of source."""

from __future__ import annotations

import codecs
from typing import Annotated, Literal

from pydantic import Field, field_validator

from raymlp.config.section import Section

ColumnType = Literal["bool", "int", "float", "string", "timestamp"]
Operator = Literal["==", "!=", "<", "<=", ">", ">=", "in", "not in"]
Value = bool | int | float | str
Condition = tuple[str, Operator, Value | tuple[Value, ...]]
"""Column, operator, value; a list of values after `in` and `not in`."""


class Retry(Section):
    """What happens when a remote store or a database does not answer. Waits double, each shortened at random by up to a half."""

    attempts: int = Field(default=4, ge=1)
    """Tries before the source counts as unavailable; 1 never waits."""

    first_wait_s: float = Field(default=0.5, ge=0)
    """Seconds before the second try."""


class _Source(Section):
    retry: Retry = Retry()
    """Patience with a remote source."""

    @property
    def name(self) -> str:
        """What the source is called in messages."""
        raise NotImplementedError


class _Files(_Source):
    path: str | tuple[str, ...]
    """A path, a folder, a glob, or a URI that pyarrow knows (`s3://`, `gs://`, `abfs://`, `hdfs://`); `package://NAME/FILE` is a
    file inside an installed Python package, found without importing it. Several paths are read as one table. A store that
    speaks S3 at another address: `s3://BUCKET/KEY?endpoint_override=http://HOST:PORT`."""

    max_expansion: float = Field(default=200.0, gt=1)
    """A file that grows beyond 1 GiB and beyond this many times its size when it is read is refused: it is a decompression bomb."""

    @property
    def name(self) -> str:
        return self.path if isinstance(self.path, str) else ", ".join(self.path)


def _known_encoding(name: str) -> str:
    try:
        return codecs.lookup(name).name
    except LookupError:
        raise ValueError(f"'{name}' is no text encoding; expected one that Python knows, as utf-8, utf-16, latin-1, cp1252") from None


class _Text(_Files):
    encoding: str = "utf-8"
    """How the bytes spell text, by a name that Python knows (`utf-8`, `utf-16`, `latin-1`, `cp1252`). A byte-order mark is no text."""

    max_row_mb: float = Field(default=4.0, gt=0, le=1024)
    """Longest row in MiB; a longer one (a field without its closing quote, say) stops the run before it fills the memory."""

    _encoding = field_validator("encoding")(_known_encoding)


class CsvSource(_Text):
    """Delimited text files, also inside a .gz, .bz2, .zst or a .zip with one member."""

    kind: Literal["csv"] = "csv"

    columns: tuple[str, ...] = ()
    """Column names, for files without a header line; empty takes the first line as the header."""

    delimiter: str = Field(default=",", min_length=1, max_length=1)
    """Character between fields."""

    null_values: tuple[str, ...] = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "?")
    """Texts that mean: no value. Spaces around a field are removed first."""

    types: dict[str, ColumnType] = {}
    """Column types that override what is inferred from the file."""


class ParquetSource(_Files):
    """Parquet files."""

    kind: Literal["parquet"] = "parquet"

    columns: tuple[str, ...] = ()
    """Columns to read; the others are never taken from the disk. Empty reads all."""

    where: tuple[Condition, ...] = ()
    """Rows to read, as `[[year, ">=", 2013], [carrier, in, [AA, UA]]]`; all must hold, and null holds none. Row groups that
    cannot hold such a row are skipped by their statistics."""


Source = Annotated[CsvSource | ParquetSource, Field(discriminator="kind")]
