"""The prediction log, from memory to files and back."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from raymlp.config.serve import Log
from raymlp.data.contract import ColumnContract, Contract
from raymlp.serve.log import SCHEMA, Entry, PredictionLog, read_log

CONTRACT = Contract(columns={"hours": ColumnContract(type="int"), "at": ColumnContract(type="timestamp")})
MOMENT = datetime(2013, 7, 1, 9, tzinfo=UTC)


def entry(number: int, *, version: str = "1", status: int = 200) -> Entry:
    inputs = {"hours": number, "at": MOMENT} if status == 200 else None
    return Entry(f"id{number}", 0, 1_000.5 + number, version, f"key{number}", status, 0.25 if status == 200 else None, 1.5, inputs, "r")


def log_in(folder: Path, **settings: int) -> PredictionLog:
    log = PredictionLog(folder, Log(**settings), writer="replica")
    log.know("1", CONTRACT)
    return log


def test_rows_come_back_with_their_types_and_values(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    log.add(entry(1))
    log.add(entry(2, status=500))
    assert log.flush() == 2
    table = read_log(tmp_path)
    assert table.schema.field("time").type == pa.timestamp("us", tz="UTC")
    assert table.schema.field("in.hours").type == pa.int64()
    good, bad = table.to_pylist()
    assert good == {
        "prediction_id": "id1", "row": 0, "time": datetime.fromtimestamp(1_001.5, UTC), "version": "1", "routing_key": "key1",
        "status": 200, "prediction": 0.25, "latency_ms": 1.5, "routes": "r", "in.hours": 1, "in.at": MOMENT,
    }  # fmt: skip
    assert (bad["status"], bad["prediction"], bad["in.hours"], bad["in.at"]) == (500, None, None, None)


def test_a_log_without_files_has_columns_and_no_rows(tmp_path: Path) -> None:
    assert read_log(tmp_path / "absent").schema == SCHEMA
    assert read_log(tmp_path / "absent").num_rows == 0


def test_the_oldest_rows_go_when_too_many_wait_and_are_counted(tmp_path: Path) -> None:
    log = log_in(tmp_path, max_rows=3)
    for number in range(5):
        log.add(entry(number))
    log.flush()
    assert log.dropped == 2
    assert read_log(tmp_path)["prediction_id"].to_pylist() == ["id2", "id3", "id4"]


def test_it_is_due_when_enough_rows_wait(tmp_path: Path) -> None:
    log = log_in(tmp_path, flush_rows=2)
    log.add(entry(1))
    assert not log.is_due
    log.add(entry(2))
    assert log.is_due


def test_versions_with_other_columns_and_types_are_read_as_one_table_in_order_of_time(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    log.know("2", Contract(columns={"hours": ColumnContract(type="float"), "carrier": ColumnContract(type="string")}))
    log.add(entry(1))
    log.add(entry(0, version="2")._replace(inputs={"hours": 0.5, "carrier": "x"}))
    log.flush()
    assert len(list(tmp_path.glob("*.parquet"))) == 2
    table = read_log(tmp_path)
    assert table["in.hours"].to_pylist() == [0.5, 1.0]
    assert table["in.carrier"].to_pylist() == ["x", None]


def test_a_column_that_was_a_number_and_is_text_now_is_read_as_text(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    log.know("2", Contract(columns={"hours": ColumnContract(type="string")}))
    log.add(entry(1))
    log.add(entry(2, version="2")._replace(inputs={"hours": "two"}))
    log.flush()
    assert read_log(tmp_path)["in.hours"].to_pylist() == ["1", "two"]


def test_a_file_that_is_not_finished_is_not_read(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    log.add(entry(1))
    log.flush()
    (tmp_path / ".half.parquet").write_bytes(b"PAR1")
    assert read_log(tmp_path).num_rows == 1


def test_rows_wait_again_when_the_disk_refuses_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = log_in(tmp_path)
    log.add(entry(1))
    log.add(entry(2))

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("raymlp.serve.log.os.replace", full)
        with pytest.raises(OSError, match="no space"):
            log.flush()
    assert list(tmp_path.iterdir()) == []
    assert log.flush() == 2
    assert read_log(tmp_path)["prediction_id"].to_pylist() == ["id1", "id2"]
