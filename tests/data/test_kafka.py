"""A Kafka topic on the broker that librdkafka brings for tests, which speaks the protocol over a socket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from raymlp.config.data import Data
from raymlp.config.problem import Problem
from raymlp.config.runtime import Runtime
from raymlp.core.errors import SourceUnavailable
from raymlp.data import sources
from raymlp.data.snapshot import prepare, read_split
from raymlp.data.sources import kafka

pytestmark = pytest.mark.ray
ROWS = 40
START_MS = 1_700_000_000_000


class Broker(NamedTuple):
    address: str
    producer: Any

    def send(self, partition: int, value: bytes, second: int) -> None:
        self.producer.produce("visits", value, partition=partition, timestamp=START_MS + second * 1000)

    def source(self, **changes: Any) -> dict[str, Any]:
        return {"kind": "kafka", "servers": [self.address], "topic": "visits", "timeout_s": 60, **changes}


@pytest.fixture
def broker() -> Iterator[Broker]:
    """Four partitions; rows 0, 2, 4 ... of the table lie in partition 0, the others in partition 1."""
    client = pytest.importorskip("confluent_kafka", reason="needs raymlp[kafka]")
    producer = client.Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "unused:1", "log_level": 3})
    (found,) = producer.list_topics(timeout=10).brokers.values()
    place = Broker(f"{found.host}:{found.port}", producer)
    for i in range(ROWS):
        place.send(i % 2, json.dumps({"i": i, "word": "ab"[i % 2], "y": i / 2}).encode(), i)
    assert producer.flush(10) == 0
    yield place
    producer.purge()


def test_messages_between_two_offsets_become_a_snapshot_and_one_that_is_no_object_goes_to_quarantine(
    broker: Broker, ray_runtime: Runtime, tmp_path: Path
) -> None:
    broker.send(1, b"no object", ROWS)
    broker.send(1, b'{"i": 99, "word": "b", "y": 1.0}', ROWS)
    assert broker.producer.flush(10) == 0
    data = Data.model_validate(
        {
            "source": broker.source(start=5, end=21),
            "split": {"kind": "random", "valid": 0.2, "test": 0},
            "max_bad_share": 0.2,
        }
    )
    snapshot = prepare(Problem(name="visits", task="regression", target="y", id_columns=("offset",)), data, tmp_path)
    rows = [row for split in ("train", "valid") for row in read_split(snapshot.path, split).to_pylist()]
    assert sorted(row["i"] for row in rows) == list(range(10, ROWS))  # offset 5 of partition 0 holds row 10, of partition 1 row 11
    assert all(row["word"] == "ab"[row["i"] % 2] and row["partition"] == row["i"] % 2 and row["offset"] == row["i"] // 2 for row in rows)
    assert all(int(row["timestamp"].timestamp() * 1000) == START_MS + row["i"] * 1000 for row in rows)
    assert snapshot.quarantined == 1


def test_of_a_topic_that_grew_the_new_messages_are_read(broker: Broker, ray_runtime: Runtime, tmp_path: Path) -> None:
    problem = Problem(name="visits", task="regression", target="y", id_columns=("offset",))
    data = Data.model_validate({"source": broker.source(), "split": {"kind": "hash", "columns": ["i"], "valid": 0.3, "test": 0}})
    first = prepare(problem, data, tmp_path / "grown")
    assert first.rows["train"] + first.rows["valid"] == ROWS
    for i in range(ROWS, ROWS + 10):
        broker.send(i % 3, json.dumps({"i": i, "word": "ab"[i % 2], "y": i / 2}).encode(), i)
    assert broker.producer.flush(10) == 0
    grown = prepare(problem, data, tmp_path / "grown")
    parts = json.loads((grown.path / "manifest.json").read_text())["parts"]
    assert [part["mark"]["offsets"] for part in parts] == [
        {"0": [0, 20], "1": [0, 20], "2": [0, 0], "3": [0, 0]},
        {"0": [20, 23], "1": [20, 24], "2": [0, 3], "3": [0, 0]},
    ]
    assert grown.growth.startswith("read 1 new of 2 parts, 1 taken over")
    whole = prepare(problem, data, tmp_path / "whole")
    seen = [sorted((row["i"], row["word"], row["y"]) for row in read_split(made.path, "valid").to_pylist()) for made in (grown, whole)]
    assert seen[0] == seen[1]
    assert grown.rows == whole.rows


def test_a_broker_that_is_not_there_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("confluent_kafka", reason="needs raymlp[kafka]")
    monkeypatch.setattr(kafka, "ASK_S", 1.0)  # nobody will answer, however long one waits
    source = Data.model_validate(
        {
            "source": {
                "kind": "kafka",
                "servers": ["127.0.0.1:1"],
                "topic": "visits",
                "end": 5,
                "timeout_s": 3,
                "retry": {"attempts": 1},
            },
            "split": {"kind": "random"},
        }
    ).source
    with pytest.raises(SourceUnavailable, match=r"kafka topic visits at 127\.0\.0\.1:1"):
        sources.schema_of(source)
