"""Messages of a Kafka topic between two bounds, through Ray Data's reader.

The call is tested up to the reader; no broker was at hand when this was written.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import orjson
import pyarrow as pa

from raymlp.config.sources import ColumnType, KafkaSource
from raymlp.core.errors import ConfigError
from raymlp.data.sources import rows
from raymlp.data.sources.extras import load
from raymlp.data.sources.part import BadRows, Part
from raymlp.data.sources.retry import Unanswered


def parts(source: KafkaSource) -> list[Part]:
    """One part: Ray Data reads the partitions side by side."""
    load("confluent_kafka", "kafka")
    return [Part(source.name)]


def fingerprint(source: KafkaSource, parts: list[Part]) -> list[dict[str, Any]]:
    """The bounds: what lies between two offsets never changes."""
    return [{"table": source.name, "start": str(source.start), "end": str(source.end)}]


def schema(source: KafkaSource, parts: list[Part]) -> dict[str, ColumnType]:
    return rows.inferred(_rows(source, BadRows()), source.types, source.name)


def batches(source: KafkaSource, part: Part, types: dict[str, ColumnType], batch_rows: int, bad: BadRows) -> Iterator[pa.Table]:
    yield from rows.tables(_rows(source, bad), types, batch_rows)


def arguments(source: KafkaSource) -> dict[str, Any]:
    """What `ray.data.read_kafka` is asked for. Raises ConfigError when a user name comes without a password."""
    user, password = os.environ.get("RAYMLP_KAFKA_USER"), os.environ.get("RAYMLP_KAFKA_PASSWORD")
    if bool(user) != bool(password):
        raise ConfigError("RAYMLP_KAFKA_USER and RAYMLP_KAFKA_PASSWORD go together; expected both or none in the environment.")
    login = {"sasl.username": user, "sasl.password": password} if user else {}
    return {
        "topics": source.topic,
        "bootstrap_servers": list(source.servers),
        "start_offset": source.start,
        "end_offset": source.end,
        "consumer_config": {**source.client, **login} or None,
        "timeout_ms": round(source.timeout_s * 1000),
    }


def _rows(source: KafkaSource, bad: BadRows) -> Iterator[dict[str, Any]]:
    import ray

    try:
        messages = ray.data.read_kafka(**arguments(source)).sort(["partition", "offset"])
        for message in messages.iter_rows():
            row = row_of(message)
            if row is None:
                bad.add(f"partition {message['partition']}, offset {message['offset']}: the value is no JSON object")
            else:
                yield row
    except (OSError, RuntimeError, ray.exceptions.RayError) as error:
        raise Unanswered(f"{source.name} did not answer: {error}.") from error


def row_of(message: dict[str, Any]) -> dict[str, Any] | None:
    """The fields of the JSON object in a message, with where and when it was; None when there is none."""
    try:
        value = orjson.loads(message["value"])
    except (orjson.JSONDecodeError, TypeError):
        return None
    if not isinstance(value, dict):
        return None
    sent = datetime.fromtimestamp(message["timestamp"] / 1000, UTC)
    return {**value, "partition": message["partition"], "offset": message["offset"], "timestamp": sent}
