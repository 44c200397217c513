"""Where rows come from and what they may hold."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raymlp.config.quality import Checks
from raymlp.config.section import Section
from raymlp.config.split import Split

ColumnType = Literal["bool", "int", "float", "string", "timestamp"]


class CsvSource(Section):
    """Delimited text files, also inside a .gz or a .zip with one member."""

    kind: Literal["csv"] = "csv"

    path: str | tuple[str, ...]
    """A path, a glob, or a URI that pyarrow knows (`s3://`, `gs://`, ...); `package://NAME/FILE` is a file inside
    an installed Python package, found without importing it. Several paths are read as one table."""

    columns: tuple[str, ...] = ()
    """Column names, for files without a header line; empty takes the first line as the header."""

    delimiter: str = Field(default=",", min_length=1, max_length=1)
    """Character between fields."""

    null_values: tuple[str, ...] = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "?")
    """Texts that mean: no value. Spaces around a field are removed first."""

    types: dict[str, ColumnType] = {}
    """Column types that override what is inferred from the file."""


class ParquetSource(Section):
    """Parquet files."""

    kind: Literal["parquet"] = "parquet"

    path: str | tuple[str, ...]
    """A path, a folder, a glob, or a URI that pyarrow knows. Several paths are read as one table."""


Source = Annotated[CsvSource | ParquetSource, Field(discriminator="kind")]


class Join(Section):
    """A smaller table whose columns are added to each row (left join; keys must be unique there)."""

    source: Source
    """The table to look up in. It is held in memory once a worker."""

    keys: tuple[str, ...] = Field(min_length=1)
    """Key columns, by the same name in both tables."""

    prefix: str = ""
    """Put before the name of every column that is added."""

    columns: tuple[str, ...] = ()
    """Columns to add; empty adds all that are not keys."""


class Data(Section):
    """Rows, from source to snapshot."""

    source: Source
    """The main table: one row a case."""

    joins: tuple[Join, ...] = ()
    """Tables whose columns are added, in order."""

    drop: tuple[str, ...] = ()
    """Columns to leave out."""

    split: Split
    """How rows are divided."""

    contract: str | None = None
    """A contract file (YAML) to enforce; null infers one from the training split."""

    checks: Checks = Checks()
    """What is looked for in the rows before they may train."""

    max_bad_share: float = Field(default=0.01, ge=0, le=1)
    """Share of rows that may go to quarantine before the run stops, in [0, 1]."""

    batch_rows: int = Field(default=65_536, ge=1)
    """Rows that are read, checked and written at a time; more is faster and takes more memory."""
