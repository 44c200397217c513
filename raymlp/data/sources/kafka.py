"""Messages of a Kafka topic between two bounds, through Ray Data's reader.

Bounds become offsets of each partition when the parts are listed, so that a snapshot records what it reached and the next
one reads on from there.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson
import pyarrow as pa

from raymlp.config.sources import ColumnType, KafkaSource
from raymlp.core.errors import ConfigError, DataError, SourceUnavailable
from raymlp.data.sources import rows
from raymlp.data.sources.extras import load
from raymlp.data.sources.part import BadRows, Mark, Part
from raymlp.data.sources.retry import Unanswered

log = logging.getLogger(__name__)
ASK_S = 10.0
"""Seconds that the client waits for an answer about the topic."""
Span = tuple[int, int, int]
"""A partition, its first offset, and the one before which reading ends."""


def parts(source: KafkaSource) -> list[Part]:
    """One part, `((partition, start, end), ...)` in offsets as the topic stands now: Ray Data reads the partitions side by side."""
    spans = _spans(source)
    if all(start == end for _, start, end in spans):
        raise DataError(f"{source.name} holds no message between data.source.start and end; expected some.")
    return [Part(source.name, piece=spans)]


def fingerprint(source: KafkaSource, parts: list[Part]) -> list[dict[str, Any]]:
    """The offsets: what lies between two of them never changes."""
    return [_mark(source, parts[0].piece)]


def pieces(source: KafkaSource, parts: list[Part], facts: list[dict[str, Any]], known: Sequence[Mark]) -> list[tuple[Part, Mark]]:
    """What was read before, and what came after. A topic that ends before the offsets reached is another one, and is read anew."""
    spans = parts[0].piece
    before = [mark for mark in known if mark.get("table") == source.name]
    reached = {int(number): end for mark in before for number, (_, end) in mark["offsets"].items()}
    ends = {number: end for number, _, end in spans}
    if any(end > ends.get(number, -1) for number, end in reached.items()):
        return [(parts[0], facts[0])]
    found = [(Part(source.name, piece=tuple((int(n), *span) for n, span in mark["offsets"].items())), mark) for mark in before]
    rest = tuple((number, max(start, reached.get(number, start)), end) for number, start, end in spans)
    for number, start, _ in rest:
        if start > reached.get(number, start):
            log.warning("%s: offsets %d to %d of partition %d are gone unread", source.name, reached[number], start, number)
    if any(start < end for _, start, end in rest):
        found.append((Part(source.name, piece=rest), _mark(source, rest)))
    return found


def schema(source: KafkaSource, parts: list[Part]) -> dict[str, ColumnType]:
    return rows.inferred(_rows(source, parts[0], BadRows()), source.types, source.name)


def batches(source: KafkaSource, part: Part, types: dict[str, ColumnType], batch_rows: int, bad: BadRows) -> Iterator[pa.Table]:
    yield from rows.tables(_rows(source, part, bad), types, batch_rows)


def arguments(source: KafkaSource, part: Part) -> dict[str, Any]:
    """What `ray.data.read_kafka` is asked for."""
    return {
        "topics": source.topic,
        "bootstrap_servers": list(source.servers),
        "start_offset": {source.topic: {number: start for number, start, _ in part.piece}},
        "end_offset": {source.topic: {number: end for number, _, end in part.piece}},
        "consumer_config": _client(source) or None,
        "timeout_ms": round(source.timeout_s * 1000),
    }


def _client(source: KafkaSource) -> dict[str, str]:
    """Settings of the client. Raises ConfigError when a user name comes without a password."""
    user, password = os.environ.get("RAYMLP_KAFKA_USER"), os.environ.get("RAYMLP_KAFKA_PASSWORD")
    if bool(user) != bool(password):
        raise ConfigError("RAYMLP_KAFKA_USER and RAYMLP_KAFKA_PASSWORD go together; expected both or none in the environment.")
    return {**source.client, **({"sasl.username": str(user), "sasl.password": str(password)} if user else {})}


def _mark(source: KafkaSource, spans: Iterable[Span]) -> Mark:
    return {"table": source.name, "offsets": {str(number): [start, end] for number, start, end in spans}}


def _spans(source: KafkaSource) -> tuple[Span, ...]:
    """First offset of each partition, and the one before which it ends, within what the broker still holds."""
    client = load("confluent_kafka", "kafka")
    fixed = {"bootstrap.servers": ",".join(source.servers), "group.id": "raymlp", "enable.auto.commit": False}
    consumer = client.Consumer({**_client(source), **fixed})
    try:
        topic = consumer.list_topics(source.topic, timeout=ASK_S).topics.get(source.topic)
        if topic is None or topic.error is not None:
            raise SourceUnavailable(f"{source.name} is not there; expected a topic. Set data.source.topic.")
        return tuple(_span(source, client, consumer, number) for number in sorted(topic.partitions))
    except client.KafkaException as error:
        raise Unanswered(f"{source.name} did not answer: {error}.") from error
    finally:
        consumer.close()


def _span(source: KafkaSource, client: Any, consumer: Any, number: int) -> Span:
    low, high = consumer.get_watermark_offsets(client.TopicPartition(source.topic, number), timeout=ASK_S)

    def place(bound: int | datetime | None) -> int:
        if isinstance(bound, datetime):
            moment = client.TopicPartition(source.topic, number, round(bound.timestamp() * 1000))
            found = int(consumer.offsets_for_times([moment], timeout=ASK_S)[0].offset)
            return found if found >= 0 else int(high)
        return int(high) if bound is None else min(max(bound, int(low)), int(high))

    start = place(source.start)
    return number, start, max(start, place(source.end))


def _rows(source: KafkaSource, part: Part, bad: BadRows) -> Iterator[dict[str, Any]]:
    import ray

    asked = {number for number, _, _ in part.piece}
    try:
        messages = ray.data.read_kafka(**arguments(source, part)).sort(["partition", "offset"])
        for message in messages.iter_rows():
            if message["partition"] not in asked:
                continue  # a partition that came after the offsets were listed
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
