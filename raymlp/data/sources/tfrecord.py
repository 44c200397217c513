"""TFRecord files of `tf.train.Example`, without tensorflow.

A record is its length (uint64, little endian), the masked CRC32C of the length, the bytes, and their masked CRC32C.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import pyarrow as pa

from raymlp.config.sources import ColumnType, TfRecordSource
from raymlp.core.errors import DataError
from raymlp.data.sources import files, rows
from raymlp.data.sources.extras import load
from raymlp.data.sources.part import BadRows, Mark, Part

ENDINGS = tuple(f".{name}{packed}" for name in ("tfrecord", "tfrecords") for packed in ("", ".gz"))
MASK = 0xA282EAD8


def parts(source: TfRecordSource) -> list[Part]:
    return files.find(source.path, ENDINGS)


def fingerprint(source: TfRecordSource, parts: list[Part]) -> list[dict[str, Any]]:
    return files.fingerprint(parts)


def pieces(source: TfRecordSource, parts: list[Part], facts: list[dict[str, Any]], known: Sequence[Mark]) -> list[tuple[Part, Mark]]:
    return files.pieces(parts, facts, known)


def schema(source: TfRecordSource, parts: list[Part]) -> dict[str, ColumnType]:
    return rows.inferred(_examples(source, parts[0], BadRows()), source.types, parts[0].path)


def batches(source: TfRecordSource, part: Part, types: dict[str, ColumnType], batch_rows: int, bad: BadRows) -> Iterator[pa.Table]:
    yield from rows.tables(_examples(source, part, bad), types, batch_rows)


def _examples(source: TfRecordSource, part: Part, bad: BadRows) -> Iterator[dict[str, Any]]:
    message = load("google.protobuf.message", "tfrecord")
    for number, record in enumerate(_records(source, part), start=1):
        example = _example_class()()
        try:
            example.ParseFromString(record)
        except message.DecodeError:
            bad.add(f"record {number} is no tf.train.Example")
            continue
        yield {name: _value(feature) for name, feature in sorted(example.features.feature.items())}


def _value(feature: Any) -> Any:
    """The one value of a feature; None for none, a list for several."""
    kind = feature.WhichOneof("kind")
    values = list(getattr(feature, kind).value) if kind else []
    if kind == "bytes_list":
        values = [_text_or_bytes(value) for value in values]
    if not values:
        return None
    return values[0] if len(values) == 1 else values


def _text_or_bytes(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _records(source: TfRecordSource, part: Part) -> Iterator[bytes]:
    checksum = load("google_crc32c", "tfrecord").value
    limit = source.max_row_mb * (1 << 20)
    number = 0
    with files.reading(part):
        stream = files.open_stream(part, max_expansion=source.max_expansion)
        while head := stream.read(12):
            number += 1
            length, mark = struct.unpack("<QI", head) if len(head) == 12 else (0, None)
            if mark is None or mark != masked(checksum(head[:8])):
                raise DataError(f"{part.path}, record {number}: its head is damaged; expected a TFRecord file. Check data.source.kind.")
            if length > limit:
                raise DataError(
                    f"{part.path}, record {number} has {length:,} bytes; expected at most {source.max_row_mb:g} MiB. "
                    "Raise data.source.max_row_mb if that is right."
                )
            record, tail = stream.read(length), stream.read(4)
            if len(tail) < 4:
                raise DataError(f"{part.path} ends within record {number}; the file was cut off.")
            if struct.unpack("<I", tail)[0] != masked(checksum(record)):
                raise DataError(f"{part.path}, record {number}: its checksum is wrong; the bytes were changed.")
            yield record


def masked(crc: int) -> int:
    """The checksum as the format stores it, rotated and shifted, so that a checksum of a checksum is no accident."""
    return (((crc >> 15) | (crc << 17)) + MASK) & 0xFFFFFFFF


@cache
def _example_class() -> Any:
    """`tf.train.Example`, built from its published definition."""
    pb2, pools, factory = (load(f"google.protobuf.{name}", "tfrecord") for name in ("descriptor_pb2", "descriptor_pool", "message_factory"))
    file = pb2.FileDescriptorProto(name="raymlp/example.proto", package="raymlp.example", syntax="proto3")
    kind = pb2.FieldDescriptorProto
    lists = {"BytesList": kind.TYPE_BYTES, "FloatList": kind.TYPE_FLOAT, "Int64List": kind.TYPE_INT64}
    for name, value in lists.items():
        file.message_type.add(name=name).field.add(name="value", number=1, label=kind.LABEL_REPEATED, type=value)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (name, field) in enumerate(zip(lists, ("bytes_list", "float_list", "int64_list"), strict=True), start=1):
        _message_field(feature, field, number, name, oneof_index=0)
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=kind.LABEL_OPTIONAL, type=kind.TYPE_STRING)
    _message_field(entry, "value", 2, "Feature")
    _message_field(features, "feature", 1, "Features.FeatureEntry", label=kind.LABEL_REPEATED)
    _message_field(file.message_type.add(name="Example"), "features", 1, "Features")
    pool = pools.DescriptorPool()
    pool.Add(file)
    return factory.GetMessageClass(pool.FindMessageTypeByName("raymlp.example.Example"))


def _message_field(message: Any, name: str, number: int, type_name: str, **more: Any) -> None:
    kind = load("google.protobuf.descriptor_pb2", "tfrecord").FieldDescriptorProto
    settings = {"label": kind.LABEL_OPTIONAL, **more}
    message.field.add(name=name, number=number, type=kind.TYPE_MESSAGE, type_name=f".raymlp.example.{type_name}", **settings)
