"""Tables as Arrow streams, in and out: for large batches, without a Python object for each value.

A stream comes from outside, so nothing of it is believed: plain columns of the contract's types alone, no compressed buffers (which may
claim any size), every batch validated in full before it is looked at.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc

from raymlp.config.access import Role
from raymlp.config.sources import ColumnType
from raymlp.core.errors import RequestError, nearest
from raymlp.data.contract import ColumnContract, Contract
from raymlp.data.contract_batch import REASON, check_table
from raymlp.data.privacy import PrivacyKey, makes_text
from raymlp.model.answers import columns_of
from raymlp.serve.admission import refusal
from raymlp.serve.formats.wire import FALLBACK, Flags, Headers
from raymlp.serve.request import Request

if TYPE_CHECKING:
    from raymlp.model.predictor import Prediction

MEDIA_TYPE = b"application/vnd.apache.arrow.stream"
MOST_BATCHES = 1_024
"""Record batches of a stream."""
EXPECTED = "an Arrow IPC stream of plain, uncompressed columns"
RECORD_BATCH, COMPRESSION = 3, 3
"""In the metadata of a message: the kind that a record batch is, and the place of its compression among its fields."""
YEAR_1, YEAR_10000 = -62_135_596_800_000_000, 253_402_300_800_000_000
"""Microseconds since 1970 within which a moment has a date."""


class ArrowTable:
    """One request with a table, and its answer. The routing key comes in the header X-Routing-Key alone."""

    role: Role = "predict"
    version: str | None = None

    def __init__(self) -> None:
        self.headers: Headers = ((b"content-type", b"application/json"),)  # of a refusal

    def read(self, content: bytes, *, max_rows: int) -> Request:
        return Request(read_stream(content, max_rows=max_rows), None)

    def write(self, answer: Prediction, *, label: str, digest: str, prediction_id: str, flags: Flags) -> bytes:
        told = {"prediction_id": prediction_id, "model_version": label} | ({"fallback": "true"} if label == FALLBACK else {})
        table = columns_of(answer, "", label, digest).replace_schema_metadata(told)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        named = {b"x-prediction-id": prediction_id, b"x-model-version": label} | ({b"x-fallback": "true"} if label == FALLBACK else {})
        self.headers = ((b"content-type", MEDIA_TYPE), *((name, text.encode()) for name, text in named.items()))
        return bytes(sink.getvalue())

    def refuse(self, field: str, found: str, expected: str) -> bytes:
        return refusal(field, found, expected)


def read_stream(content: bytes, *, max_rows: int) -> pa.Table:
    """The table of a stream. Raises RequestError for anything that is not whole, plain and small enough."""
    try:
        _require_uncompressed(content)
        with pa.ipc.open_stream(pa.BufferReader(content)) as stream:
            for field, _ in zip(stream.schema, stream.schema.names, strict=True):  # a name that is no text is found here
                _require_plain(field)
            batches: list[pa.RecordBatch] = []
            rows = 0
            for batch in stream:
                rows += batch.num_rows
                if rows > max_rows or len(batches) == MOST_BATCHES:
                    raise RequestError("body", f"over {max_rows:,} rows or {MOST_BATCHES:,} batches", "fewer rows a request")
                batch.validate(full=True)
                batches.append(batch)
            if not rows:
                raise RequestError("body", "a table without rows", f"1 to {max_rows:,} rows")
            return pa.Table.from_batches(batches, stream.schema)
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError, KeyError, struct.error) as error:
        first = str(error).partition("\n")[0][:200]
        raise RequestError("body", f"no Arrow stream ({type(error).__name__}: {first})", EXPECTED) from None


def checked_table(table: pa.Table, contract: Contract, key: PrivacyKey | None) -> pa.Table:
    """The table in the contract's types, privacy rules applied. Refuses what a JSON row is refused for: raises RequestError."""
    try:
        return _checked(table, contract, key)
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise RequestError("body", f"values that cannot be read ({type(error).__name__})", EXPECTED) from None


def _checked(table: pa.Table, contract: Contract, key: PrivacyKey | None) -> pa.Table:
    names = list(contract.columns)
    doubled = next((name for name in table.column_names if table.column_names.count(name) > 1), None)
    if doubled is not None:
        raise RequestError(doubled[:60], "there twice", "each column once")
    extra = next((name for name in table.column_names if name not in contract.columns), None)
    if extra is not None:
        hint = nearest(extra, names).replace(" Did", "; did").rstrip(".")
        raise RequestError(extra[:60], "not a field", "only known fields" + hint)
    columns = {}
    for name, rule in contract.columns.items():
        if name not in table.column_names:
            if not rule.nullable:
                raise RequestError(name, "missing", contract.describe(name))
            columns[name] = pa.chunked_array([pa.nulls(table.num_rows)])
            continue
        columns[name] = table.column(name)
        _require_type(name, columns[name], rule, contract)
    typed, broken = check_table(contract, pa.table(columns), where="the table", key=key)
    if broken.num_rows:
        reason = broken.column(REASON)[0].as_py()
        raise RequestError("body", reason, next((contract.describe(name) for name in names if reason.startswith(f"{name} ")), "good rows"))
    return typed


def _require_type(name: str, column: pa.ChunkedArray, rule: ColumnContract, contract: Contract) -> None:
    """A column of the kind that JSON would have, with values that JSON could say."""
    kind = column.type
    hidden = rule.privacy is not None and makes_text(rule.privacy)
    allowed = _is_text(kind) or pa.types.is_integer(kind) if hidden else _fits(kind, rule.type)
    if not (allowed or pa.types.is_null(kind)):
        raise RequestError(name, f"a column of type {kind}", contract.describe(name))
    if pa.types.is_floating(kind) and not pc.all(pc.is_finite(column), min_count=0).as_py():
        raise RequestError(name, "a number that is not finite", contract.describe(name))
    if pa.types.is_timestamp(kind):
        moments = pc.cast(pc.cast(column, pa.timestamp("us", tz=kind.tz), safe=False), pa.int64()).drop_null()
        ends = pc.min_max(moments)
        if len(moments) and not YEAR_1 <= ends["min"].as_py() <= ends["max"].as_py() < YEAR_10000:
            raise RequestError(name, "a moment without a date", contract.describe(name))


def _fits(kind: pa.DataType, wanted: ColumnType) -> bool:
    if wanted in ("int", "float"):
        return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))
    if wanted == "string":
        return _is_text(kind)
    tests = {"bool": pa.types.is_boolean, "timestamp": pa.types.is_timestamp}
    if wanted in tests:
        return bool(tests[wanted](kind))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _require_plain(field: pa.Field) -> None:
    kind = field.type
    plain = (
        _is_text(kind) or pa.types.is_null(kind) or pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)
        or pa.types.is_timestamp(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    )  # fmt: skip
    if not plain or isinstance(kind, pa.BaseExtensionType):
        raise RequestError(field.name[:60], f"a column of type {str(kind)[:60]}", "plain numbers, text, moments, true or false, or bytes")


def _require_uncompressed(content: bytes) -> None:
    """Look at the metadata of every message for compression, which PyArrow does not tell. Raises RequestError for it, ValueError,
    struct.error or ArrowException for what is no stream."""
    reader = pa.ipc.MessageReader.open_stream(pa.BufferReader(content))
    for _ in range(MOST_BATCHES + 2):
        try:
            message = reader.read_next_message()
        except StopIteration:
            return
        if _is_compressed(bytes(message.metadata)):
            raise RequestError("body", "a stream with compressed buffers", EXPECTED)
    raise RequestError("body", f"over {MOST_BATCHES:,} batches", "fewer batches a request")


def _is_compressed(metadata: bytes) -> bool:
    """Whether a message is a record batch with compression, from its FlatBuffers table."""
    message = struct.unpack_from("<I", metadata)[0]
    kind = _field(metadata, message, 1)
    header = _field(metadata, message, 2)
    if not kind or metadata[kind] != RECORD_BATCH or not header:
        return False
    return bool(_field(metadata, header + struct.unpack_from("<I", metadata, header)[0], COMPRESSION))


def _field(metadata: bytes, table: int, number: int) -> int:
    """Place of a table's field; 0 where it is absent."""
    vtable = table - struct.unpack_from("<i", metadata, table)[0]
    if vtable < 0 or 4 + 2 * number >= struct.unpack_from("<H", metadata, vtable)[0]:
        return 0
    offset = struct.unpack_from("<H", metadata, vtable + 4 + 2 * number)[0]
    if offset and table + offset >= len(metadata):
        raise ValueError("metadata that points beyond itself")
    return int(table + offset) if offset else 0
