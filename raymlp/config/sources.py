"""Where rows come from: one section a kind of source."""

from __future__ import annotations

import codecs
import re
from datetime import UTC, datetime
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from raymlp.config.section import Section

ColumnType = Literal["bool", "int", "float", "string", "timestamp", "bytes"]
"""`bytes` are whole files, as images."""
Operator = Literal["==", "!=", "<", "<=", ">", ">=", "in", "not in"]
Value = bool | int | float | str
Condition = tuple[str, Operator, Value | tuple[Value, ...]]
"""Column, operator, value; a list of values after `in` and `not in`."""


PASSWORD = re.compile(r"://[^/@\s]*:[^/@\s]*@|[?&]password=", re.IGNORECASE)
POSTGRES = ("postgresql://", "postgres://")


def _in_utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


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


class _Selected(_Source):
    columns: tuple[str, ...] = ()
    """Columns to read; the others are never taken from the disk. Empty reads all."""

    where: tuple[Condition, ...] = ()
    """Rows to read, as `[[year, ">=", 2013], [carrier, in, [AA, UA]]]`; all must hold, and null holds none. Row groups and
    files that cannot hold such a row are skipped by their statistics."""


class ParquetSource(_Selected, _Files):
    """Parquet files."""

    kind: Literal["parquet"] = "parquet"


class JsonSource(_Text):
    """JSON Lines, or one JSON array of objects a file; also inside a .gz, .bz2, .zst or a .zip with one member.

    A field is a column; fields that hold lists or objects are left out.
    """

    kind: Literal["json"] = "json"

    types: dict[str, ColumnType] = {}
    """Column types that override what is inferred from the first 10,000 rows."""


class TextSource(_Text):
    """Plain text as the columns `text` and `path`."""

    kind: Literal["text"] = "text"

    row: Literal["line", "file"] = "line"
    """What a row is. Empty lines are left out."""


class ImageSource(_Files):
    """Image files as the columns `image` (the bytes, not decoded) and `path`."""

    kind: Literal["images"] = "images"

    label: bool = False
    """Adds the column `label`: the name of the folder that a file lies in."""

    max_image_mb: float = Field(default=64.0, gt=0, le=1024)
    """Largest file in MiB; a larger one goes to quarantine unread."""


class TfRecordSource(_Files):
    """TFRecord files of `tf.train.Example`, also inside a .gz. Features with several values are left out. Needs `raymlp[tfrecord]`."""

    kind: Literal["tfrecord"] = "tfrecord"

    types: dict[str, ColumnType] = {}
    """Column types that override what is inferred from the first 10,000 records."""

    max_row_mb: float = Field(default=64.0, gt=0, le=1024)
    """Longest record in MiB; a longer one stops the run."""


class SqlSource(_Source):
    """Rows of a query, read once and by one task."""

    kind: Literal["sql"] = "sql"

    url: str
    """`sqlite:///relative.db`, `sqlite:////absolute.db`, or `postgresql://host:port/database` (needs `raymlp[postgres]`). User
    and password come from the environment of the client (PGUSER, PGPASSWORD, or PGPASSFILE) on every node that reads."""

    query: str = Field(min_length=1)
    """A SELECT. It runs in a read-only transaction. Give it an ORDER BY: the split follows the order of the rows."""

    types: dict[str, ColumnType] = {}
    """Column types that override what is inferred from the first 10,000 rows."""

    @property
    def name(self) -> str:
        return self.url

    @field_validator("url")
    @classmethod
    def _known(cls, url: str) -> str:
        if PASSWORD.search(url):
            raise ValueError("the address holds a password; expected it in the environment (PGPASSWORD or PGPASSFILE)")
        if not url.startswith(("sqlite:///", *POSTGRES)):
            raise ValueError(f"'{url}' is no known database address; expected sqlite:///FILE or postgresql://HOST/DATABASE")
        return url


class DeltaSource(_Selected):
    """A Delta Lake table. Needs `raymlp[delta]`."""

    kind: Literal["delta"] = "delta"

    path: str
    """Folder or URI of the table. Credentials come from the environment of the store's own client."""

    version: int | None = Field(default=None, ge=0)
    """Version to read; null takes the newest."""

    @property
    def name(self) -> str:
        return self.path


class IcebergSource(_Selected):
    """An Apache Iceberg table. Needs `raymlp[iceberg]`."""

    kind: Literal["iceberg"] = "iceberg"

    table: str
    """Namespace and name of the table, with a dot."""

    catalog: str = "default"
    """Name of the catalog, as in `.pyiceberg.yaml`; credentials go there or into PYICEBERG_CATALOG__ variables."""

    properties: dict[str, str] = {}
    """Properties of the catalog beside those: `uri`, `type`, `warehouse`. Never a secret: the config is stored with every run."""

    snapshot_id: int | None = None
    """Snapshot to read; null takes the newest."""

    @property
    def name(self) -> str:
        return f"{self.catalog}.{self.table}"


Offset = int | Annotated[datetime, AfterValidator(_in_utc)]


class KafkaSource(_Source):
    """The messages of a topic between two bounds, read once. Needs `raymlp[kafka]` and two free CPUs.

    Columns are those of the JSON object in each message's value, and `partition`, `offset` and `timestamp` (when it was sent).
    The snapshot records the offsets it reached, and the next one reads on from there. Its types stay those of the first.
    """

    kind: Literal["kafka"] = "kafka"

    servers: tuple[str, ...] = Field(min_length=1)
    """Addresses of brokers, HOST:PORT."""

    topic: str
    """Topic to read, all its partitions."""

    start: Offset = 0
    """First offset of each partition, or the moment of the first message (no zone means UTC)."""

    end: Offset | None = None
    """Offset of each partition, or the moment, before which reading ends; null reads all that is there by now."""

    client: dict[str, str] = {}
    """Settings of the client, as librdkafka names them (`security.protocol`, `sasl.mechanism`). Never a secret: user name and
    password come from RAYMLP_KAFKA_USER and RAYMLP_KAFKA_PASSWORD."""

    timeout_s: float = Field(default=300.0, gt=0)
    """Seconds after which a partition that did not reach `end` stops the run."""

    types: dict[str, ColumnType] = {}
    """Column types that override what is inferred from the first 10,000 messages."""

    @property
    def name(self) -> str:
        return f"kafka topic {self.topic} at {', '.join(self.servers)}"

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if type(self.start) is type(self.end) and self.start >= self.end:  # type: ignore[operator]
            raise ValueError(f"start is {self.start}; expected less than end ({self.end})")
        secret = next((name for name in self.client if "password" in name or "secret" in name), None)
        if secret:
            raise ValueError(f"client.{secret} is a secret; expected it in RAYMLP_KAFKA_PASSWORD")
        return self


Source = Annotated[
    CsvSource
    | ParquetSource
    | JsonSource
    | TextSource
    | ImageSource
    | TfRecordSource
    | SqlSource
    | DeltaSource
    | IcebergSource
    | KafkaSource,
    Field(discriminator="kind"),
]
